# SPDX-License-Identifier: Apache-2.0
"""Questions to a registry: inspect, catalog, tags, referrers, blob and delete."""
import json
import os
import pty
import sys
from pathlib import Path
from typing import Iterator, List

import pytest

from minipull.server import http as httpd
from tests.kit.commands import Call, is_sound
from tests.kit.images import (
    CREATED, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Layout, Spec, digest_of, multi_platform, parse_platform,
    push_layout_http, to_json)
from tests.kit.servers import Connection, ScriptedServer, challenge, error, reply
from tests.kit.site import Site

pytestmark = pytest.mark.usefixtures("no_repeats")

CONFIG = {"architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z", "config": {
    "Env": ["PATH=/bin"], "Labels": {"a": "b"}, "Entrypoint": ["/init"], "Cmd": ["x"], "User": "nobody",
    "WorkingDir": "/srv"}}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(httpd, "TICK", 0.005)  # a stop is noticed at once
    site = Site(tmp_path / "served")
    yield site
    site.stop()


def push(site: Site, reference: str = "1", repository: str = "app", layer: bytes = b"layer") -> bytes:
    config = to_json(dict(CONFIG, rootfs={"type": "layers", "diff_ids": [digest_of(layer)]}))
    raw = to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": site.blob(config, OCI_CONFIG),
                   "layers": [site.blob(layer, OCI_LAYER)]})
    assert site.put(raw, reference, repository).status == 201
    return raw


def test_an_image_is_inspected_without_its_layers(call: Call, site: Site) -> None:
    raw = push(site)
    shown = call("inspect", "docker://%s/app:1" % site.host).json
    assert shown["name"] == site.host + "/app:1" and shown["digest"] == shown["manifest"] == digest_of(raw)
    assert (shown["platform"], shown["created"]) == ("linux/amd64", CONFIG["created"])
    assert (shown["labels"], shown["environment"]) == ({"a": "b"}, ["PATH=/bin"])
    assert shown["entrypoint"] == ["/init"]
    assert (shown["command"], shown["user"], shown["working_directory"]) == (["x"], "nobody", "/srv")
    assert [layer["size"] for layer in shown["layers"]] == [5]
    assert not any("blobs/" + digest_of(b"layer") in text for _, text in site.log if text.startswith("GET"))


def test_every_platform_of_an_index_is_inspected_or_one(call: Call, site: Site, tmp_path: Path) -> None:
    layout, top, _ = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    name = "docker://%s/up:1" % site.host
    shown = call("inspect", name).json
    platforms = [image["platform"] for image in shown["platforms"]]
    assert shown["digest"] == top.digest and "linux/amd64" in platforms and len(platforms) > 2
    one = call("inspect", name, "--platform", "linux/arm64").json
    assert one["digest"] == top.digest and one["platform"].startswith("linux/arm64")
    result = call("inspect", name, "--platform", "linux/mips")
    assert result.code == 3 and "no image for linux/mips; there is linux/" in result.line


def test_a_digest_and_a_manifest_are_those_of_a_platform_only_if_it_is_asked_for(
        call: Call, site: Site, tmp_path: Path) -> None:
    layout, top, made = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    name = site.host + "/up:1"
    env = {"DOCKER_DEFAULT_PLATFORM": "linux/arm64", "MINIPULL_PLATFORM": "linux/arm64"}
    assert call("digest", name, env=env).out == top.digest + "\n"
    assert digest_of(call("manifest", name, env=env).out.encode()) == top.digest
    arm = made["linux/arm64/v8"].digest
    assert call("digest", "--platform", "linux/arm64", name).out == arm + "\n"
    assert call("digest", "--platform", "linux/arm64", "--pin", name).out == "%s@%s\n" % (name, arm)
    assert digest_of(call("manifest", "--platform", "linux/arm64", name).out.encode()) == arm
    shown = call("manifest", "--platform", "linux/arm64", name, "--format", "json").json
    assert (shown["digest"], shown["manifest"]["config"]["digest"]) == (arm, made["linux/arm64/v8"].config["digest"])
    for command in ("digest", "manifest"):
        done = call(command, "--platform", "linux/mips", name)
        assert done.code == 3 and "no image for linux/mips; there is linux/" in done.line
        assert call(command, "--platform", "///", name).code == 2
    # What is pinned is what a pull of the pin stores.
    assert call("pull", "-q", "%s@%s" % (name, arm)).code == 0
    assert call("inspect", name).json["platform"] == "linux/arm64/v8"


