"""Pictures and figures of training runs: curves, mixed images, and what the masks keep of the labelled objects."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmix.train.data import Splits
from fastmix.train.digits import mask_measures
from fastmix.train.errors import need
from fastmix.train.files import write_atomic
from fastmix.train.trainer import Trainer

Rows = Sequence[Mapping[str, Any]]
Panel = tuple[Tensor, str]  # an image (C, H, W) in [0, 1] or a mask (H, W), and its title

COLOURS = ("#4c566a", "#d08770", "#5e81ac", "#b48ead", "#a3be8c")
SHOWN_LAM = (0.25, 0.5, 0.75)


def save_curves(path: Path, runs: Mapping[str, Sequence[Rows]]) -> None:
    """PNG of training loss and test accuracy over steps: for each name the mean over runs, and their range."""
    figure, axes = _figure(9.0, 3.4, 1, 2)
    for (name, repeats), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        steps = [row["step"] for row in repeats[0]]
        for axis, key in zip(axes[0], ("loss", "test_accuracy"), strict=True):
            columns = list(zip(*([row[key] for row in rows] for rows in repeats), strict=True))
            axis.plot(
                steps,
                [statistics.mean(c) for c in columns],
                color=colour,
                label=name,
                lw=1.8,
                marker="o",
                ms=3,
                markevery=max(1, len(steps) // 10),
            )
            if len(repeats) > 1:
                axis.fill_between(
                    steps, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15, lw=0
                )
    for axis, title in zip(axes[0], ("training loss", "test accuracy, %"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 1].legend(fontsize=8, frameon=False, loc="lower right")
    _write(path, figure)


def save_grid(path: Path, rows: Sequence[Sequence[Panel]], caption: str) -> None:
    """PNG of rows of images and masks; in masks, red is the own image's share and blue the partner's."""
    figure, axes = _figure(1.15 * len(rows[0]), 1.3 * len(rows) + 0.5, len(rows), len(rows[0]))
    for line, panels in zip(axes, rows, strict=True):
        for axis, (picture, title) in zip(line, panels, strict=True):
            _show(axis, picture)
            axis.set_title(title, fontsize=8, pad=3, parse_math=False)  # names of classes may hold dollar signs
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle(caption, fontsize=9, parse_math=False)
    if any(picture.dim() == 2 for panels in rows for picture, _ in panels):
        figure.supxlabel("masks: red = own image, blue = partner", fontsize=9)
    _write(path, figure)


def mix_rows(trainer: Trainer, pairs: int = 5, lams: Sequence[float] = SHOWN_LAM) -> list[list[Panel]]:
    """For each of some pairs of training images: both originals, and for each ``lam`` the mask and the mix."""
    own, index = different_pairs(trainer.train_set.labels, pairs)
    rows = [originals(trainer, own, index, k) for k in range(pairs)]
    for lam in lams:
        torch.manual_seed(0)
        _, mixed = trainer.mix(own, lam, index)
        for k in range(pairs):
            share = float(mixed.lam.expand(len(own))[k])
            rows[k].append((mixed.weight[k], f"mask λ={share:.2f}"))
            rows[k].append((displayed(mixed.x[k], trainer.splits), "mix"))
    return rows


def compare_rows(trainers: Mapping[str, Trainer], lams: Sequence[float], pairs: int = 4) -> list[list[Panel]]:
    """Pairs mixed with lambda 1/2 by MixUp, CutMix and AutoMix, then AutoMix's masks and mixes for each of ``lams``."""
    automix = trainers["AutoMix"]
    own, index = different_pairs(automix.train_set.labels, pairs)
    rows = [originals(automix, own, index, k) for k in range(pairs)]
    for name in ("MixUp", "CutMix", "AutoMix"):
        torch.manual_seed(0)
        _, mixed = trainers[name].mix(own, torch.full((len(own),), 0.5), index)
        for k in range(pairs):
            if name != "MixUp":
                rows[k].append((mixed.weight[k], f"{name} mask"))
            rows[k].append((displayed(mixed.x[k], automix.splits), name))
    sweeps = [automix.mix(own, lam, index)[1] for lam in lams]
    for k in range(2):
        masks = [(mixed.weight[k], f"mask λ={lam:.1f}") for mixed, lam in zip(sweeps, lams, strict=True)]
        mixes = [
            (displayed(mixed.x[k], automix.splits), f"mix λ={lam:.1f}") for mixed, lam in zip(sweeps, lams, strict=True)
        ]
        rows += [[rows[k][0], *masks, rows[k][1]], [rows[k][0], *mixes, rows[k][1]]]
    return rows


def originals(trainer: Trainer, own: Tensor, index: Tensor, k: int) -> list[Panel]:
    """The two images of pair ``k``, named by their classes."""
    images, _ = next(iter(trainer.train_set.loader([own], None, 0)))
    labels, classes = trainer.train_set.labels[own], trainer.splits.classes
    other = int(index[k])
    return [
        (images[k].float() / 255, f"own: {classes[labels[k]][:12]}"),
        (images[other].float() / 255, f"partner: {classes[labels[other]][:12]}"),
    ]


def different_pairs(labels: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Numbers of ``2 * pairs`` images and a partner map in which the first ``pairs`` have partners of other classes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = [], []
    while len(first) < pairs:
        own = order[len(first) % len(order)]
        other = next((n for n in order[::-1] if labels[n] != labels[own] and n not in second), None)
        second.append(order[-1] if other is None else other)
        first.append(own)
    index = torch.arange(2 * pairs).roll(pairs)
    return torch.tensor(first + second), index


def displayed(x: Tensor, splits: Splits) -> Tensor:
    """A normalised image ``(C, H, W)`` back in ``[0, 1]``."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (splits.mean, splits.std))
    return (x.detach().float().cpu() * std + mean).clamp(0, 1)


def measure_masks(trainer: Trainer, batches: int = 20) -> dict[str, float] | None:
    """Means of :func:`fastmix.train.digits.mask_measures` over random mixes of the training images.

    ``lam`` follows the method's own law. None where the data does not know the labelled object's pixels, or with
    the method ``none``.
    """
    objects = getattr(trainer.train_set, "object", None)
    if objects is None or trainer.config.method == "none":
        return None
    torch.manual_seed(0)
    shares, mismatches = [], []
    for _ in range(batches):
        numbers = torch.randperm(len(trainer.train_set))[: trainer.config.batch_size]
        index = torch.randperm(len(numbers))
        _, mixed = trainer.mix(numbers, None, index)
        ink = objects[numbers]
        share, mismatch = mask_measures(mixed.weight.float().cpu(), ink, ink[index], mixed.lam.cpu())
        shares.append(share)
        mismatches.append(mismatch)
    return {"object_share": torch.cat(shares).mean().item(), "lam_mismatch": torch.cat(mismatches).mean().item()}


def _figure(width: float, height: float, rows: int, columns: int):
    need("matplotlib", "matplotlib", "drawing pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis, picture: Tensor) -> None:
    picture = picture.detach().float().cpu()
    if picture.dim() == 2:
        axis.imshow(picture.numpy(), cmap="coolwarm", vmin=0, vmax=1)
    elif picture.shape[0] == 1:
        axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(picture[:3].permute(1, 2, 0).numpy())


def _write(path: Path, figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
