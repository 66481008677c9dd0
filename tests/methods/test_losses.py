import pytest
import torch
import torch.nn.functional as F

from fastmix.losses import mix_cross_entropy


def batch(n=7, k=11, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=g, dtype=torch.float64).mul(3).to(dtype)
    target, target_b = (torch.randint(k, (n,), generator=g) for _ in range(2))
    return logits, target, target_b, torch.rand(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_two_weighted_cross_entropies(smoothing, reduction):
    logits, target, target_b, lam = batch()
    both = [F.cross_entropy(logits, t, label_smoothing=smoothing, reduction="none") for t in (target, target_b)]
    rows = lam * both[0] + (1 - lam) * both[1]
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    got = mix_cross_entropy(logits, target, target_b, lam, smoothing, reduction)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_soft_target_cross_entropy_of_mixed_smoothed_labels(smoothing):
    logits, target, target_b, lam = batch()
    k = logits.shape[1]
    smooth = [F.one_hot(t, k).double() * (1 - smoothing) + smoothing / k for t in (target, target_b)]
    soft = lam[:, None] * smooth[0] + (1 - lam[:, None]) * smooth[1]
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    got = mix_cross_entropy(logits, target, target_b, lam, smoothing)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_logits_and_lam():
    logits, target, target_b, lam = batch(n=4, k=5)
    logits.requires_grad_()
    lam.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, w: mix_cross_entropy(z, target, target_b, w, 0.1, "none"), (logits, lam))


@pytest.mark.parametrize("lam", [0.3, torch.tensor(0.3), torch.full((7,), 0.3)])
def test_lam_as_number_scalar_or_vector(lam):
    logits, target, target_b, _ = batch()
    expected = 0.3 * F.cross_entropy(logits, target) + 0.7 * F.cross_entropy(logits, target_b)
    torch.testing.assert_close(mix_cross_entropy(logits, target, target_b, lam), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, target, target_b, lam = batch(dtype=dtype)
    got = mix_cross_entropy(logits, target, target_b, lam.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, mix_cross_entropy(logits.float(), target, target_b, lam.float()))


def test_large_logits_stay_finite():
    logits = torch.tensor([[1000.0, -1000.0]])
    zero = torch.tensor([0])
    assert mix_cross_entropy(logits, zero, zero, 1.0).item() == 0
    assert mix_cross_entropy(logits, zero, 1 - zero, 0.5).item() == 1000


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(7, 11, dtype=torch.int64)}, TypeError, "floating point"),
        ({"logits": torch.zeros(7)}, ValueError, r"\(N, K\)"),
        ({"target": torch.zeros(7, dtype=torch.int32)}, TypeError, "target must be int64"),
        ({"target_b": torch.zeros(6, dtype=torch.int64)}, ValueError, "target_b"),
        ({"lam": torch.zeros(3)}, ValueError, "lam must have shape"),
        ({"smoothing": 1.0}, ValueError, "smoothing"),
        ({"reduction": "median"}, ValueError, "reduction"),
    ],
)
def test_wrong_arguments_are_named(change, error, words):
    logits, target, target_b, lam = batch()
    arguments = {"logits": logits, "target": target, "target_b": target_b, "lam": lam} | change
    with pytest.raises(error, match=f"fastmix.mix_cross_entropy: .*{words}"):
        mix_cross_entropy(**arguments)
