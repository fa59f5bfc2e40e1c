# SPDX-License-Identifier: Apache-2.0
"""Requests: the body of one, made anew whenever it is sent."""
import os
from typing import BinaryIO, Callable, Iterable, Iterator, Optional

from ..digest import Buffer

PIECE = 64 << 10  # bytes sent at once: 1 KiB a second is no stall yet


class Body:
    """What a request brings: pieces, made anew whenever it is sent.

    ``size`` is in bytes; None sends chunks.  ``sent`` is told how many have gone.
    """

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
            yield os.pread(self.file.fileno(), most, self.offset + start)
