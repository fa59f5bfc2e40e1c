# SPDX-License-Identifier: Apache-2.0
"""The tests that every source of images passes: a store and an archive inherit them."""
import hashlib
from typing import Dict, NamedTuple

import pytest

from minipull.archive.save import Contents
from minipull.cancel import Cancel
from minipull.digest import DiffID, Digest, Verifier
from minipull.errors import Error, NotFound
from minipull.image.manifest import Index, Manifest
from minipull.image.platform import Platform
from minipull.progress import discard
from minipull.reference import Reference
from minipull.store.check import check_images
from minipull.archive.reader import image_of
from minipull.store.metadata import V2Metadata
from minipull.store.store import ImageSource
from tests.kit import images
from tests.kit.images import Layout
from tests.kit.stores import NAME, descriptor, multi

PLAIN = "docker.io/library/plain:1"


class Held(NamedTuple):
    """The images that a source has: an index called NAME, and an image called PLAIN."""
    layout: Layout
    tree: images.Image
    platforms: Dict[str, images.Image]
    plain: images.Image


def held_in(layout: Layout) -> Held:
    layout, index, platforms = multi(layout.root, nested=True)
    return Held(layout, index, platforms, layout.image(images.specs(2, 1000)))


class ImageSourceTests:
    """To be inherited, with fixtures ``held`` and ``source``."""

    def test_names_are_listed_in_order_and_found(self, source: ImageSource, held: Held) -> None:
        assert [str(item.name) for item in source.references.all()] == [NAME, PLAIN]
        association = source.references.get(Reference.parse(PLAIN))
        assert association is not None and association.descriptor.digest == held.plain.digest
        assert source.references.get(Reference.parse("other:1")) is None
        assert len(source.references.descriptors()) == 2

    def test_an_image_is_found_by_name_id_and_prefix(self, source: ImageSource, held: Held) -> None:
        image = source.image("plain:1")
        assert (image.id, image.descriptor.digest) == (held.plain.config["digest"], held.plain.digest)
        for text in (image.id, image.id.encoded, image.id.short, PLAIN):
            assert source.image(text) == image
        with pytest.raises(NotFound, match="No such image: other:1"):
            source.image("other:1")
        assert [str(item.name) for item in source.images()] == [NAME, PLAIN]
        assert source.image(NAME).config is None

    def test_a_document_is_read_by_its_descriptor(self, source: ImageSource, held: Held) -> None:
        index = source.document(descriptor(held.tree.descriptor))
        assert isinstance(index, Index) and index.raw == held.tree.raw
        document = source.document(descriptor(held.plain.descriptor))
        assert isinstance(document, Manifest) and document.raw == held.plain.raw

    def test_a_walk_meets_every_blob_once_and_children_first(self, source: ImageSource, held: Held) -> None:
        top = descriptor(held.tree.descriptor)
        met = [item.digest for item, _ in source.walk(top)]
        assert len(met) == len(set(met)) and met[-1] == held.tree.digest
        for image in held.platforms.values():
            assert met.index(Digest(image.config["digest"])) < met.index(Digest(image.digest))
        assert list(source.missing(top)) == []
        assert source.size(top) == sum(len(held.layout.read(digest)) for digest in met)

    def test_an_image_is_chosen_by_platform(self, source: ImageSource, held: Held) -> None:
        top = descriptor(held.tree.descriptor)
        for platform, image in held.platforms.items():
            best = source.on(Platform.parse(platform), top)
            assert best is not None and best.digest == image.digest
        assert source.on(Platform.parse("linux/s390x"), top) is None

    def test_a_blob_is_opened_read_and_hashed(self, source: ImageSource, held: Held) -> None:
        digest = Digest(held.plain.layers[0].descriptor["digest"])
        data = held.layout.read(digest)
        assert source.content.size(digest) == len(data) and source.content.has(digest, len(data))
        assert source.content.read(digest, len(data)) == data
        with source.content.open(digest) as file:
            file.seek(10)
            assert file.read(5) == data[10:15]
        verifier = Verifier()
        source.content.hash(digest, verifier, Cancel())
        verifier.verify(digest, len(data), "blob")

    def test_a_blob_that_is_missing_or_too_large_is_an_error(self, source: ImageSource, held: Held) -> None:
        missing, layer = Digest.of(b"missing"), Digest(held.plain.layers[0].descriptor["digest"])
        assert source.content.size(missing) is None and not source.content.has(missing, 7)
        for digest, limit in ((missing, 10), (layer, 10)):
            with pytest.raises(Error):
                source.content.read(digest, limit)
        with pytest.raises(Error):
            source.content.open(missing)

    def test_a_layer_has_its_diff_id(self, source: ImageSource, held: Held) -> None:
        for layer, diff_id in zip(held.plain.layers, held.plain.diff_ids):
            assert source.layers.diff(Digest(layer.descriptor["digest"]), Cancel()).diff_id == diff_id

    def test_an_association_is_remembered_by_whoever_uses_the_source(
            self, source: ImageSource, held: Held) -> None:
        diff_id = DiffID(Digest(held.plain.diff_ids[0]))
        entry = V2Metadata(Digest(held.plain.layers[0].descriptor["digest"]), "r.example.com/x")
        assert source.metadata.get_metadata(diff_id) == []
        source.metadata.add(diff_id, entry)
        assert source.metadata.get_metadata(diff_id) == [entry]
        assert source.metadata.get_diff_id(entry.digest) == diff_id
        source.metadata.remove(entry)
        assert source.metadata.get_metadata(diff_id) == []

    def test_images_are_checked_and_saved(self, source: ImageSource, held: Held) -> None:
        tops = [image_of(entry) for entry in source.references.descriptors()]
        assert check_images(source, [top for _, top in tops], Cancel()) == []
        with source.reading():
            first, second = [hashlib.sha256(b"".join(map(bytes, Contents(
                source, order, Platform.parse("linux/amd64"), discard).pieces(Cancel())))).hexdigest()
                for order in (tops, tops[::-1])]
        assert first == second
