# SPDX-License-Identifier: Apache-2.0
"""A download that breaks off is continued, by this pull or the next, and never put together wrongly."""
import os
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest

from tests.kit import images
import minipull
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.errors import Error, NetworkError, StorageError
from minipull.registry.errors import RegistryError
from minipull.progress import Progress
from tests.kit.servers import Connection, ScriptedServer, close, content, drip, error, head, reply, reset
from tests.kit.pulls import blobs, on_blob, pull, refused, serve, stored_layers
from tests.kit.work import Log



# -- connections that break ------------------------------------------------------


def cut(data: bytes, size: int) -> Callable[[Connection], None]:
    """As content(), but closes after ``size`` bytes, all of which arrive."""
    def act(connection: Connection) -> None:
        first = int(connection.request.headers.get("range", "bytes=0-")[6:-1])
        fields = {"Content-Length": str(len(data) - first)}
        if first:
            fields["Content-Range"] = "bytes %d-%d/%d" % (first, len(data) - 1, len(data))
        connection.send(head(206 if first else 200, fields) + data[first:first + size])
        close(connection)
    return act


def ranges(server: ScriptedServer, digest: str) -> List[Optional[str]]:
    return [request.headers.get("range") for request in server.seen("GET", "/blobs/" + digest)]


@pytest.fixture
def one(server: ScriptedServer, tmp_path: Path) -> "One":
    return One(server, tmp_path)


class One:
    """A served image of one layer of 100 kB or so, and a partial of it."""

    def __init__(self, server: ScriptedServer, tmp_path: Path) -> None:
        self.server = server
        self.layout, self.image = images.single(tmp_path / "layout", layers=1, size=200000)
        serve(server, self.layout)
        self.digest = stored_layers(self.image)[0]
        self.data = self.layout.read(self.digest)

    def partial(self, store: minipull.Store, size: int = 50000) -> Path:
        """Pull until the connection breaks for good; where the partial lies."""
        on_blob(self.server, self.digest, cut(self.data, size), reply(400))
        refused(Error, self.server, store, attempts=1)
        path = Path(store.root, "ingest", self.digest.replace(":", "-"))
        assert path.read_bytes() == self.data[:size]
        self.server.requests.clear()
        return path


