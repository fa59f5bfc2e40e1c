# SPDX-License-Identifier: Apache-2.0
"""images, history, df and gc --dry-run: what the store holds, and whose it is."""
import os
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest

from minipull.reference import Reference
from minipull.store.store import Store
from tests.kit.commands import Call
from tests.kit.copies import artifact, bare
from tests.kit.images import Layout, specs
from tests.kit.stores import age, descriptor, keep, multi, text_layer


@pytest.fixture
def three(store: Store, layout: Layout) -> Store:
    """app:1 and app:2, which share a layer, app:1 as other:9 too, and tool:1, which shares nothing."""
    shared = text_layer("shared")
    one, two = (layout.image([shared, text_layer(text)]) for text in ("one", "two"))
    for made, names in ((one, ("registry.example.com/app:1", "docker.io/library/other:9")),
                        (two, ("registry.example.com/app:2",)), (layout.image(specs(2)), ("docker.io/library/tool:1",))):
        for name in names:
            keep(store, layout, made, name)
    return store


@pytest.mark.parametrize("text, names", [
    ("registry.example.com/app", ["app:1", "app:2"]), ("registry.example.com/app:2", ["app:2"]), ("app", []),
    ("other", ["other:9"]), ("docker.io/library/other:9", ["other:9"]), ("other:*", ["other:9"]),
    ("registry.example.com/*", ["app:1", "app:2"]), ("*/app:[2-9]", ["app:2"]), ("t?ol", ["tool:1"]),
    ("docker.io/library/t*", ["tool:1"]), ("*:1", ["app:1", "tool:1"]), ("none", []), ("[::1]:5000/app", []),
    ("registry.example.com/app@SOURCE", ["app:1"])])
def test_images_lists_a_repository_a_name_or_a_glob_in_either_form(
        call: Call, three: Store, text: str, names: List[str]) -> None:
    source = three.image("other:9").source
    done = call("images", text.replace("SOURCE", source))
    assert done.code == 0 and done.err == ""
    listed = [line.split()[0].rpartition("/")[2] for line in done.out.splitlines()[1:]]
    assert sorted(listed) == names
    rows = call("images", "--format", "json", text.replace("SOURCE", source)).json
    assert sorted(row["name"].rpartition("/")[2] for row in rows) == names


def test_a_name_that_is_none_is_refused(call: Call, three: Store) -> None:
    assert call("images", "No:1").code == 2


def test_images_q_prints_each_id_once_and_flags_add_digests_and_whole_ids(call: Call, three: Store) -> None:
    images = three.images()
    assert sorted(call("images", "-q").out.split()) == sorted({image.id.short for image in images})
    assert set(call("images", "-q", "--no-trunc").out.split()) == {image.id for image in images}
    heading, *rows = call("images", "--digests", "--no-trunc").out.splitlines()
    assert heading.split() == ["NAME", "DIGEST", "IMAGE", "ID", "PLATFORM", "CREATED", "SIZE", "UNIQUE"]
    assert [row.split()[1:3] for row in rows] == [[image.source, image.id] for image in images]


def test_unique_is_what_gc_frees_when_all_names_of_the_image_have_gone(call: Call, three: Store) -> None:
    rows: Dict[str, Any] = {row["name"]: row for row in call("images", "--format", "json").json}
    assert rows["registry.example.com/app:1"]["unique"] == rows["docker.io/library/other:9"]["unique"]
    assert rows["docker.io/library/tool:1"]["unique"] == rows["docker.io/library/tool:1"]["size"]
    for name in ("registry.example.com/app:1", "docker.io/library/tool:1"):
        assert 0 < rows[name]["unique"] <= rows[name]["size"]
        assert call("rm", "--all-names", name).code == 0
        assert call("gc", "--keep", "0", "--format", "json").json["size"] == rows[name]["unique"]
    [last] = call("images", "--format", "json").json  # it shares nothing any more
    assert last["unique"] == last["size"] > rows["registry.example.com/app:2"]["unique"]


