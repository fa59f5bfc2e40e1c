# SPDX-License-Identifier: Apache-2.0
"""Outputs of transfers that raise, are slow or leave: who calls them, and when no longer."""
import contextlib
import functools
import queue
import threading
from typing import List

import pytest

from minipull.errors import Cancelled
from minipull.progress import Progress, discard
from minipull.xfer.transfer import Transfer, TransferManager, Watcher
from tests.kit.transfers import NEVER, TIMEOUT, Gate, Recorder, count_up, join, spawn, wait_for


def test_an_output_that_raises_fails_its_owner_alone() -> None:
    manager, gate = TransferManager(5), Gate()

    def broken(progress: Progress) -> None:
        raise BrokenPipeError("simulated")

    good = Recorder()
    watchers = [manager.transfer("a", gate.run, broken), manager.transfer("a", gate.run, good)]
    gate.open("a")
    with pytest.raises(BrokenPipeError):
        manager.wait(watchers, NEVER)
    assert manager.wait(watchers[1:], NEVER) == ["A"]
    for watcher in watchers:
        manager.release(watcher)
    good.check()


def test_an_output_may_release_itself_and_is_not_called_again() -> None:
    manager = TransferManager(5)
    watchers: "queue.Queue[Watcher]" = queue.Queue()
    seen: List[int] = []
    ready = threading.Event()

    def output(progress: Progress) -> None:
        seen.append(progress.current)
        manager.release(watchers.get(timeout=TIMEOUT))

    def run(transfer: Transfer) -> None:
        assert ready.wait(TIMEOUT)
        count_up(transfer)

    watcher = manager.transfer("id1", run, output)
    other = manager.transfer("id1", run, discard)
    watchers.put(watcher)
    ready.set()
    manager.wait([other], NEVER)
    manager.release(other)
    assert seen == [0]
    with pytest.raises(Cancelled):
        manager.wait([watcher], NEVER)


def test_a_new_watcher_is_not_kept_by_progress_that_keeps_coming() -> None:
    manager = TransferManager(5)
    transfers: "queue.Queue[Transfer]" = queue.Queue()
    joined = threading.Event()

    def run(transfer: Transfer) -> None:
        transfers.put(transfer)
        current = 0
        while not joined.is_set():
            current += 1
            transfer.progress(Progress("", "", "testing", current))

    watchers = [manager.transfer("id1", run, discard)]
    transfer = transfers.get(timeout=TIMEOUT)
    wait_for(manager, lambda: transfer._count > 0)

    def joins() -> None:
        joiner = threading.current_thread()

        def slow(progress: Progress) -> None:
            if threading.current_thread() is joiner:
                wait_for(manager, lambda: transfer._count > progress.current)

        watchers.append(manager.transfer("id1", run, slow))

    join(spawn(joins))
    joined.set()
    manager.wait(watchers, NEVER)


def test_release_returns_when_the_output_is_quiet_and_has_the_newest() -> None:
    manager = TransferManager(5)
    begin, told, entered, leave, quiet = [threading.Event() for _ in range(5)]
    seen: List[int] = []

    def output(progress: Progress) -> None:
        assert not quiet.is_set(), "called after release"
        if progress.current == 1:
            entered.set()
            assert leave.wait(TIMEOUT)
        seen.append(progress.current)

    def run(transfer: Transfer) -> None:
        assert begin.wait(TIMEOUT)
        emitters = [
            spawn(functools.partial(transfer.progress, Progress("", "", "testing", number)))
            for number in (1, 2) if number == 1 or entered.wait(TIMEOUT)
        ]
        told.set()
        for emitter in emitters:
            join(emitter)
        with contextlib.suppress(Cancelled):
            transfer.cancel.pause(TIMEOUT)
        transfer.progress(Progress("", "", "testing", 3))

    watcher = manager.transfer("id1", run, output)
    begin.set()
    assert told.wait(TIMEOUT)
    wait_for(manager, lambda: watcher.transfer._count == 2)

    def let_go() -> None:
        with watcher.transfer.cancel.calling(leave.set):
            wait_for(manager, lambda: watcher.transfer.done)

    helper = spawn(let_go)
    manager.release(watcher)
    quiet.set()
    join(helper)
    assert seen[:2] == [1, 2] and seen[2:] in ([], [3])
    manager.deliver(watcher)  # as an emitter that comes late would


def test_many_emitters_and_leavers_never_call_an_output_twice_at_once_or_afterwards() -> None:
    manager = TransferManager(5)
    lock = threading.Lock()
    current = [0]

    def emit(transfer: Transfer) -> None:
        while not transfer.cancel.cancelled:
            with lock:  # keeps the numbers in the order of their events
                current[0] += 1
                with manager.changed:
                    transfer._last = Progress("", "", "testing", current[0])
                    transfer._count += 1
            for watcher in list(transfer._watchers):
                manager.deliver(watcher)

    def run(transfer: Transfer) -> None:
        helpers = [spawn(lambda: emit(transfer)) for _ in range(2)]
        emit(transfer)
        for helper in helpers:
            join(helper)

    keeper = manager.transfer("id1", run, discard)
    for _ in range(50):
        output = Recorder()
        watcher = manager.transfer("id1", run, output)
        output.wait()
        newest = current[0]
        manager.release(watcher)
        seen = list(output.seen)
        assert seen == sorted(set(seen)) and seen[-1] >= newest - 3
        manager.deliver(watcher)
        assert output.seen == seen
    manager.release(keeper)
    wait_for(manager, lambda: keeper.transfer.done)
