# SPDX-License-Identifier: Apache-2.0
"""tags(), digest() and inspect(): questions to a registry about an image that is not pulled.

Mirrors crane's ls and digest, and skopeo's inspect; moby has only the latter (distribution/metadata).
"""
from typing import Any, Callable, Dict, List, Optional, TypeVar, Union

from ..cancel import Cancel
from ..digest import Digest
from ..errors import NoSupport, NotFound, PolicyError
from ..image.config import ImageConfig
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Index, Manifest, is_runnable, is_schema1
from ..image.platform import Platform
from ..image.walk import choose, walk
from ..progress import Output, discard, serialized
from ..reference import Reference
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..registry.v2 import Received, Repository
from ..store.store import MAX_CONFIG, host_platform, platform_of
from .read import read_blob

T = TypeVar("T")
_MAX_DATED = 512 << 10  # bytes of a config that is read for its date alone, among many


def tags(name: Union[str, Reference], *, progress: Output = discard, service: Optional[RegistryService] = None,
         credentials: Optional[Keyring] = None, cancel: Optional[Cancel] = None) -> List[str]:
    """The tags of a repository, in its registry's order; a tag or digest of ``name`` is passed over.

    ``progress`` is told of endpoints that fail before another answers.  Raises as pull().

    Example::

        for tag in minipull.tags("registry.lan/app"):
            print(tag)
    """
    with Client(service, credentials) as client:
        return tags_with(client, Reference.of(name), serialized(progress), cancel or Cancel())


def tags_with(client: Client, name: Reference, output: Output, cancel: Cancel) -> List[str]:
    """List tags as tags() does, through a client that several questions share."""
    def listed(endpoint: Endpoint) -> List[str]:
        if endpoint.version == 1:
            return client.session(endpoint, name).all_tags(cancel)
        return client.repository(endpoint, name).tags(cancel)

    return over_endpoints(client, name, "list tags of %s" % name.name, listed, cancel, output, legacy=True)


def digest(name: Union[str, Reference], *, platform: Union[str, Platform, None] = None,
           progress: Output = discard, service: Optional[RegistryService] = None,
           credentials: Optional[Keyring] = None, cancel: Optional[Cancel] = None) -> Digest:
    """The digest that a tag resolves to at its registry, or for a ``platform`` that of its image of an index.

    Without a platform it takes a HEAD request, which costs no pull of a quota.  Raises as pull().

    Example::

        pin = "registry.lan/app@" + minipull.digest("registry.lan/app:1.0")
    """
    with Client(service, credentials) as client:
        return digest_with(
            client, Reference.of(name), platform_of(platform), serialized(progress), cancel or Cancel())


def digest_with(client: Client, name: Reference, platform: Optional[Platform], output: Output,
                cancel: Cancel) -> Digest:
    """Resolve as digest() does, through a client that several questions share."""
    asked = name.docker_ref()
    target = str(asked.digest or asked.tag)

    def resolved(repository: Repository) -> Digest:
        """The digest by HEAD, or by GET to verify one that was given and to look into an index."""
        if platform:
            received = repository.manifest(target, cancel)
            return document_for(repository, received, platform, cancel).digest
        answer = None if asked.digest else repository.resolve(target, cancel)
        if answer is None:
            received = repository.manifest(target, cancel)
            answer = received.digest if is_schema1(received.raw, received.content_type) else received.document().digest
        return answer

    return ask(client, asked, "digest of %s" % (asked,), resolved, output, cancel)


def inspect(name: Union[str, Reference], *, platform: Union[str, Platform, None] = None,
            progress: Output = discard, service: Optional[RegistryService] = None,
            credentials: Optional[Keyring] = None, cancel: Optional[Cancel] = None) -> Dict[str, Any]:
    """The members of an image at a registry, without a pull: those that ``inspect`` prints as JSON.

    ``name``, ``digest`` and ``media_type``; of an image also ``platform``, ``created``, ``labels``,
    ``layers``, ``size`` (bytes to download) and more; of an index ``platforms``, a list of such
    images, unless one ``platform`` is asked for.  Raises as pull().

    Example::

        members = minipull.inspect("registry.lan/app:1.0", platform="linux/arm64")
        print(members["size"], members["labels"])
    """
    with Client(service, credentials) as client:
        asked, wanted, stop = Reference.of(name).docker_ref(), platform_of(platform), cancel or Cancel()

        def look(repository: Repository) -> Dict[str, Any]:
            received = repository.manifest(str(asked.digest or asked.tag), stop)
            return members_of(repository, received, wanted, stop)

        answer = ask(client, asked, "inspect %s" % (asked,), look, serialized(progress), stop)
        return {"name": str(asked), **answer}


