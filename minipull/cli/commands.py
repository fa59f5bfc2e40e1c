# SPDX-License-Identifier: Apache-2.0
"""Commands: the flags and operands of each, with their help, by the modules that hold them; more in local.py."""
import argparse
from typing import Any

_DRY_RUN = "only say what would move, and what is there"
_OUTPUT = "instead of stdout; compressed if it ends in .tar.gz or .tgz"
_LISTS = "@FILE stands for its lines (@- for stdin), and a tag may be a glob"


def add_remote(parser: Any) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--creds", metavar="USER[:PASS]", help="for the reference's own registry")
    group.add_argument("--registry-token", metavar="TOKEN", help="sent as it is")
    add_network(parser, group)


def add_network(parser: Any, group: Any = None) -> None:
    group = group or parser.add_argument_group("network")
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
    add_progress(group)


def add_progress(group: Any) -> None:
    group.add_argument("-q", "--quiet", action="store_true", default=None, help="no progress, unless --progress asks for it")
    group.add_argument("--progress", metavar="MODE", help="auto, tty, plain, json or none")


def registry_commands(add: Any) -> None:
    pull = add("pull", "store images from a registry", "pull alpine:3.20", shared=add_remote)
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
               "push alpine:3.20 registry.example.com/alpine:3.20", shared=add_remote)
    push.add_argument("ref", metavar="REF", help=_LISTS)
    push.add_argument("dest", metavar="DEST", nargs="?", help="push under this name")
    push.add_argument("-a", "--all-tags", action="store_true", help="every tag of the name")
    push.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
    push.add_argument("--legacy-schema1", action="store_true", default=None,
                      help="as schema 1 where the manifest is refused")
    _add_sending(push, "layer")
    tags = add("tags", "list the tags of a repository", "tags alpine", "repo", shared=add_remote)
    tags.add_argument("--created", action="store_true", help="and when each image was made; reads every config")
    manifest = add("manifest", "print a manifest as it is", "manifest alpine:3.20", "ref", shared=add_remote)
    manifest.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="that of an index for it")
    digest = add("digest", "print what a tag points to", "digest --pin @images.txt", shared=add_remote)
    digest.add_argument("refs", metavar="REF", nargs="+", help=_LISTS)
    digest.add_argument("-a", "--all-tags", action="store_true", help="every tag of the repository")
    digest.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="of the manifest for it in an index")
    digest.add_argument("--pin", action="store_true", help="as NAME:TAG@DIGEST, the lines of a list")


def copy_command(add: Any) -> None:
    copy = add(
        "copy", "copy images from place to place\ndocker://REF, store:REF, oci:DIR[:NAME] or"
        " oci-archive:FILE[:REF]; many into docker://HOST/[PATH/], store:, oci:DIR or oci-archive:FILE",
        "copy docker://alpine:3.20 oci:layouts:alpine", shared=add_remote,
        formats=("text", "json", "oci", "docker"))
    copy.add_argument("srcs", metavar="SRC", nargs="+",
                      help="or @FILE, docker://REPO:v1.*, store: or an archive for all that it has")
    copy.add_argument("dst", metavar="DST")
    copy.add_argument("--convert", metavar="oci|docker", help="rewrite manifests; their digests change")
    copy.add_argument("--dry-run", action="store_true", default=None, help="ask and count; send nothing")
    copy.add_argument("-n", "--no-clobber", action="store_true", default=None,
                      help="leave alone what the target has under the name")
    copy.add_argument("-k", "--keep-going", action="store_true", default=None, help="go on after a failure")
    copy.add_argument("-a", "--all-tags", action="store_true", help="every tag of a repository without one")
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


def _add_verifying(receiver: argparse.ArgumentParser) -> None:
    receiver.add_argument("--verify-key", metavar="FILE", action="append",
                          help="keep nothing that this key has not signed (see verify); may be repeated")


def _add_sending(sender: argparse.ArgumentParser, kind: str) -> None:
    sender.add_argument("--foreign", action="store_true", default=None,
                        help="also layers that have URLs, if they are here")
    sender.add_argument("--chunk-size", metavar="SIZE", help="the most that one request brings, as 10M")
    sender.add_argument("--jobs", metavar="N", help="%ss at once (6)" % kind)
    sender.add_argument("--attempts", metavar="N", help="tries for one %s (5)" % kind)


def ask_commands(add: Any) -> None:
    add("catalog", "list the repositories of a registry", "catalog registry.example.com", "registry",
        shared=add_remote)
    add("referrers", "list what refers to an image: signatures, SBOMs", "referrers alpine:3.20", "ref",
        shared=add_remote)
    add("blob", "write a blob of a registry", "blob alpine@sha256:... >layer.tar.gz", "ref", shared=add_remote,
        formats=("text",))
    delete = add("delete", "delete a tag, or with --digest a manifest, at a registry",
                 "delete docker://registry.example.com/app:old", "ref", shared=add_remote)
    delete.add_argument("--digest", action="store_true", help="the manifest, with all its tags")
    delete.add_argument("-y", "--yes", action="store_true", help="don't ask on a terminal")


def login_commands(add: Any) -> None:
    login = add("login", "keep a user and password for a registry that accepts them",
                "login -u ann registry.example.com", shared=add_network)
    login.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    login.add_argument("-u", "--username", metavar="USER", help="asked for on a terminal")
    login.add_argument("--password-stdin", action="store_true", help="take the password from stdin")
    logout = add("logout", "forget what login has kept", "logout registry.example.com")
    logout.add_argument("registry", metavar="HOST[:PORT]", nargs="?", default="docker.io", help="docker.io")
    logout.add_argument("--authfile", metavar="FILE", help="the only file of credentials")


