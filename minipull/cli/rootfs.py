# SPDX-License-Identifier: Apache-2.0
"""The commands that look into an image: unpack, export, cat.

An image that is not stored is pulled first, without inflating its layers: the
command inflates each once and records the DiffIDs that it finds.  A name that is
stored for another platform stays so, and what is pulled then gets no name: it is
used again until gc takes it.
"""
import argparse
import contextlib
import re
from typing import Iterator, List, Optional, Tuple

from ..digest import DiffID
from ..errors import Error, InvalidReference, NotFound, StorageError
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST, parse
from ..image.platform import Platform, preference
from ..rootfs.flatten import Flattened
from ..rootfs.layers import for_platform, layers_of, remember
from ..rootfs.unpack import MAX_UNPACKED, unpack
from ..store.references import Association
from ..store.store import IMAGE_ID, ImageSource, Store, host_platform, platform_of
from .context import Context, described, reference, stripped


@contextlib.contextmanager
def _image(context: Context, text: str) -> Iterator[
        Tuple[ImageSource, Image, List[Tuple[Descriptor, DiffID]]]]:
    """Yield an image, pulled if need be, its source and layers; then record the DiffIDs of a pulled one."""
    source, settings = context.source, context.settings
    store: Optional[Store] = None  # if it is pulled
    platform = platform_of(settings.platform) or host_platform()
    foreign, text = settings.truth("foreign"), stripped(text)
    with contextlib.ExitStack() as stack:
        image: Optional[Image] = None
        try:
            image = source.image(text)
            if settings.platform and not _runs(image, platform):
                image = _beside(source, image, platform, foreign)
        except NotFound as exc:
            if image and re.fullmatch(IMAGE_ID, text) and image.name.familiar_name != text:
                raise exc.within(text) from exc  # no registry knows it
            try:
                source = store = context.store
            except StorageError as read_only:
                raise read_only.within(str(exc)) from exc
            from ..distribution.pull import pull_options, pull_with

            name = reference(text)
            options = pull_options(settings.platform, False, foreign, keys=settings.verify_keys())
            options = options._replace(defer_diff_ids=True, keep_name=True)
            stack.enter_context(store.writing(context.cancel))  # it may get no name that gc would see
            with context.client([name.domain]) as client:
                image = pull_with(client, name, store, settings.downloads(), options, context.renderer,
                                  context.cancel).image
        stack.enter_context(source.reading(context.cancel))
        image = for_platform(image, source, platform)
        layers = layers_of(image, source)
        yield source, image, layers
        if store is not None:
            remember(image, store, layers)


def _runs(image: Image, platform: Platform) -> bool:
    return image.config is None or any(
        fitting.matches(image.config.platform) for fitting in preference(platform))


def _beside(source: ImageSource, image: Image, platform: Platform, foreign: bool) -> Image:
    """Choose from the index that an image came from, if all is stored, the one for a platform; raises NotFound."""
    with contextlib.suppress(Error):
        index = parse(source.content.read(image.source, MAX_MANIFEST))
        top = source.on(platform, index.descriptor)
        other = top and source.load(Association(image.name, top, image.source))
        if top and other and _runs(other, platform) and not any(source.missing(top, foreign)):
            return other
    raise NotFound("it is stored for another platform")


def do_unpack(context: Context, flags: argparse.Namespace) -> None:
    limit = context.settings.size("max_unpacked") or MAX_UNPACKED
    with _image(context, flags.ref) as (source, image, _):
        unpack(image, source, flags.dir, max_unpacked=limit, durable=flags.sync,
               progress=context.renderer, cancel=context.cancel)
    if context.json:
        context.dump({**described(source, image), "directory": flags.dir})
    elif not context.quiet:
        context.show("Unpacked %s to %s" % (image, flags.dir))


def do_export(context: Context, flags: argparse.Namespace) -> None:
    if flags.file and flags.output:
        raise InvalidReference("FILE and -o FILE are the same; give one of them")
    write = context.tar_writer(flags.file or flags.output, "a tar")
    with _image(context, flags.ref) as (source, _, layers):
        write(Flattened(source, layers, context.renderer, context.cancel).tar())


def do_cat(context: Context, flags: argparse.Namespace) -> None:
    with _image(context, flags.ref) as (source, _, layers):
        context.write(Flattened(source, layers, context.renderer, context.cancel).file(flags.path))
