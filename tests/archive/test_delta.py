# SPDX-License-Identifier: Apache-2.0
"""save --base: only what is new, and load on top of what is there."""
import gzip
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pytest

import minipull
from minipull.archive.reader import DELTA
from minipull.store.check import check
from minipull.store.store import Store
from tests.archive.conftest import three_in
from tests.kit import images
from tests.kit.archives import OTHER, Messages, Three, document, members_of, names, pack
from tests.kit.commands import Call, is_sound
from tests.kit.images import Layout, Spec, to_json
from tests.kit.processes import Minipull, run
from tests.kit.stores import keep, keep_index

IMAGES, LAYERS, SIZE = 20, 10, 6000


class Weeks(NamedTuple):
    """A store with twenty images of last week and of this one, in which a layer in ten is new."""
    near: Store
    refs: List[List[str]]  # of each week
    full: List[Path]  # archives of each
    delta: Path
    base: Path  # a store of last week's

    def blob(self, week: int, image: int, layer: int) -> str:
        """The digest of a layer."""
        near = self.near.image(self.refs[week][image])
        return str(list(self.near.walk(near.descriptor))[1 + layer][0].digest)


@pytest.fixture(scope="module")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> Weeks:
    folder = tmp_path_factory.mktemp("weeks")
    near, layout = Store(str(folder / "near")), Layout(folder / "layout")
    refs: List[List[str]] = [[], []]
    for image in range(IMAGES):
        seeds = [100 * image + number for number in range(LAYERS)]
        for week in range(2):
            refs[week].append("docker.io/w/i%d:%d" % (image, week))
            made = layout.image([Spec(SIZE, 1, seed, text=0) for seed in seeds])
            keep(near, layout, made, refs[week][-1])
            seeds[-1] += 50
    full = [folder / "week0.tar", folder / "week1.tar"]
    for week in range(2):
        minipull.save(refs[week], near, str(full[week]))
    minipull.save(refs[1], near, str(folder / "delta.tar"), bases=[str(full[0])])
    minipull.load(str(full[0]), Store(str(folder / "base")))
    return Weeks(near, refs, full, folder / "delta.tar", folder / "base")


def test_a_delta_has_the_bytes_that_changed_and_completes_to_the_same_archive(weeks: Weeks, tmp_path: Path) -> None:
    members, whole = members_of(weeks.delta), members_of(weeks.full[1])
    layers = [sum(len(data) for data in held.values() if data.startswith(b"\x1f\x8b")) for held in (whole, members)]
    assert 0.099 < layers[1] / layers[0] < 0.101
    assert weeks.delta.stat().st_size < 0.2 * weeks.full[1].stat().st_size  # documents, of small layers
    assert not {"manifest.json", "repositories"} & set(members)
    assert set(members) - {DELTA} < set(whole)
    stated = json.loads(members[DELTA])
    assert stated["bases"] == ["week0.tar"] and len(stated["blobs"]) == IMAGES * (LAYERS - 1)
    far = Store(str(tmp_path / "far"))
    minipull.load(str(weeks.full[0]), far)
    assert len(minipull.load(str(weeks.delta), far)) == IMAGES
    assert check(far) == []
    minipull.save(weeks.refs[1], far, str(tmp_path / "full"))
    assert (tmp_path / "full").read_bytes() == weeks.full[1].read_bytes()
    minipull.save(weeks.refs[1], far, str(tmp_path / "again"), bases=[str(weeks.full[0])])
    assert (tmp_path / "again").read_bytes() == weeks.delta.read_bytes()


def test_on_a_store_without_the_base_it_is_one_line_and_nothing_is_tagged(
        weeks: Weeks, call: Call, tmp_path: Path) -> None:
    for flags in ([], ["--dry-run"]):
        done = call("--root", tmp_path / "empty", "load", "-q", "-i", weeks.delta, *flags)
        assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done
        first = min(json.loads(members_of(weeks.delta)[DELTA])["blobs"])
        assert done.err.startswith("minipull: load %s: 180 of the blobs that it leaves out, " % weeks.delta)
        assert "not in the store: %s, sha256:" % first in done.err
        assert done.err.endswith(", ...; load week0.tar first\n")
    assert names(Store(str(tmp_path / "empty"))) == []
    assert list((tmp_path / "empty").glob("blobs/*/*")) == []


