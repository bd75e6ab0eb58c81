"""Build script of the compiled library; everything else is in pyproject.toml.

The library is optional. Without torch or a C++ compiler at build time the package installs in plain Python,
and the reason is kept beside it for ``python -m cga_lightning info``. The isolated environment in which pip
builds by default has no torch: install torch first, then the package with ``--no-build-isolation``.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension, CppExtension = build_ext, None

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


class OptionalBuild(BuildExtension):
    """Build what can be built, and keep the reason where something cannot."""

    def run(self) -> None:
        """Build all libraries and write a report for each that is missing."""
        self.reasons: dict[str, str] = {}
        super().run()
        for extension in self.extensions:
            for folder in self._folders():
                self._report(extension, folder)

    def build_extensions(self) -> None:
        """Build all libraries, or none without torch."""
        try:
            if CppExtension is None:
                raise ImportError(NO_TORCH)
            super().build_extensions()
        except Exception as error:  # of the set-up of the compiler: nothing can be built
            for extension in self.extensions:
                self._give_up(extension, error)

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

    def _report(self, extension: Extension, folder: Path) -> None:
        name = extension.name.rpartition(".")[2]
        report = folder / f"{name}.missing.txt"
        if extension.name not in self.reasons:
            report.unlink(missing_ok=True)
            return
        for stale in folder.glob(f"{name}.*.so"):
            stale.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        report.write_text(self.reasons[extension.name] + "\n")


setup(
    ext_modules=[cpu_library()],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
