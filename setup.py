"""Build script of the compiled library; everything else is in pyproject.toml.

The library is optional. Without torch or a C++ compiler at build time the package installs in plain Python,
and the reason is kept beside it for `python -m cga_lightning info`. The isolated environment in which pip
builds by default has no torch: install torch first, then the package with `--no-build-isolation`.
"""

import os
import subprocess
from glob import glob
from pathlib import Path

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
    """Return the CUDA toolkit to build with; a RuntimeError says why there is none."""
    if cpp_extension is None:
        raise RuntimeError(NO_TORCH)
    import torch

    if torch.version.cuda is None:
        raise RuntimeError("this build of torch is without CUDA")
    # Not through `nvcc` on PATH: a wrapper outside its toolkit leads to the wrong folder.
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [Path(folder) for folder in (*named, "/usr/local/cuda", *sorted(glob("/usr/local/cuda-*"))[::-1])]
    for folder in folders:
        if not (folder / "bin" / "nvcc").exists():
            continue
        found = subprocess.run([folder / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
        release = found.stdout.partition("release ")[2].partition(",")[0]
        if release.split(".")[0] == torch.version.cuda.split(".")[0]:
            return folder
        raise RuntimeError(f"torch is for CUDA {torch.version.cuda}, the toolkit at {folder} is {release}")
    raise RuntimeError("no CUDA toolkit with nvcc was found: set CUDA_HOME to its folder")


def cuda_library() -> Extension:
    """Describe the kernels for CUDA, on the same stable ABIs."""
    cpp_extension.CUDA_HOME = str(cuda_toolkit())
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and not cpp_extension.torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0+PTX"  # every GPU from there on; a release names them all
    defines = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return cpp_extension.CUDAExtension(
        name="cga_lightning._CUDA",
        sources=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/cuda/*.cu"))],
        extra_compile_args={"nvcc": ["-O3", "-std=c++20", *defines], "cxx": ["-O3", "-std=c++20", *defines]},
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
