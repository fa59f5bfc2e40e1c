# SPDX-License-Identifier: Apache-2.0
"""pull() and push(): images by name, from or to whichever endpoint will do.

The loop over endpoints stands here once: mirrors for a pull, then the registry,
then, where that is allowed and nobody has proved to speak v2, its v1 side; who is
asked next after an error is errors.continue_on_error, and plain http is
never tried on a host that has spoken TLS.

Mirrors moby's distribution/pull.go and push.go.
"""
from typing import Optional, Union

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
from ..store.store import Store, host_platform
from ..xfer.download import LayerDownloadManager
from .pull_v2 import PullOptions, Pulled, V2Puller


def pull(name: Union[str, Reference], store: Store, *, platform: Union[str, Platform, None] = None,
         all_platforms: bool = False, foreign: bool = False, progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         downloads: Optional[LayerDownloadManager] = None,
         cancel: Optional[Cancel] = None) -> Image:
    """Pull an image into ``store`` and return it.

    ``platform`` defaults to the host's; ``downloads`` is shared by pulls that
    are to share transfers.  Raises any minipull.Error; its text is one line
    that says what failed, on what.
    """
    with Client(service or RegistryService(), credentials or Keyring()) as client:
        return pull_with(
            client, name, store, downloads or LayerDownloadManager(),
            options(platform, all_platforms, foreign), progress, cancel or Cancel(),
        ).image


def options(platform: Union[str, Platform, None] = None, all_platforms: bool = False,
            foreign: bool = False) -> PullOptions:
    """What to take of what a name offers; raises InvalidReference."""
    if platform is None:
        return PullOptions(host_platform(), False, all_platforms, foreign)
    if all_platforms:
        raise InvalidReference("one platform and all platforms can't be asked for together")
    if isinstance(platform, str):
        platform = Platform.parse(platform, host_platform())
    return PullOptions(platform, True, False, foreign)


def pull_with(client: Client, name: Union[str, Reference], store: Store,
              downloads: LayerDownloadManager, wanted: PullOptions, progress: Output,
              cancel: Cancel) -> Pulled:
    """As pull(), for several pulls through one client."""
    reference = name if isinstance(name, Reference) else Reference.parse(name)
    reference = reference.docker_ref()
    if reference.familiar_name == "scratch":
        raise InvalidReference("'scratch' is a reserved name")
    output = serialized(progress)

    def from_endpoint(endpoint: Endpoint) -> Pulled:
        with store.writing(cancel):
            if endpoint.version == 1:
                session = client.session(endpoint, reference)
                v1_puller = part("distribution.pull_v1").V1Puller(session, store, downloads, output, cancel)
                return Pulled(*v1_puller.pull(reference))
            repository = client.repository(endpoint, reference)
            return V2Puller(repository, store, downloads, wanted, output, cancel).pull(reference)

    return over_endpoints(
        client, reference, "pull %s" % (reference,), from_endpoint, cancel, output, legacy=True)