def rootfs_commands(add: Any) -> None:
    unpack = add("unpack", "make an image's root file system in a new or empty directory",
                 "unpack alpine:3.20 rootfs", "ref", "dir", shared=add_remote)
    export = add("export", "write an image's root file system as one tar",
                 "export alpine:3.20 | tar x --delay-directory-restore", "ref", shared=add_remote)
    export.add_argument("file", metavar="FILE", nargs="?", help="as -o FILE; directories come first, so GNU tar needs"
                        " --delay-directory-restore for their times, and to fill read-only ones")
    export.add_argument("-o", "--output", metavar="FILE", help=_OUTPUT)
    cat = add("cat", "write one file of an image", "cat alpine:3.20 /etc/os-release", "ref", "path",
              shared=add_remote)
    for parser in (unpack, export, cat):
        parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
        parser.add_argument("--foreign", action="store_true", default=None,
                            help="fetch layers from the URLs that a manifest names")
        parser.add_argument("--jobs", metavar="N", help="downloads at once (6)")
    unpack.add_argument("--max-unpacked", metavar="SIZE", help="the most data it may hold (64G)")
    unpack.add_argument("--sync", action="store_true", help="wait until a power cut can't take any of it")


def check_commands(add: Any) -> None:
    check = add("check", "hash the store, some images or an archive again, down to DiffIDs", "check",
                shared=add_remote)
    check.add_argument("refs", metavar="REF|FILE", nargs="*",
                       help=_LISTS + "; a FILE is an archive, docker://REF at a registry")
    check.add_argument("--pins", metavar="FILE", help="is exactly what this list pins there, and whole?")
    check.add_argument("--deep", action="store_true", help="read the blobs of docker://REF as well")
    check.add_argument("--repair", action="store_true", help="move rotten blobs away, so that pull fetches"
                       " them again; exit 7 if there were any")
    verify = add(
        "verify", "check cosign's signatures of an image\nin the store, of docker://REF, oci:DIR[:NAME] or"
        " oci-archive:FILE[:REF] by a public key (ECDSA P-256); not checked are certificates (keyless),"
        " attestations, bundles, the transparency log and dates",
        "verify --key cosign.pub docker://registry.example.com/app:1", "ref", shared=add_remote)
    verify.add_argument("--key", dest="verify_key", metavar="FILE", action="append",
                        help="the public key; one of several is enough")


def store_commands(add: Any) -> None:
    inspect = add("inspect", "show a stored image, or one at a registry", "inspect docker://alpine:3.20", "ref",
                  shared=add_remote)
    inspect.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="only this of an index")
    inspect.add_argument("--raw", action="store_true", help="the manifest as it is")
    inspect.add_argument("--config", dest="config_only", action="store_true", help="the config as it is")
    add("tag", "name a stored image", "tag alpine:3.20 localhost:5000/alpine:3.20", "src", "dst")
    rm = add("rm", "forget names of stored images", "rm alpine:3.20")
    rm.add_argument("refs", metavar="REF", nargs="+", help=_LISTS)
    rm.add_argument("--all-names", action="store_true", help="every name of the image")
    gc = add("gc", "delete what no name needs", "gc --keep 0", shared=add_progress)
    gc.add_argument("--keep", metavar="TIME", default="24h", help="spare what is younger (24h)")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    save = add("save", "write images to one archive, for load and for other tools",
               "save -o bundle.tar alpine:3.20 busybox:1.36", shared=add_progress)
    save.add_argument("refs", metavar="REF", nargs="+",
                      help=_LISTS + "; a name without a tag means all its tags")
    save.add_argument("-o", "--output", metavar="FILE", help=_OUTPUT)
    save.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="only this of an index")
    save.add_argument("--base", metavar="FILE|DIR", action="append", default=[], help="leave out the blobs that"
                      " this archive, store, layout or list of digests has; may be repeated")
    save.add_argument("--bundle", action="store_true", default=None,
                      help="this program at its end: python3 FILE runs it")
    save.add_argument("--without", metavar="PART,...", help="parts to leave out of the program")
    save.add_argument("--dry-run", action="store_true", help="only say what would be written")
    save.add_argument("--referrers", action="store_true", default=None, help="signatures and SBOMs too")
    load = add("load", "store the images of an archive", "load -i bundle.tar", shared=add_progress)
    load.add_argument("file", metavar="FILE", nargs="?", help="as -i FILE; - is stdin")
    load.add_argument("-i", "--input", metavar="FILE", help="instead of stdin, or of the bundle that this is")
    load.add_argument("--dry-run", action="store_true", help="only say what would be stored")
    _add_verifying(load)


def doctor_command(add: Any) -> None:
    doctor = add("doctor", "test this program and this host, or each step of a pull of REF",
                 "doctor alpine:3.20", shared=add_remote)
    doctor.add_argument("ref", metavar="REF", nargs="?", help="go the way of its pull")
    doctor.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")


#: What adds the commands of each module.
COMMANDS = {
    "registry": registry_commands, "copy": copy_command, "ask": ask_commands, "login": login_commands,
    "rootfs": rootfs_commands, "store": store_commands, "check": check_commands, "doctor": doctor_command}
