# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol with docker-registry 0.9.1, the last registry that spoke it."""
import json
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.kit import images
from tests.kit import layers
import minipull
from tests.kit import ROOT
from tests.kit.processes import Minipull, ask, clean_env, end, free_port, missing, wait_until
from minipull.registry.auth import Credential
from minipull.registry.v1 import Session
from tests.kit.stores import keep

PYTHON = ROOT / ".venv-v1" / "bin" / "python"
#: Its M2Crypto, which checks signed tokens, does not build any longer.
SERVE = """
import sys, types
module = types.ModuleType("M2Crypto")
module.RSA = module.BIO = module.EVP = type("Missing", (object,), {})
sys.modules["M2Crypto"] = module
from docker_registry.wsgi import app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
"""


class V1Registry:
    """docker-registry 0.9.1 with its files under ``root``; ``log`` has a line for every request."""

    def __init__(self, root: Path) -> None:
        if not (ROOT / ".venv-v1" / "done").exists():
            if PYTHON.parent.parent.exists():  # somebody tried to, so there is a Python 2.7
                missing("docker-registry 0.9.1 is not installed")
            pytest.skip("docker-registry 0.9.1 is not there: scripts/test --install-peers, with a Python 2.7")
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / "log"
        self.port = free_port()
        self.host = "127.0.0.1:%d" % self.port
        env = clean_env(root, {
            "STORAGE_PATH": str(root / "data"), "SETTINGS_FLAVOR": "local", "LOGLEVEL": "info",
            "SQLALCHEMY_INDEX_DATABASE": "sqlite:///%s" % (root / "index.db"), "PYTHONWARNINGS": "ignore",
            "DOCKER_REGISTRY_CONFIG": str(next((ROOT / ".venv-v1").rglob("config_sample.yml")))})
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(PYTHON), "-c", SERVE, str(self.port)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=env, cwd=str(root))
        try:
            wait_until(self._ready, "docker-registry 0.9.1", self._process)
        except RuntimeError as error:
            end(self._process)
            raise RuntimeError("%s: %s" % (error, self.log.read_text("latin-1")[-2000:])) from None

    def _ready(self) -> bool:
        try:
            return ask(self.host, "GET", "/v1/_ping")[0] == 200
        except OSError:
            return False

    def asked(self, method: str, what: str) -> int:
        """How many such requests there were."""
        return sum('"%s /v1/' % method in line and what in line for line in self.log.read_text("latin-1").splitlines())

    def stop(self) -> None:
        end(self._process)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V1Registry]:
    registry = V1Registry(tmp_path_factory.mktemp("v1"))
    yield registry
    registry.stop()


@pytest.fixture
def service(old: V1Registry) -> minipull.RegistryService:
    return minipull.RegistryService(legacy=[old.host], timeout=20)


def store_at(path: Path) -> minipull.Store:
    return minipull.Store(str(path))


def made(tmp_path: Path, store: minipull.Store, *names: str) -> images.Image:
    layout, image = images.single(tmp_path / "layout")
    for name in names:
        keep(store, layout, image, name)
    return image


def test_a_v1_round_trip_keeps_layers_and_config(
        old: V1Registry, service: minipull.RegistryService, tmp_path: Path) -> None:
    ours, theirs = store_at(tmp_path / "ours"), store_at(tmp_path / "theirs")
    name = old.host + "/ns/r:1"
    made(tmp_path, ours, name)
    minipull.push(name, ours, service=service)
    pulled = minipull.pull(name, theirs, service=service)
    before, after = ours.image(name).config, pulled.config
    assert before is not None and after is not None
    assert after.diff_ids == before.diff_ids and len(after.history) == len(before.history)
    assert after.config == before.config and after.platform == before.platform
    assert pulled.source == pulled.descriptor.digest
    for store in (ours, theirs):
        minipull.unpack(name, store, str(tmp_path / (store.root + "-tree")))
    trees = [layers.things(Path(store.root + "-tree")) for store in (ours, theirs)]
    for tree in trees:
        del tree[b"."]  # of which no layer says anything
    assert trees[0] == trees[1] and len(trees[0]) > 10


