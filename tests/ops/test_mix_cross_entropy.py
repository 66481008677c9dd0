"""The losses: `mix_cross_entropy`, `mix_binary_cross_entropy`, `soft_cross_entropy`, and the losses of a `MixBatch`.

The cases named "interpreted" run the Triton kernels in its interpreter, which has to be asked for before Triton is
imported: a test here runs this file again for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import FLOATS, backends, sweep
from torch import Tensor

from fastmix import native, ops, reference
from fastmix.batch import MixBatch
from fastmix.testing import poisoned

INTERPRETED = pytest.param("cpu", "triton", id="interpreted", marks=pytest.mark.interp)
BACKENDS = [*backends("mix_cross_entropy"), INTERPRETED]
KERNELS = [p for p in BACKENDS if p.values[1] != "reference"]
each_backend = pytest.mark.parametrize(("device", "backend"), BACKENDS)
each_kernel = pytest.mark.parametrize(("device", "backend"), KERNELS)

# Rows and classes: no row, one class, fewer than a vector, whole and partial tiles, rows that are cut into pieces.
SHAPES = [(0, 5), (3, 1), (5, 2), (7, 33), (4, 1000), (2, 21841)]
KINDS = {
    "ce": ("mix_cross_entropy", {}),
    "smooth": ("mix_cross_entropy", {"smoothing": 0.1}),
    "decoupled": ("mix_cross_entropy", {"decouple": 0.3, "smoothing": 0.1}),
    "bce": ("mix_binary_cross_entropy", {"smoothing": 0.1}),
    "bce threshold": ("mix_binary_cross_entropy", {"smoothing": 0.1, "threshold": 0.2, "sum_classes": True}),
    "bce dense": ("mix_binary_cross_entropy", {"smoothing": 0.2}),
    "soft": ("soft_cross_entropy", {"smoothing": 0.1}),
    "soft plain": ("soft_cross_entropy", {}),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(kind: str, n: int, k: int, dtype=torch.float32, device="cpu", seed=0, other=False, scale=3.0) -> dict:
    """Arguments of a call, by name. Two labels agree, some weights are 0 or 1, some labels are ignored."""
    g = torch.Generator().manual_seed(seed)
    z = (torch.randn(n, k, generator=g) * scale).to(dtype).to(device)
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    lam, lam_b = (torch.rand(n, generator=g).to(acc) for _ in range(2))
    if n > 3:
        lam[3] = 1
    if kind in ("soft", "soft plain"):
        y, y_b = (torch.rand(n, k, generator=g).softmax(1) for _ in range(2))
    elif kind == "bce dense":
        y, y_b = (torch.rand(n, k, generator=g).round() for _ in range(2))
    else:
        y, y_b = (torch.randint(k, (n,), generator=g) for _ in range(2))
        if n > 2:
            y_b[1], y[2] = y[1], -100
        if n > 4:
            y[4] = y_b[4] = -100
    given = {"logits": z, "target": y.to(device)}
    if kind != "soft plain":
        given |= {"target_b": y_b.to(device), "lam": lam.to(device)}
        if other:
            given["lam_b"] = lam_b.to(device)
    return given


def run(function, given: dict, **options) -> list[Tensor]:
    """Result, then the gradients of logits and weights for a fixed cotangent."""
    given = {k: v.detach().clone() if k.startswith("lam") else v.detach() for k, v in given.items()}
    leaves = [given[name].requires_grad_() for name in ("logits", "lam", "lam_b") if name in given]
    out = function(**given, **options)
    cotangent = torch.linspace(0.5, 1.5, max(out.numel(), 1)).to(out)[: out.numel()].view(out.shape)
    gradients = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    zeros = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]
    return [out.detach(), *zeros]


def doubled(given: dict) -> dict:
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


def near(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Result and weights' gradients are accurate as a float32 sum is, the logits' gradient to its own dtype."""
    acc = torch.promote_types(dtype, torch.float32)
    sizes = [e.nan_to_num(0, 0, 0).abs().max().item() if e.numel() else 0 for e in expected]
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = sizes[i] if i < 2 else max(sizes)
        least = torch.finfo(torch.float16).smallest_normal / 1024 if dtype is torch.float16 and i == 1 else 0
        atol = 32 * torch.finfo(acc).eps * max(size, 0.1) + least
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype if i == 1 else acc], atol=atol, equal_nan=True)


