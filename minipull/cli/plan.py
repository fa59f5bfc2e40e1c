# SPDX-License-Identifier: Apache-2.0
"""Plans: the answer of a command with --dry-run, per image and in all.

A blob that several images need counts for the first, and is there for the others.
Manifests are asked for, and not counted.
"""
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence

from ..digest import Digest
from ..progress import human_size
from .context import Context

Row = Dict[str, Any]
Sizes = Mapping[Digest, int]  # of blobs, in bytes
_KINDS = ("", "there_", "mounted_")


def row(name: object, digest: str, moved: Sizes, there: Sizes, mounted: Sizes) -> Row:
    """The plan of one image: the bytes of the blobs to move, of those that are there, to be mounted."""
    numbers = {}
    for kind, sizes in zip(_KINDS, (moved, there, mounted)):
        numbers.update({kind + "blobs": len(sizes), kind + "bytes": sum(sizes.values())})
    return dict({"name": str(name), "digest": digest}, **numbers)


def total(rows: Iterable[Row]) -> Row:
    """The plan of all images, which are to be in the order of the transfer."""
    keys = [kind + unit for kind in _KINDS for unit in ("blobs", "bytes")]
    rows = list(rows)
    return {key: sum(row[key] for row in rows) for key in keys}


def show_plan(context: Context, rows: Sequence[Row], archive: Optional[int] = None,
              packed: bool = False) -> None:
    """Print plans, and their total as the last line, or as JSON: ``images`` and ``total``.

    ``archive`` is the size in bytes of the archive that would be written, before it is compressed
    if it is ``packed``: ``archive_bytes``.
    """
    sizes = {} if archive is None else {"archive_bytes": archive}
    context.answer({"images": rows, "total": total(rows), **sizes}, [
        *("%s@%s: %s" % (row["name"].partition("@")[0], row["digest"], sentence(row)) for row in rows),
        *("the archive would have %d bytes%s" % (size, " before it is compressed" if packed else "")
          for size in sizes.values()), sentence(total(rows))])


def sentence(row: Row, begin: str = "would move", done: bool = False) -> str:
    """The numbers of a plan, or of what is ``done``: ``would move 2 blobs, 133kB; 1 blob, 1.7MB is there``."""
    texts = []
    for kind, words in (("", begin), ("there_", "there"), ("mounted_", "mounted" if done else "to be mounted")):
        number, verbs = row[kind + "blobs"], ("was", "were") if done else ("is", "are")
        blobs = "%d blob%s, %s" % (number, "" if number == 1 else "s", human_size(row[kind + "bytes"]))
        if not kind:
            texts.append("%s %s" % (words, blobs))
        elif number:
            texts.append("%s %s %s" % (blobs, verbs[number != 1], words))
    return "; ".join(texts)
