# SPDX-License-Identifier: Apache-2.0
"""A root file system in the making, beside a victim, with bait in the current directory."""
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple


from tests.kit.layers import END, NOBODY, Thing, as_nobody, head, needs_root, shown, symlink, things
from minipull.rootfs.rootfs import RootFS, clear
from minipull.image.tar import Reader
SECOND = 10 ** 9
UNLIMITED = 1 << 40
Layers = Sequence[bytes]


class World:
    """A directory with ``target``, which is to become a root, and what must stay as it is."""

    def __init__(self, base: Path, user: str) -> None:
        self.base = base
        self.root = user == "root"
        self.target = base / "target"
        self.victim = base / "victim"
        self.warnings: List[str] = []
        self.target.mkdir()
        for folder in (self.victim, base / "bait"):
            for name in ("secret", "f", "x", "target", "dir/inner", "etc/shadow", "victim/secret"):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("secret\n")
                path.chmod(0o640)
                os.utime(str(path), (1, 1))
        if not self.root and os.geteuid() == 0:
            for each in things(base):
                os.chown(os.path.join(os.fsencode(base), each), NOBODY, NOBODY)
        self._before = self.outside()

    def outside(self) -> Dict[bytes, Thing]:
        found = things(self.base, skip=self.target)
        found[b"."] = found[b"."]._replace(mtime=0)  # target may come and go
        return found

    def build(self, *layers: bytes, limit: int = UNLIMITED,
              between: Callable[[int], object] = lambda number: None) -> Dict[str, str]:
        """Apply layers, and show what is there; ``between`` is called after each, with its number."""
        self.apply(*layers, limit=limit, between=between)
        return shown(self.target)

    def apply(self, *layers: bytes, limit: int = UNLIMITED,
              between: Callable[[int], object] = lambda number: None) -> None:
        """Apply layers, and see to it that no descriptor is left open and nothing else has changed."""
        def act() -> List[str]:
            warnings: List[str] = []
            fd = os.open(str(self.target), os.O_RDONLY | os.O_DIRECTORY)
            before = sorted(os.listdir("/proc/self/fd"))
            try:
                root = RootFS(fd, limit, warnings.append)
                try:
                    for number, layer in enumerate(layers):
                        root.apply(Reader(iter([layer + END])))
                        between(number)
                    root.close()
                finally:
                    root.drop()
                assert sorted(os.listdir("/proc/self/fd")) == before
            finally:
                os.close(fd)
            return warnings

        try:
            self.warnings = act() if self.root else as_nobody(act)
        finally:
            assert self.outside() == self._before

    def clear(self) -> None:
        """Empty the target by our own clear()."""
        if self.root:
            clear(str(self.target))
        else:
            as_nobody(lambda: clear(str(self.target)))
        assert self.outside() == self._before

    def deepest(self) -> int:
        """How many directories called ``d`` lie in each other, walked to as no path could."""
        fd, depth = os.open(str(self.target), os.O_RDONLY), 0
        while "d" in os.listdir(fd):
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd, depth = below, depth + 1
        os.close(fd)
        return depth

    def thing(self, name: str) -> Thing:
        return things(self.target)[name.encode()]

    @property
    def owner(self) -> Tuple[int, int]:
        """Who owns what is made here and has no owner of its own."""
        status = self.victim.stat()
        return status.st_uid, status.st_gid


def make_world(base: Path, user: str) -> World:
    if user == "root":
        needs_root()
    return World(base, user)


def fifo(name: bytes, **fields: Any) -> bytes:
    return head(name, b"6", **fields)


def chain(count: int) -> bytes:
    """Links to each other, of which the last is one to ``d``."""
    return b"".join(symlink(b"l%d" % n, b"l%d" % (n + 1) if n < count - 1 else b"d") for n in range(count))


def ways(path: bytes, last: str = "dir") -> Dict[str, str]:
    """What makes a path exist within the root, as shown."""
    parts = path.decode().strip("/").split("/")
    shown = {"/".join(parts[:n]): "dir" for n in range(1, len(parts))}
    shown["/".join(parts)] = last
    return shown
