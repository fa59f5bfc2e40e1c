# SPDX-License-Identifier: Apache-2.0
"""Every flag of the command line, by the modules that hold the commands."""
import argparse
import functools
import re
import shlex
import sys
from typing import Any, Callable, Mapping, NoReturn, Optional, Sequence

from ..parts import carrier


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


_Add = Callable[..., Any]
_BEFORE = ("--root", "--config", "--strict-store", "--verbose", "--version", "--help")
_DRY_RUN = "only say what would move, and what is there"
_LISTS = "@FILE stands for its lines (@- for stdin), and a tag may be a glob"


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
    _add_progress(progress)
    credentials = shared()
    group = credentials.add_argument_group("network")
    group.add_argument("--creds", metavar="USER[:PASS]", help="for the reference's own registry")
    group.add_argument("--registry-token", metavar="TOKEN", help="sent as it is")
    network = shared()
    _add_network(network.add_argument_group("network"))
    commands = {module: functools.partial(_add_command, subparsers, wanted, module)
                for module in (
                    "registry", "copy", "ask", "login", "rootfs", "store", "verify", "doctor", "serve")}
    _registry_commands(commands["registry"], [credentials, network])
    _copy_command(commands["copy"], [credentials, network])
    _ask_commands(commands["ask"], [credentials, network])
    _login_commands(commands["login"], network)
    _rootfs_commands(commands["rootfs"], [credentials, network])
    _store_commands(commands["store"], progress, [credentials, network])
    verify = commands["verify"](
        "verify", "check cosign's signatures of an image in the store, of docker://REF, oci:DIR[:NAME] or"
        " oci-archive:FILE[:REF] by a public key (ECDSA P-256); not checked are certificates (keyless),"
        " attestations, bundles, the transparency log and dates",
        "verify --key cosign.pub docker://registry.example.com/app:1", "ref", parents=[credentials, network])
    verify.add_argument("--key", dest="verify_key", metavar="FILE", action="append",
                        help="the public key; one of several is enough")
    doctor = commands["doctor"]("doctor", "test this program and this host, or each step of a pull of REF",
                                "doctor alpine:3.20", parents=[credentials, network])
    doctor.add_argument("ref", metavar="REF", nargs="?", help="go the way of its pull")
    doctor.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
    serve = commands["serve"](
        "serve", "be a registry over the store or an archive", "serve --listen 0.0.0.0:5000")
    serve.add_argument("--listen", metavar="HOST:PORT", help="127.0.0.1:5000; port 0 picks one")
    serve.add_argument("--writable", action="store_true", default=None, help="take pushes, deletes")
    serve.add_argument("--as", metavar="DOMAIN", help="record pushes as DOMAIN/... (localhost)")
    serve.add_argument("--timeout", metavar="SECONDS", help="for clients that stand still (60)")
    return parser


def _add_common(parser: Parser, default: Optional[str], hidden: str, settings: bool = True) -> None:
    """Add the flags that stand before a command or after it, where they are ``hidden`` from its help."""
    add = functools.partial(parser.add_argument, default=default)
    add("--root", metavar="PATH", help=hidden or "the store, or an archive to read as one")
    add("--strict-store", action="store_true", help=hidden or "refuse one open to others")
    if settings:
        add("--config", metavar="FILE", help=hidden or "settings file")
    add("-v", "--verbose", action="store_true", help=hidden or "connections, tracebacks")


def _add_network(group: Any) -> None:
    group.add_argument("--authfile", metavar="FILE", help="the only file of credentials")
    group.add_argument("--tls-verify", metavar="BOOL", help="false: trust any certificate")
    group.add_argument("--plain-http", action="store_true", default=None, help="no TLS at all")
    group.add_argument("--legacy-v1", action="store_true", default=None,
                       help="the v1 protocol too, where v2 is not spoken")
    group.add_argument("--ca-file", metavar="FILE", help="certificates to trust besides the system's")
    group.add_argument("--cert-dir", metavar="DIR", help="as one of certs.d, for this registry")
    group.add_argument("--header", metavar="K:V", action="append", help="sent with every request")
    group.add_argument("--timeout", metavar="SECONDS", help="without progress (60)")
    group.add_argument("--limit-rate", metavar="SIZE", help="bytes a second in and out, as 10M")
    group.add_argument("--only", metavar="HOST[:PORT],...", help="ask no other host")
    group.add_argument("--offline", action="store_true", default=None, help="ask no host at all")
    _add_progress(group)


def _add_progress(group: Any) -> None:
    group.add_argument("-q", "--quiet", action="store_true", default=None, help="no progress")
    group.add_argument("--progress", metavar="MODE", help="auto, tty, plain, json or none")


