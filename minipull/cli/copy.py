# SPDX-License-Identifier: Apache-2.0
"""The command copy: images from place to place."""
import argparse
from typing import List

from ..distribution.ask import tags_with
from ..distribution.copy import Copies
from ..distribution.job import Options, Outcome
from ..distribution.places import Place
from ..errors import Error, InvalidReference, shown, within
from ..image.platform import Platform
from ..store.store import host_platform
from .context import Context
from .lists import expanded, image_tags, named_image, operands, stored_tags
from .plan import Row, row, sentence, total


def do_copy(context: Context, flags: argparse.Namespace) -> int:
    """Copy all sources; the code is that of the first image that failed."""
    settings = context.settings
    rows: List[Row] = []
    errors: List[Error] = []
    target = _place(flags.dst)
    items = operands(flags.srcs, True, flags.all_tags)
    domains = [item.name.domain for item in items if item.name and item.prefix == "docker://"]
    if settings.text("creds") or settings.text("registry_token"):
        context.access.credentials(domains + target.domains)  # for one registry, not for two
    options = _options(context, flags)
    stored = any(item.prefix == "store:" for item in items)
    store = context.store if target.kind == "store" else context.source if stored else settings.store()

    def told(outcome: Outcome) -> None:
        rows.append(_row(outcome))
        if outcome.error is not None:
            errors.append(outcome.error)
            context.failed(outcome.error)
            return
        context.status(_line(rows[-1], copies.many, False))
        if not context.json:
            context.show(_line(rows[-1], copies.many, context.quiet))

    with context.client(domains, "src") as reader, context.client(target.domains, "dest") as writer:
        texts = expanded(items, lambda prefix, name: _chosen(
            options, stored_tags(store, name) if prefix == "store:" else tags_with(
                reader, name, context.renderer, context.cancel)))
        sources = [_place(named_image(store, text)) for text in texts]
        copies = Copies(
            (reader, writer), store, options, settings.uploads(), context.renderer, context.cancel)
        try:
            copies.run(sources, target, told, texts != flags.srcs)
        except Error as exc:
            if exc not in errors:
                errors.append(exc)
                context.failed(exc)
    if context.json and copies.planned:
        context.dump({"images": rows, "total": total(rows)} if options.dry_run else rows)
    elif options.dry_run and copies.planned:
        context.show(sentence(total(rows)))
    elif copies.many and copies.planned and not context.quiet:
        context.show(_summary(rows, copies.planned))
    elif not errors and not context.quiet:
        status = "Status: %s" % ("%s is there already" % flags.dst if rows[0]["result"] == "there" else
                                 "Copied %s to %s" % (flags.srcs[0], flags.dst))
        context.status(status)
        context.show(status)
    return errors[0].exit_code if errors else 0


def _chosen(options: Options, tags: List[str]) -> List[str]:
    """Leave out the tags of referrers where those would be refused: docker has none, and none is signed."""
    return image_tags(tags) if options.format == "docker" or options.keys else tags


def _options(context: Context, flags: argparse.Namespace) -> Options:
    settings = context.settings
    formats = {flags.format or "", settings.text("convert")} - {"", "text", "json"}
    if len(formats) > 1:
        raise InvalidReference("--format and --convert differ")
    return Options(
        [Platform.parse(text, host_platform()) for text in flags.platform or ()], "".join(formats),
        settings.truth("referrers"), settings.size("chunk_size"), settings.truth("foreign"),
        settings.text("compress"), settings.verify_keys(), dry_run=settings.truth("dry_run"),
        no_clobber=settings.truth("no_clobber"), keep_going=settings.truth("keep_going"))


def _place(text: str) -> Place:
    """Parse one of the operands; raises InvalidReference, which quotes it."""
    with within("copy %s" % (shown(text) or "''")):
        return Place.parse(text)


def _row(outcome: Outcome) -> Row:
    """The outcome of one image in JSON output."""
    members = {"source": outcome.source.written, "target": outcome.target.written, "result": outcome.result,
               "source_digest": outcome.copied and outcome.copied.source}
    if outcome.error is not None:
        members["error"] = str(outcome.error)
    return dict(row(outcome.target.image, outcome.digest or "", *outcome.sizes), **members)


def _line(row: Row, many: bool, quiet: bool) -> str:
    name = "%s@%s" % (row["name"].partition("@")[0], row["digest"])
    if row["result"] == "would copy":
        return "%s: %s" % (name, sentence(row))
    if quiet and not many:
        return str(row["digest"])
    return name + (" is there already" if row["result"] == "there" and many and not quiet else "")


def _summary(rows: List[Row], planned: int) -> str:
    results = [row["result"] for row in rows]
    text = sentence(total(rows), "Copied %d of %d images," % (results.count("copied"), planned), done=True)
    for result, words in (("there", "there already"), ("failed", "failed")):
        text += "; %d %s" % (results.count(result), words) if result in results else ""
    return text
