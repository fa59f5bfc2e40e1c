# SPDX-License-Identifier: Apache-2.0
"""The command serve: a registry over the store or an archive."""
import argparse
import contextlib
import re

from ..errors import InvalidReference
from ..server.registry import serve
from .context import Context

_M_ARENA_MAX = -8  # of malloc.h


def do_serve(context: Context, flags: argparse.Namespace) -> None:
    settings = context.settings
    listen, writable = settings.text("listen", "127.0.0.1:5000"), settings.truth("writable")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:]*)):([0-9]{1,5})", listen)
    if match is None or int(match.group(3)) > 65535:
        raise InvalidReference("--listen must be HOST:PORT, not %s" % ascii(listen)[:100])
    host = match.group(1) or match.group(2)

    def ready(url: str) -> None:
        if not re.fullmatch(r"localhost|127\.[0-9.]+|::1", host):
            context.warn("no TLS, no passwords: whoever reaches %s may read%s every image" % (
                url, " and replace" if writable else ""))
        context.answer({"url": url}, ["Listening on %s" % url])

    def log(status: int, text: str) -> None:
        if status >= 500 or flags.verbose:
            context.log(text)

    context.source.references.descriptors()  # raises where the index is damaged or lost
    for digest in context.source.content.left_out:
        context.source.content.open(digest)  # raises, since a delta is no registry
    with contextlib.suppress(Exception):  # no glibc, or no memory that may hold code (Python 3.7)
        import ctypes
        # Each of many threads would keep what it has freed in an arena of its own (glibc bug 11261).
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    source = context.store if writable else context.source
    source.timeout = settings.timeout  # of an archive as well
    serve(source, host, int(match.group(3)), writable,
          settings.text("as", "localhost"), context.cancel, ready, log)
