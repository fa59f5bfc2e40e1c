# SPDX-License-Identifier: Apache-2.0
"""A bundle on itself, when it is run without a command; and the version of this program."""
import argparse
import shlex

from .. import __version__
from ..digest import Digest
from ..image.manifest import Index
from ..parts import part
from ..progress import human_size
from .context import Context
from .lines import aligned
from .parser import program

_ALONE = """
  {0} check      hash all of it again
  {0} load       store the images on this host
  {0} serve      be a registry of them
  {0} unpack {1} DIR
  {0} copy store: docker://HOST:PORT/      fill a registry with them
  {0} --help     all commands

or give it to an engine:

  docker load -i {2}
  podman load -i {2}
  ctr images import --all-platforms {2}"""
_DELTA = """
This is a delta, without {3} that its reader has; only load takes it:

  {0} load"""


def do_contents(context: Context, flags: argparse.Namespace) -> None:
    """Tell the images of the bundle, and how to use them."""
    source, rows = context.source, [("NAME", "PLATFORMS", "SIZE", "DIGEST")]
    for stored in source.references.all():
        document, config = source.document(stored.descriptor), source.load(stored).config
        platforms = [config.platform] if config else [
            child.platform for child in (document.images if isinstance(document, Index) else ())]
        size = human_size(source.size(stored.descriptor))
        rows.append((stored.name.familiar, ",".join(map(str, platforms)) or "-", size, stored.source))
    left_out = source.content.left_out.values()
    context.show("\n".join(aligned(rows)) + "\n" + (_DELTA if left_out else _ALONE).format(
        program(), shlex.quote(rows[1][0]), program().partition(" ")[2],
        "%d blobs, %s," % (len(left_out), human_size(sum(left_out)))))


def do_version(context: Context, flags: argparse.Namespace) -> None:
    """Tell the version, and the digest of this program as a bundle would carry it."""
    data = part("archive.bundle").program()
    context.show("minipull %s\nprogram: %s, the last %d bytes of a bundle" % (
        __version__, Digest.of(data), len(data)))
