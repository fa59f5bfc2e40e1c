# SPDX-License-Identifier: Apache-2.0
"""A registry over a store or an archive, by distribution-spec 1.1.

One store is one trust domain: a blob is visible in every repository, and so is
a manifest by its digest.  Manifests are kept byte for byte; they must be of the
kinds that gc understands, and their blobs and manifests must be in the store.
Requests that write are refused before routing unless the registry is writable.
No part of a URL reaches the file system but checked digests and session ids.

Mirrors docker/distribution's registry/handlers.
"""
import contextlib
import errno
import functools
import json
import re
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..cancel import Cancel
from ..digest import Digest
from ..errors import (
    ContentMismatch, Error, InvalidDocument, InvalidReference, NotFound, PolicyError, RateLimited,
    StorageError, Unsupported)
from ..files import Locked, make_directory
from ..image import manifest
from ..image.descriptor import OCI_INDEX, Descriptor
from ..reference import is_tag
from ..store.gc import delete
from ..store.references import Association
from ..store.store import ImageSource, Store
from .blobs import Blobs, asked_digest, created, need_room
from .catalog import Catalog, is_name, next_link, page_of
from .http import Server
from .message import Application, Refusal, Request, Response, json_response
from .page import Pages

MAX_TAGS = 20  # given to one manifest by one request
MAX_REFERRERS = 1 << 20  # bytes of a page
SMALL = 256 << 10  # bytes of a manifest; of larger ones LARGE are received and one is parsed at a time
LARGE = 2
AT_ONCE = 64 << 10  # bytes of a manifest or blob that is sent from memory

_STATUS = {PolicyError: (413, "SIZE_INVALID"), ContentMismatch: (400, "DIGEST_INVALID"),
           InvalidReference: (400, "NAME_INVALID"), NotFound: (404, "BLOB_UPLOAD_UNKNOWN")}
_NO_MANIFEST = (InvalidDocument, PolicyError, Unsupported)


