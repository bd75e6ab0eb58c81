"""The parts of check.py: each prints lines of a table or fails. `--dry` runs them on the CPU, on small problems."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cga_lightning.ops import _checks, _library, _nvrtc, _reference

DRY = "--dry" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
# Of the largest row: g~ against plain torch in float64.
TOLERANCE = {"f32": 3e-6, "bf16": 2e-2, "f16": 3e-3, "f64": 1e-10}


def backends() -> dict[str, Any]:
    """Every way to the kernels, by name."""
    if DRY:
        return {_library.backend("cpu"): torch.ops.cga_lightning}
    found = {"cuda": torch.ops.cga_lightning} if _library.backend("cuda") == "cuda" else {}
    if _nvrtc.missing() is None:
        found["cupy"] = _nvrtc
    assert found, f"no kernels for CUDA: {_library.missing()}"
    return found


def row(name: str, result: str) -> None:
    print(f"| {name} | {result} |", flush=True)


def problem(cross: int, length: int, dtype: str, seed: int = 0, offset: int = 0) -> tuple[list[Tensor], Tensor]:
    """Gaussian rows that share a direction, which the own gradient opposes, `offset` elements from an aligned start."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shared, rows = torch.randn(length, device=DEVICE, generator=generator), []
    for k in range(cross + 1):
        memory = torch.empty(length + offset, device=DEVICE, dtype=TYPES[dtype])
        values = torch.randn(length, device=DEVICE, generator=generator) + (0.3 if k < cross else -0.3) * shared
        rows.append(memory[offset:].copy_(values))
    return rows[:-1], rows[-1]


def off(operators: Any, rows: list[Tensor], own: Tensor, bounds: list[int] | None = None, margin: float = 0.0) -> float:
    """How far g~ is from plain torch in float64, of the largest row; two runs must have the same bits."""
    offsets, eps = torch.tensor(bounds or [0, own.numel()]), _checks.DEFAULT_EPS[own.dtype]
    wide, expected = [one.double() for one in rows], own.double().clone()
    _, status = _reference.project_(wide, expected, offsets, margin, eps)
    runs = []
    for _ in range(2):
        memory = torch.empty(own.numel() + 1, device=DEVICE, dtype=own.dtype)
        start = 1 if own.data_ptr() % 16 else 0
        found = memory[start : start + own.numel()].copy_(own)
        runs.append((found, *operators.project_(rows, found, offsets, margin, eps)))
    same = [torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(*runs, strict=True)]
    assert all(same), f"two runs differ: {same}"
    assert torch.equal(runs[0][2].cpu(), status.cpu()), "another status than plain torch"
    assert torch.equal(runs[0][0].isfinite(), expected.isfinite())
    size = max([float(one.norm()) for one in (*wide, own.double()) if one.isfinite().all()], default=1.0)
    gap = (runs[0][0].double() - expected).nan_to_num(0, 0, 0).norm()
    return float(gap) / max(size * (1 + margin * len(rows)), 1e-300)


def exactness() -> None:
    """Every number of rows and type, and the hard cases."""
    counts, length = (range(1, 65), 40_013) if not DRY else ((1, 4, 9), 5_013)
    for name, operators in backends().items():
        for dtype in TYPES:
            worst = 0.0
            for cross in counts if dtype in ("f32", "bf16") or DRY else (1, 4, 8, 9, 16, 24, 33, 64):
                bounds, margin = [0, 1024, 1024, 1040, length], 0.5 * (cross % 3 == 0)
                given = problem(cross, length, dtype, cross)
                worst = max(worst, off(operators, *given, bounds if cross % 2 else None, margin))
            assert worst < TOLERANCE[dtype], f"{name} {dtype}: {worst}"
            row(f"{name} {dtype}: g~ off, K = {counts[0]}..{counts[-1]}", f"{worst:.1e} of the largest row")
        worst, count = _hard(operators)
        row(f"{name}: {count} hard cases", f"{worst:.1e}, the same bits twice")


def _hard(operators: Any) -> tuple[float, int]:
    worst, length = [], 300_001 if not DRY else 9_001
    for cross in (2, 4, 12, 33):
        worst.append(off(operators, *problem(cross, 10 * length, "f32", 5)))
        worst.append(off(operators, *problem(cross, length, "f32", 6, offset=1)))
        for power in (-30, 25):
            rows, own = problem(cross, length, "f32", 7)
            worst.append(off(operators, [one * 10.0**power for one in rows], own * 10.0**power))
        for value, place in itertools.product((float("nan"), float("inf")), (1, -1)):
            rows, own = problem(cross, length, "f32", 8)
            [*rows, own][place][7] = value
            worst.append(off(operators, rows, own, margin=0.25))
    rows, own = problem(3, 64 * 2000 + 5, "f32", 9)
    worst.append(off(operators, rows, own, [*range(0, 64 * 2000, 64), 64 * 2000, 64 * 2000 + 5], 0.5))
    assert max(worst) < TOLERANCE["f32"], worst
    return max(worst), len(worst)


