# SPDX-License-Identifier: Apache-2.0
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an early Ctrl-C ends us without a traceback

from .cli.main import run

run()
