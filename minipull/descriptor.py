# SPDX-License-Identifier: Apache-2.0
"""Descriptors and platforms, and the one door for JSON from outside.

:func:`parse_json` and the ``*_at`` accessors turn foreign bytes into typed
values or raise InvalidDocument, naming ``what`` was read; a null string, array
or object counts as absent, as in Go.  Mirrors containerd's platforms.
Spec: image-spec, descriptor.md and image-index.md "platform".
"""
import json
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

from .digest import Digest
from .errors import InvalidDocument, InvalidReference

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"  # or with +gzip, +zstd
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER = DOCKER_TAR + ".gzip"
#: Layers that may be kept at their ``urls`` only, compressed or not.
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_LIST))

#   platform ::= os [ "(" os-version ")" ] [ "/" architecture [ "/" variant ] ]
_PLATFORM = re.compile(r"([\w-]+)(?:\(([\w.-]+)\))?(?:/([\w.-]+)(?:/([\w.-]+))?)?", re.ASCII)
_SYSTEMS = "aix android darwin freebsd linux netbsd openbsd solaris windows".split()
_ARCHITECTURES = """386 amd64 arm arm64 loong64 mips mipsle mips64 mips64le ppc64 ppc64le
    riscv64 s390x sparc64 wasm""".split()
_ALIASES = {"i386": "386", "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64",
            "armhf": "arm/v7", "armel": "arm/v6", "macos": "darwin"}
_VARIANTS = {("386", "v1"): "", ("amd64", "v1"): "", ("arm64", "v8"): "", ("arm", ""): "v7"}
_KINDS: Dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
_T = TypeVar("_T")


def is_foreign(media_type: str) -> bool:
    """Whether layers of this type may be kept at their ``urls`` only."""
    return media_type.startswith((DOCKER_FOREIGN, OCI_FOREIGN))


def parse_json(data: bytes, what: str) -> Dict[str, Any]:
    """The object that ``data`` is, strictly: nothing that parsers disagree about."""
    value = parse_value(data, what)
    if not isinstance(value, dict):
        raise InvalidDocument("%s must be an object" % what)
    return value


