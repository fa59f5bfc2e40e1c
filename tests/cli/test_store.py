# SPDX-License-Identifier: Apache-2.0
"""images, inspect, tag, rm, gc and check: their words, and their JSON."""
import json
import os
from pathlib import Path
from typing import Sequence

import pytest

from tests.kit import images
from tests.kit.commands import Call, digest, is_sound
from tests.kit.copies import artifact, bare
from tests.kit.images import Layout
from tests.kit.servers import ScriptedServer
from tests.kit.stores import multi

KEYS = {"name", "digest", "image_id", "platform", "size", "created"}


def test_images_are_listed(call: Call, ref: str, layout: Layout) -> None:
    assert call("images").out.split() == ["NAME", "IMAGE", "ID", "PLATFORM", "CREATED", "SIZE", "UNIQUE"]
    assert call("images", "--format", "json").json == []
    call("pull", ref)
    heading, row = call("images").out.splitlines()
    assert row.split()[0] == ref + ":latest" and "linux/amd64   2024-01-02" in row
    assert heading.index("PLATFORM") == row.index("linux/amd64")
    assert set(call("images", "--format", "json").json[0]) == KEYS | {"unique"}


def test_commands_that_show_the_store_tell_that_there_is_none(call: Call, root: Path, stored: str) -> None:
    typo = root.parent / "sotre"
    for command in ("images", "gc"):
        done = call("--root", typo, command)
        assert (done.code, done.err) == (0, "warning: there is no store at %s\n" % typo), command
        assert call(command).err == ""
    pins = root.parent / "pins"
    pins.write_text("x:1@sha256:%s\n" % ("0" * 64))
    for words in (["check"], ["check", "--format", "json"], ["check", "--pins", pins]):
        done = call("--root", typo, *words)  # no "ok" of what is not there
        assert (done.code, done.out, done.line) == (3, "", "minipull: there is no store at %s\n" % typo), words
    assert not typo.exists()


def test_an_image_is_inspected(call: Call, ref: str, layout: Layout) -> None:
    call("pull", ref)
    shown = call("inspect", ref).json
    assert KEYS <= set(shown) and shown["config"]["created"] == images.CREATED
    assert [layer["diff_id"] for layer in shown["layers"]] == shown["config"]["rootfs"]["diff_ids"]
    assert call("inspect", shown["image_id"][7:19]).json == shown
    done = call("inspect", ref + ":absent")
    assert done.code == 3 and "No such image" in done.line


def test_tag_gives_an_image_another_name(call: Call, ref: str, root: Path, layout: Layout) -> None:
    assert call("tag", ref, "other").code == 3
    assert not root.exists()
    call("pull", ref)
    assert call("tag", ref, "other").out == "Tagged: docker.io/library/other:latest@%s\n" % digest(layout)
    tagged = call("tag", "--format", "json", ref, "docker://other:2").json
    assert tagged[0]["name"] == "docker.io/library/other:2"
    assert call("tag", ref, "other@sha256:" + "0" * 64).code == 2
    assert len(call("images", "--format", "json").json) == 3


def test_rm_forgets_names_and_gc_deletes_their_blobs(call: Call, ref: str, root: Path) -> None:
    call("pull", ref, ref + ":other")
    done = call("rm", ref, "absent")
    assert (done.code, done.out) == (3, "") and "No such image: absent:latest" in done.err
    assert call("rm", ref).out == "Untagged: %s:latest\n" % ref
    identity = call("images", "--format", "json").json[0]["image_id"]
    kept, planned = call("gc"), call("gc", "--dry-run", "--keep", "7d")
    assert (kept.out, planned.out) == ("Total reclaimed space: 0B\n", "Total reclaimable space: 0B\n")
    collected = call("gc", "--keep", "0", "--format", "json").json
    assert len(collected["deleted"]) == 3 and collected["size"] > 1000
    assert call("check").code == 0
    assert call("rm", "--format", "json", identity).json == [{"name": ref + ":other"}]
    assert call("gc", "--keep", "0s").out.count("Deleted: sha256:") == 3
    assert list((root / "blobs" / "sha256").iterdir()) == []
    assert call("rm", ref).code == 3
    assert call("gc", "--keep", "soon").code == 2


def test_what_a_first_pull_left_that_failed_is_a_store(call: Call, root: Path) -> None:
    (root / "ingest").mkdir(parents=True)
    assert call("check").code == 3, "a directory of somebody else's"
    (root / "lock").touch()
    assert is_sound(call("check").out, str(root))