@each_kernel
@pytest.mark.parametrize("other", [False, True], ids=["lam", "lam_b"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_float64_reference(device, backend, kind, shape, reduction, other):
    dtypes = FLOATS if backend == "cpu" else FLOATS[:1] + FLOATS[2:3]
    if other and kind == "soft plain":
        pytest.skip("has no weights")
    if (device, backend) == ("cpu", "triton") and (reduction == "sum" or (other and shape[1] > 99)):
        pytest.skip("the interpreter is slow")
    op, options = KINDS[kind]
    for seed, dtype in enumerate(dtypes):
        given = draw(kind, *shape, dtype, device, seed, other)
        with poisoned():
            found = run(getattr(ops, op), given, reduction=reduction, backend=backend, **options)
        expected = run(getattr(reference, op), doubled(given), reduction=reduction, **options)
        assert found[0].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert found[1].dtype is dtype and found[1].is_contiguous()
        near(found, expected, dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reference_is_cross_entropy(smoothing):
    given = draw("ce", 9, 13, torch.float64)
    given["target"][2] = 1
    given["target"][4] = given["target_b"][4] = 2
    z, y, y_b, lam = given.values()
    rows = [F.cross_entropy(z, t, label_smoothing=smoothing, reduction="none") for t in (y, y_b)]
    expected = lam * rows[0] + (1 - lam) * rows[1]
    found = reference.mix_cross_entropy(z, y, y_b, lam, smoothing, "none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    soft = lam[:, None] * F.one_hot(y, 13) + (1 - lam[:, None]) * F.one_hot(y_b, 13)
    expected = F.cross_entropy(z, soft, label_smoothing=smoothing)
    torch.testing.assert_close(reference.soft_cross_entropy(z, soft, smoothing=smoothing), expected)
    torch.testing.assert_close(reference.mix_cross_entropy(z, y, y_b, lam, smoothing), expected)


def test_reference_ignores_as_cross_entropy_does():
    z, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([1, -1, 4, -1, 0, 2])
    expected = F.cross_entropy(z, y, ignore_index=-1)
    for lam in (0.3, 1.0):
        found = reference.mix_cross_entropy(z, y, y, lam, ignore_index=-1)
        torch.testing.assert_close(found, expected)
    nobody = torch.full_like(y, -1)
    assert reference.mix_cross_entropy(z, nobody, nobody, 0.3, ignore_index=-1).isnan()
    # One label of two is left out with its weight; the row counts.
    rows = F.cross_entropy(z, y, ignore_index=-1, reduction="none")
    found = reference.mix_cross_entropy(z, y, nobody, 0.3, ignore_index=-1)
    torch.testing.assert_close(found, 0.3 * rows.sum() / 4)


def test_reference_decouples_as_the_paper_does():
    """Liu et al., equation 5: the softmax of one mixed class is taken over all classes but the other one."""
    z, eta = torch.randn(3, 7, dtype=torch.float64), 0.3
    y, y_b, lam = torch.tensor([1, 2, 6]), torch.tensor([0, 2, 3]), torch.tensor([0.4, 0.4, 1.0], dtype=torch.float64)
    plain = reference.mix_cross_entropy(z, y, y_b, lam, reduction="none")
    found = reference.mix_cross_entropy(z, y, y_b, lam, reduction="none", decouple=eta)
    p = z[0].exp()
    expected = -eta * ((p[1] / (p.sum() - p[0])).log() + (p[0] / (p.sum() - p[1])).log())
    torch.testing.assert_close(found - plain, torch.stack((expected, *torch.zeros(2, dtype=torch.float64))))


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("sum_classes", [False, True])
def test_reference_is_binary_cross_entropy_of_the_mixed_target(threshold, sum_classes):
    n, k, e = 8, 12, 0.1
    z, y, lam = torch.randn(n, k), torch.arange(n), torch.tensor(0.3)
    own = torch.full((n, k), e / k).scatter(1, y[:, None], 1 - e + e / k)
    target = own * lam + own.flip(0) * (1 - lam)
    target = target if threshold is None else target.gt(threshold).float()
    expected = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    expected = expected.sum(1).mean() if sum_classes else expected.mean()
    options = {"threshold": threshold, "sum_classes": sum_classes}
    for function in (reference.mix_binary_cross_entropy, ops.mix_binary_cross_entropy):
        torch.testing.assert_close(function(z, y, y.flip(0), lam, e, **options), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right(kind):
    op, options = KINDS[kind]
    given = draw(kind, 5, 6, torch.float64, other=kind != "soft plain")
    given = {k: v.clamp(0.1, 0.9) if k.startswith("lam") else v for k, v in given.items()}
    names = [name for name in ("logits", "lam", "lam_b") if name in given]
    if "threshold" in options:
        names = ["logits"]
    for backend in ("cpu", "reference"):

        def function(*leaves, backend=backend):
            return getattr(ops, op)(**(given | dict(zip(names, leaves, strict=True))), **options, backend=backend)

        assert torch.autograd.gradcheck(function, [given[name].requires_grad_() for name in names])


@each_backend
@pytest.mark.parametrize("op", ["mix_cross_entropy", "mix_binary_cross_entropy"])
def test_scalar_weights(device, backend, op):
    given = draw("ce", 6, 9, device=device)
    z, y, y_b, _ = given.values()
    function = getattr(ops, op)
    lam, lam_b = torch.tensor(0.3, device=device), torch.tensor(0.9, device=device)
    full = function(z, y, y_b, lam.expand(6), lam_b=lam_b.expand(6), backend=backend)
    assert torch.equal(function(z, y, y_b, 0.3, lam_b=0.9, backend=backend), full)
    found = run(function, given | {"lam": lam, "lam_b": lam_b}, backend=backend)
    expected = run(function, given | {"lam": lam.expand(6), "lam_b": lam_b.expand(6)}, backend=backend)
    assert found[2].shape == found[3].shape == ()
    torch.testing.assert_close(found, [*expected[:2], expected[2].sum(), expected[3].sum()])


@each_kernel
@pytest.mark.parametrize("kind", ["ce", "decoupled", "soft"])
@pytest.mark.parametrize("value", [1e4, -1e4, 1e30])
def test_huge_logits_are_harmless(device, backend, kind, value):
    op, options = KINDS[kind]
    given = draw(kind, 6, 40, device=device)
    given["logits"] = given["logits"] + (0 if value == 1e30 else value)
    if value == 1e30:
        given["logits"][0, 3], given["logits"][3, 5] = value, -value
    found = run(getattr(ops, op), given, reduction="none", backend=backend, **options)
    expected = run(getattr(reference, op), doubled(given), reduction="none", **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6 * b.abs().max().item())


@each_kernel
def test_decoupling_survives_a_class_that_takes_all(device, backend):
    """The difference of the log-sum-exp and the large logit would lose everything."""
    z = torch.randn(4, 50, device=device)
    y, y_b = torch.tensor([3, 7, 9, 9], device=device), torch.tensor([5, 8, 2, 2], device=device)
    for n, size in enumerate((20.0, 60.0, 200.0, 3000.0)):
        z[n, y[n]] = size
    z[3, y_b[3]] = 3000.0
    given = {"logits": z, "target": y, "target_b": y_b, "lam": torch.full((4,), 0.4, device=device)}
    found = run(ops.mix_cross_entropy, given, decouple=0.5, reduction="none", backend=backend)
    expected = run(reference.mix_cross_entropy, doubled(given), decouple=0.5, reduction="none")
    assert all(part.isfinite().all() for part in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6)


@each_backend
def test_confident_rows_keep_their_digits(device, backend):
    z = torch.full((1, 100), -25.0, device=device)
    z[0, 3] = 25.0
    y = torch.tensor([3], device=device)
    if backend != "reference":
        found = ops.mix_binary_cross_entropy(z, y, y, 1.0, sum_classes=True, backend=backend)
        torch.testing.assert_close(found.item(), 100 * 1.3888e-11, rtol=1e-4, atol=0)
    assert ops.mix_cross_entropy(z, y, y, 1.0, backend=backend) < 1e-6


@each_backend
@pytest.mark.parametrize("kind", ["ce", "decoupled", "bce threshold", "soft plain"])
def test_classes_of_minus_infinity_are_left_out(device, backend, kind):
    op, options = KINDS[kind]
    options = {name: value for name, value in options.items() if name != "smoothing"}
    given = draw(kind, 6, 30, device=device)
    if kind == "soft plain":
        given["target"] = given["target"].new_zeros(6, 30).index_fill(1, torch.tensor([4], device=device), 1.0)
    else:
        given["target"], given["target_b"] = given["target"] % 10, given["target_b"] % 10
    given["logits"][:, 12:] = -torch.inf
    found = run(getattr(ops, op), given, backend=backend, **options)
    assert all(part.isfinite().all() for part in found)
    assert not found[1][:, 12:].any()
    narrow = {k: v[:, :12].contiguous() if v.dim() == 2 else v for k, v in given.items()}
    expected = run(getattr(reference, op), doubled(narrow), **options)
    for a, b in zip((found[0], found[1][:, :12], *found[2:]), expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6)


@each_backend
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_row(device, backend, kind):
    op, options = KINDS[kind]
    given = draw(kind, 4, 700, device=device)
    given["logits"][1, 600] = torch.nan
    out, grad, *_ = run(getattr(ops, op), given, reduction="none", backend=backend, **options)
    assert out.isnan().tolist() == [False, True, False, False]
    assert grad[1].isnan().any() and not grad[[0, 2, 3]].isnan().any()


@each_kernel
def test_rows_of_minus_infinity_and_of_infinity_are_nan(device, backend):
    z, y = torch.zeros(3, 6, device=device), torch.tensor([1, 2, 3], device=device)
    z[0], z[1, 2] = -torch.inf, torch.inf
    expected = F.cross_entropy(z, y, reduction="none")
    for decouple in (0.0, 0.1):
        found = ops.mix_cross_entropy(z, y, y, 0.5, reduction="none", decouple=decouple, backend=backend)
        assert torch.equal(found.isnan(), expected.isnan())


@each_backend
def test_ignored_rows_cost_nothing(device, backend):
    z = torch.randn(4, 20, device=device)
    z[2] = torch.nan
    y = torch.tensor([3, 4, -7, 5], device=device)
    for op in ("mix_cross_entropy", "mix_binary_cross_entropy"):
        given = {"logits": z, "target": y, "target_b": y, "lam": torch.full((4,), 0.3, device=device)}
        out, grad, _ = run(getattr(ops, op), given, ignore_index=-7, backend=backend)
        kept = [0, 1, 3]
        rest = {k: v[kept] for k, v in given.items()}
        expected = run(getattr(reference, op), doubled(rest))
        torch.testing.assert_close(out, expected[0].float())
        torch.testing.assert_close(grad[kept], expected[1].float(), rtol=1e-5, atol=1e-7)
        assert not grad[2].any()


@each_backend
@pytest.mark.parametrize("kind", ["ce", "bce", "soft"])
def test_logits_of_any_strides(device, backend, kind):
    op, options = KINDS[kind]
    given = draw(kind, 5, 24, device=device)
    z = given["logits"]
    wide = torch.full((5, 31), torch.nan, device=device)
    wide[:, 3:27] = z
    views = [wide[:, 3:27], z.t().contiguous().t(), z.repeat_interleave(2, 1)[:, ::2], z[:, :1].expand(5, 24)]
    for view in views:
        same = given | {"logits": view.contiguous()}
        expected = run(getattr(ops, op), same, backend=backend, **options)
        found = run(getattr(ops, op), given | {"logits": view}, backend=backend, **options)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@each_kernel
@pytest.mark.parametrize("value", [-1, 9])
def test_labels_out_of_range(device, backend, value):
    y = torch.tensor([1, value, 2], device=device)
    z, good = torch.randn(3, 9, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    for op in ("mix_cross_entropy", "mix_binary_cross_entropy"):
        for name, pair in (("target", (y, good)), ("target_b", (good, y))):
            if backend == "cpu":
                for chosen in ("cpu", "reference"):
                    words = rf"fastmix.{op}: {name} must lie in \[0, 9\) or be -100, got {value} at position 1"
                    with pytest.raises(ValueError, match=words):
                        getattr(ops, op)(z, *pair, 0.5, backend=chosen)
                continue
            given = {"logits": z, "target": pair[0], "target_b": pair[1], "lam": torch.full((3,), 0.5, device=device)}
            out, grad, _ = run(getattr(ops, op), given, reduction="none", backend=backend)
            assert out.isnan().tolist() == [False, True, False]
            assert grad[1].isnan().all() and not grad[[0, 2]].isnan().any()


@each_backend
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_that_of_torch(device, backend, kind):
    op, options = KINDS[kind]
    given = draw(kind, 0, 4, device=device)
    for reduction, expected in (("mean", torch.nan), ("sum", 0.0)):
        out, grad, *_ = run(getattr(ops, op), given, reduction=reduction, backend=backend, **options)
        torch.testing.assert_close(out.item(), expected, equal_nan=True)
        assert grad.shape == (0, 4)


@pytest.mark.parametrize("shape", [(3, 40000), (64, 1000), (2, 100_000)])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_bit(kind, shape):
    op, options = KINDS[kind]
    given, threads, found = draw(kind, *shape), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(getattr(ops, op), given, backend="cpu", **options))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("isa", sweep(["baseline", "avx2"], ["avx2"]))
def test_every_instruction_set_agrees(isa):
    code = (
        "import torch\nfrom fastmix import native, ops\n"
        "z = (torch.arange(3000).view(3, 1000) % 37 * 0.3).requires_grad_()\n"
        "y = torch.tensor([1, 500, 999])\n"
        "for loss in (ops.mix_cross_entropy(z, y, y.flip(0), 0.3, 0.1, decouple=0.1),\n"
        "             ops.mix_binary_cross_entropy(z, y, y.flip(0), 0.3, 0.1),\n"
        "             ops.soft_cross_entropy(z, z.detach().softmax(1))):\n"
        "    (grad,) = torch.autograd.grad(loss, z)\n"
        "    print(loss.item(), grad.norm().item())\n"
        "print(native.module().cpu_isa())\n"
    )
    outputs = []
    for environment in ({}, {"FASTMIX_CPU": isa}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
        )
        outputs.append(done.stdout.split())
    assert outputs[1][-1] == isa or native.module().cpu_isa() == "baseline"
    assert len(outputs[0]) == 7
    for a, b in zip(outputs[0][:-1], outputs[1][:-1], strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-5)


@each_kernel
@pytest.mark.parametrize("kind", sweep(KINDS, ["ce", "bce", "soft"]))
def test_compiles_into_one_graph(device, backend, kind):
    if backend == "triton" and device == "cpu":
        pytest.skip("the interpreter is not traced")
    op, options = KINDS[kind]
    given = draw(kind, 5, 12, device=device)
    torch.compiler.reset()
    compiler = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend=compiler)
    for reduction in ("mean", "none"):
        found = run(compiled, given, reduction=reduction, backend=backend, **options)
        expected = run(getattr(ops, op), given, reduction=reduction, backend=backend, **options)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_registered_ops_pass_opcheck(n):
    z, y, lam = torch.rand(n, 7), torch.zeros(n, dtype=torch.int64), torch.rand(n)
    stats, one, dense = torch.rand(5, n) + 1, torch.ones(()), torch.rand(n, 7)
    calls = {
        "mix_cross_entropy": (z, y, y, lam, None, 0.1, 0.1, -100, 1, "cpu"),
        "mix_cross_entropy_grad": (one, z, y, y, lam, lam, 0.1, 0.0, -100, stats[:4], one, "cpu"),
        "mix_binary_cross_entropy": (z, y, y, lam, None, 0.1, 0.2, True, -100, 0, True, "cpu"),
        "mix_binary_cross_entropy_grad": (lam, z, dense, dense, lam, None, 0.1, 0.2, True, -100, one, "cpu"),
        "soft_cross_entropy": (z, dense, None, None, None, 0.0, 2, "cpu"),
        "soft_cross_entropy_grad": (one, z, dense, dense, lam, None, 0.1, stats, one, "cpu"),
    }
    for name, args in calls.items():
        overload = getattr(torch.ops.fastmix, name).default
        torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))


def function_of(kind: str, given: dict, names: list[str], **options):
    """The loss as a function of the arguments `names`."""
    op, others = KINDS[kind]

    def function(*leaves):
        return getattr(ops, op)(**(given | dict(zip(names, leaves, strict=True))), **others, **options)

    return function


def leaves_of(kind: str, given: dict) -> list[str]:
    """Names of the arguments that a gradient flows to."""
    if "threshold" in KINDS[kind][1]:
        return ["logits"]
    return [name for name in ("logits", "lam", "lam_b") if name in given]


@pytest.mark.parametrize("reduction", sweep(["none", "mean", "sum"], ["mean"]))
@pytest.mark.parametrize("backend", sweep(["cpu", "reference"], ["cpu"]))
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_right(kind, backend, reduction):
    for other in (False, True) if kind != "soft plain" else (False,):
        given = draw(kind, 5, 6, torch.float64, other=other)
        names = leaves_of(kind, given)
        function = function_of(kind, given, names, backend=backend, reduction=reduction)
        leaves = [given[name].requires_grad_() for name in names]
        assert torch.autograd.gradgradcheck(function, leaves)
        assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True)


@each_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty_trains_as_in_pytorch(device, backend, kind):
    """The gradient of the weights through the norm of the gradient of the inputs."""
    op, options = KINDS[kind]
    given = draw(kind, 6, 9, device=device)
    x, weight = torch.randn(6, 4, device=device, requires_grad=True), torch.randn(4, 9, device=device)
    found = []
    for function, chosen in ((getattr(ops, op), {"backend": backend}), (getattr(reference, op), {})):
        w = weight.clone().requires_grad_()
        loss = function(**(given | {"logits": x @ w}), **options, **chosen)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        assert slope.requires_grad
        (loss + slope.square().sum()).backward()
        found.append((slope.detach(), w.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_gradient_runs_through_each_argument_once():
    """Weights made of the logits: neither gradient may be counted twice in a second derivative."""
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.arange(4)

    def penalised(function):
        z = x.clone().requires_grad_()
        loss = function(z, y, y.flip(0), z.sigmoid().mean(1), 0.1, reduction="sum", decouple=0.2)
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        return slope, *torch.autograd.grad(slope.square().sum(), z)

    for found, expected in zip(penalised(ops.mix_cross_entropy), penalised(reference.mix_cross_entropy), strict=True):
        torch.testing.assert_close(found, expected)


def test_third_derivatives_are_right():
    for kind in KINDS:
        given = draw(kind, 3, 4, torch.float64)
        function = function_of(kind, given, ["logits"])

        def slope(z, function=function):
            return torch.autograd.grad(function(z), z, create_graph=True)[0]

        assert torch.autograd.gradgradcheck(slope, [given["logits"].requires_grad_()])


@pytest.mark.parametrize("backend", sweep(["cpu", "reference"], ["cpu"]))
@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms_and_tangents_are_followed(kind, backend):
    given = draw(kind, 4, 6, torch.float64, other=kind != "soft plain")
    names = leaves_of(kind, given)
    function = function_of(kind, given, names, backend=backend)
    leaves = [given[name] for name in names]
    numbers = tuple(range(len(leaves)))
    recorded = [leaf.clone().requires_grad_() for leaf in leaves]
    slopes = torch.autograd.grad(function(*recorded), recorded)
    torch.testing.assert_close(torch.func.grad(function, numbers)(*leaves), slopes)
    torch.testing.assert_close(torch.func.vjp(function, *leaves)[1](torch.tensor(1.0).double()), slopes)
    ways = [torch.randn_like(leaf) for leaf in leaves]
    expected = sum((slope * way).sum() for slope, way in zip(slopes, ways, strict=True))
    torch.testing.assert_close(torch.func.jvp(function, tuple(leaves), tuple(ways))[1], expected)
    torch.testing.assert_close(torch.func.linearize(function, *leaves)[1](*ways), expected)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(leaves, ways, strict=True)]
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent, expected)
    of_logits = function_of(kind, given, ["logits"], backend=backend)
    curvature = torch.func.hessian(of_logits)(leaves[0])
    for vectorize in (False, True):
        found = torch.autograd.functional.hessian(of_logits, leaves[0], vectorize=vectorize)
        torch.testing.assert_close(found, curvature)


@pytest.mark.parametrize("kind", sweep(["decoupled", "bce", "soft"], ["soft"]))
def test_function_transforms_are_followed_when_compiled(kind):
    given = draw(kind, 4, 6)
    z = given["logits"]
    function = function_of(kind, given, ["logits"])
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf), leaf)
    way = torch.ones_like(z)
    for transformed in (
        torch.func.grad(function),
        lambda z: torch.func.vjp(function, z)[1](torch.ones(()))[0],
        lambda z: torch.func.jvp(function, (z,), (way,))[1],
    ):
        torch.compiler.reset()
        found = torch.compile(transformed, backend="aot_eager")(z)
        torch.testing.assert_close(found, slope if found.dim() else (slope * way).sum())
    torch.compiler.reset()
    torch.testing.assert_close(torch.func.grad(torch.compile(function, backend="aot_eager"))(z), slope)


