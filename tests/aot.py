"""Ahead-of-time compilation of recorded Triton launches: no GPU is needed, Triton ships ptxas and nvdisasm."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TYPES = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
_DIVISIBLE = [["tt.divisibility", 16]]
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Binary(NamedTuple):
    """A compiled kernel: its machine code as text, and the shared memory it takes in bytes."""

    sass: str
    shared: int

    def count(self, pattern: str) -> int:
        """Instructions whose name matches."""
        return len(re.findall(rf"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?({pattern})\b", self.sass, re.MULTILINE))


def _describe(value):
    """How the launcher would specialise an argument: its type, its attributes, or its value as a constant."""
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr", None, value
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype], _DIVISIBLE, None
    if isinstance(value, float):
        return "fp32", None, None
    return ("i64" if value > 2**31 - 1 else "i32"), (_DIVISIBLE if value % 16 == 0 else None), None


def _source(launch) -> tuple[ASTSource, dict]:
    kernel, args, meta = launch
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if position < len(args):
            signature[name], attribute, constant = _describe(args[position])
            if attribute:
                attributes[(position,)] = attribute
        else:
            signature[name], constant = "constexpr", meta[name]
        if signature[name] == "constexpr":
            constants[(position,)] = constant
    options = {name: meta[name] for name in _OPTIONS if name in meta}
    return ASTSource(kernel, signature, constants, attributes), options


def compile_launch(launch, capability: int) -> Binary:
    """Compile one recorded launch for a compute capability given as `10 * major + minor`."""
    source, options = _source(launch)
    return _compile(source.hash() + repr(options), source, options, capability)


_cache: dict[tuple[str, int], Binary] = {}


def _compile(key: str, source: ASTSource, options: dict, capability: int) -> Binary:
    if (key, capability) not in _cache:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        _cache[key, capability] = Binary(_disassemble(compiled.asm["cubin"]), compiled.metadata.shared)
    return _cache[key, capability]


@functools.cache
def _nvdisasm() -> str:
    return str(
        Path(triton.backends.nvidia.__file__).parent / "bin" / ("nvdisasm" + (".exe" if os.name == "nt" else ""))
    )


def _disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_nvdisasm(), "-c", file.name], check=True, capture_output=True, text=True).stdout
