"""`fastmix info`: what is installed, which backend serves which op (or why not), a check of their results.

Whatever needs torch runs in a child process, so that the report survives a torch that cannot be imported or a
native module that crashes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastmix import __version__

SUMMARY = "versions, backends and a self-check"
PACKAGES = ("torch", "triton", "numpy", "torchvision", "timm")
PREFIXES = ("FASTMIX_", "TRITON_", "TORCH_", "PYTORCH_", "CUDA_", "OMP_", "KMP_", "GOMP_", "MKL_")
VARIABLES = ("CC", "CXX", "MAX_JOBS", "NVCC_FLAGS")
PROBE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fastmix.cli.info import probe; probe()"
PROBE_SECONDS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the report; 0 when torch imports and every self-check passed, also where kernels are missing, else 1."""
    report = collect()
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0 if report["healthy"] else 1


def collect() -> dict:
    """The whole report as plain data. A part that could not be read holds {"error": reason}."""
    report = {
        "versions": _guard(_versions),
        "system": _guard(_system),
        "toolchain": _guard(_toolchain),
        "environment": _guard(_environment),
        **_run_probe(),
    }
    report["hints"] = _guard(lambda: _hints(report))
    checks = report["self_check"]
    report["healthy"] = isinstance(checks, list) and all(check["error"] is None for check in checks)
    return report


def probe() -> None:
    """Print the sections that need torch, one JSON line each: a crash loses only what comes after it."""
    for name, section in (
        ("torch", _torch),
        ("build", _build),
        ("backends", _backends),
        ("slow", _slow),
        ("self_check", lambda: list(self_check())),
    ):
        print(json.dumps({name: _guard(section)}), flush=True)


def self_check() -> Iterator[dict]:
    """Run every op forward and backward on each usable backend and compare it with the float64 reference.

    Yields {"op", "backend", "device", "error"}; `error` is None or says what differs.
    """
    import torch

    from fastmix import dispatch

    for device in _devices():
        for op, case in _CASES.items():
            wanted = case(device, torch.float64, "reference")
            # TF32 tensor cores round the attention's logits.
            tolerance = 5e-3 if (op, device) == ("pair_attention", "cuda") else 1e-5
            for backend in dispatch.BACKENDS:
                if dispatch.can_run(op, backend, device, dispatch.usual_dtype(op)) is None:
                    found = _guard(partial(case, device, torch.float32, backend))
                    error = _difference(found, wanted, tolerance)
                    yield {"op": op, "backend": backend, "device": device, "error": error}


def _difference(found: dict, wanted: dict, tolerance: float) -> str | None:
    if "error" in found:
        return found["error"]
    for name, truth in wanted.items():
        gap = ((found[name].double() - truth).abs().max() / truth.abs().max()).item()
        if not gap <= tolerance:
            return f"{name} is off by {gap:.1e} of the largest value (allowed {tolerance:.0e})"
    return None


def _inputs(device: str, dtype, **shapes: tuple[int, ...]) -> dict:
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {name: value.to(device, dtype).requires_grad_() for name, value in drawn.items()}


def _with_gradients(inputs: dict, outputs: tuple) -> dict:
    import torch

    # Unequal weights, so that a permuted or shifted gradient cannot pass.
    loss = sum((y * torch.linspace(1, 2, y.numel(), device=y.device).to(y).view_as(y)).sum() for y in outputs)
    grads = torch.autograd.grad(loss, list(inputs.values()))
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return found | {f"gradient of {name}": grad for name, grad in zip(inputs, grads, strict=True)}


def _index(device: str):
    import torch

    return torch.tensor([2, 0, 2], device=device)


def _blend(device: str, dtype, backend: str) -> dict:
    from fastmix import ops

    inputs = _inputs(device, dtype, x=(3, 2, 9, 7), lam=(3,))
    return _with_gradients(inputs, (ops.blend(inputs["x"], _index(device), inputs["lam"], backend=backend),))


