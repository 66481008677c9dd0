from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support import sweep

import fastmix
from fastmix import dispatch, native, ops

X, INDEX = torch.rand(4, 3, 5, 5), torch.arange(4)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_every_op_is_in_every_table():
    assert set(ops.__all__) == set(fastmix.reference.__all__) == set(dispatch.ORDER)
    for op, order in dispatch.ORDER.items():
        for device, backends in order.items():
            assert backends[-1] == "reference", (op, device)
            for backend in backends[:-1]:
                if backend != "triton" or find_spec("triton"):
                    module = dispatch.kernels(op, backend)
                    assert callable(getattr(module, op))


def test_cpu_tensors_run_on_the_compiled_kernels():
    assert native.why_unavailable() is None
    for op in dispatch.ORDER:
        assert dispatch.select(op, X.to(dispatch.usual_dtype(op))) == "cpu"


def test_precedence_argument_context_environment():
    with fastmix.use_backend("reference"):
        assert dispatch.select("blend", X) == "reference"
        assert dispatch.select("blend", X, "cpu") == "cpu"
        with fastmix.use_backend(None):
            assert dispatch.select("blend", X) == "cpu"
    assert dispatch.select("blend", X) == "cpu"
    code = (
        "import torch, fastmix; from fastmix.dispatch import select; x = torch.rand(2);"
        "print(select('blend', x), select('blend', x, 'cpu'))\n"
        "with fastmix.use_backend('cpu'): print(select('blend', x))"
    )
    done = run(code, FASTMIX_BACKEND="reference")
    assert done.stdout.split() == ["reference", "cpu", "cpu"], done.stderr


def test_an_explicit_choice_that_cannot_run_says_why():
    with pytest.raises(ValueError, match=r"fastmix.blend: backend 'triton' cannot run here: runs on CUDA tensors"):
        ops.blend(X, INDEX, 0.5, backend="triton")
    with pytest.raises(ValueError, match=r"fastmix.use_backend: backend must be one of cuda, triton, cpu, reference"):
        fastmix.use_backend("gpu").__enter__()
    done = run("import torch, fastmix; fastmix.ops.blend(torch.rand(2, 3), torch.arange(2), .5)", FASTMIX_BACKEND="gpu")
    assert "backend must be one of" in done.stderr


def test_explain_marks_the_choice_and_gives_reasons():
    lines = fastmix.explain("mask_blend", X).splitlines()
    assert lines[0] == "mask_blend on cpu, float32"
    assert [line for line in lines if line.startswith("->")] == ["-> cpu        can run"]
    assert any("triton" in line and "runs on CUDA tensors" in line for line in lines)
    with pytest.raises(ValueError, match="op must be one of blend"):
        fastmix.explain("mixup")


def test_without_the_compiled_module_the_reference_answers():
    code = (
        "import sys; sys.modules['fastmix._C'] = None\n"
        "import torch, fastmix\n"
        "from fastmix import native, ops\n"
        "x, i = torch.rand(4, 3, 5, 5), torch.arange(4)\n"
        "print(fastmix.dispatch.select('blend', x), ops.blend(x, i, .5).shape[0])\n"
        "for f in (lambda: ops.blend(x, i, .5, backend='cpu'), native.module):\n"
        "    try: f()\n"
        "    except (ValueError, RuntimeError) as error: print(error)\n"
    )
    first, second, third = run(code).stdout.splitlines()
    assert first == "reference 4"
    assert "backend 'cpu' cannot run here: the compiled module is not available" in second
    assert "reinstall with a C++17 compiler" in third


def test_the_first_slow_call_warns_once():
    code = (
        "import sys, warnings; sys.modules['fastmix._C'] = None\n"
        "import torch, fastmix\n"
        "from fastmix import ops\n"
        "x, i = torch.rand(4, 3, 5, 5), torch.arange(4)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    ops.blend(x, i, .5, backend='reference')\n"  # as asked for
        "    print(len(caught))\n"
        "    ops.blend(x, i, .5)\n"
        "    print(len(caught), caught[0].category.__name__, caught[0].filename, caught[0].message)\n"
        "    ops.blend(x, i, .5), ops.blend(x.double(), i, .5), ops.mask_blend(x, i, x[:, 0])\n"
        "    print(len(caught))\n"
    )
    before, message, after = run(code).stdout.splitlines()
    assert (before, after) == ("0", "1")
    assert message.startswith("1 RuntimeWarning <string> fastmix.blend runs the slow reference on cpu tensors")
    assert "the compiled module is not available" in message and "python -m fastmix info" in message


