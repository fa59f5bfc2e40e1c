# SPDX-License-Identifier: Apache-2.0
"""minipull: pull and push container images with nothing but Python's standard library.

The modules in reading order; each imports only from those above it:

    errors        the exception tree; what is retried, who is asked next
    digest        digests, DiffIDs, ChainIDs, and a running check
    files         durable writes, advisory locks
    streams       cancellation, decompression
    progress      progress events
    xfer          transfers that users share, within a number of slots
    descriptor    descriptors, platforms, strict JSON
    reference     names as typed and as meant
    manifest      manifests and indexes, parsed strictly, raw bytes kept
    image         image configs
    es256         signatures, for schema 1 alone
    schema1       manifests that sign themselves
    tar           tar streams, read strictly, written the same each time
    content       blobs under their digests, and the only way in
    layer         what a blob's tar stream is called and lies on
    references    index.json: names to manifests
    metadata      which blob is which layer, and where it was seen
    store         all of these under one root
    trust         certificates: those of others, and our own
    origin        whom a URL means
    connection    one HTTP connection; where bytes come in
    proxies       through which proxy an origin is asked
    transport     many of them; redirects, repeats
    auth          credentials, challenges and tokens
    endpoints     which hosts to ask, mirrors first
    repository    the v2 protocol
    session       the v1 protocol
    download      layers side by side, registered in order
    pull_v2       one reference from one endpoint
    pull_v1       one tag from one by the v1 protocol
    upload        blobs side by side, continued where they broke off
    push_v2       one image to one endpoint
    push_v1       images to one by the v1 protocol
    distribution  pull(), push(): the loop over endpoints
    archive       save(): images in one tar
    loading       load(): those of a tar
    ends          a registry, a layout or an archive, to copy from and to
    copy          copy(): an image from one end to another
    rootfs        a root file system made of layers
    unpack        unpack(): that of a stored image
    flatten       that as one tar, or one file of it
    credentials   what docker and podman have stored of who we are
    logins        a user and password accepted by a registry, and stored
    collect       gc: remove what no name needs
    check         is every byte of a store what its name says?
    framing       HTTP messages as a server meets them
    httpd         a small HTTP/1.1 server
    uploads       blobs on their way in whose digest is told last
    blobs         the blobs of a registry, out and in
    catalog       which repository a name in a URL means
    server        a registry over a store
    settings      flags, environment and files become objects
    render        progress on a terminal, in a log, as JSON
    context       what commands share
    doctor        does it work here, what does this host offer?
    services      the commands that need the server
    accounts      login and logout
    remote        those that speak to registries
    trees         those that look into an image
    commands      those on the store, one function each
    cli           the command line

The names below are the public API; the rest may be imported by module.
"""
import importlib
import sys
import types
from typing import TYPE_CHECKING, List

if TYPE_CHECKING:
    from .archive import save as save
    from .copy import copy as copy
    from .credentials import Credentials as Credentials
    from .descriptor import Descriptor as Descriptor, Platform as Platform
    from .digest import Digest as Digest
    from .distribution import pull as pull, push as push
    from .endpoints import RegistryService as RegistryService
    from .errors import (
        Cancelled as Cancelled, ContentMismatch as ContentMismatch, Error as Error,
        InvalidDocument as InvalidDocument, InvalidReference as InvalidReference,
        NetworkError as NetworkError, NotFound as NotFound, PolicyError as PolicyError,
        RateLimited as RateLimited, RegistryError as RegistryError, StorageError as StorageError,
        Unauthorized as Unauthorized, Unsupported as Unsupported)
    from .image import Image as Image
    from .loading import load as load
    from .progress import Progress as Progress
    from .reference import Reference as Reference
    from .server import serve as serve
    from .store import Store as Store
    from .streams import Cancel as Cancel
    from .unpack import unpack as unpack

__version__ = "0.1.0"

_HOME = dict.fromkeys(
    "Cancelled ContentMismatch Error InvalidDocument InvalidReference NetworkError NotFound"
    " PolicyError RateLimited RegistryError StorageError Unauthorized Unsupported".split(), "errors")
_HOME.update(
    Cancel="streams", Credentials="credentials", Descriptor="descriptor", Digest="digest",
    Image="image", Platform="descriptor", Progress="progress", Reference="reference",
    RegistryService="endpoints", Store="store", copy="copy", load="loading", pull="distribution",
    push="distribution", save="archive", serve="server", unpack="unpack")
__all__ = sorted(_HOME) + ["__version__"]


class _Package(types.ModuleType):
    """Loads a public name when it is first used: start-up needs no ssl.

    A module's own ``__getattr__`` would do, were it not for Python 3.6.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError("module %r has no attribute %r" % (self.__name__, name))
        value = getattr(importlib.import_module("." + _HOME[name], __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # A public name stays what it is when the module of that name is imported.
        if name not in _HOME or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> List[str]:
        return sorted(set(vars(self)) | set(__all__))


sys.modules[__name__].__class__ = _Package
