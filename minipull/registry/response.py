# SPDX-License-Identifier: Apache-2.0
"""An answer whose body is still on the wire.

RFC 9110 and 9112.
"""
import abc
import contextlib
import http.client
import re
from typing import ContextManager, Dict, List, Optional

from ..errors import NetworkError, PolicyError
from .url import Origin

READ_AHEAD = 64 << 10  # bytes
_MAX_DISCARD = 64 << 10
_MAX_LINE = 4096
_MAX_TRAILERS = 100

#   chunk-size [ chunk-ext ]  (RFC 9112, 7.1; to http.client "-1" is a size too)
_CHUNK = re.compile(br"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r\n")


class Exchange(abc.ABC):
    """The side of a connection that an answer needs while its body is on the wire."""
    origin: Origin
    public: bool  # is the peer an address of the public internet?
    response: Optional["Response"]  # the answer that is being read

    @abc.abstractmethod
    def errors(self) -> ContextManager[None]:
        """Map every foreign error to one of ours, with the peer in its text; or be Cancelled."""

    @abc.abstractmethod
    def done(self, reusable: bool) -> None:
        """The exchange is over; only a connection with nothing on it is kept."""


class Response:
    """An answer whose body is still on the wire; close() it, or use ``with``."""

    def __init__(self, raw: http.client.HTTPResponse, conn: Exchange, url: str) -> None:
        self.status = raw.status
        self.reason = raw.reason
        #: Every value of every header, by its name in lower case.
        self.headers: Dict[str, List[str]] = {}
        for name, value in raw.headers.items():
            self.headers.setdefault(name.lower(), []).append(str(value).strip())
        self.url = url
        self.origin = conn.origin
        self.public = conn.public
        self._raw = raw
        self._conn = conn
        self._chunked = bool(self.header("Transfer-Encoding"))
        self._chunk: Optional[int] = None  # what is left of it
        self._ahead = True  # bytes of body may have been read with what was before
        #: Bytes of body still to come, or None where the server did not say.
        self.remaining = self._length()

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def header(self, name: str) -> str:
        """The value of a header; of one that comes several times, all that differ."""
        return ", ".join(dict.fromkeys(self.headers.get(name.lower(), ())))

    def readinto(self, view: memoryview) -> int:
        """What has arrived, at most ``view``; 0 at the end.  Raises NetworkError."""
        with self._conn.errors():
            if self.remaining is None and self._chunked and not self._chunk:
                self._chunk = self._next_chunk()
                self._ahead = True
                if not self._chunk:
                    self.remaining = 0
            if self.remaining == 0:
                return 0
            left = self._chunk if self._chunked else self.remaining
            # More than the buffer's size at once would wait for more than is in it.
            most = READ_AHEAD if self._ahead else len(view)
            self._ahead = False
            count: int = self._raw.fp.readinto1(view[:left][:most])
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
        """The whole body; raises PolicyError if it has more than ``limit`` bytes."""
        body, view = bytearray(), memoryview(bytearray(64 << 10))
        for count in iter(lambda: self.readinto(view), 0):
            body += view[:count]
            if len(body) > limit:
                raise PolicyError("answer of %s is larger than %d bytes" % (self.origin, limit))
        return bytes(body)

    def discard(self) -> None:
        """Close, but first read a body that is short, to keep the connection."""
        with self, contextlib.suppress(NetworkError, PolicyError):
            self.read(_MAX_DISCARD)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it."""
        if self._conn.response is self:
            whole = self.remaining == 0 and not self._raw.will_close
            # What has come behind the body is no answer to anything.
            reusable = whole and not self._raw.fp.peek(1)
            self._raw.close()
            self._conn.done(reusable)

    def _length(self) -> Optional[int]:
        text = self.header("Content-Length")
        sized = "content-length" in self.headers
        coded = self._chunked and (sized or self.header("Transfer-Encoding").lower() != "chunked")
        if coded or sized and not re.fullmatch("[0-9]{1,18}", text):
            raise self._malformed("ambiguous length")
        if self._raw.length == 0:
            return 0  # HEAD, 204, 304 and such have no body whatever they say
        return int(text) if sized else None

    def _next_chunk(self) -> int:
        """Its size, which is 0 at the end of the body (RFC 9112, 7.1)."""
        fp = self._raw.fp
        if self._chunk is not None and fp.readline(_MAX_LINE) != b"\r\n":
            raise self._malformed("chunk without end")
        match = _CHUNK.fullmatch(fp.readline(_MAX_LINE))
        if match is None:
            raise self._malformed("chunk without size")
        size = int(match.group(1), 16)
        lines = 0
        while not size and fp.readline(_MAX_LINE) != b"\r\n":
            lines += 1
            if lines > _MAX_TRAILERS:
                raise self._malformed("body without end")
        return size

    def _malformed(self, what: str) -> NetworkError:
        return NetworkError("malformed answer of %s: %s" % (self.origin, what))
