# SPDX-License-Identifier: Apache-2.0
"""Places: the ends of a copy as they are written."""
from typing import List, NamedTuple

from ..digest import Digest
from ..errors import InvalidReference, shown, within
from ..reference import Reference

ARCHIVES = ("oci-archive", "docker-archive")


class Place(NamedTuple):
    """An end as it is written: ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or an archive.

    An archive is ``oci-archive:FILE[:REF]`` or, with the same meaning, ``docker-archive:``.
    ``docker://HOST/[PATH/]`` and ``store:``, without a ``tag``, are for many images.
    ``label`` is the full name of an image, by which it is known at a target of many.
    """
    kind: str
    folder: str = ""
    tag: str = ""
    name: Reference = Reference("", "")
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Parse a place; raises InvalidReference."""
        kind, _, rest = text.partition(":")
        folder, _, tag = rest.partition(":")
        if kind in ("oci",) + ARCHIVES and folder:
            return cls(kind, folder, tag, label=tag)
        if text == "store:":
            return cls(kind)
        if kind == "docker" and rest.startswith("//") and rest[2:].endswith("/"):
            name = Reference.parse(rest[2:] + "x")
            return cls(kind, "", "", name._replace(path=name.path[:-1]))
        if kind == "docker" and rest.startswith("//") or kind == "store" and rest:
            typed = Reference.parse(rest[2:] if kind == "docker" else rest)
            name = typed.docker_ref()
            label = str(typed._replace(digest=None) if typed.tag else name)
            return cls(kind, "", name.digest or name.tag, name._replace(tag="", digest=None), label)
        raise InvalidReference("want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]")

    def of(self, label: str) -> "Place":
        """Return the place of one image of many, by its label; raises InvalidReference."""
        if self.kind not in ("docker", "store"):
            return self._replace(tag=label)
        with within("image %s" % (shown(label) or "without a name")):
            name = Reference.parse(label).docker_ref()
        below = self.name._replace(path=self.name.path + name.path) if self.kind == "docker" else name
        return self._replace(tag=name.digest or name.tag, name=below._replace(tag="", digest=None))

    @property
    def many(self) -> bool:
        """Whether it names no image, though it has no layout of one: an archive, the store, a registry."""
        return not self.tag and self.kind != "oci"

    @property
    def image(self) -> str:
        """The name of the image there, as results have it."""
        if self.folder:
            return self.tag or self.folder
        return "%s%s%s" % (self.name.name, "@" if isinstance(self.tag, Digest) else ":", self.tag)

    @property
    def written(self) -> str:
        """The place of an image as a user writes it."""
        if self.folder:
            return ":".join(filter(None, (self.kind, self.folder, self.tag)))
        return "%s:%s%s" % (self.kind, "//" if self.domains else "", self.image)

    @property
    def domains(self) -> List[str]:
        """The host of a registry; none of another kind."""
        return [self.name.domain] if self.kind == "docker" else []

    def __str__(self) -> str:
        return self.folder or (self.name.name if self.name.domain else self.kind + ":")
