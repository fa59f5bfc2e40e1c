# SPDX-License-Identifier: Apache-2.0
"""Image configs: platform, command and layers of an image.

The bytes as received are kept: their digest is the ImageID.

Mirrors moby's image.NewFromJSON.  Spec: image-spec, config.md.
"""
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..digest import DiffID, Digest, ImageID
from ..errors import ContentMismatch, InvalidDocument, PolicyError
from ..reference import Reference
from .descriptor import Descriptor
from .manifest import MAX_LAYERS
from .platform import Platform
from .strictjson import digests_at, list_at, object_at, parse_json, string_at

MAX_LISTED = 500  # characters of platform and time


class History(NamedTuple):
    """A step of the build, which made a layer unless ``empty_layer``."""
    created: str = ""
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def from_json(cls, obj: object, source: str) -> "History":
        if not isinstance(obj, dict) or not isinstance(obj.get("empty_layer"), (bool, type(None))):
            raise InvalidDocument("%s: history is malformed" % source)
        return cls(
            string_at(obj, "created", source), string_at(obj, "author", source),
            string_at(obj, "created_by", source), string_at(obj, "comment", source),
            obj.get("empty_layer") or False)


class ImageConfig(NamedTuple):
    """A parsed config; ``config`` holds the command, environment and so on of a container."""
    raw: bytes
    id: ImageID
    platform: Platform
    created: str
    diff_ids: Tuple[DiffID, ...]
    history: Tuple[History, ...]
    config: Mapping[str, Any]

    @classmethod
    def parse(cls, raw: bytes, source: str = "image config") -> "ImageConfig":
        """Parse an image config; raises InvalidDocument, PolicyError past a limit."""
        obj = parse_json(raw, source)
        if obj.get("rootfs") is None:
            raise InvalidDocument("%s: invalid image JSON, no RootFS key" % source)
        rootfs = object_at(obj, "rootfs", source)
        if rootfs.get("type") != "layers":
            raise InvalidDocument('%s: invalid image JSON, RootFS type must be "layers"' % source)
        diff_ids = tuple(map(DiffID, digests_at(rootfs, "diff_ids", source)))
        if len(diff_ids) > MAX_LAYERS:
            raise PolicyError("%s: %d layers, the limit is %d" % (source, len(diff_ids), MAX_LAYERS))
        history = tuple(History.from_json(item, source) for item in list_at(obj, "history", source))
        if sum(not entry.empty_layer for entry in history) > len(diff_ids):
            raise InvalidDocument("%s: too many non-empty layers in History section" % source)
        platform, created = Platform.from_json(obj, source), string_at(obj, "created", source)
        if len(repr((platform, created))) > MAX_LISTED:
            raise PolicyError("%s: platform and time have more than %d characters" % (source, MAX_LISTED))
        return cls(raw, ImageID(Digest.of(raw)), platform, created, diff_ids, history,
                   object_at(obj, "config", source))

    def brief(self) -> "ImageConfig":
        """Return id, platform and time alone, for a list: configs may be large, and many."""
        return self._replace(raw=b"", diff_ids=(), history=(), config={})

    def paired(self, layers: Sequence[Descriptor]) -> List[Tuple[Descriptor, DiffID]]:
        """Pair the manifest's layers with their DiffIDs; raises ContentMismatch if their number differs."""
        if len(layers) != len(self.diff_ids):
            raise ContentMismatch("layers from manifest don't match image configuration")
        return list(zip(layers, self.diff_ids))


class Image(NamedTuple):
    """A named image, as pull() returns it and Store.tag() takes it.

    ``descriptor`` is the manifest or index that the name points to; ``source`` what the
    registry's tag resolved to, perhaps an index above it.  An index has no ``config``.
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
