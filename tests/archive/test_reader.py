# SPDX-License-Identifier: Apache-2.0
"""An archive is a source of images."""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import pytest

from minipull.archive.members import Members
from minipull.archive.reader import Archive, opened
from minipull.cancel import Cancel
from minipull.errors import InvalidDocument, StorageError
from minipull.image import walk
from minipull.image.descriptor import DOCKER_TAR
from minipull.image.strictjson import compact
from tests.kit import images
from tests.kit.archives import docker_members, layout_members, named, pack, plain
from tests.kit.images import Layout
from tests.kit.sources import PLAIN, Held, ImageSourceTests, held_in
from tests.kit.stores import text_layer


class TestArchive(ImageSourceTests):
    @pytest.fixture
    def held(self, tmp_path: Path) -> Held:
        return held_in(Layout(tmp_path / "layout"))

    @pytest.fixture
    def source(self, path: Path, held: Held) -> Iterator[Archive]:
        path.write_bytes(pack(layout_members(held.layout, [named(held.tree), named(held.plain, PLAIN)])))
        with opened(str(path), Cancel()) as archive:
            yield archive

    def test_nothing_is_written_into_an_archive(self, source: Archive, path: Path) -> None:
        with pytest.raises(StorageError, match="%s is an archive, and read-only; choose another --root" % path):
            source.writable.alone()


class TestArchiveBeforeAZip(TestArchive):
    """The bytes behind the end of a tar are those of a program."""

    @pytest.fixture
    def source(self, path: Path, held: Held) -> Iterator[Archive]:
        data = pack(layout_members(held.layout, [named(held.tree), named(held.plain, PLAIN)]))
        path.write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512 + 1024) + b"PK\3\4 not a header")
        with opened(str(path), Cancel(), in_place=True) as archive:
            yield archive


class TestArchiveOfDocker(TestArchive):
    """A tree of images from a layout; PLAIN comes as docker before 25 saved it, and gets a manifest."""

    @pytest.fixture
    def held(self, tmp_path: Path) -> Held:
        held = held_in(Layout(tmp_path / "layout"))
        layers = [held.layout.blob(plain(held.layout, layer), DOCKER_TAR) for layer in held.plain.layers]
        config = dict(held.plain.config, mediaType=images.DOCKER_CONFIG)
        raw = compact({"schemaVersion": 2, "mediaType": images.DOCKER_MANIFEST, "config": config,
                       "layers": layers})
        descriptor = held.layout.blob(raw, images.DOCKER_MANIFEST)
        held.layout.path(descriptor["digest"]).unlink()
        made = [images.Layer(layer, old.diff_id) for layer, old in zip(layers, held.plain.layers)]
        return held._replace(plain=images.Image(descriptor, config, made, raw))

    @pytest.fixture
    def source(self, path: Path, held: Held) -> Iterator[Archive]:
        members = layout_members(held.layout, [named(held.tree)])
        docker = docker_members(held.layout, {PLAIN: held.plain})
        path.write_bytes(pack({**members, **docker}))
        with opened(str(path), Cancel()) as archive:
            yield archive


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08\0\0\0", b"BZh91A", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd\0\0"])
def test_a_compressed_archive_is_not_read_in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StorageError, match="%s is compressed, so it can't be read in place" % path):
        with opened(str(path), Cancel(), in_place=True):
            pass


def test_every_thread_is_told_that_a_member_is_ambiguous(path: Path, layout: Layout) -> None:
    """The first that asks compares the two members, and the others ask while it does."""
    image = layout.image([text_layer("one")])
    path.write_bytes(pack({**layout_members(layout, [named(image)]), "x": bytes(32 << 20)},
                          [("x", bytes((32 << 20) - 1) + b"\1")]))
    with opened(str(path), Cancel()) as archive, ThreadPoolExecutor(4) as pool:
        members = archive.content
        assert isinstance(members, Members)
        futures = [pool.submit(members.find, "x") for _ in range(4)]
        assert [type(future.exception()) for future in futures] == [InvalidDocument] * 4


def test_an_image_without_a_name_is_listed_as_load_calls_it(path: Path, layout: Layout) -> None:
    image = layout.image([text_layer("one")])
    path.write_bytes(pack(layout_members(layout, [image.descriptor])))
    with opened(str(path), Cancel()) as archive:
        [listed] = archive.images()
        assert str(listed.name) == "localhost/loaded@" + image.digest
        assert archive.image(str(listed.name)) == archive.image(image.config["digest"]) == listed._replace(
            config=archive.load(archive.references.all()[0]).config)


def test_an_archive_may_have_more_manifests_than_one_image(
        path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = held_in(Layout(tmp_path / "layout"))
    tops = [named(held.tree), named(held.plain, PLAIN)]
    path.write_bytes(pack(layout_members(held.layout, tops)))
    with opened(str(path), Cancel()) as archive:
        most = max(sum(1 for _, document in archive.walk(image.descriptor) if document)
                   for image in archive.references.all())
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", most)
    with opened(str(path), Cancel()) as archive:
        assert len(archive.references.all()) == len(tops)
