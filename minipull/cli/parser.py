# SPDX-License-Identifier: Apache-2.0
"""The parser of a command line: of the one command that it names."""
import argparse
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type

from ..parts import Late, part

if TYPE_CHECKING:
    from . import habits
else:
    habits = Late(__name__.rpartition(".")[0] + ".habits")  # in a zip, Python 3.6 sets __package__ later

#: The commands as the help of all lists them.
_GROUPS: Sequence[Tuple[str, str]] = (
    ("Images from and to registries", "pull push copy"),
    ("Images on this host", "images inspect history tag rm check df gc"),
    ("Archives", "save load"),
    ("Files of an image", "unpack export cat"),
    ("Questions to a registry", "tags digest manifest catalog referrers blob delete"),
    ("Access and trust", "login logout verify"),
    ("More", "serve doctor completion help"))


class Parser(argparse.ArgumentParser):
    commands: Mapping[str, "Parser"] = {}

    def __init__(self, *args: Any, formatter: Type[argparse.HelpFormatter] = argparse.HelpFormatter,
                 **fields: Any) -> None:
        # Of its own accord argparse asks at each option how wide the terminal is, and imports shutil for that.
        fields["formatter_class"] = functools.partial(formatter, width=78)
        super().__init__(*args, **fields)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line instead of argparse's usage text."""
        from .lines import say

        if "invalid choice: '{{" in message:
            message += "; " + habits.option("{{", "", ())
        say("%s%s see %s --help" % (message, "" if message.endswith("?") else ";", self.prog))
        raise SystemExit(2)

    def parsed(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; raises SystemExit."""
        flags, rest = self.parse_known_args(_words(arguments))
        parser, given = self.commands.get(flags.command or "", self), vars(flags)
        refs = given.get("refs") or [given[name] for name in ("ref", "dest") if given.get(name)]
        operands = [*refs, *rest]
        answer = habits.operand(flags.command, *operands) if len(operands) == 2 else ""
        if answer:
            parser.error(answer)
        if rest:
            options = [word for word in rest if word.startswith("-") and len(word) > 1]
            parser.refuse((options or [" ".join(rest)])[0], flags.command)
        return flags

    def refuse(self, text: str, command: str) -> NoReturn:
        """Exit for an argument that a command does not take; the value of an option may be a secret."""
        names = [name for action in self._actions for name in action.option_strings]
        answer = habits.option(text, command, names)
        if text.startswith("-"):
            text = text.partition("=")[0] if text.startswith("--") else text[:2]
        elif command == "login":
            text, answer = "a word after REGISTRY", "did you mean -u USER --password-stdin?"
        self.error("unrecognized arguments: %s%s" % (text, answer and "; " + answer))


def program() -> str:
    """This program as it was called: installed, as ``-m PACKAGE``, or by the path of a zip or a folder."""
    path = sys.argv[0] if sys.argv else ""
    folder = os.path.dirname(os.path.dirname(__file__))
    if path == os.path.join(folder, "__main__.py"):
        return "python3 -m " + __package__.rpartition(".")[0]
    zipped = getattr(__spec__ and __spec__.loader, "archive", "")
    if zipped or os.path.isdir(path) and os.path.samefile(path, folder):
        import shlex
        return "python3 " + shlex.quote(path)
    return "minipull"


class _Unbuilt:
    """A command that this run does not need, since building all of them takes longer than most take to run."""

    def add_argument(self, *args: object, **fields: object) -> None:
        """Pass it over."""


_BEFORE = ("--root", "--config", "--strict-store", "--verbose", "--version", "--help")


def _add_command(subparsers: Any, wanted: str, module: str, name: str, help: str, example: str, *operands: str,
                 shared: Callable[[Parser], None] = lambda parser: None,
                 formats: Sequence[str] = ("text", "json")) -> Any:
    """Add a command, which is in ``module`` of this wing, if it is ``wanted``; flags of several are ``shared``."""
    if wanted not in ("", name):
        return _Unbuilt()
    parser: Parser = subparsers.add_parser(
        name, help=help.partition("\n")[0], description=help, allow_abbrev=False,
        epilog="example: %s %s" % (program(), example))
    shared(parser)
    parser.set_defaults(module=module)
    parser.add_argument("--format", choices=formats,
                        help="oci and docker as --convert" if "oci" in formats else "of the result")
    _add_common(parser, argparse.SUPPRESS, argparse.SUPPRESS, name != "inspect")
    for operand in operands:
        parser.add_argument(operand, metavar=operand.upper())
    return parser


def command_line(arguments: Sequence[str]) -> Parser:
    """Build the parser of a command line: of the command in it, or if there is none of all."""
    words = _words(arguments)
    position = command_position(words)
    for word in words[:position]:
        if word.startswith("--") and word.partition("=")[0] not in _BEFORE:
            answer = habits.option(word, "", ())
            built().error("%s before the command; %s" % (
                word.partition("=")[0], answer or "only %s stand there" % ", ".join(_BEFORE)))
    if position == len(words):
        return built()
    parser = built(words[position])
    if parser.commands and (len(words) == position + 1 or not habits.command(words[position:], parser.commands)[1]):
        return parser
    parser = built()
    typed, answer = habits.command(words[position:], parser.commands)
    parser.error("there is no command %s%s" % (typed, answer and "; " + answer))


def command_position(words: Sequence[str]) -> int:
    """The position of the command among words, or how many these are."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in ("--root", "--config") else 1
    return min(position, len(words))


def _words(arguments: Sequence[str]) -> List[str]:
    """The words of a command line; ``help CMD`` is ``CMD --help``."""
    words = list(arguments)
    position = command_position(words)
    if words[position:position + 1] == ["help"]:
        words = words[:position] + words[position + 1:position + 3] + ["--help"]
    return words


def built(wanted: str = "") -> Parser:
    """The parser with the command that is wanted, or with all of them."""
    parser = Parser(
        prog=program(), allow_abbrev=False, formatter=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--root PATH] [--config FILE] [-v] COMMAND ...",
        epilog="example: %s pull alpine:3.20" % program())
    parser.set_defaults(module="bundle", format=None)  # of no command
    parser.add_argument("--version", action="store_true", help="with -v: the digest of this program too")
    _add_common(parser, None, "")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog=program(), help=argparse.SUPPRESS)
    parser.commands = subparsers.choices
    for flags in ("local", "commands"):
        if wanted not in subparsers.choices:
            for module, add_commands in part("cli." + flags).COMMANDS.items():
                add_commands(functools.partial(_add_command, subparsers, wanted, module))
    if not wanted:
        _describe(parser, {action.dest: action.help or "" for action in subparsers._choices_actions})
    return parser


def _describe(parser: Parser, helps: Mapping[str, str]) -> None:
    text = "Pull, push, copy and carry container images with nothing but Python's\nstandard library."
    for title, names in _GROUPS:
        text += "\n\n%s:" % title
        for name in names.split():
            text += "\n  %-10s  %s" % (name, helps[name]) if name in helps else ""
    parser.description = text


def _add_common(parser: Parser, default: Optional[str], hidden: str, settings: bool = True) -> None:
    """Add the flags that stand before a command or after it, where they are ``hidden`` from its help."""
    add = functools.partial(parser.add_argument, default=default)
    add("--root", metavar="PATH", help=hidden or "the store, or an archive to read as one")
    add("--strict-store", action="store_true", help=hidden or "refuse one open to others")
    if settings:
        add("--config", metavar="FILE", help=hidden or "settings file")
    add("-v", "--verbose", action="store_true", help=hidden or "connections, tracebacks")
