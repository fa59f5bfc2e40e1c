# SPDX-License-Identifier: Apache-2.0
"""A blob of a registry is read from any offset, and continued where its body breaks off."""
import contextlib
import functools
from typing import Any, Iterator, List, Optional

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.distribution.blobs import RemoteBlob
from minipull.errors import ContentMismatch, NetworkError
from minipull.reference import Reference
from minipull.registry.auth import Keyring
from minipull.registry.client import Client
from minipull.registry.endpoints import Endpoint, RegistryService
from tests.kit.servers import ScriptedServer, close, content, head, reply, send

DATA = bytes(range(256)) * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
def client(no_repeats: None) -> Iterator[Client]:
    with Client(RegistryService(timeout=5), Keyring()) as made:
        yield made


def remote(client: Client, server: ScriptedServer, size: Optional[int] = len(DATA), **options: Any) -> RemoteBlob:
    repository = client.repository(Endpoint(server.url, server.host), Reference(server.host, "r"))
    cancel = Cancel()

    return RemoteBlob(DIGEST, size, functools.partial(repository.blob, DIGEST), cancel, **options)


def joined(blob: RemoteBlob, *where: int) -> bytes:
    with contextlib.closing(blob):
        return b"".join(bytes(piece) for piece in blob.pieces(*where))


def ranges(server: ScriptedServer) -> List[Optional[str]]:
    return [request.headers.get("range") for request in server.seen("GET", "/blobs/")]


@pytest.mark.parametrize("where, part", [((0,), DATA), ((5000,), DATA[5000:]), ((5000, 10), DATA[5000:5010])])
def test_a_part_is_read_by_offset_and_size(client: Client, server: ScriptedServer, where: Any, part: bytes) -> None:
    server.on("GET", "/blobs/", content(DATA), content(DATA, ranges=False))
    assert joined(remote(client, server), *where) == part
    assert joined(remote(client, server), *where) == part  # skipped where Range is ignored


@pytest.mark.parametrize("body", [
    content(DATA), reply(200, DATA, chunked=True),
    [send(head(200, {"Connection": "close"}) + DATA), close]], ids=["length", "chunks", "until it closes"])
def test_a_blob_of_unknown_size_is_read_to_the_end_of_its_body(
        client: Client, server: ScriptedServer, body: Any) -> None:
    server.on("GET", "/blobs/", body)
    assert joined(remote(client, server, None), 0) == DATA
    assert ranges(server) == [None]


def test_the_size_that_was_learned_holds_for_the_rest(client: Client, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", [send(head(200, {"Content-Length": str(len(DATA))}) + DATA[:9000]), close],
              content(DATA))
    blob = remote(client, server, None)
    assert joined(blob, 0) == DATA and blob.broke_off
    assert ranges(server) == [None, "bytes=9000-"]


def test_a_body_in_chunks_may_not_be_longer_than_promised(client: Client, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/", reply(200, DATA + b"!", chunked=True))
    with pytest.raises(ContentMismatch, match="is longer than %d bytes" % len(DATA)):
        joined(remote(client, server), 0)


@pytest.mark.parametrize("delays, requests", [((), 1), ((0.0,), 2), ((0.0, 0.0), 3)])
def test_a_body_that_does_not_move_is_opened_as_often_as_there_are_delays(
        client: Client, server: ScriptedServer, delays: Any, requests: int) -> None:
    server.on("GET", "/blobs/", [send(head(200, {"Content-Length": str(len(DATA))})), close])
    with pytest.raises(NetworkError):
        joined(remote(client, server, stuck_delays=delays), 0)
    assert len(ranges(server)) == requests


def test_breaks_are_bounded_though_the_body_moves(client: Client, server: ScriptedServer) -> None:
    def act(connection: Any) -> None:
        start = int((connection.request.headers.get("range") or "bytes=0-")[6:-1])
        content(DATA, stop=100)(connection) if start else connection.send(
            head(200, {"Content-Length": str(len(DATA))}) + DATA[:100])
        close(connection)

    server.on("GET", "/blobs/", act)
    with pytest.raises(NetworkError):
        joined(remote(client, server, max_breaks=4), 0)
    assert len(ranges(server)) == 4
