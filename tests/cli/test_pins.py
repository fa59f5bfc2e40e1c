# SPDX-License-Identifier: Apache-2.0
"""Pins: NAME:TAG@DIGEST, by which a build is repeated to the byte, and a store or archive compared."""
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any, List

import pytest

from tests.kit import images
from tests.kit.commands import Call, is_sound
from tests.kit.images import Layout
from tests.kit.servers import ScriptedServer


@pytest.fixture
def host(server: ScriptedServer, tmp_path: Path) -> str:
    """A registry with two repositories, the second with an index."""
    layout = Layout(tmp_path / "one")
    layout.image(images.specs(2, 9000), "v1.0")
    layout.image(images.specs(2, 9000, seed=7), "v1.1")
    layout.image(images.specs(1, 900, seed=9), "v2.0")
    server.serve(layout.root, "one")
    multi, _, _ = images.multi_platform(tmp_path / "multi", "1")
    server.serve(multi.root, "multi")
    return server.host


@pytest.fixture
def pins(call: Call, host: str, home: Path) -> Path:
    (home / "list").write_text("# what we run\n%s/one:v1.*  # both\n\n%s/multi:1\n" % (host, host))
    done = call("digest", "--pin", "@list")
    assert done.code == 0, done.err
    (home / "pins").write_text(done.out)
    return home / "pins"


def move(server: ScriptedServer, tmp_path: Path) -> None:
    """Let every tag of the registry be another image."""
    layout = Layout(tmp_path / "moved")
    made = layout.image(images.specs(1, 500, seed=77))
    for tag in ("v1.0", "v1.1", "1"):
        layout.name(made.descriptor, tag)
    for repository in ("one", "multi"):
        server.serve(layout.root, repository)


def kinds(call: Call, *args: object) -> List[str]:
    done = call("check", "--format", "json", "--pins", "pins", *map(str, args))
    assert done.json["ok"] == (done.code == 0)
    return [str(done.code)] + ["%s %s" % (problem["kind"], problem["path"].partition("/")[2])
                               for problem in done.json["problems"]]


def test_pins_are_what_the_tags_of_a_list_point_to(
        call: Call, host: str, pins: Path, tmp_path: Path) -> None:
    one, multi = (json.loads((tmp_path / folder / "index.json").read_text())["manifests"]
                  for folder in ("one", "multi"))
    assert pins.read_text().splitlines() == [
        "%s/%s@%s" % (host, name, entry["digest"])
        for name, entry in zip(("one:v1.0", "one:v1.1", "multi:1"), one[:2] + multi)]
    assert call("digest", "--pin", "@pins").out == pins.read_text()
    rows = call("digest", "--pin", "--format", "json", "@pins").json
    assert [row["pin"] for row in rows] == pins.read_text().split()


@pytest.mark.parametrize("flags", [[], ["--all-platforms"]], ids=["host", "all"])
def test_an_archive_is_repeated_to_the_byte_when_the_tags_have_moved(
        call: Call, host: str, pins: Path, server: ScriptedServer, tmp_path: Path, root: Path,
        flags: List[str]) -> None:
    archives = []
    for number in range(2):
        assert call("pull", *flags, "@pins").code == 0
        assert kinds(call) == ["0"]
        archives.append(tmp_path / ("%d.tar" % number))
        assert call("save", "-o", archives[-1], "@pins").code == 0
        assert kinds(call, archives[-1]) == ["0"]
        shutil.rmtree(str(root))
        move(server, tmp_path)
    assert call("digest", "--pin", "@list").out != pins.read_text()  # the tags have moved
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert call("load", "-i", archives[1]).code == 0
    names = [row["name"] for row in call("images", "--format", "json").json]
    assert names == sorted("%s/%s" % (host, tag) for tag in ("one:v1.0", "one:v1.1", "multi:1"))
    assert kinds(call) == ["0"]  # on the far side, too
    assert call("save", "-o", tmp_path / "far.tar", "@pins").code == 0
    assert (tmp_path / "far.tar").read_bytes() == archives[0].read_bytes()


