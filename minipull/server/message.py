# SPDX-License-Identifier: Apache-2.0
"""HTTP messages of a server: requests parsed, and answers formatted.

A head is parsed strictly or refused, and a body knows whether its end was
reached: the standard library's http.server accepts a request with two lengths,
and reads the rest of an unread body as the next request.

RFC 9112 (messages, chunks), RFC 9110 (fields).
"""
import abc
import contextlib
import email.utils
import functools
import http
import re
import time
import urllib.parse
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import Error
from ..files import read_at
from ..image.strictjson import compact

MAX_FIELDS = 100  # headers, trailers, and parameters of a query
MAX_LINE = 1024  # bytes of a line within a chunked body
MAX_DRAINED = 64 << 10  # bytes of an unread body that are read to keep a connection

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#   request-line ::= method SP target SP version
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
#   field-line   ::= name ":" OWS value OWS       (no folding, no control characters)
_FIELD = re.compile(rb"(%s):([^\x00-\x08\x0a-\x1f\x7f]*)" % _TOKEN)
#   chunk-line   ::= hex+ [ ";" extension ]
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~]*)?")
#   line         ::= no control characters, CR LF      (some parsers end a line at a lone one)
_LINE = re.compile(rb"([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_VALUE = re.compile("[ -~]*")
#: Headers that may not be repeated: two parsers could choose different ones.
_ONCE = frozenset(("content-length", "transfer-encoding", "host", "content-range", "content-type"))

Headers = Sequence[Tuple[str, str]]


class Response(NamedTuple):
    """An answer: ``body``, or ``length`` bytes of ``file`` from ``offset``, or ``pieces`` of unknown length."""
    status: int
    headers: Headers = ()
    body: bytes = b""
    file: Optional[BinaryIO] = None
    offset: int = 0
    length: int = 0
    pieces: Optional[Iterator[bytes]] = None

    def in_memory(self) -> Optional["Response"]:
        """Return the same with its part of the file as the body; None where the file has become shorter."""
        if self.file is None:
            return self
        with self.file as file:
            body = read_at(file, self.offset, self.length)
        return self._replace(body=body, file=None) if len(body) == self.length else None


def json_response(status: int, value: object, headers: Headers = (),
                  content_type: str = "application/json") -> Response:
    return Response(status, [("Content-Type", content_type), *headers], compact(value))


class Refusal(Error):
    """An answer that refuses a request, with an error ``code`` of distribution-spec."""

    def __init__(self, status: int, code: str, text: str, headers: Headers = ()) -> None:
        super().__init__(text)
        error = {"code": code, "message": text, "detail": None}
        self.response = json_response(status, {"errors": [error]}, headers)


def format_head(response: Response, keep: bool) -> bytes:
    """Format the head of an answer, after which the connection is kept or not.

    Raises ValueError for a header that could be read as two.
    """
    fields = [
        *response.headers, ("Date", _date(int(time.time()))),
        ("Docker-Distribution-Api-Version", "registry/2.0"), ("X-Content-Type-Options", "nosniff")]
    if response.pieces is not None and keep:
        fields.append(("Transfer-Encoding", "chunked"))
    elif response.status not in (204, 304) and response.pieces is None:
        fields.append(("Content-Length", str(response.length if response.file else len(response.body))))
    if not keep:
        fields.append(("Connection", "close"))
    lines = ["HTTP/1.1 %d %s" % (response.status, http.HTTPStatus(response.status).phrase)]
    for name, value in fields:
        if not _VALUE.fullmatch(value):
            raise ValueError("header %s: %s" % (name, ascii(value)))
        lines.append("%s: %s" % (name, value))
    return "\r\n".join(lines + ["", ""]).encode("ascii")


@functools.lru_cache(1)
def _date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


class Body:
    """The body of a request: pieces, each valid until the next.

    ``length`` (bytes) is None for a chunked body.  ``receive(limit)`` returns up to
    that many bytes; ``proceed`` sends ``100 Continue`` to a client that waits for
    it.  Iterating raises Refusal for a malformed chunk.
    """

    def __init__(self, length: Optional[int], receive: Callable[[int], memoryview],
                 proceed: Optional[Callable[[], None]] = None) -> None:
        self.length = length
        self.finished = length == 0
        self._receive = receive
        self._proceed = proceed
        # A generator of its own makes a cycle, which only gc can free.
        self._pieces: Iterator[memoryview] = iter(()) if self.finished else self._read()

    def __iter__(self) -> Iterator[memoryview]:
        return self._pieces

    def read(self, limit: int) -> bytes:
        """Read a whole body; raises Refusal past ``limit`` bytes."""
        data = bytearray()
        if (self.length or 0) <= limit:
            for piece in self:
                data += piece
                if len(data) > limit:
                    break
        if not self.finished:
            raise Refusal(413, "SIZE_INVALID", "the body is larger than %d bytes" % limit)
        return bytes(data)

    def drain(self) -> bool:
        """Read the rest of a body if it is small; return whether the end was reached."""
        if self._proceed is None:
            with contextlib.suppress(Refusal):
                self.read(MAX_DRAINED)
        return self.finished

    def _read(self) -> Iterator[memoryview]:
        proceed, self._proceed = self._proceed, None
        if proceed is not None:
            proceed()
        if self.length is not None:
            yield from self._exactly(self.length)
        else:
            size = self._chunk()
            while size:
                yield from self._exactly(size)
                if self._line():
                    raise Refusal(400, "SIZE_INVALID", "malformed chunk")
                size = self._chunk()
            for _ in range(MAX_FIELDS):
                if not self._line():
                    break
            else:
                raise Refusal(400, "SIZE_INVALID", "too many trailers")
        self.finished = True

    def _exactly(self, count: int) -> Iterator[memoryview]:
        while count:
            piece = self._receive(count)
            count -= len(piece)
            yield piece

    def _chunk(self) -> int:
        match = _CHUNK.fullmatch(self._line())
        if match is None:
            raise Refusal(400, "SIZE_INVALID", "malformed chunk size")
        return int(match.group(1), 16)

    def _line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < MAX_LINE:
            line += self._receive(1)
        match = _LINE.fullmatch(line)
        if match is None:
            raise Refusal(400, "SIZE_INVALID", "malformed chunk")
        return bytes(match.group(1))


class Request(NamedTuple):
    """A request as the application gets it: the path decoded once, header names in lower case."""
    method: str
    path: str
    query: Dict[str, List[str]]
    headers: Dict[str, str]
    body: Body
    last: bool  # no request follows on this connection

    def parameter(self, name: str) -> str:
        """Return the first value of a query parameter, or an empty text."""
        return self.query.get(name, [""])[0]


def parse_request(head: bytes, receive: Callable[[int], memoryview], proceed: Callable[[], None]) -> Request:
    """Parse the head of a request, given without the empty line at its end; raises Refusal.

    ``receive`` and ``proceed`` are those of its body.
    """
    first, *lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Refusal(400, "UNSUPPORTED", "malformed request line")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise Refusal(505, "UNSUPPORTED", "this server speaks HTTP/1.1")
    modern, headers = minor != "0", _headers(lines)
    if modern and "host" not in headers:
        raise Refusal(400, "UNSUPPORTED", "Host is missing")
    path, _, query = target.partition("?")
    if query.count("&") + query.count(";") >= MAX_FIELDS:
        raise Refusal(400, "UNSUPPORTED", "more than %d parameters" % MAX_FIELDS)
    waits = modern and headers.get("expect", "").lower() == "100-continue"
    return Request(
        method, urllib.parse.unquote(path), urllib.parse.parse_qs(query, keep_blank_values=True), headers,
        Body(_length(headers, modern), receive, proceed if waits else None),
        not modern or "close" in headers.get("connection", "").lower())


def _headers(lines: Sequence[bytes]) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    if len(lines) > MAX_FIELDS:
        raise Refusal(431, "UNSUPPORTED", "more than %d headers" % MAX_FIELDS)
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Refusal(400, "UNSUPPORTED", "malformed header")
        name = match.group(1).decode("ascii").lower()
        value = match.group(2).decode("latin-1").strip(" \t")
        if name in headers:
            if name in _ONCE:
                raise Refusal(400, "UNSUPPORTED", "two of the header %s" % name)
            value = "%s, %s" % (headers[name], value)
        headers[name] = value
    return headers


def _length(headers: Dict[str, str], modern: bool) -> Optional[int]:
    """Return the bytes of the body, or None if it is chunked; raises Refusal for an ambiguous length."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or not modern:
            raise Refusal(400, "SIZE_INVALID", "Transfer-Encoding contradicts the rest")
        if coding.lower() != "chunked":
            raise Refusal(501, "UNSUPPORTED", "Transfer-Encoding must be chunked")
        return None
    if length is None:
        return 0
    if not re.fullmatch("[0-9]{1,18}", length):
        raise Refusal(400, "SIZE_INVALID", "malformed Content-Length")
    return int(length)


class Application(abc.ABC):
    """The answers of a server; may raise :class:`Refusal`."""

    @abc.abstractmethod
    def __call__(self, request: Request) -> Response:
        """Answer a request, however long that takes."""

    def at_once(self, request: Request) -> Optional[Response]:
        """Answer a request that needs no wait and has a small body, which is in memory; None for others."""
        return None
