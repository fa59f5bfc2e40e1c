# SPDX-License-Identifier: Apache-2.0
"""unpack(): all of an image's root file system, verified, or nothing."""
import errno
import gzip
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Generator, List, NamedTuple, Union

import pytest

from tests.kit import images
from tests.kit.places import LOWER, NAME, TREE, UPPER, Place, packed
from tests.kit.processes import peer
from tests.kit.images import Spec
from tests.kit.layers import (
    END, as_nobody, chain_id, file, folder, head, needs_root, shown, things)
from minipull import unpack as unpack_function
from minipull.image.platform import Platform
from minipull.errors import (
    Cancelled, ContentMismatch, Error, InvalidDocument, NotFound, PolicyError, StorageError, Unsupported)
from minipull.image.config import Image
from minipull.progress import Progress
from minipull.reference import Reference
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.digest import Buffer, Verifier
from minipull.rootfs.layers import ahead
from minipull.rootfs.layers import for_platform, layers_of, remember
from minipull.rootfs.unpack import unpack

# -- it works ----------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_an_image_becomes_a_directory(place: Place, there: bool) -> None:
    if there:
        place.target.mkdir(0o700)
    seen: List[Progress] = []
    place.unpack(progress=seen.append)
    assert shown(place.target) == TREE
    assert os.listdir(str(place.parent)) == ["target"]
    assert stat.S_IMODE(place.target.stat().st_mode) == (0o700 if there else 0o755)
    short = [layer.descriptor["digest"][7:19] for layer in place.image.layers]
    assert [event.id for event in seen if event.action == "Extracted"] == short
    for name, layer in zip(short, place.image.layers):
        last = [event for event in seen if event.id == name and event.action == "Extracting"][-1]
        assert last.last_update and last.current == last.total == layer.descriptor["size"]


def test_the_root_is_like_its_entry_says(place: Place) -> None:
    place.set(packed(folder(b"./", 0o1750, mtime=5) + END))
    for mode in (None, 0o700):
        if mode is not None:
            place.target.mkdir(mode)
        place.unpack()
        status = place.target.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o1750, 5)
        place.target.rmdir()


def test_an_image_without_layers_is_an_empty_directory(place: Place) -> None:
    place.set()
    place.unpack()
    assert shown(place.target) == {}


