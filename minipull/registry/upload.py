# SPDX-License-Identifier: Apache-2.0
"""Uploads: a blob on its way to a registry, by the v2 protocol.

An upload goes to the newest Location; on another host it gets no credentials, and it
never goes from https to http.
"""
import re
from typing import Any, Callable, Optional

from ..cancel import Cancel
from ..digest import Digest
from ..errors import NetworkError, PolicyError
from .endpoints import Endpoint
from .errors import Dispensable
from .request import Body, Request
from .response import Response
from .url import Origin, joined

MAX_LEAST = 32 << 20  # bytes; a chunk of what is made on its way is held in memory
_BYTES = {"Content-Type": "application/octet-stream"}


class Upload:
    """An upload of a blob, of which the registry has ``offset`` bytes; ``url`` is where the next ones go.

    ``send`` returns a successful answer or raises an Error.  ``moved`` is told each new URL.
    """

    def __init__(self, send: Callable[[Request], Response], endpoint: Endpoint) -> None:
        self.offset = 0
        self.least = 0  # bytes of a chunk, unless it is the last one
        self.url = ""
        self.moved: Callable[[str], object] = lambda url: None
        self._send = send
        self._endpoint = endpoint

    def append(self, body: Body, cancel: Cancel, chunk: bool = False) -> None:
        """Send the next bytes, all or a chunk; after an error, sync() learns how many have arrived."""
        headers = dict(_BYTES)
        if body.size is not None and (chunk or self.offset):
            headers["Content-Range"] = "%d-%d" % (self.offset, self.offset + body.size - 1)
        self.move(self._ask("PATCH", cancel, headers=headers, body=body, repeat=False))
        self.offset += body.size or 0

    def commit(self, digest: Digest, cancel: Cancel, body: Optional[Body] = None) -> None:
        """End the upload with the last bytes (``body``), if any are left; raises RegistryError."""
        query = ("&" if "?" in self.url else "?") + "digest=" + digest
        self._ask("PUT", cancel, query, headers=_BYTES, body=body, repeat=False)

    def sync(self, cancel: Cancel) -> None:
        """Ask how much has arrived and set ``offset``; raises RegistryError if the upload is gone."""
        response = self._ask("GET", cancel)
        match = re.fullmatch("(?:bytes=)?0-([0-9]{1,18})", response.header("Range"))
        if match is None:
            raise NetworkError("%s: bad range format" % (self._endpoint,))
        # "0-0" is one byte, but distribution says it of none as well: send that byte again.
        self.offset = int(match.group(1)) + 1 if match.group(1) != "0" else 0
        self.move(response)

    def abandon(self, cancel: Cancel) -> None:
        """Cancel the upload at the registry, if that can be done."""
        with Dispensable():
            self._ask("DELETE", cancel, once=True)

    def move(self, response: Response) -> None:
        """Continue at the Location of an answer."""
        text = response.header("OCI-Chunk-Min-Length")
        self.least = min(int(text), MAX_LEAST) if re.fullmatch("[0-9]{1,12}", text) else self.least
        location = response.header("Location")
        if location:
            self.go(response.url, location)
        elif not self.url:
            raise NetworkError("%s: upload without a Location" % (response.origin,))

    def go(self, base: str, location: str) -> None:
        """Continue at a Location that the URL ``base`` names; raises PolicyError."""
        url, origin = joined(base, location), Origin.of(base)
        if (origin.scheme, Origin.of(url).scheme) == ("https", "http"):
            raise PolicyError("%s sends an upload from https to http, refused" % (origin,))
        self.url = url
        self.moved(url)

    def _ask(self, method: str, cancel: Cancel, query: str = "", **fields: Any) -> Response:
        response = self._send(Request(method, self.url + query, cancel, **fields))
        response.discard()
        return response