def test_a_store_that_lacks_one_blob_is_told_of_that_one(weeks: Weeks, tmp_path: Path) -> None:
    far = Store(str(tmp_path / "far"))
    minipull.load(str(weeks.full[0]), far)
    lost = weeks.blob(1, 3, 2)
    (tmp_path / "far/blobs/sha256" / lost[7:]).unlink()
    with pytest.raises(minipull.NotFound, match=": 1 of the blobs .* not in the store: %s; load week0.tar first$" % lost):
        minipull.load(str(weeks.delta), far)
    assert names(far) == sorted(weeks.refs[0])


# -- bases ---------------------------------------------------------------------


def _written(folder: Path, data: bytes) -> str:
    (folder / "base").write_bytes(data)
    return str(folder / "base")


def _printed(weeks: Weeks, folder: Path, *command: str) -> str:
    return _written(folder, run(command, cwd=weeks.base).raw)


BASES: Dict[str, Callable[[Weeks, Path], str]] = {
    "store": lambda weeks, folder: str(weeks.base),
    "archive": lambda weeks, folder: str(weeks.full[0]),
    "compressed": lambda weeks, folder: _written(folder, gzip.compress(weeks.full[0].read_bytes(), 1)),
    "delta": lambda weeks, folder: _chained(weeks, folder),
    "tar tf": lambda weeks, folder: _written(folder, run(["tar", "tf", weeks.full[0]]).raw),
    "find": lambda weeks, folder: _printed(weeks, folder, "find", ".", "-type", "f"),
    "ls": lambda weeks, folder: _printed(weeks, folder, "ls", "-l", "blobs/sha256"),
    "sha256:HEX": lambda weeks, folder: _written(folder, "\r\n".join(
        "# %s, kept" % digest for digest in json.loads(members_of(weeks.delta)[DELTA])["blobs"]).encode()),
    "one line": lambda weeks, folder: _written(folder, b" " * ((1 << 20) - 40) + " ".join(
        json.loads(members_of(weeks.delta)[DELTA])["blobs"]).encode())}


def _chained(weeks: Weeks, folder: Path) -> str:
    """An archive of last week that leaves half of it out: its reader has that all the same."""
    minipull.save(weeks.refs[0][::2], weeks.near, str(folder / "half"))
    minipull.save(weeks.refs[0], weeks.near, str(folder / "base"), bases=[str(folder / "half")])
    assert DELTA in members_of(folder / "base")
    return str(folder / "base")


@pytest.mark.parametrize("kind", BASES)
def test_a_base_may_be_a_store_an_archive_or_a_list(weeks: Weeks, tmp_path: Path, kind: str) -> None:
    base = BASES[kind](weeks, tmp_path)
    minipull.save(weeks.refs[1], weeks.near, str(tmp_path / "delta"), bases=[base])
    expected = dict(members_of(weeks.delta))
    expected[DELTA] = expected[DELTA].replace(b"week0.tar", os.path.basename(base).encode())
    assert members_of(tmp_path / "delta") == expected


def test_a_base_of_one_long_line_takes_little_memory(weeks: Weeks, tmp_path: Path) -> None:
    base = _written(tmp_path, weeks.delta.name.encode() + b" " * (32 << 20) + b"0" * 64)
    tracemalloc.start()
    try:
        minipull.save(weeks.refs[1][:1], weeks.near, str(tmp_path / "full"), bases=[base])
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_several_bases_are_joined_and_named_in_order(weeks: Weeks, tmp_path: Path) -> None:
    for name, refs in (("b", weeks.refs[0][:10]), ("a", weeks.refs[0][10:])):
        minipull.save(refs, weeks.near, str(tmp_path / name))
    minipull.save(weeks.refs[1], weeks.near, str(tmp_path / "delta"), bases=[str(tmp_path / "b"), str(tmp_path / "a")])
    assert document(tmp_path / "delta", DELTA) == dict(document(weeks.delta, DELTA), bases=["a", "b"])


def test_a_base_that_has_nothing_of_it_gives_a_full_archive(weeks: Weeks, tmp_path: Path) -> None:
    one = Layout(tmp_path / "one")
    keep(Store(str(tmp_path / "base")), one, one.image([Spec(100, seed=9)]))
    minipull.save(weeks.refs[1], weeks.near, str(tmp_path / "full"), bases=[str(tmp_path / "base")])
    assert (tmp_path / "full").read_bytes() == weeks.full[1].read_bytes()


