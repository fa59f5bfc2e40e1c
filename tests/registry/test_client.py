# SPDX-License-Identifier: Apache-2.0
"""The loop over endpoints: who is asked, and what the error says when nobody answers."""
import sys

import pytest

from minipull.cancel import Cancel
from minipull.errors import NotInBuild
from minipull.reference import Reference
from minipull.registry.auth import Keyring
from minipull.registry.client import Client, over_endpoints
from minipull.registry.endpoints import Endpoint, RegistryService
from tests.kit.servers import ScriptedServer, error, reply


@pytest.mark.parametrize("v2_speaks", [True, False])
def test_a_build_without_v1_says_so_only_where_v1_is_needed(
        server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, v2_speaks: bool) -> None:
    monkeypatch.setitem(sys.modules, "minipull.registry.v1", None)
    server.on("GET", "^/v2/$", reply(200) if v2_speaks else error(404))
    name = Reference.parse(server.host + "/r")
    with Client(RegistryService(legacy_v1=True), Keyring()) as client:
        def work(endpoint: Endpoint) -> str:
            return endpoint.url if endpoint.version == 2 else client.session(endpoint, name).name

        if v2_speaks:
            assert over_endpoints(client, name, "pull", work, Cancel(), legacy=True) == server.url
        else:
            with pytest.raises(NotInBuild) as caught:
                over_endpoints(client, name, "pull", work, Cancel(), legacy=True)
            assert str(caught.value) == "pull: registry/v1 is not in this build of minipull (%s/v1)" % server.host
