# SPDX-License-Identifier: Apache-2.0
"""minipull: pull and push container images with nothing but Python's standard library.

The wings in reading order; each imports only from those above it, and lists
its own modules in its docstring:

    errors        the exception tree, and exit codes
    parts         parts that a build may leave out
    digest        digests, DiffIDs, ChainIDs, and a running check
    cancel        the one-way switch that Go calls a context
    progress      events, meters
    reference     names as typed and as meant
    files         durable writes, locks, no links followed
    sendfile      a part of a file to a socket
    image         documents: manifests, configs, tar streams
    store         what is kept on disk
    registry      one registry over HTTP
    xfer          work that is shared; layers in order
    archive       a store in a tar
    rootfs        a root file system made of layers
    distribution  pull, push, copy
    server        a registry over a store
    cli           the command line

The names below are the public API; the rest may be imported by module.
"""
import sys
import types
from typing import TYPE_CHECKING, List

from .errors import NotInBuild
from .parts import part

if TYPE_CHECKING:
    from .archive.load import load as load
    from .archive.save import save as save
    from .cancel import Cancel as Cancel
    from .digest import Digest as Digest
    from .distribution.copy import copy as copy
    from .distribution.pull import pull as pull
    from .distribution.push import push as push
    from .errors import (
        Cancelled as Cancelled, ContentMismatch as ContentMismatch, Error as Error,
        InvalidDocument as InvalidDocument, InvalidReference as InvalidReference,
        NetworkError as NetworkError, NotFound as NotFound, PolicyError as PolicyError,
        RateLimited as RateLimited, StorageError as StorageError, Unauthorized as Unauthorized,
        Unsupported as Unsupported)
    from .image.config import Image as Image
    from .image.descriptor import Descriptor as Descriptor
    from .image.platform import Platform as Platform
    from .progress import Progress as Progress
    from .reference import Reference as Reference
    from .registry.credentials import Credentials as Credentials
    from .registry.endpoints import RegistryService as RegistryService
    from .registry.errors import RegistryError as RegistryError
    from .rootfs.unpack import unpack as unpack
    from .server.registry import serve as serve
    from .store.store import Store as Store

__version__ = "0.1.0"

#: The public names of each module.
_NAMES = {
    "archive.load": "load",
    "archive.save": "save",
    "cancel": "Cancel",
    "digest": "Digest",
    "distribution.copy": "copy",
    "distribution.pull": "pull",
    "distribution.push": "push",
    "errors": "Cancelled ContentMismatch Error InvalidDocument InvalidReference NetworkError NotFound"
              " PolicyError RateLimited StorageError Unauthorized Unsupported",
    "image.config": "Image",
    "image.descriptor": "Descriptor",
    "image.platform": "Platform",
    "progress": "Progress",
    "reference": "Reference",
    "registry.credentials": "Credentials",
    "registry.endpoints": "RegistryService",
    "registry.errors": "RegistryError",
    "rootfs.unpack": "unpack",
    "server.registry": "serve",
    "store.store": "Store"}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME) + ["__version__"]


class _Package(types.ModuleType):
    """Loads a public name when it is first used; a module's own ``__getattr__`` needs Python 3.7."""

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError("module %r has no attribute %r" % (self.__name__, name))
        try:
            value = getattr(part(_HOME[name]), name)
        except NotInBuild as exc:
            raise AttributeError("%s.%s: %s" % (self.__name__, name, exc)) from exc
        setattr(self, name, value)
        return value

    def __dir__(self) -> List[str]:
        return sorted(set(vars(self)) | set(__all__))


sys.modules[__name__].__class__ = _Package
