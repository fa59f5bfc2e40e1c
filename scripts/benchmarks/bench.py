# SPDX-License-Identifier: Apache-2.0
"""Ground of all rows: sizes, images in a registry, peers, and the folder that all of it lies in."""
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tests.kit import images

from .processes import PATH, PYTHON, ROOT, Measured, answers, cpu_seconds, free_port, measure, peak_memory, started

#: A peer and the programs that it needs, by the contestants' names.
PROGRAMS: Dict[str, Tuple[str, ...]] = {
    "docker-registry": ("docker-registry",), "skopeo": ("skopeo",), "crane": ("crane",),
    "docker": ("docker", "dockerd"), "umoci": ("umoci",), "pigz | tar": ("pigz", "tar"),
    "curl": ("curl", "sha256sum")}


class Sizes(NamedTuple):
    """Runs of rows, and sizes: megabytes of files before compression, which makes a third of them."""

    runs: int
    short_runs: int  # of a row that takes a tenth of a second
    slow_runs: int  # of a row that takes many seconds
    long_runs: int  # of a row whose time varies little
    big: Sequence[int]
    archive: Sequence[int]
    huge: int
    slow: str  # the image that is brought by docker and over the slow wire
    children: int
    requests: int
    blob: int  # bytes
    patch: int  # bytes
    crowd_seconds: float


FULL = Sizes(
    runs=5, short_runs=41, slow_runs=5, long_runs=2, big=(32, 960, 160, 700, 8, 480, 480),
    archive=(16, 480, 80, 350, 4, 240, 240), huge=4000, slow="big", children=300, requests=2000,
    blob=2 * 10 ** 9, patch=500 * 10 ** 6, crowd_seconds=20.0)
QUICK = Sizes(
    runs=3, short_runs=11, slow_runs=1, long_runs=1, big=(2, 40, 7, 30, 1, 20, 20),
    archive=(4, 40, 20), huge=200, slow="small", children=60, requests=500,
    blob=5 * 10 ** 8, patch=10 ** 8, crowd_seconds=2.0)
SMALL = (10, 60, 40)


class Source(NamedTuple):
    """An image in the registry and in a layout of its own, and what must be true of a copy of it."""

    name: str
    image: images.Image
    layout: Path
    host: str
    size: int  # bytes of all blobs

    @property
    def reference(self) -> str:
        return self.at(self.host)

    def at(self, host: str) -> str:
        return "%s/bench/%s:1" % (host, self.name)

    @property
    def blobs(self) -> List[images.Descriptor]:
        return [self.image.config, *(layer.descriptor for layer in self.image.layers)]

    def __str__(self) -> str:
        return "%d layers, %.0f MB" % (len(self.image.layers), self.size / 1e6)


