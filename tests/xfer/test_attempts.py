# SPDX-License-Identifier: Apache-2.0
"""The engine's attempts, and the countdown between them."""
import threading
from typing import List, Optional, Sequence

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled, Error, InvalidReference, NetworkError, StorageError
from minipull.progress import discard
from minipull.xfer.download import LayerManager
from minipull.xfer.transfer import Transfer

TIMEOUT = 30.0  # seconds; only a failing test waits that long


def attempted(errors: Sequence[Error], count: int = 5, tick: float = 0.0001) -> List[str]:
    """Return the progress of work that raises these errors first, and "ok" at the end."""
    layers, shown, left = LayerManager(1, count, tick), [], list(errors)
    manager = layers.transfers

    def work(transfer: Transfer) -> str:
        if left:
            raise left.pop(0)
        return "ok"

    watcher = manager.transfer("key", lambda transfer: layers.attempt(transfer, work, "id"),
                               lambda event: shown.append("%s %s" % (event.id, event.action)))
    try:
        return shown + manager.wait([watcher], Cancel())
    finally:
        manager.release(watcher)


def counted(seconds: int) -> List[str]:
    return ["id Retrying in %d seconds" % n for n in range(seconds, 1, -1)] + ["id Retrying in 1 second"]


def test_work_is_tried_again_after_a_countdown_that_grows() -> None:
    assert attempted([]) == ["ok"]
    assert attempted([NetworkError("x")] * 4) == counted(5) + counted(10) + counted(15) + counted(20) + ["ok"]


def test_attempts_end_at_their_number_or_at_a_permanent_error() -> None:
    cases = ((NetworkError("x"), 5, 5), (NetworkError("x"), 1, 1), (StorageError("x"), 1, 5))
    for error, failures, count in cases:
        with pytest.raises(type(error)):
            attempted([error] * failures, count)
    layers = LayerManager(1, 5, 0)
    with pytest.raises(ZeroDivisionError):
        layers.transfers.wait([layers.transfers.transfer(
            "key", lambda transfer: layers.attempt(transfer, lambda transfer: 1 // 0, "id"), discard)], Cancel())


def test_a_countdown_ends_with_its_last_watcher() -> None:
    layers, seen = LayerManager(1, 5, 60.0), threading.Event()
    manager = layers.transfers

    def fail(transfer: Transfer) -> None:
        raise NetworkError("x")

    watcher = manager.transfer(
        "key", lambda transfer: layers.attempt(transfer, fail, "id"), lambda event: seen.set())
    assert seen.wait(TIMEOUT)
    manager.release(watcher)
    manager.settle("key")
    assert isinstance(watcher.transfer.error, Cancelled)


@pytest.mark.parametrize("concurrency,attempts", [(-1, 5), (3, 0), (None, -1)])
def test_a_manager_that_would_begin_nothing_is_refused(concurrency: Optional[int], attempts: int) -> None:
    with pytest.raises(InvalidReference, match="want one attempt or more"):
        LayerManager(concurrency, attempts)
    assert LayerManager(0, 1).transfers.limit == 0
