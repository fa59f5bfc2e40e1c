# SPDX-License-Identifier: Apache-2.0
"""Servers in this process.

``start(ROOT, ...)`` starts a registry, and ``site`` is one over an empty store;
``listen(...)`` starts a listener with an application of the test's, and
``listener`` is one.
"""
import contextlib
from pathlib import Path
from typing import Any, Iterator, List, Optional

import pytest

from minipull.server import http as httpd
from tests.kit.listener import Listen, Listener
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


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    monkeypatch.setattr(httpd, "TICK", 0.02)
    sites: List[Listener] = []

    def begin(timeout: float = 20, **constants: object) -> Listener:
        for name, value in constants.items():
            monkeypatch.setattr(httpd, name, value)
        sites.append(Listener(tmp_path, timeout))
        return sites[-1]

    yield begin
    for listener in sites:
        listener.application.go_on.set()
        listener.stop()


@pytest.fixture
def listener(listen: Listen) -> Listener:
    return listen()
