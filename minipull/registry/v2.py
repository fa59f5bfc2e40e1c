# SPDX-License-Identifier: Apache-2.0
"""One repository at one endpoint, by the v2 protocol.

Every answer that is no success becomes an error here, whatever its body.  An
upload goes where the newest Location says: to another host only without our
credentials, and never from https to http.

Mirrors docker/distribution's registry/client/repository.go.
Spec: distribution-spec.
"""
import contextlib
import re
import urllib.parse
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument, NetworkError, NoSupport, PolicyError
from ..image.descriptor import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA1_SIGNED, Descriptor
from ..image.manifest import MAX_MANIFEST, is_schema1
from ..image.strictjson import list_at, parse_json
from ..parts import part
from ..reference import Reference, is_tag
from .auth import Authorizer, Credential, Keyring, answer_error
from .endpoints import Endpoint
from .errors import RegistryError
from .request import Body, Request
from .response import Response
from .transport import Transport
from .url import Origin, joined

MAX_TAGS = 100000
MAX_REFERRERS = 1000
_MAX_PAGE = 16 << 20  # bytes
_MAX_PAGES = 10000

#: The last one for registries that have nothing else.
_ACCEPT = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1_SIGNED))}
_BYTES = {"Content-Type": "application/octet-stream"}
_LINK = re.compile(r'<([^<>]*)>[^<>]*;\s*rel="?next\b', re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Received(NamedTuple):
    """A manifest as it came: its bytes, the type it claims, its digest."""
    raw: bytes
    content_type: str
    digest: Digest


class Repository:
    """Asks one endpoint; threads may share it.  Network errors as Transport's."""

    def __init__(self, endpoint: Endpoint, reference: Reference, transport: Transport,
                 credentials: Keyring, actions: str = "pull") -> None:
        self.endpoint = endpoint
        self.path = reference.path
        self.name = reference.name
        self.answered = False  # has this endpoint ever?
        self.confirmed = False  # has it proved to speak v2?
        self._pinged = False
        self._public = False  # is its address one of the public internet?
        self._transport = transport
        self._base = "%s/v2/%s/" % (endpoint.url, reference.path)
        # A mirror is told whose repository is meant, as containerd does.
        self._query = "?ns=" + reference.domain if endpoint.mirror else ""
        self._origin = Origin.of(endpoint.url)
        self._credentials = credentials
        self._authorizer = Authorizer(
            transport, self._origin, self.credential,
            "repository:%s:%s" % (reference.path, actions))

    def credential(self) -> Credential:
        """What to prove ourselves with here."""
        path = "" if self.endpoint.mirror else self.path
        return self._credentials.get(self.endpoint.host, path)

    def ping(self, cancel: Cancel) -> None:
        """Ask, once, whether v2 is spoken here; only where v1 may be instead.

        Raises NoSupport if nothing is known by the name of v2.
        """
        if not self._pinged:
            request = Request("GET", self.endpoint.url + "/v2/", cancel, follow=False)
            with self._transport.send(request) as response:
                versions = response.header("Docker-Distribution-API-Version")
                self.confirmed = "registry/2.0" in re.split("[, ]+", versions)
                self._pinged = response.status != 404 or self.confirmed
        if not self._pinged:
            raise NoSupport("%s does not speak the v2 protocol" % (self.endpoint,))

    def manifest(self, reference: str, cancel: Cancel) -> Received:
        """A manifest or index by tag or digest, its bytes compared with the digest.

        Raises RegistryError, ContentMismatch, PolicyError for one over 8 MiB,
        InvalidDocument for schema 1 without a signature.
        """
        with self._ask("GET", "manifests/" + reference, cancel, headers=_ACCEPT) as response:
            raw = response.read(MAX_MANIFEST)
        wanted = reference if ":" in reference else response.header("Docker-Content-Digest")
        content_type = response.header("Content-Type")
        # The digest of a signed manifest leaves out its signatures.
        signed: bytes = part("image.schema1").payload(raw) if is_schema1(raw, content_type) else raw
        digest = Digest.of(signed)
        if wanted:
            self.confirmed = True
            digest = Digest.parse(wanted)
            if Digest.of(signed, digest.algorithm) != digest:
                raise ContentMismatch("manifest verification failed for digest %s" % digest)
        return Received(raw, content_type, digest)

    def resolve(self, tag: str, cancel: Cancel) -> Optional[Digest]:
        """What a tag points to, by HEAD, which costs no pull quota; None if untold."""
        try:
            with self._ask("HEAD", "manifests/" + tag, cancel, headers=_ACCEPT) as response:
                return Digest.parse(response.header("Docker-Content-Digest"))
        except (RegistryError, InvalidDocument):
            return None  # the GET that follows knows better why

    def blob(self, digest: Digest, offset: int, cancel: Cancel) -> Response:
        """A blob from ``offset`` (bytes) on: 206 from there, or 200 from the start.

        Raises RegistryError; NetworkError for a range that was not asked for.
        """
        # No If-Range: whether the bytes still fit is for the digest to say.
        return _ranged(self._ask("GET", "blobs/" + digest, cancel, headers=_range(offset)), offset)

    def stat(self, digest: Digest, cancel: Cancel) -> Optional[int]:
        """Size of a blob in bytes, or None if it is not there; raises RegistryError."""
        try:
            with self._ask("HEAD", "blobs/" + digest, cancel) as response:
                size = response.header("Content-Length")
        except RegistryError as exc:
            if exc.status == 404:
                return None
            raise
        if not size:
            raise RegistryError(200, text="missing content-length header for blob")
        return int(size)

    def foreign_blob(self, url: str, cancel: Cancel, offset: int) -> Response:
        """A foreign layer from where its manifest says: by https, as nobody."""
        if Origin.of(url).scheme != "https":
            raise PolicyError("foreign layer at %s, without https, refused" % ascii(url)[:200])
        request = Request("GET", url, cancel, _range(offset), only_public=self._public)
        return _ranged(_succeeded(self._transport.send(request)), offset)

    def tags(self, cancel: Cancel) -> List[str]:
        """Every tag, in the registry's order; raises RegistryError, NetworkError."""
        found: List[str] = []
        for page in self._pages("tags/list", "list of tags", cancel):
            for tag in list_at(page, "tags", "list of tags"):
                if not isinstance(tag, str) or not is_tag(tag):
                    raise InvalidDocument("list of tags: invalid tag %s" % ascii(tag)[:150])
                found.append(tag)
            self.confirmed = True
            if len(found) > MAX_TAGS:
                raise PolicyError("%s: more than %d tags" % (self.endpoint, MAX_TAGS))
        return found

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """What says that it is about a manifest; None where the registry has no such list."""
        found: List[Descriptor] = []
        try:
            for page in self._pages("referrers/" + digest, "list of referrers", cancel):
                found += [Descriptor.from_json(item, "list of referrers")
                          for item in list_at(page, "manifests", "list of referrers")]
                if len(found) > MAX_REFERRERS:
                    raise PolicyError("%s: more than %d referrers" % (self.endpoint, MAX_REFERRERS))
        except (InvalidDocument, RegistryError) as exc:
            if isinstance(exc, RegistryError) and exc.status not in (400, 404, 405):
                raise
            return None
        return found

    def _pages(self, path: str, what: str, cancel: Cancel) -> Iterator[Dict[str, Any]]:
        """The pages of a list; the links between them must stay with the registry."""
        url = self._base + path + self._query
        seen: Set[str] = set()
        while url:
            if url in seen or len(seen) > _MAX_PAGES:
                raise NetworkError("%s: %s goes in circles" % (self.endpoint, what))
            seen.add(url)
            with self.send(Request("GET", url, cancel)) as response:
                yield parse_json(response.read(_MAX_PAGE), what)
            link = _LINK.search(response.header("Link"))
            url = joined(url, link.group(1)) if link else ""
            if url and Origin.of(url) != self._origin:
                raise PolicyError("%s: next page of %s is elsewhere, refused" % (self.endpoint, what))

    # Writing.

    def start_upload(self, cancel: Cancel, mount: str = "", source: str = "") -> Optional["Upload"]:
        """Open an upload; None if that made ``mount``, a digest in ``source``, ours instead."""
        query, scope = "", ""
        if mount:
            query = "?" + urllib.parse.urlencode([("from", source), ("mount", mount)])
            scope = "repository:%s:pull" % source
        response = self._ask("POST", "blobs/uploads/" + query, cancel, scope=scope)
        response.discard()
        return None if mount and response.status == 201 else Upload(self, response)

    def put_manifest(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        """Give a manifest a tag, or store it by digest; whether its subject was noted.

        Raises RegistryError.
        """
        response = self._ask("PUT", "manifests/" + reference, cancel,
                             headers={"Content-Type": media_type}, body=Body.of(raw))
        response.discard()
        return bool(response.header("OCI-Subject"))

    def send(self, request: Request) -> Response:
        """Send a request and return the answer, or raise the error that it is.

        Only the registry itself gets our credentials.
        """
        if Origin.of(request.url) == self._origin:
            response = self._authorizer.send(request)
        else:
            response = self._transport.send(request._replace(only_public=self._public))
        self.answered = True
        if response.origin == self._origin:
            self._public = response.public
        return _succeeded(response)

    def _ask(self, method: str, path: str, cancel: Cancel, **fields: Any) -> Response:
        return self.send(Request(method, self._base + path + self._query, cancel, **fields))


class Upload:
    """A blob on its way to a repository, of which ``offset`` bytes have arrived."""

    def __init__(self, repository: Repository, response: Response) -> None:
        self.offset = 0
        #: Bytes that a chunk must have, but for the last one.
        text = response.header("OCI-Chunk-Min-Length")
        self.least = int(text) if re.fullmatch("[0-9]{1,12}", text) else 0
        self._repository = repository
        self._url = ""
        self._move(response)

    def append(self, body: Body, cancel: Cancel, chunk: bool = False) -> None:
        """Send what comes next, all of it or a chunk.

        Raises RegistryError, NetworkError, after which sync() tells how much arrived.
        """
        headers = dict(_BYTES)
        if body.size is not None and (chunk or self.offset):
            headers["Content-Range"] = "%d-%d" % (self.offset, self.offset + body.size - 1)
        self._move(self._ask("PATCH", self._url, cancel, headers=headers, body=body, repeat=False))
        self.offset += body.size or 0

    def commit(self, digest: Digest, cancel: Cancel, body: Optional[Body] = None) -> None:
        """Give the blob its name, after its only or its last bytes; raises RegistryError."""
        url = self._url + ("&" if "?" in self._url else "?") + "digest=" + digest
        self._ask("PUT", url, cancel, headers=_BYTES, body=body, repeat=False)

    def sync(self, cancel: Cancel) -> None:
        """Learn how much has arrived; raises RegistryError if the upload is gone."""
        response = self._ask("GET", self._url, cancel)
        match = re.fullmatch("(?:bytes=)?0-([0-9]{1,18})", response.header("Range"))
        if match is None:
            raise NetworkError("%s: bad range format" % (self._repository.endpoint,))
        # A zero is what some say of nothing, and all of one byte.
        self.offset = int(match.group(1)) + 1 if match.group(1) != "0" else 0
        self._move(response)

    def abandon(self, cancel: Cancel) -> None:
        """Tell the registry that nothing more comes; it would notice by itself."""
        with contextlib.suppress(NetworkError, RegistryError, PolicyError):
            self._ask("DELETE", self._url, cancel, repeat=False)

    def _ask(self, method: str, url: str, cancel: Cancel, **fields: Any) -> Response:
        response = self._repository.send(Request(method, url, cancel, **fields))
        response.discard()
        return response

    def _move(self, response: Response) -> None:
        location = response.header("Location")
        if location:
            self._url = joined(response.url, location)
            if (response.origin.scheme, Origin.of(self._url).scheme) == ("https", "http"):
                raise PolicyError("%s sends an upload from https to http, refused" % (response.origin,))
        elif not self._url:
            raise NetworkError("%s: upload without a Location" % (response.origin,))


def _succeeded(response: Response) -> Response:
    """The answer, unless it is an error, which is raised."""
    if 200 <= response.status < 300:
        return response
    raise answer_error(response)


def _range(offset: int) -> Dict[str, str]:
    return {"Range": "bytes=%d-" % offset} if offset else {}


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
