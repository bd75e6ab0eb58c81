from __future__ import annotations

import time

from cga_lightning.core.patience import Patience


def test_every_long_wait_is_told_once_and_what_has_ended_is_not() -> None:
    told: list[float] = []
    patience = Patience(0.2, lambda: told.append(time.monotonic()))
    with patience.waiting():
        pass
    time.sleep(0.6)
    assert not told
    for _ in range(2):
        with patience.waiting():
            time.sleep(0.6)
    assert len(told) == 2