def test_an_index_and_one_of_its_platforms_share_it(call: Call, store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi")
    image = made["linux/amd64"]
    keep(store, layout, image, index=top)
    [row] = call("images", "--format", "json").json
    assert row["unique"] == row["size"]  # the index is kept for it, and no part of its size
    whole = Reference.parse("docker.io/library/whole:1")
    store.references.set(whole, descriptor(top.descriptor), descriptor(top.descriptor).digest)
    rows = call("images", "--format", "json").json
    assert [row["unique"] for row in rows] == [0, 0]


def test_signatures_share_nothing_with_their_image_and_are_hidden_from_q(
        call: Call, layout: Layout, store: Store) -> None:
    made = layout.image([text_layer("one")], "latest")
    artifact(layout, "bill", payload=b"bill", subject=bare(made.descriptor))
    for name in ("latest", "bill"):
        assert call("copy", "oci:%s:%s" % (layout.root, name), "store:app:" + name).code == 0
    assert len(call("images", "-q").out.split()) == 1 and len(call("images", "-q", "-a").out.split()) == 2
    assert all(row["unique"] == row["size"] for row in call("images", "--format", "json").json)


# -- history ---------------------------------------------------------------------

STEP = {"created": "2024-01-02T03:04:05Z", "created_by": "/bin/sh -c #(nop)  " + "x" * 60}
NOTHING = dict(STEP, created_by="CMD\n\x1b[31m sh", empty_layer=True, comment="buildkit")
#: The history in the config of an image with two layers: the layer of each row, the last step first.
HISTORIES: Dict[str, Any] = {
    "as built": ([STEP, NOTHING, STEP], [1, None, 0]), "none": ([], [1, 0]), "too short": ([STEP], [1, 0]),
    "only empty steps": ([NOTHING] * 3, [1, 0, None, None, None]), "null": (None, [1, 0]), "many": ([NOTHING] * 3000 + [STEP], [1, 0] + [None] * 3000)}


@pytest.mark.parametrize("name", list(HISTORIES))
def test_history_has_each_step_with_its_layer_and_layers_without_a_step(
        call: Call, store: Store, layout: Layout, name: str) -> None:
    steps, positions = HISTORIES[name]
    made = layout.image([text_layer("one"), text_layer("two")], config={"history": steps})
    keep(store, layout, made, "docker.io/library/app:1")
    rows = call("history", "--format", "json", "app:1").json
    layers = [layer.descriptor for layer in made.layers]
    assert [(row["digest"], row["size"]) for row in rows] == [
        (None, 0) if at is None else (layers[at]["digest"], layers[at]["size"]) for at in positions]
    assert set(rows[0]) == {"created", "author", "created_by", "comment", "empty_layer", "digest", "diff_id", "size"}
    done = call("history", "app:1")
    assert len(done.out.splitlines()) == 1 + len(positions) and done.err == ""
    assert "\x1b" not in done.out and not any(line.endswith(" ") for line in done.out.splitlines())


def test_history_is_cut_to_a_table_unless_all_of_it_is_wanted(call: Call, store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")], config={"history": [STEP, NOTHING]})
    keep(store, layout, made, "docker.io/library/app:1")
    heading, last, first = call("history", "app:1").out.splitlines()
    assert re.split("  +", heading) == ["CREATED", "CREATED BY", "SIZE", "COMMENT"]
    assert last.startswith("2024-01-02   CMD \\x1b[31m sh ") and " 0B     buildkit" in last
    assert "x..." in first and len(first) < 80
    assert STEP["created_by"].replace("  ", " ") in call("history", "--no-trunc", "app:1").out
    identity = store.image("app:1").id
    assert call("history", identity[7:11]).out == call("history", "app:1").out


@pytest.mark.parametrize("text", ["\x1b]0;t\x07" * 9, "\u202e" * 9, "\n\x9b31m", "\u2028" * 20])
def test_control_characters_of_a_history_move_no_column(
        call: Call, store: Store, layout: Layout, text: str) -> None:
    step = dict.fromkeys(("created", "created_by", "comment"), text)
    made = layout.image([text_layer("one"), text_layer("two")], config={"history": [step, STEP]})
    keep(store, layout, made, "docker.io/library/app:1")
    for flags in ([], ["--no-trunc"]):
        heading, *rows = call("history", "app:1", *flags).out.splitlines()
        column = heading.index("SIZE")
        assert [re.match("[0-9.]+k?B( |$)", row[column:]) is not None for row in rows] == [True, True]
        assert column < 120 or flags


@pytest.mark.parametrize("key", ["created", "created_by"])
def test_one_long_text_of_a_history_pads_no_other_line(call: Call, store: Store, layout: Layout, key: str) -> None:
    """A config of 8 MB would else be printed as gigabytes."""
    steps = [{key: "x" * 100000}] + [{key: "short", "empty_layer": True}] * 300
    keep(store, layout, layout.image([text_layer("one")], config={"history": steps}), "docker.io/library/app:1")
    lines = call("history", "--no-trunc", "app:1").out.splitlines()
    assert len(lines) == 302 and "x" * 100000 in lines[-1] and max(map(len, lines[:-1])) < 200


def test_history_of_what_has_none_is_one_line(call: Call, store: Store, layout: Layout, tmp_path: Path) -> None:
    many = layout.image([text_layer("one")], config={"history": [STEP] * 2})
    keep(store, layout, many, "docker.io/library/many:1")
    other, top, made = multi(tmp_path / "multi")
    for image in made.values():
        keep(store, other, image, index=top)
    store.references.set(Reference.parse("docker.io/library/index:1"), descriptor(top.descriptor),
                         descriptor(top.descriptor).digest)
    for words, code, text in ((["many:1"], 7, "too many non-empty layers"), (["absent"], 3, "No such image"),
                              (["index:1", "--platform", "linux/s390x"], 3, "index:1 has no image for linux/s390x")):
        done = call("history", *words)
        assert (done.code, done.out) == (code, "") and text in done.line
    for platform in made:
        rows = call("history", "index:1", "--platform", platform, "--format", "json").json
        assert [row["digest"] for row in rows if row["digest"]] == [
            layer.descriptor["digest"] for layer in made[platform].layers][::-1]


# -- df, gc --dry-run ------------------------------------------------------------


def taken(store: Store) -> int:
    """The bytes of all blobs and partials."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for part in ("blobs", "ingest")
               for folder, _, names in os.walk(os.path.join(store.root, part)) for name in names)


def litter(store: Store) -> None:
    """Leave a partial with its note, what a killed run has left, the note of none, and a rotten blob."""
    scratch = Path(store.content.scratch)
    scratch.mkdir(exist_ok=True)
    for name, size in (("sha256-" + "1" * 64, 700), ("sha256-%s.json" % ("1" * 64), 30), (".minipull-x-12345678", 50),
                       ("sha256-%s.json" % ("2" * 64), 20), ("rotten-sha256-" + "3" * 64, 400)):
        (scratch / name).write_bytes(b"x" * size)


@pytest.mark.parametrize("keep_for", ["0", "24h"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("littered", [False, True])
def test_a_dry_run_says_what_gc_then_deletes_to_the_byte_and_changes_nothing(
        call: Call, three: Store, keep_for: str, old: bool, littered: bool) -> None:
    call("rm", "tool:1", "registry.example.com/app:2")
    if littered:
        litter(three)
    if old:
        age(three)
    before, shown = taken(three), call("df", "--format", "json").json["reclaimable"]
    plan = call("gc", "--dry-run", "--keep", keep_for, "--format", "json").json
    text = call("gc", "--dry-run", "--keep", keep_for).out
    assert taken(three) == before and plan.pop("dry_run") is True
    assert shown["gc_keep_0" if keep_for == "0" else "gc"] == plan["size"]
    done = call("gc", "--keep", keep_for, "--format", "json").json
    assert done.pop("dry_run") is False and plan == done
    assert before - taken(three) == done["size"] and bool(done["deleted"]) == (old or keep_for == "0")
    assert [line.split()[-1] for line in text.splitlines()[:-1]] == done["deleted"]
    assert text.splitlines()[-1].startswith("Total reclaimable space: ")


def test_df_counts_blobs_those_that_are_shared_or_unreferenced_and_partials(call: Call, three: Store) -> None:
    call("rm", "tool:1")
    litter(three)
    shown = call("df", "--format", "json").json
    assert (shown["images"], shown["shared"]["count"], shown["unreferenced"]["count"]) == (2, 1, 4)
    assert shown["partial"] == {"count": 3, "size": 730 + 50 + 400}
    assert shown["blobs"]["count"] == len(three.content.digests())
    assert shown["reclaimable"]["gc_keep_0"] == shown["unreferenced"]["size"] + shown["partial"]["size"] + 20
    lines = call("df").out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["blobs", "shared", "unreferenced", "partial"]
    assert re.fullmatch("gc would free 70B, gc --keep 0 [0-9.]+kB", lines[5])


def test_df_of_no_store_is_nothing_and_of_a_damaged_one_one_line(call: Call, store: Store, layout: Layout) -> None:
    shown = call("df", "--format", "json").json
    assert (shown["images"], shown["blobs"], shown["reclaimable"]["gc_keep_0"]) == (0, {"count": 0, "size": 0}, 0)
    assert not os.path.exists(store.root)
    made = layout.image([text_layer("one")])
    keep(store, layout, made)
    Path(store.content.path(descriptor(made.descriptor).digest)).write_bytes(b"{")
    for words in (["df"], ["gc", "--dry-run"]):
        done = call(*words)
        assert (done.code, done.out) == (7, "") and "run minipull check" in done.line