class Bench:
    """The folder ``work`` and what lies in it; ``named`` has the paths of programs that were named by hand."""

    def __init__(self, work: Path, stack: contextlib.ExitStack, sizes: Sizes, named: Dict[str, str]) -> None:
        self.work, self.sizes, self._stack, self._named = work, sizes, stack, named
        self.log = work / "log"
        self.env = {"PATH": PATH, "HOME": str(work), "TMPDIR": str(work), "LC_ALL": "C.UTF-8",
                    "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(work / "pycache")}
        (work / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        subprocess.run([PYTHON, "-m", "compileall", "-q", str(ROOT / "minipull")], env=self.env, check=True)

    # -- peers -----------------------------------------------------------------

    def program(self, name: str) -> Optional[str]:
        if name == "crane":  # in no distribution: a contestant where it is named
            return self._named.get(name)
        return self._named.get(name) or shutil.which(name, path=PATH)

    def lacks(self, peer: str) -> str:
        """The reason why a contestant can't take part, or nothing."""
        missing = [name for name in PROGRAMS.get(peer, ()) if self.program(name) is None]
        if missing:
            return "%s is not installed" % " and ".join(missing)
        return "dockerd needs root" if peer == "docker" and os.geteuid() != 0 else ""

    def skopeo(self, *args: str) -> List[str]:
        return [self.program("skopeo") or "skopeo", "--policy", str(self.work / "policy.json"), "copy",
                "--quiet", *args]

    def minipull(self, *args: str, root: Optional[Path] = None) -> List[str]:
        return [PYTHON, "-m", "minipull", *([] if root is None else ["--root", str(root)]), *args]

    def bare(self, *args: str) -> List[str]:
        return [PYTHON, "-I", "-S", str(Path(__file__).with_name("bare.py")), *args]

    def measure(self, args: Sequence[str]) -> Measured:
        return measure(args, self.env, self.log)

    # -- servers ---------------------------------------------------------------

    @contextlib.contextmanager
    def _registry(self, name: str) -> Iterator[Tuple[str, int]]:
        host, config = "127.0.0.1:%d" % free_port(), self.work / (name + ".yml")
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            "storage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: '%s'}\n" % (self.work / name, host))
        with started(["docker-registry", "serve", str(config)], self.env, self.work / (name + ".log"),
                     lambda: answers(host)) as pid:
            yield host, pid

    @lru_cache(maxsize=None)
    def registry(self) -> Tuple[str, int]:
        """The registry that has all sources: its host and process id."""
        return self._stack.enter_context(self._registry("registry"))

    @contextlib.contextmanager
    def empty_registry(self) -> Iterator[str]:
        """A new registry, removed at the end: nothing in it can be mounted or be there already."""
        with self._registry("target") as (host, _):
            yield host
        shutil.rmtree(self.work / "target")

    @contextlib.contextmanager
    def relay(self, round_trip: float, rate: float) -> Iterator[str]:
        """The registry, so many seconds away, by a wire of so many bytes a second."""
        port = free_port()
        relay = [PYTHON, "-I", "-S", str(Path(__file__).with_name("relay.py"))]
        with started([*relay, str(port), self.registry()[0], str(round_trip), str(rate)], self.env,
                     self.work / "relay.log", lambda: answers("127.0.0.1:%d" % port)):
            yield "127.0.0.1:%d" % port

    @lru_cache(maxsize=None)
    def _dockerd(self) -> Tuple[List[str], int]:
        """A private daemon: the client's first words, and the daemon's process id."""
        run = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # a socket's path is short
        self._stack.callback(shutil.rmtree, run, ignore_errors=True)
        (self.work / "daemon.json").write_text("{}")
        client = ["docker", "--host", "unix://%s/docker.sock" % run]
        pid = self._stack.enter_context(started(
            ["dockerd", "--host", client[2], "--data-root", str(self.work / "docker"),
             "--exec-root", str(run / "exec"), "--pidfile", str(run / "pid"),
             "--config-file", str(self.work / "daemon.json"), "--storage-driver", "overlay2",
             "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
             "--bridge=none", "--log-level", "error"], self.env, self.work / "dockerd.log",
            lambda: subprocess.run([*client, "version"], env=self.env, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0))
        return client, pid

    def docker(self, source: Source, *args: str) -> Measured:
        """A docker command that brings ``source``; processor time and memory are the daemon's."""
        client, pid = self._dockerd()
        before = cpu_seconds(pid)
        cost = self.measure([*client, *args])._replace(cpu=cpu_seconds(pid) - before, memory=peak_memory(pid))
        self.measure([*client, "image", "inspect", source.reference])
        stored = json.loads(self.log.read_bytes())[0]
        if (stored["Id"], stored["RootFS"]["Layers"]) != (source.image.config["digest"], source.image.diff_ids):
            raise RuntimeError("docker has another image")
        self.measure([*client, "image", "rm", source.reference])
        return cost

    # -- images ----------------------------------------------------------------

    @lru_cache(maxsize=None)
    def source(self, name: str) -> Source:
        layout = images.Layout(self.work / "sources" / name)
        if name == "index":
            image = self._index(layout)
        else:
            sizes = {"big": self.sizes.big, "small": SMALL, "archive": self.sizes.archive,
                     "huge": [self.sizes.huge], "twentieth": [self.sizes.huge // 20]}
            image = layout.image(images.specs(80, seed=1000) if name == "tiny" else [
                images.Spec(size=size * 10 ** 6, files=size * 42, seed=n, text=0.85)
                for n, size in enumerate(sizes[name])], name)
        size = sum(path.stat().st_size for path in layout.root.glob("blobs/sha256/*"))
        source = Source(name, image, layout.root, self.registry()[0], size)
        images.push_layout_http(layout, name, source.reference)
        return source

    def _index(self, layout: images.Layout) -> images.Image:
        children = []
        for n in range(self.sizes.children):
            platform = "linux/arm/v%d" % n
            child = layout.image(images.specs(1), platform=platform)
            children.append({**child.descriptor, "platform": images.parse_platform(platform)})
        return layout.index(children, "index")

    @lru_cache(maxsize=None)
    def store(self, name: str) -> Path:
        """A store of minipull that has this image."""
        root = self.work / "stores" / name
        self.measure(self.minipull("pull", self.source(name).reference, root=root))
        return root

    def verify_layout(self, root: Path, source: Source) -> None:
        """Every blob is there with the bytes that its name says, and the image has its name."""
        named = {item["digest"] for item in json.loads((root / "index.json").read_bytes())["manifests"]}
        if named != {source.image.digest}:
            raise RuntimeError("%s names another image" % root)
        for path in source.layout.glob("blobs/sha256/*"):
            verify_blob(root / "blobs" / "sha256" / path.name, path.name)
        shutil.rmtree(root)

    def verify_pushed(self, host: str, source: Source) -> None:
        """The registry answers with the manifest, has all blobs in its repository, and their bytes on disk."""
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            for item in [source.image.descriptor, *source.blobs]:
                kind = "manifests/1" if item is source.image.descriptor else "blobs/" + item["digest"]
                connection.request("HEAD", "/v2/bench/pushed/" + kind, headers={"Accept": item["mediaType"]})
                response = connection.getresponse()
                response.read()
                if (response.status, response.getheader("Docker-Content-Digest")) != (200, item["digest"]):
                    raise RuntimeError("%s: %s is not there" % (host, kind))
                encoded = item["digest"].partition(":")[2]
                blobs = self.work / "target" / "docker" / "registry" / "v2" / "blobs" / "sha256"
                verify_blob(blobs / encoded[:2] / encoded / "data", encoded)


def verify_blob(path: Path, encoded: str) -> None:
    content = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            content.update(piece)
    if content.hexdigest() != encoded:
        raise RuntimeError("%s is damaged" % path)
