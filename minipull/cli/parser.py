# SPDX-License-Identifier: Apache-2.0
"""Every flag of the command line."""
import argparse
from typing import NoReturn, Sequence

from .. import __version__


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line here too."""
        from .context import say

        say("%s; see %s --help" % (message, self.prog))
        raise SystemExit(2)


def command_line() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minipull", allow_abbrev=False,
        description="Pull, push, copy and carry container images with nothing but Python's standard library.",
        epilog="example: minipull pull alpine:3.20")
    parser.add_argument("--version", action="version", version="minipull %s" % __version__)
    parser.add_argument("--root", metavar="DIR", help="where the store is")
    parser.add_argument("--config", metavar="FILE", help="settings file")
    parser.add_argument("-v", "--verbose", action="store_true", help="tracebacks for errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    identity = Parser(add_help=False, allow_abbrev=False)
    group = identity.add_argument_group("network")
    group.add_argument("--creds", metavar="USER[:PASS]", help="for the reference's own registry")
    group.add_argument("--registry-token", metavar="TOKEN", help="sent as it is")
    drawn = Parser(add_help=False, allow_abbrev=False)
    drawn.add_argument("-q", "--quiet", action="store_true", default=None, help="no progress")
    drawn.add_argument("--progress", metavar="MODE", help="auto, tty, plain, json or none")
    network = Parser(add_help=False, allow_abbrev=False)
    group = network.add_argument_group("network")
    group.add_argument("--authfile", metavar="FILE", help="the only file of credentials")
    group.add_argument("--tls-verify", metavar="BOOL", help="false: trust any certificate")
    group.add_argument("--plain-http", action="store_true", default=None, help="no TLS at all")
    group.add_argument("--legacy-v1", action="store_true", default=None,
                       help="the v1 protocol too, where v2 is not spoken")
    group.add_argument("--ca-file", metavar="FILE", help="certificates to trust besides the system's")
    group.add_argument("--cert-dir", metavar="DIR", help="as one of certs.d, for this registry")
    group.add_argument("--header", metavar="K:V", action="append", help="sent with every request")
    group.add_argument("--timeout", metavar="SECONDS", help="without progress (60)")
    group.add_argument("-q", "--quiet", action="store_true", default=None, help="no progress")
    group.add_argument("--progress", metavar="MODE", help="auto, tty, plain, json or none")

    def command(name: str, help: str, example: str, *operands: str, remote: bool = False,
                parents: Sequence[Parser] = (),
                formats: Sequence[str] = ("text", "json")) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=help, description=help, allow_abbrev=False,
            epilog="example: minipull " + example, parents=[identity, network] if remote else parents)
        made.add_argument("--format", choices=formats)
        for operand in operands:
            made.add_argument(operand, metavar=operand.upper())
        return made

    made = command("pull", "store images from a registry", "pull alpine:3.20", remote=True)
    made.add_argument("refs", metavar="REF", nargs="+")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
    made.add_argument("--all-platforms", action="store_true", help="the index and all that is in it")
    made.add_argument("-a", "--all-tags", action="store_true", help="every tag of the repository")
    made.add_argument("--foreign", action="store_true", default=None,
                      help="fetch layers from the URLs that a manifest names")
    made.add_argument("--jobs", metavar="N", help="downloads at once (6)")
    made.add_argument("--attempts", metavar="N", help="tries for one layer (5)")
    made = command("push", "send stored images to a registry",
                   "push alpine:3.20 registry.example.com/alpine:3.20", "ref", remote=True)
    made.add_argument("dest", metavar="DEST", nargs="?", help="push under this name")
    made.add_argument("-a", "--all-tags", action="store_true", help="every tag of the name")
    made.add_argument("--chunk-size", metavar="SIZE", help="the most that one request brings, as 10M")
    made.add_argument("--legacy-schema1", action="store_true", default=None,
                      help="as schema 1 where the manifest is refused")
    made.add_argument("--jobs", metavar="N", help="uploads at once (5)")
    made.add_argument("--attempts", metavar="N", help="tries for one layer (5)")
    made = command(
        "copy", "copy an image from place to place: docker://REF, store:REF, oci:DIR[:NAME] or"
        " oci-archive:FILE[:REF]",
        "copy docker://alpine:3.20 oci:layouts:alpine", "src", "dst", remote=True, formats=("oci", "docker"))
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", action="append",
                      help="only this of an index; may be repeated")
    made.add_argument("--referrers", action="store_true", help="signatures and attestations too")
    made.add_argument("--chunk-size", metavar="SIZE", help="the most that one request brings, as 10M")
    made.add_argument("--jobs", metavar="N", help="blobs at once (5)")
    made.add_argument("--attempts", metavar="N", help="tries for one blob (5)")
    for side in ("src", "dest"):
        for flag in ("creds", "registry-token", "authfile", "tls-verify", "ca-file", "cert-dir"):
            made.add_argument("--%s-%s" % (side, flag), metavar="VALUE", help="--%s for one end" % flag)
        made.add_argument("--%s-plain-http" % side, action="store_true", default=None, help="as above")
    command("tags", "list the tags of a repository", "tags alpine", "repo", remote=True)
    command("manifest", "print a manifest as it is", "manifest alpine:3.20", "ref", remote=True)
    command("digest", "print what a tag points to", "digest alpine:3.20", "ref", remote=True)
    made = command("login", "keep a user and password for a registry, once it has accepted them",
                   "login -u ann registry.example.com", parents=[network])
    made.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    made.add_argument("-u", "--username", metavar="USER", help="asked for on a terminal")
    made.add_argument("--password-stdin", action="store_true", help="take the password from stdin")
    made = command("logout", "forget what login has kept", "logout registry.example.com")
    made.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    made.add_argument("--authfile", metavar="FILE", help="the only file of credentials")
    for name, help, example, operands in (
            ("unpack", "make an image's root file system in a new or empty directory",
             "unpack alpine:3.20 rootfs", ["ref", "dir"]),
            ("export", "write an image's root file system as one tar", "export alpine:3.20 >alpine.tar",
             ["ref"]),
            ("cat", "write one file of an image", "cat alpine:3.20 /etc/os-release", ["ref", "path"])):
        made = command(name, help, example, *operands, remote=True)
        made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
        made.add_argument("--foreign", action="store_true", default=None,
                          help="fetch layers from the URLs that a manifest names")
        made.add_argument("--jobs", metavar="N", help="downloads at once (6)")
        if name == "unpack":
            made.add_argument("--max-unpacked", metavar="SIZE", help="the most data it may hold (64G)")
    command("images", "list the stored images", "images --format json")
    command("inspect", "show a stored image", "inspect alpine:3.20", "ref")
    command(
        "tag", "name a stored image", "tag alpine:3.20 localhost:5000/alpine:3.20", "src", "dst")
    made = command("rm", "forget names of stored images", "rm alpine:3.20")
    made.add_argument("refs", metavar="REF", nargs="+")
    made = command("gc", "delete what no name needs", "gc --keep 0")
    made.add_argument("--keep", metavar="TIME", default="24h", help="spare what is younger (24h)")
    made = command("check", "hash the store, some images or an archive again, down to DiffIDs", "check")
    made.add_argument("refs", metavar="REF|FILE", nargs="*")
    made = command("save", "write images to one archive, for load and for other tools",
                   "save -o bundle.tar alpine:3.20 busybox:1.36", parents=[drawn])
    made.add_argument("refs", metavar="REF", nargs="+", help="a name without a tag means all its tags")
    made.add_argument("-o", "--output", metavar="FILE", help="instead of stdout")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="only this of an index")
    made = command("load", "store the images of an archive", "load -i bundle.tar", parents=[drawn])
    made.add_argument("-i", "--input", metavar="FILE", help="instead of stdin")
    command("doctor", "test this program and this host", "doctor")
    made = command("serve", "be a registry over the store", "serve --listen 0.0.0.0:5000")
    made.add_argument("--listen", metavar="HOST:PORT", help="127.0.0.1:5000; port 0 picks one")
    made.add_argument("--writable", action="store_true", default=None, help="take pushes, deletes")
    made.add_argument("--as", metavar="DOMAIN", help="record pushes as DOMAIN/... (localhost)")
    made.add_argument("--timeout", metavar="SECONDS", help="for clients that stand still (60)")
    return parser
