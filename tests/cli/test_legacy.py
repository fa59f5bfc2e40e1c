# SPDX-License-Identifier: Apache-2.0
"""--legacy-v1 works for tags, pull, push and as the source of a copy; what v1 has no word for is refused in one line."""
import json
from pathlib import Path
from typing import Any, Tuple

import pytest

from tests.kit.commands import Call
from tests.kit.servers import ScriptedServer
from tests.kit.v1server import V1Server, blobs

V1 = "--legacy-v1"
CONFIG = {"architecture": "amd64", "os": "linux"}


@pytest.fixture
def old(server: ScriptedServer) -> V1Server:
    v1 = V1Server(server)
    v1.add(blobs(2), "1", "10", "9", **CONFIG)
    return v1


def test_tags_are_listed_and_copied_as_pulled(call: Call, old: V1Server, home: Path) -> None:
    name = old.server.host + "/ns/r"
    assert call("tags", name, V1).out == "1\n9\n10\n"
    digest = call("pull", "-q", name + ":1", V1).out.rpartition("@")[2].strip()
    assert call("copy", "docker://%s:1" % name, "oci:one", V1, "-q").out.strip() == digest
    done = call("copy", "docker://%s:*" % name, "oci-archive:all.tar", V1, "--format", "json")
    assert [row["digest"] for row in done.json] == [digest] * 3
    assert call("check", "all.tar").code == 0 and call("check", "--root", "one").code == 0


def test_a_copy_goes_from_v1_to_a_registry_and_leaves_nothing_behind(
        call: Call, old: V1Server, serve: Any, home: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    target = serve(tmp_path / "served", "--writable").host + "/r:1"
    done = call("copy", "docker://%s/ns/r:1" % old.server.host, "docker://" + target, V1, env={"TMPDIR": str(temporary)})
    assert done.code == 0, done.err
    assert call("digest", target).out.strip() in done.out and not list(temporary.iterdir())


@pytest.mark.parametrize("verb", [
    ("digest", "REF"), ("manifest", "REF"), ("inspect", "docker://REF"), ("check", "docker://REF"),
    ("referrers", "REF"), ("delete", "--yes", "docker://REF"), ("copy", "docker://REF", "oci:x", "--dry-run")],
    ids=" ".join)
def test_what_v1_can_not_do_is_refused_in_one_line(call: Call, old: V1Server, verb: Tuple[str, ...]) -> None:
    done = call(*(word.replace("REF", old.server.host + "/ns/r:1") for word in verb), V1)
    assert done.code in (1, 5) and done.line.startswith("minipull: ")
    if verb[0] == "copy":
        assert "the v1 protocol has no signatures, and no sizes before a copy" in done.line
    else:
        assert "the v1 protocol has no digests and no manifests; tags, pull, push and copy speak it" in done.line


def test_a_push_by_v1_tells_no_digest(call: Call, old: V1Server, server: ScriptedServer) -> None:
    name = server.host + "/ns/new:1"
    call("pull", server.host + "/ns/r:1", V1)
    call("tag", server.host + "/ns/r:1", name)
    assert call("push", name, V1).out == name + "\n" == call("push", "-q", name, V1).out
    row, = call("push", name, V1, "--format", "json").json
    assert (row["name"], row["tag"], row["digest"]) == (name, "1", "") and len(row["layers"]) == 2
    assert "sha256" not in json.dumps(dict(row, layers=[]))