def test_gradients_of_each_sample_by_vmap():
    z, y, lam = torch.randn(5, 7, dtype=torch.float64), torch.arange(5), torch.rand(5, dtype=torch.float64)
    dense = z.softmax(1)
    options = {"decouple": 0.1, "smoothing": 0.1}
    for function, targets, extra in (
        (ops.mix_cross_entropy, (y, y.flip(0)), options),
        (ops.mix_binary_cross_entropy, (y, y.flip(0)), {}),
        (ops.mix_binary_cross_entropy, (dense, dense.flip(0)), {}),
        (ops.soft_cross_entropy, (dense, dense.flip(0)), {}),
    ):

        def one(z, a, b, lam, function=function, extra=extra):
            return function(z[None], a[None], b[None], lam, **extra)

        found = torch.func.vmap(torch.func.grad(one))(z, *targets, lam)
        leaf = z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf, *targets, lam, reduction="sum", **extra), leaf)
        torch.testing.assert_close(found, expected)


@each_kernel
@pytest.mark.parametrize("kind", ["ce", "bce", "soft"])
def test_a_graph_can_be_kept(device, backend, kind):
    op, options = KINDS[kind]
    given = draw(kind, 4, 10, device=device)
    z = given["logits"].requires_grad_()
    loss = getattr(ops, op)(**given, **options, backend=backend).square()
    first, again = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


