# SPDX-License-Identifier: Apache-2.0
"""push(): images by name, to the first endpoint that takes them.

Mirrors moby's distribution/push.go.
"""
from typing import Callable, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..errors import InvalidReference, NotStored
from ..image.config import Image
from ..parts import part
from ..progress import Output, Progress, discard, serialized
from ..reference import DEFAULT_TAG, Reference
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..store.store import ImageSource
from ..xfer.upload import LayerUploadManager
from .push_v2 import Pushed, PushedLayer, V2Pusher


def push(name: Union[str, Reference], store: ImageSource, *, dest: Union[str, Reference, None] = None,
         all_tags: bool = False, chunk_size: int = 0, legacy_schema1: bool = False,
         foreign: bool = False, progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         uploads: Optional[LayerUploadManager] = None,
         cancel: Optional[Cancel] = None) -> List[Pushed]:
    """Push an image, or with ``all_tags`` every tag of a name, from ``store``.

    ``dest`` is its name at the registry, if not its own; ``chunk_size`` (bytes) is
    the most that one request sends, 0 for all of a blob; ``legacy_schema1`` is for
    registries too old for the manifest; ``foreign`` sends the foreign layers that are
    stored, too.  Raises as pull().

    Example::

        [pushed] = minipull.push("registry.lan/app:1.0", store, dest="registry.lan/mirror/app:1.0")
        print(pushed.name, pushed.descriptor.digest, [layer.result for layer in pushed.layers])
    """
    results: List[Pushed] = []
    with Client(service, credentials) as client:
        push_with(
            client, pushed_images(name, store, dest, all_tags), store, results.append,
            uploads or LayerUploadManager(), progress, cancel or Cancel(), chunk_size, legacy_schema1,
            foreign)
    return results


def pushed_images(name: Union[str, Reference], store: ImageSource, dest: Union[str, Reference, None] = None,
                  all_tags: bool = False) -> List[Tuple[Image, Reference]]:
    """List the stored images to push, each with its name at the registry; raises InvalidReference, NotFound."""
    target = None if dest is None else Reference.of(dest)
    if target and not target.digest and not all_tags:
        image = store.image(name)  # by its ID, too
        return [(image, target.with_tag(target.tag or image.name.tag or DEFAULT_TAG))]
    given = Reference.of(name)
    target = target or given
    if target.digest is not None:
        raise InvalidReference("cannot push a digest reference")
    if all_tags and (given.tag or given.digest or target.tag):
        raise InvalidReference("tag can't be used with --all-tags/-a")
    tags = [entry for entry in store.references.all() if entry.name.name == given.name and entry.name.tag]
    if not tags:
        raise NotStored(
            "An image does not exist locally with the tag: %s" % given.familiar_name, given.familiar_name)
    if all_tags:
        return [(store.load(entry), target.with_tag(entry.name.tag)) for entry in tags]
    tagged = given.with_default_tag()
    if store.references.get(tagged) is None:
        raise NotStored("tag does not exist: %s" % tagged.familiar, tagged.familiar)
    return [(store.image(given), target.with_default_tag())]


def push_with(client: Client, images: Sequence[Tuple[Image, Reference]], store: ImageSource,
              told: Callable[[Pushed], object], uploads: LayerUploadManager, progress: Output, cancel: Cancel,
              chunk_size: int = 0, legacy_schema1: bool = False, foreign: bool = False) -> None:
    """Push images, which all go to one repository, through a client.

    ``told`` is called with each once it is there: a later one may fail.
    """
    target = images[0][1]._replace(tag="")
    pending = list(images)
    output = serialized(progress)
    output(Progress(message="The push refers to repository [%s]" % target.name))

    def to_endpoint(endpoint: Endpoint) -> None:
        with store.reading(cancel):
            if endpoint.version == 1:
                v1_pusher = part("distribution.push_v1").V1Pusher(
                    client.session(endpoint, target), store, uploads, output, cancel)
                for (image, name), layers in zip(images, v1_pusher.push(images)):
                    told(Pushed(name, image.descriptor, [PushedLayer(*layer) for layer in layers], by_v1=True))
                return
            pusher = V2Pusher(client.repository(endpoint, target, push=True), store, uploads, target, output,
                              cancel, chunk_size, legacy_schema1, foreign)
            while pending:
                image, name = pending[0]
                told(pusher.push(image, name.tag))
                del pending[0]

    over_endpoints(
        client, target, "push %s" % target.name, to_endpoint, cancel, output, push=True, legacy=True)
