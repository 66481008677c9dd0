"""Ahead-of-time compilation of Triton launches and CUDA sources, and what their machine code says; no GPU is needed.

Triton ships the assemblers and disassemblers; CUDA sources need nvcc.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[1]
CAPABILITIES = (80, 90, 100)  # those that are compiled for, as 10 * major + minor
CUDA_SOURCES = sorted([*ROOT.glob("csrc/*.cu"), *ROOT.glob("kernels/*/*.cu")])
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

_TRITON_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
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
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*)")
_LABEL = re.compile(r"\.L\w*(?=:)")


class Binary(NamedTuple):
    """A compiled kernel: machine code as text, registers a thread, bytes of shared memory and of stack."""

    sass: str
    registers: int
    shared: int
    stack: int

    def count(self, pattern: str) -> int:
        """Instructions whose name matches."""
        return sum(bool(re.fullmatch(pattern, name)) for name, _ in _code(self.sass)[0])

    @property
    def local_accesses(self) -> int:
        """Accesses to local memory: spilled registers, or arrays that are no registers."""
        return self.count(r"(?:LDL|STL)\S*")

    @property
    def wide_loads(self) -> int:
        return self.count(r"LDG(?:STS)?\S*\.128\S*")

    @property
    def wide_stores(self) -> int:
        return self.count(r"STG\S*\.128\S*")

    @property
    def tensor_core(self) -> str:
        """Kind and number of the matrix instructions, such as "HGMMA x 12"."""
        names = [match[0] for name, _ in _code(self.sass)[0] if (match := re.match(r"[A-Z]*MMA\b", name))]
        return f"{names[0]} x {len(names)}" if names else ""

    def shortest_loop(self, pattern: str, least: int) -> list[str]:
        """Instructions of the shortest loop that holds `least` matching ones; none if there is no such loop."""
        code, labels = _code(self.sass)
        loops = []
        for last, (name, operands) in enumerate(code):
            target = re.search(r"\.L\w+", operands) if name.startswith("BRA") else None
            if target and labels[target[0]] < last:
                loop = [name for name, _ in code[labels[target[0]] : last + 1]]
                if sum(bool(re.fullmatch(pattern, name)) for name in loop) >= least:
                    loops.append(loop)
        return min(loops, key=len, default=[])


@functools.lru_cache(maxsize=4)
def _code(sass: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Instructions as (name, operands), and the number of the instruction that each label stands before."""
    code, labels = [], {}
    for line in sass.splitlines():
        if found := _INSTRUCTION.match(line):
            code.append(found.groups())
        elif found := _LABEL.match(line):
            labels[found[0]] = len(code)
    return code, labels


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


_compiled: dict[tuple[str, int], Binary] = {}


def compile_launch(launch, capability: int) -> Binary:
    """Compile one recorded launch for a compute capability given as `10 * major + minor`; kept for the process."""
    source, options = _source(launch)
    key = source.hash() + repr(options), capability
    if key not in _compiled:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = _run(_TRITON_TOOLS / "cuobjdump", "-res-usage", file.name)
            (sass,) = _disassembled(file.name).values()
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
        _compiled[key] = Binary(sass, int(registers), compiled.metadata.shared, int(stack))
    return _compiled[key]


class Spilled(NamedTuple):
    """A kernel of a CUDA source, and the bytes that ptxas says it spills."""

    binary: Binary
    spills: int


_PTXAS = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:, used \d+ barriers)?(?:, (\d+) bytes smem)?",
    re.DOTALL,
)


@functools.cache
def compile_source(source: Path, capability: int) -> dict[str, Spilled]:
    """Compile a CUDA source; its kernels by their names in C++, with their static shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernel.cubin"
        flags = ["-cubin", f"-arch=sm_{capability}", "-std=c++17", "-O3", "-Xptxas=-v", "-DFASTMIX_HAVE_CUDA=1"]
        command = [NVCC, *flags, f"-I{ROOT}", f"-I{ROOT / 'csrc'}", "-o", cubin, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} for sm_{capability}:\n{done.stderr}")
        kernels = {symbol: [int(n or 0) for n in numbers] for symbol, *numbers in _PTXAS.findall(done.stderr)}
        sass = _disassembled(cubin) if kernels else {}
    names = _run("c++filt", *kernels).splitlines() if kernels else []
    return {
        name: Spilled(Binary(sass[symbol], registers, shared, stack), stores + loads)
        for name, (symbol, (stack, stores, loads, registers, shared)) in zip(names, kernels.items(), strict=True)
    }


def _disassembled(cubin: str) -> dict[str, str]:
    """Machine code of the kernels of a cubin."""
    sections = re.split(r"^\.text\.(\w+):$", _run(_TRITON_TOOLS / "nvdisasm", "-c", cubin), flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def _run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def versions() -> dict[str, str]:
    """Versions of the tools that the machine code depends on; a tool that is missing is left out."""
    tools = {"nvcc": NVCC, "Triton's ptxas": _TRITON_TOOLS / "ptxas"}
    tools["Triton's ptxas for sm_100"] = _TRITON_TOOLS / "ptxas-blackwell"
    found = {"Triton": triton.__version__}
    for name, path in tools.items():
        if path and Path(path).exists():
            found[name] = re.search(r"V(\d[\d.]*)", _run(path, "--version"))[1]
    return found
