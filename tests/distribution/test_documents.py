# SPDX-License-Identifier: Apache-2.0
"""Manifests are asked for and put side by side, within --jobs, and fail in the order of their index."""
import contextlib
import json
import threading
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.distribution import blobs
from minipull.distribution.documents import MAX_AHEAD, Ahead, pull_in_order, put_below, side_by_side
from minipull.errors import Cancelled, InvalidDocument, PolicyError, Unauthorized
from minipull.image import walk
from minipull.image.descriptor import Descriptor
from minipull.image.manifest import Document, Index, Manifest, parse
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.registry.endpoints import Endpoint
from minipull.registry.errors import RegistryError
from minipull.store.check import check
from minipull.xfer.download import LayerDownloadManager
from minipull.xfer.transfer import Transfer, TransferManager
from minipull.xfer.upload import LayerUploadManager
from tests.kit import images
from tests.kit.copies import Target, add, artifact, copied
from tests.kit.images import OCI_INDEX, Layout
from tests.kit.servers import Connection, ScriptedServer, content, error, hold, reply
from tests.kit.work import Counter, Log, background

pytestmark = pytest.mark.usefixtures("no_repeats")

CHILDREN = 6


@pytest.fixture
def children(server: ScriptedServer, layout: Layout) -> List[str]:
    """The digests of manifests without layers, of an index that the server has as ``r:latest``."""
    entries = [artifact(layout, annotations={"n": str(number)}) for number in range(CHILDREN)]
    layout.index(entries, "latest")
    server.serve(layout.root, "r")
    return [entry["digest"] for entry in entries]


