# SPDX-License-Identifier: Apache-2.0
"""Habits: commands and options of docker, podman, skopeo, crane, regctl and oras, and ours for them.

None of them is accepted; the line that refuses one names what is meant.
"""
import re
from typing import Dict, Iterable, Sequence, Tuple

_NO_CONTAINERS = "minipull runs no containers; unpack makes the root file system of an image"
_NO_BUILDS = "minipull builds no images"
_JSON = "there are no Go templates; --format json has all"
#: Commands, and the second words of some: ours, or a sentence that begins with minipull.
_COMMANDS: Dict[str, str] = {
    "config": "inspect --config docker://REF", "cp": "copy", "del": "delete", "discover": "referrers",
    "import": "load", "info": "doctor", "inspecti": "inspect", "list": "images", "list-tags": "tags",
    "ls": "images or tags", "manifest-digest": "digest", "mount": "unpack", "prune": "gc",
    "ratelimit": "digest --format json REF", "remove": "rm", "resolve": "digest", "rmi": "rm",
    "search": "catalog", "standalone-verify": "verify", "sync": "copy", "tree": "referrers", "trust": "verify",
    "untag": "rm", "validate": "check", "version": "--version",
    **dict.fromkeys(("attach", "create", "exec", "kill", "logs", "ps", "run", "start", "stop"), _NO_CONTAINERS),
    **dict.fromkeys(("annotate", "append", "build", "commit", "flatten", "mod", "mutate", "rebase"),
                    _NO_BUILDS)}
#: Those whose second word says more, and the answer where it is unknown; empty for our own commands.
_NOUNS: Dict[str, str] = {
    "artifact": "referrers", "auth": "login", "image": "images", "registry": "serve", "repo": "catalog",
    "system": "df", "blob": "", "images": "", "manifest": "", "tag": "",
    "builder": _NO_BUILDS, "buildx": _NO_BUILDS, "container": _NO_CONTAINERS, "index": _NO_BUILDS}
_PAIRS: Dict[str, str] = {
    "artifact get": "copy", "artifact list": "referrers", "artifact ls": "referrers", "blob fetch": "blob",
    "blob get": "blob", "blob head": "blob", "buildx imagetools": "inspect docker://REF",
    "image export": "save", "image ls": "images", "images export": "save", "images import": "load",
    "images list": "images", "images ls": "images", "images pull": "pull", "images rm": "rm",
    "manifest delete": "delete", "manifest digest": "digest", "manifest fetch": "manifest",
    "manifest get": "manifest", "manifest head": "digest", "manifest inspect": "manifest",
    "manifest rm": "delete", "registry config": "doctor", "repo list": "catalog", "repo ls": "catalog",
    "repo show-tags": "tags", "repo tags": "tags", "tag delete": "delete", "tag list": "tags",
    "tag ls": "tags", "tag rm": "delete"}
#: Options, of one command or of any, and the answer.
_OPTIONS: Dict[str, str] = {
    "inspect -f": _JSON, "images --filter": "did you mean images NAME, or a glob?",
    "inspect -n": "it lists no tags anyway; leave it out", "login -p": "did you mean --password-stdin?",
    "rm -f": "it never asks; leave it out", "rm --force": "it never asks; leave it out",
    "-D": "did you mean -v?", "--debug": "did you mean -v?",
    "--allow-nondistributable-artifacts": "did you mean --foreign?",
    "--dest-compress": "did you mean --compress gzip?",
    "--digestfile": "did you mean -q, which prints it?", "--full-ref": "did you mean --pin?",
    "--insecure": "did you mean --plain-http or --tls-verify=false?",
    "--insecure-policy": "there is no policy; leave it out",
    "--multi-arch": "an index is copied whole but for --platform",
    "--no-tags": "it lists no tags anyway; leave it out", "--password": "did you mean --password-stdin?",
    "--preserve-digests": "digests are kept but for --convert and --compress",
    **dict.fromkeys(("--arch", "--os", "--override-arch", "--override-os", "--override-variant"),
                    "did you mean --platform OS/ARCH, after the command?")}


def command(words: Sequence[str], commands: Iterable[str]) -> Tuple[str, str]:
    """The command at the begin of ``words``, and the answer to it; both are empty for one of ``commands``."""
    verb, second = words[0], words[1] if len(words) > 1 else ""
    pair, noun = "%s %s" % (verb, second), _NOUNS.get(verb, "")
    meant = _PAIRS.get(pair, "")
    if not meant and noun and noun not in (_NO_BUILDS, _NO_CONTAINERS):
        meant = second if second in commands else _COMMANDS.get(second, "")
    if meant:
        return pair, _question(meant)
    if verb in commands:
        return "", ""
    import difflib

    near = "".join(difflib.get_close_matches(verb, [*commands, *_COMMANDS], 1))
    return verb, _question(noun or _COMMANDS.get(near, near))


def option(text: str, of: str, known: Iterable[str]) -> str:
    """The answer to an option that the command ``of`` does not have; empty if it is like none of ``known``."""
    if text.startswith("{{"):
        return _JSON
    name = text.partition("=")[0]
    import difflib

    short = name if name.startswith("--") else name[:2]
    near = difflib.get_close_matches(name, known, 1)
    return _OPTIONS.get("%s %s" % (of, short)) or _OPTIONS.get(short) or _question("".join(near))


def operand(of: str, first: str, last: str) -> str:
    """The line for an archive among the two operands of a command that takes images alone; else empty."""
    if not re.search(r"[^/]\.(tar|tgz|tar\.gz)$", first if of == "push" else last):
        return ""
    texts = {"pull": "%s is no image; did you mean pull, and then save -o %s %s?" % (last, last, first),
             "push": "%s is no image; did you mean copy docker-archive:%s docker://%s?" % (first, first, last)}
    return texts.get(of, "")


def _question(meant: str) -> str:
    return "did you mean %s?" % meant if meant and not meant.startswith("minipull ") else meant
