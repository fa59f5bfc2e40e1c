# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of a root file system."""
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.kit.layers import fast_folder
from tests.kit.places import Place
from tests.kit.worlds import World, make_world


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with fast_folder() as path:
        path.chmod(0o755)
        (path / "bait").mkdir()
        monkeypatch.chdir(path / "bait")
        yield path


@pytest.fixture(params=["root", "nobody"])
def world(request: Any, base: Path) -> World:
    return make_world(base, request.param)


@pytest.fixture
def as_root(base: Path) -> World:
    return make_world(base, "root")


@pytest.fixture
def unprivileged(base: Path) -> World:
    return make_world(base, "nobody")


@pytest.fixture
def place() -> Iterator[Place]:
    with fast_folder() as path:
        path.chmod(0o755)
        yield Place(path)