def test_a_pin_is_pulled_by_its_digest_and_has_its_tag(
        call: Call, host: str, pins: Path, server: ScriptedServer, tmp_path: Path) -> None:
    call("pull", "-q", host + "/one:v2.0")
    call("tag", host + "/one:v2.0", host + "/one:v1.0")
    pin = pins.read_text().split()[0]
    move(server, tmp_path)
    done = call("pull", "--format", "json", pin)
    assert [(row["name"], row["digest"]) for row in done.json] == [tuple(pin.split("@"))]
    assert call("inspect", host + "/one:v1.0").json["digest"] == pin.partition("@")[2]
    assert call("rm", pin).out.splitlines() == [
        "Untagged: " + name for name in (pin.partition("@")[0], host + "/one@" + pin.partition("@")[2])]
    assert call("rm", pin).code == 3
    assert [row["name"] for row in call("images", "--format", "json").json] == [host + "/one:v2.0"]


def test_a_tag_is_not_pulled_with_and_without_its_pin(call: Call, pins: Path) -> None:
    pin = pins.read_text().split()[0]
    for names in ([pin.partition("@")[0], pin], [pin, pin.partition("@")[0]]):
        done = call("pull", *names)
        assert done.code == 2 and done.line.endswith(" is asked for with and without a digest\n")
    assert call("pull", pin, pin).code == 0


def test_a_tag_that_has_moved_in_the_store_is_not_what_its_pin_says(
        call: Call, host: str, pins: Path, tmp_path: Path) -> None:
    pin, other, _ = pins.read_text().split()
    name, _, digest = pin.partition("@")
    call("pull", "-q", name, other)
    call("tag", other, name)
    for args in (["inspect", pin], ["save", "-o", tmp_path / "a.tar", pin], ["check", pin]):
        done = call(*args)
        assert done.code == 3 and re.match("minipull: No such image: %s[;\n]" % re.escape(pin), done.line)
    call("pull", "-q", pin)
    call("tag", other, name)
    assert call("inspect", pin).json["digest"] == digest  # it is there by its digest
    assert call("save", "-o", tmp_path / "a.tar", pin).code == 0
    pins.write_text(pin)
    assert kinds(call, tmp_path / "a.tar") == ["0"]
    assert call("rm", pin).out == "Untagged: %s/one@%s\n" % (host, digest)
    assert call("inspect", name).code == 0  # it is another image


def test_the_image_of_one_platform_can_be_pinned_as_well(
        call: Call, host: str, pins: Path, root: Path, tmp_path: Path) -> None:
    call("pull", "-q", host + "/multi:1")
    pins.write_text("%s/multi:1@%s\n" % (
        host, images.digest_of(call("manifest", host + "/multi:1").out.encode())))
    assert kinds(call) == ["0"]
    digest = json.loads((root / "index.json").read_text())["manifests"][0]["digest"]
    pins.write_text("%s/multi:1@%s\n" % (host, digest))
    assert kinds(call) == ["0"]
    call("tag", host + "/multi:1", host + "/multi:0")
    for tag in "01":
        name = "%s/multi:%s" % (host, tag)
        assert call("inspect", "%s@%s" % (name, digest)).json["name"] == name
    call("rm", host + "/multi:0")
    call("save", "-o", tmp_path / "a.tar", host + "/multi:1")
    assert kinds(call, tmp_path / "a.tar") == ["0"]


