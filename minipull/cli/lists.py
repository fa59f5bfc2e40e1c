# SPDX-License-Identifier: Apache-2.0
"""Lists: references from a file, and tags by globs.

Wherever REF... is taken, ``@FILE`` stands for the lines of a file, and ``@-`` for
those of stdin.  A tag may be a glob (``repo:v1.*``): no reference has one of ``*?[``
in its tag.  A line NAME:TAG@DIGEST is a pin.
"""
import contextlib
import re
import sys
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..digest import Digest
from ..errors import Error, InvalidReference, NotFound, StorageError, file_errors, shown
from ..files import read_file
from ..reference import Reference, version
from ..store.references import tag_subject
from ..store.store import IMAGE_ID, ImageSource
from .context import reference, stripped

MAX_LIST = 1 << 20  # bytes
MAX_NAMES = 10000  # of one command
_FILES = ("oci:", "oci-archive:", "docker-archive:")  # places of copy that are no references
_PLACES = ("docker://", "store:") + _FILES


class Operand(NamedTuple):
    """A reference as typed, without its ``prefix``; ``pattern`` is the glob of its tags.

    ``line`` is FILE:LINE for the line of a list.  ``name`` is None where the text is none.
    """
    line: str
    prefix: str
    text: str
    name: Optional[Reference]
    pattern: str = ""

    def within(self, error: Error) -> Error:
        return error.within(self.line) if self.line else error


def operands(texts: Iterable[str], places: bool = False, all_tags: bool = False,
             ids: bool = False, remote: Optional[List[str]] = None) -> List[Operand]:
    """Read the lists among the references of a command; nothing else is asked yet.

    ``places``: those of copy, where a line without a prefix is of a registry; ``ids``:
    image IDs as well; ``remote`` gets those with docker://.  Raises InvalidReference, which names
    the line of a list.
    """
    items: List[Operand] = []
    for text in dict.fromkeys(texts):
        lines = read_list(text[1:]) if text.startswith("@") else [("", text)]
        if remote is not None:
            remote += [content for _, content in lines if content.startswith("docker://")]
            lines = [item for item in lines if not item[1].startswith("docker://")]
        items += [_operand(line, content, places, all_tags, ids or places) for line, content in lines]
    return items


def read_list(path: str) -> List[Tuple[str, str]]:
    """The lines of a list that are neither blank nor comment, each with its FILE:LINE."""
    source = "stdin" if path == "-" else shown(path, 300) or "''"
    try:
        with file_errors("read stdin"):
            data = read_file(path, MAX_LIST + 1) if path != "-" else (
                sys.stdin.buffer.read(MAX_LIST + 1) if sys.stdin else b"")
    except StorageError as exc:
        raise InvalidReference("list %s: %s" % (source, exc)) from exc
    text = (data or b"").decode("utf-8-sig", "replace")
    contents = ((number, re.sub(r"(^|\s)#.*", "", line).strip())
                for number, line in enumerate(text.split("\n"), 1))
    lines = [("%s:%d" % (source, number), content) for number, content in contents if content]
    for wrong, fault in ((data is None, ": there is no such file (an argument @FILE stands for its lines)"),
                         (len(data or b"") > MAX_LIST, " is larger than %d bytes" % MAX_LIST),
                         ("\0" in text or "\ufffd" in text, " is no text in UTF-8"), (not lines, " is empty"),
                         (len(lines) > MAX_NAMES, " has more than %d names" % MAX_NAMES)):
        if wrong:
            raise InvalidReference("list %s%s" % (source, fault))
    return lines


