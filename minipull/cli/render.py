# SPDX-License-Identifier: Apache-2.0
"""Progress drawn on a text stream: bars, plain lines or JSON.

- The caller chooses the words; a renderer adds ids, bars and byte counts.
- No text from a registry reaches a terminal as a control character.
- A renderer may be called from any thread, for several operations at once.
  Once its stream has failed it draws nothing more, and it never raises.

Mirrors moby's pkg/streamformatter and pkg/jsonmessage.
"""
import json
import os
import re
import threading
import time
from typing import IO, Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

from ..errors import InvalidReference, escape
from ..progress import Progress, human_size
from .pace import Flow, Pace


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
        self._pace = Pace(clock)

    def __call__(self, event: Progress) -> None:
        with self._lock:
            self._write(self._draw(event))

    def leave(self) -> None:
        """Leave what has been drawn: another writer goes on below it."""
        with self._lock:
            self._write(self._above())

    def finish(self, interrupted: bool = False) -> None:
        """Draw the last line: the sum of what has moved, or what is kept of it."""
        with self._lock:
            text = self._pace.interrupted() if interrupted else self._pace.summary()
            self._write(self._end(text) if text else "")

    def _write(self, text: str) -> None:
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

    def _end(self, text: str) -> str:
        return ""

    def _above(self, *lines: str) -> str:
        return ""


class JSON(Renderer):
    """The engine's own event objects, one a line."""

    def emit(self, **members: object) -> None:
        """Write an object that is no event of progress."""
        with self._lock:
            self._write(_json_line(members))

    def failed(self, text: str, code: int) -> None:
        """Write the object that ends a stream that failed; ``code`` is our exit code."""
        self.emit(errorDetail={"code": code, "message": text}, error=text)

    def interrupted(self, code: int) -> None:
        self.failed(self._pace.interrupted(), code)

    def _draw(self, event: Progress) -> str:
        if event.message:
            members: Dict[str, Any] = {"status": event.message, "id": event.id}
        else:
            self._pace.note(event)
            counts = {"current": event.current, "total": event.total}
            members = {
                "status": event.action,
                "progressDetail": {key: count for key, count in counts.items() if count},
                "progress": bar(event.current, event.total),
                "id": event.id,
                "aux": event.aux and dict(event.aux)}
        return _json_line({key: value for key, value in members.items() if value or key == "progressDetail"})


