"""One run that measures what the README states: each op, the AutoMix mixing step and the host's overhead.

    python bench/compare.py [--quick] [--json FILE]

An op is timed only after its result agreed with the eager code in float64; providers take turns, so that a slow
moment of the machine hits all of them; medians are printed. Times are for this machine, thread count and allocator.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
from automix_mixing import fused_step
from cases import Case, cases, first
from published_mix import PublishedMixBlock, published_step
from torch import Tensor

from fastmix import native, ops
from fastmix.compat.openmixup import load_mix_block

# (N, C, h, image size) of the mixing steps.
STEPS = {"r50-l3": (32, 1024, 14, 224), "tiny-l3": (64, 256, 16, 64), "r50-l1": (8, 256, 56, 224)}


def interleaved(calls: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Median milliseconds of each call; they take turns for about `seconds` in all, at least seven rounds."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 7:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(samples) for name, samples in times.items()}


def check(case: Case) -> None:
    """The fastmix result may be off the float64 one by at most twice what the eager float32 result is."""
    fast, eager = case.whole(case.fast), case.whole(case.eager)
    exact = first(eager(*[t.double() if t.is_floating_point() else t for t in case.inputs]))
    found, plain = first(fast(*case.inputs)), first(eager(*case.inputs))
    allowed = 2 * (plain - exact).abs().max() + 1e-5 * exact.abs().max()
    if not (found - exact).abs().max() <= allowed:
        raise SystemExit(f"{case.name}: the result is wrong, not timed")


def measure_op(case: Case, seconds: float) -> dict[str, float]:
    check(case)
    fast, eager = case.whole(case.fast), case.whole(case.eager)
    calls = {"fastmix": lambda: fast(*case.inputs), "eager": lambda: eager(*case.inputs)}
    compiled = torch.compile(eager)
    calls["compile"] = lambda: compiled(*case.inputs)
    if case.takes_out:
        out = torch.empty_like(case.inputs[0])
        calls["fastmix out="] = lambda: case.fast(*case.inputs, out=out)
        calls["copy_"] = lambda: out.copy_(case.inputs[0])
    with torch.set_grad_enabled(bool(case.wanted)):
        return interleaved(calls, seconds)


def mixing_step(shape: tuple[int, int, int, int], provider: str) -> Callable[[], tuple[Tensor, ...]]:
    """A call that mixes for one AutoMix step and propagates back to the Mix Block's weights."""
    n, channels, size, image = shape
    generator = torch.Generator().manual_seed(0)
    published = PublishedMixBlock(channels, lam_embed="qkv")
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    z = torch.rand(n, channels, size, size, generator=generator)
    images = torch.randn(n, 3, image, image, generator=generator)
    draws = tuple((lam, torch.randperm(n, generator=generator)) for lam in (0.3, 0.6))
    cotangent = torch.randn(images.shape, generator=generator)
    block = published if provider == "published" else load_mix_block(published.state_dict())
    step = published_step if provider == "published" else fused_step

    def run() -> tuple[Tensor, ...]:
        block.zero_grad(set_to_none=True)
        mixed_gen, loss, mixed = step(block, z, images, draws)
        torch.autograd.backward([mixed_gen, loss], [cotangent, torch.ones(())])
        return mixed_gen.detach(), mixed, block.value.weight.grad.flatten()

    return run


def measure_step(shape: tuple[int, int, int, int], seconds: float) -> dict[str, float]:
    calls = {provider: mixing_step(shape, provider) for provider in ("fastmix", "published")}
    for ours, theirs in zip(calls["fastmix"](), calls["published"](), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    found = interleaved(calls, seconds)
    for provider in calls:
        memory = subprocess.run(
            [sys.executable, __file__, "--memory", provider, *map(str, shape)],
            capture_output=True,
            text=True,
            check=True,
        )
        found[f"{provider} MB"] = float(memory.stdout)
    return found


def extra_memory(shape: tuple[int, int, int, int], provider: str) -> float:
    """Megabytes of this fresh process above what its inputs took, after the step ran once on a tiny shape to load
    all code."""
    mixing_step((2, shape[1], 2, 2 * shape[3] // shape[2]), provider)()
    run = mixing_step(shape, provider)
    before = resident_peak()
    run()
    return resident_peak() - before


def resident_peak() -> float:
    """Megabytes; not from getrusage, whose peak a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def host_overhead() -> dict[str, float]:
    """Microseconds of one call on a tensor too small to matter."""
    x, index, lam = torch.randn(2, 3, 4, 4), torch.tensor([1, 0]), torch.tensor([0.3, 0.4])
    q, v, mask = torch.randn(2, 4, 8), torch.randn(2, 4), torch.rand(2, 2, 2)
    leaf = x.clone().requires_grad_()
    calls = {
        "blend": lambda: ops.blend(x, index, lam),
        "blend, recorded by autograd": lambda: ops.blend(leaf, index, lam),
        "mask_blend": lambda: ops.mask_blend(x, index, mask),
        "pair_attention": lambda: ops.pair_attention(q, q, v, index),
    }
    return {name: 1e6 * statistics.median(timeit.repeat(f, number=1000, repeat=15)) / 1000 for name, f in calls.items()}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{model}, {torch.get_num_threads()} threads, {native.module().cpu_isa()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": "glibc defaults",
    }


def table(title: str, rows: dict[str, dict[str, float]], columns: list[str], unit: str) -> None:
    print(f"\n{title}")
    width = max(map(len, rows)) + 1
    print(" " * width + "".join(f"{c:>15}" for c in columns) + f"   ({unit})")
    for name, row in rows.items():
        print(f"{name:<{width}}" + "".join(f"{row[c]:>15.3f}" if c in row else " " * 14 + "-" for c in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, fewer repeats")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.memory:
        print(extra_memory(tuple(map(int, args.memory[1:])), args.memory[0]))
        return
    seconds = 1 if args.quick else 3
    found = {"machine": machine(), "ops": {}, "steps": {}, "host": host_overhead()}
    for key, value in found["machine"].items():
        print(f"{key}: {value}")
    for case in cases(args.quick):
        found["ops"][case.name] = row = measure_op(case, seconds)
        row["eager / fastmix"] = row["eager"] / row["fastmix"]
        torch.compiler.reset()
    columns = ["fastmix", "fastmix out=", "eager", "compile", "copy_", "eager / fastmix"]
    table("Ops, forward; +grad: forward and backward", found["ops"], columns, "ms, medians")
    for name, shape in STEPS.items():
        if not (args.quick and name == "r50-l1"):
            found["steps"][name] = row = measure_step(shape, 2 * seconds)
            row["published / fastmix"] = row["published"] / row["fastmix"]
    columns = ["fastmix", "published", "published / fastmix", "fastmix MB", "published MB"]
    table("One AutoMix mixing step with its backward", found["steps"], columns, "ms, medians; MB above the inputs")
    print("\nHost time of a call on tiny tensors (us, medians)")
    for name, value in found["host"].items():
        print(f"{name:<30}{value:>8.2f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
