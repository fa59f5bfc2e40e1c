# SPDX-License-Identifier: Apache-2.0
"""Responses: the head of an answer, and its body, which is still on the wire.

RFC 9110 and 9112.
"""
import contextlib
import io
import re
import zlib
from typing import Callable, ContextManager, List, Optional

from ..errors import NetworkError, PolicyError, shown
from .head import Head
from .url import Origin

READ_AHEAD = 64 << 10  # bytes
_MAX_DISCARD = 64 << 10
_MAX_LINE = 4096
_MAX_TRAILERS = 100

#   chunk-size [ chunk-ext ]  (RFC 9112, 7.1; http.client takes "-1" for a size)
_CHUNK = br"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r\n"


class Response(ContextManager["Response"]):
    """An HTTP response; close() it, or use it in a ``with``.

    ``file`` has read the head, and perhaps more.  ``errors`` maps foreign errors while the
    body is read; ``done`` is told at the end whether the connection can be used again.
    """

    def __init__(self, head: Head, file: io.BufferedReader, url: str, origin: Origin,
                 errors: Callable[[], ContextManager[None]], done: Callable[[bool], None]) -> None:
        self.status = head.status
        self.reason = head.reason
        self.url = url
        self.origin = origin
        self._head = head
        self._file = file
        self._errors = errors
        self._done = done
        self._closed = False
        self._chunked = bool(self.values("Transfer-Encoding"))
        self._chunk: Optional[int] = None  # bytes left of the current chunk
        self._ahead = True  # the buffer may hold bytes of the body, read along with the head or a chunk size
        #: Bytes of the body still to come, or None if the server did not say.
        self.remaining = self._length()
        #: Whether the connection ends with this answer.
        self._last = head.closes or self.remaining is None and not self._chunked

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def values(self, name: str) -> List[str]:
        """All values of a header, one for each time that it stands in the head."""
        return self._head.fields.get(name.lower(), [])

    def header(self, name: str) -> str:
        """The value of a header; the different values of a repeated one are joined by commas."""
        return ", ".join(dict.fromkeys(self.values(name)))

    def readinto(self, view: memoryview) -> int:
        """Read what has arrived into ``view``; returns its size, 0 at the end; raises NetworkError."""
        with self._errors():
            if self.remaining is None and self._chunked and not self._chunk:
                self._chunk = self._next_chunk()
                self._ahead = True
                if not self._chunk:
                    self.remaining = 0
            if self.remaining == 0:
                return 0
            left = self._chunk if self._chunked else self.remaining
            # A larger read than the buffer would wait for more than the buffer holds.
            most = READ_AHEAD if self._ahead else len(view)
            self._ahead = False
            count: int = self._file.readinto1(view[:left][:most])
            if not count and left is not None:
                raise NetworkError("%s closed the connection %d bytes early" % (self.origin, left))
            if self._chunk is not None:
                self._chunk -= count
            elif self.remaining is not None:
                self.remaining -= count
            elif not count:
                self.remaining = 0
            return count

    def read(self, limit: int) -> bytes:
        """The whole body, decoded; raises PolicyError if it has more than ``limit`` bytes, NetworkError."""
        body, view = bytearray(), memoryview(bytearray(64 << 10))
        for count in iter(lambda: self.readinto(view), 0):
            body += view[:count]
            if len(body) > limit:
                break
        else:
            body = self._decoded(body, limit)
        if len(body) > limit:
            raise PolicyError("answer of %s is larger than %d bytes" % (self.origin, limit))
        return bytes(body)

    def _decoded(self, body: bytearray, limit: int) -> bytearray:
        """Undo a Content-Encoding that was not asked for (RFC 9110, 8.4); of a blob nothing does."""
        coding = self.header("Content-Encoding").lower()
        if coding in ("", "identity") or not body:
            return body
        decoder = zlib.decompressobj(31)
        with contextlib.suppress(zlib.error):
            decoded = decoder.decompress(body, limit + 1) if coding in ("gzip", "x-gzip") else b""
            if len(decoded) > limit or decoder.eof and not decoder.unused_data:
                return bytearray(decoded)
        error = self._malformed("Content-Encoding %s, which was not asked for" % shown(coding, 100))
        error.retry = False
        raise error

    def discard(self) -> None:
        """Read the body if it is short, so that the connection can be kept, and close."""
        with self, contextlib.suppress(NetworkError, PolicyError):
            if (self.remaining or 0) <= _MAX_DISCARD:
                self.read(_MAX_DISCARD)

    def close(self) -> None:
        """End the exchange; the connection is kept if the body was read to its end."""
        if not self._closed:
            # Bytes behind the body would be taken for the next answer.
            reusable = self.remaining == 0 and not self._last and not self._file.peek(1)
            self._closed = True
            self._file.close()
            self._done(reusable)

    def _length(self) -> Optional[int]:
        text = self.header("Content-Length")
        sized = bool(self.values("Content-Length"))
        coded = self._chunked and (sized or self.header("Transfer-Encoding").lower() != "chunked")
        if coded or sized and not re.fullmatch("[0-9]{1,18}", text):
            raise self._malformed("ambiguous length")
        if self._head.bodiless:
            return 0
        return int(text) if sized else None

    def _next_chunk(self) -> int:
        """Size of the next chunk in bytes, 0 at the end of the body (RFC 9112, 7.1)."""
        file = self._file
        if self._chunk is not None and file.readline(_MAX_LINE) != b"\r\n":
            raise self._malformed("chunk without end")
        match = re.fullmatch(_CHUNK, file.readline(_MAX_LINE))
        if match is None:
            raise self._malformed("chunk without size")
        size = int(match.group(1), 16)
        lines = 0
        while not size and file.readline(_MAX_LINE) != b"\r\n":
            lines += 1
            if lines > _MAX_TRAILERS:
                raise self._malformed("body without end")
        return size

    def _malformed(self, problem: str) -> NetworkError:
        return NetworkError("malformed answer of %s: %s" % (self.origin, problem))
