"""What users install: sdist, wheel built from it, and what the native module exports and needs."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import compiled_once
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = shutil.ignore_patterns(
    *(
        ".git",
        ".venv",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        "*.so",
        ".*_cache",
        ".hypothesis",
        "runs",
        "demo",
        "api",
    )
)
POISON = "raise ImportError('the build must not import this')"
USE_INSTALLED = """
import sys
# An editable install answers for modules that this copy lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import fastmix
assert not any(name == "triton" or name.startswith("triton.") for name in sys.modules), "triton imported"
assert "fastmix._C" not in sys.modules, "native module loaded by the import"
import torch
x, index, lam = torch.rand(3, 2, 5, 4), torch.tensor([1, 2, 0]), torch.tensor([0.25, 1.0, 0.5])
w = lam.view(3, 1, 1, 1)
wanted = w * x + (1 - w) * x[index]
print(fastmix.__file__)
"""


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> str:
    done = run([sys.executable, "-c", code, *arguments], cwd=cwd, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """Calls the build backend as pip does, with torch, triton and numpy made unimportable."""
    poisoned = out / "poisoned"
    poisoned.mkdir(parents=True, exist_ok=True)
    for package in ("torch", "triton", "numpy"):
        (poisoned / f"{package}.py").write_text(POISON)
    code = f"import setuptools.build_meta, sys; print('\\n' + setuptools.build_meta.build_{kind}(sys.argv[1]))"
    settings = {"FASTMIX_NO_EXT": "", "FASTMIX_CUDA": "0", "PYTHONPATH": str(poisoned)} | environment
    return out / python(code, str(out), cwd=source, **settings).splitlines()[-1]


def install(wheel: Path, site: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "fastmix", ignore=NOT_SHIPPED))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMake configures, builds and links all of it; objects of the same commands and sources come from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    sources = [*files(unpacked, "csrc", "kernels"), "CMakeLists.txt", "setup.py"]
    assert filecmp.cmpfiles(ROOT, unpacked, sources, shallow=False)[1:] == ([], [])
    compiled_once.offer(ROOT, ninja, out / "objects.json")
    launcher = f"{sys.executable};{compiled_once.__file__}"
    return build(
        "wheel",
        unpacked,
        out,
        CMAKE_CXX_COMPILER_LAUNCHER=launcher,
        FASTMIX_TEST_OBJECTS=str(out / "objects.json"),
    )


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def native_module(site: Path) -> Path:
    (found,) = (site / "fastmix").glob("_C.*so")
    return found


@pytest.fixture(scope="module")
def pure_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = shutil.copytree(unpacked, tmp_path_factory.mktemp("pure") / "source", ignore=NOT_SHIPPED)
    return build("wheel", Path(source), tmp_path_factory.mktemp("pure-wheel"), FASTMIX_NO_EXT="1")


def files(folder: Path, *roots: str) -> set[str]:
    return {str(p.relative_to(folder)) for root in roots for p in (folder / root).rglob("*") if p.is_file()}


def test_sdist_holds_every_source(checkout: Path, unpacked: Path) -> None:
    folders = ("fastmix", "kernels", "csrc", "tests", "bench", "examples", "docs")
    wanted = files(checkout, *folders) | {
        *("setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "Makefile"),
        *("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"),
    }
    assert wanted - files(unpacked, ".") == set()


def test_sdist_holds_no_build_product(unpacked: Path) -> None:
    assert [name for name in files(unpacked, ".") if name.endswith((".so", ".pyc", ".o"))] == []


def test_wheel_holds_every_module_and_nothing_else(unpacked: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    python_files = {name for name in files(unpacked, "fastmix") if name.endswith((".py", "py.typed"))}
    kernel_files = {f"fastmix/{name}" for name in files(unpacked, "kernels") if name.endswith(".py")}
    native = {name for name in names if re.fullmatch(r"fastmix/_C\..*so", name)}
    assert len(native) == 1
    assert names == python_files | kernel_files | native


def test_module_exports_its_entry_and_knows_no_torch(native_module: Path) -> None:
    exported = run(["nm", "-D", "--defined-only", str(native_module)], check=True).stdout
    assert [line.split()[-1] for line in exported.splitlines()] == ["PyInit__C"]
    undefined = run(["nm", "-D", "-C", "--undefined-only", str(native_module)], check=True).stdout
    foreign = r"\b(c10|at|torch|caffe2)::|\bGOMP_|\bomp_|\bcuda|fastmix::"
    assert [line for line in undefined.splitlines() if re.search(foreign, line)] == []


def test_module_needs_only_the_system_libraries(native_module: Path) -> None:
    dynamic = run(["readelf", "-d", str(native_module)], check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", dynamic))
    assert needed <= {
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libpthread",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }


def test_vector_instructions_stay_in_their_builds(native_module: Path) -> None:
    """A VEX instruction outside fastmix::avx2 and fastmix::avx512 would crash a baseline machine.

    Clones that GCC makes for callers in one file (.constprop, .isra, .part) are that file's own and not looked at.
    """
    code = run(["objdump", "-d", "--no-show-raw-insn", str(native_module)], check=True).stdout
    if "x86-64" not in code.splitlines()[1]:
        pytest.skip("the instruction sets are those of x86-64")
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", code, flags=re.MULTILINE)[1:]
    vector = {n for n, body in zip(functions[::2], functions[1::2], strict=True) if re.search(r"\tv[a-z]", body)}
    assert any("4avx2" in name for name in vector)
    assert any("6avx512" in name for name in vector)
    own = re.compile(r"4avx2|6avx512|\.(constprop|isra|part)\.")
    assert [name for name in vector if not own.search(name)] == []


def test_objects_are_linked_in_the_order_of_their_instruction_sets(unpacked: Path, wheel: Path) -> None:
    (ninja,) = unpacked.glob("build/cmake-*/build.ninja")
    (line,) = re.findall(r"^build _C\.so:.*$", ninja.read_text(), flags=re.MULTILINE)
    groups = list(dict.fromkeys(re.findall(r"CMakeFiles/(\w+)\.dir/", line)))
    order = ["host", "kernels_baseline", "kernels_avx2", "kernels_avx512"]
    assert groups == order[: len(groups)]


def test_installed_wheel_computes(site: Path, tmp_path: Path) -> None:
    code = USE_INSTALLED + "assert torch.equal(fastmix.ops.blend(x, index, lam, backend='cpu'), wanted)"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(site)).startswith(str(site))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lower_instruction_sets_compute_the_same(site: Path, tmp_path: Path, isa: str) -> None:
    code = USE_INSTALLED + "assert torch.equal(fastmix.ops.blend(x, index, lam, backend='cpu'), wanted)"
    python(code, cwd=tmp_path, PYTHONPATH=str(site), FASTMIX_CPU=isa)


def test_build_info_tells_how_it_was_built(site: Path, tmp_path: Path) -> None:
    code = "import json; from fastmix import _C, __version__; print(json.dumps([__version__, _C.build_info()]))"
    version, info = json.loads(python(code, cwd=tmp_path, PYTHONPATH=str(site)))
    assert info["version"] == version
    assert info["nvcc"] == info["cuda_archs"] == ""
    assert "-O3" in info["flags"] and "-ffp-contract=off" in info["flags"] and "march=native" not in info["flags"]
    assert info["isa_levels"].split()[0] == "baseline"


def test_pure_python_install(pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    site = install(pure_wheel, tmp_path / "site")
    code = (
        USE_INSTALLED
        + """