def _operand(line: str, text: str, places: bool, all_tags: bool, ids: bool) -> Operand:
    prefix = "".join(prefix for prefix in _PLACES if text.startswith(prefix)) if places else ""
    text = stripped(text[len(prefix):])
    if places and line and not prefix:
        prefix = "docker://"
    if prefix in _FILES or not text:
        return Operand(line, prefix, text, None)
    repository, _, tag = text.rpartition(":")
    pattern = tag if repository and not set("*?[").isdisjoint(tag) and "/" not in tag else ""
    try:
        if text.startswith("@"):
            raise InvalidReference("a list can't be in a list")
        name = reference(repository if pattern else text)
        all_tags = all_tags and not (places and (name.tag or name.digest))  # copy -a, as skopeo's, of one tag
        if (pattern or all_tags) and (name.tag or name.digest):
            raise InvalidReference("tag can't be used with --all-tags/-a" if all_tags else
                                   "%s: invalid reference format" % shown(text, 300))
    except InvalidReference as exc:
        if re.search("[*?]", text):
            exc = InvalidReference("%s; only a tag may be a glob, as in REPO:v1.*" % exc)
        elif ids and not all_tags and (not line or re.fullmatch("(sha256:)?[0-9a-f]{64}", text)):
            return Operand(line, prefix, text, None)
        raise exc.within(line) if line else exc
    return Operand(line, prefix, text, name, "*" if all_tags else pattern)


def expanded(items: Iterable[Operand], tags: Callable[[str, Reference], Sequence[str]]) -> List[str]:
    """The references, each once, with a glob replaced by the tags that match, sorted as versions.

    ``tags`` lists those of a repository, given the prefix and the name.  Raises NotFound
    for a glob that matches none, InvalidReference for two pins of one name.
    """
    texts: Dict[object, str] = {}
    pins: Dict[Tuple[str, Reference], Optional[Digest]] = {}
    listed: Dict[Tuple[str, Reference], Sequence[str]] = {}
    for item in items:
        prefix, name = item.prefix, item.name
        if name is None:
            texts.setdefault((prefix, item.text), prefix + item.text)
        elif item.pattern:
            try:
                if (prefix, name) not in listed:
                    listed[prefix, name] = sorted(tags(prefix, name), key=version)
                import fnmatch
                matching = [tag for tag in listed[prefix, name] if fnmatch.fnmatchcase(tag, item.pattern)]
                if not matching:
                    raise NotFound("%s:%s: no tag matches" % (name.familiar, item.pattern))
            except Error as exc:
                raise item.within(exc) from exc
            for tagged in map(name.with_tag, matching):
                texts.setdefault((prefix, tagged), prefix + tagged.familiar)
        else:
            key = prefix, name.with_default_tag()
            if key not in texts or key[1] != name:  # to save, a name without a tag is all its tags
                texts[key] = prefix + item.text
            if name.tag and name.digest:
                bare = name._replace(digest=None)
                if pins.setdefault((prefix, bare), name.digest) != name.digest:
                    raise item.within(InvalidReference("%s is pinned to two digests" % bare.familiar))
        if len(texts) > MAX_NAMES:
            raise InvalidReference("more than %d images in one command" % MAX_NAMES)
    return list(texts.values())


def read_pins(path: str) -> List[Reference]:
    """The references of a list in which each has its digest; raises InvalidReference."""
    items = operands(["@" + path[path.startswith("@"):]])
    for item in items:
        if item.pattern or item.name and not item.name.digest:
            raise item.within(InvalidReference("%s is no pin NAME:TAG@DIGEST" % shown(item.text, 300)))
    return [reference(text) for text in expanded(items, lambda prefix, name: ())]


def named_image(store: ImageSource, text: str) -> str:
    """A place as typed, or for ``store:ID`` that with the first name of the image, if there is one."""
    kind, _, rest = text.partition(":")
    with contextlib.suppress(NotFound):
        return "store:%s" % (store.named(rest)[0].name,) if kind == "store" and re.fullmatch(IMAGE_ID, rest) else text
    return text


def stored_names(store: ImageSource, items: Iterable[Operand]) -> List[str]:
    """The references and image IDs, with a glob replaced by the tags that a store has."""
    return expanded(items, lambda prefix, name: stored_tags(store, name))


def image_tags(tags: Iterable[str]) -> List[str]:
    """Leave out the tags that cosign and registries without the referrers API give to referrers."""
    return [tag for tag in tags if tag_subject(tag) is None]


def stored_tags(store: ImageSource, name: Reference) -> List[str]:
    return [entry.name.tag for entry in store.references.all()
            if entry.name.name == name.name and entry.name.tag]
