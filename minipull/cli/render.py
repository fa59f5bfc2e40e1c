# SPDX-License-Identifier: Apache-2.0
"""Progress drawn on a text stream: bars, plain lines or JSON; and the line that says what failed.

- The caller chooses the words; a renderer adds ids, bars and byte counts.
- No text from a registry reaches a terminal as a control character.
- A renderer may be called from any thread, for several operations at once.
  Once its stream has failed it draws nothing more, and it never raises.

Mirrors moby's pkg/streamformatter and pkg/jsonmessage.
"""
import contextlib
import json
import os
import sys
import threading
import time
from typing import IO, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import InvalidReference, escape, one_line
from ..progress import Progress

NO_THREADS = "can't start a thread: this user has as many as may be (ulimit -u)"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def human_size(size: float) -> str:
    """Bytes in decimal units and four digits, as docker prints them: ``1.024kB``."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size /= 1000
        power += 1
    return "%.4g%s" % (size, _UNITS[power])


def aligned(table: Sequence[Sequence[str]]) -> List[str]:
    """The lines of a table whose columns, but for the last, are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*table)][:-1] + [0]
    return ["   ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in table]


def bar(current: int, total: int, width: int = 200) -> str:
    """The engine's bar for a terminal of ``width`` columns; empty without numbers."""
    text = "%8s" % human_size(current)
    if total <= 0:
        return text if current > 0 else ""
    if current <= total:
        text += "/" + human_size(total)
    done = min(100 * current // total // 2, 50)
    return "[%s>%s] %s" % ("=" * done, " " * (50 - done), text) if width > 110 else text


class Renderer:
    """An Output that draws nothing; the base of the other renderers."""

    def __init__(self, stream: Optional[IO[str]],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()

    def __call__(self, event: Progress) -> None:
        with self._lock:
            text = self._draw(event)
            if text and self._stream is not None:
                # The encoding of the stream may lack characters (LC_ALL=C).
                encoding = getattr(self._stream, "encoding", None) or "utf-8"
                text = text.encode(encoding, "backslashreplace").decode(encoding)
                try:
                    self._stream.write(text)
                    self._stream.flush()
                except (OSError, ValueError):  # broken, or closed
                    self._stream = None

    def _draw(self, event: Progress) -> str:
        return ""


class JSON(Renderer):
    """The engine's own event objects, one a line."""

    def _draw(self, event: Progress) -> str:
        if event.message:
            members: Dict[str, Any] = {"status": event.message, "id": event.id}
        else:
            counts = {"current": event.current, "total": event.total}
            members = {
                "status": event.action,
                "progressDetail": {key: count for key, count in counts.items() if count},
                "progress": bar(event.current, event.total),
                "id": event.id,
                "aux": event.aux and dict(event.aux)}
        kept = {key: value for key, value in members.items() if value or key == "progressDetail"}
        # json.dumps writes ASCII and escapes every control character but DEL.
        return json.dumps(kept, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


class Plain(Renderer):
    """A line for each change of state, and byte counts every few seconds."""
    interval = 5.0
    _most = 4096  # ids remembered

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._states: Dict[str, Tuple[str, float]] = {}

    def _draw(self, event: Progress) -> str:
        if event.message or not event.action:
            return _label(event, event.message) + "\n" if event.message else ""
        now = self._clock()
        action, printed = self._states.pop(event.id, ("", now))
        text = event.action
        if action == text:
            counts = bar(event.current, event.total, 0).strip()
            due = counts and now - printed >= self.interval
            now, text = (now, "%s %s" % (text, counts)) if due else (printed, "")
        self._states[event.id] = event.action, now
        if len(self._states) > self._most:
            del self._states[next(iter(self._states))]
        return _label(event, text) + "\n" if text else ""


class _Line(NamedTuple):
    number: int
    action: str
    drawn: float


class Terminal(Renderer):
    """A line for each id, redrawn in place while it is still on the screen.

    The cursor always rests at the start of the empty line below.  ``size``
    returns columns and rows, and is called before each drawing.
    """
    interval = 0.1

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic,
                 size: Optional[Callable[[], Tuple[int, int]]] = None) -> None:
        super().__init__(stream, clock)
        self._size = size or (lambda: _terminal_size(stream))
        self._last_size = (0, 0)
        self._lines: Dict[str, _Line] = {}

    def _draw(self, event: Progress) -> str:
        if event.message:
            self._lines.clear()
            return "\r%s\x1b[K\n" % _label(event, event.message)
        now, line = self._clock(), self._lines.get(event.id)
        if not event.action or (
                line is not None and line.action == event.action
                and not event.last_update and now - line.drawn < self.interval):
            return ""
        size = columns, rows = self._size()
        if size != self._last_size:
            # Terminals differ in where lines go when the size changes: start anew below.
            self._lines.clear()
            self._last_size, line = size, None
        number = len(self._lines) if line is None else line.number
        self._lines[event.id] = _Line(number, event.action, now)
        text = _label(event, "%s %s" % (event.action, bar(event.current, event.total, columns)))
        # ASCII takes one column a character; the last column stays free, so that no line wraps.
        text = text.rstrip().encode("ascii", "backslashreplace").decode()[: columns - 1]
        up = len(self._lines) - number
        if line is None:
            return "\r%s\x1b[K\n" % text
        return "\x1b[%dA\r%s\x1b[K\r\x1b[%dB" % (up, text, up) if up < rows else ""


def choose(mode: str, stream: Optional[IO[str]], environ: Mapping[str, str]) -> Renderer:
    """The renderer for ``--progress``: auto, tty, plain, json or none.

    Nothing is drawn on a stream of None, which is sys.stderr when it is closed.
    Raises InvalidReference for any other mode.
    """
    if mode not in ("auto", "tty", "plain", "json", "none"):
        raise InvalidReference("invalid progress mode %s" % ascii(mode)[:100])
    if stream is None or mode == "none":
        return Renderer(None)
    if mode == "auto":
        plain = environ.get("TERM") == "dumb" or environ.get("NO_COLOR") or environ.get("CI")
        mode = "plain" if plain or not stream.isatty() else "tty"
    return {"json": JSON, "plain": Plain, "tty": Terminal}[mode](stream)


def _label(event: Progress, text: str) -> str:
    return escape("%s: %s" % (event.id, text) if event.id else text)


def _terminal_size(stream: IO[str]) -> Tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return columns or 80, rows or 24  # a serial console reports 0


def say(text: str) -> None:
    """Print one line of diagnostics, wherever stderr is."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("minipull: " + one_line(text), file=sys.stderr, flush=True)


def lacking(error: ImportError, command: str) -> str:
    """The text for a module of the standard library that this Python lacks."""
    module = (error.name or str(error)).lstrip("_")
    return "this Python has no %s module, which %s needs; use another Python or install its %s support" % (
        module, command, module)
