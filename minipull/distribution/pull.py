# SPDX-License-Identifier: Apache-2.0
"""pull(): an image by name, from the first endpoint that has it.

Mirrors moby's distribution/pull.go; its loop over endpoints is registry/client.py.

Where this leaves the engine: endpoints that are all out of service are asked twice.
"""
from typing import TYPE_CHECKING, Optional, Sequence, Union

from ..cancel import Cancel
from ..errors import InvalidReference
from ..image.config import Image
from ..image.platform import Platform
from ..parts import part
from ..progress import Output, discard, serialized
from ..reference import Reference
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..store.store import Store, host_platform, platform_of
from ..xfer.download import LayerDownloadManager
from .pull_v2 import PullOptions, Pulled, V2Puller

if TYPE_CHECKING:
    from ..image.signature import Key


def pull(name: Union[str, Reference], store: Store, *, platform: Union[str, Platform, None] = None,
         all_platforms: bool = False, foreign: bool = False, referrers: bool = False, keys: Sequence["Key"] = (),
         progress: Output = discard, service: Optional[RegistryService] = None,
         credentials: Optional[Keyring] = None, downloads: Optional[LayerDownloadManager] = None,
         cancel: Optional[Cancel] = None) -> Image:
    """Pull an image into ``store``, by default for the host's platform, and return it.

    ``foreign``: layers that only their URLs have, too; ``referrers``: its signatures,
    attestations and SBOMs as well.  One of ``keys``, if there are any, must have signed it.
    Pulls with the same ``downloads`` share transfers.  A pull that was cut off is continued
    where it stopped.  Raises any minipull.Error, told in a line.

    Example::

        image = minipull.pull("registry.lan/app:1.0", store, platform="linux/arm64")
        print(image, image.id, image.descriptor.digest)
    """
    with Client(service, credentials) as client:
        return pull_with(
            client, name, store, downloads or LayerDownloadManager(),
            pull_options(platform, all_platforms, foreign, referrers, keys), progress, cancel or Cancel(),
        ).image


def pull_options(platform: Union[str, Platform, None] = None, all_platforms: bool = False,
                 foreign: bool = False, referrers: bool = False, keys: Sequence["Key"] = ()) -> PullOptions:
    """Make the options of a pull; raises InvalidReference."""
    if platform is not None and all_platforms:
        raise InvalidReference("one platform and all platforms can't be asked for together")
    return PullOptions(platform_of(platform) or host_platform(), platform is not None, all_platforms, foreign,
                       referrers=referrers, keys=keys)


def pull_with(client: Client, name: Union[str, Reference], store: Store,
              downloads: LayerDownloadManager, options: PullOptions, progress: Output,
              cancel: Cancel) -> Pulled:
    """Pull as pull() does, through a client that several pulls share."""
    reference = Reference.of(name).docker_ref()
    if reference.familiar_name == "scratch":
        raise InvalidReference("'scratch' is a reserved name")
    output = serialized(progress)

    def from_endpoint(endpoint: Endpoint) -> Pulled:
        with store.writing(cancel):
            if endpoint.version == 1:
                session = client.session(endpoint, reference)
                v1_puller = part("distribution.pull_v1").V1Puller(
                    session, store, downloads, output, cancel, options.keep_name)
                return Pulled(*v1_puller.pull(reference))
            repository = client.repository(endpoint, reference)
            return V2Puller(repository, store, downloads, options, output, cancel).pull(reference)

    return over_endpoints(
        client, reference, "pull %s" % (reference,), from_endpoint, cancel, output,
        legacy=not options.keys)  # the v1 protocol has no digest that could be signed
