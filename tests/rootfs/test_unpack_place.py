# SPDX-License-Identifier: Apache-2.0
"""Where unpack() builds, what it replaces, and what a kill leaves there."""
import os
import shutil
import stat

import pytest

from minipull.files import lock
from minipull.progress import Progress
from tests.kit.layers import END, file, folder, in_child, needs_root, shown
from tests.kit.places import TREE, Place, packed


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_kill_leaves_no_target_and_the_next_run_sweeps_what_it_left(place: Place, there: bool) -> None:
    """CR07: what it was doing lies beside it, under a name that says whose it is."""
    def killed(event: Progress) -> None:
        if event.action == "Extracted":
            os._exit(9)

    if there:
        place.target.mkdir()
    with pytest.raises(EOFError):
        in_child(lambda: place.unpack(progress=killed))
    left, *target = sorted(os.listdir(str(place.parent)))
    assert left.startswith(".minipull-target-") and stat.S_IMODE((place.parent / left).stat().st_mode) == 0o700
    assert target == ["target"] * there and (not there or os.listdir(str(place.target)) == [])
    place.unpack()
    assert shown(place.target) == TREE and os.listdir(str(place.parent)) == ["target"]


def test_what_another_run_builds_is_not_swept(place: Place) -> None:
    used, foreign, other = (place.parent / name for name in (
        ".minipull-target-1234used", ".minipull-target-_foreign", ".minipull-other-12345678"))
    for path in (used, foreign, other):
        (path / "rootfs").mkdir(parents=True)
    needs_root()
    os.chown(str(foreign), 5, 5)
    fd = os.open(str(used), os.O_RDONLY)
    try:
        lock(fd, str(used), True)
        place.unpack()
        assert sorted(os.listdir(str(place.parent))) == sorted(
            [used.name, foreign.name, other.name, "target"])
    finally:
        os.close(fd)
    shutil.rmtree(str(place.target))
    place.unpack()
    assert sorted(os.listdir(str(place.parent))) == sorted([foreign.name, other.name, "target"])


@pytest.mark.parametrize("mounted", [False, True], ids=["replaced", "filled"])
@pytest.mark.parametrize("layer, mode", [(b"", 0o750), (folder(b"./", 0o711), 0o711)], ids=["no root", "root"])
def test_an_empty_directory_keeps_its_owner_and_mode_unless_the_image_has_others(
        place: Place, monkeypatch: pytest.MonkeyPatch, mounted: bool, layer: bytes, mode: int) -> None:
    needs_root()
    place.set(packed(layer + file(b"f", b"x") + END))
    place.target.mkdir(0o750)
    os.chown(str(place.target), 5, 6)
    modes = []
    monkeypatch.setattr(os.path, "ismount", lambda path: mounted)
    place.unpack(progress=lambda event: modes.append((
        stat.S_IMODE(place.target.stat().st_mode), os.listdir(str(place.target)))))
    status = place.target.stat()
    owner = (0, 0) if layer else (5, 6)
    assert (stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)) == (mode, owner)
    if mounted:
        assert {mode for mode, _ in modes} == {0o1700}, "nobody gets in before it is complete"
    else:
        assert modes and all(names == [] for _, names in modes)
    assert shown(place.target) == {"f": "'x'"}


def test_a_durable_tree_is_synced_before_it_has_its_name(
        place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "sync", lambda: seen.append(place.target.exists()))
    place.unpack(durable=True)
    assert seen == [False] and shown(place.target) == TREE
