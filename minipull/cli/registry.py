# SPDX-License-Identifier: Apache-2.0
"""The commands that speak to registries, one function each; see commands."""
import argparse
import json
import sys
import threading
from typing import Any, Callable, Dict, List

from ..distribution.copy import Options, copy_with
from ..distribution.places import Place
from ..distribution.pull import options, pull_with
from ..distribution.pull_v2 import Pulled
from ..distribution.push import push_with, pushed_images
from ..errors import InvalidReference, shown
from ..image import manifest
from ..image.platform import Platform
from ..reference import Reference
from ..registry.client import over_endpoints
from ..registry.v2 import Repository
from ..store.store import host_platform
from .context import Command, Context, described, reference, stripped


def _pull(context: Context, flags: argparse.Namespace) -> int:
    names = [reference(name) for name in flags.refs]
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
                        lambda endpoint: client.session(endpoint, name).all_tags(context.cancel)
                        if endpoint.version == 1 else client.repository(endpoint, name).tags(context.cancel),
                        context.cancel, output, legacy=True)
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
                shown.append(dict(described(store, image), updated=updated))
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


def _push(context: Context, flags: argparse.Namespace) -> None:
    name, text = reference(flags.ref), not (context.json or context.quiet)
    if text and not flags.all_tags and not name.tag and not name.digest:
        context.show("Using default tag: latest")
    store, dest = context.store, reference(flags.dest) if flags.dest else None
    what = pushed_images(stripped(flags.ref), store, dest, flags.all_tags)
    with context.client([what[0][1].domain]) as client:
        results = push_with(
            client, what, store, context.settings.uploads(), context.renderer, context.cancel,
            context.settings.size("chunk_size"), context.settings.truth("legacy_schema1"))
    context.renderer.finish()
    shown = []
    for pushed in results:
        top = pushed.descriptor
        shown.append({
            "name": str(pushed.name), "tag": pushed.name.tag, "digest": top.digest, "size": top.size,
            "layers": [{"diff_id": layer.diff_id, "digest": layer.blob.digest,
                        "size": layer.blob.size, "result": layer.result} for layer in pushed.layers]})
    context.answer(shown, [
        "%s@%s" % (pushed.name.name, pushed.descriptor.digest) if context.quiet else
        "%s: digest: %s size: %d" % (pushed.name.tag, pushed.descriptor.digest, pushed.descriptor.size)
        for pushed in results])


def _copy(context: Context, flags: argparse.Namespace) -> None:
    settings = context.settings
    try:
        source, target = Place.parse(flags.src), Place.parse(flags.dst)
    except InvalidReference as exc:
        raise exc.within("copy %s %s" % (shown(flags.src), shown(flags.dst))) from exc
    if settings.text("creds") or settings.text("registry_token"):
        settings.credentials(source.domains + target.domains)  # for one registry, not for two
    wanted = Options([Platform.parse(text, host_platform()) for text in flags.platform or ()],
                     flags.format or "", flags.referrers, settings.size("chunk_size"))
    with context.client(source.domains, "src") as here, context.client(target.domains, "dest") as there:
        copied = copy_with(source, target, (here, there), context.store, wanted, settings.uploads(),
                           context.renderer, context.cancel)
    context.renderer.finish()
    for each in copied:
        context.show(each.descriptor.digest if context.quiet else "Digest: %s" % each.descriptor.digest)
    if not context.quiet:
        context.show("Status: Copied %s to %s" % (flags.src, flags.dst))


def _ask(context: Context, name: Reference, what: str, work: Callable[[Repository], Any]) -> Any:
    with context.client([name.domain]) as client:
        return over_endpoints(
            client, name, "%s %s" % (what, name),
            lambda endpoint: work(client.repository(endpoint, name)), context.cancel, context.renderer)


def _tags(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.repo)
    if name.tag or name.digest:
        raise InvalidReference("%s: want a repository, without tag or digest" % name.familiar)
    tags = _ask(context, name, "list tags of", lambda source: source.tags(context.cancel))
    context.answer([{"name": str(name.with_tag(tag)), "tag": tag} for tag in tags], tags)


def _manifest(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.ref).docker_ref()
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
    name = reference(flags.ref).docker_ref()
    wanted = str(name.digest or name.tag)

    def ask(source: Repository) -> str:
        found = None if name.digest else source.resolve(wanted, context.cancel)
        return str(found or source.manifest(wanted, context.cancel).digest)

    digest = _ask(context, name, "digest of", ask)
    context.answer({"name": str(name), "digest": digest}, [digest])


COMMANDS: Dict[str, Command] = {
    "pull": _pull, "push": _push, "copy": _copy, "tags": _tags, "manifest": _manifest, "digest": _digest}