def _box_blend(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    inputs = _inputs(device, dtype, x=(3, 2, 9, 7), lam=(3,))
    box = torch.tensor([[1, 2, 5, 6], [0, 0, 9, 3], [4, 4, 4, 6]], dtype=torch.int32, device=device)
    mixed = ops.box_blend(inputs["x"], _index(device), box, inputs["lam"], backend=backend)
    return _with_gradients(inputs, (mixed,))


def _mask_blend(device: str, dtype, backend: str) -> dict:
    from fastmix import ops

    inputs = _inputs(device, dtype, x=(3, 2, 9, 7), mask=(3, 4, 3))
    mixed = ops.mask_blend(inputs["x"], _index(device), inputs["mask"], activation="sigmoid", backend=backend)
    return _with_gradients(inputs, tuple(mixed))


def _pair_attention(device: str, dtype, backend: str) -> dict:
    from fastmix import ops

    inputs = _inputs(device, dtype, q=(3, 12, 16), k=(3, 12, 16), v=(3, 12), key_bias=(3, 12))
    q, k, v, key_bias = inputs.values()
    rows = ops.pair_attention(q, k, v, _index(device), key_bias, backend=backend)
    columns = ops.pair_attention(q, k, v, _index(device), key_bias, transpose=True, backend=backend)
    return _with_gradients(inputs, (rows, columns))


def _outputs(*tensors) -> dict:
    return {f"output {i}": tensor for i, tensor in enumerate(tensors)}


def _saliency_pool(device: str, dtype, backend: str) -> dict:
    from fastmix import ops

    grad = _inputs(device, dtype, grad=(3, 2, 8, 12))["grad"].detach()
    return _outputs(ops.saliency_pool(grad, 4, backend=backend))


def _puzzle_energy(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    x, saliency = _inputs(device, torch.float32, x=(3, 3, 16, 16), saliency=(3, 4, 4)).values()
    saliency = (saliency / saliency.sum((1, 2), keepdim=True)).detach()
    return _outputs(*ops.puzzle_energy(x.detach(), saliency, _index(device), 0.3, 3, backend=backend))


def _grid_cut(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    drawn = _inputs(device, torch.float32, unary=(3, 4, 5, 3), weight_y=(3, 3, 5), weight_x=(3, 4, 4))
    graph = [(1000 * value.detach()).int() for value in drawn.values()]
    return _outputs(*ops.grid_cut(*graph, backend=backend), *ops.grid_cut(*graph, solver="swap", backend=backend))


def _transport(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    drawn = _inputs(device, torch.float32, visible=(3, 4, 4), saliency=(3, 4, 4))
    visible, saliency = (value.detach() for value in drawn.values())
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    return _outputs(ops.transport(visible > 0.4, saliency, 0.1, backend=backend))


def _fine_grained_saliency(device: str, dtype, backend: str) -> dict:
    from fastmix import ops

    x = _inputs(device, dtype, x=(3, 3, 20, 14))["x"].detach()
    # Bytes, so that every dtype means the same image.
    return _outputs(ops.fine_grained_saliency((255 * x).byte(), backend=backend))


def _saliency_box(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    saliency, lam = (value.detach() for value in _inputs(device, torch.float32, saliency=(3, 9, 7), lam=(3,)).values())
    windows = (ops.saliency_box(saliency, window=(4, 3), smallest=least, backend=backend) for least in (False, True))
    return _outputs(ops.saliency_box(saliency, lam, backend=backend), *windows)


def _spectral_mask(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    count, found = torch.tensor([0, 60, 120], device=device), []
    for spectrum in ("paper", "reference"):
        shape = ops.spectral_mask_noise_shape((12, 15), spectrum)
        noise = _inputs(device, torch.float32, noise=(3, *shape))["noise"].detach() - 0.5
        found.append(ops.spectral_mask(noise, count, (12, 15), spectrum=spectrum, backend=backend))
    return _outputs(*found)


def _flip_blend(device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    inputs = _inputs(device, dtype, x=(3, 2, 9, 7))
    box = torch.tensor([[1, 2, 5, 6], [0, 0, 9, 3], [4, 4, 4, 6]], dtype=torch.int32, device=device)
    lam = torch.tensor([0.3, 1.0, 0.9], dtype=dtype, device=device)
    return _with_gradients(inputs, (ops.flip_blend(inputs["x"], lam, box, backend=backend),))


def _losses(op: str, device: str, dtype, backend: str) -> dict:
    import torch

    from fastmix import ops

    inputs = _inputs(device, dtype, logits=(3, 40), lam=(3,), lam_b=(3,))
    if op == "soft_cross_entropy":
        y = _inputs(device, torch.float32, y=(3, 40))["y"].detach().softmax(1)
    else:
        y = torch.tensor([3, 39, -100], device=device)
    z, lam, lam_b = inputs.values()
    loss = getattr(ops, op)(z, y, y[[1, 2, 0]], lam, 0.1, "none", lam_b=lam_b, backend=backend)
    return _with_gradients(inputs, (loss,))


_CASES: dict[str, Callable[..., dict]] = {
    "blend": _blend,
    "box_blend": _box_blend,
    "flip_blend": _flip_blend,
    "mask_blend": _mask_blend,
    "pair_attention": _pair_attention,
    "saliency_pool": _saliency_pool,
    "fine_grained_saliency": _fine_grained_saliency,
    "saliency_box": _saliency_box,
    "spectral_mask": _spectral_mask,
    "puzzle_energy": _puzzle_energy,
    "grid_cut": _grid_cut,
    "transport": _transport,
    "mix_binary_cross_entropy": partial(_losses, "mix_binary_cross_entropy"),
    "mix_cross_entropy": partial(_losses, "mix_cross_entropy"),
    "soft_cross_entropy": partial(_losses, "soft_cross_entropy"),
}


def _guard(section: Callable[[], object]):
    try:
        return section()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _run_probe() -> dict:
    names = ("torch", "build", "backends", "slow", "self_check")
    command = [sys.executable, "-c", PROBE, json.dumps(sys.path)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {name: {"error": str(error)} for name in names}
    sections = {}
    for line in child.stdout.splitlines():
        if line.startswith("{"):
            sections |= json.loads(line)
    if child.returncode < 0:
        reason = f"the process died of {signal.Signals(-child.returncode).name}"
    else:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return {name: sections.get(name, {"error": reason}) for name in names}


def _versions() -> dict:
    found = {"fastmix": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _system() -> dict:
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        cpu = next(names, cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"os": platform.platform(), "machine": platform.machine(), "cpu": cpu or "unknown", "cores": cores}


def _toolchain() -> dict:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    nvcc = shutil.which("nvcc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin")))
    return {
        "c compiler": shutil.which(os.environ.get("CC", "")) or shutil.which("clang") or shutil.which("gcc"),
        "Python.h": str(header) if header.exists() else None,
        "nvcc": nvcc,
        "nvidia driver": Path("/proc/driver/nvidia/version").exists(),
    }


def _environment() -> dict:
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES) or k in VARIABLES}


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _torch() -> dict:
    import torch

    gpus = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        gpus.append(f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
    }


def _build() -> dict:
    from fastmix import native

    module = native.module()
    return module.build_info() | {"isa in use": module.cpu_isa()}


def _backends() -> dict:

    from fastmix import dispatch

    return {
        op: {
            device: {
                backend: dispatch.can_run(op, backend, device, dispatch.usual_dtype(op))
                for backend in dispatch.BACKENDS
            }
            for device in _devices()
        }
        for op in dispatch.ORDER
    }


def _slow() -> dict[str, str]:
    """Kinds of device on which an op runs the reference though it has a kernel for them, each with a reason."""
    from fastmix import dispatch

    found = {}
    for op in dispatch.ORDER:
        for device in _devices():
            reason = dispatch.why_slow(op, device, dispatch.usual_dtype(op))
            if reason:
                found.setdefault(device, f"{op}: {reason}")
    return found


def _hints(report: dict) -> list[str]:
    hints = []
    tools, found, torch_part = report["toolchain"], report["versions"], report["torch"]
    if "error" in torch_part:
        hints.append(f"torch does not work here ({torch_part['error']}): pip install torch")
    missing = [name for name in ("c compiler", "Python.h") if not tools[name]]
    if found["triton"] and missing:
        fix = "apt install build-essential python3-dev"
        hints.append(f"Triton builds its launchers at run time and lacks {' and '.join(missing)}: {fix}")
    if "error" in report["build"]:
        fix = "install a C++17 compiler, then reinstall fastmix with FASTMIX_NO_EXT unset"
        hints.append(f"without the native module CPU calls run the slower reference: {fix}")
    elif report["build"].get("version") != found["fastmix"]:
        hints.append("the native module was built from another version of fastmix: reinstall it")
    elif not report["build"].get("cuda_archs") and (tools["nvcc"] or tools["nvidia driver"]):
        where = "here" if tools["nvcc"] else "where nvcc is installed"
        hints.append(f"no CUDA kernels were built: FASTMIX_CUDA=1 pip install . {where} builds them for all GPUs")
    for device, reason in report["slow"].items():
        if device != "error":
            hints.append(f"on {device} tensors an op runs the slow reference: {reason}")
    if tools["nvidia driver"] and not torch_part.get("gpus"):
        hints.append("this machine has an NVIDIA driver, but torch sees no GPU: install a CUDA build of torch")
    return hints


def render(report: dict) -> str:
    """The report as text."""
    lines = []
    for title in ("versions", "system", "torch", "toolchain", "build", "environment"):
        lines += [title, *(f"  {k:<16} {_text(v)}" for k, v in report[title].items()), ""]
    lines.append("backends (float32; int32 for grid_cut)")
    backends = report["backends"]
    if "error" in backends:
        lines.append(f"  {backends['error']}")
        backends = {}
    for op, devices in backends.items():
        for device, reasons in devices.items():
            lines.append(f"  {op} on {device}")
            lines += [f"    {backend:<10} {reason or 'can run'}" for backend, reason in reasons.items()]
    lines += ["", "self-check (forward and gradients against the float64 reference)"]
    checks = report["self_check"]
    if isinstance(checks, dict):
        lines.append(f"  FAILED: {checks['error']}")
        checks = []
    for check in checks:
        place = f"{check['op']} on {check['device']}, {check['backend']}"
        lines.append(f"  {place:<36} {'ok' if check['error'] is None else 'FAILED: ' + check['error']}")
    lines += ["", *(f"hint: {hint}" for hint in report["hints"])]
    lines.append(_verdict(report))
    return "\n".join(lines)


def _verdict(report: dict) -> str:
    if not report["healthy"]:
        return "fastmix is NOT healthy: see FAILED above"
    if report["slow"]:
        return "fastmix works, but SLOWLY: kernels are missing, see the hints above"
    return "fastmix is healthy"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
