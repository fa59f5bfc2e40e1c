# SPDX-License-Identifier: Apache-2.0
"""The commands check, of the store, images in it, archives and images at a registry, and verify."""
import argparse
import contextlib
import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Set, Tuple

from ..digest import Digest
from ..errors import Error, InvalidDocument, InvalidReference, NotFound, StorageError, shown, within
from ..image.descriptor import Descriptor
from ..reference import Reference
from ..store.check import HARMLESS, REBUILT, REPAIRED, Problem, check, check_images
from ..store.references import Association, named
from ..store.repair import remedy, repair
from ..store.store import ImageSource
from ..store.usage import Counts, usage
from .context import Context
from .lists import named_image, operands, read_pins, stored_names

ABSENT, DIFFERS, EXTRA = "absent", "differs", "extra"  # kinds of problems with pins


class Checked(NamedTuple):
    """A store, archive or image with its problems; ``damage`` is the word for these, ``code`` then the exit code.

    ``images`` are those that were asked for by name, each with whether it is whole.
    """
    subject: str
    problems: List[Problem]
    counts: Counts = Counts()
    damage: str = "damaged"
    code: int = InvalidDocument.exit_code
    images: Sequence[Dict[str, Any]] = ()

    @property
    def ok(self) -> bool:
        return {problem.kind for problem in self.problems} <= HARMLESS

    @property
    def lines(self) -> List[str]:
        lines = ["%s: %s: %s" % problem for problem in self.problems]
        for image in self.images:
            name = Reference.parse(image["name"]).familiar.partition("@")[0]
            lines.append("%s@%s: %s" % (name, image["digest"], "ok" if image["ok"] else "damaged"))
        if not self.images or not self.ok:
            lines.append("%s: %s" % (self.subject, "ok" if self.ok else self.damage))
        return lines


def do_check(context: Context, flags: argparse.Namespace) -> int:
    if flags.pins:
        return _answered(context, [_check_pins(context, flags)])
    archives = [name for name in flags.refs if os.path.isfile(name) or name[:1] in ("/", ".")]  # no reference
    remote: List[str] = []
    items = operands([name for name in flags.refs if name not in archives], ids=True, remote=remote)
    results = [_check_archive(context, path) for path in archives]
    results += [_check_remote(context, name, flags.deep) for name in remote]
    if items or not results:
        results.append(_check_root(context, stored_names(context.source, items) if items else [], flags.repair))
    return _answered(context, results)


def _answered(context: Context, results: Sequence[Checked]) -> int:
    """Print the results; the code is that of the last that is damaged."""
    codes = [0] + [result.code for result in results if not result.ok]
    counts = Counts(*map(sum, zip(*(result.counts for result in results))))
    answer: Dict[str, Any] = {"ok": len(codes) == 1, "problems": [], **counts._asdict()}
    for result in results:
        for problem in result.problems:
            key = problem.kind if problem.kind in (REBUILT, REPAIRED) else "problems"
            answer.setdefault(key, []).append(problem._asdict())
        if result.images:
            answer.setdefault("checked", []).extend(result.images)
    lines = [line for result in results for line in result.lines]
    context.answer(answer, lines + (["ok: %s" % (counts,)] if answer["ok"] else []))
    return codes[-1]


def _check_archive(context: Context, path: str, in_place: bool = False) -> Checked:
    from ..archive.check import check_archive

    zstd, counts = context.settings.store().layers.zstd, [Counts()]
    problems = check_archive(path, context.cancel, zstd, context.renderer, in_place, counts.append)
    return Checked(path, problems, counts[-1])


def _check_remote(context: Context, name: str, deep: bool) -> Checked:
    from .ask import checked

    digest, problems, counts = checked(context, name, deep)
    return Checked(name if "@" in name else "%s@%s" % (name, digest), problems, counts)