def test_the_configs_below_an_index_have_a_bound_together(call: Call, server: ScriptedServer, tmp_path: Path) -> None:
    layout, labels = Layout(tmp_path / "wide"), {"a": "x" * (3 << 20)}
    children = [layout.image([], platform=platform, config={"config": {"Labels": labels}}).descriptor
                for platform in ("linux/amd64", "linux/arm64", "linux/s390x")]
    layout.index([{**child, "platform": {"os": "linux", "architecture": "a%d" % number}}
                  for number, child in enumerate(children)], "latest")
    server.serve(layout.root, "r")
    result = call("inspect", "docker://%s/r" % server.host)
    assert result.code == 9 and "its configs have more than 8388608 bytes together; ask for one --platform" in result.line
    assert not server.seen("GET", "/blobs/")
    assert call("inspect", "docker://%s/r" % server.host, "--platform", "linux/a1").json["labels"] == labels


def test_an_index_that_lies_about_an_image_is_not_inspected(call: Call, server: ScriptedServer) -> None:
    image = to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [], "config": {
        "mediaType": OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}})
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(image), "size": len(image) + 1,
             "platform": {"architecture": "amd64", "os": "linux"}}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    server.on("GET", "/v2/r/manifests/1$", reply(200, index, {"Content-Type": OCI_INDEX}))
    server.on("GET", "/v2/r/manifests/sha256:", reply(200, image, {"Content-Type": OCI_MANIFEST}))
    result = call("inspect", "docker://%s/r:1" % server.host)
    assert result.code == 6 and result.out == "" and "is not as its index says" in result.line


def test_documents_are_written_as_they_are(call: Call, site: Site) -> None:
    raw = push(site)
    name = "docker://%s/app:1" % site.host
    assert call("inspect", "--raw", name).out.encode() == raw
    assert json.loads(call("inspect", "--config", name).out)["config"] == CONFIG["config"]
    assert call("pull", "-q", name).code == 0
    stored = "%s/app:1" % site.host
    assert call("inspect", "--raw", stored).out.encode() == raw
    assert json.loads(call("inspect", "--config", stored).out)["config"] == CONFIG["config"]


@pytest.mark.parametrize("args, rest", [
    (["inspect", "nginx"], "; docker://nginx:latest asks the registry\n"),
    (["check", "nginx"], "; docker://nginx:latest asks the registry\n"),
    (["save", "nginx", "-o", "x"], "; pull it first\n"),
    (["tag", "nginx", "a"], "; copy docker://SRC docker://DST names one at its registry\n"),
    (["push", "nginx:1"], "; pull it first\n"), (["push", "nginx:1", "a"], "; pull it first\n"),
    (["rm", "nginx"], "image: nginx:latest\n")])
def test_a_name_that_is_not_stored_is_answered_with_what_helps(
        call: Call, stored: str, args: List[str], rest: str) -> None:
    result = call(*args)
    assert result.code == 3 and result.line.endswith(rest)


@pytest.mark.parametrize("asked, paths", [
    ("", ["app", "team/a", "team/b", "teamwork"]), ("/team", ["team/a", "team/b"]),
    ("/team/", ["team/a", "team/b"]), ("/app", ["app"]), ("/none", [])])
def test_a_catalog_lists_repositories_below_a_path(call: Call, site: Site, asked: str, paths: List[str]) -> None:
    for repository in ("app", "team/a", "team/b", "teamwork"):
        push(site, repository=repository)
    assert call("catalog", site.host + asked).out.splitlines() == paths
    rows = call("catalog", "docker://" + site.host + asked, "--format", "json").json
    assert rows == [{"name": "%s/%s" % (site.host, path)} for path in paths]


