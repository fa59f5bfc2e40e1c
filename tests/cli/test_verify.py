# SPDX-License-Identifier: Apache-2.0
"""verify, and the commands that take a key: their words, their JSON, and what load keeps."""
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from tests.kit import images
from tests.kit.archives import layout_members, pack
from tests.kit.commands import Call, digest
from tests.kit.images import NAME, Descriptor, Layout
from tests.kit.processes import Minipull, Serve
from tests.kit.servers import ScriptedServer, content
from tests.kit.signatures import STRANGER, VECTORS, key_file, payload_of, sign

APP = "docker.io/library/app"


@pytest.fixture
def key(tmp_path: Path) -> str:
    return key_file(tmp_path)


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    return key_file(tmp_path, STRANGER, "wrong.pub")


def signed(layout: Layout, server: ScriptedServer) -> str:
    """Sign r:latest; return its digest."""
    sign(layout, digest(layout))
    server.serve(layout.root, "r")
    return digest(layout)


def called(descriptor: Descriptor, name: str = "") -> Dict[str, Any]:
    return {**descriptor, "annotations": {NAME: name}} if name else dict(descriptor)


def tag_of(digest: str, suffix: str = ".sig") -> str:
    return digest.replace(":", "-") + suffix


# -- verify ------------------------------------------------------------------------


def test_verify_says_which_key_signed_which_digest_with_which_annotations(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, key: str, wrong: str) -> None:
    top = signed(layout, server)
    done = call("verify", "--key", wrong, "--key", key, "docker://" + ref)
    assert (done.code, done.err) == (0, "")
    assert re.sub("sha256:[0-9a-f]{64}", "SHA", done.out) == (
        "Verified: %s:latest@SHA\nSHA is signed by %s (SHA) as registry.example.com/app, with"
        ' {"build": "42"}\n' % (ref, key))
    assert done.out.count(top) == 2
    done = call("verify", "--key", key, "--format", "json", "docker://%s@%s" % (ref, top))
    fingerprint = done.json["signatures"][0].pop("fingerprint")
    assert re.fullmatch("sha256:[0-9a-f]{64}", fingerprint) and done.json == {
        "ok": True, "name": ref, "digest": top, "signatures": [{
            "key": key, "fingerprint": fingerprint, "digest": top, "annotations": {"build": "42"},
            "identity": "registry.example.com/app", "result": "good", "reason": ""}]}


def test_verify_ends_with_6_and_a_line_if_no_signature_is_good(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, key: str, wrong: str) -> None:
    top = digest(layout)
    done = call("verify", "--key", key, "docker://" + ref)
    assert (done.code, done.out) == (6, "Not verified: %s:latest@%s\n" % (ref, top))
    assert done.line.endswith("verify docker://%s: no good signature by %s: there is none\n" % (ref, key))
    signed(layout, server)
    done = call("verify", "--key", wrong, "docker://" + ref)
    assert done.code == 6 and done.out.endswith("\nbad signature: by no key that is given\n")
    assert "bad signature: by no key that is given" in done.line
    done = call("verify", "--key", wrong, "--format", "json", "docker://" + ref)
    assert done.code == 6 and done.json["ok"] is False
    assert [(item["result"], item["key"], item["identity"]) for item in done.json["signatures"]] == [
        ("bad", None, "")]


def test_verify_tells_of_signatures_that_it_does_not_check(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, key: str) -> None:
    top, kind = digest(layout), "application/vnd.dev.sigstore.bundle.v0.3+json"
    for name, media_type in ((tag_of(top, ".att"), "application/vnd.dsse.envelope.v1+json"), ("bundle", kind)):
        sign(layout, top, name=name, layers=[layout.blob(b"{}", media_type)], artifactType=media_type)
    layout.index([{**layout.resolve("bundle"), "artifactType": kind}], tag_of(top, ""))
    server.serve(layout.root, "r")
    done = call("verify", "--key", key, "docker://" + ref)
    assert done.code == 6 and done.out.splitlines()[1:] == [
        "not checked: a sigstore bundle", "not checked: an attestation (DSSE)"]
    assert "no good signature by %s: not checked: a sigstore bundle; not checked: an a" % key in done.line
    done = call("verify", "--key", key, "--format", "json", "docker://" + ref)
    assert {item["result"] for item in done.json["signatures"]} == {"unchecked"}


