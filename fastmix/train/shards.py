"""Whether FSDP2 has a module or its parameters in shards; neither question imports it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor, nn


def shards_modules(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module or a part of it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FSDPModule) for part in module.modules())


def in_shards(parameters: Iterable[Tensor]) -> bool:
    """Whether any parameter is a shard at this moment, so that no gradient can be taken with respect to it."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and any(isinstance(each, distributed.DTensor) for each in parameters)
