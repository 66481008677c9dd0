"""Skips, each with its reason, what this machine or this process cannot run."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skips = {}
    if not torch.cuda.is_available():
        skips["gpu"] = pytest.mark.skip(reason="no CUDA device")
    if os.environ.get("TRITON_INTERPRET") != "1":
        skips["interp"] = pytest.mark.skip(reason="needs TRITON_INTERPRET=1 in the environment")
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name):  # its keywords also hold the names of the folders it lies in
                item.add_marker(skip)


@pytest.fixture
def one_thread():
    """Small networks run faster on one thread, and with the same sums on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