assert torch.equal(fastmix.ops.blend(x, index, lam), wanted)
try:
    fastmix.ops.blend(x, index, lam, backend="cpu")
except ValueError as error:
    assert "compiled module" in str(error), error
else:
    raise AssertionError("the cpu backend ran without the native module")
"""
    )
    assert python(code, cwd=tmp_path, PYTHONPATH=str(site)).startswith(str(site))


def test_no_compiler_is_a_warning_unless_cuda_is_demanded(checkout: Path) -> None:
    command = [sys.executable, "setup.py", "--version"]
    environment = os.environ | {"CXX": "no-such-compiler", "FASTMIX_NO_EXT": "", "FASTMIX_CUDA": "auto"}
    done = run(command, cwd=checkout, env=environment)
    assert done.returncode == 0
    assert "WARNING: no C++ compiler found (no-such-compiler)" in done.stderr
    refused = run(command, cwd=checkout, env=environment | {"FASTMIX_CUDA": "1"})
    assert refused.returncode != 0
    assert "FASTMIX_CUDA=1" in refused.stderr


def test_setup_translates_the_architecture_list() -> None:
    code = (
        "import setuptools; setuptools.setup = lambda **kwargs: None\n"
        "import setup; print(setup.cuda_architectures(), setup.parallel_jobs())"
    )
    clear = {"FASTMIX_CUDA_ARCHS": "", "FASTMIX_NO_EXT": "", "CXX": sys.executable, "MAX_JOBS": "3"}
    translated = python(code, cwd=ROOT, TORCH_CUDA_ARCH_LIST="8.0;9.0a 12.0+PTX", **clear)
    assert translated == "80-real;90a-real;120 3"
    given = python(code, cwd=ROOT, TORCH_CUDA_ARCH_LIST="8.0", **clear | {"FASTMIX_CUDA_ARCHS": "75-real, 90"})
    assert given == "75-real;90 3"


def configured(tmp_path: Path, capabilities: str | None, **definitions: str) -> tuple[str, str]:
    """What CMake says of the CUDA kernels, and the architectures, on a machine whose GPUs have these capabilities."""
    import pybind11

    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{capabilities or ''}'\nexit {int(capabilities is None)}\n")
    smi.chmod(0o755)
    path = os.pathsep.join((str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]))
    command = [shutil.which("cmake", path=path), "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    values = {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()} | definitions
    done = run([*command, *(f"-D{k}={v}" for k, v in values.items())], env=os.environ | {"PATH": path}, check=True)
    header = (tmp_path / "build" / "generated" / "build_info.h").read_text()
    (said,) = re.findall(r"-- fastmix: (.*)", done.stdout)
    return said, re.search(r'CUDA_ARCHS_STR "(.*)"', header)[1]


needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has a GPU")
def test_without_a_gpu_no_cuda_kernel_is_built_and_the_build_says_how(tmp_path: Path) -> None:
    said, archs = configured(tmp_path, None)
    assert archs == "" and "no NVIDIA GPU here" in said and "FASTMIX_CUDA=1" in said


@needs_nvcc
@pytest.mark.parametrize(
    ("capabilities", "definitions", "archs"),
    [
        (r"9.0\n9.0\n", {}, "90-real 90-virtual"),
        (r"9.0\n8.6\n", {}, "86-real 90-real 90-virtual"),
        (r"9.0\n", {"FASTMIX_CUDA_ARCHS": "80-real"}, "80-real"),
        (None, {"FASTMIX_CUDA_ARCHS": "80-real"}, "80-real"),
    ],
)
def test_cuda_kernels_are_built_for_the_gpus_present_or_asked_for(tmp_path, capabilities, definitions, archs) -> None:
    said, found = configured(tmp_path, capabilities, **definitions)
    assert found == archs and said == f"building CUDA kernels for {archs}"


@needs_nvcc
def test_cuda_kernels_for_all_gpus_are_built_when_asked_for(tmp_path: Path) -> None:
    found = configured(tmp_path, r"9.0\n", FASTMIX_CUDA="1")[1].split()
    assert len(found) >= 4 and found[0] == "75-real" and found[-1].endswith("-virtual")
