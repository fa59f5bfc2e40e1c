# SPDX-License-Identifier: Apache-2.0
"""The commands on the store: images, inspect, tag, rm, gc, check, save, load."""
import argparse
import itertools
import json
import os
import re
import sys
from typing import Any, Callable, Dict, Iterable, List, Set, Tuple

from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument, InvalidReference, NotFound, StorageError
from ..image.descriptor import Descriptor
from ..image.manifest import Manifest
from ..image.platform import Platform
from ..parts import carrier
from ..progress import human_size
from ..reference import Reference
from ..store.check import HARMLESS, REBUILT, REPAIRED, Problem, check, check_images, remedy, repair
from ..store.gc import gc
from ..store.references import UNNAMED, Association
from ..store.store import IMAGE_ID, ImageSource, Store, host_platform
from .context import Context, described, reference, stripped
from .lists import ABSENT, DIFFERS, EXTRA, Operand, compared, expanded, operands, read_pins, stored_tags
from .plan import Row, row, show_plan
from .render import aligned

#: A store or archive, its problems, the word for these, and the exit code if they are damage.
Checked = Tuple[str, List[Problem], str, int]


def do_images(context: Context, flags: argparse.Namespace) -> None:
    store = context.existing(context.source)
    with store.reading(context.cancel):
        images = store.images(context.alert)
        rows = [described(store, image) for image in images]
        hidden = [not (flags.all or image.config) and store.subject(image.name, image.descriptor)
                  for image in images]
    table = [("NAME", "IMAGE ID", "PLATFORM", "CREATED", "SIZE")]
    for row in (row for row, subject in zip(rows, hidden) if not subject):
        short = row["image_id"].partition(":")[2][:12]
        size = human_size(row["size"])
        table.append((row["name"], short, row["platform"] or "-", row["created"][:10] or "-", size))
    context.answer(rows, aligned(table))


def do_inspect(context: Context, flags: argparse.Namespace) -> None:
    if flags.ref.startswith("docker://"):
        from .ask import inspected

        inspected(context, flags)
        return
    store = context.source
    with store.reading(context.cancel):
        try:
            image = store.image(flags.ref)
        except NotFound as exc:
            raise NotFound("%s; docker://%s asks the registry" % (exc, flags.ref)) from exc
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
        if context.json:
            context.dump([described(store, image._replace(name=name))])


def _stored_names(store: ImageSource, texts: Iterable[str]) -> List[str]:
    """References and image IDs as typed, with lists and globs expanded."""
    return _expanded(store, operands(texts, ids=True))


def _expanded(store: ImageSource, items: Iterable[Operand]) -> List[str]:
    return expanded(items, lambda prefix, name: stored_tags(store, name))


