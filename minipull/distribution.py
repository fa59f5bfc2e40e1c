# SPDX-License-Identifier: Apache-2.0
"""pull() and push(): images by name, from or to whichever endpoint will do.

The loop over endpoints stands here once: mirrors for a pull, then the registry,
then, where that is allowed and nobody has proved to speak v2, its v1 side; who is
asked next after an error is errors.continue_on_error, and plain http is
never tried on a host that has spoken TLS.

Mirrors moby's distribution/pull.go and push.go.
"""
import functools
import os
from typing import Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

from .auth import Keyring
from .descriptor import Platform
from .download import LayerDownloadManager
from .endpoints import RegistryService
from .errors import Error, InvalidReference, NetworkError, NoSupport, NotFound, continue_on_error
from .image import Image
from .progress import Output, Progress, discard, serialized
from .pull_v1 import V1Puller
from .pull_v2 import Pulled, PullOptions, V2Puller
from .push_v1 import V1Pusher
from .push_v2 import Pushed, PushedLayer, V2Pusher
from .reference import DEFAULT_TAG, Reference
from .repository import Client, Repository
from .session import Session
from .store import Store
from .streams import Cancel
from .upload import LayerUploadManager

T = TypeVar("T")

_MACHINES = {"armv5tel": "arm/v5", "armv6l": "arm/v6", "armv7l": "arm/v7", "armv8l": "arm/v7",
             "i586": "386", "i686": "386", "loongarch64": "loong64"}


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

    def from_one(repository: Repository) -> Pulled:
        puller = V2Puller(repository, store, downloads, wanted, output, cancel)
        with store.using(cancel, writing=True):
            return puller.pull(reference)

    def from_old(session: Session) -> Pulled:
        with store.using(cancel, writing=True):
            return Pulled(*V1Puller(session, store, downloads, output, cancel).pull(reference))

    return over_endpoints(client, reference, "pull %s" % (reference,), from_one, cancel, old=from_old)


def push(name: Union[str, Reference], store: Store, *, dest: Union[str, Reference, None] = None,
         all_tags: bool = False, chunk_size: int = 0, legacy_schema1: bool = False,
         progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         uploads: Optional[LayerUploadManager] = None,
         cancel: Optional[Cancel] = None) -> List[Pushed]:
    """Push an image, or with ``all_tags`` every tag of a name, from ``store``.

    ``dest`` is the name that it gets there, if not its own; ``chunk_size``
    (bytes) is the most that one request brings, 0 for all of a blob;
    ``legacy_schema1`` is for registries too old for the manifest.  Raises any
    minipull.Error; its text is one line that says what failed, on what.
    """
    with Client(service or RegistryService(), credentials or Keyring()) as client:
        return push_with(
            client, pushed_images(name, store, dest, all_tags), store,
            uploads or LayerUploadManager(), progress, cancel or Cancel(), chunk_size, legacy_schema1)


def pushed_images(name: Union[str, Reference], store: Store, dest: Union[str, Reference, None] = None,
                  all_tags: bool = False) -> List[Tuple[Image, Reference]]:
    """The stored images that a push of ``name`` means, each with its name at the registry.

    Raises InvalidReference, NotFound.
    """
    given = name if isinstance(name, Reference) else Reference.parse(name)
    target = Reference.parse(dest) if isinstance(dest, str) else dest or given
    if target.digest is not None:
        raise InvalidReference("cannot push a digest reference")
    if all_tags and (given.tag or given.digest or target.tag):
        raise InvalidReference("tag can't be used with --all-tags/-a")
    tags = [known for known in store.references.all() if known.name.name == given.name and known.name.tag]
    if not tags and (all_tags or dest is None):
        raise NotFound("An image does not exist locally with the tag: %s" % given.familiar_name)
    if all_tags:
        return [(store.load(known), target.with_tag(known.name.tag)) for known in tags]
    if dest is None and store.references.get(given.with_default_tag()) is None:
        raise NotFound("tag does not exist: %s" % given.with_default_tag().familiar)
    image = store.image(given if dest is None else name)
    return [(image, target.with_tag(target.tag or image.name.tag or DEFAULT_TAG))]


def push_with(client: Client, what: Sequence[Tuple[Image, Reference]], store: Store,
              uploads: LayerUploadManager, progress: Output, cancel: Cancel,
              chunk_size: int = 0, legacy_schema1: bool = False) -> List[Pushed]:
    """As push(), for images that all go to one repository."""
    target = what[0][1]._replace(tag="")
    output = serialized(progress)
    output(Progress(message="The push refers to repository [%s]" % target.name))

    def to_one(repository: Repository) -> List[Pushed]:
        pusher = V2Pusher(
            repository, store, uploads, target, output, cancel, chunk_size, legacy_schema1)
        with store.using(cancel):
            return [pusher.push(image, name.tag) for image, name in what]

    def to_old(session: Session) -> List[Pushed]:
        pusher = V1Pusher(session, store, output, cancel, uploads.attempts, uploads.tick)
        with store.using(cancel):
            return [Pushed(name, image.descriptor, [PushedLayer(*layer) for layer in layers])
                    for (image, name), layers in zip(what, pusher.push(what))]

    return over_endpoints(client, target, "push %s" % target.name, to_one, cancel, push=True, old=to_old)


def over_endpoints(client: Client, reference: Reference, what: str, work: Callable[[Repository], T],
                   cancel: Cancel, push: bool = False, old: Optional[Callable[[Session], T]] = None) -> T:
    """The first success of ``work`` on an endpoint of the repository, or of ``old`` by the v1 protocol.

    Raises the error that decided, its text led by ``what`` and by what others
    said that weighs as much.
    """
    said: Dict[str, Tuple[int, Error]] = {}  # by endpoint: the later of two tries knows more
    confirmed = False
    service = client.service
    endpoints = (service.push_endpoints if push else service.pull_endpoints)(reference)
    legacy = service.v1_endpoints(reference) if old else []
    for endpoint in endpoints + legacy:
        v1 = endpoint.version == 1
        if v1 and confirmed or endpoint.url.startswith("http:") and client.spoke_tls(endpoint):
            continue
        try:
            if v1 and old:
                credential = functools.partial(client.credentials.get, endpoint.host, reference.path)
                return old(Session(endpoint, reference, client.transport, credential, service.warn))
            repository = client.repository(endpoint, reference, push)
            try:
                if legacy:
                    repository.ping(cancel)
                return work(repository)
            finally:
                confirmed = confirmed or repository.confirmed
        except Error as exc:
            cancel.check()
            # What the registry itself says weighs more than a mirror's word or silence.
            weight = 2 - (endpoint.mirror or isinstance(exc, NetworkError)) - 2 * isinstance(exc, NoSupport)
            said[str(endpoint)] = weight, exc
            if not continue_on_error(exc, endpoint.mirror, bool(legacy) and not confirmed):
                break
    if not said:
        raise NotFound("%s: no endpoints found for %s" % (what, reference))
    heaviest = max(weight for weight, _ in said.values())
    found = {place: exc for place, (weight, exc) in said.items() if weight == heaviest}
    decided = list(found.values())[-1]
    error = decided.within(what)
    error.args = ("%s: %s" % (what, "; ".join(
        str(exc) if place in str(exc) else "%s (%s)" % (exc, place) for place, exc in found.items())),)
    raise error from decided


def host_platform() -> Platform:
    """What images run on here: Linux, but on Windows, and this machine."""
    if os.name == "nt":
        return Platform("windows", "amd64")
    machine = os.uname().machine
    return Platform.parse("linux/" + _MACHINES.get(machine, machine))
