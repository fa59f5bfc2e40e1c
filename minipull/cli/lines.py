# SPDX-License-Identifier: Apache-2.0
"""Lines for people: tables on stdout, and on stderr the line that says what failed."""
import contextlib
import sys
from typing import List, Sequence, Tuple, Type

from ..errors import Error, InvalidDocument, StorageError, escape, one_line
from ..parts import left_out

_WIDEST = 160  # characters of a cell that its column makes room for
#: Trouble of the host that any line may meet: the exception, words of its text, and what the user sees.
_HOST_TROUBLE: Sequence[Tuple[Type[BaseException], str, Error]] = (
    (RuntimeError, "start new thread",
     Error("can't start a thread: this user has as many as may be (ulimit -u)")),
    (MemoryError, "", Error("no memory left")),
    (FileNotFoundError, "", StorageError("the working directory has been deleted; change to another one")))


def aligned(table: Sequence[Sequence[str]]) -> List[str]:
    """The lines of a table, escaped, whose columns, but for the last, are as wide as their widest cell.

    A cell past _WIDEST stands out, else a thousand lines would be padded to the length of one text of an image.
    """
    cells = [list(map(escape, line)) for line in table]
    widths = [max([len(cell) for cell in column if len(cell) <= _WIDEST], default=0) for column in zip(*cells)]
    widths[-1:] = [0]
    return ["   ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def say(text: str) -> None:
    """Print one line of diagnostics, wherever stderr is."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("minipull: " + one_line(text), file=sys.stderr, flush=True)


def explained(error: BaseException, command: str) -> BaseException:
    """The error that the user sees: another one for trouble of the host that any line may meet."""
    if isinstance(error, ImportError) and not error.name:  # zipimport's, of the zip that this program is in
        return InvalidDocument("this program is damaged: %s" % error)
    if isinstance(error, ImportError):
        missing, module = left_out(error), str(error.name).lstrip("_")
        text = "this Python has no %s module, which %s needs; use another Python or install its %s support"
        return missing.within(command) if missing is not None else Error(text % (module, command, module))
    for kind, text, told in _HOST_TROUBLE:
        if isinstance(error, kind) and text in str(error) and not getattr(error, "filename", None):
            return told
    return error


def carrier() -> str:
    """The path of the bundle that this package was imported from, or empty; see archive/bundle.py."""
    path = str(getattr(__spec__ and __spec__.loader, "archive", ""))  # of zipimport
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(512)[257:262] == b"ustar":
            return path
    return ""