def test_a_cut_connection_is_continued_at_once(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    piece = cut(one.data, 30000)
    on_blob(server, one.digest, piece, piece, content(one.data))
    log = Log()
    pull(server, store, attempts=1, progress=log)
    assert ranges(server, one.digest) == [None, "bytes=30000-", "bytes=60000-"]
    assert not log.tells("Retrying")
    assert check(store) == []


def test_a_body_that_breaks_off_at_once_is_asked_for_again(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    nothing = cut(one.data, 0)
    on_blob(server, one.digest, nothing, cut(one.data, 30000), nothing, content(one.data))
    pull(server, store, attempts=1)
    assert ranges(server, one.digest) == [None, None, "bytes=30000-", "bytes=30000-"]
    on_blob(server, one.digest, nothing)
    server.requests.clear()
    refused(NetworkError, server, minipull.Store(store.root + "2"), attempts=1)
    assert len(ranges(server, one.digest)) == 2


def test_a_partial_is_continued_by_the_next_pull(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    one.partial(store)
    on_blob(server, one.digest, content(one.data))
    pull(server, minipull.Store(store.root))
    assert ranges(server, one.digest) == ["bytes=50000-"]
    assert os.listdir(os.path.join(store.root, "ingest")) == []
    assert check(store) == []


def test_a_whole_body_is_never_appended(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    one.partial(store)
    on_blob(server, one.digest, content(one.data, ranges=False))
    pull(server, store)
    assert ranges(server, one.digest) == ["bytes=50000-"]
    assert check(store) == []


def test_a_range_that_is_refused_is_all_fetched_again(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    one.partial(store)
    # docker-registry 2.8 promises more than the 14 bytes that it sends.
    on_blob(server, one.digest, [reply(416, b"416 Requested", length=2048), reset], content(one.data))
    pull(server, store, attempts=1)
    assert ranges(server, one.digest) == ["bytes=50000-", None]
    assert check(store) == []


def test_a_rest_of_another_size_is_all_fetched_again(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    one.partial(store)
    on_blob(server, one.digest, content(one.data + b"more"), content(one.data))
    pull(server, store, attempts=1)
    assert ranges(server, one.digest) == ["bytes=50000-", None]


def test_a_rest_from_elsewhere_is_all_fetched_again(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    one.partial(store)
    on_blob(server, one.digest, content(one.data, shift=7), content(one.data))
    pull(server, store, attempts=1)
    assert ranges(server, one.digest) == ["bytes=50000-", None]
    assert check(store) == []


def test_gc_waits_for_the_worker_of_a_pull_that_was_cancelled(
        server: ScriptedServer, store: minipull.Store, one: One,
        monkeypatch: pytest.MonkeyPatch) -> None:
    syncing, go, real = threading.Event(), threading.Event(), os.fsync

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_size == len(one.data):  # the disk is slow
            syncing.set()
            assert go.wait(20)
        real(fd)

    on_blob(server, one.digest, content(one.data))
    monkeypatch.setattr(os, "fsync", fsync)
    cancel = minipull.Cancel()

    def give_up() -> None:
        assert syncing.wait(20)
        cancel.cancel()

    canceller = threading.Thread(target=give_up)
    canceller.start()
    with pytest.raises(minipull.Cancelled):
        pull(server, store, cancel=cancel)
    canceller.join()
    with pytest.raises(StorageError, match="is locked by"):
        gc(minipull.Store(store.root, timeout=0.1), 0)
    go.set()
    assert one.digest in [str(digest) for digest in gc(store, 0).blobs]
    assert blobs(store) == []


@pytest.mark.parametrize("by_range", [True, False])
def test_a_partial_that_went_bad_is_fetched_again(
        server: ScriptedServer, store: minipull.Store, one: One, by_range: bool) -> None:
    path = one.partial(store)
    path.write_bytes(b"?" * 50000)
    on_blob(server, one.digest, content(one.data, ranges=by_range))
    log = Log()
    pull(server, store, attempts=2, progress=log)
    assert ranges(server, one.digest) == ["bytes=50000-", None]
    assert log.tells("Retrying in 5 seconds")
    assert check(store) == []


def test_a_wrong_rest_from_another_attempt_may_be_retried(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    """Bytes of one answer that are wrong are final, those of two are tried again."""
    on_blob(server, one.digest, cut(b"?" * len(one.data), 30000), content(one.data))
    pull(server, store, attempts=2)
    assert ranges(server, one.digest) == [None, "bytes=30000-", None]
    assert check(store) == []


def test_a_partial_that_is_whole_needs_no_request(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    path = one.partial(store)
    path.write_bytes(one.data)
    pull(server, store)
    assert ranges(server, one.digest) == []


@pytest.mark.parametrize("code, tries", [("UNKNOWN", 3), ("DENIED", 1), ("BLOB_UNKNOWN", 1)])
def test_a_layer_is_tried_again_where_it_may_help(
        server: ScriptedServer, store: minipull.Store, one: One, code: str, tries: int) -> None:
    on_blob(server, one.digest, error(400, code))
    log = Log()
    refused(RegistryError, server, store, attempts=3, progress=log)
    assert len(ranges(server, one.digest)) == tries
    assert log.tells("Retrying in 5 seconds") == (tries > 1)


@pytest.mark.parametrize("answers, text, gets", [
    ([], "", 1), ([error(500)], "", 2), ([reset], "", 2),
    ([reply(401, "you need to be authenticated")], "unauthorized: you need to be authenticated", 1),
    ([reply(401, '{"errors":[{"code":"UNAUTHORIZED","message":"you need to be authenticated"}]}',
            {"Content-Type": "application/json"})], "unauthorized: you need to be authenticated", 1),
    ([reply(401, "", {"Content-Type": "application/json"})], "unauthorized: authentication required", 1),
])
def test_a_config_is_tried_again_as_upstream_does(
        server: ScriptedServer, store: minipull.Store, one: One, answers: List[Any], text: str,
        gets: int) -> None:
    digest = one.image.config["digest"]
    on_blob(server, digest, *answers, content(one.layout.read(digest)))
    if text:
        assert text in refused(RegistryError, server, store)
    else:
        pull(server, store)
    assert len(server.seen("GET", "/blobs/" + digest)) == gets


def test_a_document_has_attempts_of_its_own(
        server: ScriptedServer, store: minipull.Store, one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.registry.transport.RETRY_DELAYS", ())
    monkeypatch.setattr("minipull.distribution.blobs.DOCUMENT_DELAYS", (0.001,) * 4)
    good = content(one.image.raw, images.OCI_MANIFEST)
    server.on("GET", "/manifests/", error(500), error(503), error(500), error(500), good)
    pull(server, store)
    assert len(server.seen("GET", "/manifests/")) == 5
    server.on("GET", "/manifests/", error(500))
    with pytest.raises(RegistryError, match="500"):
        pull(server, store, "r:other")


def test_an_unknown_tag_is_asked_for_once(server: ScriptedServer, store: minipull.Store) -> None:
    server.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        pull(server, store, "r:nope")
    assert caught.value.exit_code == 3
    assert len(server.requests) == 1


def test_a_cancel_in_the_middle_keeps_the_partial(
        server: ScriptedServer, store: minipull.Store, one: One) -> None:
    cancel = minipull.Cancel()
    on_blob(server, one.digest, [content(one.data[:40000], headers={"Content-Length": str(len(one.data))}),
                                 drip(one.data[40000:], 1000)])

    def progress(event: Progress) -> None:
        if event.action == "Downloading" and event.current >= 40000:
            cancel.cancel()

    with pytest.raises(minipull.Cancelled):
        pull(server, store, cancel=cancel, progress=progress)
    assert store.images() == []
    on_blob(server, one.digest, content(one.data))
    server.requests.clear()
    pull(server, store)
    assert ranges(server, one.digest)[0] not in (None, "bytes=0-")
    assert check(store) == []