# What a weight of exactly 0 may meet: logits of its class, or dense targets.
ZEROS = {
    "own": (torch.tensor([0.0, 0.3, 0.0]), None),
    "partner": (torch.tensor([1.0, 0.3, 1.0]), None),
    "scalar": (torch.tensor(0.0), None),
    "both": (torch.zeros(3), torch.zeros(3)),
    "given": (torch.tensor([0.0, 0.4, 0.6]), torch.tensor([0.9, 0.0, 0.0])),
}


@each_kernel
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("weights", ZEROS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "soft plain"])
def test_a_weight_of_0_takes_out_what_is_not_finite(device, backend, kind, weights, value):
    op, options = KINDS[kind]
    lam, lam_b = ZEROS[weights]
    for smoothing in (0.0, 0.1):
        given = draw(kind, 3, 5, device=device) | {"lam": lam.to(device)}
        given |= {} if lam_b is None else {"lam_b": lam_b.to(device)}
        labelled = given["target"].dim() == 1
        if labelled:
            given["target"], given["target_b"] = (torch.tensor(v, device=device) for v in ([0, 1, 2], [3, 4, 2]))
        for side, name in enumerate(("target", "target_b")):
            case = {key: v.clone() for key, v in given.items()}
            if labelled or value == -torch.inf:
                case["logits"][0, 3 * side] = value
            else:
                case[name][0, 1] = value
            chosen = options | {"smoothing": smoothing, "reduction": "none"}
            found = run(getattr(ops, op), case, backend=backend, **chosen)
            expected = run(getattr(reference, op), doubled(case), **chosen)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_rule_of_weights_that_are_0():
    """Values written out: -inf at a label of weight 0, NaN targets of weight 0, NaN rows of two weights 0."""
    z = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    a, b = torch.tensor([0]), torch.tensor([2])
    for pair, value, sign in (((a, b), 0.0, -1), ((b, a), 1.0, 1)):
        lam = torch.tensor(value, requires_grad=True)
        loss = ops.mix_cross_entropy(z, *pair, lam)
        slope, of_lam = torch.autograd.grad(loss, (z, lam))
        expected = torch.nn.functional.cross_entropy(z.detach(), b)
        torch.testing.assert_close((loss, of_lam), (expected, sign * expected))
        torch.testing.assert_close(slope, z.detach().softmax(1) - torch.tensor([[0.0, 0.0, 1.0]]))
        lam = torch.tensor(value, requires_grad=True)
        loss = ops.mix_binary_cross_entropy(z, *pair, lam, sum_classes=True)
        torch.testing.assert_close(torch.autograd.grad(loss, lam)[0], torch.tensor(1.0 if sign < 0 else -1.0))
    nowhere = torch.full((1, 3), torch.nan)
    dense = torch.tensor([[0.2, 0.3, 0.5]])
    finite = torch.randn(1, 3, requires_grad=True)
    for function in (ops.soft_cross_entropy, ops.mix_binary_cross_entropy):
        expected = torch.autograd.grad(function(finite, dense, dense, 1.0), finite)[0]
        for backend in ("cpu", "reference"):
            for pair, lam in (((nowhere, dense), 0.0), ((dense, nowhere), 1.0)):
                lam = torch.tensor(lam, requires_grad=True)
                found = torch.autograd.grad(function(finite, *pair, lam, backend=backend), (finite, lam))
                torch.testing.assert_close(found[0], expected)
                assert found[1].isfinite()
        row = nowhere.clone().requires_grad_()
        if function is ops.soft_cross_entropy:
            for backend in ("cpu", "reference"):
                loss = function(row, dense, dense, 0.0, lam_b=0.0, backend=backend)
                assert loss == 0 and not torch.autograd.grad(loss, row)[0].any()