def members_of(repository: Repository, top: Received, platform: Optional[Platform],
               cancel: Cancel) -> Dict[str, Any]:
    """The members of an image, given by its manifest or index."""
    document = document_for(repository, top, platform, cancel)
    members: Dict[str, Any] = {"digest": top.digest, "media_type": document.media_type}
    if isinstance(document, Index):
        get = _getter(repository, cancel)
        below = [item for _, item in walk(document, get, lambda index: index.images) if item][:-1]
        if sum(item.config.size for item in below if isinstance(item, Manifest) and is_runnable(item)) > MAX_CONFIG:
            raise PolicyError("its configs have more than %d bytes together; ask for one --platform" % MAX_CONFIG)
        return dict(members, platforms=[_described(repository, item, cancel) for item in below])
    return dict(members, **_described(repository, document, cancel))


def document_for(repository: Repository, top: Received, platform: Optional[Platform],
                 cancel: Cancel) -> Document:
    """The manifest or index itself, or of an index the best manifest for a platform; raises NotFound."""
    document = top.document()
    if platform is None or not isinstance(document, Index):
        return document
    chosen = choose(platform, document, _getter(repository, cancel))
    if not chosen:
        offered = ", ".join(sorted({str(entry.platform) for entry in document.images}))
        raise NotFound("no image for %s; there is %s" % (str(platform), offered or "none with a platform"))
    return chosen[0][1]


def created_at(repository: Repository, top: Received, cancel: Cancel) -> str:
    """The date of an image, or of that in an index for this host, or else of its first; it may be empty.

    Raises PolicyError for a large config.
    """
    document, get = top.document(), _getter(repository, cancel)
    if isinstance(document, Index) and document.images:
        chosen = choose(host_platform(), document, get)
        document = chosen[0][1] if chosen else get(document.images[0])
    if not isinstance(document, Manifest) or not is_runnable(document):
        return ""
    return ImageConfig.parse(read_blob(repository, document.config, _MAX_DATED, cancel)).created


def _getter(repository: Repository, cancel: Cancel) -> Callable[[Descriptor], Document]:
    return lambda entry: (Received.inline(entry) or repository.manifest(entry.digest, cancel)).document()


def _described(repository: Repository, document: Document, cancel: Cancel) -> Dict[str, Any]:
    """The members of one image; ``size`` is the bytes to download."""
    members: Dict[str, Any] = {"manifest": document.digest, "media_type": document.media_type}
    if isinstance(document, Manifest):
        members["size"] = sum(blob.size for blob in document.blobs)
        if is_runnable(document):
            config = ImageConfig.parse(read_blob(repository, document.config, MAX_CONFIG, cancel))
            settings = config.config
            members.update({
                "image_id": config.id, "platform": str(config.platform), "created": config.created,
                "labels": settings.get("Labels") or {}, "environment": settings.get("Env") or [],
                "entrypoint": settings.get("Entrypoint") or [], "command": settings.get("Cmd") or [],
                "user": settings.get("User") or "", "working_directory": settings.get("WorkingDir") or ""})
        members["layers"] = [layer.to_json() for layer in document.layers]
    return members


def ask(client: Client, name: Reference, subject: str, question: Callable[[Repository], T], output: Output,
        cancel: Cancel, push: bool = False) -> T:
    """Return the answer of the first endpoint that has one; ``subject`` begins the text of errors."""
    def asked(endpoint: Endpoint) -> T:
        if endpoint.version == 1:
            raise NoSupport("the v1 protocol has no digests and no manifests; tags, pull, push and copy speak it")
        return question(client.repository(endpoint, name, push))

    return over_endpoints(client, name, subject, asked, cancel, output, push=push, legacy=True)
