# SPDX-License-Identifier: Apache-2.0
"""Parts of files that are sent over a connection."""
import io
import os
import socket
import struct
import threading
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, Optional, cast

import pytest

from minipull.files import Extent
from minipull.sendfile import send

TIMEOUT = 30.0
#: A blob of a store, a member of an archive, a document in memory: made of a file, and of the data in it.
FILES: Dict[str, Callable[[BinaryIO, bytes], BinaryIO]] = {
    "file": lambda file, data: file,
    "extent": lambda file, data: cast(BinaryIO, Extent(file, 6, len(data))),
    "memory": lambda file, data: io.BytesIO(data)}


class Pair:
    """Two ends of a connection, and a file to be sent over it."""

    def __init__(self, path: Path, size: int, kind: str) -> None:
        self.data = (bytes(range(251)) * (size // 251 + 1))[:size]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            self.near = socket.create_connection(listener.getsockname(), TIMEOUT)
            self.far = listener.accept()[0]
        path.write_bytes(b"before" + self.data + b"behind" if kind == "extent" else self.data)
        self.opened = open(str(path), "rb", buffering=0)
        self.file = FILES[kind](cast(BinaryIO, self.opened), self.data)
        self.got = bytearray()

    def receive(self) -> None:
        for data in iter(lambda: self.far.recv(1 << 16), b""):
            self.got += data

    def close(self) -> None:
        for each in (self.near, self.far, self.file, self.opened):
            each.close()


@pytest.fixture(params=sorted(FILES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path / "file", 12 << 20, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("timeout", [None, 10.0])
@pytest.mark.parametrize("sendfile", [True, False])
def test_a_part_of_a_file_arrives_whatever_the_system_has(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, timeout: Optional[float], sendfile: bool
) -> None:
    if not sendfile:
        monkeypatch.delattr(os, "sendfile")
    elif not isinstance(pair.file, io.BytesIO):
        monkeypatch.setattr("minipull.sendfile.read_at", None)  # no byte is copied
    pair.near.settimeout(timeout)
    thread = threading.Thread(target=pair.receive)
    thread.start()
    counts = list(send(pair.near, pair.file, 1000, 2000000))
    counts += send(pair.near, pair.file, 0, 1)
    pair.near.shutdown(socket.SHUT_WR)
    thread.join(TIMEOUT)
    assert sum(counts) == 2000001 and max(counts) <= 128 << 10
    assert pair.got == pair.data[1000:2001000] + pair.data[:1]


def test_a_file_that_is_shorter_ends_early(pair: Pair) -> None:
    pair.near.settimeout(10)
    thread = threading.Thread(target=pair.receive)
    thread.start()
    size = len(pair.data)
    assert sum(send(pair.near, pair.file, size - 5, 100)) == 5
    assert list(send(pair.near, pair.file, size, 100)) == []
    pair.near.shutdown(socket.SHUT_WR)
    thread.join(TIMEOUT)


def test_a_peer_that_reads_nothing_is_waited_for_until_the_timeout(pair: Pair) -> None:
    pair.near.settimeout(0.05)
    with pytest.raises(socket.timeout):
        list(send(pair.near, pair.file, 0, len(pair.data)))


def test_a_peer_that_has_gone_is_an_oserror(pair: Pair) -> None:
    pair.near.settimeout(10)
    pair.far.close()
    with pytest.raises(OSError):
        list(send(pair.near, pair.file, 0, len(pair.data)))


def test_a_peer_that_has_gone_before_the_first_byte_is_told_as_one_that_goes_later(pair: Pair) -> None:
    pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.far.close()  # by a reset
    with pytest.raises(ConnectionError):
        pair.near.recv(1)
    with pytest.raises(ConnectionError):
        list(send(pair.near, pair.file, 0, 100))
