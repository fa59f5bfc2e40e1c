# SPDX-License-Identifier: Apache-2.0
"""Commands of this host whose flags take few lines: they start sooner without those of the others."""
import argparse
from typing import Any


def images_commands(add: Any) -> None:
    images = add("images", "list the stored images", "images 'alpine:3.*'")
    images.add_argument("name", metavar="NAME", nargs="?", help="only these: a repository, a name or a glob")
    images.add_argument("-a", "--all", action="store_true", help="signatures and other referrers too")
    images.add_argument("-q", "--quiet", action="store_true", default=None, help="only the IDs, each once")
    images.add_argument("--digests", action="store_true", help="what the registry has under the name, too")
    images.add_argument("--no-trunc", action="store_true", help="whole IDs")
    history = add("history", "show the steps that made a stored image, the last one first", "history alpine:3.20",
                  "ref")
    history.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="this of an index")
    history.add_argument("--no-trunc", action="store_true", help="whole commands")
    add("df", "show what the store takes, and what gc would free", "df")


def serve_command(add: Any) -> None:
    serve = add("serve", "be a registry over the store or an archive", "serve --listen 0.0.0.0:5000")
    serve.add_argument("--listen", metavar="HOST:PORT", help="127.0.0.1:5000; port 0 picks one")
    serve.add_argument("--writable", action="store_true", default=None, help="take pushes, deletes")
    serve.add_argument("--as", metavar="DOMAIN", help="record pushes as DOMAIN/... (localhost)")
    serve.add_argument("--timeout", metavar="SECONDS", help="for clients that stand still (60)")


def shell_commands(add: Any) -> None:
    completion = add("completion", "print what completes commands, options and names in a shell",
                     "completion bash >~/.minipull-completion", formats=("text",))
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    completion.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)  # by a script: to be completed
    topic = add("help", "tell the options of a command", "help pull", formats=("text",))
    topic.add_argument("topic", metavar="COMMAND", nargs="?")


COMMANDS = {"images": images_commands, "serve": serve_command, "completion": shell_commands}
