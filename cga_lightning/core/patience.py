"""Tell when a wait takes long. A wait of `torch.distributed` itself cannot be resumed after a timeout."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread


class Patience:
    """One thread that looks at the clock now and then, since to start one for every wait costs more than most waits.

    Args:
        seconds: after which a wait is long.
        complain: called once for every long wait, in the other thread.
    """

    def __init__(self, seconds: float, complain: Callable[[], None]) -> None:
        self.seconds = seconds
        self._complain = complain
        self._since: float | None = None
        self._thread: Thread | None = None
        self._ended = Event()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait."""
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="patience", daemon=True)
            self._thread.start()
            atexit.register(self.end)  # a thread that wakes up while the interpreter ends may bring it down
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def end(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds / 20):
            since = self._since
            if since is not None and time.monotonic() - since > self.seconds:
                self._since = None
                self._complain()
