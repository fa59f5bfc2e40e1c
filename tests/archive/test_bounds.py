# SPDX-License-Identifier: Apache-2.0
"""No more of an archive is stored, kept or refused than need be."""
import gzip
import io
import itertools
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, cast

import pytest

import minipull
from minipull.archive.check import check_archive
from minipull.archive.load import load
from minipull.archive import members
from minipull.archive.members import Members
from minipull.archive.reader import opened
from minipull.cancel import Cancel
from minipull.errors import InvalidDocument, PolicyError
from minipull.store import store as store_module
from minipull.store.check import check
from minipull.store.store import Store
from tests.kit.archives import docker_members, layout_members, named, names, pack
from tests.kit.commands import is_sound
from tests.kit.images import Layout, to_json
from tests.kit.layers import END, sparse, symlink
from tests.kit.processes import Minipull
from tests.kit.stores import text_layer

MEGABYTE = 1 << 20


class Pipe(io.RawIOBase):
    """Bytes as a pipe brings them, without an end, and how many were taken."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self.taken < 16 * MEGABYTE, "it is read without end"
        if not self._held:
            self._held = next(self._pieces, b"")
        data, self._held = self._held[:len(buffer)], self._held[len(buffer):]
        buffer[:len(data)] = data
        self.taken += len(data)
        return len(data)


def zeros_compressed(megabytes: int) -> bytes:
    data = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, data) as zipped:
        for _ in range(megabytes):
            zipped.write(bytes(MEGABYTE))
    return data.getvalue()


@pytest.mark.parametrize("data, most", [
    (itertools.repeat(b"x" * 4096), 2 * MEGABYTE), (itertools.repeat(bytes(4096)), 2 * MEGABYTE),
    (iter([zeros_compressed(300)]), 150000),
    (itertools.chain([gzip.compress(b"x" * 4096)], itertools.repeat(b"\0")), 150000),
    (iter([b"x"]), 1), (iter([]), 0)], ids=["text", "zeros", "zeros compressed", "text compressed", "a byte", "nothing"])
def test_what_is_no_archive_is_refused_by_its_first_bytes(store: Store, data: Iterator[bytes], most: int) -> None:
    pipe = Pipe(data)
    with pytest.raises(InvalidDocument):
        load(cast(BinaryIO, pipe), store)
    assert pipe.taken <= most
    assert os.listdir(store.content.scratch) == []


@pytest.mark.parametrize("how", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_what_follows_an_archive_in_a_pipe_is_not_stored(
        store: Store, layout: Layout, how: Callable[[bytes], bytes]) -> None:
    data = how(pack(docker_members(layout, {"busybox:latest": layout.image([text_layer("one")])})) + bytes(MEGABYTE))
    pipe = Pipe(itertools.chain((data[n:n + 7] for n in range(0, len(data), 7)), itertools.repeat(b"\0")))
    assert [image.name.familiar for image in load(pipe, store)] == ["busybox:latest"]  # type: ignore[arg-type]
    assert pipe.taken < 4 * MEGABYTE and check(store) == []


def test_a_member_that_is_a_sparse_file_is_refused(tmp_path: Path, store: Store) -> None:
    (tmp_path / "archive").write_bytes(sparse("1.0", 5000, [(600, b"abc")]) + END)
    with pytest.raises(InvalidDocument, match="archive: f is a sparse file$"):
        load(str(tmp_path / "archive"), store)


def test_names_of_members_have_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert members.MAX_NAMES == 8 << 20
    path = tmp_path / "archive"
    with path.open("wb") as out:
        for n in range(200):
            out.write(symlink(b"%d" % n, b"x"))
        out.write(END)
    monkeypatch.setattr(members, "MAX_NAMES", 500)
    with path.open("rb") as archive, pytest.raises(PolicyError, match="500 bytes of names"):
        Members(str(path), archive)


REPEATED: Dict[str, Callable[[Dict[str, Any]], List[str]]] = {
    "everything": lambda made: list(made),
    "manifest": lambda made: ["manifest.json"],
    "layers and links": lambda made: [name for name in made if name.endswith("layer.tar")]}


@pytest.mark.parametrize("which", list(REPEATED))
def test_a_member_that_stands_twice_with_the_same_bytes_is_one(
        store: Store, layout: Layout, path: Path, which: str) -> None:
    """rules_docker and ``tar rf`` write such archives."""
    layer = text_layer("one")
    made = docker_members(layout, {"a:1": layout.image([layer]), "b:1": layout.image([layer, text_layer("two")])})
    path.write_bytes(pack(made, [(name, made[name]) for name in REPEATED[which](made)]))
    assert len(load(str(path), store)) == 2 and check(store) == []
    assert check_archive(str(path), Cancel()) == []


def test_a_member_that_stands_twice_is_compared_to_its_last_byte(
        store: Store, layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = docker_members(layout, {"a:1": layout.image([text_layer("one")])})
    [layer] = [name for name in made if name.endswith("layer.tar")]
    data = made[layer]
    assert isinstance(data, bytes)
    path.write_bytes(pack(made, [(layer, data), (layer, data[:-1] + b"\1")]))
    with pytest.raises(InvalidDocument, match="is in it twice"):
        load(str(path), store)
    assert names(store) == []


def test_a_blob_that_stands_twice_is_verified_by_its_digest(store: Store, layout: Layout, path: Path) -> None:
    made = layout_members(layout, [named(layout.image([text_layer("one")]))])
    [blob, *_] = [name for name in made if name.startswith("blobs/")]
    path.write_bytes(pack(made, [(blob, b"something else")]))
    assert len(load(str(path), store)) == 1 and check(store) == []


def test_a_config_that_many_names_share_is_held_once(store: Store, layout: Layout, path: Path) -> None:
    made = docker_members(layout, {"a:1": layout.image([text_layer("one")])})
    [item] = json.loads(made["manifest.json"])
    made["manifest.json"] = to_json([{**item, "RepoTags": ["a:%d" % n for n in range(200)]}])
    del made["repositories"]
    path.write_bytes(pack(made))
    images = load(str(path), store)
    assert len(images) == 200 and len({id(image.config) for image in images}) == 1
    assert sorted(image.name.familiar for image in images) == sorted("a:%d" % n for n in range(200))
    listed = store.images()
    assert len(listed) == 200 and len({id(image.config) for image in listed}) == 1
    assert store.image(listed[0].id).config == images[0].config == listed[0].config


def test_large_configs_of_many_images_are_held_in_brief(
        store: Store, layout: Layout, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [layout.image([text_layer("one")], config={"author": str(n)}) for n in range(3)]
    path.write_bytes(pack(layout_members(layout, [
        named(image, "docker.io/library/a:%d" % n) for n, image in enumerate(made)])))
    monkeypatch.setattr(store_module, "MAX_CONFIGS", made[0].config["size"] * 2)
    loaded = load(str(path), store)
    assert loaded == store.images()
    configs = [image.config for image in loaded if image.config]
    assert [bool(config.raw and config.config and config.diff_ids) for config in configs] == [True, True, False]
    whole = store.image("a:2").config
    assert whole is not None and whole.raw and configs[2] == whole.brief()
    minipull.unpack(loaded[2], store, str(tmp_path / "rootfs"))


def test_what_indexes_lack_is_found_in_little_memory(layout: Layout, path: Path) -> None:
    """They share a long index, of which each has the same to offer."""
    image = layout.image([text_layer("one")])
    many = [layout.blob(image.raw + b" " * n, image.descriptor["mediaType"]) for n in range(500)]
    lost = {**image.descriptor, "digest": "sha256:" + "0" * 64}
    inner = layout.index([*many, lost]).descriptor
    outer = [layout.index([inner, {**lost, "size": n}]) for n in range(200)]
    path.write_bytes(pack(layout_members(layout, [
        named(index, "docker.io/library/a:%d" % n) for n, index in enumerate(outer)])))
    tracemalloc.start()
    try:
        with opened(str(path), Cancel()) as archive:
            assert {each.descriptor.digest for each in archive.references.all()} == {many[0]["digest"]}
        assert tracemalloc.get_traced_memory()[1] < 3 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_staging_directory_that_stays_is_a_warning(
        layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.image([text_layer("one")], "one")
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
    seen: List[str] = []
    minipull.copy("oci:%s:one" % layout.root, "oci-archive:%s" % (tmp_path / "out.tar"),
                  progress=lambda event: seen.append(event.message))
    [left] = [name for name in os.listdir(str(tmp_path)) if name.startswith(".minipull-")]
    assert [text for text in seen if "could not be removed" in text and left in text]
    assert check_archive(str(tmp_path / "out.tar"), Cancel()) == []
    monkeypatch.undo()
    shutil.rmtree(str(tmp_path / left))


def test_check_says_that_a_compressed_archive_is_unpacked_elsewhere(
        layout: Layout, path: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    path.write_bytes(gzip.compress(pack(docker_members(layout, {"a:1": layout.image([text_layer("one")])}))))
    done = run_minipull("--root", tmp_path / "none", "check", path, env={"TMPDIR": str(tmp_path)})
    assert done.code == 0 and is_sound(done.out, path)
    assert done.err == "warning: %s is unpacked in %s first\n%s: Checking\n" % (path, tmp_path, path)
