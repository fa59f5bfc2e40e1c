# SPDX-License-Identifier: Apache-2.0
"""An archive is a source of images."""
from pathlib import Path
from typing import Iterator

import pytest

from minipull.archive.reader import Archive, opened
from minipull.cancel import Cancel
from tests.kit.archives import layout_members, named, pack
from tests.kit.images import Layout
from tests.kit.sources import PLAIN, Held, ImageSourceTests, held_in


class TestArchive(ImageSourceTests):
    @pytest.fixture
    def held(self, tmp_path: Path) -> Held:
        return held_in(Layout(tmp_path / "layout"))

    @pytest.fixture
    def source(self, path: Path, held: Held) -> Iterator[Archive]:
        path.write_bytes(pack(layout_members(held.layout, [named(held.tree), named(held.plain, PLAIN)])))
        with opened(str(path), Cancel()) as archive:
            yield archive
