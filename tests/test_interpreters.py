# SPDX-License-Identifier: Apache-2.0
"""Every interpreter from 3.6 up that the machine has does the same things."""
import json
from pathlib import Path
from typing import Tuple

import pytest

import images
from conftest import DockerRegistry, Minipull, interpreters
from servers import Certificates, FaultProxy, TokenAuth


Pushed = Tuple[str, images.Image]


@pytest.fixture(scope="module")
def pushed(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    """The path of an index in the registry, and the index."""
    layout, index, _ = images.multi_platform(tmp_path_factory.mktemp("interpreters"))
    images.push_layout_http(layout, "latest", registry.host + "/interpreters/it:1")
    return "/interpreters/it", index


@pytest.mark.parametrize("python", [python for _, python in interpreters()],
                         ids=[version for version, _ in interpreters()])
def test_pulls_checks_and_lists(
        python: str, registry: DockerRegistry, certificates: Certificates, pushed: Pushed,
        tmp_path: Path, run_minipull: Minipull) -> None:
    path, index = pushed
    root, auth = tmp_path / "root", TokenAuth({"ann": "secret"}, anonymous=())
    with FaultProxy(registry.host, tls=certificates.context(), auth=auth) as proxy:
        name = proxy.host + path + ":1"
        remote = ["--creds", "ann:secret", "--ca-file", str(certificates.ca)]

        def call(*args: str) -> str:
            done = run_minipull("--root", root, *args, python=python)
            assert (done.code, "Warning" in done.err) == (0, False), done
            return done.out

        assert call("pull", *remote, "--all-platforms", name).splitlines()[-1] == name
        assert "Digest: " + index.digest in call("pull", *remote, "--platform", "linux/arm/v7", name)
        assert call("tags", *remote, proxy.host + path).split() == ["1"]
        [row] = json.loads(call("images", "--format", "json"))
        assert (row["name"], row["digest"], row["platform"]) == (name, index.digest, "linux/arm/v7")
        assert json.loads(call("inspect", name))["source"] == index.digest
        assert json.loads(call("check", "--format", "json")) == {"ok": True, "problems": []}
        copy = "%s/interpreters/%s" % (proxy.host, Path(python).resolve().parent.parent.name)
        child = json.loads(index.raw)["manifests"][images.PLATFORMS.index("linux/arm/v7")]["digest"]
        assert "1: digest: " + child in call("push", *remote, name, copy)
        archive = str(tmp_path / "archive.tar")
        call("save", "-o", archive, name)
        assert call("check", archive) == archive + ": ok\n"
        call("rm", name)
        call("gc", "--keep", "0")
        assert list((root / "blobs" / "sha256").iterdir()) == []
        assert call("load", "-i", archive) == "Loaded image: %s\n" % name
