"""`MixBatch`: which labels it takes, its losses with class weights or any criterion, and how it moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmix import MixBatch, methods, reference

N, K = 6, 4
INDEX = torch.tensor([1, 0, 3, 2, 5, 4])
LAM = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.9, 1.0])
CLASSES = torch.tensor([0, 1, 2, 3, 1, 1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(y: Tensor, lam: Tensor = LAM, lam_b: Tensor | None = None) -> MixBatch:
    return MixBatch(torch.zeros(N, 1), y, y[INDEX], lam, INDEX, lam_b=lam_b)


def logits(classes: int = K, seed: int = 0) -> Tensor:
    return torch.randn(N, classes, generator=generator(seed))


def everything(batch: MixBatch, z: Tensor, kind: str) -> list[Tensor]:
    """What loss, soft labels and accuracy make of the labels of a batch."""
    return [
        batch.loss(z, kind=kind),
        batch.loss(z, 0.1, "none", kind=kind),
        batch.loss(z, kind=kind, weight=torch.rand(z.shape[-1], generator=generator(3))),
        batch.soft(z.shape[1], kind=kind),
        batch.accuracy(z),
    ]


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32]


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.int64])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_integers_of_any_width_are_class_numbers(kind, dtype, shape):
    found = everything(batch_of(CLASSES.to(dtype).view(shape)), logits(), kind)
    expected = everything(batch_of(CLASSES), logits(), kind)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_bool_is_one_of_two_classes(kind):
    y = CLASSES > 1
    found, expected = (everything(batch_of(labels), logits(2), kind) for labels in (y, y.long()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float64])
def test_targets_of_every_class_may_be_of_any_dtype(kind, dtype):
    y = torch.rand(N, K, generator=generator()) > 0.5
    found, expected = (everything(batch_of(labels), logits(), kind) for labels in (y.to(dtype), y.float()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_takes_values(dtype, shape, flat):
    y = (CLASSES > 1).to(dtype).view(shape)
    batch, z = batch_of(y), logits(1)
    own, partner = y.float().view(N, 1), y[INDEX].float().view(N, 1)
    soft = LAM[:, None] * own + (1 - LAM[:, None]) * partner
    given = z[:, 0] if flat else z
    torch.testing.assert_close(batch.loss(given, kind="bce"), F.binary_cross_entropy_with_logits(z, soft))
    torch.testing.assert_close(batch.soft(1, kind="bce"), soft)
    right = torch.where(z > 0, soft, 1 - soft).mean()
    torch.testing.assert_close(batch.accuracy(given), right)
    half = batch.loss(given, reduction="none", kind="bce", threshold=0.5)
    torch.testing.assert_close(
        half, F.binary_cross_entropy_with_logits(z, (soft > 0.5).float(), reduction="none")[:, 0]
    )


def test_probabilities_for_one_logit():
    y = torch.rand(N, generator=generator(5))
    soft = (LAM * y + (1 - LAM) * y[INDEX])[:, None]
    expected = F.binary_cross_entropy_with_logits(logits(1), soft)
    torch.testing.assert_close(batch_of(y).loss(logits(1), kind="bce"), expected)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["ce", "bce", "one logit"])
def test_ignored_labels_are_left_out_everywhere(kind, reduction):
    """Row 0 and its partner have no label; of rows 2 and 3 one label each is left out."""
    ignore, classes = -7, 1 if kind == "one logit" else K
    y = (CLASSES > 1).long() if classes == 1 else CLASSES
    gone = torch.tensor([True, True, True, False, False, False])
    kind, z, kept = kind.split()[0].replace("one", "bce"), logits(classes), torch.arange(2, N)
    batch = batch_of(torch.where(gone, ignore, y), LAM)
    counts = [~gone, ~gone[INDEX]]
    weights = [weight * count for weight, count in zip((LAM, 1 - LAM), counts, strict=True)]
    known = MixBatch(torch.zeros(N, 1), y, y[INDEX], weights[0], INDEX, lam_b=weights[1])
    soft = known.soft(classes, 0.1, kind)
    assert torch.equal(batch.soft(classes, 0.1, kind, ignore_index=ignore), soft)
    if kind == "ce":
        rows = -(soft * z.log_softmax(1)).sum(1)
    else:
        rows = F.binary_cross_entropy_with_logits(z, soft, reduction="none").mean(1)
    rows = torch.where(counts[0] | counts[1], rows, 0)
    expected = {"none": rows, "mean": rows[kept].mean(), "sum": rows.sum()}[reduction]
    torch.testing.assert_close(batch.loss(z, 0.1, reduction, kind, ignore_index=ignore), expected)
    for weight in (torch.ones(classes), torch.full((classes,), 2.0)):
        found = batch.loss(z, 0.1, reduction, kind, ignore_index=ignore, weight=weight)
        torch.testing.assert_close(found, expected * weight[0])
    if classes == 1:
        scores = [torch.where(z[:, 0] > 0, label.float(), 1 - label.float()) for label in (y, y[INDEX])]
    else:
        scores = [(z.argmax(1) == label).float() for label in (y, y[INDEX])]
    score = weights[0] * scores[0] + weights[1] * scores[1]
    torch.testing.assert_close(batch.accuracy(z, ignore_index=ignore), score[kept].mean())


def test_accuracy_of_right_predictions_is_1_beside_ignored_rows():
    y = torch.tensor([0, 1, -100, -100, 2, 3])
    batch = MixBatch(torch.zeros(N, 1), y, y, torch.tensor(0.3), torch.arange(N))
    assert batch.accuracy(F.one_hot(y.clamp(0), K).float()) == 1
    nobody = torch.full((N,), -100)
    assert MixBatch(torch.zeros(N, 1), nobody, nobody, torch.tensor(0.3), INDEX).accuracy(logits()).isnan()


@pytest.mark.parametrize("value", [-1, K, 255])
@pytest.mark.parametrize("name", ["y", "y_b"])
def test_wrong_class_numbers_are_named(name, value):
    wrong = torch.where(torch.arange(N) == 2, value, CLASSES)
    pair = (wrong, CLASSES) if name == "y" else (CLASSES, wrong)
    batch = MixBatch(torch.zeros(N, 1), *pair, LAM, INDEX)
    words = rf"{name} must lie in \[0, {K}\) or be -100, got {value} at position 2"
    for call in (
        lambda: batch.soft(K),
        lambda: batch.accuracy(logits()),
        lambda: batch.loss(logits(), 0.1, weight=torch.ones(K)),
    ):
        with pytest.raises(ValueError, match=rf"fastmix.MixBatch\.\w+: {words}"):
            call()
    for kind in ("ce", "bce"):
        with pytest.raises(ValueError, match=rf"must lie in \[0, {K}\) or be -100, got {value} at position 2"):
            batch.loss(logits(), kind=kind)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\)"):
        batch.loss(logits(1), kind="bce")


@pytest.mark.parametrize(
    ("y", "classes", "kind", "error", "words"),
    [
        (torch.rand(N), K, "ce", ValueError, r"class numbers or have shape \(N, 4\), got float32 of shape \(6,\)"),
        (torch.rand(N), K, "bce", ValueError, "class numbers or have shape"),
        (torch.rand(N, 1), K, "ce", ValueError, "class numbers or have shape"),
        (torch.rand(N), 1, "ce", ValueError, "class numbers or have shape"),
        (torch.rand(N, 3), K, "ce", ValueError, r"shape \(N,\), \(N, 1\) or \(N, 4\)"),
        (torch.ones(N, 3).long(), K, "ce", ValueError, r"shape \(N,\), \(N, 1\) or \(N, 4\)"),
        (torch.rand(N, K, 2), K, "ce", ValueError, r"shape \(N,\), \(N, 1\) or \(N, 4\)"),
        (torch.zeros(N, dtype=torch.complex64), K, "ce", TypeError, "integers, bool or floating, got complex64"),
        ([0] * N, K, "ce", TypeError, "be a tensor of labels, got list"),
    ],
)
def test_labels_that_do_not_fit_are_named(y, classes, kind, error, words):
    batch = MixBatch(torch.zeros(N, 1), y, y, LAM, INDEX)
    calls = [lambda: batch.loss(logits(classes), kind=kind), lambda: batch.soft(classes, kind=kind)]
    if classes > 1:
        calls.append(lambda: batch.accuracy(logits(classes)))
    for call in calls:
        with pytest.raises(error, match=rf"fastmix.MixBatch.\w+: y must .*{words}"):
            call()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("lam", [LAM, torch.tensor(0.3), torch.tensor(1.0)], ids=["each", "all", "one"])
def test_class_weights_are_those_of_cross_entropy(lam, dense, smoothing):
    y = torch.rand(N, K, generator=generator(7)).softmax(1) if dense else CLASSES
    weight, z = torch.rand(K, generator=generator(8)) + 0.1, logits().requires_grad_()
    batch = batch_of(y, lam)
    for reduction in ("none", "mean", "sum"):
        found = batch.loss(z, smoothing, reduction, weight=weight)
        soft = batch.soft(K)
        expected = F.cross_entropy(z, soft, weight, label_smoothing=smoothing, reduction=reduction)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(loss.sum(), z, retain_graph=True)[0] for loss in (found, expected)]
        torch.testing.assert_close(*slopes)
    if not dense and lam.dim() == 0 and lam == 1:
        total = batch.loss(z, smoothing, "sum", weight=weight) / weight[CLASSES].sum()
        torch.testing.assert_close(total, F.cross_entropy(z, CLASSES, weight, label_smoothing=smoothing))


def test_class_weights_hand_gradients_to_lam():
    lam, weight = LAM.clone().requires_grad_(), torch.rand(K, generator=generator(8))
    rows = [weight[y] * F.cross_entropy(logits(), y, reduction="none") for y in (CLASSES, CLASSES[INDEX])]
    for smoothing in (0.0, 1e-9):
        (found,) = torch.autograd.grad(batch_of(CLASSES, lam).loss(logits(), smoothing, "sum", weight=weight), lam)
        torch.testing.assert_close(found, rows[0] - rows[1])


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("dense", [False, True])
def test_weights_of_binary_cross_entropy(dense, threshold, sum_classes):
    y = (torch.rand(N, K, generator=generator(7)) > 0.5).float() if dense else CLASSES
    weight, pos_weight = (torch.rand(K, generator=generator(seed)) + 0.5 for seed in (1, 2))
    batch, z = batch_of(y), logits()
    soft = batch.soft(K, 0.1, "bce")
    soft = soft if threshold is None else (soft > threshold).float()
    for given in ({"weight": weight}, {"pos_weight": pos_weight}, {"weight": weight, "pos_weight": pos_weight}):
        rows = F.binary_cross_entropy_with_logits(z, soft, **given, reduction="none")
        rows = rows.sum(1) if sum_classes else rows.mean(1)
        found = batch.loss(z, 0.1, kind="bce", threshold=threshold, sum_classes=sum_classes, **given)
        torch.testing.assert_close(found, rows.mean())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(4,\)"),
        ({"weight": [1.0] * K}, TypeError, "weight must be a tensor"),
        ({"weight": torch.ones(K).long()}, TypeError, "weight must be a floating tensor"),
        ({"pos_weight": torch.ones(K)}, ValueError, "kind 'ce' cannot be combined with pos_weight"),
        ({"weight": torch.ones(K), "decouple": 0.1}, ValueError, "cannot be combined with decouple"),
        ({"criterion": F.mse_loss, "smoothing": 0.1}, ValueError, "criterion= cannot be combined with smoothing"),
        ({"criterion": F.mse_loss, "weight": torch.ones(K)}, ValueError, "criterion= cannot be combined"),
        ({"criterion": F.mse_loss, "decouple": 0.1}, ValueError, "criterion= cannot be combined .*decouple"),
        ({"criterion": "mse"}, TypeError, "criterion must be callable, got str 'mse'"),
        ({"criterion": F.cross_entropy}, ValueError, 'criterion has reduced .*own lam; give it reduction="none"'),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"kind": "mse"}, ValueError, "kind must be one of ce, bce"),
        ({"weight": torch.ones(K), "reduction": "avg"}, ValueError, "reduction must be one of"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, error, words):
    with pytest.raises(error, match=words):
        batch_of(CLASSES).loss(logits(), **options)


def focal(z: Tensor, y: Tensor) -> Tensor:
    rows = F.cross_entropy(z, y, reduction="none")
    return (1 - (-rows).exp()) ** 2 * rows


@pytest.mark.parametrize("lam_b", [None, LAM.flip(0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_any_criterion_is_weighted_for_each_sample(reduction, lam_b):
    batch, z = batch_of(CLASSES.int(), LAM, lam_b), logits()
    other = 1 - LAM if lam_b is None else lam_b
    rows = LAM * focal(z, CLASSES) + other * focal(z, CLASSES[INDEX])
    expected = {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]
    torch.testing.assert_close(batch.loss(z, criterion=focal, reduction=reduction), expected)


def test_a_criterion_that_reduces_goes_with_one_lam():
    batch, z = batch_of(CLASSES, torch.tensor(0.3)), logits()
    expected = 0.3 * F.cross_entropy(z, CLASSES) + 0.7 * F.cross_entropy(z, CLASSES[INDEX])
    torch.testing.assert_close(batch.loss(z, criterion=nn.CrossEntropyLoss()), expected)
    torch.testing.assert_close(batch.loss(z, criterion=nn.CrossEntropyLoss(reduction="none")), expected)
    with pytest.raises(ValueError, match="reduction is 'none'"):
        batch.loss(z, criterion=nn.CrossEntropyLoss(), reduction="none")
    with pytest.raises(ValueError, match=r"criterion must return \(\) or \(6, ...\), got float32 of shape \(4,\)"):
        batch.loss(z, criterion=lambda z, y: z[0])


@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss])
@pytest.mark.parametrize("outputs", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("labels", [(), (1,), (3,)], ids=str)
def test_values_of_a_regression(criterion, outputs, labels):
    if (3,) in (outputs, labels) and outputs != labels:
        pytest.skip("of other sizes")
    y, z = (torch.randn(N, *shape, generator=generator(seed)) for seed, shape in enumerate((labels, outputs)))
    batch = methods.MixUp(mode="sample")(torch.rand(N, 3, 8, 8), y, generator=generator())
    assert batch.lam.shape == (N,)
    unreduced = criterion(reduction="none")
    own, partner = (unreduced(z.view(N, -1), t.view(N, -1)).mean(1) for t in (y, y[batch.index]))
    rows = batch.lam * own + (1 - batch.lam) * partner
    torch.testing.assert_close(batch.loss(z, criterion=unreduced), rows.mean())
    torch.testing.assert_close(batch.loss(z, criterion=unreduced, reduction="none"), rows)
    whole = batch_of(y.long(), torch.tensor(0.4))
    found = whole.loss(z, criterion=nn.MSELoss())
    rows = [(z.view(N, -1) - t.long().view(N, -1)).square().mean() for t in (y, y[INDEX])]
    torch.testing.assert_close(found, 0.4 * rows[0] + 0.6 * rows[1])


def test_a_weight_of_0_removes_what_a_criterion_cannot_say():
    y = torch.tensor([torch.nan, 1.0, 2.0, 3.0, 4.0, torch.nan])
    batch = MixBatch(torch.zeros(N, 1), y, y.flip(0).nan_to_num(5), LAM.ceil().logical_and(~y.isnan()).float(), INDEX)
    z = logits(1)[:, 0].requires_grad_()
    loss = batch.loss(z, criterion=nn.MSELoss(reduction="none"))
    assert loss.isfinite()


def test_segmentation_goes_by_apply_as_before():
    batch = methods.CutMix()(torch.rand(N, 3, 8, 8), CLASSES, generator=generator())
    segmentation = batch.apply(torch.randint(5, (N, 8, 8), generator=generator()))
    z = torch.randn(N, 5, 8, 8, generator=generator())
    assert F.cross_entropy(z, segmentation).isfinite() and segmentation.dtype is torch.int64


EVERY = [name for name in methods.METHODS if methods.METHODS[name].needs == ""]


def mixed(name: str = "cutmix") -> MixBatch:
    method = methods.create(name)
    return method(torch.rand(N, 3, 8, 8), CLASSES, generator=generator())


def tensors(batch: MixBatch) -> dict[str, Tensor]:
    return {pytree.keystr(path): leaf for path, leaf in pytree.tree_leaves_with_path(batch) if isinstance(leaf, Tensor)}


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_batch_moves_with_its_plan(name):
    method = methods.METHODS[name]
    if method.needs:
        pytest.skip("needs what the others do not")
    batch = mixed(name)
    moved = batch.to("meta", non_blocking=True)
    assert type(moved) is MixBatch and type(moved.plan) is type(batch.plan)
    assert moved.layer == batch.layer and tensors(moved).keys() == tensors(batch).keys()
    assert all(t.device.type == "meta" for t in tensors(moved).values())
    assert all(t.device.type == "cpu" for t in tensors(batch).values())
    back = pytree.tree_map_only(Tensor, lambda t: t.clone(), batch).cpu()
    segmentation = torch.randint(5, (N, 8, 8), generator=generator())
    if batch.layer is None and len(batch) == N:
        assert torch.equal(back.apply(segmentation), batch.apply(segmentation))
        assert torch.equal(back.pixel_weight(), batch.pixel_weight())
    assert torch.equal(back.loss(logits_of(batch)), batch.loss(logits_of(batch)))


def logits_of(batch: MixBatch) -> Tensor:
    return torch.randn(len(batch), K, generator=generator())


def test_what_is_shared_stays_shared_and_only_images_change_their_dtype():
    batch = mixed("mixup")
    assert batch.plan.index is batch.index
    moved = batch.to("meta", torch.bfloat16)
    assert moved.plan.index is moved.index and moved.plan.lam is moved.lam
    assert moved.x.dtype is torch.bfloat16 and moved.lam.dtype is torch.float32 and moved.y.dtype is torch.int64
    last = batch.to(memory_format=torch.channels_last)
    assert last.x.is_contiguous(memory_format=torch.channels_last) and last.index is batch.index
    assert batch.to(torch.float64).x.dtype is torch.float64 and batch.x.dtype is torch.float32
    assert batch.to(batch.x).x is batch.x


def test_pinning_and_streams_reach_every_tensor(monkeypatch):
    batch, seen = mixed("cutmix"), []
    monkeypatch.setattr(Tensor, "pin_memory", lambda t: seen.append(t) or t.clone())
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = pin_memory((batch, "name"))[0]
    assert type(pinned) is MixBatch and {id(t) for t in seen} == {id(t) for t in tensors(batch).values()}
    assert pinned.plan.index is pinned.index and pinned.index is not batch.index
    batch.record_stream(None)  # nothing is on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_moves_to_a_gpu_and_back():
    batch = mixed("cutmix")
    pinned = batch.pin_memory()
    assert all(t.is_pinned() for t in tensors(pinned).values())
    there = pinned.cuda(non_blocking=True)
    there.record_stream(torch.cuda.current_stream())
    z = logits()
    torch.testing.assert_close(there.loss(z.cuda()).cpu(), batch.loss(z))
    segmentation = torch.randint(5, (N, 8, 8), generator=generator())
    assert torch.equal(there.apply(segmentation.cuda()).cpu(), batch.apply(segmentation))
    assert all(torch.equal(t, tensors(batch)[name]) for name, t in tensors(there.cpu()).items())
    from support import no_host_wait

    with no_host_wait():
        for kind in ("ce", "bce"):
            for given in ({}, {"weight": torch.ones(K, device="cuda")}):
                there.loss(z.cuda(), kind=kind, **given)
        there.soft(K), there.accuracy(z.cuda())


def test_a_batch_is_a_pytree():
    batch = mixed("cutmix")
    leaves, spec = pytree.tree_flatten(batch)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    assert again.x is batch.x and again.plan.box is batch.plan.box and again.mask is None
    assert pytree.tree_structure(again) == spec


def test_accelerate_moves_a_batch():
    operations = pytest.importorskip("accelerate.utils.operations")
    batch = mixed("cutmix")
    moved = operations.send_to_device({"batch": batch}, torch.device("meta"), non_blocking=True)["batch"]
    assert type(moved) is MixBatch and all(t.device.type == "meta" for t in tensors(moved).values())


def test_lightning_moves_a_batch():
    apply_func = pytest.importorskip("lightning.fabric.utilities.apply_func")
    batch = mixed("cutmix")
    moved = apply_func.move_data_to_device([batch], torch.device("meta"))[0]
    assert type(moved) is MixBatch and all(t.device.type == "meta" for t in tensors(moved).values())


class Mixed(torch.utils.data.Dataset):
    """Whole batches, mixed by the workers."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> MixBatch:
        return mixed("cutmix")


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_mixed_by_workers_arrive_whole(workers):
    loader = torch.utils.data.DataLoader(Mixed(), batch_size=None, num_workers=workers)
    segmentation = torch.randint(5, (N, 8, 8), generator=generator())
    for batch in loader:
        assert torch.equal(batch.apply(segmentation), mixed("cutmix").apply(segmentation))


