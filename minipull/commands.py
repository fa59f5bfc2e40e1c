# SPDX-License-Identifier: Apache-2.0
"""The commands on the store, one function each.

A command writes its results by way of its :class:`Context`; it returns an exit
code, or None for 0, or raises.
"""
import argparse
import json
import re
from typing import Dict, Optional, Sequence

from .check import UNVERIFIED, check
from .collect import gc
from .context import Command, Context, described, reference, stripped
from .errors import InvalidReference, StorageError
from .manifest import Manifest
from .render import human_size

DAMAGED = "damaged; rm the images, gc --keep 0, and pull them again"


def _images(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    with store.using(context.cancel):
        rows = [described(store, image) for image in store.images()]
    table = [("NAME", "IMAGE ID", "PLATFORM", "CREATED", "SIZE")]
    for row in rows:
        short = row["image_id"].partition(":")[2][:12]
        size = human_size(row["size"])
        table.append((row["name"], short, row["platform"] or "-", row["created"][:10] or "-", size))
    widths = [max(len(line[column]) for line in table) for column in range(4)] + [0]
    context.answer(rows, [
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in table])


def _inspect(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    with store.using(context.cancel):
        image = store.image(stripped(flags.ref))
        document = store.document(image.descriptor)
        shown = dict(described(store, image), source=image.source, media_type=document.media_type)
        if isinstance(document, Manifest):
            diff_ids: Sequence[Optional[str]] = image.config.diff_ids if image.config else ()
            shown["layers"] = [
                dict(layer.to_json(), diff_id=diff_id)
                for layer, diff_id in zip(
                    document.layers, list(diff_ids) + [None] * len(document.layers))]
            shown["config"] = json.loads(image.config.raw.decode()) if image.config else None
        else:
            shown["manifests"] = [child.to_json() for child in document.manifests]
    context.dump(shown)


def _tag(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    with store.using(context.cancel):
        image = store.image(stripped(flags.src))
        name = reference(flags.dst).with_default_tag()
        store.tag(name, image, context.cancel)
        if context.json:
            context.dump([described(store, image._replace(name=name))])


def _rm(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    removed = []
    for text in flags.refs:
        name = store.image(stripped(text)).name if _is_id(text) else reference(text).docker_ref()
        store.remove(name, context.cancel)
        removed.append({"name": str(name)})
        if not context.json:
            context.show("Untagged: %s" % name.familiar)
    context.answer(removed, [])


def _gc(context: Context, flags: argparse.Namespace) -> None:
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", flags.keep)
    if match is None:
        raise InvalidReference("--keep must be a time such as 0, 90s, 30m, 24h or 7d")
    keep = int(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
    collected = gc(context.store, keep, context.cancel)
    context.answer(
        {"deleted": collected.blobs, "size": collected.size},
        ["Deleted: %s" % digest for digest in collected.blobs]
        + ["Total reclaimed space: %s" % human_size(collected.size)])


def _check(context: Context, flags: argparse.Namespace) -> int:
    store = context.store
    tops = [store.image(stripped(name)).descriptor for name in flags.refs]
    problems = check(store, context.cancel, tops)
    ok = all(problem.kind == UNVERIFIED for problem in problems)
    context.answer(
        {"ok": ok, "problems": [problem._asdict() for problem in problems]},
        ["%s: %s: %s" % problem for problem in problems]
        + ["%s: %s" % (store.root, "ok" if ok else DAMAGED)])
    return 0 if ok else StorageError.exit_code


def _is_id(text: str) -> bool:
    return re.fullmatch(r"sha256:[0-9a-f]{6,64}|[0-9a-f]{12,64}", text) is not None


COMMANDS: Dict[str, Command] = {
    "images": _images, "inspect": _inspect, "tag": _tag, "rm": _rm, "gc": _gc, "check": _check}
