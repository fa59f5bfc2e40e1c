# SPDX-License-Identifier: Apache-2.0
"""The parser of a command line: of the one command that it names."""
import argparse
import functools
import re
import shlex
import sys
from typing import Any, Mapping, NoReturn, Optional, Sequence

from ..parts import carrier
from .commands import (
    add_network, add_progress, ask_commands, copy_command, doctor_command, login_commands, registry_commands,
    rootfs_commands, serve_command, store_commands, verify_command)


#: Commands as docker, skopeo and crane call them.
_HABITS = {"cp": "copy", "image": "images", "list": "images", "list-tags": "tags", "ls": "images",
           "prune": "gc", "rmi": "rm", "untag": "rm", "validate": "check"}


class Parser(argparse.ArgumentParser):
    commands: Mapping[str, "Parser"] = {}

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line instead of argparse's usage text; it has the word that may be meant."""
        from .render import say

        wrong = re.search("(?:invalid choice: '?|unrecognized arguments: )([^' =]+)", message)
        if wrong:
            import difflib

            word = wrong.group(1)
            if not word.startswith("-") and self.commands:
                message = "there is no command %s" % word
            words = [*self.commands, *re.findall("--[a-z-]+", self.format_help())]
            for near in [_HABITS[word]] if word in _HABITS else difflib.get_close_matches(word, words, 1):
                message += "; did you mean %s?" % near
        say("%s%s see %s --help" % (message, "" if message.endswith("?") else ";", self.prog))
        raise SystemExit(2)

    def parsed(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; ``help CMD`` is ``CMD --help``.  Raises SystemExit."""
        words = list(arguments)
        if words[:1] == ["help"]:
            words = words[1:2] + ["--help"]
        flags, rest = self.parse_known_args(words)
        if rest:
            self.commands.get(flags.command or "", self).error("unrecognized arguments: " + " ".join(rest))
        return flags


def program() -> str:
    """This program as it was called: a bundle by its path."""
    return "python3 " + shlex.quote(sys.argv[0]) if carrier() else "minipull"


class _Unbuilt:
    """A command that this run does not need, since building all of them takes longer than most take to run."""

    def add_argument(self, *args: object, **fields: object) -> None:
        """Pass it over."""


_BEFORE = ("--root", "--config", "--strict-store", "--verbose", "--version", "--help")


def _add_command(subparsers: Any, wanted: str, module: str, name: str, help: str, example: str, *operands: str,
                 parents: Sequence[Parser] = (), formats: Sequence[str] = ("text", "json")) -> Any:
    """Add a command, which is in ``module`` of this wing, if it is ``wanted``."""
    if wanted not in ("", name):
        return _Unbuilt()
    parser: Parser = subparsers.add_parser(
        name, help=help, description=help, allow_abbrev=False, epilog="example: %s %s" % (program(), example),
        parents=parents)
    parser.set_defaults(module=module)
    parser.add_argument("--format", choices=formats,
                        help="oci and docker as --convert" if "oci" in formats else "of the result")
    _add_common(parser, argparse.SUPPRESS, argparse.SUPPRESS, name != "inspect")
    for operand in operands:
        parser.add_argument(operand, metavar=operand.upper())
    return parser


def command_line(arguments: Sequence[str]) -> Parser:
    """Build the parser of a command line: of the command in it, or if there is none of all."""
    words = iter(arguments)
    for word in words:
        if word in ("--root", "--config"):
            next(words, "")
        elif word.startswith("--") and word.partition("=")[0] not in _BEFORE:
            _built("").error("%s before the command; only %s stand there" % (word, ", ".join(_BEFORE)))
        elif not word.startswith("-"):
            parser = _built(word)
            if parser.commands:
                return parser
            break
    return _built("")


def _built(wanted: str) -> Parser:
    parser = Parser(
        prog=program(), allow_abbrev=False,
        description="Pull, push, copy and carry container images with nothing but Python's standard library.",
        epilog="example: %s pull alpine:3.20" % program())
    parser.set_defaults(module="bundle", format=None)  # of no command
    parser.add_argument("--version", action="store_true", help="with -v: the digest of this program too")
    _add_common(parser, None, "")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parser.commands = subparsers.choices
    shared = functools.partial(Parser, program(), add_help=False, allow_abbrev=False)
    progress = shared()
    add_progress(progress)
    credentials = shared()
    group = credentials.add_argument_group("network")
    group.add_argument("--creds", metavar="USER[:PASS]", help="for the reference's own registry")
    group.add_argument("--registry-token", metavar="TOKEN", help="sent as it is")
    network = shared()
    add_network(network.add_argument_group("network"))
    commands = {module: functools.partial(_add_command, subparsers, wanted, module)
                for module in (
                    "registry", "copy", "ask", "login", "rootfs", "store", "verify", "doctor", "serve")}
    registry_commands(commands["registry"], [credentials, network])
    copy_command(commands["copy"], [credentials, network])
    ask_commands(commands["ask"], [credentials, network])
    login_commands(commands["login"], network)
    rootfs_commands(commands["rootfs"], [credentials, network])
    store_commands(commands["store"], progress, [credentials, network])
    verify_command(commands["verify"], [credentials, network])
    doctor_command(commands["doctor"], [credentials, network])
    serve_command(commands["serve"])
    return parser


def _add_common(parser: Parser, default: Optional[str], hidden: str, settings: bool = True) -> None:
    """Add the flags that stand before a command or after it, where they are ``hidden`` from its help."""
    add = functools.partial(parser.add_argument, default=default)
    add("--root", metavar="PATH", help=hidden or "the store, or an archive to read as one")
    add("--strict-store", action="store_true", help=hidden or "refuse one open to others")
    if settings:
        add("--config", metavar="FILE", help=hidden or "settings file")
    add("-v", "--verbose", action="store_true", help=hidden or "connections, tracebacks")
