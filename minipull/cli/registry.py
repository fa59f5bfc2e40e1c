# SPDX-License-Identifier: Apache-2.0
"""The commands that speak to registries: pull, push, tags, manifest, digest."""
import argparse
import itertools
import re
import json
from typing import TYPE_CHECKING, Callable, Dict, Iterable, List, Mapping, Set, Tuple

from ..digest import Digest
from ..distribution.ask import created_at, digest_with, document_for, tags_with
from ..errors import Cancelled, Error, InvalidReference, RateLimited, Unauthorized
from ..image.config import Image
from ..parts import futures
from ..progress import Progress
from ..reference import Reference, version
from ..registry.client import Client
from ..registry.errors import RegistryError
from ..registry.v2 import Received, Repository
from ..store.references import Association
from ..store.store import IMAGE_ID, platform_of
from .context import Context, described, reference
from .lines import aligned
from .lists import Operand, expanded, image_tags, operands, stored_tags
from .plan import Row, row, show_plan

if TYPE_CHECKING:
    from ..distribution.pull_v2 import Pulled
    from ..distribution.push_v2 import Pushed

MAX_PULLS = 16  # images at once; their layers wait for --jobs
MAX_QUESTIONS = 8  # at once


def do_pull(context: Context, flags: argparse.Namespace) -> int:
    """Pull all names at once; the code is that of the first name that failed."""
    from ..distribution.naming import tell_of_move
    from ..distribution.pull import pull_options, pull_with

    items = operands(flags.refs)
    platform = flags.platform if flags.all_platforms else context.settings.platform
    options = pull_options(platform, flags.all_platforms, context.settings.truth("foreign"),
                           context.settings.truth("referrers"), context.settings.verify_keys())
    store, downloads, output = context.store, context.settings.downloads(), context.renderer
    errors: Dict[Reference, BaseException] = {}

    with context.client(_domains(items)) as client:
        names = _names(context, client, items, image_tags)
        tagged_names = [name.with_default_tag() for name in names]
        for name in names:
            if flags.all_tags and (name.tag or name.digest):
                raise InvalidReference("tag can't be used with --all-tags/-a")
            if name.tag and name.digest and name._replace(digest=None) in tagged_names:
                raise InvalidReference("%s:%s is asked for with and without a digest" % (name.name, name.tag))
            _show_default_tag(context, flags, name)
        results: Dict[Reference, List[Pulled]] = {name: [] for name in names}
        rows: List[Row] = []
        planned: Set[Digest] = set()

        def pull_one(name: Reference) -> None:
            try:
                tags = sorted(image_tags(tags_with(client, name, output, context.cancel)),
                              key=version) if flags.all_tags else []
                for tagged in map(name.with_tag, tags) if flags.all_tags else [name]:
                    if flags.dry_run:
                        from ..distribution.plan import plan_pull

                        rows.append(row(*plan_pull(
                            client, tagged, store, options, planned, output, context.cancel)))
                        continue
                    pulled = pull_with(client, tagged, store, downloads, options, output, context.cancel)
                    if name.tag and name.digest:  # a pin: by its digest, and then the tag moves to it
                        image = pulled.image._replace(name=name._replace(digest=None))
                        former = store.references.get(image.name)
                        store.tag(image.name, image, context.cancel)
                        tell_of_move(store, former, Association(*image[:3]), output)
                        pulled = pulled._replace(image=image)
                    results[name].append(pulled)
            except BaseException as exc:
                errors[name] = exc

        if flags.dry_run or len(names) == 1:
            for name in names:
                pull_one(name)
        else:
            with futures.ThreadPoolExecutor(MAX_PULLS) as pool:
                list(pool.map(pull_one, names))
    if flags.dry_run:
        show_plan(context, rows)
    else:
        _show_pulled(context, results, errors, flags.all_tags or len(results) > 1)
    if context.json and not flags.dry_run:
        context.dump([dict(described(store, image), updated=updated, **context.quota(image.name))
                      for pulled in results.values() for image, updated in pulled])
    codes = [context.failed(errors[name]) for name in results if name in errors]
    return codes[0] if codes else 0


def _domains(items: Iterable[Operand]) -> List[str]:
    return [item.name.domain for item in items if item.name]


def _names(context: Context, client: Client, items: Iterable[Operand],
           chosen: Callable[[Iterable[str]], List[str]] = list) -> List[Reference]:
    """The references of a command, with the tags that a registry has for globs."""
    texts = expanded(items, lambda prefix, name: chosen(tags_with(
        client, name, context.renderer, context.cancel)))
    return [reference(text) for text in texts]


def _show_default_tag(context: Context, flags: argparse.Namespace, name: Reference) -> None:
    if not (context.json or context.quiet or flags.dry_run or flags.all_tags or name.tag or name.digest):
        context.show("Using default tag: latest")


def _show_pulled(context: Context, results: "Mapping[Reference, List[Pulled]]",
                 errors: Mapping[Reference, BaseException], many: bool) -> None:
    """Print one image as docker does, and each of many as one line with its name and digest.

    The engine's stream has two lines for each, whatever goes to stdout.
    """
    for name, pulled in results.items():
        for image, updated in pulled:
            status = "Status: %s for" % ("Downloaded newer image" if updated else "Image is up to date")
            whole = name.with_default_tag()
            context.status(
                "Digest: %s" % image.source, "%s %s" % (status, (image.name if many else whole).familiar))
            if context.json:
                continue
            if context.quiet:
                context.show(str(image))
            elif many:
                context.show("%s %s" % (status, image.name.with_digest(image.source)))
            elif name not in errors:
                context.show("Digest: %s\n%s %s\n%s" % (image.source, status, whole.familiar, whole))