def test_check_tells_what_differs_from_the_pins(
        call: Call, host: str, pins: Path, tmp_path: Path, root: Path) -> None:
    call("pull", "-q", "@pins")
    call("save", "-o", tmp_path / "good.tar", "@pins")
    assert is_sound(call("check", "--pins", "pins", tmp_path / "good.tar").out, tmp_path / "good.tar")
    call("tag", host + "/one:v1.0", host + "/one:v1.1")  # replaced
    call("rm", host + "/multi:1")  # missing
    assert kinds(call) == ["6", "differs one:v1.1", "absent multi:1"]
    call("tag", host + "/one:v1.0", host + "/one:more")
    call("save", "-o", tmp_path / "bad.tar", host + "/one")
    for args in ([], [tmp_path / "bad.tar"]):
        assert kinds(call, *args) == ["6", "differs one:v1.1", "absent multi:1", "extra one:more"]
    call("pull", "-q", "@pins")
    call("rm", host + "/one:more", host + "/multi:1")
    assert kinds(call) == ["3", "absent multi:1"]
    done = call("check", "--pins", "@pins")
    assert done.out.splitlines() == [
        "%s: absent: pinned to %s" % tuple(pins.read_text().split()[2].split("@")),
        "%s: not what is pinned" % root]
    call("pull", "-q", "@pins")
    blob = max((root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"x")
    assert kinds(call)[0] == "7"
    damaged = bytearray((tmp_path / "good.tar").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "good.tar").write_bytes(bytes(damaged))
    assert kinds(call, tmp_path / "good.tar")[0] == "6"


def test_pins_are_compared_with_one_place(
        call: Call, host: str, pins: Path, tmp_path: Path, root: Path) -> None:
    for args in (["a.tar", "b.tar"], ["--repair"]):
        done = call("check", "--pins", "pins", *args)
        assert (done.code, done.line) == (
            2, "minipull: --pins is for the store or one archive, without --repair\n")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    done = call("--root", root, "check", "--pins", "pins", tmp_path / "a.tar")
    assert done.code == 6 and done.line.startswith("minipull: archive %s: " % (tmp_path / "a.tar"))


def test_an_archive_can_not_lie_about_the_index_of_an_image(
        call: Call, host: str, pins: Path, tmp_path: Path) -> None:
    """Neither with an index that has another image, nor without one."""
    pin = pins.read_text().split()[2]
    name, _, digest = pin.partition("@")
    call("pull", "-q", "@pins")
    call("save", "-o", tmp_path / "a.tar", "@pins")
    top = call("inspect", pin).json
    other = call("inspect", host + "/one:v1.0").json
    data = (tmp_path / "a.tar").read_bytes()
    manifest = next(
        entry for entry in tar_index(tmp_path / "a.tar") if entry["annotations"][images.NAME] == name)
    assert top["source"] == manifest["annotations"]["io.minipull.source.digest"] == digest != manifest["digest"]
    swapped = json.dumps(manifest, separators=(",", ":")).encode()
    forged = swapped.replace(manifest["digest"].encode(), other["source"].encode())
    assert data.count(swapped) == 1
    (tmp_path / "a.tar").write_bytes(data.replace(swapped, forged))
    assert "differs multi:1" in kinds(call, tmp_path / "a.tar")


def tar_index(path: Path) -> Any:
    with tarfile.open(str(path)) as archive:
        file = archive.extractfile("index.json")
        assert file is not None
        return json.loads(file.read())["manifests"]


@pytest.mark.parametrize("text, told", [
    ("one:v1.0", "list:1: one:v1.0 is no pin NAME:TAG@DIGEST"),
    ("a:1@sha256:%064d\na:1@sha256:%064d" % (1, 2), "list:2: docker.io/library/a:1 is pinned to two digests"),
    ("a:v*", "list:1: a:v* is no pin"), ("# none", "list list is empty")])
def test_pins_that_are_none_are_refused(call: Call, home: Path, text: str, told: str) -> None:
    (home / "list").write_text(text)
    done = call("check", "--pins", "list")
    assert done.code == 2 and told.replace("docker.io/library/", "") in done.line
    if "two" in told:
        assert call("pull", "@list").line == done.line