def _registry_commands(add: _Add, remote: Sequence[Parser]) -> None:
    pull = add("pull", "store images from a registry", "pull alpine:3.20", parents=remote)
    pull.add_argument("refs", metavar="REF", nargs="+", help=_LISTS)
    pull.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
    pull.add_argument("--all-platforms", action="store_true", help="the index and all that is in it")
    pull.add_argument("-a", "--all-tags", action="store_true", help="every tag of the repository")
    pull.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
    pull.add_argument("--foreign", action="store_true", default=None,
                      help="fetch layers from the URLs that a manifest names")
    pull.add_argument("--referrers", action="store_true", default=None, help="signatures and SBOMs too")
    pull.add_argument("--jobs", metavar="N", help="downloads at once (6)")
    pull.add_argument("--attempts", metavar="N", help="tries for one layer (5)")
    _add_verifying(pull)
    push = add("push", "send stored images to a registry",
               "push alpine:3.20 registry.example.com/alpine:3.20", parents=remote)
    push.add_argument("ref", metavar="REF", help=_LISTS)
    push.add_argument("dest", metavar="DEST", nargs="?", help="push under this name")
    push.add_argument("-a", "--all-tags", action="store_true", help="every tag of the name")
    push.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
    push.add_argument("--legacy-schema1", action="store_true", default=None,
                      help="as schema 1 where the manifest is refused")
    _add_sending(push, "layer")
    add("tags", "list the tags of a repository", "tags alpine", "repo", parents=remote)
    add("manifest", "print a manifest as it is", "manifest alpine:3.20", "ref", parents=remote)
    digest = add("digest", "print what a tag points to", "digest --pin @images.txt", parents=remote)
    digest.add_argument("refs", metavar="REF", nargs="+", help=_LISTS)
    digest.add_argument("-a", "--all-tags", action="store_true", help="every tag of the repository")
    digest.add_argument("--pin", action="store_true", help="as NAME:TAG@DIGEST, the lines of a list")


def _copy_command(add: _Add, remote: Sequence[Parser]) -> None:
    copy = add(
        "copy", "copy images from place to place: docker://REF, store:REF, oci:DIR[:NAME] or"
        " oci-archive:FILE[:REF]; many into docker://HOST/[PATH/], store:, oci:DIR or oci-archive:FILE",
        "copy docker://alpine:3.20 oci:layouts:alpine", parents=remote,
        formats=("text", "json", "oci", "docker"))
    copy.add_argument("srcs", metavar="SRC", nargs="+",
                      help="or @FILE, docker://REPO:v1.*, store: or an archive for all that it has")
    copy.add_argument("dst", metavar="DST")
    copy.add_argument("--convert", metavar="oci|docker", help="rewrite manifests; their digests change")
    copy.add_argument("--dry-run", action="store_true", default=None, help="ask and count; send nothing")
    copy.add_argument("-n", "--no-clobber", action="store_true", default=None,
                      help="leave alone what the target has under the name")
    copy.add_argument("-k", "--keep-going", action="store_true", default=None, help="go on after a failure")
    copy.add_argument("-a", "--all-tags", action="store_true", help="every tag of each repository")
    copy.add_argument("--all", action="store_true", help=argparse.SUPPRESS)  # skopeo's word for what we do
    copy.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", action="append",
                      help="only this of an index; may be repeated")
    copy.add_argument("--compress", metavar="gzip", help="layers in zstd or none become gzip")
    copy.add_argument("--referrers", action="store_true", default=None, help="signatures and SBOMs too")
    _add_verifying(copy)
    _add_sending(copy, "blob")
    for side in ("src", "dest"):
        for flag in ("creds", "registry-token", "authfile", "tls-verify", "ca-file", "cert-dir"):
            copy.add_argument("--%s-%s" % (side, flag), metavar="VALUE", help="--%s for one end" % flag)
        copy.add_argument("--%s-plain-http" % side, action="store_true", default=None, help="as above")


def _add_verifying(receiver: Parser) -> None:
    receiver.add_argument("--verify-key", metavar="FILE", action="append",
                          help="keep nothing that this key has not signed (see verify); may be repeated")


def _add_sending(sender: Parser, kind: str) -> None:
    sender.add_argument("--foreign", action="store_true", default=None,
                        help="also layers that have URLs, if they are here")
    sender.add_argument("--chunk-size", metavar="SIZE", help="the most that one request brings, as 10M")
    sender.add_argument("--jobs", metavar="N", help="%ss at once (5)" % kind)
    sender.add_argument("--attempts", metavar="N", help="tries for one %s (5)" % kind)


