# SPDX-License-Identifier: Apache-2.0
"""Lists and globs: @FILE for REF..., the tags of a registry or of the store."""
import io
import sys
import threading
import types
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from minipull.cli import lists, registry
from minipull.cli.lists import expanded, operands
from minipull.errors import Error
from minipull.server import http as httpd
from tests.kit import images
from tests.kit.commands import Call
from tests.kit.images import Layout
from tests.kit.servers import ScriptedServer
from tests.kit.site import Site

TAGS = ["latest", "v1.0", "v1.1", "v2"]
D = "@sha256:" + "0" * 64


def read(*texts: str, places: bool = False, all_tags: bool = False, ids: bool = False) -> List[str]:
    tags = [TAGS[number] for number in (2, 0, 3, 1)]  # registries sort as they like
    return expanded(operands(texts, places, all_tags, ids), lambda prefix, name: tags)


@pytest.mark.parametrize("text, names", [
    (b"a:1\nb:2\n", ["a:1", "b:2"]),
    (b"\xef\xbb\xbf# ours\r\n\r\n  a:1\t # why\r\nb:2#3\r\n", None),
    (b"\xef\xbb\xbf# ours\r\n\r\n  a:1\t # why\r\nb:2\r\n", ["a:1", "b:2"]),
    (b"b:latest\na:1\ndocker.io/library/a:1\ndocker://a:1\nb\nb:latest", ["b", "a:1"]),
    (b"a:v1.*\nb:v?\na:v1.0\n[::1]:5000/c:[lm]*", [
        "a:v1.0", "a:v1.1", "b:v2", "[::1]:5000/c:latest"]),
    (b"docker://a:*", ["a:" + tag for tag in TAGS]),
    (b"a:1" + D.encode(), ["a:1" + D])])
def test_a_list_is_its_lines_each_once(tmp_path: Path, text: bytes, names: Any) -> None:
    (tmp_path / "list").write_bytes(text)
    argument = "@%s" % (tmp_path / "list")
    if names is None:
        with pytest.raises(Error, match="list:4: b:2#3: invalid reference format"):
            read(argument)
    else:
        assert read(argument) == names
        assert read("z", argument, argument, "z") == ["z"] + names


