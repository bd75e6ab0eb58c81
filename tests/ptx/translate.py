"""PTX, as nvcc emits it, to C++: one call per instruction, whose meaning is in ptx.h.

A register becomes a 64-bit variable that holds bits; the type of an instruction says how it reads them. The name of the
call is that of the instruction, so one that ptx.h does not have is an error of the C++ compiler.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TYPES = {f"{kind}{bits}" for kind in "bsu" for bits in (8, 16, 32, 64)} | {"f16", "bf16", "tf32", "f32", "f64", "pred"}
# Parts of a name that change nothing here: fibers see one memory, in order, and all arithmetic rounds to nearest.
PLAIN = {"rn", "sync", "aligned", "uni", "global", "param", "local", "cg", "cs", "gpu", "acquire", "release", "rna"}
SPECIAL = {
    "%tid.x": "threadIdx.x",
    "%ctaid.x": "blockIdx.x",
    "%ntid.x": "blockDim.x",
    "%nctaid.x": "gridDim.x",
}
# What threads do together, or wait in: a message says where.
TOGETHER = ("bar", "shfl", "vote", "mma")
KEYWORDS = {"and", "or", "xor", "not"}  # of C++
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


class Function(NamedTuple):
    kind: str  # "entry" or "func"
    name: str
    result: str  # name of the parameter that holds it, or ""
    parameters: dict[str, int]  # bytes by name
    body: str


def to_cpp(ptx: str, unit: str) -> str:
    """Return C++ for all functions of a module, and the list of its kernels, `ptx_UNIT`."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    functions = list(_functions(ptx))
    shared = re.findall(r"\.extern \.shared .*? (\w+)\[\];", ptx)
    lines = ['#include "ptx.h"', *(f"static uint8_t* const {name} = nullptr;" for name in shared)]
    lines += [f"{_head(function)};" for function in functions]
    lines += [f"{_head(function)} {{\n{_body(function, unit)}\n}}" for function in functions]
    entries = [_entry(function) for function in functions if function.kind == "entry"]
    return "\n".join([*lines, f"extern const std::vector<simt::Entry> ptx_{unit} = {{", *entries, "};\n"])


def _functions(ptx: str) -> list[Function]:
    head = re.compile(r"\.(entry|func)\s*(?:\(\.param \.\w+ (\w+)\)\s*)?(\w+)\s*\(([^)]*)\)[^;{]*\{")
    found = []
    for match in head.finditer(ptx):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[end], 0)
            end += 1
        kind, result, name, parameters = match.groups(default="")
        found.append(Function(kind, name, result, dict(map(_size, parameters.split(","))), ptx[match.end() : end - 1]))
    return found


def _size(declared: str) -> tuple[str, int]:
    """Name and bytes of `.param .align 8 .b8 name[712]` or `.b64 name`."""
    match = re.search(r"\.\w(\d+)\s+(\w+)(?:\[(\d+)\])?\s*$", declared)
    assert match, declared
    return match[2], BYTES[match[1]] * int(match[3] or 1)


def _head(function: Function) -> str:
    parameters = [f"uint8_t* {name}" for name in (function.result or "nothing", *function.parameters)]
    return f"static void f_{function.name}({', '.join(parameters)})"


def _entry(function: Function) -> str:
    """A kernel takes copies of its parameters, on the stack of the thread."""
    copies = [
        f"alignas(16) uint8_t p{i}[{size}]; std::memcpy(p{i}, arguments[{i}], {size});"
        for i, size in enumerate(function.parameters.values())
    ]
    passed = ", ".join(["nullptr", *(f"p{i}" for i in range(len(copies)))])
    call = f"[](const void* const* arguments) {{ {' '.join(copies)} f_{function.name}({passed}); }}"
    return f'  {{"{function.name}", {call}}},'


def _body(function: Function, unit: str) -> str:
    lines = []
    statements = re.findall(r"\s*([$\w]+:(?!:)|[{}](?=\s)|[^;{}\s][^;{}]*(?:\{[^;]*)?;)", function.body)
    for number, statement in enumerate(statements):
        lines.append(_statement(" ".join(statement.split()).rstrip(";"), f"{unit}:{function.name}:{number}"))
    return "\n".join(lines)


