# SPDX-License-Identifier: Apache-2.0
"""The walk down an index, and its bound wherever an index is walked."""
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import pytest

import minipull
from minipull.digest import Digest
from minipull.errors import Error, InvalidDocument, PolicyError
from minipull.image import manifest, walk
from minipull.image.descriptor import (
    INDEX_TYPES, MANIFEST_TYPES, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor)
from minipull.image.manifest import Document
from minipull.image.walk import MAX_DEPTH, MAX_DOCUMENTS, Bounds, Seen
from minipull.store.check import check
from minipull.store.gc import gc
from tests.kit.archives import layout_members, named, pack
from tests.kit.images import Layout
from tests.kit.stores import descriptor, keep_index, problems

CONFIG = {"mediaType": OCI_CONFIG, "digest": Digest.of(b"{}"), "size": 2}


class Tree:
    """Documents by digest, and how often each was asked for."""

    def __init__(self) -> None:
        self.documents: Dict[Digest, Document] = {}
        self.asked: List[Tuple[str, Digest, int]] = []

    def image(self, number: int = 0, size: int = 0) -> Descriptor:
        return self._add({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [],
                          "annotations": {"number": str(number), "filler": "x" * size}}, OCI_MANIFEST)

    def index(self, *children: Descriptor, **members: Any) -> Descriptor:
        return self._add(dict({"schemaVersion": 2, "mediaType": OCI_INDEX,
                               "manifests": [child.to_json() for child in children]}, **members), OCI_INDEX)

    def nest(self, depth: int) -> Descriptor:
        """An image below ``depth`` indexes."""
        top = self.image()
        for _ in range(depth):
            top = self.index(top)
        return top

    def get(self, item: Descriptor) -> Optional[Document]:
        self.asked.append(item[:3])
        known = item.media_type in MANIFEST_TYPES | INDEX_TYPES
        return self.documents.get(item.digest) if known else None

    def met(self, top: Descriptor, **options: Any) -> List[Descriptor]:
        return [item for item, _ in walk.walk(top, self.get, **options)]

    def _add(self, members: Any, media_type: str) -> Descriptor:
        document = manifest.parse(json.dumps(members).encode(), media_type)
        self.documents[document.digest] = document
        return document.descriptor


@pytest.fixture
def tree() -> Tree:
    return Tree()


def shallow(tree: Tree) -> List[Descriptor]:
    one, two = tree.image(1), tree.image(2)
    return [one, two, tree.index(one, two)]


def diamond(tree: Tree) -> List[Descriptor]:
    image = tree.image()
    left, right = tree.index(image, annotations={"side": "left"}), tree.index(image)
    return [image, left, right, tree.index(left, right, image)]


def twice(tree: Tree) -> List[Descriptor]:
    image = tree.image()
    return [image, tree.index(image, image._replace(annotations={"a": "b"}), image)]


def unknown(tree: Tree) -> List[Descriptor]:
    image, other = tree.image(), Descriptor("application/x", Digest.of(b"other"), 5)
    return [other, image, tree.index(other, image)]


def absent(tree: Tree) -> List[Descriptor]:
    lost = Descriptor(OCI_MANIFEST, Digest.of(b"lost"), 4)
    return [lost, tree.index(lost)]


def two_types(tree: Tree) -> List[Descriptor]:
    """One digest as something unknown and as an index: what is below it must not be overlooked."""
    image = tree.image()
    inner = tree.index(image)
    other = inner._replace(media_type="application/x")
    return [other, image, inner, tree.index(other, inner)]


def deep(tree: Tree) -> List[Descriptor]:
    items = [tree.image()]
    for _ in range(MAX_DEPTH):
        items.append(tree.index(items[-1]))
    return items


def broad(tree: Tree) -> List[Descriptor]:
    images = [tree.image(number) for number in range(MAX_DOCUMENTS - 1)]
    return [*images, tree.index(*images)]


@pytest.mark.parametrize("make", [shallow, diamond, twice, unknown, absent, two_types, deep, broad])
def test_a_walk_meets_each_entry_once_children_before_their_index(
        make: Callable[[Tree], List[Descriptor]], tree: Tree) -> None:
    expected = make(tree)
    assert tree.met(expected[-1]) == expected
    assert len(set(tree.asked)) == len(tree.asked) == len(expected)


def over_depth(tree: Tree) -> Descriptor:
    return tree.nest(MAX_DEPTH + 1)


def over_documents(tree: Tree) -> Descriptor:
    return tree.index(*(tree.image(number) for number in range(MAX_DOCUMENTS)))


def over_bytes(tree: Tree) -> Descriptor:
    return tree.index(*(tree.image(number, 7 << 20) for number in range(10)))