@pytest.mark.parametrize("text", ["", "no host", "nginx", "http://x.example", "x.example:port"])
def test_a_catalog_is_of_a_host(call: Call, text: str) -> None:
    assert call("catalog", text).code == 2


def test_a_catalog_asks_for_the_scope_of_the_catalog(call: Call, server: ScriptedServer) -> None:
    def act(connection: Connection) -> None:
        granted = connection.request.headers.get("authorization") == "Bearer t"
        realm = 'Bearer realm="http://%s/token",service="s"' % server.host
        (reply(200, {"repositories": ["a", 5]}) if granted else challenge(realm))(connection)

    server.on("GET", "/v2/_catalog", act)
    server.on("GET", "/token", reply(200, {"token": "t"}))
    assert call("catalog", server.host).out == "a\n"
    (asked,) = [request for request in server.requests if request.path == "/token"]
    assert asked.query["scope"] == "registry:catalog:*"


def test_an_entry_of_a_list_is_one_line(call: Call, server: ScriptedServer) -> None:
    server.on("GET", "/v2/_catalog", reply(200, {"repositories": ["team/a\nforged\x1b[31m"]}))
    assert call("catalog", server.host + "/team").out == "team/a\\nforged\\x1b[31m\n"


def test_tags_are_listed_as_versions(call: Call, site: Site) -> None:
    raw = push(site)
    for tag in ("1.10", "1.9", "latest"):
        site.put(raw, tag)
    assert call("tags", site.host + "/app").out.split() == ["1", "1.9", "1.10", "latest"]


def test_tags_have_the_dates_of_their_images_or_none(call: Call, site: Site, tmp_path: Path) -> None:
    for tag in ("10", "9"):
        push(site, tag)
    push_layout_http(multi_platform(tmp_path / "layout")[0], "latest", site.host + "/app:index")
    site.put(to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
                      "config": site.blob(b"{}", OCI_CONFIG)}), "odd")
    done = call("tags", "--created", site.host + "/app")
    assert done.out == "9       {0}\n10      {0}\nindex   {1}\nodd     -\n".format(CONFIG["created"], CREATED)
    assert done.code == 0 and done.err.startswith("warning: created of %s/app:odd: " % site.host)
    rows = call("tags", "--created", "--format", "json", site.host + "/app").json
    assert [(row["tag"], row["created"]) for row in rows] == [
        ("9", CONFIG["created"]), ("10", CONFIG["created"]), ("index", CREATED), ("odd", "")]


@pytest.mark.parametrize("header", ['Basic realm="r"', 'Bearer realm="http://HOST/token"'])
def test_a_password_that_is_refused_is_not_tried_for_every_tag(
        call: Call, server: ScriptedServer, header: str) -> None:
    server.on("GET", "/token", error(401, "UNAUTHORIZED"))
    server.on("GET", "/tags/list", reply(200, {"tags": ["v%d" % number for number in range(300)]}))
    server.on("GET", "/manifests/", challenge(header.replace("HOST", server.host)))
    assert call("tags", "--created", server.host + "/r", "--creds", "ann:wr0ng").code == 4
    assert len([request for request in server.requests if "authorization" in request.headers]) < 50


@pytest.mark.parametrize("platform", ["plan9/mips", "linux/riscv64"])
def test_an_index_for_other_hosts_has_the_date_of_its_first_image(
        call: Call, site: Site, tmp_path: Path, platform: str) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image([Spec(size=100)], platform=platform)
    layout.index([dict(image.descriptor, platform=parse_platform(platform))], "latest")
    push_layout_http(layout, "latest", site.host + "/other:1")
    assert call("tags", "--created", site.host + "/other").out == "1   %s\n" % CREATED


