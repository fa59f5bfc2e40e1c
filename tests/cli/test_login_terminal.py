# SPDX-License-Identifier: Apache-2.0
"""login asks for a password on a terminal, and leaves the terminal as it was."""
import contextlib
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.kit.commands import auth, auths
from tests.kit.processes import end, interpreters, minipull_env, wait_until
from tests.kit.servers import ScriptedServer

#: The command line, once it has made its stdin the terminal that getpass asks on.
ON_TERMINAL = ("import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
               "from minipull.cli.main import run; run()")


class Terminal:
    """``minipull login ARGS...`` on a terminal; ``shown`` is all that stood there."""

    def __init__(self, home: Path, python: str, *args: str) -> None:
        self._master, self._slave = os.openpty()
        self.shown = b""
        self.process = subprocess.Popen(
            [python, "-c", ON_TERMINAL, "login", *args], stdin=self._slave, stdout=subprocess.PIPE,
            stderr=self._slave, env=minipull_env(home, python=python), cwd=str(home), start_new_session=True)

    def expect(self, prompt: bytes, answer: bytes) -> None:
        os.set_blocking(self._master, False)
        wait_until(lambda: self._read().endswith(prompt), prompt.decode(), self.process)
        os.write(self._master, answer)

    def _read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            self.shown += os.read(self._master, 4096)
        return self.shown

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def finish(self) -> bytes:
        out, _ = self.process.communicate(timeout=60)
        self._read()
        return out

    def close(self) -> None:
        end(self.process)
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:
        def start(*args: str, python: str = sys.executable) -> Terminal:
            started = Terminal(home, python, *args)
            stack.callback(started.close)
            return started
        yield start


@pytest.mark.parametrize("python", [python for _, python in interpreters()],
                         ids=[version for version, _ in interpreters()])
def test_login_asks_for_user_and_password_on_a_terminal(
    private: ScriptedServer, terminal: Callable[..., Terminal], file: Path, python: str
) -> None:
    made = terminal(private.host, python=python)
    made.expect(b"Username: ", b"ann\n")
    made.expect(b"Password: ", b"s3cret\n")
    assert (made.finish(), made.process.returncode) == (b"Login Succeeded\n", 0)
    assert made.shown.replace(b"\r", b"") == b"Username: ann\nPassword: \n"
    made = terminal("-u", "ann", private.host, python=python)
    made.expect(b"Password: ", b"wrong\n")
    assert (made.finish(), made.process.returncode) == (b"", 4)
    assert auths(file) == {private.host: auth("ann", "s3cret")}


@pytest.mark.parametrize("answers", [[b"\x04"], [b"ann\n", b"\x04"], [b"\n", b"x\n"], [b"ann\n", b"\n"]])
def test_login_refuses_an_empty_user_or_password_typed_on_a_terminal(
    private: ScriptedServer, terminal: Callable[..., Terminal], answers: List[bytes]
) -> None:
    made = terminal(private.host)
    for prompt, answer in zip((b"Username: ", b"Password: "), answers):
        made.expect(prompt, answer)
    assert (made.finish(), made.process.returncode) == (b"", 2)
    assert b"user name" in made.shown and private.requests == []


def test_an_interrupt_leaves_the_terminal_as_it_was(
    private: ScriptedServer, terminal: Callable[..., Terminal]
) -> None:
    made = terminal("-u", "ann", private.host)
    made.expect(b"Password: ", b"s3c")
    assert not made.echoes()
    made.process.send_signal(signal.SIGINT)
    assert (made.finish(), made.process.returncode) == (b"", 130)
    assert made.echoes() and b"s3c" not in made.shown
