# SPDX-License-Identifier: Apache-2.0
"""Transfers shared and within slots: the behaviours of moby's transfer_test.go, and those of threads."""
import contextlib
import functools
import queue
import random
import threading
from typing import Dict, Iterator, List

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled, Error
from minipull.progress import Progress, discard
from minipull.xfer.transfer import Transfer, TransferManager
from tests.kit.transfers import (
    NEVER, TIMEOUT, TOTAL, Gate, Recorder, at_rest, count_up, join, spawn, until_cancelled, wait_for)


# -- moby's tests ----------------------------------------------------------------


def test_transfer() -> None:
    manager = TransferManager(5)
    outputs = {key: Recorder() for key in ("id1", "id2", "id3")}

    def run(transfer: Transfer) -> str:
        assert transfer.started
        count_up(transfer)
        return transfer.key

    watchers = [manager.transfer(key, run, output) for key, output in outputs.items()]
    assert manager.wait(watchers, NEVER) == ["id1", "id2", "id3"]
    for watcher in watchers:
        assert watcher.transfer.done
        manager.release(watcher)
        assert repr(watcher.transfer).endswith(": done, 0 watchers>")
    for output in outputs.values():
        output.check()
    assert at_rest(manager)


@pytest.mark.parametrize("inactive", [False, True], ids=["concurrency_limit", "inactive_jobs"])
def test_never_more_than_the_limit_and_the_next_in_order(inactive: bool) -> None:
    manager, gate = TransferManager(3), Gate(inactive)
    keys = ["id%d" % number for number in range(8)]
    outputs = [Recorder() for _ in keys]
    watchers = [manager.transfer(key, gate.run, output) for key, output in zip(keys, outputs)]
    assert sorted(gate.next() for _ in range(3)) == keys[:3]
    for number, key in enumerate(keys):
        # Nobody begins until one of those inside leaves, by its end or before.
        with manager.changed:
            assert manager.active == min(3, 8 - number)
            assert [transfer.key for transfer in manager.waiting] == keys[number + 3:]
        assert gate.begun.empty()
        gate.open(key)
        if number + 3 < 8:
            assert gate.next() == keys[number + 3]
        else:
            wait_for(manager, lambda: manager.active == 7 - number)
    assert inactive is not any(watcher.transfer.done for watcher in watchers)
    gate.open("end")
    assert manager.wait(watchers, NEVER) == [key.upper() for key in keys]
    for watcher, output in zip(watchers, outputs):
        manager.release(watcher)
        output.check()
    assert at_rest(manager)


def test_zero_is_no_limit() -> None:
    manager, gate = TransferManager(0), Gate()
    watchers = [manager.transfer(str(number), gate.run, discard) for number in range(20)]
    begun = [gate.next() for _ in watchers]
    assert sorted(begun, key=int) == [str(number) for number in range(20)]
    for key in begun:
        gate.open(key)
    manager.wait(watchers, NEVER)


def test_watch_release() -> None:
    manager = TransferManager(5)
    ready = threading.Event()

    def run(transfer: Transfer) -> None:
        assert ready.wait(TIMEOUT)
        until_cancelled(transfer)

    outputs = [Recorder() for _ in range(5)]
    watchers = [manager.transfer("id1", run, outputs[0])]
    transfer = watchers[0].transfer
    watchers += [manager.transfer("id1", run, output) for output in outputs[1:]]
    ready.set()
    for output in outputs:
        output.wait()
    for watcher in watchers:
        assert not transfer.cancel.cancelled
        manager.release(watcher)
    wait_for(manager, lambda: transfer.done)
    assert transfer.cancel.cancelled
    assert isinstance(transfer.error, Cancelled)
    assert at_rest(manager)


