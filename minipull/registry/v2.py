# SPDX-License-Identifier: Apache-2.0
"""The v2 protocol: one repository at one endpoint.

An answer that is no success is raised as an error, whatever its body.  Credentials go
to the endpoint alone.

Mirrors docker/distribution's registry/client/repository.go.
Spec: distribution-spec.
"""
import re
import urllib.parse
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument, NetworkError, NoSupport, PolicyError, shown
from ..image.descriptor import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA1_SIGNED, Descriptor
from ..image.manifest import MAX_MANIFEST, Document, is_schema1, parse
from ..image.strictjson import list_at, parse_json
from ..parts import part
from ..reference import Reference, is_tag
from .auth import Authorizer, Credential, Keyring, answer_error
from .endpoints import Endpoint
from .errors import IfThere, RegistryError
from .request import Body, Request
from .response import Response
from .transport import Transport
from .upload import Upload
from .url import Origin, joined

MAX_TAGS = 100000  # and repositories
MAX_REFERRERS = 1000
_MAX_PAGE = 8 << 20  # bytes, of all pages too: 100,000 tags of 80 characters, as docker-registry 2.8 sends at once
_MAX_PAGES = 10000

#: Schema 1 comes last, for registries that have nothing else.
_ACCEPT = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1_SIGNED))}
#   link ::= "<" URI-Reference ">" *( ";" token [ "=" ( token | quoted-string ) ] )  (RFC 8288, 3)
# Blanks are matched before what needs them, in one place each: else many would take days.
_PARAM = r"""\s*;(?:\s*([^\s;,="<>]+)(?:\s*=(?:\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\s;,"']+))?)?)?"""
_LINK = r"[\s,]*<([^<>]*)>((?:%s)*)\s*(?:,|$)" % _PARAM


class Received(NamedTuple):
    """A manifest as it was received, with its Content-Type and its verified digest."""
    raw: bytes
    content_type: str
    digest: Digest

    @classmethod
    def inline(cls, entry: Descriptor) -> Optional["Received"]:
        """The manifest that came along in its descriptor, if any."""
        return cls(entry.data, entry.media_type, entry.digest) if entry.data else None

    def document(self) -> Document:
        """Parse the manifest; raises as manifest.parse()."""
        return parse(self.raw, self.content_type)._replace(digest=self.digest)


