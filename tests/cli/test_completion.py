# SPDX-License-Identifier: Apache-2.0
"""The words that a shell's script asks for; the scripts themselves are tried in tests/peers."""
import argparse
from pathlib import Path
from typing import List

import pytest

from minipull.cli.parser import command_line
from tests.kit.commands import Call

COMMANDS = sorted(command_line([]).commands)


def answers(call: Call, line: str, shell: str = "zsh") -> List[str]:
    """The words for the last one of a line, without their descriptions."""
    result = call("completion", shell, *("+" + word for word in line.split(" ")))
    assert (result.code, result.err) == (0, "")
    return [text.partition("\t")[0] for text in result.out.split("\n")[:-1]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_help_shows_is_completed_and_so_is_its_value(call: Call, command: str) -> None:
    actions = [action for action in command_line([]).commands[command]._actions
               if action.option_strings and action.help != argparse.SUPPRESS]
    assert answers(call, command + " -") == [name for action in actions for name in action.option_strings]
    for action in actions:
        for name in action.option_strings if action.nargs != 0 else ():
            values = answers(call, "%s %s " % (command, name))
            assert set(values) >= set(action.choices or ())
            if name.startswith("--"):
                prefixed = answers(call, "%s %s=" % (command, name))
                assert [text.replace(name + "=", "") for text in prefixed] == values
    assert answers(call, command + " -x") == []


@pytest.mark.parametrize("line, words", [
    ("", COMMANDS), ("help ", COMMANDS), ("no-command x", []), ("pus", ["push"]), ("--ro", ["--root"]),
    ("--root ", [":files "]), ("--root=", [":files --root="]), ("--zzz=", []), ("images --all=", []),
    ("save --without s", ["server"]), ("save --base ", [":files "]), ("pull @", [":files @"]),
    ("copy --dest-tls-verify ", ["true", "false"]), ("copy --dest-authfile ", [":files "]),
    ("copy --convert ", ["oci", "docker"]),
    ("copy oci-archive:x", [":files oci-archive:"]), ("copy oci", ["oci:", "oci-archive:"]),
    ("unpack x ", [":files "]), ("unpack x d ", []), ("cat x ", []), ("check ", ["HOST/r:latest", ":files "]),
    ("rm ", ["HOST/r:latest"]), ("copy x store:", ["store:HOST/r:latest"]), ("tags ", ["HOST/r"]),
    ("catalog ", ["HOST"]), ("rm --root none ", []), ("rm --root=none ", []), ("--root none rm ", []),
    ("inspect --config ", ["HOST/r:latest"])])
def test_a_place_on_the_line_has_its_words(call: Call, stored: str, line: str, words: List[str]) -> None:
    host = stored.partition("/")[0]
    assert sorted(answers(call, line)) == sorted(word.replace("HOST", host) for word in words)


@pytest.mark.parametrize("typed", ["'--root'", "\"--root\"", "--ro\\ot"])
def test_the_words_of_bash_are_unquoted(call: Call, stored: str, typed: str) -> None:
    assert answers(call, typed + " none rm ", "bash") == []
    assert answers(call, "images 'it --a", "bash") == ["--all"]


def test_a_store_that_can_not_be_read_has_no_names(call: Call, root: Path) -> None:
    root.mkdir()
    (root / "index.json").write_text("{")
    assert call("completion", "fish", "+rm", "+").out == ""


@pytest.mark.parametrize("shell, first", [
    ("bash", "# bash completion"), ("zsh", "#compdef minipull"), ("fish", "# fish completion")])
def test_a_script_defines_the_command_where_none_is_installed(call: Call, shell: str, first: str) -> None:
    lines = call("completion", shell).out.split("\n")
    assert lines[0].startswith(first) and "minipull" in lines[1] and "/minipull" in lines[1]
