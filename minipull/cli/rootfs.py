# SPDX-License-Identifier: Apache-2.0
"""The commands that look into an image: unpack, export, cat.

An image that is not stored is pulled first, without inflating its layers: the
command inflates each once and records the DiffIDs that it finds.
"""
import argparse
import contextlib
import sys
from typing import Iterator, List, Tuple

from ..digest import DiffID
from ..errors import InvalidReference, NotFound
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.platform import Platform, preference
from ..rootfs.flatten import Flattened
from ..rootfs.layers import for_platform, layers_of, remember
from ..rootfs.unpack import MAX_UNPACKED, unpack
from ..store.store import host_platform
from .context import Context, reference, stripped


@contextlib.contextmanager
def _image(context: Context, text: str) -> Iterator[Tuple[Image, List[Tuple[Descriptor, DiffID]]]]:
    """Yield an image and its layers, pulled if need be; then record the DiffIDs of a pulled one."""
    store, settings, pulled = context.store, context.settings, False
    platform = Platform.parse(settings.platform, host_platform()) if settings.platform else host_platform()
    foreign = settings.truth("foreign")
    try:
        image = store.image(stripped(text))
        if image.config and settings.platform and not any(
                fitting.matches(image.config.platform) for fitting in preference(platform)):
            raise NotFound("it is stored for another platform")
    except NotFound:
        from ..distribution.pull import pull_options, pull_with

        name, pulled = reference(text), True
        options = pull_options(settings.platform, False, foreign)._replace(defer_diff_ids=True)
        with context.client([name.domain]) as client:
            image = pull_with(client, name, store, settings.downloads(), options, context.renderer,
                              context.cancel).image
    with store.reading(context.cancel):
        image = for_platform(image, store, platform)
        layers = layers_of(image, store)
        yield image, layers
        if pulled:
            remember(image, store, layers)


def do_unpack(context: Context, flags: argparse.Namespace) -> None:
    limit = context.settings.size("max_unpacked") or MAX_UNPACKED
    with _image(context, flags.ref) as (image, _):
        unpack(image, context.store, flags.dir, max_unpacked=limit, durable=flags.sync,
               progress=context.renderer, cancel=context.cancel)
    if not context.quiet:
        context.show("Unpacked %s to %s" % (image, flags.dir))


def do_export(context: Context, flags: argparse.Namespace) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        raise InvalidReference("refusing to write a tar to a terminal; redirect stdout")
    with _image(context, flags.ref) as (_, layers):
        context.write(Flattened(context.store, layers, context.renderer, context.cancel).tar())


def do_cat(context: Context, flags: argparse.Namespace) -> None:
    with _image(context, flags.ref) as (_, layers):
        context.write(Flattened(context.store, layers, context.renderer, context.cancel).file(flags.path))
