# SPDX-License-Identifier: Apache-2.0
"""Image IDs: any prefix of four hex digits or more, wherever a stored image is named."""
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from minipull.store.store import Store
from tests.kit.commands import Call, is_sound
from tests.kit.images import Image, Layout
from tests.kit.servers import ScriptedServer, Uploads
from tests.kit.stores import keep, text_layer

#: Commands on an image, which are to do the same for its ID as for its name.
COMMANDS: Dict[str, List[str]] = {
    "tag": ["tag", "IMAGE", "other:1"], "inspect": ["inspect", "IMAGE"], "history": ["history", "IMAGE"],
    "save": ["save", "--dry-run", "IMAGE"], "unpack": ["unpack", "-q", "IMAGE", "tree"], "export": ["export", "IMAGE"],
    "cat": ["cat", "IMAGE", "/etc/motd"], "check": ["check", "IMAGE"], "rm": ["rm", "IMAGE"],
    "copy": ["copy", "-q", "store:IMAGE", "oci:layout:1"], "inspect --raw": ["inspect", "--raw", "IMAGE"]}


@pytest.fixture
def made(store: Store, layout: Layout) -> Image:
    image = layout.image([text_layer("one")])
    keep(store, layout, image, "docker.io/library/app:1")
    keep(store, layout, layout.image([text_layer("two")]), "docker.io/library/two:1")
    return image


def identity(image: Image) -> str:
    return str(image.config["digest"]).partition(":")[2]


@pytest.mark.parametrize("form", ["{0:.4}", "{0:.5}", "{0:.12}", "{0}", "sha256:{0:.4}", "sha256:{0}"])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_an_id_is_as_good_as_the_name(
        call: Call, made: Image, home: Path, name: str, form: str) -> None:
    done = call(*(word.replace("IMAGE", form.format(identity(made))) for word in COMMANDS[name]))
    assert done.code == 0, done.err
    for path in home.iterdir():
        path.rename(path.with_name("by id"))
    if name == "rm":
        assert done.out == "Untagged: app:1\n" and call("rm", "app:1").code == 3
    elif name == "save":
        assert call("save", "--dry-run", "app:1").out.splitlines()[-1] == done.out.splitlines()[-1]
    else:
        again = call(*(word.replace("IMAGE", "app:1") for word in COMMANDS[name]))
        assert (again.code, again.out) == (0, done.out)


@pytest.mark.parametrize("digits", [4, 12, 64])
def test_an_image_is_pushed_by_its_id(call: Call, made: Image, server: ScriptedServer, digits: int) -> None:
    Uploads(server)
    target = server.host + "/r:2"
    done = call("push", identity(made)[:digits], target)
    assert done.code == 0 and "Using default tag" not in done.out
    assert done.out.splitlines()[-1].startswith("2: digest: %s " % made.digest)
    assert call("push", identity(made)[:digits]).code in (2, 3)


def prefixed(layout: Layout) -> Tuple[List[Image], str]:
    """Two images whose IDs begin with the same four digits, and these."""
    by_prefix: Dict[str, Image] = {}
    for number in range(5000):
        image = layout.image([], config={"comment": str(number)})
        other = by_prefix.setdefault(identity(image)[:4], image)
        if other is not image:
            return [other, image], identity(image)[:4]
    raise AssertionError("no two configs begin alike")


def test_an_ambiguous_prefix_is_one_line_with_the_candidates(call: Call, store: Store, layout: Layout) -> None:
    images, prefix = prefixed(layout)
    for number, image in enumerate(images):
        keep(store, layout, image, "docker.io/library/app:%d" % number)
    ids = sorted((identity(image)[:12], "app:%d" % number) for number, image in enumerate(images))
    text = "image ID prefix %s is ambiguous: %s (%s), %s (%s)\n" % (prefix, *ids[0], *ids[1])
    for name, words in COMMANDS.items():
        done = call(*(word.replace("IMAGE", prefix) for word in words))
        assert (done.code, done.out) == (2, "") and done.line.endswith(text), name
    assert call("push", prefix, "127.0.0.1:1/x:1").line.endswith(text)
    assert len(call("images", "-q").out.split()) == 2
    assert call("inspect", ids[0][0]).json["image_id"].startswith("sha256:" + ids[0][0])


def test_a_name_wins_over_an_id(call: Call, store: Store, layout: Layout, made: Image) -> None:
    prefix, other = identity(made)[:6], layout.image([text_layer("three")])
    keep(store, layout, other, "docker.io/library/%s:latest" % prefix)
    assert call("inspect", prefix).json["image_id"] == other.config["digest"]
    assert call("inspect", "sha256:" + prefix).json["image_id"] == made.config["digest"]
    assert call("cat", prefix, "/etc/motd").out == "three" and call("cat", prefix[:5], "/etc/motd").out == "one"
    assert is_sound(call("check", prefix).out, "%s:latest@%s" % (prefix, other.digest))
    assert call("rm", prefix).out == "Untagged: %s:latest\n" % prefix
    assert call("rm", prefix).out == "Untagged: app:1\n"


@pytest.mark.parametrize("text", ["abc", "sha256:abc", "ABCDEF", "0" * 64, "sha256:" + "0" * 64, "0000"])
def test_what_is_no_prefix_of_an_id_is_not_found_in_one_line(call: Call, made: Image, text: str) -> None:
    for command in ("inspect", "history", "rm"):
        done = call(command, text)
        assert done.code in (2, 3) and done.out == "" and done.line


def test_rm_of_an_id_with_several_names_removes_none(call: Call, made: Image) -> None:
    call("tag", "app:1", "registry.example.com/app:2")
    for text in (identity(made)[:4], "sha256:" + identity(made)):
        done = call("rm", "two:1", text)
        assert (done.code, done.out) == (2, "")
        assert done.line == "minipull: %s has 2 names: app:1, registry.example.com/app:2;" \
                            " give those to forget, or --all-names\n" % text
    assert len(call("images", "--format", "json").json) == 3
    done = call("rm", "--all-names", identity(made)[:4], "--format", "json")
    assert sorted(row["name"] for row in done.json) == ["docker.io/library/app:1", "registry.example.com/app:2"]
    assert [row["name"] for row in call("images", "--format", "json").json] == ["docker.io/library/two:1"]


def test_rm_takes_all_names_by_one_of_them_and_one_of_an_image_that_is_damaged(
        call: Call, store: Store, made: Image) -> None:
    call("tag", "app:1", "app:2")
    call("tag", "app:1", "app:3")
    Path(store.content.path(store.image("app:1").descriptor.digest)).write_bytes(b"{")
    assert call("rm", "app:1").out == "Untagged: app:1\n"
    assert sorted(call("rm", "--all-names", "app:2").out.splitlines()) == ["Untagged: app:2", "Untagged: app:3"]


def test_no_registry_is_asked_for_another_platform_of_an_id(call: Call, made: Image) -> None:
    done = call("cat", "--platform", "linux/s390x", identity(made)[:8], "/etc/motd")
    assert (done.code, done.line) == (3, "minipull: %s: it is stored for another platform\n" % identity(made)[:8])
