# SPDX-License-Identifier: Apache-2.0
"""The behaviours of moby's transfer_test.go, and those that only threads have."""
import contextlib
import functools
import queue
import random
import threading
import time
from typing import Any, Callable, Dict, List, Sequence

import pytest

from minipull.errors import Cancelled, Error, NetworkError, StorageError
from minipull.progress import Progress, discard
from minipull.cancel import Cancel
from minipull.xfer.transfer import Transfer, TransferManager, Watcher

TIMEOUT = 30.0  # seconds; only a failing test waits that long
TOTAL = 10
NEVER = Cancel()


class Recorder:
    """An output that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.seen: List[int] = []
        self.inside = False
        self._changed = threading.Condition()

    def __call__(self, progress: Progress) -> None:
        with self._changed:
            assert not self.inside, "called by two threads at once"
            self.inside = True
        with self._changed:
            self.inside = False
            self.seen.append(progress.current)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, TIMEOUT)

    def check(self) -> None:
        """Strictly in order, and the newest was not lost."""
        assert self.seen == sorted(set(self.seen)) and self.seen[-1] == TOTAL


def count_up(transfer: Transfer) -> None:
    for current in range(TOTAL + 1):
        transfer.progress(Progress("", "", "testing", current, TOTAL))


def until_cancelled(transfer: Transfer) -> None:
    """Emit until nobody listens."""
    current = 0
    while True:
        current += 1
        transfer.progress(Progress("", "", "testing", current))
        transfer.cancel.pause(0.001)


def wait_for(manager: TransferManager, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    with manager.changed:
        while not ready():
            assert time.monotonic() < end
            manager.changed.wait(0.01)  # not every change is notified


def spawn(target: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def join(thread: threading.Thread) -> None:
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def at_rest(manager: TransferManager) -> bool:
    return (manager.active, len(manager.waiting)) == (0, 0) and not manager._transfers


class Gate:
    """Work that says when it has begun, and ends when it is told to."""

    def __init__(self, inactive: bool = False) -> None:
        self.begun: "queue.Queue[str]" = queue.Queue()
        self.gates: Dict[str, threading.Event] = {}
        self._inactive = inactive

    def run(self, transfer: Transfer) -> str:
        gate = self.gates.setdefault(transfer.key, threading.Event())
        self.begun.put(transfer.key)
        assert gate.wait(TIMEOUT)
        count_up(transfer)
        if self._inactive:
            transfer.inactive()
            transfer.inactive()
            assert self.gates.setdefault("end", threading.Event()).wait(TIMEOUT)
        return transfer.key.upper()

    def next(self) -> str:
        return self.begun.get(timeout=TIMEOUT)

    def open(self, key: str) -> None:
        self.gates.setdefault(key, threading.Event()).set()


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
        assert watcher.transfer.released
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
    watchers += [manager.watch(transfer, output) for output in outputs[1:]]
    ready.set()
    for output in outputs:
        output.wait()
    for watcher in watchers:
        assert not transfer.cancel.cancelled and not transfer.released
        manager.release(watcher)
    wait_for(manager, lambda: transfer.done)
    assert transfer.released and transfer.cancel.cancelled
    assert isinstance(transfer.error, Cancelled)
    assert at_rest(manager)


def test_watch_finished_transfer() -> None:
    manager = TransferManager(5)
    seen = Recorder()
    watchers = [manager.transfer("id1", count_up, discard)]
    transfer = watchers[0].transfer
    watchers.append(manager.watch(transfer, discard))
    wait_for(manager, lambda: transfer.done)
    watchers.append(manager.watch(transfer, seen))
    for watcher in watchers:
        assert not transfer.released
        manager.release(watcher)
    assert transfer.released and not transfer.cancel.cancelled
    assert seen.seen == []


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


def test_who_joins_late_sees_the_newest_at_once() -> None:
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


def test_who_waits_for_a_slot_is_told_so_and_so_is_who_joins() -> None:
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


def test_who_leaves_before_the_slot_comes_never_runs() -> None:
    manager, gate = TransferManager(1), Gate()
    first = manager.transfer("a", gate.run, discard)
    second = manager.transfer("b", gate.run, discard)
    third = manager.transfer("c", gate.run, discard)
    dependent = spawn(lambda: pytest.raises(Cancelled, manager.result, second.transfer, NEVER))
    manager.release(second)
    state = second.transfer
    assert (state.done, state.released, state.started) == (True, True, False)
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


def test_who_joins_what_was_cancelled_gets_a_new_one_after_its_end() -> None:
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
    assert first.transfer.result == "old" and first.transfer.released


def test_a_finished_transfer_is_kept_by_who_watches_and_by_nobody_else() -> None:
    manager = TransferManager(5)
    watcher = manager.transfer("id1", lambda transfer: "first", discard)
    assert manager.wait([watcher], NEVER) == ["first"]
    other = manager.transfer("id1", lambda transfer: "second", discard)
    assert manager.wait([other], NEVER) == ["second"]
    assert (watcher.transfer.released, other.transfer.released) == (False, False)
    manager.release(watcher)
    manager.release(watcher)
    assert (watcher.transfer.released, other.transfer.released) == (True, False)


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


def test_who_gives_up_waiting_cancels_nothing() -> None:
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


# -- outputs that misbehave ----------------------------------------------------------


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


def test_who_joins_is_not_kept_by_progress_that_keeps_coming() -> None:
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


def test_who_waits_is_served_by_a_thread_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert watcher.transfer.released
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


# -- attempts --------------------------------------------------------------------


def attempted(errors: Sequence[Error], attempts: int = 5, tick: float = 0.0001) -> List[str]:
    """What is said of work that raises these errors first; "ok" at the end."""
    manager, said, left = TransferManager(1), [], list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "ok"

    watcher = manager.transfer("key", lambda transfer: transfer.attempt(work, "id", attempts, tick),
                               lambda event: said.append("%s %s" % (event.id, event.action)))
    try:
        return said + manager.wait([watcher], NEVER)
    finally:
        manager.release(watcher)


def counted(seconds: int) -> List[str]:
    return ["id Retrying in %d seconds" % n for n in range(seconds, 1, -1)] + ["id Retrying in 1 second"]


def test_work_is_tried_again_after_a_countdown_that_grows() -> None:
    assert attempted([]) == ["ok"]
    assert attempted([NetworkError("x")] * 4) == counted(5) + counted(10) + counted(15) + counted(20) + ["ok"]


def test_work_is_not_tried_more_often_than_said_or_where_it_would_not_help() -> None:
    for error, count, attempts in ((NetworkError("x"), 5, 5), (NetworkError("x"), 1, 1), (StorageError("x"), 1, 5)):
        with pytest.raises(type(error)):
            attempted([error] * count, attempts)
    manager = TransferManager(1)
    with pytest.raises(ZeroDivisionError):
        manager.wait([manager.transfer(
            "key", lambda transfer: transfer.attempt(lambda: 1 // 0, "id", 5, 0), discard)], NEVER)


def test_a_countdown_ends_with_its_last_watcher() -> None:
    manager, seen = TransferManager(1), threading.Event()

    def fail() -> None:
        raise NetworkError("x")

    watcher = manager.transfer(
        "key", lambda transfer: transfer.attempt(fail, "id", 5, 60.0), lambda event: seen.set())
    assert seen.wait(TIMEOUT)
    manager.release(watcher)
    wait_for(manager, lambda: watcher.transfer.done)
    assert isinstance(watcher.transfer.error, Cancelled) and at_rest(manager)