class Repository:
    """A repository at one endpoint, or without a path its catalog; network errors as Transport.send."""

    def __init__(self, endpoint: Endpoint, reference: Reference, transport: Transport,
                 credentials: Keyring, actions: str = "pull") -> None:
        self.endpoint = endpoint
        self.path = reference.path
        self.name = reference.name
        self.answered = False  # whether there has been any answer
        self.confirmed = False  # whether the endpoint has proved to speak v2
        self.offline = transport.network.offline
        self._pinged = False
        self._transport = transport
        self._base = "%s%s/" % (endpoint.api, reference.path) if reference.path else endpoint.api
        # The registry that a mirror stands in for, as containerd tells it.
        self._query = "?ns=" + reference.domain if endpoint.mirror else ""
        self._origin = Origin.of(endpoint.url)
        self._credentials = credentials
        scope = "repository:%s:%s" % (reference.path, actions) if reference.path else "registry:catalog:*"
        self._authorizer = Authorizer(transport, self._origin, self.credential, scope)

    def credential(self) -> Credential:
        path = "" if self.endpoint.mirror else self.path
        return self._credentials.get(self.endpoint.host, path)

    def ping(self, cancel: Cancel, once: bool = False) -> None:
        """Ask whether the endpoint speaks v2, unless that is known; raises NoSupport, and as Transport.send."""
        if not self._pinged:
            request = Request("GET", self.endpoint.api, cancel, once=once, follow=False)
            with self._transport.send(request) as response:
                versions = response.header("Docker-Distribution-API-Version")
                self.confirmed = "registry/2.0" in re.split("[, ]+", versions)
                self._pinged = response.status != 404 or self.confirmed
        if not self._pinged:
            raise NoSupport("%s does not speak the v2 protocol" % (self.endpoint,))

    def manifest(self, reference: str, cancel: Cancel, limit: int = MAX_MANIFEST) -> Received:
        """Fetch a manifest or index by tag or digest; raises RegistryError, ContentMismatch, PolicyError.

        The last is for more than ``limit`` bytes, too.
        """
        with self._ask("GET", "manifests/" + reference, cancel, headers=_ACCEPT) as response:
            raw = response.read(min(limit, MAX_MANIFEST))
        claimed = reference if ":" in reference else response.header("Docker-Content-Digest")
        content_type = response.header("Content-Type")
        # The digest of a schema 1 manifest is that of the part which is signed.
        signed: bytes = part("image.schema1").payload(raw) if is_schema1(raw, content_type) else raw
        digest = Digest.of(signed)
        if claimed:
            self.confirmed = True
            try:
                digest = Digest.parse(claimed)
            except InvalidDocument:
                self._transport.warn("%s: malformed Docker-Content-Digest %s of %s, computed instead: %s" % (
                    self.endpoint, shown(claimed, 100), reference, digest))
            if Digest.of(signed, digest.algorithm) != digest:
                raise ContentMismatch("manifest verification failed for digest %s" % digest)
        return Received(raw, content_type, digest)

    def resolve(self, tag: str, cancel: Cancel) -> Optional[Digest]:
        """The digest of a tag, by HEAD, which costs no pull quota; None if the answer has none."""
        try:
            with self._ask("HEAD", "manifests/" + tag, cancel, headers=_ACCEPT) as response:
                return Digest.parse(response.header("Docker-Content-Digest"))
        except (RegistryError, InvalidDocument):
            return None  # the GET that follows has an error with a body

    def blob(self, digest: Digest, offset: int, cancel: Cancel) -> Response:
        """Fetch a blob from ``offset`` (bytes) on, or with 200 all of it; raises RegistryError."""
        # If-Range is not needed: a blob that has changed fails its digest.
        request = Request("GET", self._base + "blobs/" + digest + self._query, cancel)
        return _from_offset(request, offset, self.send)

    def stat(self, digest: Digest, cancel: Cancel, once: bool = False) -> Optional[int]:
        """The size of a blob in bytes, or None if it does not exist; raises RegistryError."""
        with IfThere(), self._ask("HEAD", "blobs/" + digest, cancel, once=once) as response:
            size = response.header("Content-Length")
            if not size:
                raise RegistryError(200, text="missing content-length header for blob")
            return int(size)
        return None

    def foreign_blob(self, url: str, offset: int, cancel: Cancel) -> Response:
        """Fetch a foreign layer from a URL in a manifest, by https and without credentials."""
        if Origin.of(url).scheme != "https":
            raise PolicyError("foreign layer at %s, without https, refused" % ascii(url)[:200])
        request = Request("GET", url, cancel, only_public=self._origin in self._transport.public,
                          role="the source of a layer of %s" % self.name)
        return _from_offset(request, offset, lambda request: _succeeded(self._transport.send(request)))

    def tags(self, cancel: Cancel) -> List[str]:
        """All tags in the registry's order; raises RegistryError, NetworkError."""
        listed = self._listed("tags/list", "tags", "tags", MAX_TAGS, cancel)
        return valid_tags(listed, str(self.endpoint), self._transport.warn)

    def catalog(self, cancel: Cancel) -> List[str]:
        """The paths of all repositories of the registry; raises RegistryError, NetworkError."""
        return [path for path in self._listed("_catalog", "repositories", "repositories", MAX_TAGS, cancel)
                if isinstance(path, str)]

    def delete(self, reference: str, cancel: Cancel) -> None:
        """Delete a tag, or a manifest by its digest with all its tags; raises RegistryError."""
        scope = "repository:%s:delete" % self.path
        self._ask("DELETE", "manifests/" + reference, cancel, scope=scope, once=True).discard()

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """The manifests whose subject is a manifest; None if the registry has no referrers API."""
        items = self._listed("referrers/" + digest, "manifests", "referrers", MAX_REFERRERS, cancel)
        referrers: Dict[Digest, Descriptor] = {}
        try:
            for item in items:
                referrer = Descriptor.from_json(item, "list of referrers")
                referrers.setdefault(referrer.digest, referrer)
        except (InvalidDocument, RegistryError) as exc:
            if isinstance(exc, RegistryError) and exc.status not in (400, 404, 405):
                raise
            return None
        return list(referrers.values())

    def _listed(self, path: str, key: str, subject: str, limit: int, cancel: Cancel) -> Iterator[Any]:
        """The items of a list in pages, all on the host that was asked."""
        url, count, room = self._base + path + self._query, 0, _MAX_PAGE
        seen: Set[str] = set()
        while url:
            if url in seen or len(seen) > _MAX_PAGES:
                raise NetworkError("%s: list of %s goes in circles" % (self.endpoint, subject))
            seen.add(url)
            with self.send(Request("GET", url, cancel)) as response:
                raw = response.read(_MAX_PAGE)
            items = list_at(parse_json(raw, "list of " + subject), key, "list of " + subject)
            count, room = count + len(items), room - len(raw) - len(url)
            if count > limit or room < 0:
                raise PolicyError("%s: more than %d %s, or than %d bytes of them" % (
                    self.endpoint, limit, subject, _MAX_PAGE))
            yield from items
            self.confirmed = True
            pages = {self._page(url, link) for value in response.values("Link") for link in next_links(value)}
            if len(pages) > 1:
                raise NetworkError("%s: list of %s has several next pages" % (self.endpoint, subject))
            url = "".join(pages)

    def _page(self, url: str, link: str) -> str:
        """The URL of the next page, to which the page at ``url`` links.

        The host, and the path and ns of a mirror, are kept: a registry behind a proxy does not know them.
        """
        base, page = urllib.parse.urlsplit(url), urllib.parse.urlsplit(joined(url, link))
        root = urllib.parse.urlsplit(self.endpoint.url).path + "/"
        path = page.path if page.path.startswith(root) else base.path
        query = page.query if re.search("(^|&)ns=", page.query) else page.query + "&" + self._query[1:]
        return urllib.parse.urlunsplit(base._replace(path=path, query=query.strip("&")))

    def start_upload(self, cancel: Cancel, mount: str = "", source: str = "") -> Optional[Upload]:
        """Open an upload; None if the registry mounted the blob ``mount`` from the repository ``source``."""
        query, scope = "", ""
        if mount:
            query = "?" + urllib.parse.urlencode([("from", source), ("mount", mount)])
            scope = "repository:%s:pull" % source
        response = self._ask("POST", "blobs/uploads/" + query, cancel, scope=scope, once=bool(mount))
        response.discard()
        if mount and response.status == 201:
            return None
        upload = Upload(self.send, self.endpoint)
        upload.move(response)
        return upload

    def resume_upload(self, url: str, cancel: Cancel) -> Upload:
        """Go on with an upload of another process, whose ``url`` is checked as a Location of the endpoint.

        Raises RegistryError if it is gone, and PolicyError, NetworkError.
        """
        upload = Upload(self.send, self.endpoint)
        upload.go(self.endpoint.url, url)
        upload.sync(cancel)
        return upload

    def put_manifest(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        """Store a manifest by tag or digest; returns whether it is listed as a referrer of its subject."""
        response = self._ask("PUT", "manifests/" + reference, cancel,
                             headers={"Content-Type": media_type}, body=Body.of(raw))
        response.discard()
        return bool(response.header("OCI-Subject"))

    def send(self, request: Request) -> Response:
        """Return the successful answer, or raise RegistryError; credentials go to the endpoint alone."""
        if Origin.of(request.url) == self._origin:
            response = self._authorizer.send(request)
        else:
            public = self._origin in self._transport.public
            role = "to which %s sends uploads" % (self.endpoint,)
            response = self._transport.send(request._replace(only_public=public, role=role))
        self.answered = True
        return _succeeded(response)

    def _ask(self, method: str, path: str, cancel: Cancel, **fields: Any) -> Response:
        return self.send(Request(method, self._base + path + self._query, cancel, **fields))


def valid_tags(listed: Iterable[object], source: str, warn: Callable[[str], None]) -> List[str]:
    """The tags in the list of a ``source``, each once; ``warn`` is told of the first entry that is none."""
    tags: Dict[str, None] = {}
    invalid: List[object] = []
    for tag in listed:
        if isinstance(tag, str) and is_tag(tag):
            tags[tag] = None
        elif not invalid:
            invalid.append(tag)
    if invalid:
        warn("%s: list of tags: invalid tag %s, left out" % (source, ascii(invalid[0])[:150]))
    return list(tags)


def next_links(header: str) -> List[str]:
    """The targets of a Link header's links to a next page; raises NetworkError for a malformed header."""
    header, targets, end = header.strip(", \t"), [], 0
    while end < len(header):
        link = re.compile(_LINK).match(header, end)
        relations = [value.strip("\"'") for name, value in re.findall(_PARAM, link.group(2))
                     if name.lower() == "rel"] if link else []
        if link is None or not any(relations):
            raise NetworkError("malformed Link to the next page: %s" % shown(header, 200))
        if "next" in relations[0].lower().split():  # a second rel does not count
            targets.append(link.group(1))
        end = link.end()
    return targets


def _succeeded(response: Response) -> Response:
    """The answer itself if it is a success; raises RegistryError if not."""
    if 200 <= response.status < 300:
        return response
    raise answer_error(response)


def _from_offset(request: Request, offset: int, send: Callable[[Request], Response]) -> Response:
    """Ask for the bytes from ``offset`` on; raises ContentMismatch for a range from elsewhere."""
    response = send(request.with_headers({"Range": "bytes=%d-" % offset}) if offset else request)
    if response.status == 206:
        match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", response.header("Content-Range"))
        start, end, total = match.groups() if match else ("-1", "-1", "*")
        fits = response.remaining in (None, int(end) + 1 - offset)
        if int(start) != offset or total not in ("*", str(int(end) + 1)) or not fits:
            response.close()
            raise ContentMismatch("%s answered with another range" % (response.origin,))
    return response
