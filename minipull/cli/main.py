# SPDX-License-Identifier: Apache-2.0
"""The command line: the parser, and the signals.

A command runs in a thread of its own, so that a signal never interrupts code
that holds a lock: the main thread waits, sets the switch, and leaves two
seconds later at most.  The rest of the package is imported once there is a
command to run; ``--version`` needs none of it.
"""
import contextlib
import importlib
import os
import signal
import sys
import threading
from typing import Any, Dict, List, NoReturn, Sequence

from .parser import command_line

GRACE = 2.0  # seconds for a cancelled command to end by itself
BROKEN_PIPE = 128 + 13
#: Where each command is, so that none loads what only others need.
_HOMES = dict.fromkeys("images inspect tag rm gc check save load".split(), "store")
_HOMES.update(dict.fromkeys("pull push copy tags manifest digest".split(), "registry"))
_HOMES.update(dict.fromkeys("doctor serve".split(), "serve"))
_HOMES.update(dict.fromkeys("login logout".split(), "login"))
_HOMES.update(dict.fromkeys("unpack export cat".split(), "rootfs"))


def run() -> NoReturn:
    """The console script; exits with the code of main()."""
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed from the start
                stream.flush()
        except BrokenPipeError:
            code = code or BROKEN_PIPE
        except (OSError, ValueError):
            code = code or 1
    # Not sys.exit: a cancelled command's threads may still sit in a look-up.
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        flags = command_line().parse_args(arguments)
    except SystemExit as exc:
        return int(exc.code or 0)
    from ..cancel import Cancel

    cancel = Cancel()
    codes: List[int] = []
    done = threading.Event()

    def work() -> None:
        try:
            from .context import perform

            home = importlib.import_module("." + _HOMES[flags.command], __package__)
            codes.append(perform(home.COMMANDS[flags.command], flags, cancel))
        finally:
            done.set()

    signals: List[int] = []
    before: Dict[int, Any] = {}

    def caught(number: int, frame: object) -> None:
        if signals:
            os._exit(128 + number)
        if not done.is_set():
            signals.append(number)
            raise InterruptedError

    try:
        # Only the main thread may, and a program that embeds us keeps its own.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, caught)
        threading.Thread(target=work, name="command", daemon=True).start()
        done.wait()
    except InterruptedError:
        cancel.cancel()
        done.wait(GRACE)
        return 128 + signals[0]
    finally:
        for which, handler in before.items():
            signal.signal(which, handler or signal.SIG_DFL)
    return codes[0]
