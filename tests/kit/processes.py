# SPDX-License-Identifier: Apache-2.0
"""Real peers, private and short-lived, and minipull run as a user runs it.

:func:`run` runs a program, :class:`Minipull` and :class:`Serve` run minipull and
``minipull serve``; :class:`DockerRegistry` and :class:`Docker` are the registry and
the daemon of docker, ``Tool`` is skopeo, umoci or podman.

A test that needs another program asks for it with :func:`peer`: without the
program the test is skipped, or fails where ``MINIPULL_PEERS=require`` says that
the peers were installed.  Every server listens on loopback on a free port, keeps
its files below pytest's temporary directory and is ended by the fixture that
started it.
"""
import functools
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, NoReturn, Optional, Sequence, Tuple, Union

import pytest

from tests.kit import ROOT


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Programs of which another one may come first on PATH.
FIXED = {"docker": "/usr/bin/docker", "dockerd": "/usr/sbin/dockerd"}


def peer(name: str) -> str:
    """The path of a program that the test needs; skips or fails without it."""
    path = FIXED.get(name) or shutil.which(name, path=PATH)
    if path is None or not os.access(path, os.X_OK):
        missing("the peer %r is not installed" % name)
    return path


def missing(what: str) -> NoReturn:
    if os.environ.get("MINIPULL_PEERS") == "require":
        pytest.fail("%s (MINIPULL_PEERS=require)" % what)
    pytest.skip("%s: run scripts/test --install-peers" % what)


@functools.lru_cache(maxsize=None)
def interpreters() -> List[Tuple[str, str]]:
    """CPython from 3.6 up on this machine: (version, real path), a path for each minor version.

    The one that runs the tests and the system's own are always among them: the
    same version built by somebody else is not the same interpreter.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")))
    own = [Path(sys.executable)] + [Path(folder, "python3") for folder in PATH.split(":")]
    others = list(pyenv.glob("versions/3.*/bin/python3"))
    others += [path for folder in os.get_exec_path() for path in Path(folder).glob("python3*")
               if path.parent.name != "shims" and path.name[7:].replace(".", "").isdigit()]
    by_version: Dict[str, str] = {}
    for path in [*own, *others]:
        if not path.exists():
            continue
        done = subprocess.run(
            [str(path), "-c", "import sys; sys.version_info >= (3, 6) and print("
             "'%d.%d.%d' % sys.version_info[:3], sys.executable)"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
        version, _, executable = done.stdout.decode().strip().partition(" ")
        minors = {known.rpartition(".")[0] for known in by_version}
        if executable and (path in own or version.rpartition(".")[0] not in minors):
            real = executable if executable == sys.executable else os.path.realpath(executable)
            by_version.setdefault(version, real)
    return sorted(by_version.items(), key=lambda item: [int(part) for part in item[0].split(".")])


def clean_env(home: Path, env: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """An environment with nothing of the developer's in it: no proxies, no credentials."""
    clean = {"PATH": PATH, "HOME": str(home), "LC_ALL": "C.UTF-8", "TMPDIR": str(home)}
    # How the coverage of a test run reaches the processes that it starts.
    clean.update({key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")})
    clean.update(env or {})
    return clean


class Finished:
    """The exit code and output of a command."""

    def __init__(self, args: Sequence[str], code: int, out: bytes, err: bytes) -> None:
        self.args, self.code, self.raw = list(args), code, out
        self.out, self.err = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return "<%s: exit %d\n--- stdout\n%s\n--- stderr\n%s>" % (
            " ".join(self.args), self.code, self.out, self.err)


def run(args: Sequence[Union[str, Path]], env: Optional[Mapping[str, str]] = None, timeout: float = 120,
        cwd: Optional[Path] = None, check: bool = True, stdin: bytes = b"") -> Finished:
    """Run a command to its end; with ``check`` anything but exit 0 raises with its stderr."""
    words = [str(arg) for arg in args]
    done = subprocess.run(words, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=env, cwd=cwd, timeout=timeout)
    finished = Finished(words, done.returncode, done.stdout, done.stderr)
    if check and finished.code != 0:
        raise RuntimeError(repr(finished))
    return finished


def wait_until(ready: Callable[[], bool], what: str, process: Optional["subprocess.Popen[bytes]"] = None,
               seconds: float = 30) -> None:
    """Poll until ``ready``; raises when time is up or the process has ended."""
    end = time.monotonic() + seconds
    while not ready():
        if process is not None and process.poll() is not None:
            raise RuntimeError("%s ended with %s" % (what, process.returncode))
        if time.monotonic() > end:
            raise RuntimeError("%s: not ready in %d s" % (what, seconds))
        threading.Event().wait(0.02)


def end(process: "subprocess.Popen[bytes]", seconds: float = 20) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def short_folder() -> Path:
    """For sockets and podman's run root, whose paths may hold 107 and 50 characters."""
    return Path(tempfile.mkdtemp(prefix="minipull-", dir="/tmp"))


# -- minipull ------------------------------------------------------------------

Minipull = Callable[..., Finished]


def minipull_env(home: Path, env: Optional[Mapping[str, str]] = None,
                 python: str = sys.executable) -> Dict[str, str]:
    """For tests that start ``python -m minipull`` themselves (signals, serve)."""
    clean = clean_env(home, {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})})
    if python != sys.executable:
        clean = {key: value for key, value in clean.items() if not key.startswith("COVERAGE_")}
    return clean


