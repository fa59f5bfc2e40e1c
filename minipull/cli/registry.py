# SPDX-License-Identifier: Apache-2.0
"""The commands that speak to registries: pull, push, tags, manifest, digest."""
import argparse
import json
import sys
import threading
from typing import Any, Callable, Dict, List, Mapping

from ..distribution.pull import pull_options, pull_with
from ..distribution.pull_v2 import Pulled
from ..distribution.push import push_with, pushed_images
from ..errors import InvalidReference
from ..image import manifest
from ..reference import Reference
from ..registry.client import Client, over_endpoints
from ..registry.v2 import Repository
from .context import Context, described, reference, stripped


def do_pull(context: Context, flags: argparse.Namespace) -> int:
    """Pull all names at once; the code is that of the first name that failed."""
    names = [reference(text) for text in flags.refs]
    platform = flags.platform if flags.all_platforms else context.settings.platform
    options = pull_options(platform, flags.all_platforms, context.settings.truth("foreign"))
    for name in names:
        if flags.all_tags and (name.tag or name.digest):
            raise InvalidReference("tag can't be used with --all-tags/-a")
        _show_default_tag(context, flags, name)
    store, downloads, output = context.store, context.settings.downloads(), context.renderer
    results: Dict[Reference, List[Pulled]] = {name: [] for name in names}
    errors: Dict[Reference, BaseException] = {}

    with context.client([name.domain for name in names]) as client:

        def pull_one(name: Reference) -> None:
            try:
                for tagged in _all_tags(context, client, name) if flags.all_tags else [name]:
                    results[name].append(
                        pull_with(client, tagged, store, downloads, options, output, context.cancel))
            except BaseException as exc:
                errors[name] = exc

        threads = [threading.Thread(target=pull_one, args=(name,), daemon=True) for name in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if context.json:
        context.dump([dict(described(store, image), updated=updated)
                      for pulled in results.values() for image, updated in pulled])
    else:
        _show_pulled(context, flags, results, errors)
    codes = [context.failed(errors[name]) for name in results if name in errors]
    return codes[0] if codes else 0


def _all_tags(context: Context, client: Client, name: Reference) -> List[Reference]:
    """The name with each tag of its repository."""
    tags = over_endpoints(
        client, name, "list tags of %s" % name.name,
        lambda endpoint: client.session(endpoint, name).all_tags(context.cancel)
        if endpoint.version == 1 else client.repository(endpoint, name).tags(context.cancel),
        context.cancel, context.renderer, legacy=True)
    return [name.with_tag(tag) for tag in tags]


def _show_default_tag(context: Context, flags: argparse.Namespace, name: Reference) -> None:
    if not (context.json or context.quiet or flags.all_tags or name.tag or name.digest):
        context.show("Using default tag: latest")


def _show_pulled(context: Context, flags: argparse.Namespace, results: Mapping[Reference, List[Pulled]],
                 errors: Mapping[Reference, BaseException]) -> None:
    for name, pulled in results.items():
        for image, _ in pulled:
            context.show(str(image) if context.quiet else "Digest: %s" % image.source)
        if not context.quiet and name not in errors:
            news = any(updated for _, updated in pulled)
            status = "Downloaded newer image for" if news else "Image is up to date for"
            whole = name if flags.all_tags else name.docker_ref()
            context.show("Status: %s %s\n%s" % (status, whole.familiar, whole))


def do_push(context: Context, flags: argparse.Namespace) -> None:
    name, settings, store = reference(flags.ref), context.settings, context.source
    if settings.truth("legacy_schema1"):
        context.require("distribution.schema1")
    _show_default_tag(context, flags, name)
    dest = reference(flags.dest) if flags.dest else None
    images = pushed_images(stripped(flags.ref), store, dest, flags.all_tags)
    with context.client([images[0][1].domain]) as client:
        results = push_with(
            client, images, store, settings.uploads(), context.renderer, context.cancel,
            settings.size("chunk_size"), settings.truth("legacy_schema1"), settings.truth("foreign"))
    rows = [{
        "name": str(name), "tag": name.tag, "digest": top.digest, "size": top.size,
        "layers": [{"diff_id": layer.diff_id, "digest": layer.blob.digest,
                    "size": layer.blob.size, "result": layer.result} for layer in layers],
    } for name, top, layers in results]
    context.answer(rows, [
        "%s@%s" % (name.name, top.digest) if context.quiet else
        "%s: digest: %s size: %d" % (name.tag, top.digest, top.size) for name, top, _ in results])


def _ask(context: Context, name: Reference, subject: str, question: Callable[[Repository], Any]) -> Any:
    """The answer of the first endpoint that has one; ``subject`` begins the text of errors."""
    with context.client([name.domain]) as client:
        return over_endpoints(
            client, name, "%s %s" % (subject, name),
            lambda endpoint: question(client.repository(endpoint, name)), context.cancel, context.renderer)


def do_tags(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.repo)
    if name.tag or name.digest:
        raise InvalidReference("%s: want a repository, without tag or digest" % name.familiar)
    tags = _ask(context, name, "list tags of", lambda repository: repository.tags(context.cancel))
    context.answer([{"name": str(name.with_tag(tag)), "tag": tag} for tag in tags], tags)


def do_manifest(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.ref).docker_ref()
    received = _ask(context, name, "manifest", lambda repository: repository.manifest(
        str(name.digest or name.tag), context.cancel))
    if context.json:
        document = manifest.parse(received.raw, received.content_type)
        context.dump({
            "name": str(name), "digest": received.digest, "media_type": document.media_type,
            "size": len(received.raw), "manifest": json.loads(received.raw.decode())})
    elif sys.stdout is not None and sys.stdout.isatty():
        context.show(received.raw.decode("utf-8", "replace"))
    else:
        context.write(received.raw)


def do_digest(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.ref).docker_ref()
    target = str(name.digest or name.tag)

    def resolve(repository: Repository) -> str:
        """The digest by HEAD; by GET where HEAD has none, or to verify one that was given."""
        digest = None if name.digest else repository.resolve(target, context.cancel)
        return str(digest or repository.manifest(target, context.cancel).digest)

    digest = _ask(context, name, "digest of", resolve)
    context.answer({"name": str(name), "digest": digest}, [digest])
