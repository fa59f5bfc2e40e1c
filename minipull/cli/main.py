# SPDX-License-Identifier: Apache-2.0
"""run() and main(): one command in a thread, and the signals.

A signal must never interrupt code that holds a lock.  So the command runs in a
thread of its own; the main thread waits, cancels it, and exits two seconds later
at most, or once it has cleaned up on this host.  The rest of the package is
imported once there is a command to run; ``--version`` needs none of it.
"""
import gc
import os
import sys

TYPE_CHECKING = False  # typing's own would be imported for --version, too
if TYPE_CHECKING:
    import argparse
    from typing import Any, Dict, List, NoReturn, Sequence

from .. import __version__

GRACE = 2.0  # seconds for a cancelled command to end by itself
BROKEN_PIPE = 128 + 13


def run() -> "NoReturn":
    """Run the command line of this process; exits with the code of main()."""
    gc.set_threshold(50000)  # containers: what a command imports would be looked through ten times
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed from the start
                stream.flush()
        except (OSError, ValueError) as exc:
            code = code or unwritten(exc)
    # Not sys.exit: a cancelled command's threads may still wait for a DNS look-up.
    os._exit(code)


def main(arguments: "Sequence[str]") -> int:
    """Run one command; returns the exit code."""
    try:
        if list(arguments) == ["--version"]:
            print("minipull", __version__)
            return 0
        from .parser import command_line
        parser = command_line(arguments)
        flags = parser.parsed(arguments)
        if flags.version and not flags.verbose:
            print("minipull", __version__)
            return 0
        flags.command = "version" if flags.version else flags.command or "contents"
        if flags.command == "contents":
            from .lines import carrier
            if flags.root or not carrier():
                parser.error("the following arguments are required: COMMAND")
    except SystemExit as exc:
        return int(exc.code or 0)
    except OSError as exc:  # of --help or --version
        return unwritten(exc)
    return _performed(flags)


def _performed(flags: "argparse.Namespace") -> int:
    """Run the command in its thread, until it ends or a signal ends it; returns the exit code."""
    import contextlib
    import signal
    import threading

    from ..cancel import Cancel

    cancel = Cancel()
    codes = [1]
    done = threading.Event()

    def work() -> None:
        try:
            from .context import perform

            codes.append(perform(flags, cancel))
        except ImportError as exc:
            from .lines import explained, say

            say(str(explained(exc, flags.command)))
        finally:
            done.set()

    signals: "List[int]" = []
    handlers: "Dict[int, Any]" = {}

    def on_signal(number: int, frame: object) -> None:
        if signals:
            os._exit(128 + number)
        if not done.is_set():
            signals.append(number)
            raise InterruptedError

    try:
        # Only the main thread may set handlers; a program that embeds us keeps its own.
        with contextlib.suppress(ValueError):
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                numbers.append(signal.SIGHUP)  # nohup has it ignored
            for number in numbers:
                handlers[number] = signal.signal(number, on_signal)
        threading.Thread(target=work, name="command", daemon=True).start()
        while not done.wait(0.5):  # a signal may hit a thread that begins or ends, and wake nobody here
            pass
    except RuntimeError as exc:
        from .context import Context

        Context(flags, cancel).failed(exc)
    except InterruptedError:
        flags.interrupt = 128 + signals[0]
        cancel.cancel()
        done.wait(GRACE)
        while cancel.busy and not done.wait(0.1):
            pass
        if not done.is_set():  # a name look-up hangs
            from .context import Context
            from ..errors import Cancelled

            Context(flags, cancel).failed(Cancelled())
        return 128 + signals[0]
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler or signal.SIG_DFL)
    return codes[-1]


def unwritten(error: Exception) -> int:
    """Say why stdout or stderr takes nothing, if that is no closed pipe; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    from ..errors import StorageError
    from .lines import say

    say("write to stdout: %s" % (getattr(error, "strerror", None) or error))
    return StorageError.exit_code
