# SPDX-License-Identifier: Apache-2.0
"""Places: the ends of a copy as they are written."""
from typing import List, NamedTuple

from ..errors import InvalidReference
from ..reference import Reference

ARCHIVES = ("oci-archive", "docker-archive")


class Place(NamedTuple):
    """An end as it is written: ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or an archive.

    An archive is ``oci-archive:FILE[:REF]`` or, with the same meaning, ``docker-archive:``.
    ``docker://HOST/[PATH/]``, without a ``tag``, takes all images of an archive.
    """
    kind: str
    folder: str = ""
    tag: str = ""
    name: Reference = Reference("", "")

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Parse a place; raises InvalidReference."""
        kind, _, rest = text.partition(":")
        folder, _, tag = rest.partition(":")
        if kind in ("oci",) + ARCHIVES and folder:
            return cls(kind, folder, tag)
        if kind == "docker" and rest.startswith("//") and rest[2:].endswith("/"):
            name = Reference.parse(rest[2:] + "x")
            return cls(kind, "", "", name._replace(path=name.path[:-1]))
        if kind == "docker" and rest.startswith("//") or kind == "store" and rest:
            name = Reference.parse(rest[2:] if kind == "docker" else rest).docker_ref()
            return cls(kind, "", name.digest or name.tag, name._replace(tag="", digest=None))
        raise InvalidReference("want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]")

    def of(self, label: str) -> "Place":
        """Return the place of one image of many, by its label; raises InvalidReference."""
        if self.kind == "docker":
            name = Reference.parse(label).docker_ref()
            return self._replace(
                tag=name.digest or name.tag, name=self.name._replace(path=self.name.path + name.path))
        return self._replace(tag=label)

    @property
    def domains(self) -> List[str]:
        """The host of a registry; none of another kind."""
        return [self.name.domain] if self.kind == "docker" else []

    def __str__(self) -> str:
        return self.folder or self.name.name