def test_verify_looks_into_the_store_layouts_and_archives(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, key: str, tmp_path: Path) -> None:
    signed(layout, server)
    for place in ("store:app:1", "oci:new:1"):
        assert call("copy", "--referrers", "docker://" + ref, place).code == 0
        assert call("verify", "--key", key, place).code == 0
    assert call("verify", "--key", key, "app:1").out.startswith("Verified: docker.io/library/app:1@sha256:")
    assert call("save", "-o", "app.tar", "app").code == 0
    with open("app.tar", "ab") as file:
        file.write(b"PK and what else a bundle has behind its tar")
    for place in ("oci-archive:app.tar:app:1", "docker-archive:app.tar:" + APP + ":1"):
        assert call("verify", "--key", key, place).code == 0
    assert call("--root", "app.tar", "verify", "--key", key, "app:1").code == 0
    done = call("verify", "--key", key, "other:1")
    assert done.code == 3 and done.line.endswith("; docker://other:1 asks the registry\n")
    path = Path("new", "blobs", *images.digest_of(payload_of(digest(layout))).split(":"))
    path.write_bytes(path.read_bytes().replace(b'"42"', b'"43"'))
    done = call("verify", "--key", key, "oci:new:1")
    assert done.code == 6 and "bad signature: blob sha256:" in done.out


def test_an_index_in_the_store_covers_the_platform_that_was_pulled(
        call: Call, server: ScriptedServer, key: str, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "multi")
    sign(layout, index.digest)
    server.serve(layout.root, "m")
    name = server.host + "/m"
    assert call("pull", "--platform", "linux/arm64", name).code == 0
    assert call("verify", "--key", key, name).code == 6
    assert call("copy", "docker://%s:%s" % (name, tag_of(index.digest)),
                "store:%s:%s" % (name, tag_of(index.digest))).code == 0
    done = call("verify", "--key", key, name)
    assert done.code == 0 and done.out.startswith(
        "Verified: %s:latest@%s\n%s is signed by " % (name, made["linux/arm64/v8"].digest, index.digest))
    assert call("copy", "--verify-key", key, "store:" + name, "oci:new:1").code == 0


def test_verify_needs_a_key_that_is_one(call: Call, ref: str, key: str, home: Path) -> None:
    place = "docker://" + ref
    Path("rsa.pub").write_text(VECTORS["wrong"]["RSA"])
    for words, text in (([], "verify: give the public key with --key FILE"), (["--key", ""], "key file ''"),
                        (["--key", "none.pub"], "key file 'none.pub' does not exist"),
                        (["--key", "rsa.pub"], "rsa.pub: want one public key (ECDSA P-256)"),
                        (["--key", key, "--key", "rsa.pub"], "rsa.pub: want one public key")):
        done = call("verify", *words, place)
        assert (done.code, done.out) == (2, "") and text in done.line
    assert call("verify", "--key", str(home), place).code == 7


# -- pull, copy, unpack: the flag, the variable, the setting -----------------------


def test_a_key_in_the_settings_is_asked_for_by_every_command_that_takes_images(
        call: Call, ref: str, root: Path, key: str, wrong: str, server: ScriptedServer, layout: Layout) -> None:
    signed(layout, server)
    config = Path("config.json")
    ways: List[Callable[..., Any]] = [
        lambda command, *words: call(command, "--verify-key", wrong, *words),
        lambda *words: call(*words, env={"MINIPULL_VERIFY_KEY": wrong}),
        lambda *words: call("--config", config, *words)]
    for value in (wrong, [wrong]):
        config.write_text(json.dumps({"verify-key": value}))
        for way in ways:
            for words in (["pull", ref], ["copy", "docker://" + ref, "oci:new:1"]):
                done = way(*words)
                assert done.code == 6 and "no good signature by " + wrong in done.err
    for words in (["unpack", ref, "rootfs"], ["export", ref], ["cat", ref, "/x"],
                  ["verify", "docker://" + ref]):
        assert call("--config", config, *words).code == 6
    assert os.listdir(".") == ["config.json"] and not root.joinpath("blobs").exists()
    both = "%s\n%s" % (wrong, key)
    assert call("--config", config, "pull", ref, env={"MINIPULL_VERIFY_KEY": both}).code == 0
    assert call("pull", "--verify-key", wrong, "--verify-key", key, ref).code == 0
    assert call("verify", "docker://" + ref, env={"MINIPULL_VERIFY_KEY": key}).code == 0


@pytest.mark.parametrize("value", ["", None, [], 5, True, {}, [5], [""], ["no/such.pub"], "a\0b"], ids=repr)
def test_a_setting_that_names_no_key_refuses_all(call: Call, ref: str, root: Path, value: Any) -> None:
    Path("config.json").write_text(json.dumps({"verify-key": value}))
    done = call("--config", "config.json", "pull", ref)
    assert done.code in (2, 6) and done.line
    assert not root.joinpath("blobs").exists()


# -- load --------------------------------------------------------------------------


