# SPDX-License-Identifier: Apache-2.0
"""images, inspect, tag, rm, gc and check: their words, and their JSON."""
import json
from pathlib import Path

from tests.kit import images
from tests.kit.commands import Call, digest
from tests.kit.images import Layout

KEYS = {"name", "digest", "image_id", "platform", "size", "created"}


def test_images_are_listed(call: Call, ref: str, layout: Layout) -> None:
    assert call("images").out.split() == ["NAME", "IMAGE", "ID", "PLATFORM", "CREATED", "SIZE"]
    assert call("images", "--format", "json").json == []
    call("pull", ref)
    heading, row = call("images").out.splitlines()
    assert row.split()[0] == ref + ":latest" and "linux/amd64   2024-01-02" in row
    assert heading.index("PLATFORM") == row.index("linux/amd64")
    assert set(call("images", "--format", "json").json[0]) == KEYS


def test_commands_that_show_the_store_tell_that_there_is_none(call: Call, root: Path, stored: str) -> None:
    typo = root.parent / "sotre"
    for command in ("images", "gc", "check"):
        done = call("--root", typo, command)
        assert (done.code, done.err) == (0, "warning: there is no store at %s\n" % typo), command
        assert call(command).err == ""
    assert not typo.exists()


def test_an_image_is_inspected(call: Call, ref: str, layout: Layout) -> None:
    call("pull", ref)
    shown = call("inspect", ref).json
    assert KEYS <= set(shown) and shown["config"]["created"] == images.CREATED
    assert [layer["diff_id"] for layer in shown["layers"]] == shown["config"]["rootfs"]["diff_ids"]
    assert call("inspect", shown["image_id"][7:19]).json == shown
    done = call("inspect", ref + ":absent")
    assert done.code == 3 and "No such image" in done.line


def test_tag_gives_an_image_another_name(call: Call, ref: str, root: Path) -> None:
    assert call("tag", ref, "other").code == 3
    assert not root.exists()
    call("pull", ref)
    assert call("tag", ref, "other").out == ""
    tagged = call("tag", "--format", "json", ref, "docker://other:2").json
    assert tagged[0]["name"] == "docker.io/library/other:2"
    assert call("tag", ref, "other@sha256:" + "0" * 64).code == 2
    assert len(call("images", "--format", "json").json) == 3


def test_rm_forgets_names_and_gc_deletes_their_blobs(call: Call, ref: str, root: Path) -> None:
    call("pull", ref, ref + ":other")
    assert call("rm", ref).out == "Untagged: %s:latest\n" % ref
    identity = call("images", "--format", "json").json[0]["image_id"]
    kept = call("gc").out
    assert kept == "Total reclaimed space: 0B\n"
    collected = call("gc", "--keep", "0", "--format", "json").json
    assert len(collected["deleted"]) == 3 and collected["size"] > 1000
    assert call("check").code == 0
    assert call("rm", "--format", "json", identity).json == [{"name": ref + ":other"}]
    assert call("gc", "--keep", "0s").out.count("Deleted: sha256:") == 3
    assert list((root / "blobs" / "sha256").iterdir()) == []
    assert call("rm", ref).code == 3
    assert call("gc", "--keep", "soon").code == 2


def test_damage_is_reported_with_exit_7(call: Call, ref: str, root: Path, layout: Layout) -> None:
    assert call("check").code == 0
    call("pull", ref)
    assert call("check", ref).out == "%s: ok\n" % root
    assert call("check", "--format", "json").json == {"ok": True, "problems": []}
    layer = json.loads(layout.read(digest(layout)))["layers"][0]["digest"]
    path = root / "blobs" / "sha256" / layer[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = call("check", ref)
    assert done.code == 7 and "damaged" in done.out and layer[7:] in done.out
    found = call("check", "--format", "json").json
    assert found["ok"] is False and set(found["problems"][0]) == {"path", "kind", "detail"}
    for command in (["rm", ref], ["gc", "--keep", "0"], ["pull", ref], ["check"]):  # as it advises
        assert call(*command).code == 0
