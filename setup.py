"""Build script of the compiled library; everything else is in pyproject.toml.

The library is optional. Without torch or a C++ compiler at build time the package installs in plain Python,
and the reason is kept beside it for `python -m cga_lightning info`. The isolated environment in which pip
builds by default has no torch: install torch first, then the package with `--no-build-isolation`.
"""

import os
import subprocess
import sys
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension, CppExtension, cpp_extension = build_ext, None, None

ROOT = Path(__file__).parent
NO_TORCH = "torch was not there when the package was built: install torch, then this package, --no-build-isolation"


def cpu_library() -> Extension:
    """Describe the kernels for the CPU, on the stable ABIs of torch 2.10 and of Python 3.10."""
    sources = [
        str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*"))
    ]
    options = {
        "name": "cga_lightning._C",
        "sources": [path for path in sources if path.endswith(".cpp")],
        "extra_compile_args": ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wno-psabi", "-g0"],
        "define_macros": [("TORCH_TARGET_VERSION", "0x020a000000000000")],
        "py_limited_api": True,
    }
    return CppExtension(**options) if CppExtension else Extension(**options)


def cuda_toolkit() -> Path:
    """Return the first CUDA toolkit that fits torch; a RuntimeError says what is wrong with those that were found."""
    if cpp_extension is None:
        raise RuntimeError(NO_TORCH)
    release = cpp_extension.torch.version.cuda
    if os.environ.get("CGA_LIGHTNING_BUILD_CUDA") == "0":
        raise RuntimeError("CGA_LIGHTNING_BUILD_CUDA=0 was set when the package was built")
    if release is None:
        raise RuntimeError("this build of torch is without CUDA")
    refused = []
    for folder in toolkits():
        problem = misfit(folder, release)
        if problem is None:
            return folder
        refused.append(f"{folder}: {problem}")
    raise RuntimeError("; ".join(refused) or "no CUDA toolkit with nvcc was found: set CUDA_HOME to its folder")