def test_a_loss_with_weights_and_criterion_compiles_without_a_graph_break():
    weight = torch.rand(K, generator=generator())
    torch.compiler.reset()

    def step(z, y, lam):
        batch = MixBatch(z, y, y[INDEX], lam, INDEX)
        return (
            batch.loss(z, 0.1, weight=weight)
            + batch.loss(z, weight=weight)
            + batch.loss(z, criterion=focal)
            + batch.loss(z, kind="bce", pos_weight=weight)
            + batch.accuracy(z)
            + batch.soft(K).sum()
        )

    z = logits().requires_grad_()
    found = []
    for call in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        loss = call(z, CLASSES, LAM)
        found.append((loss.detach(), *torch.autograd.grad(loss, z)))
    torch.testing.assert_close(*found)


def test_second_derivatives_reach_the_losses_of_a_batch():
    z = logits().double().requires_grad_()
    for kind in ("ce", "bce"):
        (slope,) = torch.autograd.grad(batch_of(CLASSES, LAM.double()).loss(z, kind=kind), z, create_graph=True)
        (found,) = torch.autograd.grad(slope.square().sum(), z)
        function = reference.mix_cross_entropy if kind == "ce" else reference.mix_binary_cross_entropy
        (plain,) = torch.autograd.grad(function(z, CLASSES, CLASSES[INDEX], LAM.double()), z, create_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), z)[0])