def test_watch_finished_transfer() -> None:
    manager, gate, seen = TransferManager(5), Gate(), Recorder()
    watchers = [manager.transfer("id1", gate.run, output) for output in (discard, discard, seen)]
    transfer = watchers[0].transfer
    gate.open("id1")
    wait_for(manager, lambda: transfer.done)
    for watcher in watchers:
        manager.release(watcher)
    assert repr(transfer) == "<Transfer id1: done, 0 watchers>" and not transfer.cancel.cancelled
    seen.check()


def test_duplicate_transfer() -> None:
    manager = TransferManager(5)
    calls: List[str] = []

    def run(transfer: Transfer) -> None:
        calls.append(transfer.key)
        until_cancelled(transfer)

    outputs = [Recorder() for _ in range(5)]
    watchers = [manager.transfer("id1", run, output) for output in outputs]
    for output in outputs:
        output.wait()
    transfer = watchers[0].transfer
    assert all(watcher.transfer is transfer for watcher in watchers)
    for watcher in watchers:
        manager.release(watcher)
    wait_for(manager, lambda: transfer.done)
    assert calls == ["id1"] and at_rest(manager)


# -- joining and leaving ---------------------------------------------------------


def test_a_late_watcher_gets_the_newest_progress_at_once() -> None:
    manager = TransferManager(5)
    told, end = threading.Event(), threading.Event()

    def run(transfer: Transfer) -> None:
        count_up(transfer)
        told.set()
        assert end.wait(TIMEOUT)

    early, late = Recorder(), Recorder()
    watchers = [manager.transfer("id1", run, early)]
    assert told.wait(TIMEOUT)
    watchers.append(manager.transfer("id1", run, late))
    assert late.seen == [TOTAL]
    end.set()
    manager.wait(watchers, NEVER)
    for watcher in watchers:
        manager.release(watcher)
    early.check()
    assert late.seen == [TOTAL], "the end adds nothing to what was seen"


def test_every_watcher_of_a_waiting_transfer_sees_that_it_waits() -> None:
    manager, gate = TransferManager(1), Gate()
    waiting = Progress(action="Waiting", current=-1)
    outputs = [Recorder() for _ in range(3)]
    watchers = [
        manager.transfer(key, gate.run, output, waiting) for key, output in zip("abb", outputs)
    ]
    assert [output.seen for output in outputs] == [[], [-1], [-1]]
    assert repr(manager) == "<TransferManager: 1 of 1 active, 1 waiting>"
    assert repr(watchers[1].transfer) == "<Transfer b: waiting, 2 watchers>"
    assert gate.next() == "a"
    assert repr(watchers[0].transfer) == "<Transfer a: running, 1 watchers>"
    gate.open("a")
    gate.open("b")
    assert manager.wait(watchers, NEVER) == ["A", "B", "B"]
    assert repr(watchers[0].transfer) == "<Transfer a: done, 1 watchers>"
    for watcher in watchers:
        manager.release(watcher)


def test_a_transfer_released_before_its_slot_never_runs() -> None:
    manager, gate = TransferManager(1), Gate()
    first = manager.transfer("a", gate.run, discard)
    second = manager.transfer("b", gate.run, discard)
    third = manager.transfer("c", gate.run, discard)
    dependent = spawn(lambda: pytest.raises(Cancelled, manager.result, second.transfer, NEVER))
    manager.release(second)
    state = second.transfer
    assert (state.done, state.started) == (True, False)
    join(dependent)
    assert gate.next() == "a"
    gate.open("a")
    assert gate.next() == "c"
    gate.open("c")
    manager.wait([first, third], NEVER)
    again = manager.transfer("b", gate.run, discard)
    assert again.transfer is not second.transfer
    gate.open("b")
    assert gate.next() == "b" and manager.wait([again], NEVER) == ["B"]


