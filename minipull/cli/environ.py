# SPDX-License-Identifier: Apache-2.0
"""environment(): registries and credentials for a program that embeds minipull, as the command line finds them."""
import os
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

from ..image.signature import Key
from ..progress import Output, Progress, discard, serialized
from ..registry.credentials import Credentials
from ..registry.endpoints import RegistryService
from ..registry.login import registry
from .access import Access
from .effective import unknown_keys
from .settings import Settings, find_zstd


class Environment(NamedTuple):
    """Arguments of the functions that speak to registries; ``zstd`` is one of Store()."""
    service: RegistryService
    credentials: Credentials
    platform: Optional[str]  # of $MINIPULL_PLATFORM or $DOCKER_DEFAULT_PLATFORM; None for the host's
    keys: Tuple[Key, ...]  # of ``verify-key``: pull() and copy() then take what one of them has signed
    zstd: Optional[str]  # the path of the program


def environment(environ: Mapping[str, str] = os.environ, *, config: Optional[str] = None,
                registries: Sequence[str] = (), progress: Output = discard) -> Environment:
    """The settings of this host and user: the one public function that reads the environment.

    They are those of the command line without flags: ``MINIPULL_*``, the settings file (or
    the one at ``config``), ``certs.d`` of docker and containers, the proxies of ``HTTPS_PROXY``
    and ``NO_PROXY``, the credentials and helpers of docker and podman.  ``$MINIPULL_CREDS``,
    ``$MINIPULL_REGISTRY_TOKEN`` and ``$MINIPULL_CERT_DIR`` are for ``registries`` (``HOST[:PORT]``)
    alone, the first two for one.  ``progress`` gets warnings.  Raises InvalidReference for a value that
    does not fit, StorageError and InvalidDocument for a file that can't be used.

    Example::

        host = minipull.environment()
        minipull.pull("registry.lan/app:1.0", store, platform=host.platform,
                      service=host.service, credentials=host.credentials)
    """
    output = serialized(progress)
    settings = Settings(environ, {"config": config}, lambda text: output(Progress(message="warning: " + text)))
    for text in unknown_keys(settings.document, settings.path):
        output(Progress(message="warning: " + text))
    domains = [registry(text).domain for text in registries]
    access = Access(settings)
    return Environment(access.service(domains), access.credentials(domains), settings.platform,
                       settings.verify_keys(), find_zstd(environ.get("PATH", os.defpath)))
