# SPDX-License-Identifier: Apache-2.0
"""The commands, one function each.

A command writes its results by way of its :class:`Context`; it returns an exit
code, or None for 0, or raises.
"""
import argparse
import json
import re
import sys
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence

from . import manifest
from .check import UNVERIFIED, check
from .collect import gc
from .context import Command, Context
from .distribution import options, over_endpoints, pull_with
from .errors import InvalidReference, StorageError
from .image import Image
from .manifest import Manifest
from .pull_v2 import Pulled
from .reference import Reference
from .render import human_size
from .repository import Repository
from .store import Store

DAMAGED = "damaged; rm the images, gc --keep 0, and pull them again"


def _pull(context: Context, flags: argparse.Namespace) -> int:
    names = [_reference(name) for name in flags.refs]
    quiet = context.quiet and not context.json
    text = not (context.json or quiet)
    platform = flags.platform if flags.all_platforms else context.settings.platform
    wanted = options(platform, flags.all_platforms, context.settings.truth("foreign"))
    for name in names:
        if flags.all_tags and (name.tag or name.digest):
            raise InvalidReference("tag can't be used with --all-tags/-a")
        if text and not flags.all_tags and not name.tag and not name.digest:
            context.show("Using default tag: latest")
    store, downloads, output = context.store, context.settings.downloads(), context.renderer
    results: Dict[Reference, List[Pulled]] = {name: [] for name in names}
    errors: Dict[Reference, BaseException] = {}

    with context.client([name.domain for name in names]) as client:

        def one(name: Reference) -> None:
            try:
                found = [name]
                if flags.all_tags:
                    tags = over_endpoints(
                        client, name, "list tags of %s" % name.name,
                        lambda source: source.tags(context.cancel), context.cancel)
                    found = [name.with_tag(tag) for tag in tags]
                for each in found:
                    results[name].append(
                        pull_with(client, each, store, downloads, wanted, output, context.cancel))
            except BaseException as exc:
                errors[name] = exc

        threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    output.finish()
    shown = []
    for name, pulled in results.items():
        for image, updated in pulled:
            if quiet:
                context.show(str(image))
            elif context.json:
                shown.append(dict(_row(store, image), updated=updated))
            else:
                context.show("Digest: %s" % image.source)
        if text and name not in errors:
            news = any(each.updated for each in pulled)
            status = "Downloaded newer image for" if news else "Image is up to date for"
            whole = name if flags.all_tags else name.docker_ref()
            context.show("Status: %s %s\n%s" % (status, whole.familiar, whole))
    if context.json:
        context.dump(shown)
    failed = [context.failed(errors[name]) for name in results if name in errors]
    return failed[0] if failed else 0


def _ask(context: Context, name: Reference, what: str, work: Callable[[Repository], Any]) -> Any:
    with context.client([name.domain]) as client:
        return over_endpoints(client, name, "%s %s" % (what, name), work, context.cancel)


def _tags(context: Context, flags: argparse.Namespace) -> None:
    name = _reference(flags.repo)
    if name.tag or name.digest:
        raise InvalidReference("%s: want a repository, without tag or digest" % name.familiar)
    tags = _ask(context, name, "list tags of", lambda source: source.tags(context.cancel))
    context.answer([{"name": str(name.with_tag(tag)), "tag": tag} for tag in tags], tags)


def _manifest(context: Context, flags: argparse.Namespace) -> None:
    name = _reference(flags.ref).docker_ref()
    wanted = str(name.digest or name.tag)
    received = _ask(
        context, name, "manifest", lambda source: source.manifest(wanted, context.cancel))
    if context.json:
        document = manifest.parse(received.raw, received.content_type)
        context.dump({
            "name": str(name), "digest": received.digest, "media_type": document.media_type,
            "size": len(received.raw), "manifest": json.loads(received.raw.decode())})
    elif sys.stdout is not None and sys.stdout.isatty():
        context.show(received.raw.decode("utf-8", "replace"))
    else:
        context.write(received.raw)


def _digest(context: Context, flags: argparse.Namespace) -> None:
    name = _reference(flags.ref).docker_ref()
    wanted = str(name.digest or name.tag)

    def ask(source: Repository) -> str:
        found = None if name.digest else source.resolve(wanted, context.cancel)
        return str(found or source.manifest(wanted, context.cancel).digest)

    digest = _ask(context, name, "digest of", ask)
    context.answer({"name": str(name), "digest": digest}, [digest])


def _images(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    with store.using(context.cancel):
        rows = [_row(store, image) for image in store.images()]
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
        image = store.image(_stripped(flags.ref))
        document = store.document(image.descriptor)
        shown = dict(_row(store, image), source=image.source, media_type=document.media_type)
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
        image = store.image(_stripped(flags.src))
        name = _reference(flags.dst).with_default_tag()
        store.tag(name, image, context.cancel)
        if context.json:
            context.dump([_row(store, image._replace(name=name))])


def _rm(context: Context, flags: argparse.Namespace) -> None:
    store = context.store
    removed = []
    for text in flags.refs:
        name = store.image(_stripped(text)).name if _is_id(text) else _reference(text).docker_ref()
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
    tops = [store.image(_stripped(name)).descriptor for name in flags.refs]
    problems = check(store, context.cancel, tops)
    ok = all(problem.kind == UNVERIFIED for problem in problems)
    context.answer(
        {"ok": ok, "problems": [problem._asdict() for problem in problems]},
        ["%s: %s: %s" % problem for problem in problems]
        + ["%s: %s" % (store.root, "ok" if ok else DAMAGED)])
    return 0 if ok else StorageError.exit_code


def _stripped(text: str) -> str:
    return text[len("docker://"):] if text.startswith("docker://") else text


def _is_id(text: str) -> bool:
    return re.fullmatch(r"sha256:[0-9a-f]{6,64}|[0-9a-f]{12,64}", text) is not None


def _reference(text: str) -> Reference:
    try:
        return Reference.parse(_stripped(text))
    except InvalidReference as exc:
        raise exc.within(ascii(text)[1:-1][:300] or "''") from exc


def _row(store: Store, image: Image) -> Dict[str, Any]:
    config = image.config
    return {
        "name": str(image.name), "digest": image.source, "image_id": image.id,
        "platform": str(config.platform) if config else "",
        "size": store.size(image.descriptor), "created": config.created if config else ""}


COMMANDS: Dict[str, Command] = {
    "pull": _pull, "tags": _tags, "manifest": _manifest, "digest": _digest, "images": _images,
    "inspect": _inspect, "tag": _tag, "rm": _rm, "gc": _gc, "check": _check}