def test_a_user_of_a_cancelled_transfer_gets_a_new_one_after_its_end() -> None:
    manager = TransferManager(5)
    events: "queue.Queue[str]" = queue.Queue()
    noticed, leave = threading.Event(), threading.Event()

    def stubborn(transfer: Transfer) -> str:
        events.put("begin")
        with transfer.cancel.calling(noticed.set):
            assert leave.wait(TIMEOUT)
        events.put("end")
        return "old"

    first = manager.transfer("id1", stubborn, discard)
    assert events.get(timeout=TIMEOUT) == "begin"
    manager.release(first)
    assert noticed.is_set() and not first.transfer.done

    gone = Cancel()
    with_cancel = spawn(lambda: pytest.raises(Cancelled, manager.transfer, "id1", stubborn, discard,
                                              cancel=gone))
    gone.cancel()
    join(with_cancel)  # nobody has to wait for others' leftovers

    def run(transfer: Transfer) -> str:
        events.put("new")
        return "new"

    results: "queue.Queue[str]" = queue.Queue()
    joiners = [
        spawn(lambda: results.put(manager.wait([manager.transfer("id1", run, discard)], NEVER)[0]))
        for _ in range(3)
    ]
    leave.set()
    assert [results.get(timeout=TIMEOUT) for _ in joiners] == ["new"] * 3
    assert events.get(timeout=TIMEOUT) == "end" and events.get(timeout=TIMEOUT) == "new"
    assert first.transfer.result == "old"


def test_a_finished_transfer_is_not_joined_and_keeps_its_result() -> None:
    manager = TransferManager(5)
    watcher = manager.transfer("id1", lambda transfer: "first", discard)
    assert manager.wait([watcher], NEVER) == ["first"]
    other = manager.transfer("id1", lambda transfer: "second", discard)
    assert manager.wait([other], NEVER) == ["second"]
    for _ in range(2):
        manager.release(watcher)
    assert repr(watcher.transfer) == "<Transfer id1: done, 0 watchers>"
    assert repr(other.transfer) == "<Transfer id1: done, 1 watchers>"
    assert watcher.transfer.result == "first"


# -- work that outlives its users --------------------------------------------------


def test_a_run_holds_its_lock_until_its_own_end_and_not_its_users() -> None:
    manager, events, leave = TransferManager(5), [], threading.Event()
    begun = threading.Event()

    @contextlib.contextmanager
    def holding(cancel: Cancel) -> Iterator[None]:
        events.append("held")
        yield
        events.append("released" if cancel.cancelled else "released early")

    def run(transfer: Transfer) -> None:
        begun.set()
        assert leave.wait(TIMEOUT)
        events.append("end")

    watcher = manager.transfer("id1", run, discard, holding=holding)
    assert begun.wait(TIMEOUT)
    manager.release(watcher)
    assert events == ["held"] and not watcher.transfer.done
    leave.set()
    manager.settle("id")
    assert events == ["held", "end", "released"] and watcher.transfer.done


def test_settle_waits_for_the_transfers_with_a_text_in_their_key_alone() -> None:
    manager, gate = TransferManager(5), Gate()
    first, other = [manager.transfer(key, gate.run, discard) for key in ("copy to /a", "copy to /b")]
    settled = spawn(lambda: manager.settle("/a"))
    manager.settle("/c")
    assert settled.is_alive() or first.transfer.done
    gate.open("copy to /a")
    join(settled)
    assert first.transfer.done and not other.transfer.done
    gate.open("copy to /b")
    manager.settle("")
    assert at_rest(manager)


# -- waiting for results -----------------------------------------------------------


def test_the_first_error_is_raised_without_waiting_for_the_rest() -> None:
    manager, gate = TransferManager(5), Gate()
    error = Error("simulated")

    def fail(transfer: Transfer) -> None:
        raise error

    slow = manager.transfer("slow", gate.run, discard)
    watchers = [slow, manager.transfer("fail", fail, discard)]
    with pytest.raises(Error) as caught:
        manager.wait(watchers, NEVER)
    assert caught.value is error and not slow.transfer.done
    gate.open("slow")
    assert manager.wait([slow], NEVER) == ["SLOW"]
    assert manager.wait([], NEVER) == []