def do_push(context: Context, flags: argparse.Namespace) -> int:
    """Push images, repository by repository; the code is that of the first that failed."""
    from ..distribution.push import push_with, pushed_images

    settings, store = context.settings, context.source
    items = operands([flags.ref], ids=bool(flags.dest))
    texts = expanded(items, lambda prefix, name: stored_tags(store, name))
    if settings.truth("legacy_schema1"):
        context.require("distribution.schema1")
    dest = reference(flags.dest) if flags.dest else None
    if dest and len(texts) > 1 and (dest.tag or len({item.name and item.name.name for item in items}) > 1):
        raise InvalidReference("DEST is for one image, or without a tag for those of one repository")
    groups: Dict[str, List[Tuple[Image, Reference]]] = {}
    for text in texts:
        if not re.fullmatch(IMAGE_ID, text):
            _show_default_tag(context, flags, reference(text))
        for image, target in pushed_images(text, store, dest, flags.all_tags):
            groups.setdefault(target.name, []).append((image, target))
    results: List[Pushed] = []
    codes = []
    many = sum(map(len, groups.values())) > 1
    with context.client([images[0][1].domain for images in groups.values()]) as client:
        uploads, options = settings.uploads(), (settings.size("chunk_size"), settings.truth("foreign"))
        if flags.dry_run:
            from ..distribution.plan import plan_push

            plans = plan_push(
                client, groups.values(), store, uploads, context.renderer, context.cancel, *options)
            show_plan(context, [row(*plan) for plan in plans])
            return 0

        def told(pushed: "Pushed") -> None:
            results.append(pushed)
            if not pushed.by_v1:
                name, top = pushed[:2]
                context.status("%s: digest: %s size: %d" % (name.tag, top.digest, top.size))
                context.renderer(Progress(aux={"Tag": name.tag, "Digest": top.digest, "Size": top.size}))

        for images in groups.values():
            try:
                push_with(client, images, store, told, uploads, context.renderer, context.cancel,
                          options[0], settings.truth("legacy_schema1"), options[1])
            except Error as exc:
                codes.append(context.failed(exc))
    rows = [{
        "name": str(name), "tag": name.tag, "digest": "" if by_v1 else top.digest, "size": top.size,
        "layers": [{"diff_id": layer.diff_id, "digest": layer.blob.digest,
                    "size": layer.blob.size, "result": layer.result} for layer in layers],
    } for name, top, layers, by_v1 in results]
    context.answer(rows, [
        str(name) if by_v1 else "%s@%s" % (name.name, top.digest) if context.quiet else
        "%s: digest: %s size: %d" % (name if many else name.tag, top.digest, top.size)
        for name, top, _, by_v1 in results])
    return codes[0] if codes else 0


def do_tags(context: Context, flags: argparse.Namespace) -> None:
    name = reference(flags.repo)
    if name.tag or name.digest:
        raise InvalidReference("%s: want a repository, without tag or digest" % name.familiar)
    with context.client([name.domain]) as client:
        tags = sorted(tags_with(client, name, context.renderer, context.cancel), key=version)
        dates: List[str] = []
        if flags.created:
            with futures.ThreadPoolExecutor(MAX_QUESTIONS) as pool:
                dates += pool.map(lambda tag: _created(context, client, name.with_tag(tag)), tags)
    rows = ({"name": str(name.with_tag(tag)), "tag": tag, **({"created": created} if dates else {})}
            for tag, created in itertools.zip_longest(tags, dates))
    context.answer(rows, aligned([(tag, created or "-") for tag, created in zip(tags, dates)]) if dates else tags)


def _created(context: Context, client: Client, name: Reference) -> str:
    """The date of an image, of an index of that for this host or else the first; empty if it can't be read."""
    try:
        return context.ask(name, "created of %s" % (name,), lambda repository: created_at(
            repository, repository.manifest(name.tag, context.cancel), context.cancel), client)
    except (RateLimited, Cancelled):
        raise  # as it would be for the others
    except Error as exc:
        # A password that is refused for one would be for the others too, and these lock an account.
        if isinstance(exc, Unauthorized) and not (isinstance(exc, RegistryError) and exc.status == 403):
            raise
        context.alert(str(exc))
        return ""


def do_manifest(context: Context, flags: argparse.Namespace) -> None:
    name, platform = reference(flags.ref).docker_ref(), platform_of(flags.platform)

    def asked(repository: Repository) -> Received:
        received = repository.manifest(str(name.digest or name.tag), context.cancel)
        if platform is None:
            return received
        document = document_for(repository, received, platform, context.cancel)
        return Received(document.raw, document.media_type, document.digest)

    received = context.ask(name, "manifest %s" % (name,), asked)
    if context.json:
        document = received.document()
        context.dump(dict({
            "name": str(name), "digest": received.digest, "media_type": document.media_type,
            "size": len(received.raw), "manifest": json.loads(received.raw.decode())}, **context.quota(name)))
    else:
        context.show_document(received.raw)


def do_digest(context: Context, flags: argparse.Namespace) -> None:
    items, platform = operands(flags.refs, all_tags=flags.all_tags), platform_of(flags.platform)
    rows = []
    with context.client(_domains(items)) as client:
        for name in _names(context, client, items):
            digest = digest_with(client, name, platform, context.renderer, context.cancel)
            pin = {"pin": str(name.with_default_tag().with_digest(digest))} if flags.pin else {}
            rows.append(dict({"name": str(name.docker_ref()), "digest": digest}, **pin, **context.quota(name)))
    one = len(flags.refs) == 1 and not (items[0].line or items[0].pattern)
    context.answer(rows[0] if one else rows, [row["pin" if flags.pin else "digest"] for row in rows])