def test_an_error_of_the_thread_that_hashes_is_not_told_as_the_layers(
        place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Verifier.update

    def update(verifier: Verifier, piece: Buffer) -> None:
        if threading.current_thread().name.startswith("hash") and piece:
            raise MemoryError("hash")
        real(verifier, piece)

    monkeypatch.setattr(Verifier, "update", update)
    with pytest.raises(MemoryError):
        place.unpack()
    assert os.listdir(str(place.parent)) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_the_umask_has_no_part_in_it(place: Place, umask: int) -> None:
    before = os.umask(umask)
    try:
        place.unpack()
    finally:
        os.umask(before)
    assert things(place.target)[b"."].mode == 0o755 and things(place.target)[b"d/f"].mode == 0o644


def test_the_public_name_is_the_function() -> None:
    assert unpack_function is unpack


def test_what_somebody_without_rights_unpacks_is_theirs_whatever_its_modes(place: Place) -> None:
    """A root of mode 0555, as some distributions have it, can't be moved by who owns it."""
    needs_root()
    tar = folder(b"./", 0o555) + folder(b"d", 0) + file(b"d/f", b"x", mode=0o4755, uid=5)
    place.set(packed(tar + head(b"c", b"3", major=1) + END), packed(file(b"d/g") + folder(b"e", 0o500) + END))
    seen: List[Progress] = []

    def act() -> List[str]:
        for existing in (False, True):
            if existing:
                os.rename(str(place.target), str(place.parent / "first"))
                place.target.mkdir()
            place.unpack(progress=seen.append)
        return [event.message for event in seen if event.message]

    assert as_nobody(act) == [
        "warning: setuid and setgid bits are left out", "warning: devices are left out"] * 2
    for name in ("first", "target"):
        found = things(place.parent / name)
        assert {path: thing.mode for path, thing in found.items()} == {
            b".": 0o555, b"d": 0, b"d/f": 0o755, b"d/g": 0o644, b"e": 0o500}
        assert len({(thing.uid, thing.gid) for thing in found.values()}) == 1
        os.chmod(str(place.parent / name), 0o755)
        os.chmod(str(place.parent / name / "d"), 0o755)


# -- where to ----------------------------------------------------------------------


def occupied(target: Path) -> None:
    target.mkdir()
    (target / "f").write_text("mine")


def linked(target: Path) -> None:
    (target.parent / "e").mkdir()
    target.symlink_to("e")


REFUSED: Dict[str, Callable[[Path], object]] = {
    "directory that is not empty": occupied,
    "file": lambda target: target.write_text("mine"),
    "link to nothing": lambda target: target.symlink_to("nowhere"),
    "link to an empty directory": linked,
    "FIFO": lambda target: os.mkfifo(str(target)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_there_is_left_alone(place: Place, name: str) -> None:
    REFUSED[name](place.target)
    before = things(place.parent)
    with pytest.raises(PolicyError, match="target is there, and is no empty directory$") as caught:
        place.unpack()
    assert caught.value.exit_code == 9 and things(place.parent) == before


def test_the_store_is_no_place_for_it(place: Place) -> None:
    (place.root / "empty").mkdir()
    (place.parent / "way").symlink_to(place.root)
    before = things(place.root.parent)
    for target in (place.root / "new", place.root / "empty", place.root / "blobs" / "new",
                   place.parent / "way" / "new", place.parent / "way", place.root,
                   place.root / "x" / ".." / "new"):
        place.target = target
        with pytest.raises(PolicyError, match=" lies in the store$"):
            place.unpack()
        assert things(place.root.parent) == before
    place.target = place.root.parent / "store-2"  # beside it
    place.unpack()


def test_its_place_must_be_there_and_ours(place: Place) -> None:
    needs_root()
    place.target = place.parent / "no" / "target"
    with pytest.raises(StorageError, match="^unpack to .*/no/target: No such file or directory$"):
        place.unpack()
    place.target = place.parent / "new"
    place.parent.chmod(0o555)
    with pytest.raises(StorageError, match="^unpack to .*/new: Permission denied"):
        as_nobody(place.unpack)
    place.target.mkdir(0o555)
    with pytest.raises(StorageError, match="^unpack: Permission denied"):
        as_nobody(place.unpack)
    assert os.listdir(str(place.target)) == []


def test_who_makes_a_directory_of_the_name_meanwhile_keeps_it(place: Place) -> None:
    def progress(event: Progress) -> None:
        if event.action == "Extracted" and not place.target.exists():
            occupied(place.target)

    with pytest.raises(StorageError, match="^unpack to .*: Directory not empty$"):
        place.unpack(progress=progress)
    assert shown(place.parent) == {"target": "dir", "target/f": "'mine'"}


# -- all or nothing ------------------------------------------------------------------


class Failure(NamedTuple):
    """How an unpack fails: what is prepared, what it is asked, and what is said."""
    prepare: Callable[[Place], object]
    error: type
    message: str
    options: Dict[str, Any] = {}


def flipped(at: int, *layers: Spec) -> Callable[[Place], None]:
    """One bit of the last blob, of other ``layers`` if there are any, is another one."""
    def flip(place: Place) -> None:
        if layers:
            place.set(*layers)
        data = bytearray(place.blob().read_bytes())
        data[at] ^= 1
        place.blob().write_bytes(data)

    return flip


def tailed(place: Place) -> None:
    place.set(Spec(raw=UPPER + b"tail", compression=""))
    place.rewrite(lambda layers, diff_ids: diff_ids.__setitem__(0, images.digest_of(UPPER)))


def foreign(layers: List[Any], diff_ids: List[str]) -> None:
    layers[1].update(mediaType=images.OCI_LAYER.replace("v1.tar", "v1.nondistributable.tar+gzip"),
                     digest="sha256:" + "0" * 64, urls=["https://127.0.0.1:1/blob"])


def raising(event: Progress) -> None:
    if event.action == "Extracting":
        raise KeyError("mine")


PLAIN = Spec(raw=UPPER, compression="")
MISSING = "^layer sha256:.* of r.example/x:1 is not stored; pull it, with --foreign if it has URLs$"
CORRUPT = "blob sha256:[0-9a-f]{64} in the store is corrupt; run minipull check --repair, then pull again$"
FAILURES: Dict[str, Failure] = {
    "layer that no layer may be": Failure(
        lambda place: place.set(packed(LOWER), packed(file(b"n") + file(b"d/.wh..") + END)),
        InvalidDocument, r"^layer [0-9a-f]{12}: layer entry d/.wh..: a whiteout of nothing$"),
    "layer that is no tar": Failure(
        lambda place: place.set(packed(LOWER), packed(b"text " * 300)),
        InvalidDocument, "^layer [0-9a-f]{12}: tar: malformed checksum in a header$"),
    "layer that is cut short": Failure(
        lambda place: place.set(packed(LOWER), packed(UPPER[:2000])),
        InvalidDocument, "^layer [0-9a-f]{12}: tar: the stream is cut short$"),
    "layer with a gzip stream that is cut short": Failure(
        lambda place: place.set(packed(LOWER), Spec(raw=gzip.compress(UPPER, mtime=0)[:-1], compression="")),
        InvalidDocument, "^layer [0-9a-f]{12}: layer's gzip stream is cut short$"),
    "DiffID of another": Failure(
        lambda place: place.rewrite(lambda layers, diff_ids: diff_ids.reverse()),
        ContentMismatch,
        "^layer [0-9a-f]{12}: layer sha256:.* is sha256:.*, not sha256:.* as its config says$"),
    "DiffID that is missing": Failure(
        lambda place: place.rewrite(lambda layers, diff_ids: diff_ids.pop()),
        ContentMismatch, "^layers from manifest don't match image configuration$"),
    "DiffID of what follows the end": Failure(
        tailed, ContentMismatch, "as its config says$"),
    "bit in a gzip head": Failure(flipped(3), StorageError, CORRUPT),
    "bit in a gzip stream": Failure(flipped(40), StorageError, CORRUPT),
    "bit in what a blob begins with": Failure(flipped(0), StorageError, CORRUPT),
    "bit in a gzip checksum": Failure(flipped(-6), StorageError, CORRUPT),
    "bit in a header": Failure(flipped(4, PLAIN), StorageError, CORRUPT),
    "bit in a file": Failure(flipped(1600, PLAIN), StorageError, CORRUPT),
    "bit after the end": Failure(flipped(-1, PLAIN), StorageError, CORRUPT),
    "bit in the size of a file": Failure(
        flipped(134, Spec(raw=file(b"a", b"x") + file(b"b", b"y" * 600) + END, compression="")),
        StorageError, CORRUPT),
    "blob of another size": Failure(
        lambda place: place.blob().write_bytes(b"x"), StorageError, MISSING),
    "blob that is missing": Failure(
        lambda place: place.blob().unlink(), StorageError, MISSING),
    "foreign layer": Failure(
        lambda place: place.rewrite(foreign), StorageError, MISSING),
    "config that is missing": Failure(
        lambda place: place.layout.path(place.image.config["digest"]).unlink(), StorageError,
        "^blob .* is missing"),
    "more data than allowed": Failure(
        lambda place: None, PolicyError,
        "^layer [0-9a-f]{12}: layer entry d/g: the image is larger than allowed; see --max-unpacked$",
        {"max_unpacked": 6002}),
    "bomb": Failure(
        lambda place: place.set(packed(file(b"bomb", bytes(1 << 22)) + END)), PolicyError,
        "larger than allowed", {"max_unpacked": 1 << 20}),
    "callback that raises": Failure(lambda place: None, KeyError, "mine", {"progress": raising}),
    "artifact": Failure(
        lambda place: place.set(packed(LOWER), artifactType="application/x"), NotFound,
        "^r.example/x:1 is no image that has a root file system$"),
}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("name", FAILURES)
def test_of_what_fails_nothing_is_left(place: Place, name: str, there: bool) -> None:
    """CR07"""
    failure = FAILURES[name]
    failure.prepare(place)
    if there:
        place.target.mkdir(0o750)
        if os.geteuid() == 0:
            os.chown(str(place.target), 5, 6)
    before = [thing._replace(mtime=0) for thing in things(place.parent).values()]
    with pytest.raises(failure.error, match=failure.message) as caught:
        place.unpack(**failure.options)
    assert [thing._replace(mtime=0) for thing in things(place.parent).values()] == before
    if isinstance(caught.value, Error):
        assert str(caught.value).isprintable()
        assert caught.value.exit_code == {
            InvalidDocument: 6, ContentMismatch: 6, StorageError: 7, PolicyError: 9, NotFound: 3}[failure.error]


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("when", ["before", "Extracting", "Extracted"])
def test_of_what_is_cancelled_nothing_is_left(place: Place, when: str, there: bool) -> None:
    cancel = Cancel()

    def progress(event: Progress) -> None:
        if event.action == when:
            cancel.cancel()

    if there:
        place.target.mkdir()
    if when == "before":
        cancel.cancel()
    # More than the thread that inflates can be ahead with.
    place.set(packed(b"".join(file(b"f%d" % n, bytes(1 << 20)) for n in range(12)) + END), packed(UPPER))
    with pytest.raises(Cancelled, match="^cancelled$"):
        place.unpack(cancel=cancel, progress=progress)
    assert os.listdir(str(place.parent)) == ["target"] * there
    assert not there or os.listdir(str(place.target)) == []


@pytest.mark.parametrize("call", ["write", "mkdir", "rename", "fchmod"])
def test_of_what_the_disk_refuses_nothing_is_left(
        place: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real, before = getattr(os, call), things(place.parent)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "write" or args[0] == b"d" or call in ("rename", "fchmod") and not kwargs:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=": No space left on device$"):
            place.unpack()
    assert list(things(place.parent)) == list(before)


def test_what_can_not_be_cleared_away_does_not_hide_what_went_wrong(
        place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    flipped(40)(place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        patch.setattr(os, "unlink", fail)
        with pytest.raises(StorageError, match=CORRUPT):
            place.unpack()


def test_without_posix_it_is_not_to_be_had(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store, target = Store(str(place.root)), str(place.target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(Unsupported, match="^unpack needs a POSIX system$"):
            unpack(NAME, store, target)


# -- compression -----------------------------------------------------------------------


def test_gzip_members_and_plain_tars_do_as_well(place: Place) -> None:
    place.set(Spec(raw=gzip.compress(LOWER[:700], mtime=0) + gzip.compress(LOWER[700:], mtime=0) + bytes(100)),
              Spec(raw=UPPER, compression=""))
    place.unpack()
    assert shown(place.target) == TREE


def zstd_layer(place: Place) -> None:
    data = subprocess.run([peer("zstd"), "-qc"], input=UPPER, stdout=subprocess.PIPE, check=True).stdout
    layer = place.layout.blob(data, images.OCI_LAYER + "+zstd")
    place.rewrite(lambda layers, diff_ids: layers.__setitem__(1, layer))


def test_zstd_needs_a_decoder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    zstd_layer(place)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(Unsupported, match="^layer .* compressed with zstd: install zstd or use Python 3.14$"):
        place.unpack()
    assert os.listdir(str(place.parent)) == []
    place.unpack(zstd=peer("zstd"))
    assert shown(place.target) == TREE


def test_zstd_that_is_corrupt_is_the_stores_fault(place: Place) -> None:
    zstd_layer(place)
    flipped(12)(place)
    with pytest.raises(StorageError, match=CORRUPT):
        place.unpack(zstd=peer("zstd"))
    assert os.listdir(str(place.parent)) == []


# -- which image ----------------------------------------------------------------------


def test_of_an_index_the_wanted_platform_is_unpacked(place: Place) -> None:
    children = []
    for architecture in ("amd64", "arm64"):
        place.set(packed(file(architecture.encode()) + END), platform="linux/" + architecture)
        children.append({**place.image.descriptor, "platform": {"os": "linux", "architecture": architecture}})
    place.layout.index(children, NAME)
    store = Store(str(place.root))
    for wanted, name in (("linux/arm64", "arm64"), (Platform("linux", "amd64"), "amd64")):
        place.target = place.parent / name
        place.unpack(platform=wanted)
        assert shown(place.target) == {name: "''"}
    with pytest.raises(NotFound, match="^r.example/x:1 has nothing for linux/s390x$"):
        place.unpack(platform="linux/s390x")
    with pytest.raises(NotFound, match="is no image that has a root file system$"):
        layers_of(store.image(NAME), store)
    place.set(packed(file(b"one") + END))
    with pytest.raises(NotFound, match="^r.example/x:1 has nothing for linux/arm64$"):
        place.unpack(platform="linux/arm64")


def test_an_image_may_be_named_in_all_ways(place: Place) -> None:
    store = Store(str(place.root))
    image = store.image(NAME)
    names: List[Union[Image, Reference, str]] = [image, image.name, NAME, image.id, image.id.encoded[:12]]
    for number, name in enumerate(names):
        unpack(name, store, str(place.parent / str(number)))
        assert shown(place.parent / str(number)) == TREE
    with pytest.raises(NotFound, match="^No such image: r.example/y:1$"):
        unpack("r.example/y:1", store, str(place.target))


def test_what_reading_has_shown_is_remembered(place: Place) -> None:
    (place.root / "ingest").mkdir()
    store = Store(str(place.root))
    image = for_platform(store.image(NAME), store, Platform("linux", "amd64"))
    layers = layers_of(image, store)
    assert [str(diff_id) for _, diff_id in layers] == place.image.diff_ids
    chain = chain_id([diff_id for _, diff_id in layers])
    assert store.layers.get(chain) is None
    remember(image, store, layers)
    layer = store.layers.get(chain)
    [_, (blob, _)] = layers
    assert layer is not None and layer.diff.verified and layer.blobs == ((blob.digest, blob.size),)
    assert store.metadata.get_diff_id(layers[0][0].digest) == layers[0][1]
    remember(image, Store("/dev/null/nowhere"), layers)  # a cache


# -- ahead() ---------------------------------------------------------------------------


def threads() -> int:
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_pieces_come_in_order_and_not_too_far_ahead() -> None:
    made: List[int] = []

    def pieces() -> Generator[Buffer, None, None]:
        for n in range(100):
            made.append(n)
            yield b"%d" % n

    with ahead(pieces(), depth=3) as taken:
        for n, piece in enumerate(taken):
            assert piece == b"%d" % n and len(made) <= n + 6
        assert next(taken, None) is None
    assert threads() == 0


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("taken", [0, 1, 5, 100])
def test_who_leaves_early_leaves_no_thread(depth: int, taken: int) -> None:
    class Mine(Exception):
        pass

    begun, closed = threading.Event(), threading.Event()

    def pieces() -> Generator[Buffer, None, None]:
        begun.set()
        try:
            for _ in range(50):
                yield b"x"
        finally:
            closed.set()

    with pytest.raises(Mine):
        with ahead(pieces(), depth) as some:
            for _ in zip(range(taken), some):
                pass
            raise Mine
    assert threads() == 0 and closed.is_set() == begun.is_set() >= (taken > 0)


@pytest.mark.parametrize("after", [0, 3, 20])
def test_an_error_comes_after_what_was_made_before_it(after: int) -> None:
    def pieces() -> Generator[Buffer, None, None]:
        for _ in range(after):
            yield b"x"
        raise InvalidDocument("mine")

    count = 0
    with pytest.raises(InvalidDocument, match="^mine$"):
        with ahead(pieces()) as some:
            for _ in some:
                count += 1
    assert (count, threads()) == (after, 0)
    with ahead(pieces()):
        pass  # nobody asked for it
    assert threads() == 0
