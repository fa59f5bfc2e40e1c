# SPDX-License-Identifier: Apache-2.0
"""pull, push, tags, manifest and digest: their words, and their JSON."""
import json
from pathlib import Path
from typing import Any, List

import pytest

from tests.kit import images
from tests.kit.commands import Call, digest
from tests.kit.images import Layout
from tests.kit.pulls import manifest_of, rewrite
from tests.kit.servers import ScriptedServer, Uploads, content, error, reply

KEYS = {"name", "digest", "image_id", "platform", "size", "created"}


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


def test_pull_progress_json_is_the_engines_objects(call: Call, ref: str, layout: Layout) -> None:
    events = [json.loads(line) for line in call("pull", "--progress", "json", ref).err.splitlines()]
    assert events[0] == {"status": "Pulling from r", "id": "latest"}
    assert {"Pulling fs layer", "Downloading", "Pull complete"} <= {event["status"] for event in events}
    assert events[-2:] == [{"status": "Digest: " + digest(layout)},
                           {"status": "Status: Downloaded newer image for %s:latest" % ref}]
    events = [json.loads(line) for line in call("pull", "-a", "--progress", "json", ref).err.splitlines()]
    assert events[-4:] == [{"status": text} for tag in ("latest", "other") for text in (
        "Digest: " + digest(layout, tag), "Status: %s for %s:%s" % (
            "Image is up to date" if tag == "latest" else "Downloaded newer image", ref, tag))]


def test_pull_all_tags_takes_every_tag(
        call: Call, ref: str, layout: Layout, server: ScriptedServer) -> None:
    server.on("GET", "^/v2/r/tags/list", reply(200, {"name": "r", "tags": ["other", "latest"]}))
    done = call("pull", "-a", ref)
    lines = "".join("Status: %%s for %s:%s@%s\n" % (ref, tag, digest(layout, tag)) for tag in ("latest", "other"))
    assert done.out == lines % (("Downloaded newer image",) * 2)
    assert {item["name"] for item in call("images", "--format", "json").json} == {
        ref + ":latest", ref + ":other"}
    for names in (["-a", ref], [ref + ":latest", ref + ":other"], [ref + ":*"]):
        assert call("pull", *names).out == lines % (("Image is up to date",) * 2)
    sha = digest(layout).replace(":", "-")
    for tag in (sha + ".sig", sha):
        layout.name(layout.resolve("latest"), tag)
    server.serve(layout.root, "r")
    for args in (["-a", ref], [ref + ":*"]):
        assert call("pull", *args).code == 0, "signatures are no images"
    assert len(call("images", "-a", "--format", "json").json) == 2
    for name in (ref + ":latest", ref + "@" + digest(layout)):
        assert "tag can't be used with --all-tags" in call("pull", "-a", name).line


