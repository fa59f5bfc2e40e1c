# SPDX-License-Identifier: Apache-2.0
"""minipull: pull and push container images with nothing but Python's standard library.

The public names:

  registries   pull push copy tags digest inspect login environment
  the store    Store check gc save load unpack export serve
  settings     RegistryService Host Proxies Network Credentials Credential Key parse_key
               LayerDownloadManager LayerUploadManager Cancel Progress
  results      Image Descriptor Digest Platform Reference Pushed Copied Problem Collected
  errors       Error and below; ``error.exit_code`` is that of the command line

Functions take what they need as arguments, and print nothing; but for environment()
they read no variable and no settings file.  ``progress`` is called with a Progress for
each event, ``cancel.cancel()`` ends the work from any thread.  Sizes are in bytes, times
in seconds.  A name is text as docker takes it, or a Reference.  In examples ``store`` is
``minipull.Store("/var/lib/minipull")``.

The rest may be imported by module.  The wings in reading order; each imports only
from those above it, and lists its own modules in its docstring:

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
"""
import sys
import types

TYPE_CHECKING = False  # typing's own would be imported for --version, too
if TYPE_CHECKING:
    from typing import List

    from .archive.load import load as load
    from .archive.save import save as save
    from .cancel import Cancel as Cancel
    from .cli.effective import environment as environment
    from .digest import Digest as Digest
    from .distribution.ask import digest as digest, inspect as inspect, tags as tags
    from .distribution.copy import copy as copy
    from .distribution.job import Copied as Copied
    from .distribution.pull import pull as pull
    from .distribution.push import push as push
    from .distribution.push_v2 import Pushed as Pushed
    from .errors import (
        Cancelled as Cancelled, ContentMismatch as ContentMismatch, Error as Error,
        InvalidDocument as InvalidDocument, InvalidReference as InvalidReference,
        NetworkError as NetworkError, NotFound as NotFound, PolicyError as PolicyError,
        RateLimited as RateLimited, StorageError as StorageError, Unauthorized as Unauthorized,
        Unsupported as Unsupported)
    from .image.config import Image as Image
    from .image.descriptor import Descriptor as Descriptor
    from .image.platform import Platform as Platform
    from .image.signature import Key as Key, parse_key as parse_key
    from .progress import Progress as Progress
    from .reference import Reference as Reference
    from .registry.auth import Credential as Credential
    from .registry.credentials import Credentials as Credentials
    from .registry.endpoints import Host as Host, RegistryService as RegistryService
    from .registry.errors import RegistryError as RegistryError
    from .registry.login import login as login
    from .registry.network import Network as Network
    from .registry.proxy import Proxies as Proxies
    from .rootfs.flatten import export as export
    from .rootfs.unpack import unpack as unpack
    from .server.registry import serve as serve
    from .store.check import Problem as Problem, check as check
    from .store.gc import Collected as Collected, gc as gc
    from .store.store import Store as Store
    from .xfer.download import LayerDownloadManager as LayerDownloadManager
    from .xfer.upload import LayerUploadManager as LayerUploadManager

__version__ = "0.1.0"

#: The public names with their modules, in the order of the wings.
_PATHS = """
    cancel.Cancel digest.Digest progress.Progress reference.Reference
    errors.Cancelled errors.ContentMismatch errors.Error errors.InvalidDocument errors.InvalidReference
    errors.NetworkError errors.NotFound errors.PolicyError errors.RateLimited errors.StorageError
    errors.Unauthorized errors.Unsupported
    image.config.Image image.descriptor.Descriptor image.platform.Platform
    image.signature.Key image.signature.parse_key
    store.check.Problem store.check.check store.gc.Collected store.gc.gc store.store.Store
    registry.auth.Credential registry.credentials.Credentials registry.endpoints.Host
    registry.endpoints.RegistryService registry.errors.RegistryError registry.login.login
    registry.network.Network registry.proxy.Proxies
    xfer.download.LayerDownloadManager xfer.upload.LayerUploadManager
    archive.load.load archive.save.save rootfs.flatten.export rootfs.unpack.unpack
    distribution.ask.digest distribution.ask.inspect distribution.ask.tags distribution.copy.copy
    distribution.job.Copied distribution.pull.pull distribution.push.push distribution.push_v2.Pushed
    server.registry.serve cli.effective.environment"""
_HOME = {path.rpartition(".")[2]: path.rpartition(".")[0] for path in _PATHS.split()}
__all__ = sorted(_HOME) + ["__version__"]


class _Package(types.ModuleType):
    """Loads a public name when it is first used; a module's own ``__getattr__`` needs Python 3.7."""

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError("module %r has no attribute %r" % (self.__name__, name))
        from .errors import NotInBuild
        from .parts import part

        try:
            value = getattr(part(_HOME[name]), name)
        except NotInBuild as exc:
            raise AttributeError("%s.%s: %s" % (self.__name__, name, exc)) from exc
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # An import would put the module digest in the place of the function.
        if name not in _HOME or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> "List[str]":
        return sorted(set(vars(self)) | set(__all__))


sys.modules[__name__].__class__ = _Package
