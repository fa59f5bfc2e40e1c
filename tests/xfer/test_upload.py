# SPDX-License-Identifier: Apache-2.0
"""Blobs side by side, each sent once; upstream's upload_test among it."""
import threading
from pathlib import Path
from typing import Any, List, Optional

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled, NetworkError, StorageError
from minipull.progress import Progress, discard
from minipull.store.store import Store
from minipull.xfer.transfer import Transfer
from minipull.xfer.upload import LayerUploadManager, UploadDescriptor
from tests.kit.processes import wait_until
from tests.kit.work import Counter, Log, background


class Blob(UploadDescriptor):
    """``failures`` come first; ``gate`` is waited for with the slot."""

    def __init__(self, name: str, failures: int = 0, counter: Optional[Counter] = None,
                 gate: Optional[threading.Event] = None, retry: bool = True) -> None:
        self.key = self.id = name
        self.counter = counter or Counter()
        self._left, self._failures, self._retry, self._gate = failures, failures, retry, gate

    def upload(self, transfer: Transfer) -> str:
        with self.counter:
            for current in range(0, 11):
                transfer.progress(Progress(id=self.id, action="Pushing", current=current, total=10))
            while self._gate is not None and not self._gate.wait(0.001):
                transfer.cancel.check()
            if self._left:
                self._left -= 1
                raise (NetworkError if self._retry else StorageError)("simulating failure of %s" % self.id)
            return "result of " + self.id


def manager(**options: Any) -> LayerUploadManager:
    return LayerUploadManager(tick=options.pop("tick", 0.0001), **options)


def six(failures: int = 0) -> List[Blob]:
    counter = Counter()
    return [Blob(name, failures if n == 4 else 0, counter)
            for n, name in enumerate(["id1", "id2", "id3", "id2", "id4", "id5"])]


def test_a_blob_is_sent_once_and_its_result_given_to_every_user() -> None:
    blobs, log = six(failures=1), Log()
    found = manager(concurrency=3).upload(blobs, log, Cancel())
    assert found == ["result of " + blob.id for blob in blobs]
    assert blobs[0].counter.total == 6 and blobs[0].counter.most <= 3  # id4 twice, id2 once
    assert [event.action for event in log.events].count("Preparing") == 6
    assert log.actions("id1")[0] == "Preparing" and log.actions("id1")[-1] == "Pushing"


@pytest.mark.parametrize("failures, attempts, ends", [(4, 5, True), (5, 5, False), (1, 1, False)])
def test_attempts_are_counted_as_upstream_counts_them(failures: int, attempts: int, ends: bool) -> None:
    blobs = six(failures)
    if ends:
        assert len(manager(attempts=attempts).upload(blobs, discard, Cancel())) == 6
    else:
        with pytest.raises(NetworkError, match="simulating failure of id4"):
            manager(attempts=attempts).upload(blobs, discard, Cancel())


def test_the_countdown_has_the_engines_words() -> None:
    log = Log()
    manager().upload([Blob("id1", failures=2)], log, Cancel())
    counted = [action for action in log.actions("id1") if action.startswith("Retrying")]
    assert counted == ["Retrying in %d seconds" % n for n in (5, 4, 3, 2)] + ["Retrying in 1 second"] + [
        "Retrying in %d seconds" % n for n in range(10, 1, -1)] + ["Retrying in 1 second"]


def test_a_permanent_error_is_not_tried_again() -> None:
    blob = Blob("id1", failures=1, retry=False)
    with pytest.raises(StorageError):
        manager().upload([blob], discard, Cancel())
    assert blob.counter.total == 1


def test_the_countdown_can_be_cancelled() -> None:
    cancel, log = Cancel(), Log()
    thread, results = background(
        lambda: manager(tick=60).upload([Blob("id1", failures=1)], log, cancel))
    wait_until(lambda: "Retrying in 5 seconds" in log.actions("id1"), "countdown")
    cancel.cancel()
    thread.join(10)
    assert isinstance(results[0], Cancelled)


def test_a_cancelled_upload_ends_its_work() -> None:
    cancel, counter = Cancel(), Counter()
    blobs = [Blob("id%d" % n, counter=counter, gate=threading.Event()) for n in range(4)]
    thread, results = background(lambda: manager(concurrency=2).upload(blobs, discard, cancel))
    wait_until(lambda: counter.now == 2, "the work")
    cancel.cancel()
    thread.join(10)
    assert isinstance(results[0], Cancelled)
    wait_until(lambda: counter.now == 0, "the end of the work")
    assert counter.total == 2


def test_a_blob_that_waits_for_a_slot_is_shown_as_waiting() -> None:
    gate, log = threading.Event(), Log()
    blobs = [Blob("id1", gate=gate), Blob("id2")]
    thread, results = background(lambda: manager(concurrency=1).upload(blobs, log, Cancel()))
    wait_until(lambda: log.actions("id2") == ["Preparing", "Waiting"], "the second")
    gate.set()
    thread.join(10)
    assert results == [["result of id1", "result of id2"]]


def test_a_blob_without_an_id_has_no_progress() -> None:
    class Silent(Blob):
        def __init__(self) -> None:
            super().__init__("key")
            self.id = ""

        def upload(self, transfer: Transfer) -> str:
            return "sent"

    log = Log()
    assert manager(concurrency=1).upload([Blob("id1"), Silent()], log, Cancel()) == [
        "result of id1", "sent"]
    assert {event.id for event in log.events} == {"id1"}


def test_the_first_error_does_not_wait_for_the_rest() -> None:
    gate = threading.Event()
    blobs = [Blob("id1", gate=gate), Blob("id2", failures=1, retry=False)]
    with pytest.raises(StorageError):
        manager().upload(blobs, discard, Cancel())
    wait_until(lambda: blobs[0].counter.now == 0, "the other to give up")


def test_uploads_with_one_manager_share_transfers_and_outlive_the_first_to_leave() -> None:
    uploads, gate, counter, logs = manager(), threading.Event(), Counter(), [Log(), Log()]
    cancel = Cancel()
    first, gone = background(
        lambda: uploads.upload([Blob("id1", counter=counter, gate=gate)], logs[0], cancel))
    wait_until(lambda: counter.now == 1, "the first")
    second, kept = background(
        lambda: uploads.upload([Blob("id1", counter=counter, gate=gate)], logs[1], Cancel()))
    wait_until(lambda: logs[1].actions("id1")[-1:] == ["Pushing"], "the second")
    cancel.cancel()
    first.join(10)
    gate.set()
    second.join(10)
    assert isinstance(gone[0], Cancelled) and kept == [["result of id1"]] and counter.total == 1


def test_the_store_is_locked_while_its_blobs_are_sent(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), timeout=0.01)
    with store.writing():
        pass
    gate = threading.Event()
    blob = Blob("id1", gate=gate)
    thread, results = background(lambda: manager().upload([blob], discard, Cancel(), store.reading))
    wait_until(lambda: blob.counter.now == 1, "the work")
    with pytest.raises(StorageError, match="locked"), store.alone():
        pass
    gate.set()
    thread.join(10)
    assert results == [["result of id1"]]