def test_referrers_are_listed_by_the_api_or_the_fallback_tag(
        call: Call, site: Site, server: ScriptedServer) -> None:
    raw = push(site)
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(raw), "size": len(raw)}
    signature = site.push("signature", digest_of(site.manifest("signature", subject=subject)), subject=subject)
    rows = call("referrers", site.host + "/app:1", "--format", "json").json
    assert [row["digest"] for row in rows] == [digest_of(signature)]
    assert call("referrers", site.host + "/app:1").out.startswith(digest_of(signature) + "  ")
    server.on("GET", "/v2/r/manifests/1", reply(200, raw, {"Content-Type": OCI_MANIFEST}))
    server.on("GET", "/v2/r/referrers/", error(404, "PAGE_UNKNOWN"))
    server.on("GET", "/v2/r/manifests/sha256-", reply(200, {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": rows}))
    assert call("referrers", server.host + "/r:1", "--format", "json").json == rows
    server.on("GET", "/v2/r/manifests/sha256-", error(404, "MANIFEST_UNKNOWN"))
    assert call("referrers", server.host + "/r:1", "--format", "json").json == []


def test_a_blob_is_written_to_stdout(call: Call, site: Site) -> None:
    digest = site.blob(b"some text")["digest"]
    assert call("blob", "%s/app@%s" % (site.host, digest)).out == "some text"
    absent = call("blob", "%s/app@%s" % (site.host, digest_of(b"absent")))
    assert absent.code == 3 and "has no blob" in absent.line
    assert call("blob", site.host + "/app:1").code == 2


def test_an_image_at_a_registry_is_checked_there_and_not_in_the_store(
        call: Call, site: Site, tmp_path: Path) -> None:
    push(site)
    name, layer = "docker://%s/app:1" % site.host, digest_of(b"layer")
    path = tmp_path / "served" / "blobs" / "sha256" / layer.partition(":")[2]
    whole = call("check", "--deep", name)
    assert whole.code == 0 and is_sound(whole.out, "%s@%s" % (name, call("digest", name).out.strip()))
    path.chmod(0o600)
    path.write_bytes(b"xxxxx")
    assert call("check", name).code == 0
    damaged = call("check", "--deep", name)
    assert damaged.code == 6 and damaged.out.endswith("\n%s@%s: damaged\n" % (name, call("digest", name).out.strip())) and layer in damaged.out
    (tmp_path / "list").write_text("# both\n%s\n" % name)
    assert call("check", "--deep", "@%s" % (tmp_path / "list")).code == 6
    path.unlink()
    missing = call("check", name)
    assert missing.code == 6 and layer + ": blob: it is missing\n" in missing.out
    assert call("check", name + "9").code == 3


@pytest.mark.parametrize("verb", [("inspect", "--config"), ("inspect", "--raw"), ("manifest",)], ids=" ".join)
def test_a_document_does_not_steer_a_terminal(
        call: Call, site: Site, monkeypatch: pytest.MonkeyPatch, verb: List[str]) -> None:
    config = site.blob('{"a": "\u009b31m\u202e"}\x1b[31m'.encode(), OCI_CONFIG)
    site.put(to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [],
                      "annotations": {"a": "\u009b31m"}}), "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = call(*verb, "docker://%s/app:1" % site.host).out
    assert out and not set("\x1b\u009b\u202e") & set(out)


def test_a_blob_that_is_told_of_and_not_there_is_a_problem(call: Call, site: Site, server: ScriptedServer) -> None:
    raw = push(site)
    for path, data in [("manifests/1", raw)] + [
            ("blobs/" + item["digest"], site.ask("GET", "/v2/app/blobs/" + item["digest"]).body)
            for item in [json.loads(raw.decode())["config"], *json.loads(raw.decode())["layers"]]]:
        server.on("GET", "/v2/r/%s$" % path, reply(200, data, {"Content-Type": OCI_MANIFEST}))
    name = "docker://%s/r:1" % server.host
    assert call("check", "--deep", name).code == 0
    server.on("HEAD", "/blobs/" + digest_of(b"layer"), reply(200, b"layer"))
    server.on("GET", "/blobs/" + digest_of(b"layer"), error(404, "BLOB_UNKNOWN"))
    done = call("check", "--deep", name)
    assert done.code == 6 and "%s: blob: blob unknown" % digest_of(b"layer") in done.out


def test_a_blob_of_other_bytes_is_told(call: Call, server: ScriptedServer) -> None:
    digest = digest_of(b"right")
    server.on("HEAD", "/v2/r/blobs/", reply(200, b"wrong"))
    server.on("GET", "/v2/r/blobs/", reply(200, b"wrong"))
    result = call("blob", "%s/r@%s" % (server.host, digest))
    assert result.code == 6 and "content is " + digest_of(b"wrong") in result.line


def test_a_tag_is_deleted_alone_and_a_manifest_with_its_tags(call: Call, site: Site) -> None:
    raw = push(site)
    for tag in ("2", "3"):
        site.put(raw, tag)
    name = "docker://%s/app:" % site.host
    assert call("delete", name + "1").out == "Deleted: %s/app:1\n" % site.host
    assert site.names() == ["localhost/app:2", "localhost/app:3"]
    assert call("delete", name + "1").code == 3
    deleted = call("delete", "--digest", name + "2", "--format", "json").json
    assert deleted == {"name": name[len("docker://"):] + "2", "deleted": digest_of(raw)} and site.names() == []


def test_a_registry_that_deletes_no_tag_alone_deletes_nothing_unless_it_is_asked_to(
        call: Call, server: ScriptedServer) -> None:
    raw = to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [], "config": {
        "mediaType": OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}})
    server.on("GET", "/v2/r/tags/list", reply(200, {"name": "r", "tags": ["1", "10", "9", "other", "unclear"]}))
    server.on("GET", "/v2/r/manifests/other$", reply(200, b"{}", {"Docker-Content-Digest": digest_of(b"{}")}))
    for tag in ("1", "10", "9"):
        headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest_of(raw)}
        server.on("(GET|HEAD)", "/v2/r/manifests/%s$" % tag, reply(200, raw, headers))
    server.on("DELETE", "/v2/r/manifests/1$", error(405, "UNSUPPORTED"))
    server.on("DELETE", "/v2/r/manifests/sha256:", reply(202))
    result = call("delete", "docker://%s/r:1" % server.host)
    assert result.code == 1
    assert "takes the manifest %s, and with it 1, 9, 10, unclear\n" % digest_of(raw) in result.line
    assert [request.path for request in server.requests if request.method == "DELETE"] == ["/v2/r/manifests/1"]
    assert call("delete", "--digest", "docker://%s/r:1" % server.host).code == 0
    server.on("DELETE", "/v2/r/manifests/sha256:", error(405, "UNSUPPORTED"))
    for args in (["--digest", "docker://%s/r:1" % server.host], ["docker://%s/r@%s" % (server.host, digest_of(raw))]):
        result = call("delete", *args)
        assert result.code == 1 and "%s deletes no manifests (unsupported)\n" % server.host in result.line


def test_only_names_at_a_registry_are_deleted(call: Call) -> None:
    result = call("delete", "nginx:1")
    assert result.code == 2 and "docker://REF" in result.line and "rm" in result.line


@pytest.mark.parametrize("typed, kept", [
    ("y\n", False), ("yes\n", False), ("n\n", True), ("\n", True), ("\x04", True)])
@pytest.mark.parametrize("rest, tags", [
    ([":1"], ""), ([":1", "--digest"], " with all the tags of its manifest"),
    (["@DIGEST"], " with all the tags of its manifest")])
def test_a_terminal_is_asked_before_a_delete(
        call: Call, site: Site, monkeypatch: pytest.MonkeyPatch, typed: str, kept: bool, rest: List[str],
        tags: str) -> None:
    name, *flags = [text.replace("DIGEST", digest_of(push(site))) for text in rest]
    master, slave = pty.openpty()
    with open(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(master, typed.encode())
        result = call("delete", *flags, "docker://%s/app%s" % (site.host, name))
    os.close(master)
    assert result.code == (2 if kept else 0)
    assert "Delete %s/app%s%s at the registry? [y/N] " % (site.host, name, tags) in result.err
    assert bool(site.names()) == kept
