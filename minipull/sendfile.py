# SPDX-License-Identifier: Apache-2.0
"""Sending a part of a file to a socket."""
import contextlib
import io
import os
import select
import socket
from typing import BinaryIO, Iterator

from .files import Extent, read_at

_PIECE = 128 << 10  # bytes of one sendfile
_COPY = 256 << 10  # bytes read and sent at once


def send(sock: socket.socket, file: BinaryIO, offset: int, count: int) -> Iterator[int]:
    """Send a part of a file, by sendfile(2) if the peer is another machine: here data is in the cache.

    Yields the length of each piece in bytes; ends early where the file does.
    Raises OSError, socket.timeout as the socket does.
    """
    start, end, timeout = 0, offset + count, sock.gettimeout()
    if isinstance(file, Extent):
        start, end = file.start, min(end, file.size)
    copying = not hasattr(os, "sendfile") or isinstance(file, io.BytesIO)
    with contextlib.suppress(OSError):  # on one machine copying is quicker; a peer that has gone has no name
        copying = copying or sock.getpeername()[:1] == sock.getsockname()[:1]
    while offset < end:
        if copying:
            piece = read_at(file, offset, min(_COPY, end - offset))
            sock.sendall(piece)
            sent = len(piece)
        else:
            try:
                sent = os.sendfile(sock.fileno(), file.fileno(), start + offset, min(_PIECE, end - offset))
            except BlockingIOError:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                if not poll.poll(timeout and timeout * 1000):
                    raise socket.timeout("timed out") from None
                continue
        if not sent:
            return
        offset += sent
        yield sent
