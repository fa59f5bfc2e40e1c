# SPDX-License-Identifier: Apache-2.0
"""One blob sent to a registry: small or large, in chunks, and after a break only the rest."""
import functools
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from tests.kit.processes import DockerRegistry, wait_until
from minipull.registry.auth import Credential, Keyring
from minipull.image.descriptor import Descriptor
from minipull.digest import Digest
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.errors import Cancelled, NetworkError, PolicyError, RateLimited
from minipull.registry.errors import RegistryError
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.registry.v2 import Repository
from minipull.cancel import Cancel
from minipull.registry.request import Body, FileBody
from minipull.distribution.blobs import SMALL, send_blob
from tests.kit.certificates import Certificates
from tests.kit.servers import (
    Action, Connection, ScriptedServer, Uploads, challenge, close, error, head, hold, redirect, reply)
from tests.kit.work import background

pytestmark = pytest.mark.usefixtures("no_waiting")

DATA = bytes(range(251)) * (3 * SMALL // 251)  # too much to go along with its commit
BLOB = Digest.of(DATA)
TOO_LARGE = b"<html>413 Request Entity Too Large</html>"


class Sender:
    """``sender(DATA, ...)`` sends a blob to ``r``; ``parts`` is where what was sent lay in it."""

    def __init__(self, client: Client, url: str) -> None:
        self.repository: Repository = client.repository(
            Endpoint(url, "r.com"), Reference.parse("r.com/r"), push=True)
        self.parts: List[Tuple[int, int]] = []
        self.gone = 0  # bytes of the last body

    def __call__(self, data: bytes, cancel: Optional[Cancel] = None, **options: Any) -> None:
        self.parts.clear()

        def source(offset: int, size: int) -> Body:
            self.parts.append((offset, size))
            return Body(lambda: [memoryview(data)[offset:offset + size]], size, self._sent)

        blob = Descriptor("test", Digest.of(data), len(data))
        send_blob(self.repository, blob, source, cancel or Cancel(), **options)

    def _sent(self, count: int) -> None:
        self.gone = count


Make = Callable[..., Sender]


@pytest.fixture
def make() -> Iterator[Make]:
    clients: List[Client] = []

    class Known(Keyring):
        def get(self, host: str, path: str = "") -> Credential:
            return Credential("user", "password")

    def call(url: str, ca: str = "") -> Sender:
        clients.append(Client(RegistryService(ca_file=ca, timeout=5), Known()))
        return Sender(clients[-1], url)

    yield call
    for client in clients:
        client.__exit__()


@pytest.fixture
def sender(make: Make, server: ScriptedServer) -> Sender:
    return make(server.url)


@pytest.fixture
def uploads(server: ScriptedServer) -> Uploads:
    return Uploads(server)


def asked(server: ScriptedServer) -> List[str]:
    """The methods so far, each with the range of what it brought."""
    return [" ".join(filter(None, (request.method, request.headers.get("content-range", ""))))
            for request in server.seen()]


def patch(server: ScriptedServer, *scripts: Any) -> None:
    server.on("PATCH", "", *scripts)


@pytest.mark.parametrize("size", [0, 1, SMALL])
def test_a_small_blob_goes_along_with_its_commit(
        server: ScriptedServer, uploads: Uploads, sender: Sender, size: int) -> None:
    sender(DATA[:size])
    assert uploads.blobs == {Digest.of(DATA[:size]): DATA[:size]}
    assert asked(server) == ["POST", "PUT"]
    put = server.seen("PUT")[0]
    assert put.headers["content-length"] == str(size)
    assert put.headers["content-type"] == "application/octet-stream"


def test_a_large_blob_goes_in_one_patch_of_known_length(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "PATCH", "PUT"]
    assert server.seen("PATCH")[0].headers["content-length"] == str(len(DATA))
    assert server.seen("PUT")[0].headers["content-length"] == "0"
    assert server.connections == 1


@pytest.mark.parametrize("size", [1000, len(DATA)], ids=["small", "large"])
def test_a_real_registry_takes_blobs_of_both_kinds(registry: DockerRegistry, make: Make, size: int) -> None:
    data = DATA[:size]
    make(registry.url)(data)
    status, headers, body = registry.request("GET", "/v2/r/blobs/" + Digest.of(data))
    assert (status, body) == (200, data)


@pytest.mark.parametrize("base", ["/v2/r/blobs/uploads/", "", "URL/v2/r/blobs/uploads/", "../uploads/"])
def test_a_location_is_followed_however_it_is_written(
        server: ScriptedServer, uploads: Uploads, sender: Sender, base: str) -> None:
    uploads.base = base.replace("URL", server.url)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    query = server.seen("PUT")[0].query
    assert query == {"_state": "2", "digest": BLOB}


def test_a_location_without_a_query_gets_one(server: ScriptedServer, sender: Sender) -> None:
    server.on("POST", "", reply(202, headers={"Location": "/there"}))
    patch(server, reply(202))  # and one that is not moved stays
    server.on("PUT", "", reply(201))
    sender(DATA)
    assert [request.target for request in server.seen("PATCH|PUT")] == ["/there", "/there?digest=" + BLOB]


def test_an_upload_without_a_location_is_an_error(server: ScriptedServer, sender: Sender) -> None:
    server.on("POST", "", reply(202))
    with pytest.raises(NetworkError, match="upload without a Location"):
        sender(DATA)


def test_an_upload_session_that_is_already_open_is_used(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    upload = sender.repository.start_upload(Cancel())
    sender(DATA, upload=upload)
    assert asked(server) == ["POST", "PATCH", "PUT"] and uploads.blobs == {BLOB: DATA}


# -- chunks ------------------------------------------------------------------------


def test_no_request_brings_more_than_a_chunk(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    sender(DATA, chunk_size=SMALL)
    assert uploads.blobs == {BLOB: DATA}
    whole, end = divmod(len(DATA), SMALL)
    assert asked(server) == ["POST", *("PATCH %d-%d" % (n * SMALL, (n + 1) * SMALL - 1) for n in range(whole)),
                             "PATCH %d-%d" % (whole * SMALL, len(DATA) - 1), "PUT"]


def test_a_small_blob_larger_than_a_chunk_is_cut_as_well(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    sender(DATA[:1000], chunk_size=600)
    assert asked(server) == ["POST", "PATCH 0-599", "PATCH 600-999", "PUT"]


def test_a_registry_says_how_small_a_chunk_may_be(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    uploads.extra["OCI-Chunk-Min-Length"] = "900"
    sender(DATA[:1000], chunk_size=600)
    assert asked(server) == ["POST", "PATCH 0-899", "PATCH 900-999", "PUT"]
    uploads.extra["OCI-Chunk-Min-Length"] = "900000000000"
    upload = sender.repository.start_upload(Cancel())
    assert upload is not None and upload.least == 32 << 20  # a chunk of what is made on its way is held
    uploads.extra["OCI-Chunk-Min-Length"] = "many"
    sender(DATA[1:1000], chunk_size=600)
    assert asked(server)[-4:] == ["POST", "PATCH 0-599", "PATCH 600-998", "PUT"]


@pytest.mark.parametrize("answer", [
    error(413, "SIZE_INVALID"), reply(413, TOO_LARGE, {"Content-Type": "text/html"}), reply(413)])
def test_too_much_for_one_request_says_what_to_do_and_is_not_tried_again(
        server: ScriptedServer, uploads: Uploads, sender: Sender, answer: Action) -> None:
    patch(server, answer)
    with pytest.raises(RegistryError, match="too much for one request, try --chunk-size") as caught:
        sender(DATA)
    assert asked(server) == ["POST", "PATCH"]
    assert caught.value.exit_code == 5 and not caught.value.retry


# -- breaks ------------------------------------------------------------------------


def test_after_a_cut_the_upload_is_resumed_at_the_offset_that_the_registry_tells(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    stops = [functools.partial(uploads.append, stop=stop) for stop in (100000, 2 * SMALL)]
    patch(server, *stops, uploads.append)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    last, left = len(DATA) - 1, len(DATA)
    assert asked(server) == ["POST", "PATCH", "HEAD", "GET", "PATCH 100000-%d" % last, "GET",
                             "PATCH %d-%d" % (2 * SMALL, last), "PUT"]
    assert sender.parts == [(0, left), (100000, left - 100000), (2 * SMALL, left - 2 * SMALL)]


@pytest.mark.parametrize("status", [408, 499, 500, 502, 503, 504])
def test_after_a_server_error_the_upload_is_resumed_where_it_is(
        server: ScriptedServer, uploads: Uploads, sender: Sender, status: int) -> None:
    patch(server, functools.partial(uploads.append, stop=100000), error(status), uploads.append)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server)[3:] == ["GET", "PATCH 100000-%d" % (len(DATA) - 1), "GET",
                                 "PATCH 100000-%d" % (len(DATA) - 1), "PUT"]


def test_a_patch_whose_answer_was_lost_is_not_sent_again(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    patch(server, functools.partial(uploads.append, stop=len(DATA)))
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "PATCH", "HEAD", "GET", "PUT"]


def test_a_chunk_out_of_order_is_put_right(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    def late(connection: Connection) -> None:
        """What was still on its way arrives after all."""
        uploads.sessions["1"] += DATA[1000:5000]
        uploads.append(connection)

    patch(server, functools.partial(uploads.append, stop=1000), late, uploads.append)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    last = len(DATA) - 1
    assert asked(server) == [
        "POST", "PATCH", "HEAD", "GET", "PATCH 1000-%d" % last, "GET", "PATCH 5000-%d" % last, "PUT"]


def test_an_upload_session_without_bytes_is_not_resumed(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    # A range of 0-0 is of no byte or of one.
    for stop in (0, 1):
        patch(server, functools.partial(uploads.append, stop=stop), uploads.append)
        uploads.blobs.clear()
        with server.lock:
            server.requests.clear()
        sender(DATA)
        assert uploads.blobs == {BLOB: DATA}
        assert asked(server) == ["POST", "PATCH", "HEAD", "GET", "POST", "PATCH", "PUT"]


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_is_gone_is_begun_anew(
        server: ScriptedServer, uploads: Uploads, sender: Sender, status: int) -> None:
    def gone(connection: Connection) -> None:
        uploads.sessions.pop("1", None)
        error(status, "BLOB_UPLOAD_UNKNOWN")(connection)

    patch(server, functools.partial(uploads.append, stop=100000), gone, uploads.append)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "PATCH", "HEAD", "GET", "PATCH 100000-%d" % (len(DATA) - 1), "GET",
                             "POST", "PATCH", "PUT"]


@pytest.mark.parametrize("text", ["", "x", "0-x", "1-5", "bytes 0-5", "0-%d" % len(DATA), "0-" + "9" * 30])
def test_a_registry_that_does_not_know_where_it_is_gets_all_of_it(
        server: ScriptedServer, uploads: Uploads, sender: Sender, text: str) -> None:
    patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
    server.on("GET", "", reply(204, headers={"Range": text} if text else {}))
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "PATCH", "HEAD", "GET", "POST", "PATCH", "PUT"]


def test_a_range_may_name_its_unit(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
    server.on("GET", "", reply(204, headers={"Range": "bytes=0-99999"}))
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA} and len(server.seen("POST")) == 1


def test_an_upload_that_advances_may_break_off_many_times(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    patch(server, *(functools.partial(uploads.append, stop=n * 50000) for n in range(1, 40)), uploads.append)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA} and len(server.seen("POST")) == 1


def test_an_upload_that_never_advances_is_given_up(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    patch(server, functools.partial(uploads.append, stop=100000))
    with pytest.raises(NetworkError) as caught:
        sender(DATA)
    assert caught.value.retry and len(server.seen("PATCH")) == 5


def test_the_number_of_breaks_in_one_upload_is_bounded(server: ScriptedServer, uploads: Uploads, sender: Sender,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.distribution.blobs.MAX_BREAKS", 3)

    def cut(connection: Connection) -> None:
        uploads.append(connection, stop=len(uploads.sessions["1"]) + 1000)

    patch(server, cut)
    with pytest.raises(NetworkError):
        sender(DATA)
    assert len(server.seen("PATCH")) == 3 + len(DATA) // SMALL


def test_a_registry_that_says_no_is_not_asked_again(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    for status, code in ((400, "SIZE_INVALID"), (403, "DENIED"), (405, "UNSUPPORTED")):
        patch(server, error(status, code))
        with server.lock:
            server.requests.clear()
        with pytest.raises(RegistryError):
            sender(DATA)
        assert asked(server) == ["POST", "PATCH"]


def test_an_upload_that_is_not_opened_is_an_error(server: ScriptedServer, sender: Sender) -> None:
    server.on("POST", "", error(404, "NAME_UNKNOWN"), error(500))
    with pytest.raises(RegistryError, match="name unknown"):
        sender(DATA)
    with pytest.raises(RegistryError, match="500"):
        sender(DATA)


def test_a_rate_limit_is_waited_for_in_mid_upload(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    patch(server, error(429, headers={"Retry-After": "0"}), uploads.append)
    sender(DATA)
    assert asked(server) == ["POST", "PATCH", "PATCH", "PUT"]
    patch(server, error(429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited, match="3600 seconds"):
        sender(DATA)


# -- the commit ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, len(DATA)], ids=["small", "large"])
def test_a_commit_whose_answer_was_lost_is_found_and_not_sent_twice(
        server: ScriptedServer, uploads: Uploads, sender: Sender, size: int) -> None:
    server.on("PUT", "", functools.partial(uploads.commit, heard=False))
    sender(DATA[:size])
    assert len(uploads.blobs) == 1
    assert [method for method in asked(server) if method != "PATCH"] == ["POST", "PUT", "HEAD"]


def test_a_commit_that_was_lost_itself_is_sent_again(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    server.on("PUT", "", close, uploads.commit)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "PATCH", "PUT", "HEAD", "GET", "PUT"]


def test_a_registry_that_can_not_be_asked_gets_all_of_it(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    server.on("PUT", "", close, uploads.commit)
    server.on("HEAD", "", error(403))
    sender(DATA)
    assert asked(server) == ["POST", "PATCH", "PUT", "HEAD", "POST", "PATCH", "PUT"]


def test_a_wrong_digest_is_not_tried_again(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    server.on("PUT", "", error(400, "DIGEST_INVALID"))
    with pytest.raises(RegistryError, match="digest invalid"):
        sender(DATA)
    assert asked(server) == ["POST", "PATCH", "PUT"]


def test_a_wrong_digest_of_what_was_resumed_is_tried_once_more_in_one_piece(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    def spoiled(connection: Connection) -> None:
        uploads.sessions["1"][:5] = b"other"
        uploads.commit(connection)

    patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
    server.on("PUT", "", spoiled, uploads.commit)
    sender(DATA)
    assert uploads.blobs == {BLOB: DATA} and asked(server)[-3:] == ["POST", "PATCH", "PUT"]
    patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
    server.on("PUT", "", error(400, "DIGEST_INVALID"))
    uploads.blobs.clear()
    with server.lock:
        server.requests.clear()
    with pytest.raises(RegistryError, match="digest invalid"):
        sender(DATA)
    assert len(server.seen("PUT")) == 2


# -- before the end of what is sent ----------------------------------------------------


def early(answer: bytes) -> List[Action]:
    """An answer to the head alone, of one who reads no body."""
    return [lambda connection: connection.send(answer), hold(threading.Event())]


@pytest.mark.parametrize("hints", [b"", head(103, {}), head(102, {}) + head(103, {})])
def test_a_refusal_is_noticed_in_mid_body(
        server: ScriptedServer, uploads: Uploads, sender: Sender, hints: bytes) -> None:
    data = bytes(64 << 20)
    patch(server, early(hints + head(413, {"Content-Length": "0"})))
    with pytest.raises(RegistryError, match="--chunk-size"):
        sender(data)
    assert sender.gone < len(data)


def test_a_challenge_in_mid_body_is_answered_and_all_of_it_sent(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    data = bytes(64 << 20)
    counts: List[int] = []

    def answered(connection: Connection) -> None:
        counts.append(sender.gone)
        assert connection.request.headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="
        uploads.append(connection)

    patch(server, early(head(401, {"Content-Length": "0", "WWW-Authenticate": "Basic realm=x"})), answered)
    sender(data)
    assert 0 < counts[0] < len(data)
    assert uploads.blobs == {Digest.of(data): data}
    assert asked(server) == ["POST", "PATCH", "PATCH", "PUT"]


def test_an_answer_sent_before_closing_in_mid_body_is_the_error(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    denied = b'{"errors": [{"code": "DENIED", "message": "quota exceeded"}]}'
    answer = head(403, {"Content-Type": "application/json", "Content-Length": str(len(denied))}) + denied

    def leave(connection: Connection) -> None:
        connection.send(answer)
        for _ in connection.unread:  # so that the answer is not lost with a reset
            if connection.stopping.wait(0.001):
                break

    patch(server, [leave, close])
    with pytest.raises(RegistryError, match="quota exceeded"):
        sender(DATA * 10)
    assert len(server.seen("PATCH")) == 1


def test_an_upload_is_cancelled_in_mid_body(
        server: ScriptedServer, uploads: Uploads, sender: Sender) -> None:
    cancel = Cancel()
    patch(server, hold(threading.Event()))
    thread, results = background(lambda: sender(bytes(64 << 20), cancel))
    wait_until(lambda: sender.gone > 0, "the body")
    cancel.cancel()
    thread.join(5)
    assert isinstance(results[0], Cancelled)
    assert asked(server) == ["POST", "PATCH"]


# -- elsewhere -------------------------------------------------------------------------


def test_another_host_gets_the_bytes_and_no_secret(
        server: ScriptedServer, foreign: ScriptedServer, sender: Sender) -> None:
    uploads, there = Uploads(server, base=foreign.url + "/v2/r/blobs/uploads/"), Uploads(foreign)
    server.on("POST", "", challenge('Basic realm="x"'), uploads.start)
    there.sessions, there._states = uploads.sessions, uploads._states
    sender(DATA)
    assert there.blobs == {BLOB: DATA}
    assert asked(server) == ["POST", "POST"] and asked(foreign) == ["PATCH", "PUT"]
    assert "authorization" in server.requests[1].headers


def test_an_upload_may_be_opened_on_another_host(
        server: ScriptedServer, foreign: ScriptedServer, sender: Sender) -> None:
    there = Uploads(foreign)
    server.on("POST", "", challenge('Basic realm="x"'), redirect(foreign.url + "/v2/r/blobs/uploads/"))
    sender(DATA)
    assert there.blobs == {BLOB: DATA}  # at Locations relative to that host
    assert asked(server) == ["POST", "POST"] and asked(foreign) == ["POST", "PATCH", "PUT"]
    assert "authorization" in server.requests[1].headers


def test_another_host_that_challenges_gets_no_credential(
        server: ScriptedServer, foreign: ScriptedServer, sender: Sender) -> None:
    Uploads(server, base=foreign.url + "/")
    foreign.on("PATCH", "", challenge('Basic realm="x"'))
    with pytest.raises(RegistryError, match="unauthorized"):
        sender(DATA)
    assert asked(foreign) == ["PATCH"]


def test_a_public_registry_can_not_send_us_to_a_private_address(
        server: ScriptedServer, foreign: ScriptedServer, sender: Sender,
        monkeypatch: pytest.MonkeyPatch) -> None:
    Uploads(server, base=foreign.url + "/")
    monkeypatch.setattr("minipull.registry.connection.is_public", lambda address: address == "127.0.0.1")
    for _ in ("Location", "redirect"):
        with pytest.raises(PolicyError, match="a private address"):
            sender(DATA)
        server.on("POST", "", redirect(foreign.url + "/"))
    assert foreign.requests == []


def test_an_upload_never_goes_from_https_to_http(
        certificates: Certificates, foreign: ScriptedServer, make: Make) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        Uploads(server, base=foreign.url + "/")
        for _ in ("Location", "redirect"):
            with pytest.raises(PolicyError, match="from https to http, refused"):
                make(server.url, str(certificates.ca))(DATA)
            server.on("POST", "", redirect(foreign.url + "/"))
    assert foreign.connections == 0


def test_an_upload_over_tls_is_resumed(certificates: Certificates, make: Make) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        uploads = Uploads(server)
        patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
        make(server.url, str(certificates.ca))(DATA)
        assert uploads.blobs == {BLOB: DATA} and len(server.seen("POST")) == 1


def test_a_file_is_resumed_at_an_offset(
        server: ScriptedServer, uploads: Uploads, sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"before" + DATA)
    patch(server, functools.partial(uploads.append, stop=100000), uploads.append)
    with open(str(tmp_path / "blob"), "rb", buffering=0) as file:
        send_blob(sender.repository, Descriptor("test", BLOB, len(DATA)),
                  lambda offset, size: FileBody(file, 6 + offset, size), Cancel())
    assert uploads.blobs == {BLOB: DATA}