def _check_root(context: Context, names: List[str], repairing: bool) -> Checked:
    """Check the store, or the archive in its place, or images in it."""
    root = context.settings.store().root
    if os.path.isfile(root) and not repairing:
        if not names:
            return _check_archive(context, root, in_place=True)
        images = _stored(context.source, names)
        problems = check_images(
            context.source, [image.descriptor for image in images], context.cancel, context.renderer)
        return _named(context.source, images, Checked(root, problems))
    store = context.existing(context.store, needed=not names)
    images = _stored(store, names)
    problems = check(
        store, [image.descriptor for image in images], progress=context.renderer, cancel=context.cancel)
    moves: List[Problem] = []
    try:
        moves = repair(store, problems, context.cancel) if repairing else []
    except StorageError as exc:
        problems.append(Problem(".", "repair", str(exc)))
    checked = Checked(store.root, problems + moves, Counts(), remedy(problems, moves), StorageError.exit_code)
    if images:
        return _named(store, images, checked)
    with contextlib.suppress(Error):  # what can't be listed is among the problems
        sizes = [store.content.size(digest) or 0 for digest in store.content.digests()]
        checked = checked._replace(counts=Counts(len(usage(store).sizes), len(sizes), sum(sizes)))
    return checked


def _check_pins(context: Context, flags: argparse.Namespace) -> Checked:
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
        problems, tops = _compared(source, pins)
        problems += check_images(source, tops, cancel, context.renderer)
        counts = usage(source, tops).counts
    kinds = {problem.kind for problem in problems} - HARMLESS
    of_names = kinds <= {ABSENT, DIFFERS, EXTRA}
    damage = InvalidDocument.exit_code if flags.refs or of_names else StorageError.exit_code
    code = NotFound.exit_code if kinds == {ABSENT} else damage
    return Checked(source.root, problems, counts, "not what is pinned", code)


def _compared(source: ImageSource, pins: Iterable[Reference]) -> Tuple[List[Problem], List[Descriptor]]:
    """The problems of a source that should have what is pinned and no more, and the images that fit."""
    problems: List[Problem] = []
    tops: List[Descriptor] = []
    pinned: Set[str] = set()
    names = {item.name: item for item in source.references.all()}
    for pin in pins:
        name = pin._replace(digest=None) if pin.tag else pin
        pinned.update((str(name), str(pin.docker_ref())))  # a pull of a pin gives it both
        item = names.get(name)
        if item is None:
            problems.append(Problem(str(name), ABSENT, "pinned to %s" % pin.digest))
        elif pin.digest not in (item.source, item.descriptor.digest):
            problems.append(Problem(str(name), DIFFERS, "%s, not %s" % (item.source, pin.digest)))
        else:
            tops.append(item.descriptor)
    for entry in source.references.descriptors():
        if named(entry) not in pinned:
            problems.append(Problem(named(entry) or str(entry.get("digest")), EXTRA, "not among the pins"))
    return problems, tops


def _stored(source: ImageSource, names: Sequence[str]) -> List[Association]:
    """Find the images to check, which may be damaged."""
    try:
        return [source.named(name)[0] for name in names]
    except NotFound as exc:
        raise exc.reworded("%s; there is no such file either" % exc) from exc


def _named(source: ImageSource, images: Sequence[Association], checked: Checked) -> Checked:
    """Add the images that were asked for: which of them the problems are of."""
    damaged = {problem.path for problem in checked.problems if problem.kind not in HARMLESS}

    def whole(image: Association) -> bool:
        with contextlib.suppress(Error):
            paths = (source.content.path(item.digest) for item, _ in source.walk(image.descriptor))
            return not any(os.path.relpath(path, source.root) in damaged for path in paths)
        return False

    rows = [{"name": str(image.name), "digest": image.source, "ok": whole(image)} for image in images]
    return checked._replace(
        counts=usage(source, [image.descriptor for image in images]).counts, images=rows)


def do_verify(context: Context, flags: argparse.Namespace) -> None:
    from ..distribution.copy import open_source
    from ..distribution.places import Place
    from ..image.signature import first_good

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
