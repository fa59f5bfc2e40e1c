# SPDX-License-Identifier: Apache-2.0
"""Requests: a request is one value, made by a protocol and handed down to a connection.

A layer that adds to it (a token, the target of a redirect) sends a changed copy.
"""
from typing import BinaryIO, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional

from ..cancel import Cancel
from ..digest import Buffer
from ..files import read_at

PIECE = 64 << 10  # bytes sent at once: 1 KiB a second is no stall yet


class Body:
    """A body, anew with each ``pieces()``, of ``size`` or in chunks; ``sent`` is told the progress."""

    def __init__(self, pieces: Callable[[], Iterable[Buffer]], size: Optional[int] = None,
                 sent: Callable[[int], None] = lambda count: None) -> None:
        self.pieces = pieces
        self.size = size
        self.sent = sent

    @classmethod
    def of(cls, data: bytes) -> "Body":
        return cls(lambda: [data], len(data))


class FileBody(Body):
    """``size`` bytes of an open file from ``offset`` on."""

    def __init__(self, file: BinaryIO, offset: int, size: int,
                 sent: Callable[[int], None] = lambda count: None) -> None:
        super().__init__(self._read, size, sent)
        self.file = file
        self.offset = offset

    def _read(self) -> Iterator[Buffer]:
        for start in range(0, self.size or 0, PIECE):
            most = min(PIECE, (self.size or 0) - start)
            yield read_at(self.file, self.offset + start, most)


class Request(NamedTuple):
    """An HTTP request, and the rules for sending it."""
    method: str
    url: str
    cancel: Cancel
    headers: Mapping[str, str] = {}
    body: Optional[Body] = None
    scope: str = ""  # a token must grant this besides what the repository always needs
    repeat: bool = True  # may be sent again after a failure; after a rate limit it always is
    once: bool = False  # never repeated, since its failure costs little
    follow: bool = True  # to where a redirect points
    only_public: bool = False  # not to private addresses: a public host gave us the URL
    role: str = ""  # of a host that another one named: "the token server of r.com"

    def with_headers(self, headers: Mapping[str, str]) -> "Request":
        """A copy with these headers as well, in place of others of the same name."""
        merged = {name.title(): value for name, value in (*self.headers.items(), *headers.items())}
        return self._replace(headers=merged)
