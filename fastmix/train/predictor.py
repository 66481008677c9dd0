"""A trained classifier out of its checkpoint: pictures in, probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmix.train import checkpoint
from fastmix.train.config import Config
from fastmix.train.errors import UserError, printable
from fastmix.train.files import CHECKPOINT, load_checkpoint
from fastmix.train.folder import CROP, centre_box
from fastmix.train.tasks import Task, build_task

if TYPE_CHECKING:
    from PIL import Image


class DataFacts(NamedTuple):
    """What a checkpoint keeps of the data, by the names of :class:`fastmix.train.data.Splits`."""

    classes: list[str]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_channels(self) -> int:
        return len(self.mean)


class Predictor:
    """The classifier of a run of ``fastmix train``, as its test accuracy was measured: for AutoMix the teacher.

    Args:
        path: a checkpoint, or the folder of the run that holds one.
        device: where to compute.

    Attributes:
        classes: names of the classes.
        config: the settings of the run.

    Raises:
        UserError: no checkpoint, a damaged one, or one without the names of the classes.

    Example:
        >>> predictor = Predictor(Path("runs/folder-cutmix-1"), torch.device("cpu"))
        >>> probabilities = predictor(predictor.pixels(read_image(Path("cat.jpg")))[None])
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.config, self._facts, self._task = load_trained(path, device)
        self.classes = self._facts.classes
        self.device = device

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB picture of any size as uint8 ``(C, S, S)``, cut and resized as the test images of the run were."""
        from PIL import Image

        # Images of a folder lose their margin; those of the other data sets are whole.
        share = CROP if self.config.data.startswith("folder:") else 1.0
        size = self._facts.image_size
        image = image.convert("L") if self._facts.in_channels == 1 else image
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=centre_box(*image.size, share))
        return torch.from_numpy(np.array(image)).view(size, size, -1).movedim(-1, 0).contiguous()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities ``(N, K)``, float32 on the CPU, of images ``(N, C, S, S)`` uint8.

        Raises:
            UserError: the model gives values that are not finite.
        """
        images = images.to(self.device)
        targets = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        logits = self._task.module(self._task.plain(images, targets).x).float()
        if not logits.isfinite().all():
            raise UserError("the model gives values that are not finite: its weights are damaged")
        return logits.softmax(dim=1).cpu()


def load_trained(path: Path, device: torch.device) -> tuple[Config, DataFacts, Task]:
    """Settings, data and, in evaluation, the trained model of a checkpoint or of the folder of a run that holds one.

    Raises:
        UserError: no checkpoint, a damaged one, or one without the names of the classes.
    """
    path = path / CHECKPOINT if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{printable(path)}: no such checkpoint")
    state = load_checkpoint(path)
    facts = _facts(path, state)
    config = checkpoint.settings(path, state)
    try:
        task = build_task(config, facts, device, 1, None)
        checkpoint.check_module(task.module, state.get("module"))
        task.module.load_state_dict(state["module"])
    except (checkpoint.Damaged, KeyError, TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{printable(path)}: damaged checkpoint, its model cannot be built ({text})") from None
    task.module.eval()
    return config, facts, task


def _facts(path: Path, state: dict[str, Any]) -> DataFacts:
    if "class_names" not in state:
        raise UserError(
            f"{printable(path)}: holds no names of classes, since an older fastmix wrote it; fastmix train --resume "
            "on a run that is not finished adds them"
        )
    names, size = state["class_names"], state.get("image_size")
    statistics = [state.get("mean"), state.get("std")]
    right = (
        isinstance(names, list)
        and len(names) > 1
        and all(isinstance(name, str) for name in names)
        and isinstance(size, int)
        and size > 0
        and all(isinstance(values, (list, tuple)) and len(values) in (1, 3) for values in statistics)
        and all(isinstance(value, float) for values in statistics for value in values)
        and all(value > 0 for value in statistics[1])
        and len(statistics[0]) == len(statistics[1])
    )
    if not right:
        raise UserError(f"{printable(path)}: damaged checkpoint, what it says of its data is wrong")
    return DataFacts(names, size, *map(tuple, statistics))