def _statement(text: str, where: str) -> str:
    if text in "{}":
        return text
    if text.endswith(":"):
        return f"{_operand(text[:-1])}:;"
    if text.startswith("."):
        return _declaration(text)
    match = re.match(r"(?:@(!?)(%\w+) )?(\S+) ?(.*)", text)
    assert match, text
    negated, predicate, name, rest = match.groups()
    code = _instruction(name, _split(rest), where)
    return f"if ({negated}{_operand(predicate)}) {{ {code} }}" if predicate else code


def _declaration(text: str) -> str:
    if text.startswith((".param", ".local")):
        name, size = _size(text)
        return f"alignas(16) uint8_t {name}[{size}];"
    match = re.match(r"\.reg \.\w+ %?(\w+)(?:<(\d+)>)?$", text)
    if match is None:
        assert text.startswith(".pragma"), text
        return ""
    names = [f"{match[1]}{i}" for i in range(int(match[2]))] if match[2] else [match[1]]
    return f"uint64_t {', '.join(f'r_{name}' for name in names)};"


def _instruction(name: str, operands: list[str], where: str) -> str:
    parts = name.split(".")
    if parts[0] == "ret":
        return "return;"
    if parts[0] == "bra":
        return f"goto {_operand(operands[0])};"
    if parts[0] == "call":
        return _call(operands)
    words = [part for part in parts if part not in TYPES and part not in PLAIN]
    types = ", ".join(part for part in parts if part in TYPES)
    if words == ["mov"] and "{" in "".join(operands):
        words = ["halves" if "{" in operands[0] else "whole"]
    call = "_".join(words) + ("_" if words[0] in KEYWORDS else "") + (f"<{types}>" if types else "")
    place = f'"{where}", ' if words[0] in TOGETHER else ""
    if words[0] in ("ld", "st"):
        return _memory(words, parts[-1], operands)
    if any("{" in operand for operand in operands):  # whole vectors: by reference
        vectors = [", ".join(map(_operand, _split(operand.strip("{}")))) for operand in operands]
        return f"{call}({place}{', '.join(vectors)});"
    if words[0] in ("bar", "nanosleep", "membar") and parts[-1] != "pred":
        return f"{call}({place}{', '.join(map(_operand, operands))});"
    target, _, also = operands[0].partition("|")
    sources = ([_operand(also)] if also else []) + [_operand(operand) for operand in operands[1:]]
    return f"{_operand(target)} = {call}({place}{', '.join(sources)});"


def _call(operands: list[str]) -> str:
    """`(result), name, (arguments)`, or without a result."""
    result = operands.pop(0).strip("()") if operands[0].startswith("(") else "nullptr"
    return f"f_{operands[0]}({', '.join([result, *_split(operands[1].strip('()'))])});"


def _memory(words: list[str], kind: str, operands: list[str]) -> str:
    load = words[0] == "ld"
    place, values = operands if not load else operands[::-1]
    registers = [_operand(value) for value in _split(values.strip("{}"))]
    base = f"{'in_shared' if 'shared' in words else 'in_memory'}<{kind}>({_operand(place)}, {len(registers)})"
    each = (
        f"{register} = load<{kind}>(a, {i});" if load else f"store<{kind}>(a, {i}, {register});"
        for i, register in enumerate(registers)
    )
    return f"{{ uint8_t* const a = {base}; {' '.join(each)} }}"


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [part.strip() for part in re.findall(r"(?:[^,({\[]|\([^)]*\)|\{[^}]*\}|\[[^\]]*\])+", text)]


def _operand(text: str) -> str:
    text = text.strip()
    if text in SPECIAL:
        return SPECIAL[text]
    if match := re.match(r"0[fd]([0-9A-Fa-f]+)$", text):
        return f"0x{match[1]}ull"
    if re.match(r"-?\d", text):
        return f"uint64_t({text.rstrip('U')})"
    if text.startswith("["):
        return " + ".join(map(_operand, text.strip("[]").split("+")))
    if text.startswith("%"):
        return f"r_{text[1:]}"
    if text.startswith("!"):
        return f"!{_operand(text[1:])}"
    if text.startswith("$"):
        return f"L{text[1:]}"
    return f"address({text})"  # of a parameter, or of an array
