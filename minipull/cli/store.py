# SPDX-License-Identifier: Apache-2.0
"""The commands on the store: inspect, tag, rm, gc, save, load."""
import argparse
import itertools
import json
import os
import re
import sys
from typing import Callable, Dict, Iterable, List, Set, Tuple

from ..digest import Digest
from ..errors import InvalidReference, NotFound
from ..image.manifest import Manifest
from ..image.platform import Platform
from ..progress import human_size
from ..reference import Reference
from ..store.references import UNNAMED, Association
from ..store.store import IMAGE_ID, Store, host_platform
from .context import Context, described, reference, stripped
from .lines import carrier
from .lists import operands, stored_names
from .plan import Row, row, show_plan


def do_inspect(context: Context, flags: argparse.Namespace) -> None:
    if flags.ref.startswith("docker://"):
        from .ask import inspected

        inspected(context, flags)
        return
    store = context.source
    with store.reading(context.cancel):
        image = store.image(flags.ref)
        if flags.platform:
            descriptor = store.on(Platform.parse(flags.platform, host_platform()), image.descriptor)
            if descriptor is None:
                raise NotFound("%s has nothing for %s" % (flags.ref, flags.platform))
            image = store.load(Association(image.name, descriptor, image.source))
        document = store.document(image.descriptor)
        if flags.raw:
            context.write(document.raw)
            return
        if flags.config_only:
            if image.config is None:
                raise InvalidReference("%s has no config of its own; choose one with --platform" % (image,))
            context.write(image.config.raw)
            return
        shown = dict(described(store, image), source=image.source, media_type=document.media_type)
        if isinstance(document, Manifest):
            diff_ids = itertools.chain(image.config.diff_ids if image.config else (), itertools.repeat(None))
            shown["layers"] = [dict(layer.to_json(), diff_id=diff_id)
                               for layer, diff_id in zip(document.layers, diff_ids)]
            shown["config"] = json.loads(image.config.raw.decode()) if image.config else None
        else:
            shown["manifests"] = [child.to_json() for child in document.manifests]
    context.dump(shown)


def do_tag(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    with store.reading(context.cancel):
        try:
            image = store.image(stripped(flags.src))
        except NotFound as exc:
            raise NotFound("%s; copy docker://SRC docker://DST names one at its registry" % exc) from exc
        name = reference(flags.dst).with_default_tag()
        store.tag(name, image, context.cancel)
        context.answer([described(store, image._replace(name=name))],
                       ["Tagged: %s" % (name.with_digest(image.source),)])


def do_rm(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    removed: Dict[Reference, None] = {}
    for text in stored_names(store, operands(flags.refs, ids=True)):
        removed.update(dict.fromkeys(_names(store, text, flags.all_names)))
    store.remove(*removed, cancel=context.cancel)
    context.answer([{"name": str(name)} for name in removed],
                   ["Untagged: %s" % name.familiar for name in removed])


def _names(store: Store, text: str, every: bool) -> List[Reference]:
    """The names to forget for a reference or image ID: the one that is meant, or ``every`` name of its image."""
    if re.fullmatch(IMAGE_ID, text):
        items = store.named(text)
        if len(items) > 1 and not every:
            raise InvalidReference("%s has %d names: %s; give those to forget, or --all-names" % (
                text, len(items), ", ".join(item.name.familiar for item in items)))
        names = [item.name for item in items]
    else:
        name = reference(text)
        names = [name.docker_ref()]
        if name.tag and name.digest:  # a pull has given it both names
            names = [item.name for item in map(store.references.get, (name._replace(digest=None), *names))
                     if item and name.digest in (item.source, item.descriptor.digest)] or names
    tops = {item.descriptor.digest for item in map(store.references.get, names) if item}
    return names + [item.name for item in store.references.all() if every and item.descriptor.digest in tops]


def do_gc(context: Context, flags: argparse.Namespace) -> None:
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", flags.keep)
    if match is None:
        raise InvalidReference("--keep must be a time such as 0, 90s, 30m, 24h or 7d")
    from ..store.gc import collectable, gc

    keep = int(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
    store = context.existing(context.store)
    if flags.dry_run:
        [collected] = collectable(store, keep, cancel=context.cancel)
    else:
        collected = gc(store, keep, progress=context.renderer, cancel=context.cancel)
    words = ("Would delete", "reclaimable") if flags.dry_run else ("Deleted", "reclaimed")
    context.answer(
        {"deleted": collected.blobs, "size": collected.size, "dry_run": flags.dry_run},
        ["%s: %s" % (words[0], digest) for digest in collected.blobs]
        + ["Total %s space: %s" % (words[1], human_size(collected.size))])


def do_save(context: Context, flags: argparse.Namespace) -> None:
    from ..archive.save import contents
    from ..store.compression import gzipped, packing

    settings, output = context.settings, flags.output
    names, bundle = stored_names(context.source, operands(flags.refs, ids=True)), settings.truth("bundle")
    if flags.without and not bundle:
        raise InvalidReference("--without is for --bundle")
    packed = packing(output or "", bundle) is gzipped
    write = context.write if flags.dry_run else context.tar_writer(output, "an archive")
    for base in flags.base if output and os.path.exists(output) else ():
        if os.path.exists(base) and os.path.samefile(base, output):
            raise InvalidReference("%s is a base, and can't be the output as well" % base)
    without = flags.without.split(",") if flags.without else []
    with contents(names, context.source, settings.platform, context.renderer, context.cancel,
                  flags.base, bundle, without, settings.truth("referrers")) as archive:
        if flags.dry_run:
            rows = _rows(archive.needed(), lambda digest, size: digest in archive.left_out)
            show_plan(context, rows, archive.size, packed)
        else:
            write(archive.pieces(context.cancel))


def _rows(images: Iterable[Tuple[str, Digest, Dict[Digest, int]]],
          there: Callable[[Digest, int], bool]) -> List[Row]:
    """The plans of images whose blobs go into an archive or a store, each for the first that needs it."""
    rows: List[Row] = []
    moved: Set[Digest] = set()
    for name, digest, blobs in images:
        new = {blob: size for blob, size in blobs.items() if blob not in moved and not there(blob, size)}
        moved.update(new)
        rows.append(row(name, digest, new, {blob: blobs[blob] for blob in set(blobs) - set(new)}, {}))
    return rows


def do_load(context: Context, flags: argparse.Namespace) -> None:
    from ..archive.load import load, needed

    if flags.file and flags.input:
        raise InvalidReference("FILE and -i FILE are the same; give one of them")
    named, store = flags.file or flags.input or carrier(), context.store
    file = "" if named == "-" else named
    if not file and (sys.stdin is None or sys.stdin.isatty()):
        raise InvalidReference("requested load from stdin, but stdin is empty; give -i FILE")
    if flags.dry_run:
        plans = needed(file or sys.stdin.buffer, store, context.cancel)
        show_plan(context, _rows(plans, store.content.has))
        return
    images = load(file or sys.stdin.buffer, store, keys=context.settings.verify_keys(),
                  progress=context.renderer, cancel=context.cancel)
    lines = ["Loaded image ID: %s" % image.id if image.name.name == UNNAMED.name else
             "Loaded image: %s" % image.name.familiar for image in images]
    if context.stream:
        for line in lines:
            context.stream.emit(stream=line + "\n")  # as the engine does
    context.answer([described(context.store, image) for image in images], lines)