def test_designed_references_are_no_surprise():
    from fastmix.dispatch import why_slow

    assert why_slow("blend", "cuda", torch.float64) is None
    assert why_slow("blend", "meta", torch.float32) is None
    assert why_slow("blend", "cpu", torch.float32) is None  # the module is there


def test_a_checkout_that_is_not_installed_says_so(tmp_path):
    """`fastmix.kernels` is joined to the package by an installation only."""
    root = Path(__file__).parents[2]
    shutil.copytree(root / "fastmix", tmp_path / "fastmix", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, fastmix; print(fastmix.__file__)\n"
        "x, i = torch.rand(4, 3, 5, 5), torch.arange(4)\n"
        "print(torch.equal(fastmix.ops.blend(x, i, .5), x))\n"
        "try: fastmix.ops.blend(x, i, .5, backend='cpu')\n"
        "except ValueError as error: print(error)\n"
    )
    done = run(code)
    where, right, error = done.stdout.splitlines()
    fix = f"this is a checkout that is not installed: run `pip install --editable {tmp_path}`"
    assert where.startswith(str(tmp_path)) and right == "True"
    assert fix in error and fix in done.stderr


def test_import_loads_neither_triton_nor_the_compiled_module():
    code = "import sys, fastmix.ops; print([m for m in ('triton', 'torch._dynamo', 'fastmix._C') if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"


@pytest.mark.parametrize("isa", sweep(["baseline", "avx2"], ["avx2"]))
def test_every_instruction_set_gives_the_same_blends(isa):
    code = (
        "import torch\n"
        "from fastmix import native, ops\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.uint8):\n"
        "    x = (torch.rand(5, 3, 37, 41, generator=g) * 200).to(dtype)\n"
        "    i, m = torch.randint(0, 5, (5,), generator=g), torch.rand(5, 7, 7, generator=g)\n"
        "    for y in (ops.blend(x, i, .3), ops.mask_blend(x, i, m)[0]): print(y.double().sum().item())\n"
        "q, v = torch.rand(3, 50, 20, generator=g), torch.rand(3, 50, generator=g)\n"
        "print(round(ops.pair_attention(q, q, v, torch.tensor([1, 2, 0])).sum().item(), 3))\n"
        "print(native.module().cpu_isa())\n"
    )
    best, other = run(code).stdout.split(), run(code, FASTMIX_CPU=isa).stdout.split()
    assert best[:-1] == other[:-1] and len(best) == 10
    if native.module().cpu_isa() != "baseline":
        assert other[-1] == isa


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("90-real", (9, 0), True),
        ("80-real", (8, 6), True),
        ("86-real", (8, 0), False),
        ("90-real", (10, 0), False),
        ("90-virtual", (10, 0), True),
        ("120-virtual", (9, 0), False),
        ("100-real", (10, 3), True),
        ("90", (12, 0), True),
    ],
)
def test_machine_code_runs_on_its_generation_and_ptx_on_newer_ones(arch, capability, runs):
    assert native._runs_on(arch, *capability) is runs


def test_a_module_without_usable_cuda_kernels_says_why(monkeypatch):
    class Module:
        archs, trouble = "", ""

        @classmethod
        def build_info(cls):
            return {"cuda_archs": cls.archs}

        @classmethod
        def cuda_problem(cls):
            return cls.trouble

    monkeypatch.setattr(native, "module", lambda: Module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert "built without CUDA" in native.why_no_cuda()
    Module.archs, Module.trouble = "80-real 90-virtual", "CUDA driver version is insufficient"
    assert "driver version is insufficient" in native.why_no_cuda()
    Module.trouble = ""
    assert "kernels for 80-real, 90-virtual, not for compute capability 7.0" in native.why_no_cuda()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert native.why_no_cuda() is None