@each_kernel
def test_only_what_is_asked_for_is_computed(device, backend):
    given = draw("ce", 4, 10, device=device)
    lam = given.pop("lam").requires_grad_()
    loss = ops.mix_cross_entropy(**given, lam=lam, backend=backend)
    (grad,) = torch.autograd.grad(loss, lam)
    z = given["logits"].requires_grad_()
    both = torch.autograd.grad(ops.mix_cross_entropy(**given, lam=lam, backend=backend), (z, lam))
    assert torch.equal(both[1], grad)
    with torch.no_grad():
        assert not ops.mix_cross_entropy(**given, lam=lam, backend=backend).requires_grad


def test_autocast_and_half_logits():
    net, x, y = torch.nn.Linear(8, 5), torch.randn(4, 8), torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
        loss = ops.mix_cross_entropy(logits, y, y.flip(0), 0.3)
    assert logits.dtype is torch.bfloat16 and loss.dtype is torch.float32
    loss.backward()
    assert net.weight.grad.isfinite().all()


BASE = {"logits": torch.randn(4, 6), "target": torch.arange(4), "target_b": torch.arange(4), "lam": 0.3}


@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        ("mix_cross_entropy", {"target": torch.arange(4).int()}, TypeError, r"target must be int64 .*got int32"),
        ("mix_binary_cross_entropy", {"target": torch.arange(4).int()}, TypeError, "target must be int64"),
        ("mix_binary_cross_entropy", {"target_b": torch.rand(4, 6)}, TypeError, "target_b must be int64"),
        ("mix_cross_entropy", {"logits": torch.rand(4, 0)}, ValueError, r"logits must have shape \(N, K\)"),
        ("mix_cross_entropy", {"lam": torch.rand(4, 1)}, ValueError, "lam must have shape"),
        ("mix_cross_entropy", {"lam_b": torch.rand(3)}, ValueError, "lam_b must have shape"),
        (
            "mix_cross_entropy",
            {"lam": torch.ones(4, dtype=torch.int64)},
            TypeError,
            "lam must be a float or a floating",
        ),
        ("mix_cross_entropy", {"decouple": -0.1}, ValueError, "decouple must be finite and not negative"),
        ("mix_cross_entropy", {"decouple": torch.inf}, ValueError, "decouple must be finite and not negative"),
        ("mix_cross_entropy", {"decouple": torch.nan}, ValueError, "decouple must be a number, got nan"),
        ("mix_cross_entropy", {"decouple": "a"}, TypeError, "decouple must be a number, got str 'a'"),
        ("mix_cross_entropy", {"decouple": None}, TypeError, "decouple must be a number"),
        ("mix_cross_entropy", {"decouple": True}, TypeError, "decouple must be a number"),
        ("mix_cross_entropy", {"decouple": torch.tensor(0.1)}, TypeError, "decouple must be a number"),
        ("mix_cross_entropy", {"smoothing": "a"}, TypeError, "smoothing must be a number"),
        ("mix_cross_entropy", {"smoothing": torch.nan}, ValueError, "smoothing must be a number"),
        ("mix_cross_entropy", {"reduction": None}, ValueError, "reduction must be one of"),
        ("mix_cross_entropy", {"ignore_index": 1.5}, TypeError, "ignore_index must be an integer"),
        ("mix_cross_entropy", {"ignore_index": "a"}, TypeError, "ignore_index must be an integer"),
        ("mix_cross_entropy", {"ignore_index": None}, TypeError, "ignore_index must be an integer"),
        ("mix_cross_entropy", {"ignore_index": 2**63}, ValueError, "ignore_index must be an int64"),
        ("mix_cross_entropy", {"lam": "a"}, TypeError, "lam must be a float or a floating tensor"),
        ("mix_cross_entropy", {"lam_b": [0.5]}, TypeError, "lam_b must be a float or a floating tensor"),
        ("mix_binary_cross_entropy", {"threshold": "a"}, TypeError, "threshold must be a number"),
        ("mix_binary_cross_entropy", {"threshold": torch.nan}, ValueError, "threshold must be a number"),
        ("mix_binary_cross_entropy", {"sum_classes": "a"}, TypeError, "sum_classes must be True or False"),
        ("mix_binary_cross_entropy", {"ignore_index": 0.0}, TypeError, "ignore_index must be an integer"),
        ("mix_binary_cross_entropy", {"smoothing": None}, TypeError, "smoothing must be a number"),
        ("mix_cross_entropy", {"smoothing": 1.0}, ValueError, r"smoothing must be in \[0, 1\)"),
        ("mix_cross_entropy", {"reduction": "avg"}, ValueError, "reduction must be one of"),
        ("mix_cross_entropy", {"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
        ("soft_cross_entropy", {}, TypeError, "target must be a floating tensor"),
        ("soft_cross_entropy", {"target": torch.rand(4, 6)}, TypeError, "target_b must be a floating tensor"),
        ("soft_cross_entropy", {"target": torch.rand(4, 6), "target_b": None}, ValueError, "exactly when lam is"),
        ("soft_cross_entropy", {"target": torch.rand(4, 5)}, ValueError, "target must have shape"),
        (
            "soft_cross_entropy",
            {"target": torch.rand(4, 6, requires_grad=True)},
            ValueError,
            "target must not require a gradient",
        ),
    ],
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton can run on the CPU then")
def test_bad_arguments_are_named(op, change, error, message):
    with pytest.raises(error, match=f"fastmix.{op}: .*{message}"):
        getattr(ops, op)(**(BASE | change))


def timm_target(y: Tensor, k: int, lam, smoothing: float, dense: bool) -> Tensor:
    """The arithmetic of timm's `mixup_target`, operation by operation."""
    if dense:
        own = y.float() * (1.0 - smoothing) + 0.5 * smoothing
    else:
        off = smoothing / k
        own = torch.full((len(y), k), off).scatter_(1, y[:, None], 1.0 - smoothing + off)
    return own * lam + own.flip(0) * (1.0 - lam)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.37])
