# SPDX-License-Identifier: Apache-2.0
"""TAB in real shells: each line is typed on a terminal, and its words are those that the program then gets."""
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Dict, List

import pytest

import minipull
from tests.kit import ROOT
from tests.kit.images import Layout
from tests.kit.processes import clean_env, minipull_env, peer, run

SHELLS = ["bash", "zsh", "fish"]
NAME = "registry.example.com:5000/team/app"
PROMPT, DONE = "READY> ", "D0NE"
#: How each shell starts without the user's own files, and prints the words of a command.
START = {
    "bash": (["--norc", "--noprofile", "-i"], "bind 'set enable-bracketed-paste off'; PS1='%s'"),
    "zsh": (["-f", "-i"], "autoload -Uz compinit; compinit -u -D; "
            "unsetopt prompt_sp prompt_cr auto_remove_slash; PROMPT='%s'"),
    "fish": (["--no-config", "-i"], "function fish_prompt; echo -n '%s'; end; set -g fish_autosuggestion_enabled 0")}
ECHO = {"fish": "function minipull; printf '<%%s>' $argv; echo %s; end",
        "": "minipull() { printf '<%%s>' \"$@\"; echo %s; }"}
#: Typed, and the words after TAB.
LINES = [
    ("ima", ["images"]),
    ("pull --all-p", ["pull", "--all-platforms"]),
    ("images --format=j", ["images", "--format=json"]),
    ("images --format j", ["images", "--format", "json"]),
    ("pull --progress pl", ["pull", "--progress", "plain"]),
    ("rm %s:on" % NAME, ["rm", NAME + ":one"]),
    ("rm reg", ["rm", NAME + ":"]),
    ("rm %s" % NAME, ["rm", NAME + ":"]),
    ("inspect docker://reg", ["inspect", "docker://%s:" % NAME]),
    ("copy store:busy", ["copy", "store:busybox:1.36"]),
    ("copy docker:", ["copy", "docker://"]),
    ("copy store:busybox:1.36 oci:lay", ["copy", "store:busybox:1.36", "oci:layout.d/"]),
    ("tags regi", ["tags", NAME]),
    ("login regi", ["login", "registry.example.com:5000"]),
    ("load -i bund", ["load", "-i", "bundle one.tar"]),
    ("--root elsewhere rm ", ["--root", "elsewhere", "rm", "alpine:3.20"]),
    ("rm --root=elsewhere al", ["rm", "--root=elsewhere", "alpine:3.20"]),
    ("completion f", ["completion", "fish"]),
    ("help pul", ["help", "pull"])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two stores, an archive and a folder."""
    home = tmp_path_factory.mktemp("completion")
    layout = Layout(home / "layout.d")
    layout.image([], "1")
    for root, names in (("store", [NAME + ":one", NAME + ":two", "busybox:1.36"]), ("elsewhere", ["alpine:3.20"])):
        store = minipull.Store(str(home / root))
        for name in names:
            minipull.copy("oci:%s:1" % layout.root, "store:" + name, store=store)
    (home / "bundle one.tar").write_bytes(b"")
    return home


class Terminal:
    """A shell on a terminal, in which minipull shows the words that it gets."""

    def __init__(self, shell: str, home: Path, script: str) -> None:
        flags, setting = START[shell]
        env = clean_env(home, {"MINIPULL_ROOT": str(home / "store"), "TERM": "xterm", "COLUMNS": "200",
                               "PYTHONDONTWRITEBYTECODE": "1"})
        self.master, slave = pty.openpty()
        self.text = b""
        self.process = subprocess.Popen(
            [peer(shell), *flags], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=str(home),
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        (home / ("script." + shell)).write_text(script)
        self.send("; ".join([setting % (PROMPT[:3] + "''" + PROMPT[3:]), "source ./script." + shell,
                             ECHO.get(shell, ECHO[""]) % (DONE[:2] + "''" + DONE[2:])]) + "\n")
        self.until(PROMPT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> str:
        """What is printed up to a text, which is left out of the next."""
        limit = time.monotonic() + 30
        while text.encode() not in self.text:
            ready = select.select([self.master], [], [], max(0, limit - time.monotonic()))[0]
            assert ready, "no %r in %r" % (text, self.text)
            self.text += os.read(self.master, 65536)
        before, _, self.text = self.text.partition(text.encode())
        return before.decode("utf-8", "replace")

    def words(self, line: str) -> List[str]:
        """The words that the program gets for a line with TAB at its end."""
        self.send("minipull %s\t\n" % line)
        words = re.findall("<([^<>]*)>", self.until(DONE).rpartition("\n")[2])
        self.until(PROMPT)
        return words


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_commands_options_values_names_and_files(shell: str, place: Path) -> None:
    script = run([sys.executable, "-m", "minipull", "completion", shell], minipull_env(place)).out
    terminal = Terminal(shell, place, script)
    try:
        assert {line: terminal.words(line) for line, _ in LINES} == dict(LINES)
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def programs(place: Path) -> Dict[str, List[str]]:
    """The program as it may be called."""
    (place / "bin").mkdir()
    installed = place / "bin" / "minipull"
    installed.write_text("#!%s\nimport sys\nsys.path.insert(0, %r)\nfrom minipull.cli.main import run\nrun()\n" % (
        sys.executable, str(ROOT)))
    installed.chmod(0o755)
    env = minipull_env(place)
    run([sys.executable, ROOT / "scripts" / "pyz", "of it.pyz"], env, cwd=place)
    run([sys.executable, "-m", "minipull", "--root", "elsewhere", "save", "--bundle", "-o", "site.pyz", "alpine:3.20"],
        env, cwd=place)
    return {"installed": ["minipull"], "module": [sys.executable, "-m", "minipull"],
            "folder": [sys.executable, str(ROOT / "minipull")], "zip": [sys.executable, "of it.pyz"],
            "bundle": [sys.executable, "site.pyz"]}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("way", ["installed", "module", "folder", "zip", "bundle"])
def test_the_script_runs_the_program_that_printed_it(
        shell: str, way: str, programs: Dict[str, List[str]], place: Path) -> None:
    env = minipull_env(place, {"MINIPULL_ROOT": str(place / "store")} if way != "bundle" else {})
    if way == "installed":
        env["PATH"] = "%s:%s" % (place / "bin", env["PATH"])
    script = place / ("%s.%s" % (way, shell))
    script.write_text(run([*programs[way], "completion", shell], env, cwd=place).out)
    env.pop("PYTHONPATH")
    begin = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    done = run([peer(shell), "-c", "%ssource '%s'; minipull images" % (begin, script)], env, cwd=place / "bin")
    assert ("alpine" if way == "bundle" else "busybox") in done.out, done
    if shell == "fish":
        listed = run([peer("fish"), "-c", "source '%s'; complete -C 'minipull rm '" % script], env, cwd=place / "bin")
        assert ("alpine:3.20" if way == "bundle" else "busybox:1.36") in listed.out.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_store_that_can_not_be_read_completes_nothing_and_says_nothing(shell: str, place: Path) -> None:
    script = run([sys.executable, "-m", "minipull", "completion", shell], minipull_env(place)).out
    (place / "torn").mkdir(exist_ok=True)
    (place / "torn" / "index.json").write_text("{")
    terminal = Terminal(shell, place, script)
    try:
        assert terminal.words("--root torn rm x") == ["--root", "torn", "rm", "x"]
    finally:
        terminal.close()