def over_entries_of_unknown_kinds(tree: Tree) -> Descriptor:
    return tree.index(*(Descriptor("application/x", Digest.of(b"%d" % number), 1)
                        for number in range(MAX_DOCUMENTS)))


def other_size(tree: Tree) -> Descriptor:
    image = tree.image()
    return tree.index(image, image._replace(size=image.size + 1))


def other_type(tree: Tree) -> Descriptor:
    return tree.index(tree.index()._replace(media_type=OCI_MANIFEST))


@pytest.mark.parametrize("make, kind, text", [
    (over_depth, PolicyError, "indexes nested deeper than 8"),
    (over_documents, PolicyError, "more than 1000 manifests in all"),
    (over_entries_of_unknown_kinds, PolicyError, "more than 1000 manifests in all"),
    (over_bytes, PolicyError, "more than 16777216 bytes of manifests"),
    (other_size, InvalidDocument, "is not as its index says"),
    (other_type, InvalidDocument, "is not as its index says")])
def test_a_walk_refuses_a_tree_past_its_bounds_or_not_as_its_indexes_say(
        make: Callable[[Tree], Descriptor], kind: Type[Error], text: str, tree: Tree) -> None:
    with pytest.raises(kind, match=text) as caught:
        tree.met(make(tree))
    assert caught.value.exit_code == (9 if kind is PolicyError else 6)


def test_a_walk_asks_for_no_document_past_the_bound(tree: Tree) -> None:
    top = over_documents(tree)
    with pytest.raises(PolicyError):
        tree.met(top)
    assert len(tree.asked) == MAX_DOCUMENTS


def test_walks_may_share_what_they_have_seen_and_their_bounds(
        tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    image, other = tree.image(1), tree.image(2)
    one, two = tree.index(image), tree.index(image, other)
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 4)
    seen: Seen = set()
    bounds = Bounds()
    assert tree.met(one, seen=seen, bounds=bounds) == [image, one]
    assert tree.met(two, seen=seen, bounds=bounds) == [other, two]
    with pytest.raises(PolicyError):
        tree.met(tree.image(3), seen=seen, bounds=bounds)


def test_a_walk_follows_the_entries_that_are_chosen_as_it_goes(tree: Tree) -> None:
    one, two = tree.image(1), tree.image(2)
    inner = tree.index(one)
    top = tree.index(two, inner)
    assert tree.met(top, below=lambda index: index.manifests[-1:]) == [one, inner, top]


def test_a_document_bears_the_digest_by_which_its_index_names_it(tree: Tree) -> None:
    image = tree.image()
    named_by = image._replace(digest=Digest.of(tree.documents[image.digest].raw, "sha512"))
    tree.documents[named_by.digest] = tree.documents[image.digest]
    steps = list(walk.walk(tree.index(named_by), tree.get))
    assert [document and document.digest for _, document in steps] == [item.digest for item, _ in steps]


# -- the same bound everywhere ---------------------------------------------------


@pytest.fixture
def broad_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuple[Layout, Any]:
    """An index of three images where only three documents may be."""
    layout = Layout(tmp_path / "layout")
    children = [layout.image([], config={"author": str(number)}).descriptor for number in range(3)]
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 3)
    return layout, layout.index(children, "latest")


def test_copy_refuses_a_tree_over_the_bound(broad_layout: Tuple[Layout, Any], tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="more than 3 manifests in all"):
        minipull.copy("oci:%s:latest" % broad_layout[0].root, "oci:%s" % (tmp_path / "new"))
    assert not (tmp_path / "new" / "index.json").exists()


def test_load_refuses_a_tree_over_the_bound(broad_layout: Tuple[Layout, Any], tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(pack(layout_members(broad_layout[0], [named(broad_layout[1])])))
    store = minipull.Store(str(tmp_path / "store"))
    with pytest.raises(PolicyError, match="more than 3 manifests in all"):
        minipull.load(str(path), store)
    assert store.images() == []


def test_check_reports_a_tree_over_the_bound_and_gc_removes_nothing_of_it(
        broad_layout: Tuple[Layout, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, top = broad_layout
    store = minipull.Store(str(tmp_path / "store"))
    keep_index(store, layout, top)
    before = list(store.content.digests())
    assert [problem.kind for problem in problems(store)] == ["image"]
    assert [problem.kind for problem in check(store, names=[descriptor(top.descriptor)])] == ["image"]
    with pytest.raises(PolicyError, match="more than 3 manifests in all"):
        gc(store, 0)
    assert list(store.content.digests()) == before
    monkeypatch.undo()
    assert problems(store) == [] and not gc(store, 0).blobs