class Registry(Application):
    """The application of a Server; images are named under ``domain``, if that is well-formed."""

    def __init__(self, source: ImageSource, writable: bool = False, domain: str = "localhost") -> None:
        self._source = source
        self._content = source.content
        self._writable = writable
        # Below an archive nothing is, and nothing can be written.
        self._store = source if isinstance(source, Store) else Store(source.root)
        self._catalog = Catalog(source.references, domain)
        self._incoming = threading.BoundedSemaphore(LARGE)  # held as long as a client takes to send
        self._parsing = threading.BoundedSemaphore()
        self._facts = functools.lru_cache(10000)(self._read_facts)
        self._no_wait = Cancel()  # cancelled: a lock that another holds is not waited for
        self._no_wait.cancel()
        self._blobs = blobs = Blobs(self._content, self._store)
        self._routes: Sequence[Tuple[str, Dict[str, Callable[..., Response]]]] = [
            (r"/", {"GET": Pages(source, self._catalog).get}),
            (r"/v2/?", {"GET": lambda request: json_response(200, {})}),
            (r"/v2/_catalog", {"GET": self._repositories}),
            (r"/v2/(.+)/tags/list", {"GET": self._tags}),
            (r"/v2/(.+)/manifests/([^/]+)", {
                "GET": self._get, "PUT": self._put, "DELETE": self._delete}),
            (r"/v2/(.+)/referrers/([^/]+)", {"GET": self._referrers}),
            (r"/v2/(.+)/blobs/uploads/?", {"POST": blobs.start}),
            (r"/v2/(.+)/blobs/uploads/([^/]+)", {
                "GET": blobs.status, "PATCH": blobs.append, "PUT": blobs.commit,
                "DELETE": blobs.abandon}),
            (r"/v2/(.+)/blobs/([^/]+)", {"GET": blobs.get, "DELETE": blobs.delete})]

    def __call__(self, request: Request) -> Response:
        """Answer a request; raises Refusal."""
        writing = request.method not in ("GET", "HEAD")
        if writing and not self._writable:
            raise Refusal(405, "UNSUPPORTED", "the registry is read-only", [("Allow", "GET, HEAD")])
        handler, groups = self._route(request)
        with _refusing(), contextlib.ExitStack() as stack:
            if not writing:  # else the handler locks the store, not as long as a client takes to send
                stack.enter_context(self._source.reading())
            return handler(request, *groups)

    def at_once(self, request: Request) -> Optional[Response]:
        """Answer a request for a small manifest or blob, unless the store is locked or in trouble."""
        if request.method not in ("GET", "HEAD") or not request.body.finished:
            return None
        try:
            handler, groups = self._route(request)
            if handler not in (self._get, self._blobs.get):
                return None
            name, text = groups
            with self._source.reading(self._no_wait):
                if handler == self._get and ":" not in text:
                    text = self._named(request, name, text).descriptor.digest
                if (self._content.size(asked_digest(text)) or 0) > AT_ONCE:
                    return None
                return handler(request, name, text).in_memory()
        except Refusal as exc:
            return exc.response
        except Error:  # for the log of the answer that waits
            return None

    def _route(self, request: Request) -> Tuple[Callable[..., Response], Tuple[str, ...]]:
        """Return the handler of a request, and the parts of the path that it takes; raises Refusal."""
        method = request.method
        for pattern, handlers in self._routes:
            match = re.fullmatch(pattern, request.path)
            if match is not None:
                break
        else:
            raise Refusal(404, "NAME_INVALID", "no such page")
        if match.groups() and not is_name(match.group(1)):
            raise Refusal(404, "NAME_INVALID", "invalid repository name")
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join([*handlers, *(["HEAD"] if "GET" in handlers else [])])
            raise Refusal(405, "UNSUPPORTED", "not possible here", [("Allow", allowed)])
        return handler, match.groups()

    # Manifests.

    def _get(self, request: Request, name: str, text: str) -> Response:
        digest, media_type, raw = self._manifest(request, name, text)
        etag = '"%s"' % digest
        headers = [("Content-Type", media_type), ("Docker-Content-Digest", digest), ("ETag", etag)]
        if etag in request.headers.get("if-none-match", ""):
            return Response(304, headers)
        if raw:
            return Response(200, headers, raw)
        size = self._content.size(digest) or 0
        return Response(200, headers, file=self._content.open(digest), length=size)

    def _put(self, request: Request, name: str, text: str) -> Response:
        target = self._catalog.target(name, request.parameter("ns"))
        tags = request.query.get("tag", [])
        expected = asked_digest(text) if ":" in text else None
        if len(tags) > MAX_TAGS or not all(map(is_tag, tags if expected else [*tags, text])):
            raise Refusal(400, "MANIFEST_INVALID", "malformed tag, or more than %d" % MAX_TAGS)
        with self._memory(self._incoming, request.body.length):
            raw = request.body.read(manifest.MAX_MANIFEST)
            digest = Digest.of(raw, expected.algorithm if expected else "sha256")
            if expected not in (None, digest):
                raise Refusal(400, "DIGEST_INVALID", "the manifest is %s" % digest)
            with self._store.writing():
                need_room(self._store.root)
                media_type, subject = self._acceptable(raw, request.headers.get("content-type", ""))
                self._store.content.put(digest, raw)
                names = [target.with_digest(digest) if expected else target.with_tag(text)]
                for reference in names + [target.with_tag(tag) for tag in tags]:
                    self._store.references.set(reference, Descriptor(media_type, digest, len(raw)), digest)
        headers = created("/v2/%s/manifests/%s" % (name, digest), digest)
        headers += [("OCI-Tag", tag) for tag in tags]
        return Response(201, headers + ([("OCI-Subject", subject)] if subject else []))

    def _delete(self, request: Request, name: str, text: str) -> Response:
        """Remove a tag or every name of a digest, in no domain but its own, and the manifest if nothing needs it."""
        target = self._catalog.target(name, request.parameter("ns"))
        named = [image.name for image in self._source.references.all()
                 if text in (image.name.tag, image.descriptor.digest, image.source)]
        names = [reference for reference in named if reference[:2] == target[:2]]
        if not names and (named or ":" not in text):
            raise Refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")
        digest = self._manifest(request, name, text)[0] if ":" in text else None
        for reference in names:
            with contextlib.suppress(NotFound):  # another request was quicker
                self._store.remove(reference)
        try:
            if digest is not None:
                delete(self._store, digest)
        except PolicyError as exc:
            if not names:
                raise Refusal(405, "UNSUPPORTED", str(exc)) from exc
        return Response(202)

    def _manifest(self, request: Request, name: str, text: str) -> Tuple[Digest, str, bytes]:
        """Return digest, media type and, if small, bytes of a manifest; all are verified.  Raises Refusal."""
        if ":" in text:
            digest = asked_digest(text)
        else:
            digest = self._named(request, name, text).descriptor.digest
        if self._content.size(digest) is not None:
            with contextlib.suppress(*_NO_MANIFEST):
                media_type, _ = self._facts(digest)
                with self._reading(digest) as raw:
                    return digest, media_type, raw if len(raw) <= AT_ONCE else b""
        raise Refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")

    def _named(self, request: Request, name: str, tag: str) -> Association:
        for repository in self._repositories_of(request, name):
            if tag in repository:
                return repository[tag]
        raise Refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")

    def _repositories_of(self, request: Request, name: str) -> Iterator[Dict[str, Association]]:
        return self._catalog.find(name, request.parameter("ns"))

    @contextlib.contextmanager
    def _reading(self, digest: Digest) -> Iterator[bytes]:
        with self._memory(self._parsing, self._content.size(digest)):
            try:
                raw = self._content.read(digest, manifest.MAX_MANIFEST)
            except ContentMismatch as exc:
                raise StorageError(str(exc)) from exc
            yield raw

    @contextlib.contextmanager
    def _memory(self, slots: threading.Semaphore, size: Optional[int]) -> Iterator[None]:
        """Limit how many large documents are in memory; ``size`` is in bytes, None if unknown."""
        with contextlib.ExitStack() as stack:
            if size is None or size > SMALL:
                if not slots.acquire(timeout=self._store.timeout):
                    raise RateLimited("too many large manifests at a time")
                stack.callback(slots.release)
            yield

    def _acceptable(self, raw: bytes, content_type: str) -> Tuple[str, Optional[Digest]]:
        """Return media type and subject of a manifest that the store can keep; raises Refusal."""
        try:
            with self._memory(self._parsing, None):  # the manifests below it may be large
                document = manifest.parse(raw, content_type)
                manifest.listed(document)  # raises where the list of its subject's referrers could not hold it
                for item, _ in self._store.walk(document.descriptor, document):
                    known = item.digest == document.digest or self._content.has(item.digest, item.size)
                    if not known and not item.is_foreign:
                        raise Refusal(404, "MANIFEST_BLOB_UNKNOWN", "blob %s is unknown" % item.digest)
        except _NO_MANIFEST as exc:
            raise Refusal(400, "MANIFEST_INVALID", str(exc)) from exc
        except StorageError as exc:
            if isinstance(exc.__cause__, InvalidDocument):  # not of the type in its descriptor
                raise Refusal(400, "MANIFEST_INVALID", "a manifest below it is malformed") from exc
            raise
        return document.media_type, document.subject.digest if document.subject else None

    # Lists.

    def _tags(self, request: Request, name: str) -> Response:
        for repository in self._repositories_of(request, name):
            tags = [image.name.tag for image in repository.values() if image.name.tag]
            names, headers = page_of(request, tags)
            return json_response(200, {"name": name, "tags": names}, headers)
        raise Refusal(404, "NAME_UNKNOWN", "repository name not known to registry")

    def _repositories(self, request: Request) -> Response:
        names, headers = page_of(request, self._catalog.names(request.parameter("ns")))
        return json_response(200, {"repositories": names}, headers)

    def _referrers(self, request: Request, name: str, text: str) -> Response:
        """List the manifests whose subject is ``text``, in pages of MAX_REFERRERS bytes."""
        subject, last = asked_digest(text), request.parameter("last")
        kind = request.parameter("artifactType")
        headers = [("OCI-Filters-Applied", "artifactType")] if kind else []
        digests = {image.descriptor.digest for repository in self._repositories_of(request, name)
                   for image in repository.values() if self._content.size(image.descriptor.digest)}
        entries: List[Dict[str, Any]] = []
        room = MAX_REFERRERS
        for digest in sorted(digests):
            if digest > last and self._subject(digest) == subject:
                with self._reading(digest) as raw:
                    entry = _entry(manifest.parse(raw), digest)
                if kind in ("", entry.get("artifactType")):
                    room -= len(json.dumps(entry))
                    if room < 0 and entries:
                        headers.append(next_link(request, last=str(entries[-1]["digest"])))
                        break
                    entries.append(entry)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return json_response(200, index, headers, OCI_INDEX)

    def _subject(self, digest: Digest) -> Optional[Digest]:
        with contextlib.suppress(*_NO_MANIFEST):
            return self._facts(digest)[1]
        return None

    def _read_facts(self, digest: Digest) -> Tuple[str, Optional[Digest]]:
        """Return media type and subject of a manifest; raises an error of _NO_MANIFEST for any other blob."""
        with self._reading(digest) as raw:
            document, subject = manifest.parse(raw), None
            if document.subject:
                with contextlib.suppress(InvalidDocument):  # the list of its subject's referrers can't hold it
                    manifest.listed(document)
                    subject = document.subject.digest
            return document.media_type, subject


