# SPDX-License-Identifier: Apache-2.0
"""A registry with images, and one with users."""
import sys
from pathlib import Path
from typing import Dict, Iterator, Optional, Union

import pytest

from tests.kit import images
from tests.kit.commands import Call, Login, basic
from tests.kit.images import Layout
from tests.kit.processes import Finished, Minipull
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth
from tests.kit.servers import ScriptedServer


@pytest.fixture
def layout(server: ScriptedServer, tmp_path: Path) -> Layout:
    """Two tags of ``r`` on the server: latest and other, which shares its first layer."""
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(2, 9000), "latest")
    layout.image(images.specs(1, 9000), "other")
    server.serve(layout.root, "r")
    return layout


@pytest.fixture
def ref(server: ScriptedServer, layout: Layout) -> str:
    return server.host + "/r"


@pytest.fixture
def stored(call: Call, ref: str) -> str:
    call("pull", ref)
    return ref


# -- login -----------------------------------------------------------------------


@pytest.fixture
def private(server: ScriptedServer) -> ScriptedServer:
    """A registry for ann alone."""
    server.on("GET", "/v2/$", basic("ann", "s3cret"))
    return server


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[FaultProxy]:
    """A registry with ``r:latest``, for ann alone and by its token server, which gives identity tokens."""
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(1, 900), "latest")
    with ScriptedServer() as behind:
        behind.serve(layout.root, "r")
        with FaultProxy(behind.host, auth=TokenAuth({"ann": "s3cret"}, anonymous=())) as proxy:
            yield proxy


@pytest.fixture
def login(run_minipull: Minipull) -> Login:
    """As ann, unless told otherwise; no password is ever shown."""
    def call(host: str, *flags: Union[str, Path], user: str = "ann", password: str = "s3cret",
             env: Optional[Dict[str, str]] = None, python: str = sys.executable) -> Finished:
        done = run_minipull("login", "-u", user, "--password-stdin", *flags, host,
                            stdin=password.encode() + b"\n", env=env, python=python)
        assert not password.strip() or password not in done.out + done.err
        return done
    return call


@pytest.fixture
def file(home: Path) -> Path:
    return home / ".docker" / "config.json"