def toolkits() -> list[Path]:
    """Return the folders with an nvcc: named, of the system, of conda, of pip's packages, of PATH."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    system = ["/usr/local/cuda", *sorted(glob("/usr/local/cuda-*"))[::-1]]
    conda = [os.environ.get("CONDA_PREFIX", sys.prefix)]
    nvidia = find_spec("nvidia")
    pip = [folder for path in (nvidia.submodule_search_locations if nvidia else ()) for folder in glob(f"{path}/cu*")]
    folders = [Path(folder) for folder in (*named, *system, *conda, *pip, *toolkit_on_path())]
    found: dict[Path, Path] = {}
    for folder in folders:
        if (folder / "bin" / "nvcc").exists():
            found.setdefault((folder / "bin" / "nvcc").resolve(), folder)
    return list(found.values())


def toolkit_on_path() -> list[str]:
    """Return the folder that the nvcc on PATH works with, which may be a wrapper outside of it."""
    try:
        shown = subprocess.run(["nvcc", "--dryrun", "none.cu"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.SubprocessError):
        return []
    return [os.path.normpath(line.partition("=")[2]) for line in shown.splitlines() if line.startswith("#$ TOP=")]


def misfit(folder: Path, release: str) -> str | None:
    """Return why a toolkit cannot build for torch's release of CUDA, or None. A kernel is compiled to see."""
    nvcc = folder / "bin" / "nvcc"
    try:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
        found = version.partition("release ")[2].partition(",")[0]
        if found.split(".")[0] != release.split(".")[0]:
            return f"is for CUDA {found or 'unknown'}, torch for {release}"
        with TemporaryDirectory() as scratch:
            source = Path(scratch) / "probe.cu"
            source.write_text("__global__ void probe() {}\n")
            command = [nvcc, "-std=c++20", "-c", source, "-o", source.with_suffix(".o")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvcc does not run: {error}"
    if done.returncode:
        return f"nvcc cannot compile: {' '.join((done.stderr or done.stdout).split())[-300:]}"
    return None if runtimes(folder) else "has no libcudart.so"


def runtimes(folder: Path) -> list[str]:
    """Return the CUDA runtimes of a toolkit, that for the linker first if there is one."""
    return sorted(path for lib in ("lib64", "lib", "targets/*/lib") for path in glob(f"{folder}/{lib}/libcudart.so*"))


def for_the_linker(folder: Path) -> list[str]:
    """Return a folder with libcudart.so where the toolkit, as that of pip, has it with a number only."""
    library = runtimes(folder)[0]
    if library.endswith(".so"):
        return [str(Path(library).parent)]
    link = ROOT / "build" / "cuda" / "libcudart.so"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return [str(link.parent)]


def cuda_library() -> Extension:
    """Describe the kernels for CUDA, on the same stable ABIs."""
    toolkit = cuda_toolkit()
    cpp_extension.CUDA_HOME = str(toolkit)
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and not cpp_extension.torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = "7.5;8.0+PTX"  # what comes later compiles it once, at its first use
    defines = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return cpp_extension.CUDAExtension(
        name="cga_lightning._CUDA",
        sources=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/cuda/*.cu"))],
        extra_compile_args={"nvcc": ["-O3", "-std=c++20", *defines], "cxx": ["-O3", "-std=c++20", *defines]},
        library_dirs=for_the_linker(toolkit),
        py_limited_api=True,
    )


def libraries() -> tuple[list[Extension], dict[str, str]]:
    """Return what can be built, and why the rest cannot."""
    try:
        return [cpu_library(), cuda_library()], {}
    except RuntimeError as error:
        return [cpu_library()], {"cga_lightning._CUDA": str(error)}


class OptionalBuild(BuildExtension):
    """Build what can be built, and keep the reason where something cannot."""

    def run(self) -> None:
        """Build all libraries and write a report for each that is missing."""
        self.reasons = dict(UNAVAILABLE)
        super().run()
        for name in [*(extension.name for extension in self.extensions), *UNAVAILABLE]:
            for folder in self._folders():
                self._report(name, folder)

    def build_extensions(self) -> None:
        """Build each library on its own: a compiler that CUDA does not take still serves the CPU."""
        every = self.extensions
        for extension in every:
            self.extensions = [extension]
            try:
                if CppExtension is None:
                    raise ImportError(NO_TORCH)
                super().build_extensions()
            except Exception as error:  # of the set-up of the compiler
                self._give_up(extension, error)
        self.extensions = every

    def build_extension(self, extension: Extension) -> None:
        """Build one library."""
        try:
            super().build_extension(extension)
        except Exception as error:
            self._give_up(extension, error)

    def _give_up(self, extension: Extension, error: Exception) -> None:
        extension.optional = True  # do not look for its file afterwards
        self.reasons[extension.name] = f"{type(error).__name__}: {error} (pip install -v shows the whole log)"

    def _folders(self) -> list[Path]:
        installed = Path(self.build_lib) / "cga_lightning"
        return [installed, ROOT / "cga_lightning"] if self.inplace else [installed]

    def _report(self, full_name: str, folder: Path) -> None:
        name = full_name.rpartition(".")[2]
        report = folder / f"{name}.missing.txt"
        if full_name not in self.reasons:
            report.unlink(missing_ok=True)
            return
        for stale in folder.glob(f"{name}.*.so"):
            stale.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        report.write_text(self.reasons[full_name] + "\n")


class PackageWithKernels(build_py):
    """Ship the sources of the CUDA kernels too: CuPy compiles them where nothing is compiled."""

    def run(self) -> None:
        """Copy the package, and the kernels into it. An editable install reads them in the checkout."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        folder = Path(self.build_lib) / "cga_lightning" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(ROOT.glob("csrc/kernels/*.cuh")):
            self.copy_file(str(path), str(folder / path.name))


EXTENSIONS, UNAVAILABLE = libraries()
setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": OptionalBuild, "build_py": PackageWithKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