def driver_env(home: Path, env: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """For a process that is killed, or whose children are: its coverage is not measured, nor its file torn."""
    clean = {key: value for key, value in clean_env(home, env).items() if not key.startswith("COVERAGE_")}
    clean.update((key, value) for key, value in os.environ.items() if key.startswith("MINIPULL_TEST_"))
    return dict(clean, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")


class Serve:
    """``python -m minipull serve`` over ``root`` on a free port; ``log`` is its stderr."""

    def __init__(self, home: Path, root: Path, *flags: str, env: Optional[Mapping[str, str]] = None,
                 python: str = sys.executable) -> None:
        self.root = root
        folder = Path(tempfile.mkdtemp(prefix="serve-", dir=home))
        self.log = folder / "log"
        out = folder / "out"
        listen = () if "--listen" in flags else ("--listen", "127.0.0.1:0")
        with out.open("wb") as stdout, self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [python, "-m", "minipull", "--root", str(root), "serve", *listen, *flags],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=home,
                env=minipull_env(home, env, python))
        try:
            wait_until(lambda: out.read_bytes().endswith(b"\n"), "minipull serve", self.process)
        except RuntimeError as error:
            end(self.process)
            raise RuntimeError("%s: %s" % (error, self.log.read_text())) from None
        words, self.url = out.read_text().strip().rsplit(" ", 1)
        assert words == "Listening on"
        self.host = self.url[len("http://"):]
        self.port = int(self.host.rpartition(":")[2])

    def request(self, method: str, path: str, body: Union[bytes, Iterable[bytes]] = b"",
                headers: Optional[Mapping[str, str]] = None) -> Tuple[int, Dict[str, str], bytes]:
        """Send a request on a connection of its own; an iterable body is sent in chunks."""
        return ask(self.host, method, path, body, headers)

    def stop(self) -> None:
        end(self.process)


def ask(host: str, method: str, path: str, body: Union[bytes, Iterable[bytes]] = b"",
        headers: Optional[Mapping[str, str]] = None) -> Tuple[int, Dict[str, str], bytes]:
    """Ask a server once: status, headers (names in lower case), body."""
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        fields = {key.lower(): value for key, value in response.getheaders()}
        return response.status, fields, response.read()
    finally:
        connection.close()


# -- docker-registry -----------------------------------------------------------


class DockerRegistry:
    """Debian's docker-registry (distribution 2.8) with its files under ``root``."""

    def __init__(self, root: Path, config: str = "", extra_env: Optional[Mapping[str, str]] = None) -> None:
        self.root = root
        self.port = free_port()
        self.host = "127.0.0.1:%d" % self.port
        self.url = "http://" + self.host
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.yml").write_text(
            "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
            "storage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\n"
            "http: {addr: '%s'}\n%s" % (root / "data", self.host, config))
        with (root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [peer("docker-registry"), "serve", str(root / "config.yml")], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, env=clean_env(root, extra_env))
        try:
            wait_until(self._ready, "docker-registry", self._process)
        except RuntimeError as error:
            end(self._process)
            raise RuntimeError("%s: %s" % (error, (root / "log").read_text())) from None

    def _ready(self) -> bool:
        try:
            self.request("GET", "/v2/")
        except OSError:
            return False
        return True

    def request(self, method: str, path: str, accept: str = "*/*") -> Tuple[int, Dict[str, str], bytes]:
        """Ask the registry directly: status, headers (names in lower case), body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers={"Accept": accept})
            response = connection.getresponse()
            headers = {key.lower(): value for key, value in response.getheaders()}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def stop(self) -> None:
        end(self._process)


# -- docker --------------------------------------------------------------------


class Docker:
    """A private docker daemon; call it with the arguments of ``docker``."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "daemon.json").write_text("{}")  # not the machine's
        self._run = short_folder()
        self.address = "unix://%s/docker.sock" % self._run
        with (root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [peer("dockerd"), "--host", self.address, "--data-root", str(root / "data"),
                 "--exec-root", str(self._run / "exec"), "--pidfile", str(self._run / "pid"),
                 "--config-file", str(root / "daemon.json"), "--storage-driver", "vfs",
                 "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
                 "--bridge=none", "--log-level", "warn", *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=clean_env(root), start_new_session=True)
        try:
            wait_until(self._ready, "dockerd", self._process, 60)
        except RuntimeError as error:
            self.stop()
            raise RuntimeError("%s: %s" % (error, (root / "log").read_text()[-2000:])) from None

    def _ready(self) -> bool:
        return self("version", check=False).code == 0

    def __call__(self, *args: Union[str, Path], check: bool = True, timeout: float = 120,
                 stdin: bytes = b"") -> Finished:
        return run([peer("docker"), "--host", self.address, *args], clean_env(self.root),
                   timeout, check=check, stdin=stdin)

    def stop(self) -> None:
        end(self._process, 30)  # ends its containerd too
        shutil.rmtree(self._run, ignore_errors=True)


# -- skopeo, umoci, podman -----------------------------------------------------

Tool = Callable[..., Finished]


def tool(name: str, home: Path, *flags: Union[str, Path]) -> Tool:
    path = peer(name)

    def call(*args: Union[str, Path], check: bool = True, timeout: float = 120,
             stdin: bytes = b"") -> Finished:
        return run([path, *flags, *args], clean_env(home, {"XDG_RUNTIME_DIR": str(home)}),
                   timeout, cwd=home, check=check, stdin=stdin)
    return call