def do_rm(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    removed: Dict[Reference, None] = {}
    for text in _stored_names(store, flags.refs):
        removed.update(dict.fromkeys(_names(store, text, flags.all_names)))
    store.remove(*removed, cancel=context.cancel)
    context.answer([{"name": str(name)} for name in removed],
                   ["Untagged: %s" % name.familiar for name in removed])


def _names(store: Store, text: str, every: bool) -> List[Reference]:
    """The names to forget for a reference or image ID: the one that is meant, or ``every`` name of its image."""
    if IMAGE_ID.fullmatch(text):
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
    keep = int(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
    collected = gc(context.existing(context.store), keep, context.cancel)
    context.answer(
        {"deleted": collected.blobs, "size": collected.size},
        ["Deleted: %s" % digest for digest in collected.blobs]
        + ["Total reclaimed space: %s" % human_size(collected.size)])


def do_check(context: Context, flags: argparse.Namespace) -> int:
    if flags.pins:
        return _check_pins(context, flags)
    code = 0
    archives = [name for name in flags.refs if os.path.isfile(name) or name[:1] in ("/", ".")]  # no reference
    remote: List[str] = []
    items = operands([name for name in flags.refs if name not in archives], ids=True, remote=remote)
    results = [_check_archive(context, path) for path in archives]
    results += [_check_remote(context, name, flags.deep) for name in remote]
    if items or not results:
        results.append(_check_root(context, _expanded(context.source, items) if items else [], flags.repair))
    lines = []
    for subject, problems, damage, failed in results:
        ok = all(problem.kind in HARMLESS for problem in problems)
        code = code if ok else failed
        lines += ["%s: %s: %s" % problem for problem in problems]
        lines.append("%s: %s" % (subject, "ok" if ok else damage))
    answer: Dict[str, Any] = {"ok": not code, "problems": []}
    for _, problems, _, _ in results:
        for problem in problems:
            key = problem.kind if problem.kind in (REBUILT, REPAIRED) else "problems"
            answer.setdefault(key, []).append(problem._asdict())
    context.answer(answer, lines)
    return code


def _check_archive(context: Context, path: str, in_place: bool = False) -> Checked:
    from ..archive.check import check_archive

    zstd = context.settings.store().layers.zstd
    problems = check_archive(path, context.cancel, zstd, context.warn, in_place)
    return path, problems, "damaged", InvalidDocument.exit_code


def _check_remote(context: Context, name: str, deep: bool) -> Checked:
    from .ask import checked

    return name, checked(context, name, deep), "damaged", InvalidDocument.exit_code


def _check_root(context: Context, names: List[str], repairing: bool) -> Checked:
    """Check the store, or the archive in its place, or images in it."""
    root = context.settings.store().root
    if os.path.isfile(root) and not repairing:
        if not names:
            return _check_archive(context, root, in_place=True)
        problems = check_images(context.source, [_top(context.source, name) for name in names], context.cancel)
        return root, problems, "damaged", InvalidDocument.exit_code
    store = context.existing(context.store, needed=True)
    problems = check(store, context.cancel, [_top(store, name) for name in names])
    moves: List[Problem] = []
    try:
        moves = repair(store, problems, context.cancel) if repairing else []
    except StorageError as exc:
        problems.append(Problem(".", "repair", str(exc)))
    return store.root, problems + moves, remedy(problems, moves), StorageError.exit_code


def _check_pins(context: Context, flags: argparse.Namespace) -> int:
    """Check that the store, or an archive, has what is pinned, whole, and nothing else.

    The code is 3 if all that is wrong are pinned names that are not there, 6 if names differ
    or there are more, and that of check for damage.
    """
    pins, cancel = read_pins(flags.pins), context.cancel
    if len(flags.refs) > 1 or flags.repair:
        raise InvalidReference("--pins is for the store or one archive, without --repair")
    source = context.archive(flags.refs[0]) if flags.refs else context.existing(
        context.source, needed=True)
    with source.reading(cancel):
        problems, tops = compared(source, pins)
        problems += check_images(source, tops, cancel)
    kinds = {problem.kind for problem in problems} - HARMLESS
    of_names = kinds <= {ABSENT, DIFFERS, EXTRA}
    damage = InvalidDocument.exit_code if flags.refs or of_names else StorageError.exit_code
    lines = ["%s: %s: %s" % problem for problem in problems]
    lines.append("%s: %s" % (source.root, "not what is pinned" if kinds else "ok"))
    context.answer({"ok": not kinds, "problems": [problem._asdict() for problem in problems]}, lines)
    return 0 if not kinds else NotFound.exit_code if kinds == {ABSENT} else damage


def _top(store: ImageSource, name: str) -> Descriptor:
    """The manifest or index of an image, which may be damaged."""
    try:
        return store.image(name).descriptor
    except NotFound as exc:
        raise NotFound("%s; there is no such file either" % exc) from exc
    except (ContentMismatch, InvalidDocument, StorageError):
        association = store.references.find(reference(name).with_default_tag())
        if association is None:
            raise
        return association.descriptor


def do_save(context: Context, flags: argparse.Namespace) -> None:
    from ..archive.save import contents, write_file

    settings, output = context.settings, flags.output
    names, bundle = _stored_names(context.source, flags.refs), settings.truth("bundle")
    if flags.without and not bundle:
        raise InvalidReference("--without is for --bundle")
    if not output and not flags.dry_run and sys.stdout is not None and sys.stdout.isatty():
        raise InvalidReference("refusing to write an archive to a terminal; redirect stdout or give -o FILE")
    for base in flags.base if output and os.path.exists(output) else ():
        if os.path.exists(base) and os.path.samefile(base, output):
            raise InvalidReference("%s is a base, and can't be the output as well" % base)
    without = flags.without.split(",") if flags.without else []
    with contents(names, context.source, settings.platform, context.renderer, context.cancel,
                  flags.base, bundle, without, settings.truth("referrers")) as archive:
        if flags.dry_run:
            rows = _rows(archive.needed(), lambda digest, size: digest in archive.left_out)
            show_plan(context, rows, archive.size)
        elif output:
            write_file(output, archive.pieces(context.cancel))
        else:
            context.write(archive.pieces(context.cancel))


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

    file, store = flags.input or carrier(), context.store
    if not file and (sys.stdin is None or sys.stdin.isatty()):
        raise InvalidReference("requested load from stdin, but stdin is empty; give -i FILE")
    if flags.dry_run:
        plans = needed(file or sys.stdin.buffer, store, context.cancel)
        show_plan(context, _rows(plans, store.content.has))
        return
    images = load(file or sys.stdin.buffer, store, keys=context.settings.verify_keys(),
                  progress=context.renderer, cancel=context.cancel)
    context.answer([described(context.store, image) for image in images], [
        "Loaded image ID: %s" % image.id if image.name.name == UNNAMED.name else
        "Loaded image: %s" % image.name.familiar for image in images])