def test_load_keeps_nothing_if_one_image_is_not_covered(
        call: Call, root: Path, key: str, wrong: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "made")
    tops = [layout.image(images.specs(1, seed=seed)).descriptor for seed in (1, 2)]
    tops.append(layout.index([{**tops[0], "platform": {"os": "linux", "architecture": "amd64"}}]).descriptor)
    entries = [called(top, "%s:%d" % (APP, number)) for number, top in enumerate(tops)]
    signatures = [called(sign(layout, top["digest"], name=""), "%s:%s" % (APP, tag_of(top["digest"])))
                  for top in tops[1:]]
    archive = Path("images.tar")

    def load(entries: List[Dict[str, Any]], file: str) -> Any:
        archive.write_bytes(pack(layout_members(layout, entries)))
        return call("load", "-i", archive, "--verify-key", file)

    for kept, missing in ((entries, 2), (entries + signatures[1:], 1), (entries[:2] + signatures[:1], 0)):
        done = load(kept, key)
        assert done.code == 6 and "load images.tar: %s:%d: no good signature" % (APP, missing) in done.line
        assert not root.joinpath("blobs").exists() and call("images", "--format", "json").json == []
    assert load(entries + signatures, wrong).code == 6
    assert os.listdir(str(root / "ingest")) == []
    done = load(entries + signatures, key)  # the first is an entry of the last, which is signed
    assert done.code == 0 and "Loaded image: app:0\nLoaded image: app:1\nLoaded image: app:2\n" in done.out
    assert len(call("images", "--format", "json").json) == 5


def test_what_belongs_to_a_covered_image_is_loaded_and_an_image_to_run_never_is(
        call: Call, root: Path, key: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "made")
    top = layout.image(images.specs(1)).descriptor
    bill = layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "artifactType": "application/spdx+json",
        "config": layout.blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.blob(b"{}", "application/spdx+json")], "subject": top}), images.OCI_MANIFEST)
    attached = [bill, sign(layout, bill["digest"], STRANGER, name="", subject=bill)]
    disguised = layout.image(images.specs(1, seed=9), subject=top, artifactType="application/x").descriptor
    base = [called(top, APP + ":1"), called(sign(layout, top["digest"], name=""), tag_of(top["digest"]))]
    lists = layout.index([bill, disguised]).descriptor
    archive = Path("images.tar")
    for more, code in (
            ([called(item) for item in reversed(attached)], 0), ([called(disguised)], 6),
            ([called(disguised, "%s:%s" % (APP, tag_of(top["digest"])))], 6),
            ([called(attached[1])], 6), ([called(lists, "%s:%s" % (APP, tag_of(top["digest"], "")))], 6),
            ([called(layout.index([bill]).descriptor, "%s:%s" % (APP, tag_of(top["digest"], "")))], 0)):
        archive.write_bytes(pack(layout_members(layout, base + more)))
        done = call("--root", tmp_path / "new", "load", "-i", archive, "--verify-key", key)
        assert done.code == code, done.err
        assert code == 0 or not any(tmp_path.glob("new/blobs/*/" + disguised["digest"][7:]))


# -- all of it, as a user would ----------------------------------------------------


def test_a_signature_goes_from_registry_to_registry_by_an_archive(
        run_minipull: Minipull, serve: Callable[..., Serve], layout: Layout, server: ScriptedServer, ref: str,
        key: str, tmp_path: Path) -> None:
    top = signed(layout, server)
    far = serve(tmp_path / "far", "--writable")
    for words in (
            ["copy", "--referrers", "--verify-key", key, "docker://" + ref, "store:team/app:1"],
            ["save", "-o", "app.tar", "team/app"],
            ["copy", "--verify-key", key, "oci-archive:app.tar", "docker://%s/" % far.host],
            ["--root", "new", "pull", "--verify-key", key, far.host + "/team/app:1"]):
        done = run_minipull(*words)
        assert (done.code, "Traceback" in done.err) == (0, False), done
    done = run_minipull("verify", "--key", key, "docker://%s/team/app:1" % far.host)
    assert done.code == 0 and "Verified: %s/team/app:1@%s" % (far.host, top) in done.out


def test_a_hostile_registry_can_not_write_to_the_terminal(
        call: Call, ref: str, layout: Layout, server: ScriptedServer, key: str) -> None:
    signature = json.loads(layout.read(sign(layout, digest(layout))["digest"]))
    signature["layers"][0]["annotations"]["dev.sigstore.cosign/certificate"] = "\x1b[2J"
    signature["layers"][0]["digest"] = "sha256:" + "0" * 64
    server.on("GET", "[.]sig$", content(images.to_json(signature), images.OCI_MANIFEST))
    done = call("verify", "--key", key, "docker://" + ref)
    assert done.code == 6 and "\x1b" not in done.out + done.err
    assert "blob sha256:0000" in done.line