def tensor_cores() -> None:
    """Errors of inner products, of the norms of their rows: what the rounding inside tensor cores adds."""
    length = 1_000_000 if not DRY else 20_000
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "normal": lambda x: x,
        "positive": lambda x: 1 + 0.3 * x * x,
        "equal": lambda x: torch.full_like(x, 1.3108),
    }
    for (name, operators), dtype in itertools.product(backends().items(), ("f32", "bf16")):
        found = []
        for (kind, terms), cross in itertools.product(kinds.items(), (4, 12, 39, 64)):
            rows, own = problem(cross, length, "f32", 3)
            every = [terms(one).to(TYPES[dtype]) for one in (*rows, own)]
            offsets = torch.tensor([0, length])
            products = operators.gram(every[:-1], every[-1], offsets)[0]
            exact = _reference.gram([one.double() for one in every[:-1]], every[-1].double(), offsets)[0]
            norms = exact.diagonal().sqrt()
            found.append((float(((products - exact) / (norms[:, None] * norms)).abs().max()), f"K={cross} {kind}"))
            assert found[-1][0] < 1e-5, (name, dtype, found[-1])
        row(f"{name} {dtype}: inner products off", "{:.1e} at {}".format(*max(found)))


def timed(function: Callable[[], object], before: Callable[[], object] = lambda: None, repeat: int = 9) -> float:
    """Median milliseconds on the device: all is queued while it sleeps, so that the host does not count."""
    if DRY:
        before()
        begin = time.perf_counter()
        function()
        return (time.perf_counter() - begin) * 1e3
    times = []
    for _ in range(repeat + 1):
        before()
        torch.cuda._sleep(3_000_000)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times[1:])


CASES = (
    *((2, 60_000, "f32"), (4, 1_000_000, "f32"), (2, 11_200_000, "f32"), (4, 11_200_000, "f32")),
    *((8, 11_200_000, "f32"), (15, 300_000, "f32"), (15, 10_000_000, "f32"), (64, 100_000, "f32")),
    *((64, 10_000_000, "f32"), (2, 10**9, "bf16"), (8, 10**9, "bf16"), (32, 10**8, "bf16"), (64, 3 * 10**8, "bf16")),
)


def speed() -> None:
    """Both passes as a share of what a copy reaches in the same run; torch.mm beside them."""
    ceiling = _copied_per_second(10**9 if not DRY else 10**6)
    row("copy", f"{ceiling:.2g} TB/s")
    cases = CASES if not DRY else ((2, 6000, "f32"), (12, 6000, "bf16"))
    for (name, operators), case in itertools.product(backends().items(), cases):
        if DRY or torch.cuda.mem_get_info()[0] > 3.0 * (case[0] + 3) * case[1] * TYPES[case[2]].itemsize:
            _time(name, operators, *case, ceiling)


def _copied_per_second(length: int) -> float:
    """TB/s, read and written."""
    source, target = torch.empty(2, length, dtype=torch.bfloat16, device=DEVICE)
    return 4 * length / timed(lambda: target.copy_(source)) / 1e9