def serve(store: ImageSource, host: str = "127.0.0.1", port: int = 5000, writable: bool = False,
          domain: str = "localhost", cancel: Optional[Cancel] = None,
          ready: Callable[[str], None] = lambda url: None,
          log: Callable[[int, str], None] = lambda status, text: None) -> None:
    """Serve a store or an archive as a registry until cancelled.

    ``ready`` is called with the URL, ``log`` with the status and a line for each
    answer.  Raises NetworkError if it can't listen, StorageError if a store to
    write to can't be made, InvalidReference for a malformed ``domain``.

    Example::

        stop = minipull.Cancel()
        server = threading.Thread(target=minipull.serve, args=(store,), kwargs={"port": 0, "cancel": stop})
        server.start()
        stop.cancel()
    """
    if writable:
        make_directory(store.writable.root)
    server = Server(host, port, Registry(store, writable, domain), store.timeout, log)
    ready("http://" + server.address)
    server.run(cancel or Cancel())


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn errors into answers; paths on this machine are for the log only."""
    try:
        yield
    except Refusal:
        raise
    except (Locked, RateLimited) as exc:
        status = 503 if isinstance(exc, Locked) else 429
        raise Refusal(status, "TOOMANYREQUESTS", "busy; try again later", [("Retry-After", "10")]) from exc
    except StorageError as exc:
        cause = exc.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        status = 507 if full else 500
        raise Refusal(status, "UNKNOWN", "storage error; the server's log says more") from exc
    except Error as exc:
        status, code = _STATUS.get(type(exc), (500, "UNKNOWN"))
        raise Refusal(status, code, str(exc)) from exc


def _entry(document: manifest.Document, digest: Digest) -> Dict[str, Any]:
    """Return a manifest's entry in the list of its subject's referrers."""
    entry = manifest.listed(document)._replace(digest=digest).to_json()
    return entry if len(json.dumps(entry)) <= SMALL else document.descriptor._replace(digest=digest).to_json()
