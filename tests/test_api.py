# SPDX-License-Identifier: Apache-2.0
"""The library as the README shows it, and what a program that embeds it may rely on."""
import json
import sys
import threading
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from tests.kit import images
import minipull
from tests.kit import ROOT
from tests.kit.commands import basic
from minipull.registry.url import Origin
from tests.kit.processes import clean_env, run, wait_until
from minipull.store.check import check
from minipull.xfer.download import LayerDownloadManager
from minipull.xfer.upload import LayerUploadManager
from minipull.progress import Progress
from tests.kit.servers import ScriptedServer, Uploads, content, drip, error, head, hold, reply, send


def in_python(tmp_path: Path, code: str) -> str:
    env = clean_env(tmp_path, {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"})
    return run([sys.executable, "-c", code], env).out


def started(work: Any) -> Tuple[threading.Thread, List[Any]]:
    results: List[Any] = []

    def go() -> None:
        try:
            results.append(work())
        except BaseException as exc:
            results.append(exc)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread, results


# -- the package -----------------------------------------------------------------


def test_every_public_name_is_found_when_it_is_used(tmp_path: Path) -> None:
    out = in_python(tmp_path, """if True:
        import minipull
        before = set(vars(minipull))
        assert set(minipull.__all__) <= set(dir(minipull)) and "__name__" in dir(minipull)
        assert dir(minipull) == sorted(dir(minipull))
        assert set(vars(minipull)) == before, "dir() loads nothing"
        for name in minipull.__all__:
            value = getattr(minipull, name)
            assert vars(minipull)[name] is value is getattr(minipull, name)
        from minipull import *
        assert Store is minipull.Store and pull is minipull.pull
        print(minipull.Store.__module__, minipull.pull.__name__)""")
    assert out == "minipull.store.store pull\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(minipull, "push_everything")
    with pytest.raises(AttributeError, match="minipull.*nothing"):
        getattr(minipull, "nothing")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    env = clean_env(tmp_path, {"PYTHONPATH": str(ROOT)})
    assert run([sys.executable, "-m", "minipull", "--version"], env).out == (
        "minipull %s\n" % minipull.__version__)


# -- the README's example ----------------------------------------------------------


def test_the_example_of_the_readme_works(
        server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    server.serve(layout.root, "r")
    store = minipull.Store(str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
    image = minipull.pull(server.host + "/r:latest", store, platform="linux/arm64", progress=print)
    store.tag("localhost:5000/r:3.20", image)
    assert [str(each.name) for each in store.images()] == [
        server.host + "/r:latest", "localhost:5000/r:3.20"]
    assert (image.os, image.architecture, image.source) == ("linux", "arm64", index.digest)
    minipull.save([server.host + "/r:latest", "localhost:5000/r"], store, str(tmp_path / "bundle.tar"))
    loaded = minipull.load(str(tmp_path / "bundle.tar"), minipull.Store(str(tmp_path / "other")))
    assert [(str(each.name), each.id) for each in loaded] == [
        (str(each.name), image.id) for each in store.images()]
    out = capsys.readouterr().out
    assert out.startswith("latest: Pulling from r\n")
    assert out.count("Pull complete") == len(made["linux/arm64/v8"].layers)


def test_the_library_prints_nothing(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    layout, _ = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    minipull.pull(server.host + "/r", store)
    with pytest.raises(minipull.Error):
        minipull.pull(server.host + "/r:nope", store)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("when", ["message", "Downloading", "Pull complete"])
def test_a_progress_callback_that_raises_ends_its_pull(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, when: str) -> None:
    layout, _ = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")

    def progress(event: Progress) -> None:
        if when in (event.action, "message" if event.message else ""):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minipull.pull(server.host + "/r", store, progress=progress)
    assert store.images() == []
    minipull.pull(server.host + "/r", store)
    assert check(store) == []


def test_the_library_pushes_what_it_pulled(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    target = Uploads(server, "other")
    seen: List[Progress] = []
    image = minipull.pull(server.host + "/r", store)
    [pushed] = minipull.push(
        image.name, store, dest=server.host + "/other:1", progress=seen.append, uploads=LayerUploadManager(2))
    assert target.manifests["1"] == made.raw and pushed.descriptor.digest == image.source
    assert [str(layer.blob) for layer in pushed.layers] == [
        layer.descriptor["digest"][7:19] for layer in made.layers]
    assert {event.action for event in seen} >= {"Preparing", "Pushed"}


@pytest.mark.parametrize("when", ["message", "Preparing", "Pushed"])
def test_a_progress_callback_that_raises_ends_its_push(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, when: str) -> None:
    layout, _ = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    minipull.pull(server.host + "/r", store)
    target = Uploads(server)

    def progress(event: Progress) -> None:
        if when in (event.action, "message" if event.message else ""):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minipull.push(server.host + "/r", store, progress=progress)
    assert target.manifests == {}


# -- one manager for several pulls ---------------------------------------------------


class Held:
    """A served image whose blobs stop after their first bytes until ``go`` is set."""

    def __init__(self, server: ScriptedServer, tmp_path: Path, repositories: Tuple[str, ...] = ("r",)) -> None:
        self.server, self.go = server, threading.Event()
        self.layout, self.image = images.single(tmp_path / "layout", layers=3, size=200000)
        self.blobs = [layer.descriptor["digest"] for layer in self.image.layers] + [
            self.image.config["digest"]]
        for repository in repositories:
            server.serve(self.layout.root, repository)
        for digest in self.blobs[:-1]:
            server.on("GET", "/blobs/%s$" % digest, [hold(self.go), content(self.layout.read(digest))])

    def asked(self) -> List[str]:
        return [request.path.rpartition("/")[2] for request in self.server.seen("GET", "/blobs/")]

    def pull(self, store: minipull.Store, downloads: LayerDownloadManager, name: str = "r",
             **options: Any) -> Tuple[threading.Thread, List[Any]]:
        return started(lambda: minipull.pull(
            "%s/%s" % (self.server.host, name), store, downloads=downloads, **options))

    def waiting(self) -> bool:
        return len(self.asked()) == len(self.blobs)


def test_pulls_that_share_a_manager_fetch_each_blob_once(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    held, downloads = Held(server, tmp_path, ("r", "other")), LayerDownloadManager()
    events: List[List[Progress]] = [[], []]
    pulls = [held.pull(store, downloads, name, progress=seen.append)
             for name, seen in zip(("r", "other"), events)]
    wait_until(lambda: held.waiting() and all(
        sum(event.action == "Pulling fs layer" for event in list(seen)) == 3 for seen in events), "both")
    held.go.set()
    for thread, results in pulls:
        thread.join(20)
        assert results[0].source == held.image.digest
    assert sorted(held.asked()) == sorted(held.blobs)
    for seen in events:
        assert sum(event.action == "Pull complete" for event in seen) == 3
    assert len(store.images()) == 2 and check(store) == []


def test_cancelling_one_of_two_pulls_leaves_the_other_running(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    held, downloads, cancel = Held(server, tmp_path), LayerDownloadManager(), minipull.Cancel()
    first, gone = held.pull(store, downloads, cancel=cancel)
    wait_until(held.waiting, "the first")
    seen: List[Progress] = []
    second, kept = held.pull(store, downloads, progress=seen.append)
    wait_until(lambda: sum(event.action == "Pulling fs layer" for event in list(seen)) == 3, "the second")
    cancel.cancel()
    first.join(5)
    assert isinstance(gone[0], minipull.Cancelled)
    held.go.set()
    second.join(20)
    assert kept[0].source == held.image.digest
    assert sorted(held.asked()) == sorted(held.blobs)
    assert check(store) == []


def test_cancelling_the_pull_that_fetches_a_config_does_not_end_other_pulls(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    """Also where the config has to be tried again after the pull that began it is gone."""
    held, downloads, cancel = Held(server, tmp_path), LayerDownloadManager(4), minipull.Cancel()
    config, go = held.blobs[-1], threading.Event()
    server.on("GET", "/blobs/" + config, [hold(go), error(500)], error(500), error(500), error(500),
              content(held.layout.read(config)))
    first, gone = held.pull(store, downloads, cancel=cancel)
    wait_until(held.waiting, "the first")
    seen: List[Progress] = []
    second, kept = held.pull(store, downloads, progress=seen.append)
    wait_until(lambda: sum(event.action == "Pulling fs layer" for event in list(seen)) == 3, "the second")
    cancel.cancel()
    first.join(5)
    go.set()
    held.go.set()
    second.join(20)
    assert kept[0].source == held.image.digest


def test_when_all_are_cancelled_every_socket_is_closed_within_a_second(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    held, downloads = Held(server, tmp_path), LayerDownloadManager()
    for digest in held.blobs[:-1]:
        data = held.layout.read(digest)
        server.on("GET", "/blobs/" + digest, [
            send(head(200, {"Content-Length": str(len(data))})), drip(data, 1, 0.02)])
    cancels = [minipull.Cancel(), minipull.Cancel()]
    pulls = [held.pull(store, downloads, cancel=cancel) for cancel in cancels]
    wait_until(held.waiting, "both")
    assert server._open
    for cancel in cancels:
        cancel.cancel()
    wait_until(lambda: not server._open, "the sockets", seconds=1)
    for thread, results in pulls:
        thread.join(5)
        assert isinstance(results[0], minipull.Cancelled)
    assert store.images() == []


def test_errors_carry_their_exit_code() -> None:
    codes = {getattr(minipull, name).exit_code for name in minipull.__all__
             if isinstance(getattr(minipull, name), type) and issubclass(getattr(minipull, name), minipull.Error)
             and name != "RegistryError"}
    assert codes == {1, 2, 3, 4, 5, 6, 7, 8, 9, 130}


# -- what the command line finds ------------------------------------------------------


def test_the_environment_is_that_of_the_command_line(tmp_path: Path) -> None:
    settings, docker = tmp_path / "settings.json", tmp_path / "docker"
    settings.write_text(json.dumps({
        "hosts": {"a.lan": {"mirrors": ["https://m.lan"]}}, "insecure-registries": ["b.lan"], "surprise": 1}))
    docker.mkdir()
    (docker / "config.json").write_text(json.dumps({"auths": {"a.lan": {"username": "ann", "password": "p"}}}))
    environ = {"MINIPULL_CONFIG": str(settings), "DOCKER_CONFIG": str(docker), "MINIPULL_CREDS": "bob:q",
               "HTTPS_PROXY": "http://proxy.lan:1", "DOCKER_DEFAULT_PLATFORM": "linux/arm64", "HOME": "/nonexistent"}
    found = minipull.environment(environ, registries=["c.lan"])
    name = minipull.Reference.parse("a.lan/r")
    assert [endpoint.host for endpoint in found.service.pull_endpoints(name)] == ["m.lan", "a.lan"]
    assert found.service.exemption("b.lan")
    assert str(found.service.proxies.find(Origin.of("https://a.lan"))) == "proxy proxy.lan:1"
    assert [found.credentials.get(host)[:2] for host in ("a.lan", "c.lan", "d.lan")] == [
        ("ann", "p"), ("bob", "q"), ("", "")]
    assert (found.platform, found.keys) == ("linux/arm64", ())
    with pytest.raises(minipull.InvalidReference, match="one registry"):
        minipull.environment(environ, registries=["c.lan", "d.lan"])


def test_the_environment_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINIPULL_PLATFORM", "linux/s390x")
    assert minipull.environment().platform == "linux/s390x"
    monkeypatch.setenv("MINIPULL_CA_FILE", "a.crt")
    assert minipull.environment().service.ca_file == "a.crt"


# -- questions, logins and the store --------------------------------------------------


def test_digest_is_the_function_whatever_was_imported_before(tmp_path: Path) -> None:
    out = in_python(tmp_path, """if True:
        import minipull.digest, minipull.store.store
        from minipull import digest
        from minipull.digest import Digest
        print(digest is minipull.digest, digest.__module__, Digest is minipull.Digest)""")
    assert out == "True minipull.distribution.ask True\n"


def test_a_login_is_what_credentials_take(server: ScriptedServer, tmp_path: Path) -> None:
    server.on("GET", "/v2/$", basic("ann", "secret"))
    events: List[Progress] = []
    credential = minipull.login(
        server.host, "ann", "secret", authfile=str(tmp_path / "auth.json"), progress=events.append)
    assert credential == ("ann", "secret", "", "") and events == []
    for explicit in (credential, ("ann", "secret")):
        assert minipull.Credentials(explicit={server.host: explicit}).get(server.host) == credential
    assert server.host in (tmp_path / "auth.json").read_text()
    with pytest.raises(minipull.Error) as caught:
        minipull.login(server.host, "ann", "wrong", authfile=str(tmp_path / "none.json"))
    assert caught.value.exit_code == 4 and not (tmp_path / "none.json").exists()
    server.on("GET", "/v2/$", reply(200, {}))
    minipull.login(server.host, "ann", "secret", progress=events.append)
    assert [event.message for event in events] == [
        "warning: %s asked for no credentials, so these are not verified" % server.host]


@pytest.mark.parametrize("call", [
    lambda store: minipull.pull("no name", store), lambda store: minipull.push("no name", store),
    lambda store: minipull.tags("no name"), lambda store: minipull.digest("no name"),
    lambda store: minipull.inspect("no name"), lambda store: store.image("no name"),
    lambda store: store.remove("no name"), lambda store: minipull.check(store, ["no name"]),
    lambda store: minipull.export("no name", store, "x.tar"), lambda store: minipull.unpack("no name", store, "x")])
def test_a_malformed_name_is_quoted(call: Any, store: minipull.Store) -> None:
    with pytest.raises(minipull.InvalidReference, match="^no name: invalid reference format"):
        call(store)


def test_a_tree_is_exported_to_a_path_or_a_file(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _, _ = images.multi_platform(tmp_path / "layout")
    server.serve(layout.root, "r")
    image = minipull.pull(server.host + "/r:latest", store, all_platforms=True)
    events: List[Progress] = []
    minipull.export(image, store, str(tmp_path / "a.tar"), platform="linux/arm64", progress=events.append)
    with open(str(tmp_path / "b.tar"), "wb") as file:
        minipull.export(server.host + "/r:latest", store, file, platform="linux/arm64")
    minipull.export(image, store, str(tmp_path / "c.tar"), platform="linux/amd64")
    a, b, c = [(tmp_path / name).read_bytes() for name in ("a.tar", "b.tar", "c.tar")]
    assert a == b != c and len(a) > 512 and any(event.action == "Extracting" for event in events)
    with pytest.raises(minipull.NotFound, match="has nothing for linux/mips"):
        minipull.export(image, store, str(tmp_path / "d.tar"), platform="linux/mips")
    assert not (tmp_path / "d.tar").exists()


def test_a_store_names_what_is_checked_and_removed(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    name = server.host + "/r"
    pulled = minipull.pull(name, store)
    assert minipull.check(store, [name, pulled.id]) == []
    Path(store.content.path(minipull.Digest(image.layers[0].descriptor["digest"]))).write_bytes(b"rotten")
    problems = minipull.check(store, [name])
    assert problems and not any(problem.harmless for problem in problems)
    with pytest.raises(minipull.NotFound):
        minipull.check(store, [server.host + "/s"])
    store.remove(name)
    assert store.images() == [] and minipull.gc(store, keep=0).blobs