def test_a_delta_of_what_has_not_changed_is_its_documents(weeks: Weeks, tmp_path: Path) -> None:
    minipull.save(weeks.refs[0], weeks.near, str(tmp_path / "delta"), bases=[str(weeks.full[0])])
    left = [name for name in members_of(tmp_path / "delta") if name.startswith("blobs/")]
    assert len(left) == 2 * IMAGES  # manifests and configs
    assert len(minipull.load(str(tmp_path / "delta"), Store(str(weeks.base)))) == IMAGES


@pytest.mark.parametrize("base, code, text", [
    ("/nowhere", 7, "base /nowhere: open: No such file or directory"),
    ("HOME", 3, "base HOME: it is neither a store nor an image layout"),
    ("text", 6, "base text: it is no archive, and there is no digest in it"),
    ("empty", 6, "base empty: it is no archive, and there is no digest in it"),
    ("torn", 6, "base torn: tar: the stream is cut short"),
    ("out", 2, "out is a base, and can't be the output as well")])
def test_a_base_that_is_none_is_one_line(
        weeks: Weeks, call: Call, home: Path, base: str, code: int, text: str) -> None:
    (home / "text").write_text("week0.tar\nsha256:abc\n" + "0" * 65)
    (home / "empty").touch()
    (home / "torn").write_bytes(weeks.full[0].read_bytes()[:100000])
    (home / "out").write_bytes(weeks.full[0].read_bytes())
    before = (home / "out").read_bytes()
    done = call("--root", weeks.near.root, "save", "-q", "--base", base.replace("HOME", str(home)), "-o", "out",
                        weeks.refs[1][0])
    assert (done.code, done.err) == (code, "minipull: %s\n" % text.replace("HOME", str(home)))
    assert (home / "out").read_bytes() == before


# -- readers -------------------------------------------------------------------


def test_check_says_how_much_a_delta_leaves_out(weeks: Weeks, call: Call) -> None:
    for done in (call("check", weeks.delta), call("--root", weeks.delta, "check")):
        size = sum(document(weeks.delta, DELTA)["blobs"].values())
        first, _, rest = done.out.partition("\n")
        assert done.code == 0 and is_sound(rest, weeks.delta) and first == (
            "%s/.: unverified: a delta: 180 blobs, %d bytes, are left out; week0.tar had them" % (weeks.delta, size))
    assert json.loads(call("check", "--format", "json", weeks.delta).out)["ok"] is True


@pytest.mark.parametrize("args", [["cat", "REF", "/f"], ["unpack", "REF", "tree"], ["save", "-o", "x", "REF"],
                                  ["serve", "--listen", "127.0.0.1:0"], ["copy", "oci-archive:DELTA:REF", "oci:x"]],
                         ids=lambda args: args[0])
def test_commands_that_read_a_delta_say_what_it_leaves_out(
        weeks: Weeks, call: Call, home: Path, args: List[str]) -> None:
    words = [word.replace("REF", weeks.refs[1][3]).replace("DELTA", str(weeks.delta)) for word in args]
    done = call("--root", weeks.delta, *words)
    line = done.err.splitlines()[-1]
    assert done.code == 3 and "is left out of %s, which is a delta: load it, and use the store" % weeks.delta in line
    assert "Traceback" not in done.err and "blob sha256:" in line
    assert not (home / "x").exists() or args[0] == "copy"


def test_images_of_a_delta_are_listed_in_their_full_size(weeks: Weeks, call: Call) -> None:
    rows = json.loads(call("--root", weeks.delta, "images", "--format", "json").out)
    near = json.loads(call("--root", weeks.near.root, "images", "--format", "json").out)
    for row in rows + near:
        del row["unique"]  # the store has more images
    assert rows == [row for row in near if row["name"] in weeks.refs[1]]


