# SPDX-License-Identifier: Apache-2.0
"""Trouble before and below the command is one line and the right exit code, never a traceback."""
import json
import signal
import subprocess
import sys
import zipimport
from pathlib import Path
from typing import Dict, List

import pytest

from minipull.cli.lines import explained
from minipull.errors import InvalidDocument
from tests.kit.processes import Finished, minipull_env, run

MAIN = "import sys\n%s\nfrom minipull.cli.main import main\nsys.exit(main(%r))\n"
NO_MODULE = "minipull: this Python has no %s module, which %s needs; use another Python or install its %s support\n"
NO_THREADS = "minipull: can't start a thread: this user has as many as may be (ulimit -u)\n"


def unmeasured(home: Path) -> Dict[str, str]:
    """An environment without coverage, which loads modules before us."""
    return {key: value for key, value in minipull_env(home).items() if not key.startswith("COVERAGE_")}


def start(home: Path, trouble: str, words: List[str]) -> Finished:
    return run([sys.executable, "-c", MAIN % (trouble, words)], unmeasured(home), cwd=home, check=False)


def failing(name: str, error: str) -> str:
    """A statement after which a function of the standard library raises ``error``."""
    module = name.partition(".")[0]
    return "import %s\ndef fail(*args, **kwargs): raise %s\n%s = fail" % (module, error, name)


@pytest.mark.parametrize("trouble,words,code,err", [
    ("sys.modules['fcntl'] = None", ["images"], 1, NO_MODULE % ("fcntl", "images", "fcntl")),
    ("sys.modules['zlib'] = None", ["save", "app"], 1, NO_MODULE % ("zlib", "save", "zlib")),
    (failing("threading.Thread.start", "RuntimeError(\"can't start new thread\")"), ["images"], 1, NO_THREADS),
    (failing("os.path.abspath", "RuntimeError(\"can't start new thread\")"), ["images"], 1, NO_THREADS),
    (failing("os.path.abspath", "MemoryError"), ["images"], 1, "minipull: no memory left\n"),
    ("sys.argv = []", ["images"], 0, ""),
    ("sys.argv = []", [], 2, "minipull: the following arguments are required: COMMAND; see minipull --help\n"),
    ("sys.argv = []", ["pull"], 2, "minipull: the following arguments are required: REF; see minipull pull --help\n"),
    ("import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", ["images"], 0, ""),
    ("import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", ["--root", "x", "images"], 7,
     "minipull: the working directory has been deleted; change to another one\n"),
], ids=["no fcntl", "no zlib", "no thread", "no thread below", "no memory", "no argv", "no argv, no command",
        "no argv, no operand", "no directory", "no directory, relative root"])
def test_trouble_of_the_host_is_one_line(home: Path, trouble: str, words: List[str], code: int, err: str) -> None:
    done = start(home, trouble, words)
    assert (done.code, done.err) == (code, err)


def test_without_threads_the_stream_of_json_has_the_failure(home: Path) -> None:
    trouble = failing("threading.Thread.start", "RuntimeError(\"can't start new thread\")")
    done = start(home, trouble, ["pull", "--progress", "json", "localhost:1/r"])
    assert done.code == 1 and json.loads(done.err)["errorDetail"] == {"code": 1, "message": NO_THREADS[10:-1]}


@pytest.mark.parametrize("stream", ["io.StringIO()", "None", "io.TextIOBase()"])
@pytest.mark.parametrize("words", [["images"], ["inspect", "no/such"]])
def test_a_stdout_that_takes_only_text_or_nothing_is_no_traceback(home: Path, stream: str, words: List[str]) -> None:
    done = start(home, "import io; sys.stdout = " + stream, words)
    assert done.code in (0, 3, 7) and "Traceback" not in done.err and "internal error" not in done.err


def test_bytes_for_a_stdout_that_takes_only_text_are_exit_7(home: Path) -> None:
    done = start(home, "import io; sys.stdout = io.StringIO(); sys.stdout.isatty = lambda: False\n"
                 "from minipull.cli import context, images\n"
                 "images.do_images = lambda context, flags: context.write(b'x')", ["images"])
    assert (done.code, done.err) == (7, "minipull: write to stdout: it takes text alone\n")


def test_an_interrupt_while_modules_are_loaded_is_no_traceback(home: Path) -> None:
    (home / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    env = unmeasured(home)
    env["PYTHONPATH"] = "%s:%s" % (home, env["PYTHONPATH"])
    done = subprocess.run(  # a shell's background jobs, as this may be one, have the signal ignored
        [sys.executable, "-m", "minipull", "images"], env=env, cwd=str(home), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, timeout=60, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_a_program_in_a_damaged_zip_says_so() -> None:
    error = explained(zipimport.ZipImportError("bad local file header: 'x.pyz'"), "check")
    assert isinstance(error, InvalidDocument)
    assert str(error) == "this program is damaged: bad local file header: 'x.pyz'"
