# SPDX-License-Identifier: Apache-2.0
"""The commands that look into an image, one function each; see commands.

An image that is not stored is pulled on the way, and then each of its layers is
inflated once: for what was asked, which finds the DiffIDs as well.
"""
import argparse
import contextlib
import sys
from typing import Dict, Iterator, List, Tuple

from ..digest import DiffID
from ..distribution.pull import options, pull_with
from ..errors import InvalidReference, NotFound
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.platform import preference
from ..rootfs.flatten import Flattened
from ..rootfs.layers import for_platform, layers_of, remember
from ..rootfs.unpack import MAX_UNPACKED, unpack
from .context import Command, Context, reference, stripped


@contextlib.contextmanager
def _image(context: Context, text: str) -> Iterator[Tuple[Image, List[Tuple[Descriptor, DiffID]]]]:
    """An image and its layers, pulled if need be; what is found in the block is remembered."""
    store, settings, pulled = context.store, context.settings, False
    wanted = options(settings.platform, False, settings.truth("foreign"))._replace(defer_diff_ids=True)
    try:
        image = store.image(stripped(text))
        fits = [p.matches(image.config.platform) for p in preference(wanted.platform) if image.config]
        if wanted.exact and fits and not any(fits):
            raise NotFound("it is stored for another platform")
    except NotFound:
        name = reference(text)
        with context.client([name.domain]) as client:
            image = pull_with(client, name, store, settings.downloads(), wanted, context.renderer,
                              context.cancel).image
        pulled = True
    with store.reading(context.cancel):
        image = for_platform(image, store, wanted.platform)
        layers = layers_of(image, store)
        yield image, layers
        if pulled:
            remember(image, store, layers)
    context.renderer.finish()


def _unpack(context: Context, flags: argparse.Namespace) -> None:
    limit = context.settings.size("max_unpacked") or MAX_UNPACKED
    with _image(context, flags.ref) as (image, _):
        unpack(image, context.store, flags.dir, max_unpacked=limit, progress=context.renderer,
               cancel=context.cancel)
    if not context.quiet:
        context.show("Unpacked %s to %s" % (image, flags.dir))


def _export(context: Context, flags: argparse.Namespace) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        raise InvalidReference("refusing to write a tar to a terminal; redirect stdout")
    with _image(context, flags.ref) as (_, layers):
        context.write(Flattened(context.store, layers, context.renderer, context.cancel).tar())


def _cat(context: Context, flags: argparse.Namespace) -> None:
    with _image(context, flags.ref) as (_, layers):
        context.write(
            Flattened(context.store, layers, context.renderer, context.cancel).file(flags.path))


COMMANDS: Dict[str, Command] = {"unpack": _unpack, "export": _export, "cat": _cat}
