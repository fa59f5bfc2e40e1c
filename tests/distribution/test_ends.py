# SPDX-License-Identifier: Apache-2.0
"""Either end of a copy gives and takes what its digests say, or nothing."""
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from tests.kit import images
from minipull.distribution import blobs as blobs_module
from minipull.registry.auth import Keyring
from minipull.image.descriptor import OCI_MANIFEST, Descriptor
from minipull.image.manifest import Manifest, parse
from minipull.digest import Digest
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.distribution.ends import LayoutEnd, RegistryEnd
from minipull.distribution.places import Place
from minipull.errors import ContentMismatch, Error, InvalidReference, NetworkError, NotFound, StorageError
from minipull.registry.errors import RegistryError
from minipull.progress import Progress
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.registry.request import FileBody
from minipull.xfer.transfer import TransferManager
from tests.kit.servers import ScriptedServer, Uploads, close, content, error, head, redirect, reply, send

pytestmark = pytest.mark.usefixtures("no_repeats")

NEVER = Cancel()
DATA = bytes(range(256)) * 12000  # 3 MB: three buffers, and more than goes along with a commit
HEX = "0123456789abcdef" * 4


def described(data: bytes, algorithm: str = "sha256", size: Optional[int] = None) -> Descriptor:
    digest = Digest("%s:%s" % (algorithm, hashlib.new(algorithm, data).hexdigest()))
    return Descriptor("application/octet-stream", digest, len(data) if size is None else size)


BLOB = described(DATA)


