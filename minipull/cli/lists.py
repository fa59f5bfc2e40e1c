# SPDX-License-Identifier: Apache-2.0
"""Lists: references from a file, and tags by globs.

Wherever REF... is taken, ``@FILE`` stands for the lines of a file, and ``@-`` for
those of stdin.  A tag may be a glob (``repo:v1.*``): no reference has one of ``*?[``
in its tag.  A line NAME:TAG@DIGEST is a pin.
"""
import fnmatch
import re
import sys
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..digest import Digest
from ..errors import Error, InvalidReference, NotFound, StorageError, file_errors, shown
from ..files import read_file
from ..reference import Reference
from ..store.store import ImageSource
from .context import reference

MAX_LIST = 1 << 20  # bytes
MAX_NAMES = 10000  # of one command
_FILES = ("oci:", "oci-archive:", "docker-archive:")  # places of copy that are no references
_PLACES = ("docker://", "store:") + _FILES
_ID = re.compile("(sha256:)?[0-9a-f]{64}")


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


def operands(texts: Iterable[str], places: bool = False, all_tags: bool = False) -> List[Operand]:
    """Read the lists among the references of a command; nothing else is asked yet.

    ``places``: those of copy, where a line without a prefix is of a registry.  Raises
    InvalidReference for a list that can't be used, which names its file and line.
    """
    items: List[Operand] = []
    for text in dict.fromkeys(texts):
        lines = read_list(text[1:]) if text.startswith("@") else [("", text)]
        items += [_operand(line, content, places, all_tags) for line, content in lines]
    return items


def read_list(path: str) -> List[Tuple[str, str]]:
    """The lines of a list that are neither blank nor comment, each with its FILE:LINE."""
    label = "list " + ("stdin" if path == "-" else shown(path, 300) or "''")
    try:
        with file_errors("read stdin"):
            data = sys.stdin.buffer.read(MAX_LIST + 1) if path == "-" and sys.stdin else (
                read_file(path, MAX_LIST + 1))
    except StorageError as exc:
        raise InvalidReference("%s: %s" % (label, exc)) from exc
    if data is None:
        raise InvalidReference("%s: there is no such file (an argument @FILE stands for its lines)" % label)
    if len(data) > MAX_LIST:
        raise InvalidReference("%s is larger than %d bytes" % (label, MAX_LIST))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidReference("%s is no text in UTF-8" % label)
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if content.startswith("@"):
            raise InvalidReference("%s:%d: a list can't be in a list" % (label[5:], number))
        if content:
            lines.append(("%s:%d" % (label[5:], number), content))
    if not lines:
        raise InvalidReference("%s is empty" % label)
    return lines


def _operand(line: str, text: str, places: bool, all_tags: bool) -> Operand:
    prefixes = [prefix for prefix in _PLACES[:None if places else 1] if text.startswith(prefix)]
    prefix = "".join(prefixes)
    text = text[len(prefix):]
    if places and line and not prefix:
        prefix = "docker://"
    if prefix in _FILES or not text:
        return Operand(line, prefix, text, None)
    repository, _, tag = text.rpartition(":")
    pattern = tag if re.search(r"[*?[]", tag) and "/" not in tag else ""
    try:
        name = reference(repository if pattern else text)
        if (pattern or all_tags) and (name.tag or name.digest):
            raise InvalidReference("tag can't be used with --all-tags/-a" if all_tags else
                                   "%s: invalid reference format" % shown(text, 300))
    except InvalidReference as exc:
        if re.search("[*?]", text):
            exc = InvalidReference("%s; only a tag may be a glob, as in REPO:v1.*" % exc)
        elif not all_tags and (not line or _ID.fullmatch(text)):
            return Operand(line, prefix, text, None)  # the command takes it for an image ID or refuses it
        raise exc.within(line) if line else exc
    return Operand(line, prefix, text, name, "*" if all_tags else pattern)


def expanded(items: Iterable[Operand], tags: Callable[[str, Reference], Sequence[str]]) -> List[str]:
    """The references, each once, with a glob replaced by the tags that match, in the order of ``tags``.

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
                    listed[prefix, name] = tags(prefix, name)
                matching = [tag for tag in listed[prefix, name] if fnmatch.fnmatchcase(tag, item.pattern)]
                if not matching:
                    raise NotFound("%s:%s: no tag matches" % (name.familiar, item.pattern))
            except Error as exc:
                raise item.within(exc) from exc
            for tag in matching:
                tagged = name.with_tag(tag)
                texts.setdefault((prefix, tagged), prefix + tagged.familiar)
        else:
            texts.setdefault((prefix, name), prefix + item.text)
            if name.tag and name.digest:
                bare = name._replace(digest=None)
                if pins.setdefault((prefix, bare), name.digest) != name.digest:
                    raise item.within(InvalidReference("%s is pinned to two digests" % bare.familiar))
        if len(texts) > MAX_NAMES:
            raise InvalidReference("more than %d images in one command" % MAX_NAMES)
    return list(texts.values())


def stored_tags(store: ImageSource, name: Reference) -> List[str]:
    """The tags that a store has of a repository, sorted."""
    return [entry.name.tag for entry in store.references.all()
            if entry.name.name == name.name and entry.name.tag]