def test_a_cancelled_wait_cancels_no_transfer() -> None:
    manager, gate = TransferManager(5), Gate()
    watcher = manager.transfer("a", gate.run, discard)
    assert gate.next() == "a"
    cancel = Cancel()
    thread = spawn(lambda: pytest.raises(Cancelled, manager.wait, [watcher], cancel))
    cancel.cancel()
    join(thread)
    with pytest.raises(Cancelled):
        manager.result(watcher.transfer, cancel)
    assert not watcher.transfer.cancel.cancelled
    gate.open("a")
    assert manager.wait([watcher], NEVER) == ["A"]
    assert manager.wait([watcher], cancel) == ["A"], "what is there is given"


# -- slots -------------------------------------------------------------------------


def test_a_new_limit_ends_nothing_and_holds_for_the_next() -> None:
    manager, gate = TransferManager(3), Gate()
    watchers = [manager.transfer(key, gate.run, discard) for key in "abcde"]
    assert sorted(gate.next() for _ in "abc") == list("abc")
    manager.limit = 1
    for key in "ab":
        gate.open(key)
        wait_for(manager, lambda: watchers["abc".index(key)].transfer.done)
    assert manager.active == 1 and gate.begun.empty()
    manager.limit = 2
    gate.open("c")
    assert sorted(gate.next() for _ in "de") == ["d", "e"]
    for key in "de":
        gate.open(key)
    assert manager.wait(watchers, NEVER) == list("ABCDE")
    assert at_rest(manager)


def test_a_waiting_transfer_is_served_by_a_thread_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    manager, gate = TransferManager(1), Gate()
    watchers = [manager.transfer(key, gate.run, discard) for key in "abc"]
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("one more thread"))
    for key in "abc":
        assert gate.next() == key
        gate.open(key)
    assert manager.wait(watchers, NEVER) == ["A", "B", "C"]


def test_a_system_without_threads_fails_the_transfers_and_leaks_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager, gate = TransferManager(1), Gate()
    first = manager.transfer("a", gate.run, discard)
    assert gate.next() == "a"
    waiting = [manager.transfer(str(number), gate.run, discard) for number in range(2000)]

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    manager.limit = 0  # everybody may start now, and nobody can
    late = manager.transfer("late", gate.run, discard, Progress(action="Waiting"))
    for watcher in [waiting[0], waiting[-1], late]:
        with pytest.raises(Error, match="transfer .*: can't start new thread"):
            manager.wait([watcher], NEVER)
        manager.release(watcher)
    gate.open("a")
    assert manager.wait([first], NEVER) == ["A"]
    assert at_rest(manager)


@pytest.mark.parametrize("seed", range(5))
def test_every_slot_comes_back_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    manager = TransferManager(3)
    parts: Dict[str, List[int]] = {}
    errors: List[BaseException] = []

    def run(transfer: Transfer) -> str:
        for part in parts[transfer.key]:
            if part == 0:
                raise Error("simulated")
            if part == 1:
                transfer.inactive()
            transfer.progress(Progress("", "", "testing", part))
            transfer.cancel.pause(0.0001 * part)
        return transfer.key

    def use(numbers: List[int]) -> None:
        cancel = Cancel()
        watchers = [manager.transfer("id%d" % number, run, discard, cancel=cancel) for number in numbers]
        try:
            if numbers[0] % 3 == 0:
                cancel.cancel()
            assert manager.wait(watchers, cancel) == ["id%d" % number for number in numbers]
        except Error:
            pass
        except BaseException as exc:
            errors.append(exc)
            raise
        finally:
            for watcher in watchers:
                manager.release(watcher)

    for number in range(20):
        parts["id%d" % number] = [chance.randrange(12) for _ in range(4)]
    users = [spawn(functools.partial(use, chance.sample(range(20), 6))) for _ in range(12)]
    for user in users:
        join(user)
    wait_for(manager, lambda: at_rest(manager))
    assert errors == []
