# SPDX-License-Identifier: Apache-2.0
"""The command line is found by people who know another one."""
import re
import sys
from pathlib import Path
from typing import Tuple

import pytest

from minipull.cli import habits
from minipull.cli.parser import command_line
from tests.kit import ROOT
from tests.kit.commands import Call
from tests.kit.images import Layout
from tests.kit.processes import minipull_env, run


@pytest.mark.parametrize("typed, meant", [
    ("pul", "pull"), ("rmi", "rm"), ("rimi", "rm"), ("ls", "images or tags"), ("lst", "images"),
    ("image", "images"), ("list-tags", "tags"), ("cp", "copy"), ("sav", "save"), ("verfy", "verify"), ("prune", "gc"),
    ("help pul", "pull")])
def test_a_command_of_another_tool_is_answered_with_ours(call: Call, typed: str, meant: str) -> None:
    result = call(*typed.split(), "x")
    assert result.code == 2
    assert result.line == "minipull: there is no command %s; did you mean %s? see minipull --help\n" % (
        typed.split()[-1], meant)


@pytest.mark.parametrize("typed, meant", sorted(habits._PAIRS.items()))
def test_two_words_of_another_tool_are_answered_with_ours(call: Call, typed: str, meant: str) -> None:
    for words in (typed.split(), [*typed.split(), "x"], ["--root", "r", *typed.split()], ["help", *typed.split()]):
        result = call(*words)
        assert (result.code, result.line) == (
            2, "minipull: there is no command %s; did you mean %s? see minipull --help\n" % (typed, meant))


def test_every_answer_to_a_habit_is_a_command() -> None:
    commands = command_line([]).commands
    answers = [*habits._COMMANDS.values(), *habits._NOUNS.values(), *habits._PAIRS.values()]
    assert {word for answer in answers for word in answer.split(" or ")
            if word and word.split()[0] not in (*commands, "--version", "minipull")} == set()
    assert [typed for typed in habits._COMMANDS if typed in commands] == []


def test_a_command_like_none_is_answered_in_one_line(call: Call) -> None:
    assert call("zzz").line == "minipull: there is no command zzz; see minipull --help\n"


@pytest.mark.parametrize("words, meant", [
    (("pull", "--platfrom", "x", "r"), "--platform"), (("copy", "--no-clober", "a", "b"), "--no-clobber"),
    (("serve", "--lisen=x"), "--listen")])
def test_a_misspelt_option_is_answered_with_the_one_that_is_meant(call: Call, words: Tuple[str, ...], meant: str) -> None:
    result = call(*words)
    assert result.code == 2 and "did you mean %s? see minipull" % meant in result.line


#: Each command with operands that fail or end at once.
EVERY = {
    "blob": ["x@sha256:" + "0" * 64, "--offline"], "catalog": ["127.0.0.1:1", "--offline"],
    "cat": ["x", "/f", "--offline"], "check": [], "completion": ["bash"], "copy": ["store:x", "store:y"], "delete": ["docker://x", "--offline"],
    "df": [], "digest": ["x", "--offline"], "doctor": ["x", "--offline"], "export": ["x", "--offline"], "gc": [],
    "help": [], "history": ["x"], "images": [], "inspect": ["x"], "load": ["-i", "none.tar"],
    "login": ["-u", "ann", "--offline", "127.0.0.1:1"], "logout": ["127.0.0.1:1"], "manifest": ["x", "--offline"],
    "pull": ["x", "--offline"], "push": ["x", "--offline"], "referrers": ["x", "--offline"], "rm": ["x"],
    "save": ["x", "-o", "f.tar"], "serve": ["--listen", "no-port"], "tag": ["x", "y"], "tags": ["x", "--offline"],
    "unpack": ["x", "d", "--offline"], "verify": ["--key", "none.pub", "x"]}


