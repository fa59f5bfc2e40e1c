# SPDX-License-Identifier: Apache-2.0
"""Image configs: what an image runs on, runs, and is made of.

The bytes as received are the identity: an ImageID is their digest, and they
are kept.  The rest is only for use.

Mirrors moby's image.NewFromJSON.  Spec: image-spec, config.md.
"""
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..digest import DiffID, Digest, ImageID
from ..errors import ContentMismatch, InvalidDocument
from ..reference import Reference
from .descriptor import Descriptor
from .platform import Platform
from .strictjson import digests_at, list_at, object_at, parse_json, string_at


class History(NamedTuple):
    """How one layer, or with ``empty_layer`` a change without one, was made."""
    created: str = ""
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def from_json(cls, obj: object, what: str) -> "History":
        if not isinstance(obj, dict) or not isinstance(obj.get("empty_layer"), (bool, type(None))):
            raise InvalidDocument("%s: history is malformed" % what)
        return cls(
            string_at(obj, "created", what), string_at(obj, "author", what),
            string_at(obj, "created_by", what), string_at(obj, "comment", what),
            obj.get("empty_layer") or False)


class ImageConfig(NamedTuple):
    """A parsed config; ``config`` is what a container is started with."""
    raw: bytes
    id: ImageID
    platform: Platform
    created: str
    diff_ids: Tuple[DiffID, ...]
    history: Tuple[History, ...]
    config: Mapping[str, Any]

    @classmethod
    def parse(cls, raw: bytes, what: str = "image config") -> "ImageConfig":
        """The image config in ``raw``; raises InvalidDocument."""
        obj = parse_json(raw, what)
        if obj.get("rootfs") is None:
            raise InvalidDocument("%s: invalid image JSON, no RootFS key" % what)
        rootfs = object_at(obj, "rootfs", what)
        if rootfs.get("type") != "layers":
            raise InvalidDocument('%s: invalid image JSON, RootFS type must be "layers"' % what)
        diff_ids = tuple(map(DiffID, digests_at(rootfs, "diff_ids", what)))
        history = tuple(History.from_json(item, what) for item in list_at(obj, "history", what))
        if sum(not entry.empty_layer for entry in history) > len(diff_ids):
            raise InvalidDocument("%s: too many non-empty layers in History section" % what)
        return cls(
            raw, ImageID(Digest.of(raw)), Platform.from_json(obj, what),
            string_at(obj, "created", what), diff_ids, history, object_at(obj, "config", what))

    def paired(self, layers: Sequence[Descriptor]) -> List[Tuple[Descriptor, DiffID]]:
        """The layers of a manifest, each with its DiffID; raises ContentMismatch for another number of them."""
        if len(layers) != len(self.diff_ids):
            raise ContentMismatch("layers from manifest don't match image configuration")
        return list(zip(layers, self.diff_ids))


class Image(NamedTuple):
    """What pull() returns and Store.tag() takes: a name and what it stands for.

    ``descriptor`` is the manifest or index that the name points to; ``source``
    is what the registry's tag resolved to, and differs from it when a platform
    was selected from an index.  An index as a whole has no ``config``.
    """
    name: Reference
    descriptor: Descriptor
    source: Digest
    config: Optional[ImageConfig] = None

    @property
    def id(self) -> Digest:
        """The ImageID; of an index, its digest."""
        return self.config.id if self.config else self.descriptor.digest

    @property
    def os(self) -> str:
        return self.config.platform.os if self.config else ""

    @property
    def architecture(self) -> str:
        return self.config.platform.architecture if self.config else ""

    def __str__(self) -> str:
        return "%s@%s" % (self.name.name, self.source)
