"""Every op under `torch.compile(fullgraph=True)`, under `opcheck`, and what a tensor subclass or autocast sees."""

from __future__ import annotations

import pytest
import torch

from fastmix import ops
from fastmix.methods import METHODS, create

N = 4
INDEX = torch.tensor([1, 0, 3, 3])


def leaves(*shapes: tuple) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator).requires_grad_() for shape in shapes]


BOX = torch.tensor([[1, 1, 4, 4], [0, 0, 0, 0], [2, 0, 9, 3], [0, 0, 8, 8]], dtype=torch.int32)
CASES = {
    "blend": (lambda x, lam: ops.blend(x, INDEX, lam) * 2, [(N, 3, 8, 8), (N,)]),
    "blend with a number": (
        lambda x: ops.blend(x, INDEX, 0.3, normalize=((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))),
        [(N, 3, 8, 8)],
    ),
    "box_blend": (lambda x, lam: ops.box_blend(x, INDEX, BOX, lam).relu(), [(N, 3, 8, 8), ()]),
    "flip_blend": (lambda x: ops.flip_blend(x, 0.3, BOX).relu(), [(N, 3, 8, 8)]),
    "mask_blend": (lambda x, m: ops.mask_blend(x, INDEX, m, activation="sigmoid"), [(N, 3, 8, 8), (N, 3, 3)]),
    "pair_attention": (lambda q, v: ops.pair_attention(q, q, v, INDEX), [(N, 9, 5), (N, 9)]),
    "pair_attention transposed": (
        lambda q, k, v, b: ops.pair_attention(q, k, v, INDEX, b, transpose=True),
        [(N, 9, 5), (N, 9, 5), (N, 9), (N, 9)],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(name, dynamic):
    function, shapes = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = []
    for call in (compiled, function):
        inputs = leaves(*shapes)
        results = call(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        found.append([*results, *torch.autograd.grad(sum(r.square().sum() for r in results), inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_inductor_runs_the_same_kernels():
    torch.compiler.reset()
    x, mask = torch.rand(N, 3, 16, 16), torch.randn(N, 4, 4)

    def step(x, mask):
        mixed, mean = ops.mask_blend(x * 2, INDEX, mask, activation="sigmoid")
        return mixed.relu() + mean.view(-1, 1, 1, 1)

    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x, mask), step(x, mask))


def test_out_works_when_compiled():
    torch.compiler.reset()
    x, out = torch.rand(N, 3, 8, 8), torch.empty(N, 3, 8, 8)
    torch.compile(lambda x, out: ops.blend(x, INDEX, 0.3, out=out), fullgraph=True, backend="aot_eager")(x, out)
    assert torch.equal(out, ops.blend(x, INDEX, 0.3))


def raw_calls(layout: str, n: int):
    x = torch.rand(n, 3, 8, 6)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    index, lam, mask = torch.arange(n).flip(0), torch.rand(n), torch.rand(n, 2, 3)
    order, start = index.argsort(), torch.arange(n + 1)
    box, f32 = torch.ones(n, 4, dtype=torch.int32), torch.float32
    q, v, lse = torch.rand(n, 6, 4), torch.rand(n, 6), torch.rand(n, 6) + 3
    costs = [torch.randint(0, 50, (n, *shape), dtype=torch.int32) for shape in ((3, 4, 3), (2, 4), (3, 3))]
    return {
        "blend": (x, index, lam, None, None, torch.float16, "cpu"),
        "blend_grad_x": (x, order, start, lam, f32, "cpu"),
        "blend_grad_lam": (x, x, index, lam, None, f32, "cpu"),
        "box_blend": (x, index, box, lam, None, None, f32, "cpu"),
        "box_blend_grad_x": (x, order, start, box, None, f32, "cpu"),
        "box_blend_grad_lam": (x, x, index, box, lam, None, f32, "cpu"),
        "flip_blend": (x, lam, None, box, True, "cpu"),
        "mask_blend": (x, index, mask, 1, True, False, None, None, None, None, f32, "cpu"),
        "mask_blend_grad_x": (x, order, start, mask, 1, True, False, f32, "cpu"),
        "mask_blend_grad_mask": (x, x, lam, index, mask, 1, True, False, None, "cpu"),
        "pair_attention": (q, q, v, index, None, 0.5, "cpu"),
        "pair_attention_cols": (q, q, v, index, v, 0.5, lse, "cpu"),
        "pair_attention_grad": (q, q, order, start, v, 0.5, lse, v, v, v, True, torch.float32, "cpu"),
        "saliency_pool": (x, 4, 2, "cpu"),
        "fine_grained_saliency": (x, None, None, True, "cpu"),
        "saliency_box": (torch.rand(n, 8, 6), lam.double(), None, 16, 12, False, "cpu"),
        "spectral_mask": (torch.randn(n, 8, 4, 2), torch.arange(n), 8, 6, 3.0, False, 2, "cpu"),
        "puzzle_energy": (x, torch.rand(n, 4, 2), index, lam.double(), None, None, 3, 1.2, 0.5, 0.2, 2, "cpu"),
        "box_paste": (x, index, box, 2 * box, 1, lam, None, None, f32, "cpu"),
        "box_paste_grad_x": (x, order, start, box, 2 * box, 1, None, f32, "cpu"),
        "grid_cut": (*costs, False, "cpu"),
        "transport": (torch.rand(n, 4, 4), torch.rand(n, 4, 4) > 0.5, 0.3, False, "cpu"),
        **loss_calls(n, lam),
    }


def loss_calls(n: int, lam: torch.Tensor):
    z, y, soft, scale = torch.rand(n, 7), torch.arange(n) % 7, torch.rand(n, 7), torch.tensor(1 / max(n, 1))
    grad, mean = torch.rand(()), 1  # of the mean over the rows
    found = {
        "mix_cross_entropy": (z, y, y, lam, None, 0.1, 0.1, -100, mean, "cpu"),
        "mix_binary_cross_entropy": (z, y, y, lam, None, 0.1, 0.2, False, -100, mean, True, "cpu"),
        "soft_cross_entropy": (z, soft, soft, lam, None, 0.1, mean, "cpu"),
    }
    stats = {name: getattr(torch.ops.fastmix, name)(*args)[1] for name, args in found.items()}
    return found | {
        "mix_cross_entropy_grad": (
            *(grad, z, y, y, lam, None, 0.1, 0.1, -100, stats["mix_cross_entropy"], scale, "cpu"),
        ),
        "mix_binary_cross_entropy_grad": (grad, z, y, y, lam, None, 0.1, 0.2, False, -100, scale, "cpu"),
        "soft_cross_entropy_grad": (*(grad, z, soft, soft, lam, None, 0.1, stats["soft_cross_entropy"], scale, "cpu"),),
    }


REGISTERED = sorted({schema.name.removeprefix("fastmix::") for schema in torch._C._jit_get_all_schemas()
                     if schema.name.startswith("fastmix::")})  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("name", REGISTERED)
def test_registered_ops_pass_opcheck(name, layout, n):
    overload = getattr(torch.ops.fastmix, name).default
    # Raw ops carry no autograd formula: the Function above them does, and is tested through the public name.
    torch.library.opcheck(overload, raw_calls(layout, n)[name], test_utils=("test_schema", "test_faketensor"))


def test_a_recorded_op_refuses_to_be_a_constant():
    """The gradient that no formula makes would otherwise be 0, or none, without a word."""
    for name, args in raw_calls("contiguous", 3).items():
        asking = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        if any(isinstance(a, torch.Tensor) and a.requires_grad for a in asking):
            with pytest.raises(RuntimeError, match=f"fastmix.{name}: no gradient flows"):
                getattr(torch.ops.fastmix, name)(*asking)
        with torch.no_grad():
            getattr(torch.ops.fastmix, name)(*asking)


def test_a_fake_tensor_is_not_computed():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.rand(4, 3, 8, 8))
        out = ops.blend(x, torch.arange(4), 0.5, dtype=torch.bfloat16)
        assert out.shape == (4, 3, 8, 8) and out.dtype is torch.bfloat16


def test_autocast_keeps_the_image_dtype_and_fp32_softmax():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.rand(4, 3, 8, 8)
        assert ops.blend(x, INDEX, 0.5).dtype is torch.float32
        q = torch.nn.functional.linear(torch.rand(4, 9, 5), torch.rand(6, 5))
        out = ops.pair_attention(q, q, torch.rand(4, 9), INDEX)
        assert q.dtype is torch.bfloat16 and out.dtype is torch.float32


@pytest.mark.parametrize("mode", ["batch", "sample"])
# PuzzleMix and Manifold Mixup draw numbers on the host.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("puzzlemix", "manifoldmix")])
def test_a_step_with_a_method_compiles_without_a_graph_break(name, mode):
    method = create(name, mode=mode)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 5))
    extra = {"saliency": torch.rand(N, 2, 3, 3)} if method.needs else {}

    def step(x, y):
        batch = method(x, y, **extra)
        return batch.loss(method.forward(net, batch), smoothing=0.1), batch.x

    torch.compiler.reset()
    x, y, found = torch.rand(N, 3, 14, 14), torch.arange(N), []
    for call in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        torch.manual_seed(0)
        loss, mixed = call(x, y)
        found.append([loss, mixed, *torch.autograd.grad(loss, list(net.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
