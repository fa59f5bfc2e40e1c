# SPDX-License-Identifier: Apache-2.0
"""The commands login and logout.

A password comes from the terminal or from stdin and is never shown: an argument
could be read by other users of the host (ps).
"""
import argparse
import getpass
import re
import sys
import termios
from typing import Tuple

from ..errors import InvalidReference
from ..registry.auth import Credential, Keyring
from ..registry.client import Client
from ..registry.login import Logins, login_with, registry
from .context import Context

_MAX_PASSWORD = 1 << 16  # bytes


def do_login(context: Context, flags: argparse.Namespace) -> None:
    name, access = registry(flags.registry), context.access
    username, password = _user_and_password(context, flags)
    with Client(access.service([name.domain], context.network), Keyring()) as client:
        credential = login_with(client, name, Credential(username, password), context.cancel, context.alert)
    _logins(context).keep(name.domain, credential, context.cancel)
    context.answer({"registry": name.domain, "username": username}, ["Login Succeeded"])


def do_logout(context: Context, flags: argparse.Namespace) -> None:
    domain = registry(flags.registry).domain
    removed = _logins(context).forget(domain, context.cancel)
    words = "Removing login credentials for" if removed else "Not logged in to"
    context.answer({"registry": domain, "removed": removed}, ["%s %s" % (words, domain)])


def _logins(context: Context) -> Logins:
    access = context.access
    return Logins(access.authfile or access.docker_config, access.helper_environ, context.settings.timeout)


def _user_and_password(context: Context, flags: argparse.Namespace) -> Tuple[str, str]:
    if flags.password_stdin:
        if not flags.username:
            raise InvalidReference("--password-stdin needs -u USER")
        data = sys.stdin.buffer.read(_MAX_PASSWORD + 1) if sys.stdin else b""
        if len(data) > _MAX_PASSWORD:
            raise InvalidReference("the password on stdin is longer than %d bytes" % _MAX_PASSWORD)
        return flags.username, re.sub("\r?\n?\\Z", "", data.decode("utf-8", "surrogateescape"))
    if not sys.stdin or not sys.stdin.isatty():
        raise InvalidReference("no terminal to ask for the password on; use -u USER --password-stdin")
    try:
        username = flags.username
        if not username:
            print("Username: ", end="", file=sys.stderr, flush=True)
            username = input()
        # On ^C the process exits while this thread still waits in getpass, which has turned echo off.
        attributes = termios.tcgetattr(sys.stdin)
        with context.cancel.calling(lambda: termios.tcsetattr(sys.stdin, termios.TCSANOW, attributes)):
            return username, getpass.getpass()
    except EOFError:
        raise InvalidReference("no user name or password was typed") from None
