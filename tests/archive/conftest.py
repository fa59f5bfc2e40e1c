# SPDX-License-Identifier: Apache-2.0
"""A store, an image layout, an archive of three images."""
from pathlib import Path

import pytest

import minipull
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import Three
from tests.kit.images import Layout
from tests.kit.stores import keep, keep_index, text_layer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"), timeout=10)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar"


@pytest.fixture
def three(store: Store, layout: Layout) -> Three:
    return three_in(store, layout)


def three_in(store: Store, layout: Layout) -> Three:
    """A store of three images: one for many platforms, one of schema 2 with two names."""
    _, index, _ = images.multi_platform(layout.root, "x")
    one = layout.image([text_layer("one"), text_layer("two", compression="")])
    old = Layout(layout.root.parent / "old", docker=True)
    two = old.image([text_layer("three"), text_layer("one")])
    keep_index(store, layout, index, "r.example.com/many:3")
    keep(store, layout, one, "docker.io/demo/one:1")
    keep(store, old, two, "docker.io/library/two:2")
    keep(store, old, two, "docker.io/library/two:b")
    return store, layout, {"r.example.com/many:3": index, "docker.io/demo/one:1": one,
                           "docker.io/library/two:2": two, "docker.io/library/two:b": two}


@pytest.fixture
def saved(three: Three, path: Path) -> Path:
    """An archive of :func:`three`."""
    store, _, made = three
    minipull.save(list(made), store, str(path))
    return path