def _ask_commands(add: _Add, remote: Sequence[Parser]) -> None:
    add("catalog", "list the repositories of a registry", "catalog registry.example.com", "registry",
        parents=remote)
    add("referrers", "list what refers to an image: signatures, SBOMs", "referrers alpine:3.20", "ref",
        parents=remote)
    add("blob", "write a blob of a registry", "blob alpine@sha256:... >layer.tar.gz", "ref", parents=remote,
        formats=("text",))
    delete = add("delete", "delete a tag, or with --digest a manifest, at a registry",
                 "delete docker://registry.example.com/app:old", "ref", parents=remote)
    delete.add_argument("--digest", action="store_true", help="the manifest, with all its tags")
    delete.add_argument("-y", "--yes", action="store_true", help="don't ask on a terminal")


def _login_commands(add: _Add, network: Parser) -> None:
    login = add("login", "keep a user and password for a registry, once it has accepted them",
                "login -u ann registry.example.com", parents=[network])
    login.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    login.add_argument("-u", "--username", metavar="USER", help="asked for on a terminal")
    login.add_argument("--password-stdin", action="store_true", help="take the password from stdin")
    logout = add("logout", "forget what login has kept", "logout registry.example.com")
    logout.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    logout.add_argument("--authfile", metavar="FILE", help="the only file of credentials")


def _rootfs_commands(add: _Add, remote: Sequence[Parser]) -> None:
    unpack = add("unpack", "make an image's root file system in a new or empty directory",
                 "unpack alpine:3.20 rootfs", "ref", "dir", parents=remote)
    export = add("export", "write an image's root file system as one tar", "export alpine:3.20 >alpine.tar",
                 "ref", parents=remote)
    cat = add("cat", "write one file of an image", "cat alpine:3.20 /etc/os-release", "ref", "path",
              parents=remote)
    for parser in (unpack, export, cat):
        parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
        parser.add_argument("--foreign", action="store_true", default=None,
                            help="fetch layers from the URLs that a manifest names")
        parser.add_argument("--jobs", metavar="N", help="downloads at once (6)")
    unpack.add_argument("--max-unpacked", metavar="SIZE", help="the most data it may hold (64G)")
    unpack.add_argument("--sync", action="store_true", help="wait until a power cut can't take any of it")


def _store_commands(add: _Add, progress: Parser, remote: Sequence[Parser]) -> None:
    images = add("images", "list the stored images", "images --format json")
    images.add_argument("-a", "--all", action="store_true", help="signatures and other referrers too")
    inspect = add("inspect", "show a stored image, or one at a registry", "inspect docker://alpine:3.20", "ref",
                  parents=remote)
    inspect.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="only this of an index")
    inspect.add_argument("--raw", action="store_true", help="the manifest as it is")
    inspect.add_argument("--config", dest="config_only", action="store_true", help="the config as it is")
    add("tag", "name a stored image", "tag alpine:3.20 localhost:5000/alpine:3.20", "src", "dst")
    rm = add("rm", "forget names of stored images", "rm alpine:3.20")
    rm.add_argument("refs", metavar="REF", nargs="+", help=_LISTS)
    gc = add("gc", "delete what no name needs", "gc --keep 0")
    gc.add_argument("--keep", metavar="TIME", default="24h", help="spare what is younger (24h)")
    check = add("check", "hash the store, some images or an archive again, down to DiffIDs", "check",
                parents=remote)
    check.add_argument("refs", metavar="REF|FILE", nargs="*",
                       help=_LISTS + "; a FILE is an archive, docker://REF at a registry")
    check.add_argument("--pins", metavar="FILE", help="is exactly what this list pins there, and whole?")
    check.add_argument("--deep", action="store_true", help="read the blobs of docker://REF as well")
    check.add_argument("--repair", action="store_true", help="move rotten blobs away, so that pull fetches"
                       " them again; exit 7 if there were any")
    save = add("save", "write images to one archive, for load and for other tools",
               "save -o bundle.tar alpine:3.20 busybox:1.36", parents=[progress])
    save.add_argument("refs", metavar="REF", nargs="+",
                      help=_LISTS + "; a name without a tag means all its tags")
    save.add_argument("-o", "--output", metavar="FILE", help="instead of stdout")
    save.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="only this of an index")
    save.add_argument("--base", metavar="FILE|DIR", action="append", default=[], help="leave out the blobs that"
                      " this archive, store, layout or list of digests has; may be repeated")
    save.add_argument("--bundle", action="store_true", default=None,
                      help="this program at its end: python3 FILE runs it")
    save.add_argument("--without", metavar="PART,...", help="parts to leave out of the program")
    save.add_argument("--dry-run", action="store_true", help="only say what would be written")
    save.add_argument("--referrers", action="store_true", default=None, help="signatures and SBOMs too")
    load = add("load", "store the images of an archive", "load -i bundle.tar", parents=[progress])
    load.add_argument("-i", "--input", metavar="FILE", help="instead of stdin, or of the bundle that this is")
    load.add_argument("--dry-run", action="store_true", help="only say what would be stored")
    _add_verifying(load)
