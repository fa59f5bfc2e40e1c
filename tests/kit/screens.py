# SPDX-License-Identifier: Apache-2.0
"""A terminal of our own: minipull's screens, and a relay that lets so many bytes a second through."""
import codecs
import fcntl
import io
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Tuple, Union

from tests.kit.processes import minipull_env
from tests.kit.servers import BaseServer


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A terminal: what its ``rows`` show after everything written so far.

    Knows LF (with CR, as the tty driver adds it), CR and the CSI sequences A,
    B and K; anything else below a space, and a line that wraps, is an error.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self.lines = [""] * rows
        self.scrolled: List[str] = []
        self.row = self.column = 0
        self.drawn = 0

    def size(self) -> Tuple[int, int]:
        return self.columns, self.rows

    def write(self, text: str) -> int:
        self.drawn += 1
        for piece in re.findall(r"\x1b\[\d*[A-Z]|[\s\S]", text):
            self._obey(piece)
        return len(text)

    def _obey(self, piece: str) -> None:
        if piece == "\n":
            self.column = 0
            self.row += 1
            if self.row == self.rows:
                self.scrolled.append(self.lines.pop(0))
                self.lines.append("")
                self.row -= 1
        elif piece == "\r":
            self.column = 0
        elif piece[-1] == "A" and len(piece) > 1:
            self.row -= int(piece[2:-1])
            assert self.row >= 0, "moved above the screen"
        elif piece[-1] == "B" and len(piece) > 1:
            self.row += int(piece[2:-1])
            assert self.row < self.rows, "moved below the screen"
        elif piece == "\x1b[K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        else:
            assert piece.isprintable(), "%r was written" % piece
            assert self.column < self.columns, "a line wrapped"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + piece + line[self.column + 1 :]
            self.column += 1

    def shown(self) -> List[str]:
        assert (self.column, self.lines[self.row]) == (0, ""), "the cursor is not at rest"
        return self.lines[: self.row]


class Shown(NamedTuple):
    """The screens of one command: ``frames`` are what it showed whenever the cursor was at rest."""
    code: int
    out: str
    frames: List[List[str]]
    seconds: float

    @property
    def last(self) -> List[str]:
        return self.frames[-1]


def shown(home: Path, columns: int, *args: Union[str, Path], rows: int = 24,
          env: Optional[Mapping[str, str]] = None) -> Shown:
    """Run minipull with stderr on a terminal of ``columns``; a line that wraps is an error."""
    master, slave = pty.openpty()
    begin = time.monotonic()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "minipull", *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=slave, cwd=str(home), env=minipull_env(home, {"TERM": "xterm", **(env or {})}))
    finally:
        os.close(slave)
    screen, decoder, frames = Screen(columns, rows), codecs.getincrementaldecoder("utf-8")(), []
    pending = ""
    try:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the last process has closed it
                break
            text, pending = pending + decoder.decode(data), ""
            part = re.search("\x1b(\\[[0-9]*)?$", text)
            if part:
                text, pending = text[:part.start()], part.group()
            screen.write(text)
            if (screen.column, screen.lines[screen.row]) == (0, ""):
                frames.append(screen.scrolled + screen.shown())
        assert process.stdout is not None
        out = process.stdout.read().decode()
        return Shown(process.wait(60), out, frames, time.monotonic() - begin)
    finally:
        process.kill()
        process.communicate()
        os.close(master)


class Relay(BaseServer):
    """Passes connections on to ``target``, at most ``rate`` bytes a second in both directions together."""

    def __init__(self, target: str, rate: float) -> None:
        self.target, self.rate = target, rate
        self.passed = {"in": 0, "out": 0}  # bytes to the client and from it
        self._free = 0.0  # when the line is
        super().__init__()
        # A network holds no megabytes, as the buffers of a loopback do with its large packets.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)

    def _serve(self, raw: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        with raw, socket.create_connection((host, int(port)), 10) as upstream:
            back = threading.Thread(target=self._pass, args=(upstream, raw, "in"), daemon=True)
            back.start()
            self._pass(raw, upstream, "out")
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        try:
            while True:
                data = source.recv(1 << 15)
                if not data:
                    break
                with self.lock:
                    now = time.monotonic()
                    self._free = max(self._free, now) + len(data) / self.rate
                    self.passed[way] += len(data)
                    pause = self._free - now
                self._stopping.wait(pause)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