def test_a_pull_of_several_fails_for_those_that_fail(
        call: Call, ref: str, layout: Layout, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/nope", error(404, "MANIFEST_UNKNOWN"))
    server.on("GET", "/manifests/odd", reply(200, b"{}", {"Content-Type": images.OCI_MANIFEST}))
    done = call("pull", "--progress", "none", ref + ":nope", ref, ref + ":odd", ref)
    assert done.code == 3
    assert done.out == "Using default tag: latest\nStatus: Downloaded newer image for %s:latest@%s\n" % (
        ref, digest(layout))
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


def test_credentials_and_headers_of_flags_are_sent_with_requests(call: Call, ref: str, server: ScriptedServer) -> None:
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


def test_push_progress_json_is_the_engines_objects(call: Call, ref: str, layout: Layout, target: Uploads) -> None:
    events = [json.loads(line) for line in call("push", "-a", "--progress", "json", ref).err.splitlines()]
    assert events[0] == {"status": "The push refers to repository [%s]" % ref}
    assert {"Preparing", "Pushed"} <= {event.get("status") for event in events}
    for tag in ("latest", "other"):
        size = len(layout.read(digest(layout, tag)))
        at = events.index({"status": "%s: digest: %s size: %d" % (tag, digest(layout, tag), size)})
        assert events[at + 1] == {
            "progressDetail": {}, "aux": {"Tag": tag, "Digest": digest(layout, tag), "Size": size}}


def test_push_all_tags_and_to_another_name(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, target: Uploads) -> None:
    lines = "".join("%s:%s: digest: %s size: %d\n" % (
        ref, tag, digest(layout, tag), len(layout.read(digest(layout, tag)))) for tag in ("latest", "other"))
    for several in (["-a", ref], [ref + ":*"]):
        assert call("push", *several).out == lines
    for args, names in (((ref + ":other", "docker://%s/s" % server.host), {"other"}),
                        ((ref, server.host + "/s:1"), {"1"}), (("-a", ref, server.host + "/s"), {"latest", "other"})):
        other = Uploads(server, "s")
        assert call("push", *args).code == 0
        assert {name for name in other.manifests if ":" not in name} == names


def test_push_takes_a_chunk_size(call: Call, ref: str, server: ScriptedServer, target: Uploads) -> None:
    assert call("push", "--chunk-size", "1k", ref).code == 0
    sizes = [int(request.headers["content-length"]) for request in server.seen("PATCH")]
    assert len(sizes) > 4 and max(sizes) == 1024


@pytest.mark.parametrize("command", [["push", "SOURCE", "TARGET:1"], ["copy", "docker://SOURCE", "docker://TARGET:1"]])
@pytest.mark.parametrize("flags", [[], ["--foreign"]])
def test_foreign_layers_go_along_if_asked_for(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, command: List[str], flags: List[str]) -> None:
    layers = manifest_of(layout)["layers"]
    rewrite(layout, layers=[dict(layers[0], urls=["https://a.invalid/"]), layers[1]])
    server.serve(layout.root, "r")
    assert call("pull", "-q", ref).code == 0
    target = Uploads(server, "s")
    args = [text.replace("SOURCE", ref).replace("TARGET", server.host + "/s") for text in command]
    assert call(*args, "-q", *flags).code == 0
    assert target.manifests["1"] == layout.read(digest(layout))
    assert [layer["digest"] in target.blobs for layer in layers] == [bool(flags), True]


@pytest.mark.parametrize("args, code, words", [
    (["REF", "--chunk-size", "10q"], 2, "--chunk-size must be a size"),
    (["REF", "a//b"], 2, "a//b: "), (["REF@DIGEST"], 2, "cannot push a digest reference"),
    (["-a", "REF:latest"], 2, "tag can't be used with --all-tags/-a"),
    (["REF:nope"], 3, "tag does not exist: REF:nope"),
    (["nowhere"], 3, "An image does not exist locally with the tag: nowhere"),
    (["REF", "--jobs", "0"], 2, "--jobs must be a number"),
])
def test_a_push_that_can_not_begin_is_one_line_and_sends_nothing(
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


# -- questions to a registry -----------------------------------------------------


def test_tags_are_listed(call: Call, ref: str) -> None:
    assert call("tags", ref).out == "latest\nother\n"
    assert call("tags", "--format", "json", ref).json == [
        {"name": ref + ":latest", "tag": "latest"}, {"name": ref + ":other", "tag": "other"}]
    assert "want a repository" in call("tags", ref + ":latest").line
    done = call("tags", ref.replace("/r", "/absent"))
    assert done.code == 3 and done.line.startswith("minipull: list tags of ")


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


def test_the_page_of_a_portal_is_no_manifest(call: Call, server: ScriptedServer, stored: str, home: Path) -> None:
    server.on("HEAD", "/v2/x/", reply(200, "", {"Content-Type": "text/html"}))
    server.on("GET", "/v2/x/", reply(200, "<html>sign in</html>", {"Content-Type": "text/html"}))
    for words in ("digest HOST/x:1", "digest --pin HOST/x:1", "copy -n docker://REF docker://HOST/x:1"):
        done = call(*words.replace("HOST", server.host).replace("REF", stored).split())
        assert (done.code, done.out) == (6, "") and "invalid JSON" in done.err, done
