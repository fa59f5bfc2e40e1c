# SPDX-License-Identifier: Apache-2.0
"""The command line is found by people who know another one."""
from pathlib import Path
from typing import Tuple

import pytest

from minipull.cli.parser import command_line
from tests.kit.commands import Call


@pytest.mark.parametrize("typed, meant", [
    ("pul", "pull"), ("rmi", "rm"), ("ls", "images"), ("image", "images"), ("list-tags", "tags"), ("cp", "copy"),
    ("sav", "save"), ("verfy", "verify"), ("prune", "gc")])
def test_a_command_of_another_tool_is_answered_with_ours(call: Call, typed: str, meant: str) -> None:
    result = call(typed, "x")
    assert result.code == 2
    assert result.line == "minipull: there is no command %s; did you mean %s? see minipull --help\n" % (typed, meant)


def test_a_command_like_none_is_answered_in_one_line(call: Call) -> None:
    assert call("zzz").line == "minipull: there is no command zzz; see minipull --help\n"


@pytest.mark.parametrize("words, meant", [
    (("pull", "--platfrom", "x", "r"), "--platform"), (("copy", "--no-clober", "a", "b"), "--no-clobber"),
    (("serve", "--lisen=x"), "--listen")])
def test_a_misspelt_option_is_answered_with_the_one_that_is_meant(call: Call, words: Tuple[str, ...], meant: str) -> None:
    result = call(*words)
    assert result.code == 2 and "did you mean %s? see minipull" % meant in result.line


@pytest.mark.usefixtures("no_repeats")
@pytest.mark.parametrize("command", [("images",), ("check",), ("gc",), ("tags", "127.0.0.1:1/x"), ("inspect", "x")])
def test_flags_of_all_commands_stand_before_or_after_the_command(
        call: Call, tmp_path: Path, command: Tuple[str, ...]) -> None:
    root = str(tmp_path / "elsewhere")
    before, after = call("--root", root, "-v", *command), call(*command, "--root", root, "-v")
    assert (before.code, before.out) == (after.code, after.out)
    assert call("images", "--root", root).err == "warning: there is no store at %s\n" % root
    assert call("images", "--config", str(tmp_path / "none")).code == 2


@pytest.mark.parametrize("words", [
    ("--only", "localhost", "tags", "x"), ("--offline", "pull", "x"), ("-v", "--platform=x", "pull", "x")])
def test_a_flag_of_a_command_before_it_is_told_where_it_stands(call: Call, words: Tuple[str, ...]) -> None:
    result = call(*words)
    flag = next(word for word in words if word.startswith("--"))
    assert result.code == 2 and result.line.startswith("minipull: %s before the command; only --root, " % flag)


def test_help_of_a_command_is_asked_for_in_three_ways(call: Call) -> None:
    texts = {call("help", "pull").out, call("pull", "--help").out, call("pull", "-h").out}
    assert len(texts) == 1 and "example: minipull pull alpine:3.20" in texts.pop()
    assert call("help").out == call("--help").out


def test_help_says_of_every_flag_what_it_does() -> None:
    silent = [(name, action.option_strings) for name, command in command_line([]).commands.items()
              for action in command._actions if action.option_strings and not action.help]
    assert silent == []
