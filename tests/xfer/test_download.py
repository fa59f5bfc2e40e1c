# SPDX-License-Identifier: Apache-2.0
"""Layers side by side: transfers, attempts, the chain; upstream's download_test among it.

The layers are a DownloadDescriptor of our own, whose bytes are its id five
times over, as upstream's are; everything below it is real.
"""
import functools
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import pytest

from tests.kit.layers import chain_id
from tests.kit.processes import wait_until
from tests.kit.work import Counter, Log, background
from minipull.store.check import check
from minipull.image.descriptor import Descriptor
from minipull.digest import DiffID, Digest
from minipull.xfer.download import DownloadDescriptor, LayerDownloadManager, Turnstile
from minipull.errors import Cancelled, Error, NetworkError, StorageError
from minipull.store.layer import Diff
from minipull.store.metadata import V2Metadata
from minipull.progress import Progress, discard
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.xfer.transfer import Transfer

DIFF_IDS = {
    "id1": "68e2c75dc5c78ea9240689c60d7599766c213ae210434c53af18470ae8c53ec1",
    "id2": "64a636223116aa837973a5d9c2bdd17d9b204e4f95ac423e20e65dfbb3655473",
    "id3": "58745a8bbd669c25213e9de578c4da5c8ee1c836b3581432c2b50e38a6753300",
    "id4": "0dfb5b9577716cc173e95af7c10289322c29a6453a1718addc00c0c5b1330936",
    "id5": "0a5f25fa1acbc647f6112a6276735d0fa01e4ee2aa7ec33015e337350e1ea23d",
}
BESIDE: Tuple[str, Callable[[Transfer], Any]] = ("config", lambda transfer: "the config")