def together(count: int, act: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """Answer only once ``count`` requests wait for it."""
    barrier = threading.Barrier(count, timeout=20)

    def wait(connection: Connection) -> None:
        barrier.wait()
        act(connection)
    return wait


def answering(layout: Layout) -> Callable[[Connection], None]:
    def answer(connection: Connection) -> None:
        raw = layout.read(connection.request.path.rpartition("/")[2])
        content(raw, images.OCI_MANIFEST, ranges=False)(connection)
    return answer


def jobs(count: int) -> LayerUploadManager:
    return LayerUploadManager(count, tick=0.001)


def test_children_of_an_index_are_asked_for_side_by_side(
        server: ScriptedServer, layout: Layout, children: List[str], tmp_path: Path) -> None:
    server.on("GET", "/manifests/sha256:", together(CHILDREN, answering(layout)))
    copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"), uploads=jobs(CHILDREN))


@pytest.mark.parametrize("first", [MAX_AHEAD // 3, MAX_AHEAD])
def test_children_that_wait_for_room_are_asked_for_side_by_side_too(
        server: ScriptedServer, layout: Layout, tmp_path: Path, first: int) -> None:
    sizes = [first] + [MAX_AHEAD // 3] * CHILDREN
    entries = [artifact(layout, annotations={"n": "%d" % number * size}) for number, size in enumerate(sizes)]
    layout.index(entries, "latest")
    server.serve(layout.root, "r")
    pairs = together(2, answering(layout))
    for entry in entries[1:]:
        server.on("GET", "/manifests/" + entry["digest"], pairs)
    copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"), uploads=jobs(CHILDREN))


@pytest.mark.parametrize("how", ["pull", "pull again", "copy", "copy its referrers"])
def test_no_manifest_is_asked_for_twice(
        server: ScriptedServer, layout: Layout, store: minipull.Store, tmp_path: Path, how: str) -> None:
    few = [artifact(layout, annotations={"n": str(number)}) for number in range(CHILDREN)]
    inner, other = layout.index([few[-1]]).descriptor, layout.blob(b"other", "application/x-other")
    top = layout.index([few[0], inner, few[0], *few, other], "latest").descriptor
    new = artifact(layout, annotations={"n": "new"})
    about = [add(layout, {"schemaVersion": 2, "mediaType": OCI_INDEX, "subject": top, "manifests": listed}, name)
             for name, listed in (("one", [*few, new]), ("two", [new]))]
    server.serve(layout.root, "r")
    server.on("GET", "/referrers/" + top["digest"], reply(200, {"manifests": about}))
    if how == "pull again":
        server.on("GET", "/manifests/" + other["digest"], error(403, "DENIED"),
                  content(layout.read(other["digest"]), other["mediaType"]))
        with pytest.raises(Unauthorized):
            minipull.pull("%s/r" % server.host, store, all_platforms=True, downloads=LayerDownloadManager(1))
    if how.startswith("pull"):
        minipull.pull("%s/r" % server.host, store, all_platforms=True, downloads=LayerDownloadManager(1))
    else:
        copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"), uploads=jobs(1),
               referrers=how == "copy its referrers")
    for entry in (*few, inner, other):
        refused = how == "pull again" and entry is other
        assert len(server.seen("GET", "/manifests/" + entry["digest"])) == 1 + refused
    assert len(server.seen("GET", "/manifests/" + new["digest"])) == (how == "copy its referrers")


def test_the_manifests_of_all_referrers_have_one_bound(
        server: ScriptedServer, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = artifact(layout, "latest")
    about = [artifact(layout, name, subject=top, annotations={"x": name * 1000}) for name in "abcde"]
    server.serve(layout.root, "r")
    server.on("GET", "/referrers/" + top["digest"], reply(200, {"manifests": about}))
    monkeypatch.setattr(walk, "MAX_BYTES", 4000)
    with pytest.raises(PolicyError, match="more than 4000 bytes of manifests"):
        copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"), referrers=True)


def test_a_child_that_fails_once_is_asked_for_again(
        server: ScriptedServer, layout: Layout, children: List[str], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "DOCUMENT_DELAYS", (0.001,))
    server.on("GET", children[1], error(500, "UNKNOWN"), answering(layout))
    copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"))


def test_images_of_an_index_are_pulled_side_by_side_and_end_in_order(
        server: ScriptedServer, layout: Layout, store: minipull.Store) -> None:
    made = [layout.image(images.specs(1, 1000, seed=number)) for number in range(CHILDREN - 1)]
    layout.index([*(image.descriptor for image in made), artifact(layout, payload=b"bill")], "latest")
    server.serve(layout.root, "r")
    raws = {"sha256:" + path.name: path.read_bytes() for path in (layout.root / "blobs" / "sha256").iterdir()}

    def answer(connection: Connection) -> None:
        content(raws[connection.request.path.rpartition("/")[2]])(connection)

    server.on("GET", "/blobs/", together(2 * CHILDREN, answer))  # the config and the layer of each
    log = Log()
    downloads = LayerDownloadManager(2 * CHILDREN)
    minipull.pull("%s/r" % server.host, store, all_platforms=True, progress=log, downloads=downloads)
    begun = [event.id for event in log.events if event.action == "Pulling fs layer"]
    assert begun == [Digest(image.layers[0].descriptor["digest"]).short for image in made]
    assert check(store) == []


def test_a_repository_that_refuses_a_blob_fails_no_pull_from_another(
        server: ScriptedServer, layout: Layout, store: minipull.Store) -> None:
    bill = artifact(layout, payload=b"bill")
    layout.index([bill], "latest")
    asked = threading.Event()

    def refuse(connection: Connection) -> None:
        asked.set()
        while not server.seen("GET", "/v2/b/manifests/latest"):
            connection.wait(0.01)
        connection.wait(0.05)
        error(403, "DENIED")(connection)

    for path in "ab":
        server.serve(layout.root, path)
    server.on("GET", "/v2/a/blobs/" + json.loads(layout.read(bill["digest"]))["layers"][0]["digest"], refuse)
    other, downloads = minipull.Store(store.root), LayerDownloadManager(6)

    def pull(path: str, into: minipull.Store) -> minipull.Image:
        return minipull.pull("%s/%s" % (server.host, path), into, all_platforms=True, downloads=downloads)

    thread, results = background(lambda: pull("a", store))
    assert asked.wait(20)
    pull("b", other)
    thread.join(20)
    assert isinstance(results[0], Unauthorized) and check(other) == []


def test_a_registry_that_refuses_a_layer_of_another_fails_no_pull_of_that(
        server: ScriptedServer, foreign: ScriptedServer, layout: Layout, store: minipull.Store) -> None:
    image = layout.image(images.specs(1), "latest")
    asked, blob = threading.Event(), image.layers[0].descriptor["digest"]

    def refuse(connection: Connection) -> None:
        asked.set()
        while not foreign.seen("GET", "/manifests/latest"):
            connection.wait(0.01)
        connection.wait(0.05)
        error(403, "DENIED")(connection)

    for host in (server, foreign):
        host.serve(layout.root, "r")
    server.on("GET", "/blobs/" + blob, refuse)
    downloads = LayerDownloadManager(6)
    thread, results = background(lambda: minipull.pull(server.host + "/r", store, downloads=downloads))
    assert asked.wait(20)
    minipull.pull(foreign.host + "/r", store, downloads=downloads)
    thread.join(20)
    assert isinstance(results[0], Unauthorized) and check(store) == []


def test_a_layer_that_two_images_share_is_pulled_once(
        server: ScriptedServer, layout: Layout, store: minipull.Store) -> None:
    shared = images.specs(1, 1000)
    layout.index([layout.image([*shared[:number], *images.specs(1, 900, seed=number + 1), *shared]).descriptor
                  for number in range(2)], "latest")
    server.serve(layout.root, "r")
    minipull.pull("%s/r" % server.host, store, all_platforms=True, downloads=LayerDownloadManager(9))
    asked = [request.path for request in server.seen("GET", "/blobs/")]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_jobs_hold_for_manifests_too(server: ScriptedServer, target: Target, layout: Layout,
                                     children: List[str], method: str) -> None:
    counter, busy = Counter(), server if method == "GET" else target
    act = together(2, answering(layout) if method == "GET" else target.uploads.put)

    def counted(connection: Connection) -> None:
        with counter:
            act(connection)

    busy.on(method, "/manifests/sha256:", counted)
    copied("docker://%s/r" % server.host, target, uploads=jobs(2))
    assert (counter.most, counter.total) == (2, CHILDREN)


@pytest.mark.parametrize("kind", ["blobs", "larger", "rotten"])
def test_an_entry_that_is_not_asked_for_ahead_takes_a_slot_too(
        server: ScriptedServer, layout: Layout, store: minipull.Store, kind: str) -> None:
    counter = Counter()
    entries = [artifact(layout, annotations={"n": str(number)}) for number in range(CHILDREN)]
    if kind == "larger":
        entries[0]["size"] -= 1
    elif kind == "blobs":
        entries.insert(0, layout.blob(b"other", "application/x-other"))
    else:
        rotten = Path(store.content.path(Digest(entries[0]["digest"])))
        rotten.parent.mkdir(parents=True)
        rotten.write_bytes(bytes(entries[0]["size"]))
    layout.index(entries, "latest")
    server.serve(layout.root, "r")
    raws = {"sha256:" + path.name: path.read_bytes() for path in (layout.root / "blobs" / "sha256").iterdir()}

    def counted(connection: Connection) -> None:
        with counter:
            connection.wait(0.02)
        content(raws[connection.request.path.rpartition("/")[2]], ranges=False)(connection)

    server.on("GET", "/(blobs|manifests)/sha256:", counted)
    with contextlib.suppress(InvalidDocument):
        minipull.pull("%s/r" % server.host, store, all_platforms=True, downloads=LayerDownloadManager(1))
    assert counter.most == 1


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_images_are_begun_within_a_bound_of_their_json(
        server: ScriptedServer, layout: Layout, store: minipull.Store, part: str) -> None:
    extra = {"x": "a" * (MAX_AHEAD // 2)}
    made = [layout.image(images.specs(1, 1000, seed=number), **(
        {"config": {"n": number, **extra}} if part == "config" else extra)) for number in range(3)]
    layout.index([image.descriptor for image in made], "latest")
    server.serve(layout.root, "r")
    log = Log()
    downloads = LayerDownloadManager(9)
    minipull.pull("%s/r" % server.host, store, all_platforms=True, progress=log, downloads=downloads)
    ids = [Digest(image.layers[0].descriptor["digest"]).short for image in made]
    steps = [(event.id, event.action) for event in log.events if event.action.startswith("Pull")]
    assert steps == [(id, action) for id in ids for action in ("Pulling fs layer", "Pull complete")]


def test_children_are_put_side_by_side_and_their_index_after_them(
        server: ScriptedServer, target: Target, children: List[str]) -> None:
    target.on("PUT", "/manifests/sha256:", together(CHILDREN, target.uploads.put))
    copied("docker://%s/r" % server.host, target, uploads=jobs(CHILDREN))
    assert set(target.put()[:-1]) == set(children) and target.put()[-1] == "1"


def test_an_index_within_an_index_waits_for_its_children(target: Target, layout: Layout) -> None:
    inner = [layout.index([artifact(layout, annotations={"n": str(number)})]) for number in range(3)]
    layout.index([index.descriptor for index in inner], "latest")

    def late(connection: Connection) -> None:
        connection.wait(0.02)
        target.uploads.put(connection)

    for index in inner:
        target.on("PUT", "/manifests/" + json.loads(index.raw)["manifests"][0]["digest"], late)
    copied("oci:%s" % layout.root, target)  # which refuses an index whose children it lacks
    assert len(target.put()) == 7


def test_referrers_are_put_one_by_one_in_their_order(target: Target, layout: Layout) -> None:
    counter, image = Counter(), artifact(layout)
    entries = [artifact(layout, annotations={"n": str(number)}, subject=image) for number in range(3)]
    layout.index([image, *entries, artifact(layout, annotations={"n": "last"})], "latest")

    def counted(connection: Connection) -> None:
        with counter:
            connection.wait(0.01)
            target.uploads.put(connection)

    target.on("PUT", "/manifests/sha256:", counted)
    copied("oci:%s" % layout.root, target)
    assert counter.most == 1 and target.put()[1:4] == [entry["digest"] for entry in entries]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_the_error_is_that_of_the_first_child_though_another_fails_before_it(
        server: ScriptedServer, target: Target, children: List[str], method: str) -> None:
    busy = server if method == "GET" else target
    late = threading.Event()

    def refuse(connection: Connection) -> None:
        connection.body()
        error(403, "DENIED")(connection)
        late.set()

    busy.on(method, children[2], refuse)
    busy.on(method, children[0], [hold(late), error(405, "UNSUPPORTED")])
    with pytest.raises(RegistryError) as caught:
        copied("docker://%s/r" % server.host, target, uploads=jobs(CHILDREN))
    assert caught.value.status == 405


def test_a_manifest_larger_than_its_index_says_is_told_as_such(
        server: ScriptedServer, layout: Layout, tmp_path: Path) -> None:
    entry = artifact(layout)
    add(layout, {"schemaVersion": 2, "mediaType": OCI_INDEX,
                 "manifests": [{**entry, "size": entry["size"] - 1}]}, "latest")
    server.serve(layout.root, "r")
    with pytest.raises(InvalidDocument, match="%s is not as its index says" % entry["digest"]):
        copied("docker://%s/r" % server.host, "oci:%s" % (tmp_path / "new"))
    asked = server.seen("GET", entry["digest"])
    assert len(asked) == 2, "the first reads no more than the size in the index"


def test_a_cancel_ends_every_request_on_its_way(
        server: ScriptedServer, target: Target, children: List[str]) -> None:
    cancel, uploads = Cancel(), jobs(CHILDREN)
    server.on("GET", "/manifests/sha256:", together(CHILDREN, lambda connection: cancel.cancel()))
    with pytest.raises(Cancelled):
        copied("docker://%s/r" % server.host, target, uploads=uploads, cancel=cancel)
    uploads.transfers.settle("")
    assert uploads.transfers.active == 0 and not target.put()


def test_an_error_ends_every_request_on_its_way(
        server: ScriptedServer, target: Target, children: List[str]) -> None:
    uploads = jobs(CHILDREN)
    server.on("GET", "/manifests/sha256:", hold(threading.Event()))
    server.on("GET", children[0], error(405, "UNSUPPORTED"))
    with pytest.raises(RegistryError):
        copied("docker://%s/r" % server.host, target, uploads=uploads)
    assert_settled(uploads.transfers)


def assert_settled(transfers: TransferManager) -> None:
    thread, _ = background(lambda: transfers.settle(""))
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("size, limit, most", [(MAX_AHEAD // 2, 5, 2), (1, 2, 6)])
def test_manifests_that_wait_for_their_turn_are_bounded_by_their_sum_and_number(
        server: ScriptedServer, size: int, limit: int, most: int) -> None:
    index = listing([Descriptor(images.OCI_MANIFEST, Digest.of(b"%d" % number), size) for number in range(9)])
    server.on("GET", "/manifests/", hold(threading.Event()))
    transfers = TransferManager(limit)
    with Client() as client:
        repository = client.repository(Endpoint(server.url, server.host), Reference(server.host, "r"))
        with Ahead(unasked, repository, transfers, Cancel()) as ahead:
            next(ahead.below(index))
            assert transfers.active + len(transfers.waiting) == most


@pytest.mark.parametrize("path, size, requests", [("r", 9, 1), ("r", 8, 2), ("other", 9, 2)])
def test_two_pulls_share_a_request_for_one_manifest_of_one_repository(
        server: ScriptedServer, path: str, size: int, requests: int) -> None:
    server.on("GET", "/manifests/", hold(threading.Event()))
    transfers = TransferManager(9)
    with Client() as client, contextlib.ExitStack() as stack:
        for place, length in (("r", 9), (path, size)):
            repository = client.repository(Endpoint(server.url, server.host), Reference(server.host, place))
            ahead = stack.enter_context(Ahead(unasked, repository, transfers, Cancel()))
            next(ahead.below(listing([Descriptor(images.OCI_MANIFEST, Digest.of(b""), length)])))
        assert transfers.active == requests


def test_what_a_walk_has_seen_is_not_asked_for(server: ScriptedServer) -> None:
    entries = [Descriptor(images.OCI_MANIFEST, Digest.of(b"%d" % number), 9) for number in range(3)]
    server.on("GET", "/manifests/", hold(threading.Event()))
    transfers = TransferManager(9)
    with Client() as client:
        repository = client.repository(Endpoint(server.url, server.host), Reference(server.host, "r"))
        seen = {entry[:3] for entry in entries[:2]}
        with Ahead(unasked, repository, transfers, Cancel(), seen=seen) as ahead:
            assert next(ahead.below(listing(entries))) == entries[2] and transfers.active == 1


def test_what_was_asked_for_and_is_had_from_elsewhere_leaves_room_for_others(server: ScriptedServer) -> None:
    index = listing([Descriptor(images.OCI_MANIFEST, Digest.of(b"%d" % number), 9) for number in range(9)])
    server.on("GET", "/manifests/", hold(threading.Event()))
    transfers = TransferManager(1)
    with Client() as client:
        repository = client.repository(Endpoint(server.url, server.host), Reference(server.host, "r"))
        with Ahead(unasked, repository, transfers, Cancel()) as ahead:
            assert list(ahead.below(index)) == list(index.manifests)
            assert_settled(transfers)


def listing(entries: List[Descriptor]) -> Index:
    index = parse(images.to_json({"schemaVersion": 2, "mediaType": OCI_INDEX,
                                  "manifests": [entry.to_json() for entry in entries]}))
    assert isinstance(index, Index)
    return index


# -- works and images in line, without a registry ------------------------------------


@contextlib.contextmanager
def entered(counter: Counter) -> Iterator[None]:
    with counter:
        yield


def test_works_hold_what_they_need_and_end_with_the_first_error_in_their_order() -> None:
    transfers, counter = TransferManager(9), Counter()

    def first(transfer: Transfer) -> None:
        transfers.settle("2")
        transfer.cancel.pause(0.02)
        raise InvalidDocument("first")

    def second(transfer: Transfer) -> None:
        raise InvalidDocument("second")

    def third(transfer: Transfer) -> None:
        transfer.cancel.pause(60)

    works = [("1", first), ("2", second), ("3", third)]
    with pytest.raises(InvalidDocument, match="first"):
        with side_by_side(transfers, works, Cancel(), lambda cancel: entered(counter)) as wait:
            wait()
    assert_settled(transfers)
    assert counter.total == len(works)


def test_each_put_holds_what_it_needs(layout: Layout) -> None:
    entries = [artifact(layout, annotations={"n": str(number)}) for number in range(3)]
    documents = [parse(layout.read(entry["digest"])) for entry in entries]
    counter, put = Counter(), []
    put_below(documents, lambda document, cancel: put.append((document, counter.now > 0)), "place",
              TransferManager(2), Cancel(), lambda cancel: entered(counter))
    assert sorted(put) == sorted((document, True) for document in documents)


def in_line(layout: Layout, blobs: int, extra: int) -> List[Descriptor]:
    """Three images of their own blobs, and of one that all share."""
    entries = []
    for number in range(3):
        layers = [layout.blob(b"%d %d" % (number, blob), "a/b") for blob in range(blobs - 2)]
        entries.append(artifact(layout, layers=[layout.blob(b"shared", "a/b"), *layers],
                                config=layout.blob(b"%d" % number, "a/b"), annotations={"x": "y" * extra}))
    return [Descriptor.from_json(entry, "entry") for entry in entries]


@pytest.mark.parametrize("blobs, extra, lacking, together", [
    (2, 0, "own", True), (2, 0, "shared", False),  # which the first image brings
    (2, MAX_AHEAD // 2, "own", False), (6, 0, "own", False)])
def test_an_image_begins_before_the_end_of_others_if_there_is_room_and_they_share_nothing(
        layout: Layout, blobs: int, extra: int, lacking: str, together: bool) -> None:
    entries, events = in_line(layout, blobs, extra), []

    def get(entry: Descriptor) -> Document:
        events.append("get")
        return parse(layout.read(entry.digest))

    @contextlib.contextmanager
    def begin(image: Manifest) -> Iterator[Callable[[], None]]:
        events.append("begin")
        yield lambda: events.append("end")

    shared = Digest.of(b"shared")
    pull_in_order(entries, get, begin, lambda blob: lacking == "shared" or blob.digest != shared,
                  TransferManager(2))
    wanted = ["get", "begin"] * 3 + ["end"] * 3 if together else ["get", "begin", "end"] * 3
    assert [event for event in events if extra or event != "get"] == [
        event for event in wanted if extra or event != "get"]


def unasked(entry: Descriptor) -> Document:
    raise AssertionError("%s is had ahead of its turn" % entry.digest)