def test_places_of_a_copy_keep_their_prefix(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a:v2\nstore:a:v1.*\noci:dir*[:x\ndocker://q/b:1\nstore:\n")
    assert read("oci-archive:f*", "@%s" % (tmp_path / "list"), "docker://c", places=True) == [
        "oci-archive:f*", "docker://a:v2", "store:a:v1.0", "store:a:v1.1", "oci:dir*[:x", "docker://q/b:1",
        "store:", "docker://c"]
    assert read("docker://a", places=True, all_tags=True) == ["docker://a:" + tag for tag in TAGS]


def test_an_image_id_is_let_through_where_it_may_stand(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("f" * 64 + "\nabc123\n")
    argument = "@%s" % (tmp_path / "list")
    assert read(argument, ids=True) == ["f" * 64, "abc123"]
    with pytest.raises(Error, match="list:1: ffff.*hexadecimal"):
        read(argument)


BIG = b"a:1\n" + b"#" * (1 << 20)


@pytest.mark.parametrize("content, told", [
    (b"", "list LIST is empty"), (b"\n # a:1\n", "list LIST is empty"),
    (b"a:1\n@other\n", "LIST:2: a list can't be in a list"),
    (b"\x7fELF\0", "list LIST is no text in UTF-8"), ("a:1".encode("utf-16"), "list LIST is no text in UTF-8"),
    (b"a:1\0", "list LIST is no text in UTF-8"), (BIG, "list LIST is larger than 1048576 bytes"),
    (b"\xc3\xa9" * (1 << 19) + b"#", "list LIST is larger"),
    (b"a\n" * 10001, "list LIST has more than 10000 names"),
    (b"h:5000/a[1]", "LIST:1: h:5000/a.1.: invalid reference"),
    (b"a:1\n\nA B\n", "LIST:3: A B: "), (b"x\na*:1", "LIST:2: a.:1: .*only a tag may be a glob"),
    (b"x\n[exit 0, 0.2 s]", "LIST:2: .exit 0, 0.2 s.: "), (b"v1.*", "LIST:1: v1[.].: .*as in REPO:v1"),
    (b"a:v*" + D.encode(), "LIST:1: a:v.@sha256:.*only a tag may be a glob"),
    (b"a:v9*", "LIST:1: a:v9.: no tag matches"), (b"a:[", "LIST:1: a:.: no tag matches"),
    (b"\xc3\xa9:1", "LIST:1: .xe9:1: "), (b"a:1:*", "LIST:1: a:1:.: invalid reference format"),
    (None, "list LIST: there is no such file"), (Path, "list LIST: read LIST: Is a directory")])
def test_a_list_that_can_not_be_used_is_one_line(call: Call, tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "list"
    if content is Path:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(Error, match="^" + told.replace("LIST", str(path))) as caught:
        read("@%s" % path)
    assert caught.value.exit_code == (3 if "matches" in told else 2)
    for command in (["push"], ["rm"], ["check"]) if "matches" in told or content == BIG else ():
        assert call(*command, "@%s" % path).line == "minipull: %s\n" % caught.value


def test_a_command_has_at_most_10000_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lists, "MAX_NAMES", 5)
    with pytest.raises(Error, match="more than 5 images") as caught:
        read("a:*", "b:*")
    assert caught.value.exit_code == 2 and len(read("a:*", "a:v*")) == 4


def test_a_list_comes_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a:1\nb b\n")))
    with pytest.raises(Error, match="^stdin:2: b b"):
        read("@-")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a:1\n")))
    assert read("@-", "@-") == ["a:1"]
    monkeypatch.setattr(sys, "stdin", None)  # closed from the start
    with pytest.raises(Error, match="^list stdin is empty"):
        read("@-")


# -- commands ----------------------------------------------------------------------


@pytest.fixture
def host(server: ScriptedServer, tmp_path: Path) -> str:
    layout = Layout(tmp_path / "layout")
    for number, tag in enumerate(("v1.0", "v1.1", "v2")):
        layout.image(images.specs(1, 900, seed=number), tag)
    for repository in ("a", "b"):
        server.serve(layout.root, repository)
    return server.host


def names(call: Call) -> List[str]:
    return [row["name"].partition("/")[2] for row in call("images", "--format", "json").json]


def test_commands_take_lists_and_globs(
        call: Call, host: str, server: ScriptedServer, home: Path, tmp_path: Path) -> None:
    (home / "list").write_text("# ours\n%s/a:v1.*  # two\n\ndocker://%s/b:v2\n%s/a:v1.0\n%s/a:*.1\n" % (
        (host,) * 4))
    done = call("pull", "-q", "@list")
    assert (done.code, len(done.out.splitlines())) == (0, 3)
    assert names(call) == ["a:v1.0", "a:v1.1", "b:v2"]
    assert len(server.seen("GET", "/a/tags/list")) == 1
    assert call("check", "@list").code == 0
    assert call("save", "-o", tmp_path / "glob.tar", host + "/a:*", host + "/b:v?").code == 0
    assert call("save", "-o", tmp_path / "list.tar", "@list").code == 0
    assert (tmp_path / "glob.tar").read_bytes() == (tmp_path / "list.tar").read_bytes()
    digests = call("digest", "@list").out.split()
    assert digests == [row["digest"] for row in call("digest", "--format", "json", host + "/a:v1.*").json] + [
        call("digest", "--format", "json", host + "/b:v2").json["digest"]]
    assert call("digest", "-a", host + "/a").out.split()[:2] == digests[:2]
    done = call("rm", "@list", host + "/nothing:*")
    assert (done.code, done.line) == (3, "minipull: %s/nothing:*: no tag matches\n" % host)
    assert len(names(call)) == 3  # nothing has been done yet
    assert call("rm", "@list").out.splitlines()[-1] == "Untagged: %s/b:v2" % host and names(call) == []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Our own registry, which takes everything."""
    monkeypatch.setattr(httpd, "TICK", 0.005)
    site = Site(tmp_path / "served")
    yield site
    site.stop()


def test_a_list_is_pushed_each_image_under_its_own_name(
        call: Call, host: str, site: Site, home: Path, tmp_path: Path) -> None:
    call("pull", "-q", host + "/a:*")
    for name, tag in (("a:v1.0", "v1.0"), ("a:v1.1", "v1.1"), ("b:new", "v2")):
        call("tag", "%s/a:%s" % (host, tag), "%s/%s" % (site.host, name))
    (home / "list").write_text("%s/a:v1.*\n%s/b:new\n" % (site.host, site.host))
    done = call("push", "--format", "json", "@list")
    assert done.code == 0, done.err
    assert [row["name"] for row in done.json] == [
        "%s/%s" % (site.host, name) for name in ("a:v1.0", "a:v1.1", "b:new")]
    assert call("push", "-q", host + "/a:v*", site.host + "/c").code == 0
    assert call("tags", site.host + "/c").out.split() == ["v1.0", "v1.1", "v2"]
    for dest in ("c:1", "c"):
        done = call("push", "@list" if dest == "c" else host + "/a:v*", site.host + "/" + dest)
        assert (done.code, done.line) == (
            2, "minipull: DEST is for one image, or without a tag for those of one repository\n")


def test_the_pushes_of_other_repositories_go_on_after_one_that_failed(
        call: Call, host: str, site: Site, home: Path) -> None:
    call("pull", "-q", host + "/a:v2")
    call("tag", host + "/a:v2", site.host + "/b:1")
    (home / "list").write_text("%s/a:v2\n%s/b:1\n" % (host, site.host))
    done = call("push", "--format", "json", "--attempts", "1", "@list")
    assert done.code not in (0, 1) and "push %s/a" % host in done.err
    assert [row["name"] for row in done.json] == [site.host + "/b:1"]


def test_a_list_of_many_is_pulled_a_few_at_a_time(
        call: Call, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "layout")
    made = layout.image(images.specs(1, 900))
    for number in range(30):
        layout.name(made.descriptor, "n%d" % number)
    server.serve(layout.root, "a")
    most = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        start(thread)
        most.append(threading.active_count())

    monkeypatch.setattr(threading.Thread, "start", counted)
    before = threading.active_count()
    monkeypatch.setattr(registry, "MAX_PULLS", 2)
    assert call("pull", "-q", server.host + "/a:n*").code == 0
    assert len(names(call)) == 30 and max(most) < before + 25