class Layer(DownloadDescriptor):
    """``failures`` come first; ``gate`` is waited for with the slot, ``door`` without."""

    def __init__(self, store: Store, name: str, failures: int = 0, counter: Optional[Counter] = None,
                 gate: Optional[threading.Event] = None, door: Optional[threading.Event] = None,
                 retry: bool = True) -> None:
        self.key = self.id = name
        self.content = (name * 5).encode()
        self.blob = Descriptor("test", Digest.of(self.content), len(self.content))
        self.counter = counter or Counter()
        self.done: List[Diff] = []
        self._store, self._failures, self._retry = store, failures, retry
        self._gate, self._door, self._tries = gate, door, 0

    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        diff_id = self._store.metadata.get_diff_id(self.blob.digest)
        stored = self._store.content.has(self.blob.digest, self.blob.size)
        return (self.blob, Diff(diff_id)) if diff_id and stored else None

    def download(self, transfer: Transfer) -> Optional[Descriptor]:
        with self.counter:
            for current in range(0, 11):
                transfer.progress(Progress(id=self.id, action="Downloading", current=current, total=10))
            while self._gate is not None and not self._gate.wait(0.001):
                transfer.cancel.check()
            self._tries += 1
            if self._tries <= self._failures:
                error = NetworkError if self._retry else StorageError
                raise error("simulating download attempt failure %d/%d" % (self._tries, self._failures))
            self._store.content.put(self.blob.digest, self.content)
            return self.blob

    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        assert blob is not None
        if self._door is not None:
            self._door.wait(10)
        return self._store.layers.diff(blob.digest, transfer.cancel)

    def registered(self, diff: Diff) -> None:
        self.done.append(diff)
        self._store.metadata.add(diff.diff_id, V2Metadata(self.blob.digest, "test"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def manager(**options: Any) -> LayerDownloadManager:
    return LayerDownloadManager(tick=options.pop("tick", 0.001), **options)


def diff_ids(done: Tuple[List[Any], Any]) -> List[str]:
    return [layer.diff.diff_id for layer in done[0]]


def six(store: Store, failures: int = 0) -> List[Layer]:
    counter = Counter()
    return [Layer(store, name, failures if n == 4 else 0, counter)
            for n, name in enumerate(["id1", "id2", "id3", "id2", "id4", "id5"])]


# -- upstream's tests ----------------------------------------------------------


def test_layers_come_out_as_the_chain_that_was_asked_for(store: Store) -> None:
    layers, log = six(store, failures=1), Log()
    store.content.put(layers[0].blob.digest, layers[0].content)
    layers[0].registered(Diff(DiffID(Digest("sha256:" + DIFF_IDS["id1"]))))
    done = manager(concurrency=3).download(store, layers, log, Cancel(), BESIDE)
    expected = ["sha256:" + DIFF_IDS[layer.id] for layer in layers]
    assert diff_ids(done) == expected
    assert [layer.chain_id for layer in done[0]] == [
        chain_id([DiffID(Digest(diff_id)) for diff_id in expected[:n + 1]]) for n in range(6)]
    assert done[1] == "the config"
    assert log.last == {
        "id1": "Already exists", "id2": "Pull complete", "id3": "Pull complete",
        "id4": "Pull complete", "id5": "Pull complete"}
    for layer, diff_id in zip(layers, expected):
        assert layer.done[-1:] == [Diff(DiffID(Digest(diff_id)))]
    assert layers[0].counter.most <= 3 and layers[0].counter.total == 5  # id4 twice, id2 once
    assert check(store) == []


def test_a_cancelled_download_raises_cancelled(store: Store) -> None:
    cancel, never = Cancel(), threading.Event()
    layers = [Layer(store, name, gate=never) for name in ("id1", "id2", "id3", "id4")]
    thread, results = background(
        lambda: manager(concurrency=3).download(store, layers, discard, cancel, BESIDE))
    wait_until(lambda: layers[0].counter.now == 1, "download")
    cancel.cancel()
    thread.join(10)
    assert isinstance(results[0], Cancelled)
    wait_until(lambda: all(layer.counter.now == 0 for layer in layers), "the work to end")


@pytest.mark.parametrize("failures, attempts, error", [
    (1, 5, ""), (4, 5, ""),
    (5, 5, "simulating download attempt failure 5/5"),
    (1, 1, "simulating download attempt failure 1/1"),
])
def test_attempts_are_counted_as_upstream_counts_them(
        store: Store, failures: int, attempts: int, error: str) -> None:
    downloads = manager(attempts=attempts, tick=0.0001)
    layers = six(store, failures)
    if not error:
        assert len(downloads.download(store, layers, discard, Cancel(), BESIDE)[0]) == 6
    else:
        with pytest.raises(NetworkError) as caught:
            downloads.download(store, layers, discard, Cancel(), BESIDE)
        assert str(caught.value) == error


# -- attempts ------------------------------------------------------------------


def test_the_countdown_has_the_engines_words(store: Store) -> None:
    log = Log()
    manager().download(store, [Layer(store, "id1", failures=2)], log, Cancel(), BESIDE)
    counted = [action for action in log.actions("id1") if action.startswith("Retrying")]
    assert counted == ["Retrying in %d seconds" % n for n in (5, 4, 3, 2)] + ["Retrying in 1 second"] + [
        "Retrying in %d seconds" % n for n in range(10, 1, -1)] + ["Retrying in 1 second"]


def test_a_permanent_error_is_not_tried_again(store: Store) -> None:
    layer = Layer(store, "id1", failures=1, retry=False)
    with pytest.raises(StorageError):
        manager().download(store, [layer], discard, Cancel(), BESIDE)
    assert layer.counter.total == 1


def test_the_countdown_can_be_cancelled(store: Store) -> None:
    cancel, log = Cancel(), Log()
    layer = Layer(store, "id1", failures=1)
    thread, results = background(
        lambda: manager(tick=60).download(store, [layer], log, cancel, BESIDE))
    wait_until(lambda: "Retrying in 5 seconds" in log.actions("id1"), "countdown")
    cancel.cancel()
    thread.join(10)
    assert isinstance(results[0], Cancelled)


# -- slots and order -----------------------------------------------------------


def test_a_layer_that_waits_for_a_slot_is_shown_as_waiting(store: Store) -> None:
    gate, log = threading.Event(), Log()
    layers = [Layer(store, "id1", gate=gate), Layer(store, "id2")]
    downloads = manager(concurrency=1)
    thread, results = background(lambda: downloads.download(store, layers, log, Cancel(), BESIDE))
    wait_until(lambda: log.actions("id2") == ["Pulling fs layer", "Waiting"], "the second layer")
    gate.set()
    thread.join(10)
    assert len(results[0][0]) == 2
    assert log.actions("id2") == ["Pulling fs layer", "Waiting", "Downloading", "Pull complete"]


def test_a_layer_that_is_decompressed_holds_no_slot(store: Store) -> None:
    door, log = threading.Event(), Log()
    layers = [Layer(store, "id1", door=door), Layer(store, "id2")]
    downloads = manager(concurrency=1)
    thread, results = background(lambda: downloads.download(store, layers, log, Cancel(), BESIDE))
    wait_until(lambda: layers[1].counter.total == 1, "the second layer")
    assert log.actions("id1")[-1] == "Downloading"
    door.set()
    thread.join(10)
    assert len(results[0][0]) == 2


def test_a_layer_is_complete_only_after_its_parent(store: Store) -> None:
    gate, log = threading.Event(), Log()
    layers = [Layer(store, "id1", gate=gate), Layer(store, "id2")]
    thread, _ = background(lambda: manager().download(store, layers, log, Cancel(), BESIDE))
    wait_until(lambda: layers[1].counter.total == 1 and layers[1].counter.now == 0, "the second layer")
    assert layers[1].done == []
    gate.set()
    thread.join(10)
    complete = [event.id for event in log.events if event.action == "Pull complete"]
    assert complete == ["id1", "id2"]


def test_nothing_is_downloaded_on_a_parent_that_failed(store: Store) -> None:
    layers = [Layer(store, "id1", failures=1, retry=False), Layer(store, "id2")]
    with pytest.raises(StorageError, match="simulating"):
        manager(concurrency=1).download(store, layers, discard, Cancel(), BESIDE)
    assert layers[1].counter.total == 0


def test_the_error_of_the_work_beside_ends_the_layers(store: Store) -> None:
    def fail(transfer: Transfer) -> None:
        raise NetworkError("no config")

    layer = Layer(store, "id1", gate=threading.Event())
    with pytest.raises(NetworkError, match="no config"):
        manager().download(store, [layer], discard, Cancel(), ("config", fail))
    wait_until(lambda: layer.counter.now == 0, "the layer to give up")


def test_the_same_blob_on_a_new_parent_needs_no_cache(store: Store) -> None:
    class Forgetful(Layer):
        def registered(self, diff: Diff) -> None:
            self.done.append(diff)

    layers = [Forgetful(store, "id1"), Forgetful(store, "id2"), Forgetful(store, "id1")]
    done = manager().download(store, layers, discard, Cancel(), BESIDE)
    assert diff_ids(done) == ["sha256:" + DIFF_IDS[name] for name in ("id1", "id2", "id1")]
    assert layers[2].counter.total == 0


def test_an_image_without_layers_is_its_config(store: Store) -> None:
    assert manager().download(store, [], discard, Cancel(), BESIDE) == ([], "the config")


# -- sharing -------------------------------------------------------------------


def shared(store: Store, gate: threading.Event, counter: Counter) -> List[Layer]:
    return [Layer(store, name, counter=counter, gate=gate) for name in ("id1", "id2")]


def test_pulls_with_one_manager_share_transfers(store: Store) -> None:
    downloads, gate, counter = manager(), threading.Event(), Counter()
    logs = [Log(), Log()]
    pulls = [background(functools.partial(
        downloads.download, store, shared(store, gate, counter), log, Cancel(), BESIDE)) for log in logs]
    wait_until(lambda: all(log.actions("id2")[-1:] == ["Downloading"] for log in logs), "both")
    gate.set()
    for thread, results in pulls:
        thread.join(10)
        assert diff_ids(results[0]) == ["sha256:" + DIFF_IDS["id1"], "sha256:" + DIFF_IDS["id2"]]
    assert counter.total == 2
    assert [log.last for log in logs] == [{"id1": "Pull complete", "id2": "Pull complete"}] * 2


def test_a_cancelled_pull_leaves_the_shared_transfers_to_the_other(store: Store) -> None:
    downloads, gate, counter, cancel = manager(), threading.Event(), Counter(), Cancel()
    logs = [Log(), Log()]
    first, gone = background(
        lambda: downloads.download(store, shared(store, gate, counter), logs[0], cancel, BESIDE))
    wait_until(lambda: counter.now == 2, "the first")
    second, kept = background(
        lambda: downloads.download(store, shared(store, gate, counter), logs[1], Cancel(), BESIDE))
    wait_until(lambda: logs[1].actions("id2")[-1:] == ["Downloading"], "the second")
    cancel.cancel()
    first.join(10)
    assert isinstance(gone[0], Cancelled)
    seen = len(logs[0].events)
    gate.set()
    second.join(10)
    assert len(kept[0][0]) == 2 and counter.total == 2
    assert len(logs[0].events) == seen  # nobody calls an output after its pull


def test_an_output_that_raises_ends_its_own_pull_only(store: Store) -> None:
    downloads, gate, counter, log = manager(), threading.Event(), Counter(), Log()

    def bad(event: Progress) -> None:
        if event.action == "Downloading":
            raise ZeroDivisionError

    second, kept = background(
        lambda: downloads.download(store, shared(store, gate, counter), log, Cancel(), BESIDE))
    wait_until(lambda: counter.now == 2, "the good one")
    with pytest.raises(ZeroDivisionError):
        downloads.download(store, shared(store, gate, counter), bad, Cancel(), BESIDE)
    gate.set()
    second.join(10)
    assert len(kept[0][0]) == 2


def test_stores_share_no_transfers(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "other"))
    downloads = manager()
    for each in (store, other):
        layer = Layer(each, "id1")
        downloads.download(each, [layer], discard, Cancel(), BESIDE)
        assert each.content.has(layer.blob.digest, layer.blob.size)


# -- the turnstile -------------------------------------------------------------


def test_the_turnstile_lets_the_largest_work_in_first() -> None:
    turnstile, entered, threads = Turnstile(1), [], []

    def enter(size: int) -> None:
        with turnstile.turn(size, Cancel()):
            entered.append(size)

    with turnstile.turn(0, Cancel()):
        for n, size in enumerate((10, 30, 20, 30)):
            threads.append(background(functools.partial(enter, size))[0])
            wait_until(lambda: repr(turnstile).endswith(" %d waiting>" % (n + 1)), "the queue")
    for thread in threads:
        thread.join(10)
    assert entered == [30, 30, 20, 10]


def test_cancelled_work_leaves_the_queue_of_the_turnstile() -> None:
    turnstile, cancel = Turnstile(1), Cancel()

    def enter() -> None:
        with turnstile.turn(100, cancel):
            raise AssertionError("not reached")

    with turnstile.turn(0, Cancel()):
        thread, results = background(enter)
        wait_until(lambda: repr(turnstile) == "<Turnstile: 1 of 1 in use, 1 waiting>", "the queue")
        cancel.cancel()
        thread.join(10)
    assert isinstance(results[0], Cancelled)
    with turnstile.turn(1, Cancel()):
        pass


def test_an_error_gives_the_turnstile_back() -> None:
    turnstile = Turnstile(1)
    with pytest.raises(Error), turnstile.turn(1, Cancel()):
        raise Error("inside")
    with turnstile.turn(1, Cancel()):
        pass
