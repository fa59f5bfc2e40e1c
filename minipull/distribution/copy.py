# SPDX-License-Identifier: Apache-2.0
"""copy(): an image from one place to another, without keeping it.

Mirrors skopeo's copy; moby has none.

Where this leaves skopeo: an index is copied whole, entries of unknown kinds included,
unless platforms are asked for; manifests are converted and foreign layers copied on
request only; a copy that was interrupted is continued within its blobs.
"""
import contextlib
import functools
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..errors import Error, InvalidReference
from ..image.platform import Platform
from ..image.signature import Key
from ..parts import part
from ..progress import Output, discard, serialized
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..store.signatures import StoredSignatures
from ..store.store import ImageSource, host_platform
from ..xfer.upload import LayerUploadManager
from .compress import GzipJob
from .convert import FORMATS
from .ends import End, LayoutEnd, RegistryEnd
from .job import Copied, CopyJob, Options
from .places import ARCHIVES, Place


def copy(source: str, target: str, *, store: Optional[ImageSource] = None,
         platforms: Sequence[Union[str, Platform]] = (), format: str = "", referrers: bool = False,
         chunk_size: int = 0, foreign: bool = False, compress: str = "", keys: Sequence[Key] = (),
         progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         uploads: Optional[LayerUploadManager] = None, cancel: Optional[Cancel] = None) -> Copied:
    """Copy from ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or ``oci-archive:FILE[:REF]`` to another.

    ``platforms`` select images of an index; ``format`` is "oci" or "docker" to convert;
    ``chunk_size`` (bytes) is the most that one request sends; ``foreign`` copies foreign
    layers, too; ``compress`` is "gzip" for zstd and plain layers to become that; if there are
    ``keys``, one must have signed each image.  An archive without REF is copied whole, and its
    last image returned.
    Raises any minipull.Error; its text is one line that names the operation and its subject.
    """
    chosen = [platform if isinstance(platform, Platform) else Platform.parse(platform, host_platform())
              for platform in platforms]
    with Client(service or RegistryService(), credentials or Keyring()) as client:
        return copy_with(
            Place.parse(source), Place.parse(target), (client, client), store,
            Options(chosen, format, referrers, chunk_size, foreign, compress, keys),
            uploads or LayerUploadManager(), serialized(progress), cancel or Cancel())[-1]


def copy_with(source: Place, target: Place, clients: Tuple[Client, Client], store: Optional[ImageSource],
              options: Options, uploads: LayerUploadManager, output: Output,
              cancel: Cancel) -> List[Copied]:
    """Copy as copy() does, with a client for either end; return every image of the target."""
    if options.format and options.format not in FORMATS:
        raise InvalidReference("invalid format %s, not oci or docker" % ascii(options.format))
    if options.compress not in ("", "gzip"):
        raise InvalidReference("invalid compression %s, not gzip" % ascii(options.compress))
    if options.referrers and (options.format or options.compress):
        raise InvalidReference("what refers to an image does not follow it into another format or compression")
    options = options._replace(zstd=store.layers.zstd if store else None)
    subject = "copy %s to %s" % (source, target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(within(subject))
        source_end = open_source(source, clients[0], store, subject, stack, output, cancel)
        images = [(source.tag, target)]
        if isinstance(source_end, LayoutEnd) and source.kind in ARCHIVES and not source.tag:
            images = _images(source_end, source, target)
            if options.keys:
                StoredSignatures(source_end.source).require_all(options.keys)
                options = options._replace(keys=())
        elif target.kind == "docker" and not target.tag:
            raise InvalidReference("a target that ends in a slash is for all images of an archive")
        layout: Optional[LayoutEnd] = None
        if target.kind in ARCHIVES:
            layout = stack.enter_context(part("distribution.archives").archive_end(
                target, uploads.transfers, output, cancel))
        elif target.kind != "docker":
            layout = LayoutEnd(target, store)
            stack.enter_context(layout.holding(cancel))
        copied = []
        for reference, place in images:
            kind = GzipJob if options.compress else CopyJob
            job = kind(source_end, reference, options, uploads, output, cancel)
            if layout is not None:
                copied.append(job.to(layout, place.tag))
            else:
                copied.append(over_endpoints(
                    clients[1], place.name, subject, functools.partial(job.to_registry, clients[1], place),
                    cancel, output, push=True))
        return copied


def open_source(source: Place, client: Client, store: Optional[ImageSource], subject: str,
                stack: contextlib.ExitStack, output: Output, cancel: Cancel) -> End:
    """Open the source; of the endpoints of a registry, the first that has the image."""
    if source.kind in ARCHIVES:
        zstd = store.layers.zstd if store else None
        archive: LayoutEnd = stack.enter_context(
            part("distribution.archives").opened_end(source, cancel, zstd))
        return archive
    if source.kind != "docker":
        layout = LayoutEnd(source, store)
        stack.enter_context(layout.source.reading(cancel))
        return layout

    def answering(endpoint: Endpoint) -> End:
        end = RegistryEnd(client.repository(endpoint, source.name))
        end.get(source.tag, cancel)
        return end

    return over_endpoints(client, source.name, subject, answering, cancel, output)


def _images(archive: LayoutEnd, source: Place, target: Place) -> List[Tuple[str, Place]]:
    """List the images of an archive by label or digest, each with the place that it is copied to."""
    images = archive.images()
    if target.tag and len(images) > 1:  # referrers don't count: they go with their image
        referring = {str(item.name) for item in archive.source.references.all()
                     if archive.source.subject(item.name, item.descriptor)}
        images = [image for image in images if image[0] not in referring] or images
    if target.tag and len(images) > 1:
        raise InvalidReference("%s has several images, so name one: %s" % (
            source, ", ".join(sorted(label for label, _ in images if label))))
    return [(label or digest, target if target.tag else target.of(label)) for label, digest in images]


@contextlib.contextmanager
def within(subject: str) -> Iterator[None]:
    """Begin the text of every error of the block with ``subject``, once."""
    try:
        yield
    except Error as exc:
        if str(exc).startswith(subject):
            raise
        raise exc.within(subject) from exc
