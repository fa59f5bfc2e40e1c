# SPDX-License-Identifier: Apache-2.0
"""References: the names of images, as typed and as they are meant.

    reference   ::= name [ ":" tag ] [ "@" digest ]
    name        ::= [ domain "/" ] path

A leading part is a domain only if it could be no other: ``localhost``, one with
a dot, a colon or an upper case letter.  Without one it is Docker Hub's.  All
patterns are used with ``fullmatch`` and take linear time.

Mirrors distribution/reference.
"""
import re
from typing import Match, NamedTuple, Optional, Tuple, Union

from .digest import ALGORITHMS, Digest
from .errors import InvalidDocument, InvalidReference, shown, within

#   label       ::= alnum [ ( alnum | "-" )* alnum ]
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
#   domain      ::= ( label ( "." label )* | "[" ( hex | ":" )+ "]" ) [ ":" port ]
DOMAIN = r"(?:%s(?:\.%s)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?" % (_LABEL, _LABEL)
#   component   ::= lower ( ( "." | "_" | "__" | "-"+ ) lower )*
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
#   path        ::= component ( "/" component )*
PATH = r"%s(?:/%s)*" % (_COMPONENT, _COMPONENT)
#   tag         ::= word ( word | "." | "-" )*                     (128 at most)
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
#   digest      ::= algorithm ":" hex+            (32 at least; see digest.py)
_ALGORITHM = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*"
_DIGEST = r"%s:[0-9a-fA-F]{32,}" % _ALGORITHM

_REFERENCE = r"(?:(%s)/)?(%s)(?::(%s))?(?:@(%s))?" % (DOMAIN, PATH, _TAG, _DIGEST)
#   identifier  ::= hex{64}                     (an image ID is no name)
_IDENTIFIER = r"[a-f0-9]{64}"
_MAX_PATH = 255

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"


def is_tag(text: str) -> bool:
    """Whether ``text``, say from a registry's list, is a tag."""
    return re.fullmatch(_TAG, text) is not None


class Reference(NamedTuple):
    """A name with its domain, and a tag or digest or both or neither."""
    domain: str
    path: str
    tag: str = ""
    digest: Optional[Digest] = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Parse a name that a user typed; raises InvalidReference."""
        if re.fullmatch(_IDENTIFIER, text):
            raise InvalidReference("invalid repository name (%s), cannot specify 64-byte"
                                   " hexadecimal strings" % text)
        domain, rest = _split(text)
        name = rest.partition(":")[0].partition("@")[0]
        if name.lower() != name:
            raise InvalidReference("invalid reference format: repository name (%s) must be"
                                   " lowercase" % shown(name, 100))
        reference = _parse_strict("%s/%s" % (domain, rest) if text else "")
        port = domain.rpartition(":")[2]
        if port.isdigit() and (len(port) > 5 or int(port) > 65535):
            raise InvalidReference("invalid port in %s" % domain[:100])
        return reference

    @classmethod
    def of(cls, name: Union[str, "Reference"]) -> "Reference":
        """A reference as it is, or text parsed; raises InvalidReference, which quotes the text."""
        if isinstance(name, Reference):
            return name
        with within(shown(name, 300) or "''", InvalidReference):
            return cls.parse(name)

    @property
    def name(self) -> str:
        return "%s/%s" % (self.domain, self.path)

    @property
    def familiar_name(self) -> str:
        """The name as docker shows it, if that would be understood the same."""
        official = self.path.startswith("library/") and self.path.count("/") == 1
        short = self.path[len("library/"):] if official else self.path
        same = _split(short) == (self.domain, self.path) and not re.fullmatch(_IDENTIFIER, short)
        return short if same else self.name

    @property
    def familiar(self) -> str:
        return self.familiar_name + self._suffix

    @property
    def _suffix(self) -> str:
        return (":" + self.tag if self.tag else "") + ("@" + self.digest if self.digest else "")

    def with_tag(self, tag: str) -> "Reference":
        """Replace the tag; raises InvalidReference."""
        if not is_tag(tag):
            raise InvalidReference("invalid tag format: %s" % ascii(tag)[:140])
        return self._replace(tag=tag)

    def with_digest(self, digest: Digest) -> "Reference":
        return self._replace(digest=digest)

    def with_default_tag(self) -> "Reference":
        """Add the tag ``latest`` if there is neither tag nor digest."""
        return self if self.tag or self.digest else self._replace(tag=DEFAULT_TAG)

    def docker_ref(self) -> "Reference":
        """The reference to ask a registry for: by digest alone, or else by tag."""
        return self._replace(tag="") if self.digest else self.with_default_tag()

    def __str__(self) -> str:
        return self.name + self._suffix


def _split(text: str) -> Tuple[str, str]:
    """Split off the domain, with Docker's defaults."""
    domain, slash, rest = text.partition("/")
    is_domain = domain == "localhost" or re.search("[.:]", domain) or domain != domain.lower()
    if not slash or not is_domain:
        domain, rest = DEFAULT_DOMAIN, text
    if domain in (DEFAULT_DOMAIN, "index.docker.io"):
        return DEFAULT_DOMAIN, rest if "/" in rest else "library/" + rest
    return domain, rest


def _parse_strict(text: str) -> Reference:
    """Parse by the grammar, without defaults; raises InvalidReference, which names the mistake."""
    match = re.fullmatch(_REFERENCE, text)
    if match is None:
        if not text:
            raise InvalidReference("repository name must have at least one component")
        if re.fullmatch(_REFERENCE, text.lower()):
            raise InvalidReference("repository name must be lowercase")
        raise InvalidReference("invalid reference format")
    domain, path, tag, digest = match.groups("")
    if len(path) > _MAX_PATH:
        raise InvalidReference("repository name must not be more than %d characters" % _MAX_PATH)
    try:
        return Reference(domain, path, tag, Digest.parse(digest) if digest else None)
    except InvalidDocument:
        if digest.partition(":")[0] not in ALGORITHMS:
            raise InvalidReference("unsupported digest algorithm") from None
        fault = "length" if digest == digest.lower() else "format"
        raise InvalidReference("invalid checksum digest " + fault) from None


def version(tag: str) -> str:
    """Return a key that sorts tags as versions: numbers by value, before words; ``v1.9`` before ``v1.10``."""
    def key(number: Match[str]) -> str:
        digits = number.group().lstrip("0")
        return "\0%c%s" % (len(digits), digits)

    return re.sub("[0-9]+", key, tag)  # a list of values would take ten times that, for 100,000 tags
