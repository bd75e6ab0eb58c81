"""What a launcher of Lightning has started must end once one agent has failed, whatever state the others are in."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from cga_lightning.core.communication import CommunicationError
from cga_lightning.lightning.internals import MultiProcessingLauncher, interrupt, returns_to_tuner

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds in which the other agents may still say why they stop."""
GRACE_TO_SAVE = 10.0
"""The same after Ctrl+C, where agents may save a checkpoint."""

Process = Popen[bytes] | BaseProcess


def end(processes: Sequence[Process], grace: float = GRACE) -> None:
    """Let them end by themselves for a moment, then kill the rest: a stopped process does not react to SIGTERM."""
    deadline = time.monotonic() + grace
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in filter(_runs, processes):
        process.kill()


def _runs(process: Process) -> bool:
    return process.poll() is None if isinstance(process, Popen) else process.is_alive()


def refuse_tuner(trainer: Trainer | None) -> None:
    """Refuse callbacks of a `Tuner`, which reads their results in the main process."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    for callback in filter(returns_to_tuner, callbacks):
        raise ValueError(
            f"Tuner(...) reads the result of its {type(callback).__name__} in this process, but with the start methods "
            "fork and spawn it is found in others. Use Trainer(callbacks=[LearningRateFinder()]), SimulatedStrategy, "
            "or start_method='popen' (the strategy names without a suffix)."
        )


class PromptLauncher(MultiProcessingLauncher):
    """Lightning's launcher of multiprocessing, but prompt.

    That one waits 30 s for processes that ignore SIGTERM, and tells of an exception only in the main process, which
    has no agent.
    """

    _strategy: Any
    _started: tuple[int, list[Any]] = (0, [])

    @property
    def procs(self) -> list[Any]:
        """The processes that this one has started; a forked process inherits the list of its siblings."""
        parent, processes = self._started
        return processes if parent == os.getpid() else []

    @procs.setter
    def procs(self, processes: list[Any]) -> None:
        self._started = (os.getpid(), processes)
        for process in processes:
            process.terminate = partial(end, processes)  # called by torch for every process that is left

    def launch(self, *args: Any, **kwargs: Any) -> Any:
        """Leave no process behind, also after Ctrl+C, which may have reached this one alone.

        Raises:
            ValueError: for a `Tuner`, whose result would be lost with the process in which it has been found.
        """
        refuse_tuner(kwargs.get("trainer"))
        self._strategy.failed_elsewhere = False
        try:
            return super().launch(*args, **kwargs)
        except BaseException:
            self._strategy.failed_elsewhere = True
            self.kill(signal.SIGINT)
            end(self.procs, GRACE_TO_SAVE)
            raise

    def _wrapping_function(self, process_idx: int, trainer: Trainer | None, *args: Any) -> None:
        try:
            super()._wrapping_function(process_idx, trainer, *args)
        except BaseException as exception:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not cut off a checkpoint
            if not isinstance(exception, CommunicationError | KeyboardInterrupt):  # the one is printed, the other known
                _log.error(f"Agent {self._strategy.global_rank} raised {type(exception).__name__}: {exception}")
            if trainer is not None:
                interrupt(trainer, exception)
            self._strategy.leave()
            if isinstance(exception, CommunicationError):
                time.sleep(GRACE)  # the main process shows the exception of the first to end: let that be the cause
            if isinstance(exception, SystemExit):
                exception.code = exception.code or 1  # after SIGTERM: the main process waits for a result if it is 0
            atexit.register(os._exit, 1)  # as a forked process ends; a spawned one would take seconds more
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_started": (0, [])}