def _time(name: str, operators: Any, cross: int, length: int, dtype: str, ceiling: float) -> None:
    matrix = torch.randn(cross + 1, -(-length // 64) * 64, device=DEVICE, dtype=TYPES[dtype])[:, :length]
    rows, offsets = list(matrix[:-1].unbind()), torch.tensor([0, length])
    own = -rows[0] - rows[-1] + matrix[-1]
    gradient = own.clone()
    dual, _ = operators.project_(rows, gradient, offsets, 0.5, 1e-4)
    moved = length * TYPES[dtype].itemsize / 1e9
    first = timed(lambda: operators.gram(rows, own, offsets))
    second = timed(lambda: operators.combine_(rows, gradient, offsets, dual), lambda: gradient.copy_(own))
    whole = timed(lambda: operators.project_(rows, gradient, offsets, 0.5, 1e-4), lambda: gradient.copy_(own))
    plain = timed(lambda: matrix @ matrix.T)
    shares = (cross + 1) * moved / first / ceiling, (cross + 2) * moved / second / ceiling
    floor = (2 * cross + 3) * moved / ceiling
    row(
        f"{name} K={cross} d={length:.1e} {dtype}",
        f"pass 1 {100 * shares[0]:.0f} %, pass 2 {100 * shares[1]:.0f} % of the copy; {whole:.3f} ms, "
        f"{whole / floor:.1f} of the floor; torch.mm alone {plain:.3f} ms",
    )


def zeros() -> None:
    """Stretches of zeros, as of embeddings and unused parameters."""
    length, cases = 10**8 if not DRY else 20_000, (("f32", 2), ("bf16", 8), ("f32", 12))
    for (name, operators), (dtype, cross) in itertools.product(backends().items(), cases):
        rows = [torch.randn(length, device=DEVICE).to(TYPES[dtype]) for _ in range(cross + 1)]
        times = [_with_zeros(operators, rows, int(share * length)) for share in (0.0, 0.1, 0.5)]
        what = f"{name} {dtype} K={cross}: pass 1 with 10 %, 50 % of zeros"
        row(what, f"{times[1] / times[0]:.2f}, {times[2] / times[0]:.2f} times as long")


def _with_zeros(operators: Any, rows: list[Tensor], count: int) -> float:
    for one in rows:
        one[:count] = 0
    offsets = torch.tensor([0, rows[0].numel()])
    return timed(lambda: operators.gram(rows[:-1], rows[-1], offsets), repeat=5)


def waits() -> None:
    """The host is back while the device sleeps; NCCL's wait with a limit is not."""
    for name, operators in backends().items():
        rows, own = problem(4, 3_000_000 if not DRY else 3_000, "f32", 1)
        offsets = torch.tensor([0, own.numel()])
        operators.project_(rows, own.clone(), offsets, 0.0, 1e-6)
        with _asleep(2.0):
            begin = time.perf_counter()
            operators.project_(rows, own, offsets, 0.0, 1e-6)
            host = time.perf_counter() - begin
        assert DRY or host < 0.5, f"{name}: the host was back after {host:.1f} s"
        row(f"{name}: host time of a call, K = 4", f"{1e6 * host:.0f} us")
    if not DRY and torch.distributed.is_nccl_available():
        _nccl()


@contextmanager
def _asleep(seconds: float) -> Any:
    """Inside, the device sleeps, and to wait for it is an error."""
    if DRY:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda._sleep(int(seconds * 1e9))
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def _nccl() -> None:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    x = torch.ones(1000, device=DEVICE)
    dist.all_reduce(x)
    for name, limit in (("wait()", None), ("wait(timeout)", timedelta(seconds=60))):
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)
        work, begin = dist.all_reduce(x, async_op=True), time.perf_counter()
        _ = work.wait() if limit is None else work.wait(limit)
        row(f"NCCL {name} behind a sleep", f"the host is back after {1e3 * (time.perf_counter() - begin):.0f} ms")
    dist.destroy_process_group()


def training() -> None:
    """Weights after 8 steps of every algorithm against the CPU's; what waits in a step; mixed precisions."""
    from cga_lightning.algorithms import ALGORITHMS

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in ALGORITHMS:
        expected, _, _ = _trained(name, "cpu", 4)
        found, times, waited = _trained(name, DEVICE, 4)
        gap = float((found - expected).norm() / expected.norm())
        assert gap < 5e-3, f"{name}: weights are {gap} off the CPU's"
        row(f"{name}, 4 agents", f"{1e3 * times:.1f} ms a step; {gap:.1e} off the CPU; waits {dict(waited) or 'none'}")
    for precision in ("bf16-mixed", "16-mixed") if not DRY else ("bf16-mixed",):
        found, times, waited = _trained("cga", DEVICE, 4, precision)
        assert found.isfinite().all(), precision
        row(f"cga {precision}, 4 agents", f"{1e3 * times:.1f} ms a step; waits {dict(waited) or 'none'}")


def agents() -> None:
    """Many agents on one device."""
    _, times, _ = _trained("cga", DEVICE, 40 if not DRY else 6)
    row("cga, 40 agents" if not DRY else "cga, 6 agents", f"{1e3 * times:.1f} ms a step")


def _trained(algorithm: str, device: str, count: int, precision: Any = "32-true") -> tuple[Tensor, float, Counter[str]]:
    """Train a small CNN on a ring: its weights, the median seconds of a step, and the lines that waited in one."""
    import pytorch_lightning as pl
    from training import Watch, data, module

    from cga_lightning import SimulatedStrategy

    pl.seed_everything(3, verbose=False)
    net, watch = module(), Watch()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        strategy=SimulatedStrategy(count, algorithm, "ring"),
        precision=precision,
        callbacks=[watch],
        **quiet,
    ).fit(net, train_dataloaders=data(count, steps=8))
    weights = torch.cat([p.detach().double().cpu().view(-1) for p in net.parameters()])
    return weights, median(watch.times), watch.found


def every_kernel() -> None:
    """Each once, on small problems, for compute-sanitizer."""
    for operators in backends().values():
        for dtype, cross in itertools.product(("f32", "bf16"), (2, 4, 8, 12, 20, 33, 64)):
            rows, own = problem(cross, 9001, dtype, cross)
            operators.project_(rows, own, torch.tensor([0, 1024, 1024, 9001]), 0.5, _checks.DEFAULT_EPS[own.dtype])
        for dtype, offset in (("f32", 1), ("f64", 0)):
            rows, own = problem(10, 5003, dtype, 1, offset)
            operators.project_(rows, own, torch.tensor([0, 5003]), 0.5, 1e-6)
    if not DRY:
        torch.cuda.synchronize()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name != "--dry":
            globals()[name]()
