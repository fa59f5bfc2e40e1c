# SPDX-License-Identifier: Apache-2.0
"""Sending a part of a file to a socket."""
import io
import os
import select
import socket
from typing import BinaryIO, Iterator

from .files import Extent, read_at

_PIECE = 128 << 10  # bytes sent at once


def send(sock: socket.socket, file: BinaryIO, offset: int, count: int) -> Iterator[int]:
    """Send a part of a file, by sendfile(2) where that is possible.

    Yields the length of each piece in bytes; ends early where the file does.
    Raises OSError, socket.timeout as the socket does.
    """
    start, end, timeout = 0, offset + count, sock.gettimeout()
    if isinstance(file, Extent):
        start, end = file.start, min(end, file.size)
    copying = not hasattr(os, "sendfile") or isinstance(file, io.BytesIO)
    while offset < end:
        if copying:
            piece = read_at(file, offset, min(_PIECE, end - offset))
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