HOSTILE: Dict[str, Any] = {
    "no JSON": b"{", "a list": b"[]", "another version": {"version": 2}, "a version of true": {"version": True},
    "no version": {"blobs": {}}, "no digest": {"version": 1, "blobs": {"../../etc": 1}},
    "a size below zero": {"version": 1, "blobs": {"sha256:" + "0" * 64: -1}},
    "a size of text": {"version": 1, "blobs": {"sha256:" + "0" * 64: "1"}},
    "a digest twice": b'{"version":1,"blobs":{"sha256:%s":1,"sha256:%s":1}}' % (b"0" * 64, b"0" * 64),
    "bases that are none": {"version": 1, "bases": {}, "blobs": {}}}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_list_of_what_is_left_out_is_refused(weeks: Weeks, tmp_path: Path, kind: str) -> None:
    data = HOSTILE[kind] if isinstance(HOSTILE[kind], bytes) else to_json(HOSTILE[kind])
    (tmp_path / "delta").write_bytes(pack(dict(members_of(weeks.delta), **{DELTA: data})))
    with pytest.raises((minipull.InvalidDocument, minipull.PolicyError), match="load .*delta: " + DELTA):
        minipull.load(str(tmp_path / "delta"), Store(str(tmp_path / "far")))


def test_a_list_of_what_is_left_out_has_a_bound(
        weeks: Weeks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.archive.reader.MAX_DELTA", 1000)
    with pytest.raises(minipull.PolicyError, match=DELTA + " is larger than 1000 bytes"):
        minipull.load(str(weeks.delta), Store(str(tmp_path / "far")))


def _damaged(weeks: Weeks, change: Callable[[Dict[str, int], Dict[str, bytes]], Optional[str]], path: Path) -> str:
    """Write a delta whose list and members were changed; return the digest that the error must name."""
    members, stated = dict(members_of(weeks.delta)), document(weeks.delta, DELTA)
    digest = change(stated["blobs"], members)
    path.write_bytes(pack(dict(members, **{DELTA: to_json(stated)})))
    return str(digest)


def _claims_what_is_there(blobs: Dict[str, int], members: Dict[str, bytes]) -> str:
    name = max((name for name in members if name.startswith("blobs/")), key=lambda name: len(members[name]))
    return str(blobs.setdefault("sha256:" + name[-64:], len(members[name])) and "sha256:" + name[-64:])


def _claims_another_size(blobs: Dict[str, int], members: Dict[str, bytes]) -> str:
    blobs[min(blobs)] += 1
    return min(blobs)


def _forgets(blobs: Dict[str, int], members: Dict[str, bytes]) -> str:
    digest = min(blobs)
    del blobs[digest]
    return digest


def _claims_a_config(blobs: Dict[str, int], members: Dict[str, bytes]) -> str:
    top = json.loads(members["index.json"])["manifests"][0]["digest"]
    config = json.loads(members["blobs/sha256/" + top[7:]])["config"]
    del members["blobs/sha256/" + config["digest"][7:]]
    blobs[config["digest"]] = config["size"]
    return str(config["digest"])


def _claims_a_manifest(blobs: Dict[str, int], members: Dict[str, bytes]) -> str:
    top = json.loads(members["index.json"])["manifests"][0]
    del members["blobs/sha256/" + top["digest"][7:]]
    blobs[top["digest"]] = top["size"]
    return str(top["digest"])


@pytest.mark.parametrize("change", [_claims_what_is_there, _claims_another_size, _forgets, _claims_a_config,
                                    _claims_a_manifest], ids=lambda change: change.__name__[1:])
def test_a_list_that_does_not_fit_its_archive_is_damage(
        weeks: Weeks, tmp_path: Path, change: Callable[[Dict[str, int], Dict[str, bytes]], str]) -> None:
    digest = _damaged(weeks, change, tmp_path / "delta")
    with pytest.raises(minipull.InvalidDocument, match=digest):
        minipull.load(str(tmp_path / "delta"), Store(str(weeks.base)))
    assert names(Store(str(weeks.base))) == sorted(weeks.refs[0])


# -- with the rest -------------------------------------------------------------


def test_a_delta_may_be_a_bundle(weeks: Weeks, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "week1.pyz"
    minipull.save(weeks.refs[1], weeks.near, str(path), bases=[str(weeks.full[0])], bundle=True)
    assert path.read_bytes().startswith(weeks.delta.read_bytes())
    site, env = [sys.executable, "-I", "-S", str(path)], {"HOME": str(home)}
    told = run(site, env).out
    assert "This is a delta, without 180 blobs, " in told and "docker" not in told.partition("\n\n")[2]
    assert run([*site, "load"], env, check=False).code == 3
    minipull.load(str(weeks.full[0]), Store(str(home / ".local/share/minipull")))
    assert run([*site, "load"], env).out.count("Loaded image") == IMAGES


def test_a_delta_is_not_compared_with_what_docker_needs(layout: Layout, tmp_path: Path) -> None:
    store, messages = Store(str(tmp_path / "root")), Messages()
    image = layout.image([Spec(100)], platform=OTHER)
    index = layout.index([dict(image.descriptor, platform=images.parse_platform(OTHER))])
    keep_index(store, layout, index, "docker.io/x/many:1")
    for bases, warnings in (([], 1), ([store.root], 0)):
        messages.clear()
        minipull.save(["x/many"], store, str(tmp_path / "out"), bases=bases, progress=messages)
        assert len([text for text in messages if "docker before 25" in text]) == warnings


def test_every_document_and_config_travels_with_an_index(tmp_path: Path) -> None:
    store, _, made = three_in(Store(str(tmp_path / "root")), Layout(tmp_path / "layout"))
    three: Three = (store, _, made)
    minipull.save(list(made), three[0], str(tmp_path / "delta"), bases=[store.root])
    members = members_of(tmp_path / "delta")
    left_out = set(json.loads(members[DELTA])["blobs"])
    for name in made:
        for item, parsed in store.walk(store.image(name).descriptor):
            assert parsed is None or item.digest not in left_out
            assert not hasattr(parsed, "config") or getattr(parsed, "config").digest not in left_out
    before = store.image("two:2")
    assert [image.name for image in minipull.load(str(tmp_path / "delta"), store)].count(before.name) == 1
    assert check(store) == []


def test_a_dry_run_predicts_the_very_bytes_and_writes_nothing(
        weeks: Weeks, call: Call, run_minipull: Minipull, home: Path, tmp_path: Path) -> None:
    save = ["--root", weeks.near.root, "save", "--dry-run", "--format", "json", "-o", "x"]
    for flags, path in (([], weeks.full[1]), (["--base", weeks.full[0]], weeks.delta)):
        plan = json.loads(call(*save, *flags, *weeks.refs[1]).out)
        assert plan["archive_bytes"] == path.stat().st_size
        blobs = {name: len(data) for name, data in members_of(path).items() if name.startswith("blobs/")}
        assert (plan["total"]["blobs"], plan["total"]["bytes"]) == (len(blobs), sum(blobs.values()))
        left_out = document(path, DELTA)["blobs"] if flags else {}
        assert (plan["total"]["there_blobs"], plan["total"]["there_bytes"]) == (len(left_out), sum(left_out.values()))
        assert [row["name"] for row in plan["images"]] == sorted(weeks.refs[1])
    text = call("--root", weeks.near.root, "save", "--dry-run", "--bundle", *weeks.refs[1]).out.splitlines()
    full = io.BytesIO()
    minipull.save(weeks.refs[1], weeks.near, full, bundle=True)
    assert text[-2] == "the archive would have %d bytes" % len(full.getvalue())
    assert text[-1].startswith("would move %d blobs, " % (IMAGES * (LAYERS + 2))) and len(text) == IMAGES + 2
    far = tmp_path / "far"
    plan = json.loads(run_minipull("--root", far, "load", "--dry-run", "--format", "json", stdin=full.getvalue()).out)
    assert plan["total"]["blobs"] == IMAGES * (LAYERS + 2) and plan["total"]["there_blobs"] == 0
    assert not far.exists() and list(home.iterdir()) == []
    before = sorted(weeks.base.rglob("*"))
    plan = json.loads(call("--root", weeks.base, "load", "--dry-run", "--format", "json", "-i", weeks.delta).out)
    assert (plan["total"]["blobs"], plan["total"]["there_blobs"]) == (IMAGES * 3, IMAGES * (LAYERS - 1))
    assert sorted(weeks.base.rglob("*")) == before


def test_a_delta_that_no_reader_would_take_is_not_written(
        weeks: Weeks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.image.strictjson.MAX_MEMORY", 50000)
    with pytest.raises(minipull.PolicyError, match=DELTA):
        minipull.save(weeks.refs[1], weeks.near, str(tmp_path / "delta"), bases=[weeks.near.root])
    assert not (tmp_path / "delta").exists()