def parse_value(data: bytes, what: str) -> object:
    """The same for any value."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
        # What shows only in the values: lone surrogates, NaN, Infinity, 1e999.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError, MemoryError) as exc:
        raise InvalidDocument("%s: invalid JSON: %s" % (what, str(exc)[:150])) from None
    return value


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result: Dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError("duplicate key " + ascii(key)[:100])
        result[key] = value
    return result


def _integer(text: str) -> float:
    # int() is quadratic; the interpreters that limit it differ in where.
    return int(text) if len(text) < 400 else float("inf")


def _at(obj: Mapping[str, Any], key: str, what: str, default: _T) -> _T:
    value = obj.get(key)
    if value is None:
        return default
    if not isinstance(value, type(default)):
        raise InvalidDocument("%s: %s must be %s" % (what, ascii(key)[:80], _KINDS[type(default)]))
    return value


def string_at(obj: Mapping[str, Any], key: str, what: str, default: str = "") -> str:
    return _at(obj, key, what, default)


def list_at(obj: Mapping[str, Any], key: str, what: str) -> List[Any]:
    return _at(obj, key, what, [])


def object_at(obj: Mapping[str, Any], key: str, what: str) -> Dict[str, Any]:
    return _at(obj, key, what, {})


def strings_at(obj: Mapping[str, Any], key: str, what: str) -> Tuple[str, ...]:
    return tuple(string_at({key: item}, key, what) for item in list_at(obj, key, what))


def int_at(obj: Mapping[str, Any], key: str, what: str) -> int:
    """A whole number from 0 to 2**63-1, which must be there."""
    value = obj.get(key)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidDocument("%s: %s must be an integer from 0 to 2^63-1" % (what, key))
    return value


def digest_at(obj: Mapping[str, Any], key: str, what: str) -> Digest:
    try:
        return Digest.parse(obj.get(key))
    except InvalidDocument as exc:
        raise InvalidDocument("%s: %s: %s" % (what, key, exc)) from None


class Platform(NamedTuple):
    """What an image runs on; formatted, ``linux/arm64/v8``."""
    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: Tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, host: Optional["Platform"] = None) -> "Platform":
        """What a user typed, by containerd's rules; raises InvalidReference.

        One word is an os or an architecture, and ``host`` says the other half.
        """
        match = _PLATFORM.fullmatch(text)
        system, version, architecture, variant = match.groups("") if match else ("",) * 4
        if system and not architecture and host is not None:
            word = cls(system, system).normalized()
            if word.os in _SYSTEMS:
                return host._replace(os=word.os, os_version=version, os_features=())
            if word.architecture in _ARCHITECTURES:
                system, architecture = host.os, system
        if not architecture:
            raise InvalidReference("invalid platform %s, not os/arch[/variant]" % ascii(text)[:80])
        found = cls(system, architecture, variant, version).normalized()
        if found.architecture == "arm64" and variant and not found.variant:
            return found._replace(variant="v8")
        return found if variant or found[1:3] != ("arm", "v7") else found._replace(variant="")

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], what: str) -> "Platform":
        return cls(
            string_at(obj, "os", what), string_at(obj, "architecture", what),
            string_at(obj, "variant", what), string_at(obj, "os.version", what),
            strings_at(obj, "os.features", what))

    def to_json(self) -> Dict[str, Any]:
        members = {
            "architecture": self.architecture, "os": self.os, "os.version": self.os_version,
            "os.features": list(self.os_features), "variant": self.variant}
        return {key: value for key, value in members.items() if value}

    def normalized(self) -> "Platform":
        """One spelling for each: aliases resolved, the default variant made plain."""
        name = self.architecture.lower()
        architecture, _, fixed = _ALIASES.get(name, name).partition("/")
        variant = fixed or self.variant.lower()
        if architecture in ("arm", "arm64"):
            variant = "v" + variant if variant[:1].isdigit() else variant
            variant = variant[:-2] if variant.endswith(".0") else variant
        variant = _VARIANTS.get((architecture, variant), variant)
        system = _ALIASES.get(self.os.lower(), self.os.lower())
        return self._replace(os=system, architecture=architecture, variant=variant)

    def matches(self, other: "Platform") -> bool:
        """Equal but for spelling, and of one Windows build if both name it."""
        builds = [p.os_version.split(".")[:3] for p in (self, other) if p.os_version]
        same = self.normalized()[:3] == other.normalized()[:3]
        return same and builds[:1] == builds[-1:] and other.os != "unknown"  # an attestation

    def __str__(self) -> str:
        version = "(%s)" % self.os_version if self.os_version else ""
        return "/".join(filter(None, (self.os + version, self.architecture, self.variant)))


def preference(wanted: Platform) -> List[Platform]:
    """What runs on ``wanted``, the best first (containerd's platformVector)."""
    wanted = wanted.normalized()
    levels, others = [wanted.variant], []
    # v7 is (7, 0), v8.1 is (8, 1); no variant, or one that we can't read, is (0, 0).
    match = re.fullmatch(r"v([1-9])(?:\.([0-9]))?", wanted.variant)
    major, minor = (int(n or 0) for n in match.groups()) if match else (0, 0)
    if wanted.architecture == "amd64":
        levels += ["v%d" % n for n in range(major - 1, 0, -1)]
        others = [wanted._replace(architecture="386", variant="")]
    elif wanted.architecture == "arm":
        levels += ["v%d" % n for n in range(major - 1, 4, -1)]
    elif wanted.architecture == "arm64" and (major in (8, 9) or not wanted.variant):
        if major == 9:  # v9.N can do all that v8.(N+5) can
            levels += ["v9.%d" % n for n in range(minor - 1, -1, -1)]
            minor += 6
        levels += ["v8.%d" % n for n in range(minor - 1, -1, -1)]
        others = preference(wanted._replace(architecture="arm", variant="v8"))
    return [wanted._replace(variant=level).normalized() for level in levels] + others


def select(wanted: Platform, descriptors: Sequence["Descriptor"]) -> List["Descriptor"]:
    """Those that run on ``wanted``, the best first; those that don't say, last."""
    order = preference(wanted)
    ranked = []
    for descriptor in descriptors:
        platform = descriptor.platform
        ranks = [i for i, p in enumerate(order) if platform is None or p.matches(platform)]
        if ranks:
            ranked.append((len(order) if platform is None else ranks[0], descriptor))
    return [descriptor for _, descriptor in sorted(ranked, key=lambda pair: pair[0])]


class Descriptor(NamedTuple):
    """Content by type, digest and size: the OCI kind, not a job of xfer."""
    media_type: str
    digest: Digest
    size: int
    urls: Tuple[str, ...] = ()
    annotations: Optional[Mapping[str, str]] = None
    platform: Optional[Platform] = None
    artifact_type: str = ""

    @classmethod
    def from_json(cls, obj: object, what: str) -> "Descriptor":
        """Check a descriptor from outside; raises InvalidDocument."""
        if not isinstance(obj, dict) or not obj.get("mediaType"):
            raise InvalidDocument("%s: not a descriptor, it has no mediaType" % what)
        notes = object_at(obj, "annotations", what)
        platform = Platform.from_json(object_at(obj, "platform", what), what)
        return cls(
            string_at(obj, "mediaType", what), digest_at(obj, "digest", what),
            int_at(obj, "size", what), strings_at(obj, "urls", what),
            {key: string_at(notes, key, what) for key in notes} or None,
            platform if any(platform) else None, string_at(obj, "artifactType", what))

    def to_json(self) -> Dict[str, Any]:
        members = {
            "mediaType": self.media_type, "digest": self.digest, "size": self.size,
            "urls": list(self.urls), "annotations": self.annotations,
            "platform": self.platform and self.platform.to_json(),
            "artifactType": self.artifact_type}
        return {key: value for key, value in members.items() if value or key == "size"}

    def __str__(self) -> str:
        return self.digest.short