Registry = Callable[..., RegistryEnd]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The end that a server is, as repository ``r``."""
    with Client(RegistryService(timeout=5), Keyring()) as client:
        def call(server: ScriptedServer, path: str = "r", **options: Any) -> RegistryEnd:
            endpoint = Endpoint(server.url, server.host)
            return RegistryEnd(client.repository(endpoint, Reference(server.host, path)), **options)
        yield call


@pytest.fixture
def source(registry: Registry, server: ScriptedServer) -> RegistryEnd:
    server.on("GET", "/v2/r/blobs/", content(DATA))
    return registry(server)


@pytest.fixture
def taking() -> Iterator[ScriptedServer]:
    """Where blobs are sent to."""
    with ScriptedServer() as server:
        yield server


def layout(path: Path, tag: str = "") -> LayoutEnd:
    return LayoutEnd(Place.parse("oci:%s:%s" % (path, tag)), None)


def store_end(path: Path, name: str = "r.com/a:1") -> LayoutEnd:
    return LayoutEnd(Place.parse("store:" + name), Store(str(path)))


def manifest(raw: bytes) -> Manifest:
    """A manifest of any content."""
    return Manifest(raw, Digest.of(raw), OCI_MANIFEST, BLOB, ())


def working(work: Callable[[Any], Any], events: Optional[List[Progress]] = None) -> Any:
    """What ``work`` returns as a transfer."""
    manager = TransferManager(1)
    watcher = manager.transfer("work", work, (events if events is not None else []).append)
    try:
        return manager.wait([watcher], NEVER)[0]
    finally:
        manager.release(watcher)


def received(source: Any, blob: Descriptor, *parts: int) -> List[bytes]:
    """A blob read in requests of so many bytes each, in one go without ``parts``."""
    with source.reading(blob, NEVER) as read:
        offset, found = 0, []
        for size in parts or (blob.size,):
            found.append(b"".join(bytes(piece) for piece in read(offset, size).pieces()))
            offset += size
        return found


def ranges(server: ScriptedServer) -> List[Optional[str]]:
    return [request.headers.get("range") for request in server.seen("GET", "/blobs/")]


def broken(start: int, stop: int, data: bytes = DATA) -> List[Any]:
    """Bytes ``start`` to ``stop`` of all that was promised; unlike a reset, it takes none back."""
    fields = {"Content-Length": str(len(data) - start)}
    if start:
        fields["Content-Range"] = "bytes %d-%d/%d" % (start, len(data) - 1, len(data))
    return [send(head(206 if start else 200, fields) + data[start:stop]), close]


def document(notes: Optional[Dict[str, str]] = None, **members: Any) -> bytes:
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": images.digest_of(b"{}"), "size": 2}
    return images.to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty],
                           "annotations": notes or {}, **members})


def files_below(path: Path) -> List[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


# -- a registry gives ----------------------------------------------------------


def test_the_first_manifest_is_not_asked_for_again(
        registry: Registry, server: ScriptedServer) -> None:
    end = registry(server)
    server.on("GET", "/manifests/", content(b"{}", OCI_MANIFEST), content(b"[]", OCI_MANIFEST), error(404))
    assert end.get("latest", NEVER).raw == b"{}" == end.get("latest", NEVER).raw
    assert end.get("other", NEVER).raw == b"[]"
    with pytest.raises(RegistryError):
        end.get("other", NEVER)
    assert [request.path.rpartition("/")[2] for request in server.requests] == ["latest", "other", "other"]
    assert str(end) == server.host + "/r"


def test_a_document_that_breaks_off_is_asked_for_again(
        registry: Registry, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "DOCUMENT_DELAYS", (0.001,))
    half = [send(head(200, {"Content-Length": "9"}) + b"{"), close]
    server.on("GET", "/manifests/", half, content(b"{}", OCI_MANIFEST))
    server.on("GET", "/referrers/", half, reply(200, b'{"manifests": []}'))
    assert registry(server).get("latest", NEVER).raw == b"{}"
    assert registry(server).referrers(BLOB.digest, NEVER) == []
    server.on("GET", "/manifests/", half)
    with pytest.raises(NetworkError, match="closed the connection 8 bytes early"):
        registry(server).get("latest", NEVER)
    assert len(server.requests) == 6


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_blob_streams_over_one_connection_however_it_is_cut(
        source: RegistryEnd, server: ScriptedServer, algorithm: str) -> None:
    blob = described(DATA, algorithm)
    assert b"".join(received(source, blob)) == DATA
    parts = [1, 999_999, 1 << 20, len(DATA) - 1_000_000 - (1 << 20)]
    found = received(source, blob, *parts)
    assert [len(part) for part in found] == parts and b"".join(found) == DATA
    assert ranges(server) == [None, None] and server.connections == 1


def test_a_blob_that_breaks_off_is_continued_and_verified_as_a_whole(
        source: RegistryEnd, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", broken(0, 1_200_000), broken(1_200_000, 2_100_000), content(DATA))
    assert received(source, BLOB) == [DATA]
    assert ranges(server) == [None, "bytes=1200000-", "bytes=2100000-"]
    server.on("GET", "/blobs/", broken(0, 1_200_000), content(DATA[:-1] + b"?"))
    with pytest.raises(ContentMismatch, match="content is sha256:.*, expected " + BLOB.digest):
        received(source, BLOB)


def test_a_whole_body_instead_of_the_rest_is_skipped_to_the_offset(
        source: RegistryEnd, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", broken(0, 2_200_000), content(DATA, ranges=False))
    assert received(source, BLOB) == [DATA]
    assert ranges(server) == [None, "bytes=2200000-"]


def test_a_whole_body_that_breaks_off_before_the_offset_is_an_error(
        source: RegistryEnd, server: ScriptedServer) -> None:
    short = [send(head(200, {"Connection": "close"}) + b"x" * 100), close]
    server.on("GET", "/blobs/", broken(0, 2_000_000), short)
    with pytest.raises(NetworkError, match="ended the body early"):
        received(source, BLOB)


def test_a_blob_is_read_from_wherever_it_is_wanted_next(source: RegistryEnd, server: ScriptedServer) -> None:
    with source.reading(BLOB, NEVER) as read:
        for offset, size in ((0, 5), (2_000_000, 1_072_000), (1_000_000, 3), (0, len(DATA))):
            assert b"".join(map(bytes, read(offset, size).pieces())) == DATA[offset:offset + size]
        # A body that has to be sent again is begun again.
        body = read(1_000_000, 100)
        for _ in range(2):
            assert b"".join(map(bytes, body.pieces())) == DATA[1_000_000:1_000_100]
    assert ranges(server) == [None, "bytes=2000000-", "bytes=1000000-", None, "bytes=1000000-", "bytes=1000000-"]


@pytest.mark.parametrize("data", [DATA[:-1] + b"?", b"?" * len(DATA)])
def test_a_wrong_blob_is_never_given_whole(source: RegistryEnd, server: ScriptedServer, data: bytes) -> None:
    server.on("GET", "/blobs/", content(data))
    given = []
    with source.reading(BLOB, NEVER) as read, pytest.raises(ContentMismatch) as caught:
        for piece in read(0, BLOB.size).pieces():
            given.append(len(piece))
    assert not caught.value.retry
    assert sum(given) < BLOB.size


@pytest.mark.parametrize("size", [1, len(DATA) - 1, len(DATA) + 1, 1 << 40])
def test_a_blob_of_another_size_is_refused_at_its_first_byte(source: RegistryEnd, size: int) -> None:
    blob = described(DATA, size=size)
    with pytest.raises(ContentMismatch, match="size is not %d as promised" % size):
        received(source, blob)


def test_a_blob_without_a_length_is_given_up_to_its_size(source: RegistryEnd, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", reply(200, DATA, chunked=True))
    assert received(source, BLOB) == [DATA]
    with pytest.raises(ContentMismatch):
        received(source, described(DATA, size=len(DATA) - 1))
    server.on("GET", "/blobs/", reply(200, DATA, chunked=True), content(DATA))
    with pytest.raises(Error, match="range invalid"):
        received(source, described(DATA, size=len(DATA) + 1))


def test_an_empty_blob_is_a_blob(registry: Registry, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", content(b""))
    assert received(registry(server), described(b"")) == [b""]


def test_a_blob_that_does_not_move_is_given_up(source: RegistryEnd, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", broken(0, 10), broken(10, 10), content(DATA))
    with pytest.raises(NetworkError):
        received(source, BLOB)
    assert ranges(server) == [None, "bytes=10-"]


def test_a_source_may_not_break_off_for_ever(
        source: RegistryEnd, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "MAX_BREAKS", 3)
    server.on("GET", "/blobs/", *(broken(10 * n, 10 * n + 10) for n in range(10)))
    with pytest.raises(NetworkError):
        received(source, BLOB)
    assert len(ranges(server)) == 3 + (len(DATA) >> 20)


def test_an_error_says_which_end_it_comes_from(source: RegistryEnd, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", error(404, "BLOB_UNKNOWN"))
    with pytest.raises(NotFound, match="^%s/r: blob unknown" % server.host) as missing:
        received(source, BLOB)
    assert (missing.value.retry, missing.value.exit_code) == (False, NotFound.exit_code)
    server.on("GET", "/blobs/", error(500))
    with pytest.raises(Error, match="^%s/r: received unexpected HTTP status: 500" % server.host) as failed:
        received(source, BLOB)
    assert (failed.value.retry, failed.value.exit_code) == (True, NetworkError.exit_code)


# -- a registry is asked -------------------------------------------------------


@pytest.mark.parametrize("answer, there", [
    (content(DATA), True), (content(DATA + b"x"), False), (error(404), False), (error(500), False),
    (error(403), False), (reply(200, b"", {"Content-Length": "0"}), False), (close, False),
    (error(429), False), (redirect("ftp://x/"), False)])
def test_a_blob_is_there_with_its_size_or_not_at_all(
        registry: Registry, server: ScriptedServer, answer: Any, there: bool) -> None:
    server.on("HEAD", "/v2/r/blobs/", answer)
    assert registry(server).has(BLOB, NEVER) is there


# -- a registry takes ----------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"small", DATA])
@pytest.mark.parametrize("chunk_size", [0, 1_000_000])
def test_a_blob_goes_from_registry_to_registry(
        registry: Registry, server: ScriptedServer, taking: ScriptedServer, data: bytes, chunk_size: int) -> None:
    server.on("GET", "/v2/r/blobs/", content(data))
    target, blob = Uploads(taking), described(data)
    events: List[Progress] = []
    end = registry(taking, chunk_size=chunk_size)
    assert working(lambda transfer: end.receive(blob, registry(server), transfer), events) == "Pushed"
    assert target.blobs == {blob.digest: data}
    assert ranges(server) == ([None] if data else []) and server.connections <= 1
    sent = [event for event in events if event.action == "Pushing"]
    assert all(event.total == len(data) and event.id == blob.digest.short for event in sent)
    if len(data) > 1 << 20:
        assert len(taking.seen("PATCH")) == (4 if chunk_size else 1)
        positions = [event.current for event in sent]
        assert positions == sorted(positions) and positions[-1] > len(data) * 0.9


def test_a_source_that_breaks_off_breaks_no_upload(
        source: RegistryEnd, registry: Registry, server: ScriptedServer, taking: ScriptedServer) -> None:
    target = Uploads(taking)
    server.on("GET", "/blobs/", *(broken(n, n + 700_000) for n in range(0, 2_800_000, 700_000)), content(DATA))
    assert working(lambda transfer: registry(taking).receive(BLOB, source, transfer)) == "Pushed"
    assert target.blobs == {BLOB.digest: DATA}
    assert [request.method for request in taking.requests] == ["POST", "PATCH", "PUT"]
    assert ranges(server) == [None, *("bytes=%d00000-" % n for n in (7, 14, 21, 28))]


def test_an_upload_that_breaks_off_is_read_again_from_where_it_is(
        source: RegistryEnd, registry: Registry, server: ScriptedServer, taking: ScriptedServer) -> None:
    target = Uploads(taking)
    taking.on("PATCH", "", lambda connection: target.append(connection, stop=1_500_000), target.append)
    assert working(lambda transfer: registry(taking).receive(BLOB, source, transfer)) == "Pushed"
    assert target.blobs == {BLOB.digest: DATA}
    assert ranges(server) == [None, "bytes=1500000-"]


def test_an_upload_that_is_lost_is_begun_again_and_verified_again(
        source: RegistryEnd, registry: Registry, server: ScriptedServer, taking: ScriptedServer) -> None:
    target = Uploads(taking)

    def lose(connection: Any) -> None:
        target.sessions.clear()
        connection.reset()
    taking.on("PATCH", "", lose, target.append)
    assert working(lambda transfer: registry(taking).receive(BLOB, source, transfer)) == "Pushed"
    assert target.blobs == {BLOB.digest: DATA}
    target.blobs.clear()
    taking.on("PATCH", "", lose, target.append)
    server.on("GET", "/blobs/", content(DATA), content(DATA[:-1] + b"?"))
    with pytest.raises(ContentMismatch):
        working(lambda transfer: registry(taking).receive(BLOB, source, transfer))


@pytest.mark.parametrize("rest", [
    content(DATA[:-1] + b"?"), content(DATA, shift=9), error(416, "RANGE_INVALID"),
    content(DATA + b"?"), content(DATA[:-1])], ids=["bytes", "range", "416", "longer", "shorter"])
def test_a_source_that_goes_on_with_another_blob_is_read_anew_once(
        source: RegistryEnd, registry: Registry, server: ScriptedServer, taking: ScriptedServer, rest: Any) -> None:
    target = Uploads(taking)
    server.on("GET", "/blobs/", broken(0, 1_200_000), rest, content(DATA))
    assert working(lambda transfer: registry(taking).receive(BLOB, source, transfer)) == "Pushed"
    assert target.blobs == {BLOB.digest: DATA} and target.sessions == {}
    target.blobs.clear()
    server.on("GET", "/blobs/", broken(0, 1_200_000), rest, broken(0, 1_200_000), rest)
    with pytest.raises(ContentMismatch) as caught:
        working(lambda transfer: registry(taking).receive(BLOB, source, transfer))
    assert target.blobs == target.sessions == {} and not caught.value.retry


@pytest.mark.parametrize("size, promised", [(500, 500), (len(DATA), len(DATA)), (500, 0), (500, 499), (500, 501)])
def test_a_wrong_blob_of_a_registry_is_committed_nowhere(
        registry: Registry, server: ScriptedServer, taking: ScriptedServer, size: int, promised: int) -> None:
    server.on("GET", "/v2/r/blobs/", content((b"?" if size == promised else DATA[:1]) + DATA[1:size]))
    target, blob = Uploads(taking), described(DATA[:size], size=promised)
    with pytest.raises(ContentMismatch):
        working(lambda transfer: registry(taking).receive(blob, registry(server), transfer))
    assert target.blobs == {}


def test_a_wrong_blob_of_a_layout_is_refused_by_its_target(
        registry: Registry, taking: ScriptedServer, tmp_path: Path) -> None:
    target, end = Uploads(taking), layout(tmp_path)
    end.store.content.put(BLOB.digest, DATA)
    Path(end.store.content.path(BLOB.digest)).write_bytes(b"?" * len(DATA))
    with pytest.raises(ContentMismatch, match="^%s: blob %s is something else" % (tmp_path, BLOB.digest)):
        working(lambda transfer: registry(taking).receive(BLOB, end, transfer))
    assert target.blobs == {}
    taking.on("POST", "/uploads/", error(403, "DENIED"))
    with pytest.raises(RegistryError, match="denied"):
        working(lambda transfer: registry(taking).receive(BLOB, end, transfer))


def test_within_one_registry_a_blob_is_mounted(registry: Registry, server: ScriptedServer) -> None:
    target = Uploads(server)
    target.elsewhere["a/b"] = {BLOB.digest: DATA}
    done = working(lambda transfer: registry(server).receive(BLOB, registry(server, "a/b"), transfer))
    assert (done, target.blobs) == ("Mounted from a/b", {BLOB.digest: DATA})
    assert [request.method for request in server.requests] == ["POST"]
    assert server.requests[0].query == {"from": "a/b", "mount": BLOB.digest}


@pytest.mark.parametrize("refusal", [
    None, error(401, "UNAUTHORIZED"), error(403, "DENIED"), error(500), redirect("/elsewhere", 302), close,
    error(429, "TOOMANYREQUESTS", {"Retry-After": "3600"})])
def test_a_blob_that_cannot_be_mounted_is_sent(registry: Registry, server: ScriptedServer, refusal: Any) -> None:
    target = Uploads(server)
    server.on("GET", "/v2/a/b/blobs/", content(DATA))
    if refusal:
        server.on("POST", "/uploads/.*mount=", refusal)
    done = working(lambda transfer: registry(server).receive(BLOB, registry(server, "a/b"), transfer))
    assert (done, target.blobs) == ("Pushed", {BLOB.digest: DATA})
    # The upload that was opened instead is the one that is used.
    assert len(server.seen("POST")) == (1 if refusal is None else 2)


# -- a layout gives ------------------------------------------------------------


def test_a_layout_gives_by_name_and_by_digest(tmp_path: Path) -> None:
    made, one = images.single(tmp_path, "one")
    end = layout(tmp_path, "one")
    assert [*end.get("one", NEVER)] == [one.raw, OCI_MANIFEST, one.digest]
    assert [*layout(tmp_path).get("", NEVER)] == [one.raw, OCI_MANIFEST, one.digest]  # there is but one
    assert [*end.get(Digest(one.digest), NEVER)] == [one.raw, "", one.digest]
    assert str(end) == str(tmp_path)
    made.image(images.specs(1), "two")
    assert end.get("one", NEVER).raw == one.raw
    for tag, text in (("", "without a name"), ("three", "three")):
        with pytest.raises(NotFound, match="^%s: no image %s; there is one, two$" % (tmp_path, text)):
            end.get(tag, NEVER)
    with pytest.raises(NotFound, match="manifest sha256:%s is not there" % HEX):
        end.get(Digest("sha256:" + HEX), NEVER)


def test_a_layout_names_no_more_than_one_line_can_hold(tmp_path: Path) -> None:
    made, one = images.single(tmp_path, "n0")
    for number in range(30):
        made.name(one.descriptor, "n%02d" % number)
    with pytest.raises(NotFound, match="there is n0, n00, .*, n18$"):
        layout(tmp_path).get("other", NEVER)


@pytest.mark.parametrize("place", ["oci:%s", "oci:%s:x"])
def test_a_layout_that_is_none_has_no_image(tmp_path: Path, place: str) -> None:
    parsed = Place.parse(place % (tmp_path / "no"))
    with pytest.raises(NotFound, match="there is none with one"):
        LayoutEnd(parsed, None).get(parsed.tag, NEVER)
    assert not (tmp_path / "no").exists()


def test_a_damaged_layout_says_so(tmp_path: Path) -> None:
    made, one = images.single(tmp_path, "one")
    index = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": "sha256:../../x", "size": 1}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(StorageError, match="index.json: digest: invalid digest"):
        layout(tmp_path).get("", NEVER)
    made.name(one.descriptor, "one")
    made.path(one.digest).write_bytes(one.raw + b" ")
    with pytest.raises(StorageError, match="corrupt"):
        layout(tmp_path).get("one", NEVER)
    made.path(one.digest).unlink()
    with pytest.raises(NotFound, match="manifest %s is not there" % one.digest):
        layout(tmp_path).get("one", NEVER)


def test_a_store_has_whole_names(tmp_path: Path) -> None:
    end = store_end(tmp_path)
    end.tag("1", manifest(b"{}"), NEVER)
    assert store_end(tmp_path).get("1", NEVER).raw == b"{}"
    with pytest.raises(NotFound, match="no image r.com/b:1; there is r.com/a:1"):
        store_end(tmp_path, "r.com/b:1").get("1", NEVER)
    with pytest.raises(InvalidReference, match="no store is given for r.com/a"):
        LayoutEnd(Place.parse("store:r.com/a"), None)


def test_a_blob_of_a_layout_is_sent_by_the_kernel(tmp_path: Path) -> None:
    end = layout(tmp_path)
    end.store.content.put(BLOB.digest, DATA)
    with end.reading(BLOB, NEVER) as read:
        body = read(1000, 50)
        assert isinstance(body, FileBody) and (body.offset, body.size) == (1000, 50)
        assert b"".join(map(bytes, body.pieces())) == DATA[1000:1050]
    with pytest.raises(StorageError, match="open blob"), end.reading(described(b"no"), NEVER):
        pass


# -- a layout takes ------------------------------------------------------------


@pytest.mark.parametrize("size", [300, len(DATA)])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_layout_takes_from_a_registry_and_from_a_layout(
        registry: Registry, server: ScriptedServer, tmp_path: Path, size: int, algorithm: str) -> None:
    data = DATA[:size]
    blob = described(data, algorithm)
    server.on("GET", "/blobs/", content(data))
    first, second = layout(tmp_path / "first"), layout(tmp_path / "second")
    for source, target in ((registry(server), first), (first, second), (first, second)):
        assert working(lambda transfer: target.receive(blob, source, transfer)) == "Download complete"
        assert Path(target.store.content.path(blob.digest)).read_bytes() == data
        assert target.has(blob, NEVER) and not target.has(described(b"no"), NEVER)
        assert files_below(tmp_path)[-1].endswith(blob.digest.encoded), "nothing else is left"
    assert ranges(server) == [None]


@pytest.mark.parametrize("size, stop, resumed", [(200_000, 60_000, None), (len(DATA), 900_000, "bytes=900000-")])
def test_a_layout_goes_on_where_a_registry_broke_off(
        registry: Registry, server: ScriptedServer, tmp_path: Path, size: int, stop: int,
        resumed: Optional[str]) -> None:
    blob = described(DATA[:size])
    server.on("GET", "/blobs/", broken(0, stop, DATA[:size]), content(DATA[:size]))
    working(lambda transfer: layout(tmp_path).receive(blob, registry(server), transfer))
    assert layout(tmp_path).has(blob, NEVER)
    assert ranges(server) == [None, resumed]


@pytest.mark.parametrize("size", [300, len(DATA)])
@pytest.mark.parametrize("change", [lambda data: b"?" + data[1:], lambda data: data + b"?", lambda data: data[:-1]])
def test_a_layout_takes_nothing_wrong(
        registry: Registry, server: ScriptedServer, tmp_path: Path, size: int,
        change: Callable[[bytes], bytes]) -> None:
    data = DATA[:size]
    blob, wrong = described(data), change(data)
    server.on("GET", "/blobs/", content(wrong))
    damaged, target = layout(tmp_path / "damaged"), layout(tmp_path / "target")
    path = Path(damaged.store.content.path(blob.digest))
    path.parent.mkdir(parents=True)
    path.write_bytes(wrong)
    for source in (registry(server), damaged):
        with pytest.raises(ContentMismatch):
            working(lambda transfer: target.receive(blob, source, transfer))
        assert not target.has(blob, NEVER)
        assert [file for file in files_below(tmp_path / "target") if "blobs" in file] == []


def entries(path: Path) -> Any:
    return json.loads((path / "index.json").read_text())["manifests"]


def test_a_name_in_a_layout_moves_and_others_stay(tmp_path: Path) -> None:
    made, one = images.single(tmp_path, "one")
    made.name(one.descriptor, "two")
    end, other = layout(tmp_path, "two"), b'{"other": 1}'
    for _ in range(2):
        end.tag("two", manifest(other), NEVER)
        assert end.put(manifest(b"part"), NEVER) is False
        end.tag("", manifest(other), NEVER)
    note = {"annotations": {images.NAME: "two"}}
    bare = {"mediaType": OCI_MANIFEST, "digest": images.digest_of(other), "size": len(other)}
    assert entries(tmp_path) == [{**one.descriptor, "annotations": {images.NAME: "one"}}, {**bare, **note}, bare]
    assert made.read(images.digest_of(b"part")) == b"part"


def test_a_name_that_is_there_twice_is_one_afterwards(tmp_path: Path) -> None:
    made, one = images.single(tmp_path, "one")
    entry = entries(tmp_path)[0]
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry, entry]}))
    layout(tmp_path, "one").tag("one", manifest(one.raw), NEVER)
    assert entries(tmp_path) == [entry]


def test_a_layout_is_made_where_there_is_none(tmp_path: Path) -> None:
    layout(tmp_path / "new" / "er", "x").tag("x", manifest(b"{}"), NEVER)
    assert json.loads((tmp_path / "new" / "er" / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_in_a_store_only_the_copied_image_gets_a_name(tmp_path: Path) -> None:
    raw, part = document(), document({"part": "1"})
    digest = Digest.of(raw)
    store_end(tmp_path, "r.com/a@" + digest).tag(digest, manifest(raw), NEVER)
    assert store_end(tmp_path).put(manifest(part), NEVER) is False
    store_end(tmp_path).tag("1", manifest(raw), NEVER)
    store_end(tmp_path).tag("sha256-x.sig", manifest(raw), NEVER)
    known = store_end(tmp_path).store.references.all()
    assert [str(each.name) for each in known] == ["r.com/a:1", "r.com/a:sha256-x.sig", "r.com/a@" + digest]
    assert {each.source for each in known} == {digest}
    assert store_end(tmp_path, "r.com/a@" + digest).get(digest, NEVER).raw == raw
    assert store_end(tmp_path).get(Digest.of(part), NEVER).raw == part


def test_a_manifest_that_is_another_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ContentMismatch):
        layout(tmp_path).put(manifest(b"that")._replace(digest=Digest.of(b"this")), NEVER)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("kind", ["store", "oci"])
def test_a_layout_lists_referrers_that_have_an_entry(kind: str, tmp_path: Path) -> None:
    subject = document()
    digest = Digest.of(subject)
    raw = document({"a": "b"}, subject={"mediaType": OCI_MANIFEST, "digest": digest, "size": len(subject)},
                   artifactType="application/x")
    end = store_end(tmp_path) if kind == "store" else layout(tmp_path, "1")
    assert end.put(parse(raw), NEVER) is (kind == "store")
    if kind == "oci":  # where it gets an entry from others only
        end.tag("other", parse(raw), NEVER)
    end.tag("1", parse(subject), NEVER)
    index = json.loads((tmp_path / "index.json").read_text())
    index["manifests"] += [{}, {"mediaType": OCI_MANIFEST, "digest": "sha256:" + HEX, "size": 1}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    again = store_end(tmp_path) if kind == "store" else layout(tmp_path)
    for _ in range(2):
        assert list(again.referrers(digest, NEVER) or ()) == [Descriptor(
            OCI_MANIFEST, Digest.of(raw), len(raw), annotations={"a": "b"}, artifact_type="application/x")]
        assert again.referrers(Digest.of(raw), NEVER) is None


def test_a_registry_lists_referrers(registry: Registry, server: ScriptedServer) -> None:
    entry = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + HEX, "size": 1}
    server.on("GET", "/v2/r/referrers/" + BLOB.digest, reply(200, {"schemaVersion": 2, "manifests": [entry]}))
    assert registry(server).referrers(BLOB.digest, NEVER) == [Descriptor(OCI_MANIFEST, Digest("sha256:" + HEX), 1)]


def test_a_reader_that_stops_leaves_the_connection_usable(source: RegistryEnd) -> None:
    with contextlib.suppress(KeyError), source.reading(BLOB, NEVER) as read:
        for _ in read(0, BLOB.size).pieces():
            raise KeyError
    assert received(source, BLOB) == [DATA]
