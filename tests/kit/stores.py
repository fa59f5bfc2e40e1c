# SPDX-License-Identifier: Apache-2.0
"""Stores as pulls leave them, and processes that meet in one or are killed in it."""
import contextlib
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence

from minipull.cancel import Cancel
from minipull.digest import ChainID, Digest
from minipull.image.descriptor import Descriptor
from minipull.reference import Reference
from minipull.store.check import Problem, check
from minipull.store.ingest import Ingest
from minipull.store.metadata import V2Metadata
from minipull.store.store import Store
from tests.kit import ROOT, images
from tests.kit.images import Layout, Spec

NAME = "docker.io/library/busybox:latest"
REPOSITORY = "docker.io/library/busybox"
ENV = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def text_layer(text: str, **fields: Any) -> Spec:
    return Spec(entries=[("etc", None), ("etc/motd", text.encode())], **fields)


def descriptor(obj: Any) -> Descriptor:
    return Descriptor.from_json(obj, "test")


def fetch(store: Store, blob: Descriptor, data: bytes) -> None:
    with Ingest(store.content, Cancel(), blob.digest, blob.size) as ingest:
        if not ingest.complete:
            ingest.write(data[ingest.offset:])
            ingest.verify("blob")
            ingest.commit()


def keep(store: Store, layout: Layout, made: images.Image, name: str = NAME,
         index: Optional[images.Image] = None) -> None:
    """Leave in ``store`` what a pull of one platform leaves there."""
    with store.writing():
        fetch(store, descriptor(made.config), layout.read(made.config["digest"]))
        parent: Optional[ChainID] = None
        for layer in made.layers:
            blob = descriptor(layer.descriptor)
            fetch(store, blob, layout.read(blob.digest))
            diff = store.layers.diff(blob.digest, Cancel())
            parent = store.layers.register(parent, diff, blob).chain_id
            store.metadata.add(diff.diff_id, V2Metadata(blob.digest, REPOSITORY))
        for document in [made] + ([index] if index else []):
            store.content.put(Digest(document.digest), document.raw)
        store.references.set(Reference.parse(name), descriptor(made.descriptor),
                             Digest((index or made).digest))


def keep_index(store: Store, layout: Layout, top: images.Image, name: str = NAME) -> None:
    """Leave in ``store`` what a pull of all platforms leaves there."""
    for item in sorted((layout.root / "blobs" / "sha256").iterdir()):
        store.content.put(Digest("sha256:" + item.name), item.read_bytes())
    store.references.set(Reference.parse(name), descriptor(top.descriptor), Digest(top.digest))


def multi(root: Path, nested: bool = False) -> Any:
    """An index with two platforms and an attestation; the second may be in an index of its own."""
    layout = Layout(root)
    made = {platform: layout.image([text_layer(platform)], platform=platform)
            for platform in ("linux/amd64", "linux/arm64")}
    children = [{**image.descriptor, "platform": images.parse_platform(platform)}
                for platform, image in made.items()]
    if nested:
        children[1:] = [layout.index(children[1:]).descriptor]
    children.append(images.attestation(layout, children[0]["digest"]))
    return layout, layout.index(children), made


def twin_images(layout: Layout) -> List[images.Image]:
    """One config, two manifests: the layers of the second are the same, not compressed."""
    packed = layout.image([text_layer("one"), text_layer("two")])
    plain = layout.image([text_layer("one", compression=""), text_layer("two", compression="")])
    assert packed.config == plain.config and packed.digest != plain.digest
    return [packed, plain]


def problems(store: Store) -> List[Problem]:
    """What a process that comes later finds."""
    return check(Store(store.root))


def blobs(store: Store) -> List[str]:
    return [str(digest) for digest in store.content.digests()]


def age(store: Store, days: float = 3) -> None:
    """Let every file be days old."""
    for folder, _, names in os.walk(store.root):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            times = (status.st_atime - days * 86400, status.st_mtime - days * 86400)
            os.utime(os.path.join(folder, name), times)


@contextlib.contextmanager
def at_once(code: str, argvs: Sequence[Sequence[str]]) -> Iterator[List["subprocess.Popen[bytes]"]]:
    """Processes that print "ready" and begin with a line of stdin, begun together."""
    started = [subprocess.Popen([sys.executable, "-c", code, *argv], env=ENV, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE) for argv in argvs]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            with process:  # closes its pipes
                pass


CALLS = ("write", "fsync", "rename", "replace", "unlink", "open", "ftruncate", "mkdir")


def killed_at(k: int, work: Callable[[], None]) -> bool:
    """Fork, and in there ``work`` until SIGKILL at the k-th call that changes files.

    A write that is killed has written half.  False if the work had ended by then.
    """
    pid = os.fork()
    if pid == 0:
        left = [k]

        def counted(name: str) -> Callable[..., Any]:
            call: Callable[..., Any] = getattr(os, name)

            def wrapper(*args: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if name == "write":
                        call(args[0], args[1][:len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)
            return wrapper

        for name in CALLS:
            setattr(os, name, counted(name))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def failing(code: int, after: int = 0, call: Callable[..., Any] = lambda *args: None) -> Callable[..., Any]:
    """``call`` that fails with ``code`` from then on after so many times."""
    left = [after]

    def wrapper(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return call(*args, **options)
    return wrapper
