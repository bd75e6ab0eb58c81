"""What is built, from which toolkit, and that nothing of it can stop an installation."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

import cga_lightning

ROOT = Path(__file__).parents[1]
LIBRARIES = sorted(Path(cga_lightning.__file__).parent.glob("_*.so"))
AUDIT = "import sys, torch_abi_audit.cli; sys.exit(torch_abi_audit.cli.main())"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py, which builds nothing; on a machine whose only toolkits are those that a test makes."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CGA_LIGHTNING_BUILD_CUDA", "0")  # not while it is loaded
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CGA_LIGHTNING_BUILD_CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def toolkit(folder: Path, nvcc: str, *libraries: str) -> Path:
    """A toolkit whose nvcc is a script, with empty libraries."""
    for path in ("bin", "lib"):
        (folder / path).mkdir(parents=True)
    (folder / "bin/nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
    (folder / "bin/nvcc").chmod(0o755)
    for name in libraries:
        (folder / "lib" / name).touch()
    return folder


def use(build: ModuleType, monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setattr(build, "toolkits", lambda: list(folders))


OLD = 'echo "Cuda compilation tools, release 12.8, V12.8.93"'
NEW = 'echo "Cuda compilation tools, release 13.0, V13.0.88"'
BROKEN = f'[ "$1" = --version ] && {NEW} && exit; echo "cicc: not found" >&2; exit 1'
BAD = {
    "12.8": (OLD, "is for CUDA 12.8, torch for 13.0"),
    "crash": ("kill -SEGV $$", "is for CUDA unknown, torch for 13.0"),
    "broken": (BROKEN, "nvcc cannot compile: cicc: not found"),
    "alone": (NEW, "has no libcudart.so"),
}


def test_every_toolkit_that_does_not_fit_is_told(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(build, monkeypatch, *(toolkit(tmp_path / name, nvcc) for name, (nvcc, _) in BAD.items()))
    _, reasons = build.libraries()
    (reason,) = reasons.values()
    assert reason == "; ".join(f"{tmp_path / name}: {why}" for name, (_, why) in BAD.items())


def test_a_file_that_is_no_program_is_told(build: ModuleType, tmp_path: Path) -> None:
    folder = toolkit(tmp_path / "text", NEW)
    (folder / "bin/nvcc").write_text("text")
    assert str(build.misfit(folder, "13.0")).startswith("nvcc does not run: ")


def test_the_first_toolkit_that_fits_is_taken(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = [toolkit(tmp_path / name, nvcc) for name, (nvcc, _) in BAD.items()]
    good, other = (toolkit(tmp_path / name, NEW, "libcudart.so.13") for name in ("good", "other"))
    use(build, monkeypatch, *bad, good, other)
    assert build.cuda_toolkit() == good
    (folder,) = build.for_the_linker(good)  # which looks for a name without a number
    assert (Path(folder) / "libcudart.so").resolve() == good / "lib/libcudart.so.13"


@pytest.mark.parametrize("place", ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "pip", "PATH"])
def test_toolkits_are_found(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    folder = toolkit(tmp_path / "nvidia/cu13", f'echo "#$ TOP={tmp_path}/nvidia/cu13/bin/.." >&2')
    if place == "pip":
        found = importlib.util.spec_from_loader("nvidia", None, is_package=True)
        found.submodule_search_locations = [str(tmp_path / "nvidia")]
        monkeypatch.setattr(build, "find_spec", lambda name: found)
    else:
        monkeypatch.setattr(build, "find_spec", lambda name: None)
        monkeypatch.setenv(place, str(folder / "bin" if place == "PATH" else folder))
    assert folder in build.toolkits()


@needs_nvcc
def test_the_toolkit_of_this_machine_fits(build: ModuleType) -> None:
    (folder,) = build.toolkit_on_path()
    assert build.misfit(Path(folder), torch.version.cuda) is None


@needs_nvcc
def test_old_and_later_gpus_are_served(build: ModuleType) -> None:
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, that one is built for")
    build.cuda_library()
    flags = build.cpp_extension._get_cuda_arch_flags()
    assert any("sm_75" in flag for flag in flags) and any("code=compute_" in flag for flag in flags)


def test_without_torch_for_cuda_or_by_request_the_cpu_is_served(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    extensions, reasons = build.libraries()
    assert [extension.name for extension in extensions] == ["cga_lightning._C"]
    assert reasons == {"cga_lightning._CUDA": "this build of torch is without CUDA"}
    monkeypatch.setenv("CGA_LIGHTNING_BUILD_CUDA", "0")
    assert "CGA_LIGHTNING_BUILD_CUDA=0" in build.libraries()[1]["cga_lightning._CUDA"]


@pytest.mark.skipif(not LIBRARIES, reason="nothing is compiled")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_keep_to_the_stable_abis(library: Path) -> None:
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit is not installed")
    command = [sys.executable, "-c", AUDIT, str(library), "--check", "both", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Torch ABI:   STABLE" in done.stdout and "Min torch:   2.10.0" in done.stdout


@pytest.mark.skipif(not LIBRARIES, reason="nothing is compiled")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_call_torch_and_python_by_c_alone(library: Path) -> None:
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(symbol.startswith(("aoti_torch_", "torch_")) for symbol in symbols)
    mangled = [symbol for symbol in symbols if symbol.startswith("_Z") and ("3c10" in symbol or "2at" in symbol)]
    assert not mangled and not [symbol for symbol in symbols if symbol.startswith(("Py", "_Py"))]
