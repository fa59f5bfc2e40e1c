# SPDX-License-Identifier: Apache-2.0
import os
import runpy
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an early Ctrl-C ends us without a traceback
if __name__ == "__main__" and not __package__:  # run as a folder: python3 DIR/minipull
    sys.path[0], name = os.path.split(os.path.dirname(os.path.abspath(__file__)))
    runpy.run_module(name, run_name="__main__")

from .cli.main import run

run()
