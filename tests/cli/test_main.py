# SPDX-License-Identifier: Apache-2.0
"""The command line: words, exit codes, JSON keys, and what signals leave behind."""
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import clean_env, end, free_port, minipull_env, wait_until
from tests.kit.images import Layout, Spec
from minipull.cli import main as cli
from minipull.cli import store as commands
from tests.kit.servers import ScriptedServer, Uploads, content, drip, error, head, reply, send

KEYS = {"name", "digest", "image_id", "platform", "size", "created"}


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1 and self.err.startswith("minipull: "), self.err
        return self.err


Call = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def call(home: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process, with an environment of its own."""
    monkeypatch.chdir(home)

    def run(*args: Union[str, Path], env: Optional[Dict[str, str]] = None) -> Result:
        for name in list(os.environ):
            if not name.startswith("COVERAGE"):
                monkeypatch.delenv(name)
        for name, value in {**clean_env(home), "MINIPULL_ROOT": str(root), **(env or {})}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = cli.main([str(arg) for arg in args])
        return Result(code, *capfd.readouterr())
    return run


@pytest.fixture
def layout(server: ScriptedServer, tmp_path: Path) -> Layout:
    """Two tags of ``r`` on the server: latest and other, which shares its first layer."""
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(2, 9000), "latest")
    layout.image(images.specs(1, 9000), "other")
    server.serve(layout.root, "r")
    return layout


@pytest.fixture
def ref(server: ScriptedServer, layout: Layout) -> str:
    return server.host + "/r"


def digest(layout: Layout, name: str = "latest") -> str:
    return str(layout.resolve(name)["digest"])


# -- the parser ------------------------------------------------------------------


@pytest.mark.parametrize("args", [
    [], ["frob"], ["pull"], ["pull", "a", "--frob"], ["pull", "a", "--cred", "x"], ["tag", "a"],
    ["pull", "a", "--format", "xml"], ["--root"], ["pull", "\x1b[31m", "\n", "--x\n\x1b"]])
def test_a_wrong_use_is_one_line_and_exit_2(call: Call, args: List[str]) -> None:
    done = call(*args)
    assert done.code == 2 and done.out == ""
    assert "\x1b" not in done.line


def test_every_command_explains_itself_with_an_example(call: Call) -> None:
    commands = "pull push images inspect tag rm gc check tags manifest digest".split()
    for name in commands:
        done = call(name, "--help")
        assert done.code == 0 and "example: minipull " + name in done.out and done.err == ""
    assert "example: minipull pull" in call("--help").out


@pytest.mark.parametrize("args", [["--version"], ["-v", "--version"]])
def test_the_version_is_told(call: Call, args: List[str]) -> None:
    assert call(*args).out == "minipull %s\n" % minipull.__version__


# -- pull ------------------------------------------------------------------------


def test_pull_says_what_docker_says(call: Call, ref: str, layout: Layout) -> None:
    done = call("pull", ref)
    last = "Digest: %s\nStatus: %s %s:latest\n%s:latest\n"
    assert done.code == 0
    assert done.out == "Using default tag: latest\n" + last % (
        digest(layout), "Downloaded newer image for", ref, ref)
    lines = done.err.splitlines()
    assert lines[0] == "latest: Pulling from r"
    for words in ("Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"):
        assert sum(line.endswith(": " + words) for line in lines) == 2, words
    assert call("pull", "docker://%s:latest" % ref).out == last % (
        digest(layout), "Image is up to date for", ref, ref)


def test_pull_quiet_says_name_and_digest_only(call: Call, ref: str, layout: Layout) -> None:
    expected = "%s@%s\n" % (ref, digest(layout))
    for args, env in ((["-q"], {}), ([], {"MINIPULL_QUIET": "1"})):
        done = call("pull", *args, ref, env=env)
        assert (done.code, done.out, done.err) == (0, expected, "")
    done = call("pull", "-q", "--progress", "plain", ref)
    assert done.out == expected and done.err.startswith("latest: Pulling from r\n")
    assert call("pull", "-q", ref, env={"MINIPULL_PROGRESS": "json"}).err == ""


def test_pull_json_is_an_array_of_what_was_pulled(call: Call, ref: str, layout: Layout) -> None:
    for args in ([], ["-q"]):
        found = call("pull", "--format", "json", *args, ref, ref + ":other").json
        assert [item["digest"] for item in found] == [digest(layout), digest(layout, "other")]
        assert KEYS <= set(found[0])
    assert found[0]["name"] == ref + ":latest" and found[0]["platform"] == "linux/amd64"
    assert found[0]["created"] == images.CREATED and found[0]["size"] > 1000


def test_pull_progress_json_is_the_engines_objects(call: Call, ref: str) -> None:
    events = [json.loads(line) for line in call("pull", "--progress", "json", ref).err.splitlines()]
    assert events[0] == {"status": "Pulling from r", "id": "latest"}
    assert {"Pulling fs layer", "Downloading", "Pull complete"} <= {event["status"] for event in events}


def test_pull_all_tags_takes_every_tag(call: Call, ref: str, layout: Layout) -> None:
    done = call("pull", "-a", ref)
    assert done.out == "Digest: %s\nDigest: %s\nStatus: Downloaded newer image for %s\n%s\n" % (
        digest(layout), digest(layout, "other"), ref, ref)
    assert {item["name"] for item in call("images", "--format", "json").json} == {
        ref + ":latest", ref + ":other"}
    assert "Image is up to date" in call("pull", "-a", ref).out
    for name in (ref + ":latest", ref + "@" + digest(layout)):
        assert "tag can't be used with --all-tags" in call("pull", "-a", name).line


def test_a_pull_of_several_fails_for_those_that_fail(
        call: Call, ref: str, layout: Layout, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/nope", error(404, "MANIFEST_UNKNOWN"))
    server.on("GET", "/manifests/odd", reply(200, b"{}", {"Content-Type": images.OCI_MANIFEST}))
    done = call("pull", "--progress", "none", ref + ":nope", ref, ref + ":odd", ref)
    assert done.code == 3
    assert done.out.count("Status: Downloaded newer image for %s:latest" % ref) == 1
    first, second = done.err.splitlines()
    assert first.startswith("minipull: pull %s:nope: manifest unknown" % ref)
    assert second.startswith("minipull: pull %s:odd: manifest: " % ref)
    assert [item["name"] for item in call("images", "--format", "json").json] == [ref + ":latest"]


def test_pull_takes_platforms(call: Call, server: ScriptedServer, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "multi")
    server.serve(layout.root, "m")
    ref = server.host + "/m"
    arm = made["linux/arm64/v8"].config["digest"]
    for args, env in (([], {"DOCKER_DEFAULT_PLATFORM": "linux/arm64"}), (["--platform", "linux/arm64"], {})):
        found = call("pull", "--format", "json", *args, ref, env=env).json[0]
        assert (found["image_id"], found["digest"]) == (arm, index.digest)
    done = call("pull", "--all-platforms", "--format", "json", ref, env={"MINIPULL_PLATFORM": "linux/arm64"})
    assert (done.json[0]["image_id"], done.json[0]["platform"]) == (index.digest, "")
    assert call("pull", "--all-platforms", "--platform", "linux/arm64", ref).code == 2
    assert call("pull", "--platform", "linux/s390x", ref).code == 3
    assert call("pull", "--platform", "///", ref).code == 2
    shown = call("inspect", ref).json
    assert [child["digest"] for child in shown["manifests"]][:1] == [made["linux/amd64"].digest]


def test_flags_reach_the_network(call: Call, ref: str, server: ScriptedServer) -> None:
    basic = error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'})
    server.on("GET", "/manifests/latest", basic, content(b"{}"))
    call("pull", "--creds", "user:password", "--header", "X-Test: yes", ref)
    first, second = server.seen("GET", "/manifests/")
    assert "authorization" not in first.headers and second.headers["authorization"].startswith("Basic ")
    assert second.headers["x-test"] == "yes" and second.headers["user-agent"].startswith("minipull/")
    assert "for one registry" in call("pull", "--creds", "u:p", ref, "localhost:1/x").line


def test_a_warning_is_progress(call: Call, ref: str, home: Path, server: ScriptedServer) -> None:
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text('{"credsStore": "absent"}')
    server.on("GET", "/manifests/latest", error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'}))
    done = call("pull", ref)
    assert done.code == 4
    assert "warning: docker-credential-absent: not found on PATH" in done.err


# -- push ------------------------------------------------------------------------


@pytest.fixture
def target(call: Call, ref: str, server: ScriptedServer) -> Uploads:
    """A registry that has nothing, and ``ref`` with both its tags in the store."""
    assert call("pull", "-q", "-a", ref).code == 0
    return Uploads(server)


def test_push_says_what_docker_says(call: Call, ref: str, layout: Layout, target: Uploads) -> None:
    raw = layout.read(digest(layout))
    last = "latest: digest: %s size: %d\n" % (digest(layout), len(raw))
    done = call("push", ref)
    assert (done.code, done.out) == (0, "Using default tag: latest\n" + last)
    lines = done.err.splitlines()
    assert lines[0] == "The push refers to repository [%s]" % ref
    for words in ("Preparing", "Pushed"):
        assert sum(line.endswith(": " + words) for line in lines) == 2, words
    assert target.manifests["latest"] == raw
    done = call("push", "docker://%s:latest" % ref)
    assert done.out == last
    assert sum(line.endswith(": Layer already exists") for line in done.err.splitlines()) == 2


def test_push_quiet_says_name_and_digest_only(call: Call, ref: str, layout: Layout, target: Uploads) -> None:
    done = call("push", "-q", ref)
    assert (done.code, done.out, done.err) == (0, "%s@%s\n" % (ref, digest(layout)), "")


def test_push_json_is_an_array_of_what_was_pushed(
        call: Call, ref: str, layout: Layout, target: Uploads) -> None:
    manifest = json.loads(layout.read(digest(layout)))
    config = json.loads(layout.read(manifest["config"]["digest"]))
    for result in ("Pushed", "Layer already exists"):
        done = call("push", "--format", "json", ref)
        assert done.json == [{
            "name": ref + ":latest", "tag": "latest", "digest": digest(layout),
            "size": len(layout.read(digest(layout))),
            "layers": [{"diff_id": diff_id, "digest": layer["digest"], "size": layer["size"], "result": result}
                       for diff_id, layer in zip(config["rootfs"]["diff_ids"], manifest["layers"])]}]
    found = call("push", "--format", "json", "-q", "-a", ref)
    assert [item["tag"] for item in found.json] == ["latest", "other"] and found.err == ""


def test_push_progress_json_is_the_engines_objects(call: Call, ref: str, target: Uploads) -> None:
    events = [json.loads(line) for line in call("push", "--progress", "json", ref).err.splitlines()]
    assert events[0] == {"status": "The push refers to repository [%s]" % ref}
    assert {"Preparing", "Pushed"} <= {event["status"] for event in events}


def test_push_all_tags_and_to_another_name(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, target: Uploads) -> None:
    done = call("push", "-a", ref)
    assert done.out == "".join("%s: digest: %s size: %d\n" % (
        tag, digest(layout, tag), len(layout.read(digest(layout, tag)))) for tag in ("latest", "other"))
    for args, names in (((ref + ":other", "docker://%s/s" % server.host), {"other"}),
                        ((ref, server.host + "/s:1"), {"1"}), (("-a", ref, server.host + "/s"), {"latest", "other"})):
        other = Uploads(server, "s")
        assert call("push", *args).code == 0
        assert {name for name in other.manifests if ":" not in name} == names


def test_push_takes_a_chunk_size(call: Call, ref: str, server: ScriptedServer, target: Uploads) -> None:
    assert call("push", "--chunk-size", "1k", ref).code == 0
    sizes = [int(request.headers["content-length"]) for request in server.seen("PATCH")]
    assert len(sizes) > 4 and max(sizes) == 1024


@pytest.mark.parametrize("args, code, words", [
    (["REF", "--chunk-size", "10q"], 2, "--chunk-size must be a size"),
    (["REF", "a//b"], 2, "a//b: "), (["REF@DIGEST"], 2, "cannot push a digest reference"),
    (["-a", "REF:latest"], 2, "tag can't be used with --all-tags/-a"),
    (["REF:nope"], 3, "tag does not exist: REF:nope"),
    (["nowhere"], 3, "An image does not exist locally with the tag: nowhere"),
    (["REF", "--jobs", "0"], 2, "--jobs must be a number"),
])
def test_what_can_not_be_pushed_is_one_line(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, target: Uploads, args: List[str],
        code: int, words: str) -> None:
    words, *given = [text.replace("REF", ref).replace("DIGEST", digest(layout)) for text in [words, *args]]
    done = call("push", "-q", *given)
    assert (done.code, done.out) == (code, "")
    assert words in done.line
    assert server.seen("POST|PUT") == []


@pytest.mark.parametrize("code, method, script, words", [
    (4, "POST", error(403, "DENIED"), "denied"), (4, "POST", error(401, "UNAUTHORIZED"), "unauthorized"),
    (5, "PUT", error(413), "too much for one request, try --chunk-size"),
    (7, "PUT", error(400, "DIGEST_INVALID"), "in the store is corrupt; run minipull check"),
    (8, "POST", error(429, "TOOMANYREQUESTS", {"Retry-After": "3600"}), "try again in 3600 seconds"),
    (9, "POST", reply(302, headers={"Location": "http://127.0.0.2/"}), "refused"),
    (5, "POST", error(500), "500"), (5, "POST", reply(202), "upload without a Location"),
])
def test_the_exit_code_of_a_push_says_whose_fault_it_is(
        call: Call, ref: str, server: ScriptedServer, target: Uploads, code: int, method: str, script: Any,
        words: str) -> None:
    server.on(method, "/blobs/uploads/", script)
    done = call("push", "-q", "--attempts", "1", ref)
    assert done.code == code and done.out == ""
    assert done.line.startswith("minipull: push %s: " % ref) and words in done.line


# -- exit codes ------------------------------------------------------------------


def wrong_blob(server: ScriptedServer, layout: Layout) -> None:
    server.on("GET", "/blobs/", reply(200, b"x"))


@pytest.mark.parametrize("code, script, words", [
    (3, error(404, "MANIFEST_UNKNOWN"), "manifest unknown"),
    (3, error(404, "NAME_UNKNOWN"), "name unknown"),
    (4, error(401, "UNAUTHORIZED"), "unauthorized"),
    (4, error(403, "DENIED"), "denied"),
    (6, reply(200, '{"schemaVersion":2,"manifests":[],"layers":[]}', {"Content-Type": images.OCI_INDEX}), ""),
    (8, error(429, "TOOMANYREQUESTS", {"Retry-After": "3600"}), "try again in 3600 seconds"),
    (9, reply(302, headers={"Location": "http://user@[::1/"}), "refused"),
    (6, reply(200, json.dumps({"schemaVersion": 1, "fsLayers": []}), {"Content-Type": "application/json"}),
     "0 signatures, want 1 to 16"),
])
def test_the_exit_code_says_whose_fault_it_is(
        call: Call, ref: str, server: ScriptedServer, code: int, script: Any, words: str) -> None:
    server.on("GET", "/manifests/latest", script)
    done = call("pull", "--progress", "none", ref + ":latest")
    assert done.code == code
    assert done.line.startswith("minipull: pull %s:latest: " % ref) and words in done.line
    assert call("images", "--format", "json").json == []


@pytest.mark.parametrize("name", ["a//b", "-x", "UPPER/../x", "x" * 300, "a:" + "t" * 129, "a@sha256:1",
                                  "host:99999/x", "a\n", "\x1b[31m", "", "user@host/x"])
def test_a_malformed_name_is_exit_2_before_any_request(call: Call, root: Path, name: str) -> None:
    for command in ("pull", "push", "rm", "tags", "manifest", "digest"):
        done = call(command, "--", name)
        assert done.code == 2
        assert "\x1b" not in done.line
    assert not root.exists()


def test_a_dead_host_is_exit_5(call: Call) -> None:
    dead = "127.0.0.1:%d" % free_port()
    done = call("pull", "--progress", "none", "--plain-http", dead + "/r:1")
    assert done.code == 5
    assert done.line == "minipull: pull %s/r:1: %s: connection refused\n" % (dead, dead)


def test_a_wrong_blob_is_exit_6(call: Call, ref: str, server: ScriptedServer, layout: Layout) -> None:
    wrong_blob(server, layout)
    done = call("pull", "--progress", "none", ref + ":latest")
    assert done.code == 6 and "size" in done.line


def test_what_a_registry_says_cannot_steer_the_terminal(call: Call, ref: str, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/latest", reply(403, "\x1b]0;owned\x07\r\nline\u202e"))
    done = call("pull", ref + ":latest")
    assert done.code == 4
    assert not set(done.line[:-1]) & set("\x1b\x07\r\u202e")


def test_a_bug_is_one_line_that_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: object, flags: object) -> int:
        raise ValueError("two\nlines")

    monkeypatch.setitem(commands.COMMANDS, "images", broken)
    done = call("images")
    assert (done.code, done.line) == (
        1, "minipull: internal error: ValueError: two; lines (run with -v for the traceback)\n")
    done = call("-v", "images")
    assert done.code == 1 and "Traceback" in done.err and "in broken" in done.err
    assert done.err.endswith("\nminipull: internal error: ValueError: two; lines\n")


def test_a_bad_setting_is_said_before_anything_is_asked(call: Call, ref: str, server: ScriptedServer) -> None:
    for args in (["--progress", "fancy"], ["--jobs", "0"], ["--attempts", "x"], ["--timeout", "-1"],
                 ["--tls-verify", "maybe"], ["--header", "x"], ["--authfile", "/nonexistent"]):
        assert call("pull", *args, ref + ":latest").code == 2
    assert "does not exist" in call("--config", "/nonexistent", "images").line
    assert server.connections == 0


# -- questions to a registry -----------------------------------------------------


def test_tags_are_listed(call: Call, ref: str) -> None:
    assert call("tags", ref).out == "latest\nother\n"
    assert call("tags", "--format", "json", ref).json == [
        {"name": ref + ":latest", "tag": "latest"}, {"name": ref + ":other", "tag": "other"}]
    assert "want a repository" in call("tags", ref + ":latest").line
    done = call("tags", ref.replace("/r", "/absent"))
    assert done.code == 5 and done.line.startswith("minipull: list tags of ")


def test_a_manifest_is_printed_as_it_is(call: Call, ref: str, layout: Layout) -> None:
    raw = layout.read(digest(layout))
    assert call("manifest", ref).out.encode() == raw
    found = call("manifest", "--format", "json", ref + "@" + digest(layout)).json
    assert (found["digest"], found["size"], found["media_type"]) == (
        digest(layout), len(raw), images.OCI_MANIFEST)
    assert found["manifest"] == json.loads(raw.decode())


def test_a_digest_costs_one_head(call: Call, ref: str, layout: Layout, server: ScriptedServer) -> None:
    assert call("digest", ref).out == digest(layout) + "\n"
    assert [request.method for request in server.requests] == ["HEAD"]
    found = call("digest", "--format", "json", "%s@%s" % (ref, digest(layout))).json
    assert found == {"name": "%s@%s" % (ref, digest(layout)), "digest": digest(layout)}
    server.on("HEAD", "/manifests/latest", error(405))
    assert call("digest", ref).out == digest(layout) + "\n"


# -- the store -------------------------------------------------------------------


def test_images_are_listed(call: Call, ref: str, layout: Layout) -> None:
    assert call("images").out.split() == ["NAME", "IMAGE", "ID", "PLATFORM", "CREATED", "SIZE"]
    assert call("images", "--format", "json").json == []
    call("pull", ref)
    heading, row = call("images").out.splitlines()
    assert row.split()[0] == ref + ":latest" and "linux/amd64   2024-01-02" in row
    assert heading.index("PLATFORM") == row.index("linux/amd64")
    assert set(call("images", "--format", "json").json[0]) == KEYS


def test_an_image_is_inspected(call: Call, ref: str, layout: Layout) -> None:
    call("pull", ref)
    shown = call("inspect", ref).json
    assert KEYS <= set(shown) and shown["config"]["created"] == images.CREATED
    assert [layer["diff_id"] for layer in shown["layers"]] == shown["config"]["rootfs"]["diff_ids"]
    assert call("inspect", shown["image_id"][7:19]).json == shown
    done = call("inspect", ref + ":absent")
    assert done.code == 3 and "No such image" in done.line


def test_an_image_is_given_another_name(call: Call, ref: str, root: Path) -> None:
    assert call("tag", ref, "other").code == 3
    assert not root.exists()
    call("pull", ref)
    assert call("tag", ref, "other").out == ""
    tagged = call("tag", "--format", "json", ref, "docker://other:2").json
    assert tagged[0]["name"] == "docker.io/library/other:2"
    assert call("tag", ref, "other@sha256:" + "0" * 64).code == 2
    assert len(call("images", "--format", "json").json) == 3


def test_names_are_forgotten_and_their_blobs_collected(call: Call, ref: str, root: Path) -> None:
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


# -- streams ---------------------------------------------------------------------


@pytest.fixture
def stored(call: Call, ref: str) -> str:
    call("pull", ref)
    return ref


def shell(home: Path, root: Path, command: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of sh in which $M is minipull."""
    env = minipull_env(home, {"MINIPULL_ROOT": str(root)})
    line = command.replace("$M", "%s -m minipull" % sys.executable)
    return subprocess.run(["sh", "-c", line], env=env, cwd=str(home), timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_reader_that_leaves_is_no_error_to_talk_about(home: Path, root: Path, stored: str) -> None:
    done = shell(home, root, "{ $M images; echo $? >&2; } | true")
    assert done.stderr in (b"141\n", b"0\n")
    read, write = os.pipe()
    os.close(read)
    env = minipull_env(home, {"MINIPULL_ROOT": str(root)})
    for args in (["images"], ["inspect", stored], ["manifest", stored], ["--help"], ["--version"]):
        gone = subprocess.run([sys.executable, "-m", "minipull", *args], env=env, cwd=str(home),
                              stdout=write, stderr=subprocess.PIPE, timeout=60)
        assert (gone.returncode, gone.stderr) == (141, b""), args
    os.close(write)


def test_results_that_cannot_be_written_are_exit_7(home: Path, root: Path, stored: str) -> None:
    done = shell(home, root, "$M images >/dev/full")
    assert (done.returncode, done.stderr) == (7, b"minipull: write to stdout: No space left on device\n")
    assert shell(home, root, "$M --version >/dev/full").returncode == 1


def test_closed_streams_stop_no_pull(home: Path, root: Path, ref: str) -> None:
    assert shell(home, root, "$M pull %s >&- 2>&-" % ref).returncode == 0
    done = shell(home, root, "$M inspect absent 2>&-")
    assert (done.returncode, done.stdout) == (3, b"")
    assert shell(home, root, "$M manifest %s >&-" % ref).returncode == 0


def test_what_a_stream_cannot_spell_is_escaped(
        call: Call, ref: str, server: ScriptedServer, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.image([], "odd", config={"created": "2024年1月2日"})
    server.serve(layout.root, "r")
    call("pull", ref + ":odd")
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["images"]) == 0
    stream.seek(0)
    assert "2024\\u5e741\\u67082\\u65e5" in stream.read()


def test_a_manifest_cannot_steer_the_terminal(home: Path, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/", reply(200, b'{"a":"\x1b[31m"}'))
    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "-m", "minipull", "manifest", server.host + "/r"],
                          env=minipull_env(home), cwd=str(home), stdout=slave, timeout=60)
    assert done.returncode == 0
    assert b"\x1b" not in os.read(master, 4096)
    os.close(master)
    os.close(slave)


def test_main_works_below_the_main_thread_and_leaves_the_handlers_alone(call: Call) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    codes: List[int] = []
    thread = threading.Thread(target=lambda: codes.append(call("images").code))
    thread.start()
    thread.join(20)
    assert codes == [0] and call("images").code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# -- signals ---------------------------------------------------------------------


@pytest.fixture
def slow(server: ScriptedServer, tmp_path: Path) -> Layout:
    """A layer of which 60 kB come at once, and the rest never ends."""
    layout = Layout(tmp_path / "slow")
    made = layout.image([Spec(200000)], "slow")
    server.serve(layout.root, "slow")
    layer = made.layers[0].descriptor["digest"]
    data = layout.read(layer)
    server.on("GET", "/blobs/" + layer, [
        send(head(200, {"Content-Length": str(len(data))})), drip(data[:60000], 30000, 0.1),
        drip(data[60000:], 1, 0.05)])
    return layout


@pytest.fixture
def pulling(home: Path, root: Path, server: ScriptedServer, slow: Layout) -> "Iterator[subprocess.Popen[bytes]]":
    """``minipull pull`` in the middle of a layer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "pull", server.host + "/slow:slow"], cwd=str(home),
        env=minipull_env(home, {"MINIPULL_ROOT": str(root)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    layer = json.loads(slow.read(digest(slow, "slow")))["layers"][0]["digest"]
    partial = root / "ingest" / layer.replace(":", "-")
    try:
        wait_until(lambda: partial.exists() and partial.stat().st_size >= 60000, "pull", process)
        yield process
    finally:
        end(process)
        process.communicate()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_pull_and_keeps_what_came(
        call: Call, root: Path, server: ScriptedServer, slow: Layout,
        pulling: "subprocess.Popen[bytes]", number: int, code: int) -> None:
    pulling.send_signal(number)
    out, err = pulling.communicate(timeout=10)
    assert pulling.returncode == code
    assert b"Traceback" not in err and b"minipull:" not in err and b"Status" not in out
    assert call("check").code == 0 and call("images", "--format", "json").json == []
    layer = json.loads(slow.read(digest(slow, "slow")))["layers"][0]["digest"]
    server.on("GET", "/blobs/" + layer, content(slow.read(layer)))
    assert call("pull", server.host + "/slow:slow").code == 0
    assert int(server.seen("GET", "/blobs/" + layer)[-1].headers["range"][6:-1]) >= 60000
    assert call("check").code == 0


@pytest.fixture
def stuck(home: Path, server: ScriptedServer) -> "Iterator[subprocess.Popen[bytes]]":
    """A command in a credential helper that does not answer, which nothing interrupts."""
    helper = home / "docker-credential-stuck"
    helper.write_text("#!/bin/sh\necho $$ >%s/pid\nexec sleep 60\n" % home)
    helper.chmod(0o755)
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text('{"credsStore": "stuck"}')
    server.on("GET", "/manifests/", error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'}))
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "manifest", server.host + "/r"], cwd=str(home),
        env=minipull_env(home, {"PATH": "%s:%s" % (home, clean_env(home)["PATH"])}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = home / "pid"
    try:
        wait_until(lambda: pid.exists() and pid.read_text() != "", "the helper", process)
        yield process
    finally:
        end(process)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        process.communicate()


def test_what_does_not_end_is_left_after_two_seconds(stuck: "subprocess.Popen[bytes]") -> None:
    begin = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    assert stuck.wait(10) == 130
    assert 1.5 < time.monotonic() - begin < 5


def test_a_second_signal_ends_it_at_once(stuck: "subprocess.Popen[bytes]") -> None:
    begin = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    threading.Event().wait(0.3)
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait(10) == 143
    assert time.monotonic() - begin < 1.5


# -- a full disk -----------------------------------------------------------------


def test_a_full_disk_is_exit_7_and_one_line(
        home: Path, root: Path, server: ScriptedServer, tmp_path: Path, call: Call) -> None:
    layout = Layout(tmp_path / "big")
    made = layout.image([Spec(400000, text=0.0)], "big")
    server.serve(layout.root, "big")
    ref = server.host + "/big:big"
    done = shell(home, root, "ulimit -f 200; $M pull -q " + ref)
    assert done.returncode == 7
    assert done.stderr.startswith(b"minipull: pull %s: " % ref.encode()) and done.stderr.count(b"\n") == 1
    assert b"File too large" in done.stderr
    assert not (root / "blobs" / "sha256" / made.layers[0].descriptor["digest"][7:]).exists()
    assert call("images", "--format", "json").json == []
    assert call("pull", ref).code == 0
    assert server.seen("GET", made.layers[0].descriptor["digest"])[-1].headers["range"]
    assert call("check").code == 0
