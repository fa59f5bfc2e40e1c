# SPDX-License-Identifier: Apache-2.0
"""The command copy: images from place to place."""
import argparse

from ..distribution.copy import copy_with
from ..distribution.job import Options
from ..distribution.places import Place
from ..errors import InvalidReference, shown
from ..image.platform import Platform
from ..store.store import host_platform
from .context import Context


def do_copy(context: Context, flags: argparse.Namespace) -> None:
    settings = context.settings
    try:
        source, target = Place.parse(flags.src), Place.parse(flags.dst)
    except InvalidReference as exc:
        raise exc.within("copy %s %s" % (shown(flags.src), shown(flags.dst))) from exc
    if settings.text("creds") or settings.text("registry_token"):
        settings.credentials(source.domains + target.domains)  # for one registry, not for two
    options = Options([Platform.parse(text, host_platform()) for text in flags.platform or ()],
                      flags.format or "", settings.truth("referrers"), settings.size("chunk_size"),
                      settings.truth("foreign"), settings.text("compress"), settings.verify_keys())
    with context.client(source.domains, "src") as reader, context.client(target.domains, "dest") as writer:
        store = context.store if target.kind == "store" else (
            context.source if source.kind == "store" else settings.store())
        copies = copy_with(source, target, (reader, writer), store, options, settings.uploads(),
                           context.renderer, context.cancel)
    for copied in copies:
        digest = copied.descriptor.digest
        context.show(digest if context.quiet else "Digest: %s" % digest)
    if not context.quiet:
        context.show("Status: Copied %s to %s" % (flags.src, flags.dst))
