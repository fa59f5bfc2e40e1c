# SPDX-License-Identifier: Apache-2.0
"""A store with one image, and the place where it is unpacked."""
import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional

from minipull.rootfs.unpack import unpack
from minipull.store.store import Store
from tests.kit import images
from tests.kit.images import Layout, Spec
from tests.kit.layers import END, file, folder, symlink

NAME = "r.example/x:1"
LOWER = folder(b"d", 0o751) + file(b"d/f", b"one") + file(b"gone", b"x" * 3000) + END
UPPER = file(b".wh.gone") + symlink(b"l", b"d/f") + file(b"d/g", b"two" * 1000) + END
TREE = {"d": "dir", "d/f": "'one'", "d/g": repr("two" * 1000), "l": "-> d/f"}


def packed(tar: bytes) -> Spec:
    return Spec(raw=gzip.compress(tar, mtime=0))


class Place:
    """A store that holds one image, and the directory in which a target is to be."""

    def __init__(self, base: Path) -> None:
        self.root, self.parent = base / "store", base / "parent"
        self.target = self.parent / "target"
        self.parent.mkdir()
        self.parent.chmod(0o777)
        self.layout = Layout(self.root)
        self.image = self.layout.image([packed(LOWER), packed(UPPER)], NAME)

    def set(self, *layers: Spec, **fields: Any) -> None:
        self.image = self.layout.image(layers, NAME, **fields)

    def rewrite(self, change: Callable[[List[Any], List[str]], object]) -> None:
        """The image with other lists of layers and of DiffIDs."""
        manifest, diff_ids = json.loads(self.image.raw), self.image.diff_ids
        change(manifest["layers"], diff_ids)
        config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest["config"] = self.layout.blob(images.to_json(config), images.OCI_CONFIG)
        raw = images.to_json(manifest)
        descriptor = self.layout.blob(raw, images.OCI_MANIFEST)
        self.layout.name(descriptor, NAME)
        self.image = images.Image(descriptor, manifest["config"], [
            images.Layer(*pair) for pair in zip(manifest["layers"], diff_ids)], raw)

    def blob(self, number: int = -1) -> Path:
        return self.layout.path(self.image.layers[number].descriptor["digest"])

    def unpack(self, zstd: Optional[str] = None, **options: Any) -> None:
        """Unpack; see to it that no thread and no descriptor is left, whatever happens."""
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            unpack(NAME, Store(str(self.root), zstd=zstd), str(self.target), **options)
        finally:
            assert sorted(os.listdir("/proc/self/fd")) == before
            assert [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "feeder"))] == []