def test_damage_is_reported_with_exit_7(call: Call, ref: str, root: Path, layout: Layout) -> None:
    assert call("check").code == 3  # there is no store yet
    call("pull", ref)
    assert is_sound(call("check", ref).out, "%s:latest@%s" % (ref, digest(layout)))
    blobs = list((root / "blobs" / "sha256").iterdir())
    assert call("check", "--format", "json").json == {
        "ok": True, "problems": [], "images": 1, "blobs": len(blobs),
        "size": sum(path.stat().st_size for path in blobs)}
    layer = json.loads(layout.read(digest(layout)))["layers"][0]["digest"]
    path = root / "blobs" / "sha256" / layer[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = call("check", ref)
    assert done.code == 7 and layer[7:] in done.out
    assert "damaged; run minipull check --repair, then pull the images again\n" in done.out
    found = call("check", "--format", "json").json
    assert found["ok"] is False and set(found["problems"][0]) == {"path", "kind", "detail"}
    for command in (["rm", ref], ["gc", "--keep", "0"], ["pull", ref], ["check"]):
        assert call(*command).code == 0


@pytest.mark.parametrize("kind, names", [
    ("index", ()), ("manifest", ()), ("manifest", ("r:multi",)), ("config", ("r:multi",)), ("layer", ())])
def test_what_is_rotten_is_moved_away_and_pulled_again(
        call: Call, server: ScriptedServer, root: Path, tmp_path: Path, kind: str, names: Sequence[str]) -> None:
    layout, _, made = multi(tmp_path / "multi")
    image, children = made["linux/amd64"], [dict(made[name].descriptor, platform=images.parse_platform(name)) for name in made]
    index = layout.index(children, "multi")
    server.serve(layout.root, "r")
    names = ["%s/%s" % (server.host, name) for name in names]
    ref = server.host + "/r:multi"
    assert call("pull", "--platform", "linux/amd64", ref).code == 0
    rotten = {"index": index.digest, "manifest": image.digest, "config": image.config["digest"],
              "layer": image.layers[0].descriptor["digest"]}[kind]
    path = root / "blobs" / "sha256" / rotten[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = call("check", "--repair", *names)
    move = "blobs/sha256/%s: repaired: moved to ingest/rotten-sha256-%s\n" % ((rotten[7:],) * 2)
    assert done.code == 7 and move in done.out and done.out.endswith("%s: incomplete; pull the images again\n" % root)
    assert call("check").code == 7
    del server.requests[:]
    assert call("pull", "--platform", "linux/amd64", ref).code == 0
    fetched = {request.path.rpartition("/")[2] for request in server.seen("GET")}
    assert fetched == {rotten} and (path.parent.parent.parent / "ingest" / ("rotten-sha256-" + rotten[7:])).exists()
    assert call("check", "--format", "json").json["problems"] == []


def test_what_repair_and_check_have_mended_is_listed(call: Call, stored: str, root: Path) -> None:
    record = next((root / "layers" / "sha256").iterdir())
    record.write_bytes(b"")
    done = call("check")
    assert done.code == 0 and "\n%s: ok\nok: 1 image, " % root in done.out and "%s: rebuilt: " % record.name in done.out
    record.write_bytes(b"")
    found = call("check", "--format", "json").json
    assert found["ok"] is True and found["problems"] == [] and [set(item) for item in found["rebuilt"]] == [
        {"path", "kind", "detail"}]
    blob = max((root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"?")
    found = call("check", "--repair", "--format", "json").json
    assert found["ok"] is False and [item["path"] for item in found["repaired"]] == ["blobs/sha256/" + blob.name]


def test_a_repair_that_fails_still_tells_what_is_damaged(call: Call, stored: str, root: Path) -> None:
    blob = max((root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"?")
    (root / "lock").unlink()
    (root / "lock").mkdir()
    done = call("check", "--repair")
    assert done.code == 7 and ".: repair: open %s/lock: Is a directory\n" % root in done.out and blob.name in done.out
    assert blob.exists() and done.err == "Checking\n"


# -- other users -----------------------------------------------------------------


def test_a_store_that_others_may_change_is_told_once_or_refused(call: Call, stored: str, root: Path, home: Path) -> None:
    assert call("check", "-q").err == ""
    root.chmod(0o777)
    line = "other users may change the store %s: %s is writable by all users" % (root, root)
    done = call("check")
    assert done.code == 0 and done.err == "warning: %s\nChecking\n" % line
    for quiet in (["pull", "-q", stored], ["pull", "--progress", "none", stored], ["unpack", "-q", stored, home / "rootfs"]):
        assert call(*quiet).line == "minipull: warning: %s\n" % line
    config = home / "config.json"
    config.write_text('{"strict-store": true}')
    for args, env in ((["--strict-store", "check"], {}), (["check", "--strict-store"], {}),
                      (["images"], {"MINIPULL_STRICT_STORE": "1"}), (["images"], {"MINIPULL_CONFIG": str(config)})):
        done = call(*args, env=env)
        assert done.code == 9 and done.line == "minipull: %s; choose another --root\n" % line
    assert call("images", env={"MINIPULL_CONFIG": str(config), "MINIPULL_STRICT_STORE": "0"}).code == 0


def test_commands_that_use_no_store_tell_nothing_of_it(call: Call, stored: str, root: Path, tmp_path: Path) -> None:
    assert call("save", "-q", "-o", tmp_path / "a.tar", stored).code == 0
    root.chmod(0o777)
    for args in (["copy", "-q", "docker://" + stored, "oci:" + str(tmp_path / "copy")], ["check", "-q", tmp_path / "a.tar"],
                 ["tags", stored]):
        done = call(*args)
        assert done.code == 0 and done.err == ""


def test_a_link_in_place_of_a_directory_of_the_store_is_refused(
        call: Call, stored: str, root: Path, tmp_path: Path) -> None:
    for name in ("blobs", "blobs/sha256", "ingest", "layers", "metadata"):
        (root / name).rename(tmp_path / "elsewhere")
        (root / name).symlink_to(tmp_path / "elsewhere")
        for command in (["images"], ["check"], ["pull", stored], ["tag", stored, "x"], ["gc"],
                        ["save", "-o", str(tmp_path / "x"), stored]):
            done = call(*command)
            assert done.code == 7 and "%s/%s is a symbolic link" % (root, name) in done.line, command
        (root / name).unlink()
        (tmp_path / "elsewhere").rename(root / name)
    for name in ("layers/sha256", "metadata/v2metadata-by-diffid", "metadata/diffid-by-digest/sha256"):
        elsewhere = tmp_path / "others"
        (root / name).rename(elsewhere)
        (root / name).symlink_to(elsewhere)
        former = sorted(elsewhere.rglob("*"))
        assert call("gc", "--keep", "0").code == call("check").code == 0
        assert sorted(elsewhere.rglob("*")) == former  # caches: what is another's is left alone
        (root / name).unlink()
        elsewhere.rename(root / name)
    assert call("check").code == 0


def test_a_name_that_can_not_be_read_is_told(call: Call, root: Path, stored: str) -> None:
    config = call("inspect", stored).json["image_id"]
    (root / "blobs/sha256" / config[7:]).unlink()
    done = call("images", "--format", "json")
    assert (done.code, done.json) == (0, [])
    assert done.err.startswith("warning: %s:latest can't be read: blob %s is missing" % (stored, config))


def test_images_shows_signatures_on_request(call: Call, ref: str, layout: Layout, tmp_path: Path) -> None:
    """They are in JSON always, without new keys."""
    image = layout.resolve("latest")
    bill = artifact(layout, "bill", payload=b"bill", subject=bare(image))
    tag = image["digest"].replace(":", "-") + ".sig"
    artifact(layout, tag, payload=b"signature")
    for name, target in [("latest", "app:1"), (tag, "app:" + tag), ("bill", "app@" + bill["digest"])]:
        assert call("copy", "oci:%s:%s" % (layout.root, name), "store:" + target).code == 0
    rows = [line.split()[0] for line in call("images").out.splitlines()]
    assert rows == ["NAME", "docker.io/library/app:1"]
    every = [row["name"] for row in call("images", "--format", "json").json]
    assert every == ["docker.io/library/app:" + name for name in ("1", tag)] + [
        "docker.io/library/app@" + bill["digest"]]
    assert [line.split()[0] for line in call("images", "-a").out.splitlines()] == ["NAME", *every]
    assert call("save", "--referrers", "-o", tmp_path / "a.tar", "app:1").code == 0
    assert call("save", "-o", tmp_path / "b.tar", "app:1", env={"MINIPULL_REFERRERS": "1"}).code == 0
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert len(call("--root", tmp_path / "new", "load", "-i", tmp_path / "a.tar").out.splitlines()) == 3
    assert call("rm", "app:1").code == 0
    assert len(call("images", "--format", "json").json) == 2, "rm takes the names that it is given"


@pytest.mark.parametrize("name, code, line", [
    ("/srv/wek.tar", 7, "/srv/wek.tar: No such file or directory\n"),
    ("./wek.tar", 7, "./wek.tar: No such file or directory\n"),
    ("wek.tar", 3, "No such image: wek.tar:latest; there is no such file either; docker://wek.tar:latest asks the registry\n")])
def test_a_mistyped_archive_is_told_as_a_file_that_is_not_there(call: Call, stored: str, name: str, code: int, line: str) -> None:
    done = call("check", name)
    assert (done.code, done.out) == (code, "") and done.line.endswith(line)


# -- check says what it checked --------------------------------------------------


@pytest.mark.parametrize("kind", ["absent", "empty", "of other files", "emptied"])
@pytest.mark.parametrize("default", [True, False])
def test_check_of_nothing_is_not_ok(call: Call, stored: str, root: Path, home: Path, kind: str, default: bool) -> None:
    place = home / ".local" / "share" / "minipull" if default else home / "elsewhere"
    where, env = ([], {"MINIPULL_ROOT": ""}) if default else (["--root", place], {})
    if kind == "emptied":
        place.parent.mkdir(parents=True, exist_ok=True)
        root.rename(place)
        assert call(*where, "rm", stored, env=env).code == call(*where, "gc", "--keep", "0", env=env).code == 0
    elif kind != "absent":
        place.mkdir(parents=True)
        (place / "notes").write_text("") if kind == "of other files" else None
    pins = home / "pins"
    pins.write_text("x:1@sha256:%s\n" % ("0" * 64))
    for words in (["check"], ["check", "--repair"], ["check", "--format", "json"], ["check", "--pins", "pins"]):
        done = call(*where, *words, env=env)
        if kind == "emptied":
            assert done.code == (3 if "--pins" in words else 0)
            assert "--pins" in words or "json" in words or is_sound(done.out, place)
        else:
            assert (done.code, done.out, done.line) == (3, "", "minipull: there is no store at %s\n" % place), words
    assert place.exists() == (kind != "absent")


def test_check_of_names_has_a_line_for_each_image_and_the_sum(call: Call, ref: str, root: Path, layout: Layout) -> None:
    call("pull", ref, ref + ":other")
    names = ["%s@%s" % (ref + tag, digest(layout, tag[1:])) for tag in (":latest", ":other")]
    done = call("check", ref, ref + ":other")
    assert done.code == 0 and is_sound(done.out, *names) and "ok: 2 images, 6 blobs, " in done.out  # one is shared
    shown = call("check", "--format", "json", ref + ":*").json
    assert [(row["name"], row["digest"], row["ok"]) for row in shown["checked"]] == [
        (ref + ":latest", digest(layout), True), (ref + ":other", digest(layout, "other"), True)]
    assert (shown["images"], shown["blobs"]) == (2, 6)
    layer = json.loads(layout.read(digest(layout)))["layers"][1]["digest"]  # of the one alone
    (root / "blobs" / "sha256" / layer[7:]).write_bytes(b"")
    done = call("check", ref, ref + ":other")
    lines = done.out.splitlines()
    assert done.code == 7 and lines[-3:-1] == [names[0] + ": damaged", names[1] + ": ok"]
    assert lines[-1].startswith("%s: damaged; run minipull check --repair" % root)
    shown = call("check", "--format", "json", ref, ref + ":other").json
    assert [row["ok"] for row in shown["checked"]] == [False, True] and shown["ok"] is False


def test_the_sum_is_of_all_stores_archives_and_images_that_were_checked(
        call: Call, stored: str, root: Path, tmp_path: Path) -> None:
    assert call("save", "-q", "-o", tmp_path / "a.tar", stored).code == 0
    store = call("check", "--format", "json").json
    archive = call("check", tmp_path / "a.tar", "--format", "json").json
    remote = call("check", "docker://" + stored, "--format", "json").json
    assert {key: store[key] for key in ("images", "blobs", "size")} == {
        key: archive[key] for key in ("images", "blobs", "size")} == {
        key: remote[key] for key in ("images", "blobs", "size")}
    done = call("check", tmp_path / "a.tar", "docker://" + stored, stored)
    assert done.code == 0 and done.out.splitlines()[-1].startswith("ok: 3 images, %d blobs, " % (3 * store["blobs"]))


@pytest.mark.parametrize("words", [
    "--root LINK/s images", "unpack REF LINK/out", "copy docker://REF oci-archive:LINK/a.tar", "save REF -o LINK/a.tar",
    "export -q REF -o LINK/e.tar", "logout --authfile LINK/auth.json HOST"])
def test_a_link_that_may_not_be_read_is_one_line(call: Call, stored: str, server: ScriptedServer, home: Path,
                                                 monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    link, readlink = home / "link", os.readlink
    link.symlink_to("elsewhere")

    def refused(path: str, *args: object, **options: object) -> str:
        if os.fspath(path) == str(link):  # as /proc/PID/root of another user's process
            raise PermissionError(13, "Permission denied", path)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", refused)
    for name, value in {"LINK": str(link), "REF": stored, "HOST": server.host}.items():
        words = words.replace(name, value)
    done = call(*words.split())
    assert (done.code, done.err.count("\n"), "Permission denied" in done.err) == (7, 1, True), done.err
