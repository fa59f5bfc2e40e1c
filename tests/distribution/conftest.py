# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of copies."""
from pathlib import Path
from typing import Iterator

import pytest

from tests.kit.copies import Target
from tests.kit.signed import Signed, make_signed


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as made:
        yield made


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return make_signed(tmp_path / "layout")
