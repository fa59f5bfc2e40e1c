# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the store."""
from pathlib import Path

import pytest

from minipull.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store whose locks are waited for 10 seconds."""
    return Store(str(tmp_path / "root"), timeout=10)
