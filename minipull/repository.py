# SPDX-License-Identifier: Apache-2.0
"""One repository at one endpoint, by the v2 protocol; the reading half.

Every answer that is no success becomes an error here, whatever its body.

Mirrors docker/distribution's registry/client/repository.go.
Spec: distribution-spec.
"""
import re
import threading
from typing import Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from .auth import Authorizer, Keyring, answer_error
from .connection import Origin, Response, joined
from .descriptor import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, parse_json, list_at
from .digest import Digest
from .endpoints import Endpoint, RegistryService
from .errors import ContentMismatch, InvalidDocument, NetworkError, PolicyError, RegistryError
from .manifest import MAX_MANIFEST
from .reference import Reference, is_tag
from .streams import Cancel

MAX_TAGS = 100000
_MAX_PAGE = 16 << 20  # bytes
_MAX_PAGES = 10000

_ACCEPT = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))}
_LINK = re.compile(r'<([^<>]*)>[^<>]*;\s*rel="?next\b', re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Received(NamedTuple):
    """A manifest as it came: its bytes, the type it claims, its digest."""
    raw: bytes
    content_type: str
    digest: Digest


class Client:
    """Repositories that share connections, and what was learned about each.

    Close it at the end, or use ``with``.
    """

    def __init__(self, service: RegistryService, credentials: Keyring) -> None:
        self.service = service
        self.credentials = credentials
        self.transport = service.transport()
        self._lock = threading.Lock()
        self._repositories: Dict[Tuple[Endpoint, str], Repository] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.transport.close()

    def repository(self, endpoint: Endpoint, reference: Reference) -> "Repository":
        key = (endpoint, reference.name)
        with self._lock:
            if key not in self._repositories:
                self._repositories[key] = Repository(endpoint, reference, self)
            return self._repositories[key]

    def spoke_tls(self, endpoint: Endpoint) -> bool:
        """Whether plain http is over for the host of this endpoint."""
        origin = Origin.of(endpoint.url)
        spoken = self.transport.spoke_tls
        return any((origin.host, port) in spoken for port in {origin.port, 443})


class Repository:
    """Asks one endpoint; threads may share it.  Network errors as Transport's."""

    def __init__(self, endpoint: Endpoint, reference: Reference, client: Client) -> None:
        self.endpoint = endpoint
        self.name = reference.name
        self.answered = False  # has this endpoint ever?
        self._public = False  # is its address one of the public internet?
        self._transport = client.transport
        self._base = "%s/v2/%s/" % (endpoint.url, reference.path)
        # A mirror is told whose repository is meant, as containerd does.
        self._query = "?ns=" + reference.domain if endpoint.mirror else ""
        path = "" if endpoint.mirror else reference.path
        self._authorizer = Authorizer(
            client.transport, Origin.of(endpoint.url),
            lambda: client.credentials.get(endpoint.host, path),
            "repository:%s:pull" % reference.path)

    def manifest(self, reference: str, cancel: Cancel) -> Received:
        """A manifest or index by tag or digest, its bytes compared with the digest.

        Raises RegistryError, ContentMismatch, PolicyError for one over 8 MiB.
        """
        with self._request("GET", "manifests/" + reference, _ACCEPT, cancel) as response:
            raw = response.read(MAX_MANIFEST)
        wanted = reference if ":" in reference else response.header("Docker-Content-Digest")
        digest = Digest.of(raw)
        if wanted:
            digest = Digest.parse(wanted)
            if Digest.of(raw, digest.algorithm) != digest:
                raise ContentMismatch("manifest verification failed for digest %s" % digest)
        return Received(raw, response.header("Content-Type"), digest)

    def resolve(self, tag: str, cancel: Cancel) -> Optional[Digest]:
        """What a tag points to, by HEAD, which costs no pull quota; None if untold."""
        try:
            with self._request("HEAD", "manifests/" + tag, _ACCEPT, cancel) as response:
                return Digest.parse(response.header("Docker-Content-Digest"))
        except (RegistryError, InvalidDocument):
            return None  # the GET that follows knows better why

    def blob(self, digest: Digest, offset: int, cancel: Cancel) -> Response:
        """A blob from ``offset`` (bytes) on: 206 from there, or 200 from the start.

        Raises RegistryError; NetworkError for a range that was not asked for.
        """
        # No If-Range: whether the bytes still fit is for the digest to say.
        headers = {"Range": "bytes=%d-" % offset} if offset else {}
        return _ranged(self._request("GET", "blobs/" + digest, headers, cancel), offset)

    def foreign_blob(self, url: str, cancel: Cancel, offset: int) -> Response:
        """A foreign layer from where its manifest says: by https, as nobody."""
        if Origin.of(url).scheme != "https":
            raise PolicyError("foreign layer at %s, without https, refused" % ascii(url)[:200])
        headers = {"Range": "bytes=%d-" % offset} if offset else {}
        response = self._transport.request("GET", url, headers, cancel, only_public=self._public)
        return _ranged(_succeeded(response), offset)

    def tags(self, cancel: Cancel) -> List[str]:
        """Every tag, in the registry's order; raises RegistryError, NetworkError."""
        found: List[str] = []
        url = self._base + "tags/list" + self._query
        seen: Set[str] = set()
        while url:
            if url in seen or len(seen) > _MAX_PAGES:
                raise NetworkError("%s: list of tags goes in circles" % (self.endpoint,))
            seen.add(url)
            with self._checked("GET", url, {}, cancel) as response:
                page = parse_json(response.read(_MAX_PAGE), "list of tags")
            for tag in list_at(page, "tags", "list of tags"):
                if not isinstance(tag, str) or not is_tag(tag):
                    raise InvalidDocument("list of tags: invalid tag %s" % ascii(tag)[:150])
                found.append(tag)
            if len(found) > MAX_TAGS:
                raise PolicyError("%s: more than %d tags" % (self.endpoint, MAX_TAGS))
            link = _LINK.search(response.header("Link"))
            url = joined(url, link.group(1)) if link else ""
            if url and Origin.of(url) != Origin.of(self.endpoint.url):
                raise PolicyError("%s: next page of tags is elsewhere, refused" % (self.endpoint,))
        return found

    def _request(self, method: str, path: str, headers: Mapping[str, str],
                 cancel: Cancel) -> Response:
        return self._checked(method, self._base + path + self._query, headers, cancel)

    def _checked(self, method: str, url: str, headers: Mapping[str, str],
                 cancel: Cancel) -> Response:
        response = self._authorizer.request(method, url, headers, cancel)
        self.answered = True
        if response.origin == Origin.of(self.endpoint.url):
            self._public = response.public
        return _succeeded(response)


def _succeeded(response: Response) -> Response:
    """The answer, unless it is an error, which is raised."""
    if 200 <= response.status < 300:
        return response
    raise answer_error(response)


def _ranged(response: Response, offset: int) -> Response:
    """The answer, unless it is a range that was not asked for."""
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.header("Content-Range"))
        start, end, total = match.groups() if match else ("-1", "-1", "*")
        fits = response.remaining in (None, int(end) + 1 - offset)
        if int(start) != offset or total not in ("*", str(int(end) + 1)) or not fits:
            response.close()
            raise ContentMismatch("%s answered with another range" % (response.origin,))
    return response