def test_a_second_push_and_a_second_pull_move_no_layer(
        old: V1Registry, service: minipull.RegistryService, tmp_path: Path) -> None:
    ours, theirs = store_at(tmp_path / "ours"), store_at(tmp_path / "theirs")
    name = old.host + "/ns/twice:1"
    made(tmp_path, ours, name)
    for _ in range(2):
        minipull.push(name, ours, service=service)
        first = minipull.pull(name, theirs, service=service)
        counts = [old.asked("PUT", "/layer"), old.asked("GET", "/layer")]
    again = minipull.pull(name, theirs, service=service)
    [pushed] = minipull.push(name, ours, service=service)
    assert [old.asked("PUT", "/layer"), old.asked("GET", "/layer")] == counts
    assert again.descriptor == first.descriptor
    assert {layer.result for layer in pushed.layers} == {"Already exists"}
    minipull.push(name, theirs, service=service)  # what was built is as good as what is pushed elsewhere


def test_all_tags_go_and_come_by_the_command_line(
        old: V1Registry, tmp_path: Path, run_minipull: Minipull) -> None:
    repository = old.host + "/several"  # to the registry: library/several
    made(tmp_path, store_at(tmp_path / "ours"), *("%s:%s" % (repository, tag) for tag in "123"))
    pushed = run_minipull("--root", tmp_path / "ours", "push", "-a", "--legacy-v1", repository)
    assert pushed.code == 0, pushed
    assert pushed.err.count("speaks the v1 protocol, in which nothing is verified") == 1
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps({"legacy-registries": [old.host]}))
    pulled = run_minipull("--root", tmp_path / "theirs", "--config", settings, "pull", "-a", repository)
    assert pulled.code == 0 and "Status: Downloaded newer image for " + repository in pulled.out, pulled
    theirs = store_at(tmp_path / "theirs")
    assert [str(known.name) for known in theirs.references.all()] == ["%s:%s" % (repository, tag) for tag in "123"]
    assert run_minipull("--root", theirs.root, "check").code == 0
    refused = run_minipull("--root", theirs.root, "pull", repository + ":1")
    assert refused.code != 0 and "/v1" not in refused.err


def test_missing_images_and_unsupported_ones_are_told_plainly(
        old: V1Registry, service: minipull.RegistryService, tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    name = old.host + "/ns/some"
    made(tmp_path, store, name + ":1")
    minipull.push(name + ":1", store, service=service)
    for missing_name in (name + ":2", old.host + "/ns/none:1"):
        with pytest.raises(minipull.NotFound, match="not found"):
            minipull.pull(missing_name, store, service=service)
    with pytest.raises(minipull.Unsupported, match="Cannot pull by digest with v1 registry"):
        minipull.pull(name + "@sha256:" + "0" * 64, store, service=service)


@pytest.mark.parametrize("left", [2, 1000, 5000])
def test_a_v1_layer_is_continued_by_range(
        old: V1Registry, service: minipull.RegistryService, tmp_path: Path, left: int) -> None:
    store, cancel = store_at(tmp_path / "store"), minipull.Cancel()
    name = old.host + "/ns/rest:1"
    data = made(tmp_path, store, name).layers[-1].descriptor
    minipull.push(name, store, service=service)
    [endpoint] = service.v1_endpoints(minipull.Reference.parse(name))[1:]
    transport = service.transport()
    session = Session(endpoint, minipull.Reference.parse(name), transport, Credential)
    session.look_up("1", cancel)
    [registry] = session.registries
    with session.layer(registry, session.tag("1", cancel), cancel, data["size"] - left, data["size"]) as response:
        assert response.status == 206 and response.remaining == left
        assert response.header("Content-Range").startswith("%d-" % (data["size"] - left))
        whole = store.content.read(minipull.Digest(data["digest"]), 1 << 20)
        assert response.read(1 << 20) == whole[-left:]
    transport.close()
