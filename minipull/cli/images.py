# SPDX-License-Identifier: Apache-2.0
"""The commands that show what the store holds: images, history, df."""
import argparse
import itertools
import re
from typing import Any, Dict, List

from ..digest import Digest
from ..errors import NotFound, escape
from ..image.config import History
from ..image.manifest import Manifest
from ..progress import human_size
from ..store.references import Association
from ..store.store import host_platform, platform_of
from ..store.usage import usage
from .context import Context, described, reference
from .lines import aligned

_WIDTH = 45  # characters of a command or comment, as docker cuts them


def do_images(context: Context, flags: argparse.Namespace) -> None:
    store = context.existing(context.source)
    with store.reading(context.cancel):
        names = [item for item in store.references.all() if not flags.name or _matches(flags.name, item)]
        images = store.images(context.alert, names)
        listed = [flags.all or image.config is not None or not store.subject(image.name, image.descriptor)
                  for image in images]
        if flags.quiet and not context.json:
            ids = (_shown_id(image.id, flags.no_trunc) for image in itertools.compress(images, listed))
            context.answer(None, dict.fromkeys(ids))
            return
        used = usage(store)
    rows = [dict(described(store, image, used.sizes.get(image.descriptor.digest)),
                 unique=used.unique.get(image.descriptor.digest, 0)) for image in images]
    table = [("NAME", "DIGEST", "IMAGE ID", "PLATFORM", "CREATED", "SIZE", "UNIQUE")]
    table += [(row["name"], row["digest"], _shown_id(row["image_id"], flags.no_trunc), row["platform"] or "-",
               row["created"][:10] or "-", human_size(row["size"]), human_size(row["unique"]))
              for row in itertools.compress(rows, listed)]
    context.answer(rows, aligned(table if flags.digests else [line[:1] + line[2:] for line in table]))


def _shown_id(digest: Digest, whole: bool) -> str:
    return digest if whole else digest.short


def _matches(text: str, item: Association) -> bool:
    """Whether a name is what a user typed: a repository, a name with a tag or digest, or a glob of these."""
    name = item.name
    if re.search("[*?]", text) or "[" in text.rpartition("/")[2]:
        import fnmatch
        forms = name.familiar_name, name.familiar, name.name, str(name)
        return any(fnmatch.fnmatchcase(form, text) for form in forms)
    typed = reference(text)
    return typed.name == name.name and typed.tag in ("", name.tag) and typed.digest in (
        None, name.digest, item.source, item.descriptor.digest)


def do_history(context: Context, flags: argparse.Namespace) -> None:
    store = context.source
    with store.reading(context.cancel):
        image = store.image(flags.ref)
        platform = platform_of(flags.platform) or host_platform()
        descriptor = store.on(platform, image.descriptor)
        document = store.document(descriptor) if descriptor else None
        config = store.load(Association(image.name, descriptor, image.source)).config if descriptor else None
    if not isinstance(document, Manifest) or config is None:
        raise NotFound("%s has no image for %s" % (image.name.familiar, str(platform)))
    layers = zip(document.layers, itertools.chain(config.diff_ids, itertools.repeat(None)))
    rows: List[Dict[str, Any]] = []
    # The steps may be fewer than the layers, or the other way around where a config is not the manifest's.
    for step in itertools.chain(config.history, itertools.repeat(None)):
        layer, diff_id = (None, None) if step and step.empty_layer else next(layers, (None, None))
        if step is None and layer is None:
            break
        rows.append(dict(
            (step or History())._asdict(), digest=layer and layer.digest, diff_id=diff_id,
            size=layer.size if layer else 0))
    table = [("CREATED", "CREATED BY", "SIZE", "COMMENT")]
    table += [(
        row["created"] if flags.no_trunc else row["created"][:10] or "-", _cut(row["created_by"], flags.no_trunc),
        human_size(row["size"]), _cut(row["comment"], flags.no_trunc)) for row in reversed(rows)]
    context.answer(rows[::-1], aligned(table))


def _cut(text: str, whole: bool) -> str:
    """Text of a config as one line, with no more than fits a table unless the ``whole`` is wanted."""
    line = " ".join(text.split())
    line = escape(line if whole else line[:_WIDTH + 1])
    return line if whole or len(line) <= _WIDTH else line[:_WIDTH - 3] + "..."


def do_df(context: Context, flags: argparse.Namespace) -> None:
    """Show blobs, of these the shared and the unreferenced, partials, and what gc would free."""
    from ..store.gc import collectable, partials

    store = context.existing(context.store)
    with store.reading(context.cancel):
        used, content = usage(store), store.content
        sizes = {digest: content.size(digest) or 0 for digest in content.digests()}
        now, all_of_it = collectable(store, 24 * 3600, 0, cancel=context.cancel)
        kinds = {
            "blobs": list(sizes.values()),
            "shared": [sizes[digest] for digest in used.shared if digest in sizes],
            "unreferenced": [size for digest, size in sizes.items() if digest not in used.blobs],
            "partial": list(partials(store).values())}
    answer: Dict[str, Any] = {kind: {"count": len(values), "size": sum(values)} for kind, values in kinds.items()}
    answer["images"] = len(used.sizes)
    answer["reclaimable"] = {"gc": now.size, "gc_keep_0": all_of_it.size}
    table = [("", "COUNT", "SIZE")]
    table += [(kind, str(answer[kind]["count"]), human_size(answer[kind]["size"])) for kind in kinds]
    context.answer(answer, aligned(table) + ["gc would free %s, gc --keep 0 %s" % (
        human_size(now.size), human_size(all_of_it.size))])
