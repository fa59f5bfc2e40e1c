# SPDX-License-Identifier: Apache-2.0
"""--dry-run: the very bytes of the run that follows, and nothing written or sent for them."""
import base64
import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest

from minipull.digest import Digest
from minipull.image import schema1
from minipull.image.config import ImageConfig
from minipull.image.descriptor import SCHEMA1_SIGNED
from minipull.server import http as httpd
from tests.kit.commands import Call
from tests.kit.images import OCI_MANIFEST, Layout, Spec, digest_of, multi_platform, to_json
from tests.kit.proxies import FaultProxy
from tests.kit.servers import ScriptedServer, reply
from tests.kit.site import Site

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
LARGE, SMALL = Spec(300000, text=0), Spec(2000, seed=1)  # looked for before it is sent, or not


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Our own registry, writable, behind a proxy that counts."""
    monkeypatch.setattr(httpd, "TICK", 0.005)
    site = Site(tmp_path / "served", writable=True)
    with FaultProxy(site.host) as proxy:
        yield proxy
    site.stop()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Three tags, which share a layer; multi is an index."""
    layout = multi_platform(tmp_path / "layout", "multi")[0]
    layout.image([LARGE, SMALL], "one")
    layout.image([LARGE, Spec(150000, seed=2)], "two")
    return layout


def publish(call: Call, layout: Layout, relay: FaultProxy, *tags: str, path: str = "r") -> None:
    for tag in tags:
        done = call("copy", "-q", "oci:%s:%s" % (layout.root, tag),
                    "docker://%s/%s:%s" % (relay.host, path, tag))
        assert done.code == 0, done.err
    forget(relay)


def forget(relay: FaultProxy) -> None:
    for counter in (relay.hits, relay.up, relay.down):
        counter.clear()


def moved(counter: Dict[Tuple[str, str], int]) -> int:
    """The bytes of blobs in bodies."""
    return sum(size for (method, path), size in counter.items()
               if "/blobs/" in path and method in ("GET", "PUT", "PATCH"))


def tree(root: Path) -> List[Tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in root.rglob("*"))


def planned(call: Call, relay: FaultProxy, root: Path, *args: Any) -> Any:
    """The total of a dry run, which wrote and sent nothing."""
    forget(relay)
    before = root.exists() and tree(root)
    done = call(*args, "--dry-run", "--format", "json")
    assert done.code == 0, done.err
    assert (root.exists() and tree(root)) == before
    assert {method for method, _ in relay.hits} <= {"GET", "HEAD"}
    assert not any("/blobs/" in path for method, path in relay.hits if method == "GET")
    rows = done.json["images"]
    assert done.json["total"] == {key: sum(row[key] for row in rows) for key in done.json["total"]}
    forget(relay)
    return done.json["total"]


@pytest.mark.parametrize("args", [
    ["r:one"], ["r:one", "r:two"], ["r:*"], ["-a", "r"], ["r:multi", "--platform", "linux/arm64"],
    ["r:multi", "--all-platforms"]], ids=" ".join)
def test_a_pull_moves_what_its_plan_says(
        call: Call, relay: FaultProxy, layout: Layout, root: Path, args: Sequence[str]) -> None:
    publish(call, layout, relay, *(["multi"] if "multi" in args[0] else ["one", "two"]))
    refs = [relay.host + "/" + arg if arg.startswith("r") else arg for arg in args]
    plan = planned(call, relay, root, "pull", *refs)
    assert call("pull", "-q", *refs).code == 0
    assert plan["bytes"] == moved(relay.down) > 0
    again = planned(call, relay, root, "pull", *refs)
    assert (again["blobs"], again["bytes"]) == (0, 0) and again["there_bytes"] >= plan["bytes"]


