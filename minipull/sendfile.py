# SPDX-License-Identifier: Apache-2.0
"""Sending a part of a file to a socket."""
import os
import select
import socket
from typing import BinaryIO, Iterator

_PIECE = 128 << 10  # bytes of one sendfile
_COPY = 256 << 10  # bytes read and sent at once


def send(sock: socket.socket, file: BinaryIO, offset: int, count: int) -> Iterator[int]:
    """Send a part of a file, by sendfile(2) if the peer is another machine.

    Yields the length of each piece in bytes; ends early where the file does.
    Raises OSError, socket.timeout as the socket does.
    """
    end, timeout = offset + count, sock.gettimeout()
    # To a peer on this machine copying is quicker: the data is in the cache when it reads.
    copying = not hasattr(os, "sendfile") or sock.getpeername()[:1] == sock.getsockname()[:1]
    while offset < end:
        if copying:
            piece = os.pread(file.fileno(), min(_COPY, end - offset), offset)
            sock.sendall(piece)
            sent = len(piece)
        else:
            try:
                sent = os.sendfile(sock.fileno(), file.fileno(), offset, min(_PIECE, end - offset))
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
