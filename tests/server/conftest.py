# SPDX-License-Identifier: Apache-2.0
"""Registries in this process: ``start(ROOT, ...)`` starts one, ``site`` is one over an empty store."""
import contextlib
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest

from minipull.server import http as httpd
from tests.kit.site import Site, Start


@pytest.fixture
def quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers notice a stop at once."""
    monkeypatch.setattr(httpd, "TICK", 0.005)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(ROOT, writable=False, ...)``; the root is the test's own."""
    with contextlib.ExitStack() as stack:
        def go(root: Optional[Path] = None, **options: Any) -> Site:
            site = Site(root or tmp_path / "root", **options)
            stack.callback(site.stop)
            return site
        yield go


@pytest.fixture
def site(start: Start) -> Site:
    return start()
