# SPDX-License-Identifier: Apache-2.0
"""A store is a source of images."""
from pathlib import Path

import pytest

from minipull.store.store import Store
from tests.kit.images import Layout
from tests.kit.sources import PLAIN, Held, ImageSourceTests, held_in
from tests.kit.stores import keep_index


class TestStore(ImageSourceTests):
    @pytest.fixture
    def held(self, tmp_path: Path) -> Held:
        return held_in(Layout(tmp_path / "layout"))

    @pytest.fixture
    def source(self, tmp_path: Path, held: Held) -> Store:
        store = Store(str(tmp_path / "root"))
        keep_index(store, held.layout, held.tree)
        keep_index(store, held.layout, held.plain, PLAIN)
        return store

    def test_a_store_is_written_to_as_it_is(self, source: Store) -> None:
        assert source.writable is source
