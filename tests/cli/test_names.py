# SPDX-License-Identifier: Apache-2.0
"""Names and platforms: what pull does to a name it tells, and unpack, export and cat leave every name alone."""
from pathlib import Path
from typing import Dict, List, NamedTuple

import pytest

from minipull.image.platform import Platform
from minipull.store.store import Store
from tests.kit import images
from tests.kit.commands import Call
from tests.kit.images import Image, Layout
from tests.kit.servers import ScriptedServer, content

AMD64, ARM64 = "linux/amd64", "linux/arm64"
NARROWED = "now has one platform of its index"
CHANGED = "was for linux/amd64, and is now for linux/arm64"


class Many(NamedTuple):
    """A registry with an index under ``name``, whose images have their platform in /etc/motd, and a plain image."""
    server: ScriptedServer
    name: str
    plain: str
    top: Image
    images: Dict[str, Image]


@pytest.fixture
def many(server: ScriptedServer, tmp_path: Path) -> Many:
    layout = Layout(tmp_path / "many")
    made = {platform: layout.image([images.Spec(entries=[("etc", None), ("etc/motd", platform.encode())])],
                                   platform=platform) for platform in (AMD64, ARM64)}
    index = layout.index([{**made[name].descriptor, "platform": images.parse_platform(name)} for name in made], "1")
    layout.name(made[AMD64].descriptor, "plain")
    server.serve(layout.root, "many")
    for image in (*made.values(), index):
        server.on("GET", "/v2/many/manifests/%s$" % image.digest,
                  content(image.raw, image.descriptor["mediaType"], ranges=False))
    return Many(server, server.host + "/many:1", server.host + "/many:plain", index, made)


def meaning(store: Store, many: Many, name: str = "") -> str:
    """What a name is in the store: a platform, the index, or nothing."""
    digests = {image.digest: platform for platform, image in many.images.items()}
    item = next((item for item in store.references.all() if str(item.name) == (name or many.name)), None)
    return {**digests, many.top.digest: "index"}[item.descriptor.digest] if item else ""


#: What the name is (the pull that made it so), a pull, what it is then, and what is told of it.
PULLS = [
    ([], ["--platform", ARM64], ARM64, ""), ([], ["--all-platforms"], "index", ""),
    (["--platform", AMD64], ["--platform", AMD64], AMD64, ""),
    (["--platform", AMD64], ["--platform", ARM64], ARM64, CHANGED),
    (["--platform", AMD64], ["--all-platforms"], "index", ""),
    (["--all-platforms"], ["--all-platforms"], "index", ""),
    (["--all-platforms"], ["--platform", AMD64], AMD64, NARROWED),
    (["--all-platforms"], ["--platform", ARM64], ARM64, NARROWED)]


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("before, flags, after, text", PULLS)
def test_a_pull_that_takes_a_platform_from_a_name_says_so_in_one_line(
        call: Call, store: Store, many: Many, before: List[str], flags: List[str], after: str, text: str, pin: bool
) -> None:
    name = "%s@%s" % (many.name, many.top.digest) if pin else many.name
    if before:
        assert call("pull", *before, many.name).code == 0
    done = call("pull", *flags, name)
    assert done.code == 0 and meaning(store, many) == after
    told = [line for line in done.err.splitlines() if NARROWED in line or " was for " in line]
    assert len(told) == bool(text) and all(text in line and many.name in line for line in told)
    assert not [line for line in call("pull", *flags, name).err.splitlines() if NARROWED in line or " was for " in line]


#: What the name is, the platform that is asked for, whose file is read, or an error's code, and whether
#: the registry is asked; the name stays what it was, or is new.
LOOKS = [
    ([], AMD64, AMD64, True), ([], ARM64, ARM64, True), ([], "", AMD64, True),
    (["--platform", AMD64], AMD64, AMD64, False), (["--platform", AMD64], ARM64, ARM64, True),
    (["--platform", ARM64], AMD64, AMD64, True), (["--platform", ARM64], "", ARM64, False),
    (["--platform", AMD64], "linux/s390x", "3", True), (["--all-platforms"], ARM64, ARM64, False),
    (["--all-platforms"], AMD64, AMD64, False), (["--all-platforms"], "linux/s390x", "3", False)]


@pytest.mark.usefixtures("no_repeats")
@pytest.mark.parametrize("command", ["unpack", "export", "cat"])
@pytest.mark.parametrize("before, platform, result, asked", LOOKS)
def test_unpack_export_and_cat_move_no_name(
        call: Call, store: Store, many: Many, home: Path, before: List[str], platform: str, result: str,
        asked: bool, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.cli.rootfs.host_platform", lambda: Platform.parse(AMD64))
    monkeypatch.setattr("minipull.distribution.pull.host_platform", lambda: Platform.parse(AMD64))
    if before:
        assert call("pull", *before, many.name).code == 0
    names, was = [item.name for item in store.references.all()], meaning(store, many)
    words = [command, many.name, *{"unpack": ["tree"], "export": [], "cat": ["/etc/motd"]}[command],
             *(["--platform", platform] if platform else [])]
    del many.server.requests[:]
    done = call(*words)
    assert bool(many.server.requests) == asked
    if result == "3":
        assert done.code == 3 and done.out == "" and "linux/s390x" in done.err
    else:
        text = (home / "tree/etc/motd").read_text() if command == "unpack" else done.out
        assert done.code == 0 and result in text
    assert [line for line in done.err.splitlines() if NARROWED in line or " was for " in line] == []
    if before:
        assert meaning(store, many) == was and [item.name for item in store.references.all()] == names
    else:
        assert meaning(store, many) == result
    assert call("check").code == 0


def test_what_was_pulled_without_a_name_is_used_again_until_gc_takes_it(call: Call, store: Store, many: Many) -> None:
    assert call("pull", "--platform", AMD64, many.name).code == 0
    look = ["cat", "--platform", ARM64, many.name, "/etc/motd"]
    assert call(*look).out == ARM64
    del many.server.requests[:]
    assert call(*look, "--offline").out == ARM64 and many.server.requests == []
    assert call("gc").out == "Total reclaimed space: 0B\n"
    assert len(call("gc", "--keep", "0", "--format", "json").json["deleted"]) == 3
    assert call(*look).out == ARM64 and many.server.requests != []
    assert meaning(store, many) == AMD64


def test_an_image_of_no_index_is_refused_for_another_platform_and_keeps_its_name(
        call: Call, store: Store, many: Many) -> None:
    assert call("pull", "-q", many.plain).code == 0
    done = call("cat", "--platform", ARM64, many.plain, "/etc/motd")
    assert done.code == 3 and "image is for linux/amd64, not for linux/arm64" in done.err
    assert meaning(store, many, many.plain) == AMD64 and call("cat", many.plain, "/etc/motd").out == AMD64
