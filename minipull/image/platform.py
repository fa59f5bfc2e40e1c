# SPDX-License-Identifier: Apache-2.0
"""Platforms: os, architecture and variant, and which of them run where.

Mirrors containerd's platforms.  Spec: image-spec, image-index.md "platform".
"""
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import InvalidReference
from .strictjson import string_at, strings_at

#   platform ::= os [ "(" os-version ")" ] [ "/" architecture [ "/" variant ] ]
_PLATFORM = r"(?a)([\w-]+)(?:\(([\w.-]+)\))?(?:/([\w.-]+)(?:/([\w.-]+))?)?"
_SYSTEMS = "aix android darwin freebsd linux netbsd openbsd solaris windows".split()
_ARCHITECTURES = """386 amd64 arm arm64 loong64 mips mipsle mips64 mips64le ppc64 ppc64le
    riscv64 s390x sparc64 wasm""".split()
_ALIASES = {"i386": "386", "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64",
            "armhf": "arm/v7", "armel": "arm/v6", "macos": "darwin"}
_VARIANTS = {("386", "v1"): "", ("amd64", "v1"): "", ("arm64", "v8"): "", ("arm", ""): "v7"}


class Platform(NamedTuple):
    """The platform of an image or host; as text, ``linux/arm64/v8``."""
    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: Tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, host: Optional["Platform"] = None) -> "Platform":
        """Parse a platform as containerd does; ``host`` completes a single word.  Raises InvalidReference."""
        match = re.fullmatch(_PLATFORM, text)
        system, version, architecture, variant = match.groups("") if match else ("",) * 4
        if system and not architecture and host is not None:
            word = cls(system, system).normalized()
            if word.os in _SYSTEMS:
                return host._replace(os=word.os, os_version=version, os_features=())
            if word.architecture in _ARCHITECTURES:
                system, architecture = host.os, system
        if not architecture:
            raise InvalidReference("invalid platform %s, not os/arch[/variant]" % ascii(text)[:80])
        platform = cls(system, architecture, variant, version).normalized()
        if platform.architecture == "arm64" and variant and not platform.variant:
            return platform._replace(variant="v8")
        if platform.architecture == "arm" and platform.variant == "v7" and not variant:
            return platform._replace(variant="")
        return platform

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], source: str) -> "Platform":
        return cls(
            string_at(obj, "os", source), string_at(obj, "architecture", source),
            string_at(obj, "variant", source), string_at(obj, "os.version", source),
            strings_at(obj, "os.features", source))

    def to_json(self) -> Dict[str, Any]:
        members = {
            "architecture": self.architecture, "os": self.os, "os.version": self.os_version,
            "os.features": list(self.os_features), "variant": self.variant}
        return {key: value for key, value in members.items() if value}

    def normalized(self) -> "Platform":
        """Resolve aliases, and spell the default variant of an architecture in one way."""
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
        """Whether both are the same platform in any spelling, and the same Windows build if both name one."""
        builds = [p.os_version.split(".")[:3] for p in (self, other) if p.os_version]
        same = self.normalized()[:3] == other.normalized()[:3]
        return same and builds[:1] == builds[-1:] and other.os != "unknown"  # an attestation

    def __str__(self) -> str:
        version = "(%s)" % self.os_version if self.os_version else ""
        return "/".join(filter(None, (self.os + version, self.architecture, self.variant)))


def preference(host: Platform) -> List[Platform]:
    """Return the platforms whose images run on a host, the best first (containerd's platformVector)."""
    host = host.normalized()
    levels, others = [host.variant], []
    # v7 is (7, 0), v8.1 is (8, 1); no variant, or one that we can't read, is (0, 0).
    match = re.fullmatch(r"v([1-9])(?:\.([0-9]))?", host.variant)
    major, minor = (int(n or 0) for n in match.groups()) if match else (0, 0)
    if host.architecture == "amd64":
        levels += ["v%d" % n for n in range(major - 1, 0, -1)]
        others = [host._replace(architecture="386", variant="")]
    elif host.architecture == "arm":
        levels += ["v%d" % n for n in range(major - 1, 4, -1)]
    elif host.architecture == "arm64" and (major in (8, 9) or not host.variant):
        if major == 9:  # v9.N can do all that v8.(N+5) can
            levels += ["v9.%d" % n for n in range(minor - 1, -1, -1)]
            minor += 6
        levels += ["v8.%d" % n for n in range(minor - 1, -1, -1)]
        others = preference(host._replace(architecture="arm", variant="v8"))
    return [host._replace(variant=level).normalized() for level in levels] + others