@pytest.mark.usefixtures("no_repeats")
@pytest.mark.parametrize("command", sorted(command_line([]).commands))
def test_flags_of_all_commands_stand_before_or_after_the_command(call: Call, tmp_path: Path, command: str) -> None:
    root, config = str(tmp_path / "elsewhere"), tmp_path / "config.json"
    config.write_text("{}")
    words = [command, *EVERY[command]]
    settings = [["--root", root], ["--root=" + root], ["--strict-store"], ["-v"], ["--verbose"]]
    settings += [] if command == "inspect" else [["--config", str(config)]]  # it has a --config of its own
    for setting in settings:
        before, after = call(*setting, *words), call(*words, *setting)
        assert (before.code, before.out) == (after.code, after.out), setting
        assert before.err.split("\n")[-2:] == after.err.split("\n")[-2:]
        assert "unrecognized" not in before.err + after.err


def test_a_flag_after_the_command_is_obeyed(call: Call, tmp_path: Path) -> None:
    root = str(tmp_path / "elsewhere")
    assert call("images", "--root", root).err == "warning: there is no store at %s\n" % root
    assert call("images", "--config", str(tmp_path / "none")).code == 2


@pytest.mark.parametrize("words", [
    ("--only", "localhost", "tags", "x"), ("--offline", "pull", "x"), ("-v", "--platform=x", "pull", "x")])
def test_a_flag_of_a_command_before_it_is_told_where_it_stands(call: Call, words: Tuple[str, ...]) -> None:
    result = call(*words)
    flag = next(word.partition("=")[0] for word in words if word.startswith("--"))
    assert result.code == 2 and result.line.startswith("minipull: %s before the command; only --root, " % flag)


@pytest.mark.parametrize("command", sorted(command_line([]).commands))
def test_help_of_a_command_is_asked_for_in_three_ways(call: Call, command: str) -> None:
    words = [] if command == "help" else [command]
    texts = {call(*way).out for way in (["help", *words], [*words, "--help"], [*words, "-h"])}
    assert len(texts) == 1 and ("example: minipull " + (command if words else "pull alpine:3.20")) in texts.pop()


def test_help_lists_every_command_within_80_columns(call: Call) -> None:
    text = call("--help").out
    assert max(map(len, text.split("\n"))) < 80
    assert set(re.findall("^  ([a-z]+)  +", text, re.M)) == set(command_line([]).commands)


@pytest.mark.parametrize("way", ["module", "vendored", "folder", "zip", "bundle", "script"])
def test_usage_names_the_program_as_it_was_called(way: str, tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "minipull").symlink_to(ROOT / "minipull")
    env = minipull_env(tmp_path)
    if way == "zip":
        run([sys.executable, ROOT / "scripts" / "pyz", "it's.pyz"], env, cwd=tmp_path)
    elif way == "bundle":
        layout = Layout(tmp_path / "layout")
        layout.image([], "1")
        run([sys.executable, "-m", "minipull", "copy", "oci:layout:1", "store:x:1"], env, cwd=tmp_path)
        run([sys.executable, "-m", "minipull", "save", "--bundle", "-o", "it's.pyz", "x:1"], env, cwd=tmp_path)
    (tmp_path / "minipull").write_text("from minipull.cli.main import run\nrun()\n")
    arguments, name = {
        "module": (["-m", "minipull"], "python3 -m minipull"), "script": (["minipull"], "minipull"),
        "vendored": (["-m", "vendor.minipull"], "python3 -m vendor.minipull"),
        "folder": (["vendor/minipull"], "python3 vendor/minipull"), "zip": (["it's.pyz"], "python3 'it'\"'\"'s.pyz'"),
        "bundle": (["it's.pyz"], "python3 'it'\"'\"'s.pyz'")}[way]
    for words, text in ((["pull"], "see %s pull --help\n"), (["pul"], "see %s --help\n"),
                        (["pull", "-h"], "example: %s pull alpine:3.20\n"), (["-h"], "usage: %s [--root PATH]")):
        done = run([sys.executable, *arguments, *words], env, cwd=tmp_path, check=False)
        assert text % name in done.out + done.err


def test_help_says_of_every_flag_what_it_does() -> None:
    silent = [(name, action.option_strings) for name, command in command_line([]).commands.items()
              for action in command._actions if action.option_strings and not action.help]
    assert silent == []
