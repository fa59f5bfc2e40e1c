# SPDX-License-Identifier: Apache-2.0
"""The two registries of the checks of conformance."""
from typing import Iterator

import pytest

from tests.kit.conformance import Remote
from tests.kit.processes import Serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    home = tmp_path_factory.mktemp("conformance")
    server = Serve(home, home / "root", "--writable")
    yield server
    server.stop()
    assert server.log.read_text() == "", "only what goes wrong in the server is logged"


@pytest.fixture(params=["minipull", "docker-registry"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    server = request.getfixturevalue("served" if request.param == "minipull" else "registry")
    remote = Remote(request.param, server.host, request.node.name)
    yield remote
    remote.close()
