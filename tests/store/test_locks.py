# SPDX-License-Identifier: Apache-2.0
"""The lock of a store, between processes and without any."""
import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import Callable, Iterator, List

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.errors import Cancelled, StorageError
from minipull.reference import Reference
from minipull.store.gc import gc
from minipull.store.ingest import Ingest
from minipull.store.store import Store
from tests.kit.images import Layout
from tests.kit.processes import run, short_folder
from tests.kit.stores import ENV, NAME, keep, problems, text_layer


HOLD = """
import sys
from minipull.store.gc import gc
from minipull.store.store import Store
from minipull.cancel import Cancel
store = Store(sys.argv[1])
with store.alone() if sys.argv[2] == "exclusive" else store.writing():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(store: Store, kind: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the store's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.root, kind], env=ENV,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdin is not None
        assert select.select([process.stdout], [], [], 60)[0] and process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        with process:  # closes its pipes
            pass


def test_readers_and_writers_share_the_lock_and_gc_waits_for_it(store: Store) -> None:
    store.timeout = 0.2
    with holding(store, "shared"):
        with store.writing(), store.reading():
            pass
        with pytest.raises(StorageError, match="locked"):
            gc(store, 0)
    gc(store, 0)


def test_a_lock_that_times_out_names_its_holder(store: Store) -> None:
    store.timeout = 0.2
    with holding(store, "exclusive") as process:
        for hold in (store.reading, store.writing, store.alone):
            with pytest.raises(StorageError) as info, hold():
                pass
            assert str(process.pid) in str(info.value) and "MINIPULL_TIMEOUT" in str(info.value)
            assert info.value.exit_code == 7


def test_kill_9_frees_the_lock(store: Store) -> None:
    with holding(store, "exclusive") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        with store.writing():
            pass


def test_waiting_for_a_lock_can_be_cancelled(store: Store) -> None:
    cancel = Cancel()
    with holding(store, "exclusive"):
        cancel.cancel()
        with pytest.raises(Cancelled), store.reading(cancel):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_readers_go_on_and_writers_stop(
        store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)

    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.reading():
        assert [image.id for image in store.images()] == [made.config["digest"]]
    assert problems(store) == []
    writes: List[Callable[[], object]] = [
        lambda: gc(store, 0), lambda: store.remove(Reference.parse(NAME)),
        lambda: store.tag("other", store.image("busybox")), lambda: keep(store, layout, made, "more:1"),
        lambda: Ingest(store.content, Cancel(), Digest.of(b"new"), 3)]
    for write in writes:
        with pytest.raises(StorageError, match="--root"):
            write()
    assert [str(item.name) for item in store.references.all()] == [NAME]


READ = """
import os, sys
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.store.store import Store
check(Store("/nonexistent"))  # loads what is loaded late
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
store = Store(sys.argv[1])
print([str(image.name) for image in store.images()], check(store))
try:
    gc(store, 0)
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def test_a_read_only_root_can_be_listed_and_checked(layout: Layout) -> None:
    folder = short_folder()  # pytest's are closed to other users
    try:
        folder.chmod(0o755)
        store = Store(str(folder / "root"))
        keep(store, layout, layout.image([text_layer("one")]))
        for where, _, names in os.walk(store.root):
            for name in names:
                os.chmod(os.path.join(where, name), 0o400 if name == "lock" else 0o444)
            os.chmod(where, 0o555)
        done = run([sys.executable, "-c", READ, store.root], ENV)
        listed, refused = done.out.splitlines()
        assert listed == "[%r] []" % NAME
        assert refused.startswith("StorageError open ") and "--root" in refused
    finally:
        for where, _, _ in os.walk(store.root):
            os.chmod(where, 0o755)
        shutil.rmtree(str(folder))
