"""NVRTC, which torch brings along, and what its output tells: no driver and no toolkit needed."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from cga_lightning.ops import _nvrtc


class Usage(NamedTuple):
    """Resources of a kernel, by the assembler."""

    registers: int
    spill_bytes: int


class Compiled(NamedTuple):
    cubin: bytes
    log: str


@cache
def compile_unit(unit: int, architecture: str) -> Compiled:
    """Compile the kernels of a unit to machine code; an error is an AssertionError with the log."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed")
    error, program = nvrtc.nvrtcCreateProgram(_nvrtc.source(unit).encode(), b"kernels.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    options = [f"-arch={architecture}", *_nvrtc.OPTIONS, "--ptxas-options=-v"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    cubin = b" " * nvrtc.nvrtcGetCUBINSize(program)[1]
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return Compiled(cubin, log.decode())


def usage(log: str) -> dict[str, Usage]:
    """Return the resources of every kernel in the assembler's report."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        own = part.partition("Function properties for _Z")[0]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", own)
        registers = re.search(r"Used (\d+) registers", part)
        assert spills and registers, part
        found[name] = Usage(int(registers[1]), int(spills[1]) + int(spills[2]))
    return found


def machine_code(cubin: bytes, folder: Path) -> dict[str, list[str]]:
    """Return the instructions of every kernel. Skips without cuobjdump and nvdisasm."""
    program = _cuobjdump()
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    listing = subprocess.run([program, "-sass", path], env=environment, capture_output=True, text=True, check=True)
    kernels: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            code = kernels.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([^;]+?) *;", line):
            code.append(match[1])
    return kernels


def _cuobjdump() -> Path:
    if found := shutil.which("cuobjdump"):
        return Path(found)
    from importlib.util import find_spec

    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "cu13" / "bin" / "cuobjdump"
        if program.exists():
            return program
    pytest.skip("cuobjdump is not installed: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