def test_soft_labels_are_bit_equal_to_timm(smoothing, dense):
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        k = 3 + seed % 9
        y = torch.rand(6, k, generator=g).round() if dense else torch.randint(k, (6,), generator=g)
        for lam in (torch.rand(6, 1, generator=g), torch.rand((), generator=g, dtype=torch.float64).item()):
            weights = [torch.as_tensor(w, dtype=torch.float32) for w in (lam, 1.0 - lam)]
            weights = [w[:, 0] if w.dim() else w for w in weights]
            batch = MixBatch(torch.zeros(6, 1), y, y.flip(0), weights[0], torch.arange(6).flip(0), lam_b=weights[1])
            expected = timm_target(y, k, lam, smoothing, dense)
            assert torch.equal(batch.soft(k, smoothing, "bce" if dense else "ce"), expected)


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_the_loss_of_a_batch_is_that_of_its_soft_labels(kind, dense, other):
    g = torch.Generator().manual_seed(1)
    n, k = 8, 10
    y = torch.rand(n, k, generator=g) if dense else torch.randint(k, (n,), generator=g)
    index, lam = torch.randperm(n, generator=g), torch.rand(n, generator=g)
    lam_b = torch.rand(n, generator=g) if other else None
    batch, logits = MixBatch(torch.zeros(n, 1), y, y[index], lam, index, lam_b=lam_b), torch.randn(n, k, generator=g)
    soft = batch.soft(k, 0.1, kind)
    if kind == "ce":
        expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    else:
        expected = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(batch.loss(logits, 0.1, kind=kind), expected)
    torch.testing.assert_close(batch.accuracy(logits), batch.soft(k).gather(1, logits.argmax(1)[:, None]).mean())