class Plain(Renderer):
    """A line for each change of state, and numbers every few seconds."""
    interval = 5.0
    _most = 4096  # ids remembered

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._states: Dict[str, Tuple[str, float]] = {}

    def _draw(self, event: Progress) -> str:
        if event.message or not event.action:
            return _label(event, event.message) + "\n" if event.message else ""
        now, flow = self._clock(), self._pace.note(event)
        action, printed = self._states.pop(event.id, ("", now))
        text = event.action
        if action == text:
            text = ""
            if now - printed >= self.interval and flow.amount():
                share = ["%d%%" % (100 * flow.current // flow.total)] if flow.total >= flow.current else []
                now, text = now, " ".join([event.action, flow.amount(), *share, *flow.rest(now)])
            else:
                now = printed
        self._states[event.id] = event.action, now
        if len(self._states) > self._most:
            del self._states[next(iter(self._states))]
        return _label(event, text) + "\n" if text else ""

    def _end(self, text: str) -> str:
        return text + "\n"


class _Line(NamedTuple):
    number: int
    action: str
    drawn: float


class Terminal(Renderer):
    """A line for each id, redrawn in place while it is still on the screen, and one for all below them.

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
        self._sum = False  # whether the last line is the sum of all
        self._sum_drawn = 0.0
        encoding = getattr(stream, "encoding", None) or "ascii"
        self._marks = "\u2501\u2578" if encoding.lower().replace("-", "") == "utf8" else "=>"

    def _draw(self, event: Progress) -> str:
        if event.message:
            return self._above(_label(event, event.message))
        now, line, flow = self._clock(), self._lines.get(event.id), self._pace.note(event)
        if not event.action or (
                line is not None and line.action == event.action
                and not event.last_update and now - line.drawn < self.interval):
            return ""
        size = columns, rows = self._size()
        text = ""
        if size != self._last_size:
            # Terminals differ in where lines go when the size changes: start anew below.
            self._lines.clear()
            self._sum = False
            self._last_size, line = size, None
        number = len(self._lines) if line is None else line.number
        self._lines[event.id] = _Line(number, event.action, now)
        drawn = self._fit(event.id, event.action, flow if event.current or event.total else None, columns)
        up = len(self._lines) + self._sum - number
        if line is None:
            text = ("\x1b[1A" if self._sum else "") + "\r%s\x1b[K\n" % drawn
            if self._sum:
                text += "\r%s\x1b[K\n" % self._fit("", "in all", self._pace.whole(), columns)
        elif up < rows:
            text = "\x1b[%dA\r%s\x1b[K\r\x1b[%dB" % (up, drawn, up)
        return text + (self._draw_sum(now, columns) if rows > 2 else "")

    def _draw_sum(self, now: float, columns: int) -> str:
        whole = self._pace.whole()
        if not whole.moved or len(self._lines) < 2 or self._sum and now - self._sum_drawn < self.interval:
            return ""
        up, self._sum, self._sum_drawn = "\x1b[1A" if self._sum else "", True, now
        return "%s\r%s\x1b[K\n" % (up, self._fit("", "in all", whole, columns))

    def _above(self, *lines: str) -> str:
        """Return lines of text, folded, that go where the sum is, below which all begins anew."""
        up = "\x1b[1A\r\x1b[K" if self._sum else ""
        self._lines.clear()
        self._sum = False
        width = self._size()[0] - 1
        return up + "".join("\r%s\x1b[K\n" % part for line in lines for part in _folded(line, width))

    def _end(self, text: str) -> str:
        return self._above(text)

    def _fit(self, id: str, action: str, flow: Optional[Flow], columns: int) -> str:
        """Return a line that fits: the bar shrinks first, then the words go; the numbers are never cut."""
        # ASCII takes one column a character; the last column stays free, so that no line wraps.
        id, action = (escape(text).encode("ascii", "backslashreplace").decode() for text in (id, action))
        words = "%s %s" % (id, action) if id else action
        if flow is None:
            return (words if len(words) < columns else "%s: %s" % (id, action))[:columns - 1]
        numbers = " ".join([flow.amount(), *flow.rest(self._clock())])
        room = columns - 1 - len(numbers) - 1
        if len(words) > room:
            words = id if 0 < len(id) <= room else words[:max(room, 0)]
        width = min(room - len(words) - 2, 50)
        bar_text = ""
        if width >= 4 and flow.total >= flow.current and flow.total:
            done = width * flow.current // flow.total
            bar_text = " " + (self._marks[0] * max(done - 1, 0) + self._marks[1] * min(done, 1)).ljust(width)
        return ("%s%s %s" % (words, bar_text, numbers)).strip()[:columns - 1]


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
    if mode == "tty":
        columns = environ.get("COLUMNS", "")
        width = int(columns) if re.fullmatch("[1-9][0-9]{0,3}", columns) else 0
        return Terminal(stream, size=lambda: _terminal_size(stream, width))
    return {"json": JSON, "plain": Plain}[mode](stream)


def _json_line(members: Mapping[str, object]) -> str:
    # json.dumps writes ASCII and escapes every control character but DEL.
    return json.dumps(members, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


def _label(event: Progress, text: str) -> str:
    return escape("%s: %s" % (event.id, text) if event.id else text)


def _folded(text: str, width: int) -> Iterator[str]:
    """Yield a text in lines that fit, broken between words; a longer word stays whole, to be copied."""
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line += (" " if line else "") + word
    yield line


def _terminal_size(stream: IO[str], width: int = 0) -> Tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return width or columns or 80, rows or 24  # a serial console reports 0
