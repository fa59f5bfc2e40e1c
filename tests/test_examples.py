# SPDX-License-Identifier: Apache-2.0
"""The examples of the README and of the docstrings, run as they stand against a registry at registry.lan."""
import inspect
import os
import re
import shutil
import socket
import textwrap
import threading
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

import minipull
from tests.kit import ROOT, images
from tests.kit.certificates import Certificates
from tests.kit.copies import who
from tests.kit.signatures import key_file
from tests.kit.servers import Connection, ScriptedServer, Uploads, challenge, content, error

README = (ROOT / "README.md").read_text("utf-8").partition("\n## As a library\n")[2].partition("\n## ")[0]
CALLS, INSTALLER = re.findall(r"(?ms)^```python\n(.*?)^```$", README)
FUNCTIONS = [name for name in minipull.__all__ if inspect.isfunction(getattr(minipull, name))]


class Lan(ScriptedServer):
    """The registry registry.lan: ``app:1.0`` is an index, and pushes go to ``mirror/app``.

    With ``login``, USER:PASSWORD, it answers no other user.
    """

    def __init__(self, certificates: Certificates, folder: Path) -> None:
        super().__init__(tls=certificates.context("lan"))
        self.login = ""
        self.layout, self.index, self.made = images.multi_platform(folder / "layout", "1.0")
        self.serve(self.layout.root, "app")
        self.uploads = Uploads(self, "mirror/app")
        self.on("GET", "/v2/mirror/app/manifests/", self._manifest)

    def _manifest(self, connection: Connection) -> None:
        data = self.uploads.manifests[connection.request.path.rpartition("/")[2]]
        content(data, images.OCI_MANIFEST, ranges=False)(connection)

    def handle(self, connection: Connection) -> None:
        if self.login and who(connection.request) != self.login:
            challenge('Basic realm="registry.lan"')(connection)
        else:
            super().handle(connection)


@pytest.fixture
def lan(certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lan]:
    """The registry, under its name for this process, which does not trust its CA; in a new folder."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copy(str(certificates.ca), "ca.crt")
    key_file(home)
    real = socket.getaddrinfo
    with Lan(certificates, tmp_path) as server:
        def look_up(host: str, port: Any, *rest: Any, **options: Any) -> Any:
            if host == "registry.lan":
                host, port = server.host.split(":")
            return real(host, port, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        yield server


@pytest.fixture
def trusted(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> Lan:
    """The registry, whose CA is among the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", "ca.crt")
    return lan


def example(name: str) -> str:
    text = inspect.getdoc(getattr(minipull, name)) or ""
    return textwrap.dedent(text.partition("Example::\n")[2])


def ran(code: str, names: Dict[str, Any]) -> Dict[str, Any]:
    exec(compile(code, "example", "exec"), names)
    return names


# -- the docstrings --------------------------------------------------------------


def test_each_public_function_is_here() -> None:
    assert FUNCTIONS == [
        "check", "copy", "digest", "environment", "export", "gc", "inspect", "load", "login", "parse_key", "pull",
        "push", "save", "serve", "tags", "unpack"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_called_as_its_example_shows(
        name: str, trusted: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    code = example(name)
    assert "minipull.%s" % name in code
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(variable, "/nonexistent")
    store = minipull.Store("store")
    if name not in ("pull", "environment"):
        minipull.pull("registry.lan/app:1.0", store, platform="linux/amd64")
        minipull.save(["registry.lan/app"], store, "app.tar")
    ran(code, {"minipull": minipull, "store": store, "threading": threading})


# -- the README ------------------------------------------------------------------


def test_the_calls_of_the_readme_work(trusted: Lan, capsys: pytest.CaptureFixture[str]) -> None:
    image = ran(CALLS, {})["image"]
    out = capsys.readouterr().out
    arm = trusted.made["linux/arm64/v8"]
    assert out.startswith("['1.0'] %s\n" % trusted.index.digest)
    assert int(out.splitlines()[1]) == sum(item["size"] for item in [arm.config, *(
        layer.descriptor for layer in arm.layers)])
    assert "1.0: Pulling from app\n" in out and out.endswith("[] 0\n")
    assert out.count("Pull complete") == len(arm.layers)
    assert image.descriptor.digest == arm.digest and image.source == trusted.index.digest
    assert trusted.uploads.manifests["1.0"] == arm.raw
    names = ["registry.lan/app:1.0", "registry.lan/mirror/app:1.0"]
    assert [str(item.name) for item in minipull.Store("store").images()] == names
    assert [str(item.name) for item in minipull.Store("other").images()] == names[:1]
    assert os.listdir("rootfs") and os.path.exists("layouts/index.json")


def nothing(lan: Lan, names: Dict[str, Any]) -> None:
    pass


def gone(lan: Lan, names: Dict[str, Any]) -> None:
    lan.stop()


def cancelled(lan: Lan, names: Dict[str, Any]) -> None:
    """The button is pressed while the first layer arrives."""
    layer = lan.made["linux/amd64"].layers[0].descriptor["digest"]
    lan.on("GET", "/v2/app/blobs/" + layer, [
        lambda connection: names["cancel"].cancel(), content(lan.layout.read(layer))])


def empty(lan: Lan, names: Dict[str, Any]) -> None:
    lan.on("GET", "/v2/app/manifests/", error(404, "MANIFEST_UNKNOWN"))


def closed(lan: Lan, names: Dict[str, Any]) -> None:
    lan.login = "ann:another"


@pytest.mark.usefixtures("no_repeats")
@pytest.mark.parametrize("trouble, text, code", [
    (nothing, "\r100 %", 0),
    (cancelled, "\nstopped; the next run goes on from here\n", 0),
    (closed, "\nwrong password? pull registry.lan/app:1.0: unauthorized", 0),
    (gone, "\ntry again later: pull registry.lan/app:1.0: ", 0),
    (empty, "\nfailed: pull registry.lan/app:1.0: manifest unknown", 3)])
def test_the_installer_of_the_readme_tells_how_it_ended(
        trouble: Any, text: str, code: int, lan: Lan, capsys: pytest.CaptureFixture[str]) -> None:
    lan.login = "ann:secret"
    names: Dict[str, Any] = {}
    trouble(lan, names)
    ended: object = 0
    try:
        ran(INSTALLER, names)
    except SystemExit as exc:
        ended = exc.code
    out = capsys.readouterr().out
    assert text in out and ended == code
    assert os.path.isdir("rootfs") == (trouble is nothing)
