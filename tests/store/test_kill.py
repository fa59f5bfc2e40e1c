# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every call of the system that changes files."""
import os
import sys
from pathlib import Path

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.reference import Reference
from minipull.store.gc import gc
from minipull.store.ingest import Ingest
from minipull.store.store import Store
from tests.kit import images
from tests.kit.images import Layout
from tests.kit.processes import run
from tests.kit.stores import ENV, NAME, blobs, keep, killed_at, problems, text_layer


def crash_keep(root: str) -> None:
    """Runs in a process of its own, which may fork."""
    layout = Layout(Path(root, "layout"))
    made = layout.image([text_layer("one"), text_layer("two", compression="")])
    index = layout.index([made.descriptor])
    k = 1
    while True:
        store = Store(os.path.join(root, "store-%d" % k), timeout=1)
        killed = killed_at(k, lambda: keep(store, layout, made, index=index))
        assert problems(store) == [], (k, problems(store))
        named = store.references.all()
        assert not named or not any(True for _ in store.missing(named[0].descriptor)), k
        for path in Path(store.root, "blobs").glob("*/*"):
            assert images.digest_of(path.read_bytes())[7:] == path.name, (k, path)
        keep(Store(store.root, timeout=1), layout, made, index=index)
        assert problems(store) == [] and [str(item.name) for item in store.references.all()] == [NAME], k
        assert len(blobs(store)) == 5, k
        gc(store, 0)
        assert os.listdir(store.content.scratch) == [] and len(blobs(store)) == 5, k
        if not killed:
            break
        k += 1
    print(k)


def crash_gc(root: str) -> None:
    layout = Layout(Path(root, "layout"))
    shared = text_layer("shared")
    one, two = (layout.image([shared, text_layer(text)]) for text in ("one", "two"))
    twin = layout.image([text_layer("shared", compression=""), text_layer("one")])
    k = 1
    while True:
        store = Store(os.path.join(root, "store-%d" % k), timeout=1)
        for name, made in (("one:1", one), ("two:1", two), ("twin:1", twin)):
            keep(store, layout, made, name)
        with Ingest(store.content, Cancel(), Digest.of(b"part"), 4) as ingest:
            ingest.write(b"pa")
        for name in ("one:1", "twin:1"):
            store.remove(Reference.parse(name))
        killed = killed_at(k, lambda: gc(store, 0) and None)
        assert problems(store) == [], (k, problems(store))
        assert store.image("two:1").id == two.config["digest"], k
        keep(store, layout, one, "one:1")
        assert problems(store) == [], k
        gc(store, 0)
        assert problems(store) == [] and len(blobs(store)) == 7, k
        assert os.listdir(store.content.scratch) == [], k
        if not killed:
            break
        k += 1
    print(k)


@pytest.mark.parametrize("work, at_least", [("crash_keep", 80), ("crash_gc", 10)])
def test_kill_9_at_any_call_leaves_a_sound_store(tmp_path: Path, work: str, at_least: int) -> None:
    code = "import sys; from tests.store import test_kill; test_kill.%s(sys.argv[1])" % work
    done = run([sys.executable, "-c", code, str(tmp_path)], dict(os.environ, **ENV), timeout=240)
    assert int(done.out) > at_least
