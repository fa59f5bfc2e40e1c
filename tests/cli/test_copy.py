# SPDX-License-Identifier: Apache-2.0
"""The command copy with many images: lists, targets of many, dry runs, what stays and what failed."""
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from minipull.server import http as httpd
from tests.kit import images
from tests.kit.archives import document
from tests.kit.commands import Call, Result
from tests.kit.copies import entries
from tests.kit.images import Layout
from tests.kit.proxies import FaultProxy
from tests.kit.signatures import key_file, sign
from tests.kit.site import Site

COUNT = 29


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tuple[Site, FaultProxy]]:
    """A registry to copy from, and one to copy to, behind a proxy that counts."""
    monkeypatch.setattr(httpd, "TICK", 0.005)
    source, target = Site(tmp_path / "from"), Site(tmp_path / "to")
    with FaultProxy(target.host) as proxy:
        yield source, proxy
    source.stop()
    target.stop()


@pytest.fixture
def source(sites: Tuple[Site, FaultProxy]) -> Site:
    return sites[0]


@pytest.fixture
def target(sites: Tuple[Site, FaultProxy]) -> FaultProxy:
    return sites[1]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Three images that share two layers: one:1, one:2 and two:1."""
    layout = Layout(tmp_path / "layout")
    for number, name in enumerate(("one:1", "one:2", "two:1")):
        layout.image([*images.specs(2, 9000), *images.specs(1, 3000, seed=10 + number)], name)
    return layout


@pytest.fixture
def published(call: Call, source: Site, layout: Layout) -> str:
    """The host that has the images of the layout, below library/."""
    assert call("copy", "-q", "oci:%s" % layout.root, "docker://%s/" % source.host).code == 0
    return source.host


def sent(proxy: FaultProxy) -> Dict[str, int]:
    """The bytes of every upload, and of every manifest, that the target took."""
    return {path: size for (method, path), size in proxy.up.items() if size and method in ("PUT", "PATCH", "POST")}


def blobs_sent(proxy: FaultProxy) -> Tuple[int, int]:
    """Uploads with a body, and their bytes."""
    posts = sum(hits for (method, path), hits in proxy.hits.items() if method == "PUT" and "/uploads/" in path)
    return posts, sum(size for path, size in sent(proxy).items() if "/uploads/" in path)


def forget(proxy: FaultProxy) -> None:
    for counter in (proxy.hits, proxy.up, proxy.down):
        counter.clear()


def summary(done: Result) -> str:
    return done.out.splitlines()[-1]


def numbers(rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "result"} for row in rows]


def test_thirty_of_a_list_are_copied_each_blob_once_and_again_nothing(
        call: Call, source: Site, target: FaultProxy, tmp_path: Path) -> None:
    layout, shared = Layout(tmp_path / "thirty"), images.specs(2, 20000)
    for number in range(COUNT):
        layout.image([*shared, images.Spec(2000, seed=50 + number)], "a%d:1" % number)
    assert call("copy", "-q", "oci:%s" % layout.root, "docker://%s/" % source.host).code == 0
    names = ["%s/library/a%d:1" % (source.host, number) for number in range(COUNT)]
    listed = tmp_path / "list"
    listed.write_text("# thirty\n\n%s\n%s/library/none:1\n%s\n" % (
        "\n".join(names[:5]), source.host, "\n".join(names[5:])))
    args = "copy", "--keep-going", "@%s" % listed, "docker://%s/mirror/" % target.host
    planned = call(*args, "--dry-run", "--format", "json")
    assert planned.code == 3 and planned.err.count("\n") == 1 and "library/none:1: manifest unknown" in planned.err
    assert {method for method, _ in target.hits} <= {"GET", "HEAD"} and target.up == {}
    forget(target)
    done = call(*args, "--format", "json", "--progress", "none")
    assert (done.code, done.err) == (3, planned.err)
    assert numbers(done.json) == numbers(planned.json["images"])
    total = planned.json["total"]
    assert blobs_sent(target) == (total["blobs"], total["bytes"]) == (2 + 2 * COUNT, total["bytes"])
    assert total["mounted_blobs"] == 2 * (COUNT - 1)
    assert sum("/manifests/" in path for path in sent(target)) == COUNT
    # Again, the source is asked for the missing one alone, and nothing moves.
    forget(target)
    asked = len(source.log)
    again = call(*args, "--no-clobber")
    assert (again.code, sent(target)) == (3, {})
    assert summary(again) == "Copied 0 of 30 images, 0 blobs, 0B; 29 there already; 1 failed"
    assert again.out.count(" is there already\n") == COUNT
    paths = re.findall("/v2/\\S+", " ".join(text for _, text in source.log[asked:]))
    assert set(paths) == {"/v2/library/none/manifests/1"}
    planned = call(*args, "-n", "--dry-run", "--format", "json")
    assert not any(planned.json["total"].values()) and sent(target) == {} and planned.code == 3
    # By tag and by digest it is what it was.
    assert call("digest", "%s/mirror/library/a7:1" % target.host).out.strip() == layout.resolve("a7:1")["digest"]


def test_each_image_is_told_with_its_name_and_digest(
        call: Call, published: str, target: FaultProxy, layout: Layout) -> None:
    places = ["docker://%s/library/%s" % (published, name) for name in ("one:1", "two:1")]
    lines = ["%s/library/%s@%s" % (target.host, name, layout.resolve(name)["digest"]) for name in ("one:1", "two:1")]
    done = call("copy", *places, "docker://%s/" % target.host)
    assert done.out.splitlines()[:2] == lines and done.code == 0
    assert re.findall("(?m)^Copying .*", done.err) == [
        "Copying %s (%d of 2)" % (place, number) for number, place in enumerate(places, 1)]
    assert re.fullmatch("Copied 2 of 2 images, 6 blobs, [0-9.]+kB; 2 blobs, [0-9.]+kB were mounted", summary(done))
    quiet = call("copy", "-q", *places, "docker://%s/" % target.host)
    assert (quiet.out.splitlines(), quiet.err) == (lines, "")
    # Such lines are a list.
    pins = layout.root.parent / "pins"
    pins.write_text(quiet.out.replace(":1@", ":pinned@"))
    done = call("copy", "-q", "@%s" % pins, "store:")
    assert done.out.splitlines() == [line.replace(":1@", ":pinned@") for line in lines]
    # One image is told by how it was asked for as well.
    line = "docker.io/library/x:latest@%s\n" % layout.resolve("one:1")["digest"]
    assert call("copy", places[0], "store:x").out == line + "Status: Copied %s to store:x\n" % places[0]
    assert call("copy", "-n", places[1], "store:x").out == line + "Status: store:x is there already\n"
    assert call("copy", "-n", "-q", places[1], "store:x").out == layout.resolve("one:1")["digest"] + "\n"


@pytest.mark.parametrize("begin, kind", [
    ("store", "docker"), ("store", "oci"), ("store", "oci-archive"), ("layout", "docker"), ("layout", "store"),
    ("archive", "docker"), ("archive", "oci"), ("list", "store"), ("glob", "oci-archive"), ("all tags", "docker")])
def test_all_of_a_source_goes_to_a_target_under_full_names(
        call: Call, published: str, layout: Layout, tmp_path: Path, begin: str, kind: str) -> None:
    names = ["one:1", "one:2", "two:1"]
    repositories = ["docker://%s/library/%s" % (published, name) for name in ("one", "two")]
    prefix, args = published, {
        "store": ["store:"], "layout": ["oci:%s" % layout.root], "archive": ["oci-archive:%s" % (tmp_path / "a")],
        "list": ["@%s" % (tmp_path / "list")], "glob": [repository + ":*" for repository in repositories],
        "all tags": ["--all-tags", *repositories]}[begin]
    (tmp_path / "list").write_text("".join("%s/library/%s\n" % (published, name) for name in names))
    if begin in ("store", "archive"):
        assert call("copy", "-q", "@%s" % (tmp_path / "list"), "store:" if begin == "store" else args[0]).code == 0
    place = {"oci": "oci:%s" % (tmp_path / "new"), "oci-archive": "oci-archive:%s" % (tmp_path / "new"),
             "store": "store:", "docker": "docker://%s/again/" % published}[kind]
    done = call("copy", *args, place)
    assert done.code == 0 and summary(done).startswith("Copied 3 of 3 images, "), done
    full = ["%s/library/%s" % (prefix, name) for name in names]
    labels = {"docker": ["%s/again/library/%s" % (prefix, name) for name in names]}.get(kind, full)
    if begin == "layout" and kind == "store":
        labels = ["docker.io/library/" + name for name in names]
    digests = dict(zip(labels, (layout.resolve(name)["digest"] for name in names)))
    told = dict(line.rsplit("@", 1) for line in done.out.splitlines()[:-1])
    if kind == "oci":
        assert {item["annotations"][images.NAME]: item["digest"] for item in entries(tmp_path / "new")} == digests
    elif kind == "oci-archive":
        index = document(tmp_path / "new", "index.json")["manifests"]
        assert {item["annotations"][images.NAME]: item["digest"] for item in index} == digests
    elif kind == "store":
        assert {row["name"]: row["digest"] for row in call("images", "--format", "json").json} == {
            **digests, **(dict(zip(full, digests.values())) if begin == "store" else {})}
    else:
        assert {name: call("digest", name).out.strip() for name in labels} == digests
    assert sorted(told.values()) == sorted(digests.values())


@pytest.mark.parametrize("args, text", [
    (["S/one:1", "S/two:1", "docker://HOST/x:1"], "several images, so name one: .*; or write docker://HOST/.PATH/. for all"),
    (["S/one:1", "S/two:1", "docker://127.0.0.1:1"], "or write docker://HOST/.PATH/. for all"),  # not docker.io
    (["S/one:1", "S/two:1", "oci:new:x"], "or write oci:new for all"),
    (["S/one:1", "S/two:1", "store:x"], "or write store: for all"),
    (["S/one:1", "S/two:1", "oci-archive:new:x"], "or write oci-archive:new for all"),
    (["oci:LAYOUT:one:1", "docker://x.com/library/one:1", "docker://HOST/"], "would both become docker://HOST/library/one:1"),
    (["oci:LAYOUT:one:1", "oci:OTHER:one:1", "oci:new"], "oci:LAYOUT:one:1 and oci:OTHER:one:1 would both become oci:new:one:1"),
    (["docker://HOST/", "oci:new"], "HOST/ names no image"),
    (["-k", "docker://HOST/", "S/one:1", "oci:new"], "HOST/ names no image"),
    (["S/one:1", "alpine", "oci:new"], "^copy alpine: want docker://REF"),
    (["oci:LAYOUT:one:1", "oci:ODD", "docker://HOST/"], "image a b: invalid reference format"),
    (["-n", "S/one:1", "oci-archive:there"], "there is there already, and an archive is written anew"),
    (["--convert", "zip", "S/one:1", "oci:new"], "invalid format 'zip', not oci or docker"),
    (["--convert", "oci", "--format", "docker", "S/one:1", "oci:new"], "--format and --convert differ"),
    (["--convert", "oci", "--referrers", "S/one:1", "oci:new"], "does not follow it into another format"),
    (["S/one:1", "S/two:1", "oci:new", "--creds", "a:b", "docker://HOST/"], None)])
def test_what_can_not_be_meant_is_refused_before_anything_is_asked(
        call: Call, source: Site, target: FaultProxy, layout: Layout, home: Path, tmp_path: Path,
        args: List[str], text: str) -> None:
    (home / "there").write_bytes(b"x")
    layout.image(images.specs(1), "one:1")
    Layout(tmp_path / "other").image(images.specs(1), "one:1")
    Layout(tmp_path / "odd").image(images.specs(1), "a b")
    words = {"S": "docker://%s/library" % source.host, "HOST": target.host, "LAYOUT": str(layout.root),
             "OTHER": str(tmp_path / "other"), "ODD": str(tmp_path / "odd")}
    done = call("copy", *(re.sub("HOST|LAYOUT|OTHER|ODD|^S", lambda match: words[match.group()], arg) for arg in args))
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    line = done.err[len("minipull: "):].replace(target.host, "HOST")
    for word in ("LAYOUT", "OTHER"):
        line = line.replace(words[word], word)
    assert text is None or re.search(text, line), line
    assert target.hits == {} and source.log == [] and not (home / "new").exists()
    assert (home / "there").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["docker", "oci", "oci-archive"])
def test_the_first_failure_ends_a_copy_or_with_keep_going_none_does(
        call: Call, published: str, target: FaultProxy, home: Path, kind: str) -> None:
    place = {"docker": "docker://%s/" % target.host}.get(kind, "%s:new" % kind)
    names = ["one:1", "none:1", "none:2", "two:1"]
    places = ["docker://%s/library/%s" % (published, name) for name in names]
    done = call("copy", "--progress", "none", *places, "oci-archive:missing", place)
    assert (done.code, done.out) == (7, "") and done.line.endswith(": open missing: No such file or directory\n")
    done = call("copy", "--progress", "none", *places, place)
    assert done.code == 3 and "none:1: manifest unknown" in done.line
    first = [] if kind == "oci-archive" else ["one"]  # an archive is written in one step, or not at all
    assert re.findall("library/(.*):1@", done.out) == first
    assert summary(done).startswith("Copied %d of 4 images, " % len(first)) and summary(done).endswith("; 1 failed")
    assert (home / "new").exists() == (kind == "oci")
    done = call("copy", "-k", "--progress", "none", *places[:2], "oci-archive:missing", *places[2:], place)
    assert [re.findall("[a-z]+:[12]: manifest unknown|open missing", line) for line in done.err.splitlines()] == [
        ["none:1: manifest unknown"], ["open missing"], ["none:2: manifest unknown"]]
    assert done.code == 3 and re.findall("library/(.*):1@", done.out) == ["one", "two"]
    assert re.match("Copied 2 of 5 images, .*; 3 failed$", summary(done))
    if kind == "oci-archive":
        assert call("check", "new").code == 0
        done = call("copy", "-k", "--progress", "none", *places[1:3], "oci-archive:nothing")
        assert done.code == 3 and done.err.count("\n") == 2 and not (home / "nothing").exists()


def test_a_layout_is_copied_whole_only_where_each_image_has_a_place(call: Call, layout: Layout, home: Path) -> None:
    done = call("copy", "oci:%s" % layout.root, "oci:new")
    assert done.code == 3 and done.line.endswith("no image without a name; there is one:1, one:2, two:1\n")
    assert not (home / "new").exists()


def test_rows_say_what_became_of_each_image(call: Call, published: str, layout: Layout) -> None:
    places = ["docker://%s/library/%s" % (published, name) for name in ("one:1", "none:1", "two:1")]
    digest = layout.resolve("one:1")["digest"]
    assert call("copy", "-q", places[2], "oci:new:%s/library/two:1" % published).code == 0
    rows = call("copy", "-k", "-n", "--format", "json", *places, "oci:new").json
    name = "%s/library/one:1" % published
    size = rows[0].pop("bytes")
    nothing = {"there_blobs": 0, "there_bytes": 0, "mounted_blobs": 0, "mounted_bytes": 0}
    assert rows[0] == {
        "source": places[0], "target": "oci:new:" + name, "name": name, "digest": digest, "source_digest": digest,
        "result": "copied", "blobs": 2, **nothing, "there_blobs": 2, "there_bytes": rows[0]["there_bytes"]}
    assert size > 0 and rows[0]["there_bytes"] > 0
    assert [row["result"] for row in rows] == ["copied", "failed", "there"]
    assert "manifest unknown" in rows[1]["error"] and rows[1]["digest"] == "" and "error" not in rows[2]
    assert rows[2]["digest"] == layout.resolve("two:1")["digest"]
    [row] = call("copy", "--format", "json", "--convert", "docker", places[0], "oci:other").json
    assert row["source_digest"] == digest != row["digest"] and row["name"] == "other"
    for refused in (["alpine", "oci:x"], [places[0], places[2], "store:x"]):
        done = call("copy", "--format", "json", *refused)
        assert (done.code, done.out) == (2, "")


def test_a_list_of_one_image_is_a_list(call: Call, published: str, layout: Layout, home: Path) -> None:
    (home / "list").write_text("%s/library/one:1\n" % published)
    done = call("copy", "@list", "oci:new")
    assert done.out.startswith("%s/library/one:1@%s\nCopied 1 of 1 images, " % (
        published, layout.resolve("one:1")["digest"]))
    assert entries(home / "new")[0]["annotations"][images.NAME] == "%s/library/one:1" % published


@pytest.mark.parametrize("flags, env", [
    (["--convert", "docker"], {}), (["--format", "docker"], {}), ([], {"MINIPULL_CONVERT": "docker"}),
    (["--convert", "docker", "--format", "docker"], {}), (["--convert", "docker", "--format", "text"], {})])
def test_convert_says_plainly_what_format_does(
        call: Call, layout: Layout, home: Path, flags: List[str], env: Dict[str, str]) -> None:
    assert call("copy", "-q", *flags, "oci:%s:one:1" % layout.root, "oci:new:x", env=env).code == 0
    [entry] = json.loads((home / "new" / "index.json").read_text())["manifests"]
    assert entry["mediaType"] == images.DOCKER_MANIFEST


@pytest.mark.parametrize("tags", ["all", "glob", "stored"])
@pytest.mark.parametrize("flags, copied", [
    (["--convert", "docker"], False), (["--verify-key", "KEY"], False), (["--convert", "oci"], True),
    (["--compress", "gzip"], True), ([], True)])
def test_tags_of_signatures_are_copied_where_they_can_be(
        call: Call, source: Site, layout: Layout, home: Path, flags: List[str], copied: bool, tags: str) -> None:
    digest = str(layout.resolve("two:1")["digest"])
    sign(layout, digest, name="two:%s.sig" % digest.replace(":", "-"))
    assert call("copy", "-q", "oci:%s" % layout.root, "docker://%s/" % source.host).code == 0
    place = "docker://%s/library/two" % source.host
    if tags == "stored":
        assert call("copy", "-q", "-a", place, "store:").code == 0
        place = "store:%s/library/two" % source.host
    operands = [place + ":*"] if tags == "glob" else ["-a", place]
    flags = [key_file(home) if flag == "KEY" else flag for flag in flags]
    done = call("copy", "--format", "json", *flags, *operands, "oci:new")
    assert done.code == 0, done.err
    assert [row["name"].rpartition(":")[2] for row in done.json] == [
        "1", *([digest.replace(":", "-") + ".sig"] if copied else [])]


def test_a_dry_run_writes_nothing_on_disk(call: Call, published: str, layout: Layout, home: Path, root: Path) -> None:
    places = ["docker://%s/library/%s" % (published, name) for name in ("one:1", "one:2")]
    for place in ("oci:new", "oci-archive:new", "store:"):
        done = call("copy", "--dry-run", *places, place)
        first, second, last = done.out.splitlines()
        assert done.code == 0 and done.err == ""
        assert re.match(r"\S+one:1@%s: would move 4 blobs, \S+kB$" % (
            layout.resolve("one:1")["digest"]), first)
        assert "one:2@" in second and ": would move 2 blobs, " in second and "; 2 blobs, " in second
        assert last.startswith("would move 6 blobs, ")
    assert list(home.iterdir()) == [] and not root.exists()
    (home / "d").mkdir()
    done = call("copy", "--dry-run", *places, "oci-archive:d")
    assert done.code == 7 and done.line.endswith("write d: Is a directory\n")
    done = call("copy", "--dry-run", places[0], "store:x")
    assert re.match(r"docker.io/library/x:latest@sha256:\S+: would move 4 blobs, ", done.out) and done.code == 0
    assert call("copy", "-q", *places, "store:").code == 0
    done = call("copy", "--dry-run", "-n", *places, "store:")
    assert done.out.count(" is there already\n") == 2 and summary(done).startswith("would move 0 blobs, 0B")