def test_a_pull_plans_the_rest_of_a_blob_that_was_begun(
        call: Call, relay: FaultProxy, layout: Layout, root: Path) -> None:
    publish(call, layout, relay, "one", "two")
    call("pull", "-q", relay.host + "/r:one")
    digest = max((path for path in (root / "blobs/sha256").iterdir()), key=os.path.getsize)
    name = "sha256-" + digest.name
    (root / "ingest" / name).write_bytes(digest.read_bytes()[:100000])
    (root / "ingest" / (name + ".json")).write_text(
        '{"length": 0, "boot": "%s"}' % Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    digest.unlink()
    plan = planned(call, relay, root, "pull", relay.host + "/r:one")
    assert call("pull", "-q", relay.host + "/r:one").code == 0
    assert plan["blobs"] == 1 and plan["bytes"] == moved(relay.down)


def test_a_push_moves_what_its_plan_says(
        call: Call, relay: FaultProxy, layout: Layout, root: Path) -> None:
    publish(call, layout, relay, "one", "two", "multi")
    for tag in ("one", "two", "multi"):
        call("pull", "-q", "--all-platforms", "%s/r:%s" % (relay.host, tag))
        for target in ("new", "other"):
            call("tag", "%s/r:%s" % (relay.host, tag), "%s/%s:%s" % (relay.host, target, tag))
    forget(relay)
    for args in (["new:one"], ["new:*"], ["-a", "new"], ["r:one", "s"]):
        refs = [relay.host + "/" + arg if arg[0] != "-" else arg for arg in args]
        plan = planned(call, relay, root, "push", *refs)
        done = call("push", "--format", "json", *refs)
        assert done.code == 0, done.err
        assert plan["bytes"] == moved(relay.up)
        results = [layer["result"] for row in done.json for layer in row["layers"]]
        assert bool(plan["mounted_blobs"]) == any(text.startswith("Mounted") for text in results)
        forget(relay)


def test_a_push_to_an_empty_registry_plans_all_and_mounts_from_what_it_sends(
        call: Call, relay: FaultProxy, layout: Layout, root: Path, tmp_path: Path) -> None:
    """Also of layers that are compressed on the way."""
    layout.image([LARGE, Spec(200000, seed=5, compression="")], "plain")
    lines = []
    for tag, path in (("one", "a"), ("two", "b"), ("plain", "c")):
        name = "%s/%s:1" % (relay.host, path)
        assert call("copy", "-q", "oci:%s:%s" % (layout.root, tag), "store:" + name).code == 0
        assert call("unpack", "-q", name, tmp_path / path).code == 0  # so the DiffIDs are known
        lines.append(name)
    (tmp_path / "list").write_text("\n".join(lines))
    forget(relay)
    plan = planned(call, relay, root, "push", "@%s" % (tmp_path / "list"))
    assert call("push", "-q", "@%s" % (tmp_path / "list")).code == 0
    assert plan["bytes"] == moved(relay.up) > 500000 and plan["mounted_blobs"] == 2
    assert plan["blobs"] + plan["there_blobs"] + plan["mounted_blobs"] == 9


def test_a_pull_plans_no_foreign_layer_that_the_registry_lacks_and_nothing_that_came_along(
        call: Call, server: ScriptedServer, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    made = layout.image([SMALL])
    layer, config = made.layers[0].descriptor, layout.read(made.config["digest"])
    foreign = {"mediaType": FOREIGN, "digest": digest_of(b"elsewhere"), "size": 9,
               "urls": ["https://localhost:1/x"]}
    raw = to_json(dict(json.loads(made.raw.decode()), layers=[layer, foreign], config=dict(
        made.config, data=base64.b64encode(config).decode())))
    layout.name(layout.blob(raw, OCI_MANIFEST), "latest")
    server.serve(layout.root, "r")
    done = call("pull", "--dry-run", "--format", "json", server.host + "/r")
    total = done.json["total"]
    assert (total["blobs"], total["bytes"], total["there_bytes"]) == (1, layer["size"], len(config))
    done = call("pull", "--dry-run", "--foreign", "--format", "json", server.host + "/r")
    assert done.json["total"]["bytes"] == layer["size"] + 9


def test_there_is_no_plan_of_schema_1(call: Call, server: ScriptedServer) -> None:
    image = ImageConfig.parse(to_json({"architecture": "amd64", "os": "linux", "history": [{}], "rootfs": {
        "type": "layers", "diff_ids": [digest_of(b"")]}}))
    raw = schema1.build("r", "latest", image, [Digest(digest_of(b"x"))])
    server.on("GET", "/v2/r/manifests/", reply(200, schema1.sign(raw, 5, "2024-01-02T03:04:05Z"), {
        "Content-Type": SCHEMA1_SIGNED}))
    done = call("pull", "--dry-run", server.host + "/r")
    assert done.code == 1 and "schema 1 format, which tells no sizes" in done.line


def test_a_plan_has_a_line_for_each_image_and_one_for_all(
        call: Call, relay: FaultProxy, layout: Layout, root: Path) -> None:
    publish(call, layout, relay, "one", "two")
    refs = [relay.host + "/r:" + tag for tag in ("one", "absent", "two")]
    done = call("pull", "--dry-run", *refs)
    lines = done.out.splitlines()
    assert done.code == 3 and "absent: manifest unknown" in done.line
    assert [line.partition("@")[0] for line in lines[:2]] == [refs[0], refs[2]]
    assert lines[0].endswith(": would move 3 blobs, 303.6kB")
    assert lines[2].startswith("would move 5 blobs, ") and "; 1 blob, 3" in lines[2]
    assert call("push", "--dry-run", refs[0]).code == 3 and not root.exists()
