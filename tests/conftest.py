# SPDX-License-Identifier: Apache-2.0
"""The fixtures that all wings share."""
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Union

import pytest

from minipull.cli import main as cli
from minipull.distribution import blobs, pull_v1
from minipull.registry import auth, client, transport
from minipull.store.store import Store
from tests.kit.certificates import Certificates
from tests.kit.commands import Call, Result
from tests.kit.images import Layout
from tests.kit.servers import ScriptedServer
from tests.kit.processes import (
    Docker, DockerRegistry, Finished, Minipull, Serve, Tool, clean_env, minipull_env, missing, peer, run, short_folder,
    tool)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=2000, metavar="N", help="cases of each kind in tests/faults (2000)")
    parser.addoption("--fuzz-seed", type=int, default=0, metavar="S", help="and their seed (0)")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(str(tmp_path / "store"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty image layout."""
    return Layout(tmp_path / "layout")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The HOME of the commands that a test runs: empty, and not the current directory."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def call(home: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process, with an environment of its own."""
    monkeypatch.chdir(home)

    def run(*args: Union[str, Path], env: Optional[Dict[str, str]] = None) -> Result:
        for name in list(os.environ):
            if not name.startswith("COVERAGE"):
                monkeypatch.delenv(name)
        for name, value in {**clean_env(home), "MINIPULL_ROOT": str(root), **(env or {})}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = cli.main([str(arg) for arg in args])
        return Result(code, *capfd.readouterr())
    return run


@pytest.fixture
def run_minipull(home: Path) -> Minipull:
    """Run ``python -m minipull ARGS...`` from elsewhere; never raises for its exit code."""
    def call(*args: Union[str, Path], env: Optional[Mapping[str, str]] = None, stdin: bytes = b"",
             python: str = sys.executable, timeout: float = 120) -> Finished:
        return run([python, "-m", "minipull", *args], minipull_env(home, env, python), timeout,
                   cwd=home, check=False, stdin=stdin)
    return call


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Serve]]:
    """``serve(ROOT, "--writable", env={...})``; every server is ended with the test."""
    with contextlib.ExitStack() as stack:
        def start(root: Path, *flags: str, env: Optional[Mapping[str, str]] = None,
                  python: str = sys.executable) -> Serve:
            started = Serve(home, root, *flags, env=env, python=python)
            stack.callback(started.stop)
            return started
        yield start


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """One registry for all tests: use a repository named after the test."""
    server = DockerRegistry(tmp_path_factory.mktemp("registry"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """One daemon for all tests; registries on 127.0.0.0/8 are insecure to it by default."""
    peer("docker")
    if os.geteuid() != 0:
        missing("a private dockerd needs root")
    daemon = Docker(tmp_path_factory.mktemp("docker"))
    yield daemon
    daemon.stop()


@pytest.fixture
def skopeo(home: Path) -> Tool:
    """``skopeo("copy", "--src-tls-verify=false", ...)``"""
    policy = home / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return tool("skopeo", home, "--policy", policy)


@pytest.fixture
def umoci(home: Path) -> Tool:
    """``umoci("raw", "unpack", "--image", "DIR:NAME", BUNDLE)``"""
    return tool("umoci", home)


@pytest.fixture
def podman(home: Path, tmp_path: Path) -> Iterator[Tool]:
    """``podman("pull", "oci:DIR:NAME")`` in a storage of its own."""
    folder = short_folder()
    try:
        yield tool("podman", home, "--root", tmp_path / "podman", "--runroot", folder / "run",
                    "--tmpdir", folder / "tmp", "--storage-driver", "vfs",
                    "--cgroup-manager", "cgroupfs", "--events-backend", "none")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many attempts as ever, and no delay between them."""
    for module in (auth, transport, client, blobs, pull_v1):
        for name, delays in list(vars(module).items()):
            if name.endswith("DELAYS"):
                monkeypatch.setattr(module, name, (0.0,) * len(delays))


@pytest.fixture
def no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt for each request and each document."""
    for name in ("RETRY_DELAYS", "RATE_LIMIT_DELAYS"):
        monkeypatch.setattr(transport, name, ())
    monkeypatch.setattr(client, "OUTAGE_DELAYS", ())
    monkeypatch.setattr(auth, "FRESH_DELAYS", ())
    monkeypatch.setattr(blobs, "DOCUMENT_DELAYS", ())


# -- servers with faults -------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def foreign() -> Iterator[ScriptedServer]:
    """Another host, which must never be sent a credential."""
    with ScriptedServer("127.0.0.2") as scripted:
        yield scripted
        scripted.assert_no_credentials()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"), peer("openssl"))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Every text of JSON that is parsed."""
    loads, parsed = json.loads, []

    def counted(text: str, **options: Any) -> Any:
        parsed.append(text)
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    return parsed