def test_the_loss_of_a_batch_passes_options_on():
    y, y_b, lam = torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor(0.4)
    batch, logits = MixBatch(torch.zeros(2, 1), y, y_b, lam, torch.tensor([1, 0])), torch.randn(2, 5)
    expected = ops.mix_binary_cross_entropy(logits, y, y_b, lam, threshold=0.2, sum_classes=True)
    assert torch.equal(batch.loss(logits, kind="bce", threshold=0.2, sum_classes=True), expected)
    expected = ops.mix_cross_entropy(logits, y, y_b, lam, decouple=0.1)
    assert torch.equal(batch.loss(logits, decouple=0.1), expected)
    with pytest.raises(ValueError, match="kind must be one of ce, bce"):
        batch.loss(logits, kind="mse")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits(kind):
    from support import no_host_wait

    op, options = KINDS[kind]
    given = draw(kind, 6, 1000, device="cuda")
    run(getattr(ops, op), given, **options)
    with no_host_wait():
        leaves = {k: v.requires_grad_() if k == "logits" else v for k, v in given.items()}
        getattr(ops, op)(**leaves, **options).backward()


@pytest.mark.slow
def test_interpreted():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is that process")
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    place = {"cwd": Path(__file__).parents[2], "env": environment}
    done = subprocess.run([*command, __file__], **place, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]
