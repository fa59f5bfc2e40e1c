# SPDX-License-Identifier: Apache-2.0
"""The command completion: scripts for shells, and the words that these ask for when TAB is pressed.

A script, ``completion.SHELL`` beside this file, knows no word itself: it gives the words
typed so far to ``completion SHELL +WORD...`` (a plus before each, so that none is an option)
and gets lines: a word, and behind a tab its description.  A line ``:files PREFIX`` stands for
the shell's own completion of a path, behind a prefix such as ``oci:``.
"""
import argparse
import os
import re
import shlex
import sys
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple, cast

from ..parts import PARTS, shutil
from .context import Context
from .parser import Parser, built, command_position

_FILES = ":files"
#: What stands for a value in the help, and words for it.
_VALUES = {
    "BOOL": "true false", "MODE": "auto tty plain json none", "PART,...": " ".join(PARTS),
    "OS/ARCH[/VARIANT]":
        "linux/amd64 linux/arm64 linux/arm/v7 linux/386 linux/ppc64le linux/riscv64 linux/s390x"}
_NAMES = ("REF", "REPO", "SRC", "DST", "DEST", "NAME")  # these and what begins with them: names of the store
_HOSTS = ("REGISTRY", "HOST")
_PLACES = ("docker://", "store:", "oci:", "oci-archive:", "docker-archive:")

_FUNCTION = {"fish": "type -q minipull; or function minipull; %s $argv; end\n",
             "": "command -v minipull >/dev/null || minipull() { %s \"$@\"; }\n"}


def do_completion(context: Context, flags: argparse.Namespace) -> None:
    """Print a shell's script, or what may stand in place of the last of the words."""
    if flags.words:
        words = [_unquoted(word[1:]) if flags.shell == "bash" else word[1:] for word in flags.words]
        context.write("".join(line + "\n" for line in candidates(context, flags, words)))
        return
    import pkgutil  # not where TAB is pressed
    program, defined = _program(), ""
    if program != "minipull":
        defined = (_FUNCTION.get(flags.shell) or _FUNCTION[""]) % program
    script = cast(bytes, pkgutil.get_data(__package__, "completion." + flags.shell)).decode()
    script = script.replace("PROGRAM", "command minipull" if program == "minipull" else program)
    head, _, rest = script.partition("\n")  # the first line of zsh must stay the first
    context.write("%s\n%s%s" % (head, defined, rest))


def _program() -> str:
    """The words that run this program from anywhere: minipull, or Python and the path of a zip or folder."""
    installed = shutil.which("minipull")
    if installed and sys.argv and os.path.realpath(sys.argv[0]) == os.path.realpath(installed):
        return "minipull"
    path = getattr(__spec__ and __spec__.loader, "archive", "") or os.path.dirname(os.path.dirname(__file__))
    return "%s %s" % (shlex.quote(sys.executable), shlex.quote(os.path.abspath(path)))


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word)[:1])
    except ValueError:  # a quote is still open
        return word.lstrip("\"'")


def candidates(context: Context, flags: argparse.Namespace, words: Sequence[str]) -> Iterator[str]:
    """The lines for the last of the words behind the program."""
    before, word = list(words[:-1]), words[-1]
    position = command_position(before)
    command = "".join(before[position:position + 1])
    parser = built(command)
    option, _ = _typed(parser, before[:position], flags)
    operands: List[argparse.Action] = []
    number = 0
    if command:
        if command not in parser.commands:
            return
        parser = parser.commands[command]
        option, number = _typed(parser, before[position + 1:], flags)
        operands = [item for item in parser._actions
                    if not item.option_strings and item.help != argparse.SUPPRESS]
    prefix = ""
    if option is None and word.startswith("--") and "=" in word:
        prefix, word = word[:word.index("=") + 1], word[word.index("=") + 1:]
        option = _option(parser, prefix[:-1])
        if option is None:
            return
    if option is not None:
        lines = _values(context, option, word)
    elif word.startswith("-"):
        lines = ["%s\t%s" % (name, item.help) for item in parser._actions for name in item.option_strings
                 if item.help != argparse.SUPPRESS]
    elif not command:
        lines = _commands(parser)
    elif number < len(operands) or any(item.nargs in ("+", "*") for item in operands):
        lines = _values(context, operands[min(number, len(operands) - 1)], word, command)
    else:
        return
    for line in lines:
        if line.startswith(_FILES):
            yield "%s %s%s" % (_FILES, prefix, line[len(_FILES):])
        elif line.startswith(word):
            yield prefix + line


def _commands(parser: Parser) -> List[str]:
    return ["%s\t%s" % (name, (command.description or "").partition("\n")[0])
            for name, command in parser.commands.items()]


def _option(parser: Parser, name: str) -> Optional[argparse.Action]:
    """The option that takes a value; --src-X is as --X."""
    action = parser._option_string_actions.get(name)
    if action is not None and action.metavar == "VALUE":
        return parser._option_string_actions.get(re.sub("^--(src|dest)-", "--", name))
    return None if action is None or action.nargs == 0 else action


def _typed(parser: Parser, words: Iterable[str],
           flags: argparse.Namespace) -> Tuple[Optional[argparse.Action], int]:
    """The option whose value is still to come, and the number of operands; keeps --root and --config."""
    waiting: Optional[argparse.Action] = None
    operands = 0
    for word in words:
        name, equals, value = word.partition("=")
        option, waiting = waiting, None
        if option is None and word.startswith("-"):
            option = _option(parser, name)
            if option is not None and not equals:
                waiting = option
                continue
        elif option is None:
            operands += 1
        else:
            value = word
        if option is not None and option.dest in ("root", "config"):
            setattr(flags, option.dest, os.path.expanduser(value))
    return waiting, operands


def _values(context: Context, action: argparse.Action, word: str, command: str = "") -> Iterable[str]:
    """Words for the value of an option, or for an operand of a command."""
    label = str(action.metavar or action.dest)
    if action.choices:
        return map(str, action.choices)
    if label in _VALUES or label.islower():  # oci|docker
        return re.split("[ |]", _VALUES.get(label, label))
    if word.startswith("@") and command:
        return [_FILES + "@"]
    if label == "COMMAND":
        return _commands(built())
    lines: List[str] = []
    if label.startswith(_NAMES) and command:
        place = next((place for place in _PLACES if word.startswith(place)), "")
        if place in _PLACES[2:]:
            return [_FILES + place]
        if command == "copy" and not place:
            return _PLACES
        lines = [place + name for name in _names(context, label)]
    elif label.startswith(_HOSTS):
        lines = _names(context, label)
    return lines + [_FILES] if re.search("FILE|DIR", label) or (label == "PATH" and not command) else lines


def _names(context: Context, label: str) -> List[str]:
    """The names in the store; of repositories, or of registries, as the label says."""
    names = [item.name for item in context.source.references.all()]
    return sorted({name.domain if label.startswith(_HOSTS) else name.familiar_name if label == "REPO" else
                   name.familiar for name in names})
