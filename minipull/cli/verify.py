# SPDX-License-Identifier: Apache-2.0
"""The command verify: whether a key has signed an image."""
import argparse
import contextlib
import re

from ..digest import Digest
from ..distribution.copy import open_source
from ..distribution.places import Place
from ..errors import InvalidReference, NotFound, shown, within
from ..image.signature import first_good
from .context import Context
from .lists import named_image


def do_verify(context: Context, flags: argparse.Namespace) -> None:
    keys, cancel, text = context.settings.verify_keys(), context.cancel, flags.ref
    if not keys:
        raise InvalidReference("verify: give the public key with --key FILE")
    plain = not re.match("docker://|(store|oci|oci-archive|docker-archive):", text)
    subject = "verify %s" % shown(text, 300)
    with contextlib.ExitStack() as stack:
        stack.enter_context(within(subject))
        store = context.source if plain or text.startswith("store:") else context.settings.store()
        place = Place.parse(named_image(store, "store:" + text if plain else text))
        client = stack.enter_context(context.client(place.domains))
        try:
            end = open_source(place, client, store, subject, stack, context.renderer, cancel)
            digest = end.get(place.tag, cancel).digest
        except NotFound as exc:
            raise exc.reworded("%s; docker://%s asks the registry" % (exc, text)) if plain else exc
        signatures = list(end.signatures(cancel).of([digest], keys))
        good = any(signature.key for signature in signatures)
        tag = "" if isinstance(place.tag, Digest) or not place.tag else ":" + place.tag
        context.answer(
            {"ok": good, "name": "%s%s" % (place, tag), "digest": digest, "signatures": [
                dict(item._asdict(), key=item.key and item.key.source,
                     fingerprint=item.key and item.key.fingerprint) for item in signatures]},
            ["%s: %s%s@%s" % ("Verified" if good else "Not verified", place, tag, digest),
             *map(str, signatures)])
        first_good(signatures, keys)
