# SPDX-License-Identifier: Apache-2.0
"""No document takes a command more than 64 MB, whatever is in it."""
import json
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import pytest

from minipull.digest import Digest
from minipull.image.descriptor import Descriptor
from minipull.image.strictjson import compact
from minipull.reference import Reference
from minipull.store.references import Association
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import pack
from tests.kit.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.kit.processes import Serve, minipull_env
from tests.kit.pulls import rewrite, serve
from tests.kit.servers import ScriptedServer, content, reply

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process, as Linux tells it")

MEGABYTE = 1 << 20
MEASURED = """if 1:
    import sys
    from minipull.cli.main import main
    code = main(sys.argv[1:])
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    sys.stdout.flush()
    sys.stderr.write("\\n%d %s\\n" % (code, fields["VmHWM"].split()[0]))
    """

#: By what they fill a memory with: values of a few bytes each, which take up to fifty times as much.
FLOODS: Dict[str, Tuple[bytes, bytes, bytes]] = {
    "objects": (b"[", b"{}", b"]"), "members": (b"[", b'{"a":0}', b"]"),
    "wide": (b'["', b"x", '\U0001f600"]'.encode())}


def flood(kind: str, size: int) -> bytes:
    """A JSON array of about ``size`` bytes."""
    start, piece, ending = FLOODS[kind]
    comma = b"" if b'"' in start else b","
    return start + (piece + comma) * (size // len(piece + comma)) + piece + ending


def flooded(document: Dict[str, object], kind: str, size: int) -> bytes:
    """A document of no more than ``size`` bytes with such an array besides."""
    raw = json.dumps(dict(document, more=0)).encode()
    return raw.replace(b'"more": 0', b'"more": ' + flood(kind, size - len(raw) - 64))


class World:
    """A registry whose answers, an archive and a store whose files are floods."""

    def __init__(self, tmp_path: Path, server: ScriptedServer) -> None:
        self.path = tmp_path
        self.server = server
        self.layout, self.image = images.single(tmp_path / "layout")
        serve(server, self.layout)
        self.ref = "%s/r" % server.host

    def measured(self, *args: str) -> Tuple[int, int, str]:
        """The exit code of a command, its peak in MB, and its errors."""
        env = minipull_env(self.path)
        done = subprocess.run([sys.executable, "-c", MEASURED, "--root", str(self.path / "store"), *args],
                              env=env, cwd=self.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
        *text, last = done.stderr.decode().strip().splitlines()
        code, peak = last.split()
        return int(code), int(peak) // 1000, "\n".join(text)


def as_manifest(world: World, kind: str) -> List[str]:
    raw = flooded(json.loads(world.image.raw), kind, 8 * MEGABYTE)
    world.server.on("GET", "/manifests/", content(raw, OCI_MANIFEST, ranges=False))
    return ["pull", world.ref]


def as_index(world: World, kind: str) -> List[str]:
    raw = flooded({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, kind, 8 * MEGABYTE)
    world.server.on("GET", "/manifests/", content(raw, OCI_INDEX, ranges=False))
    return ["copy", "docker://" + world.ref, "oci:%s" % (world.path / "copy")]


def as_config(world: World, kind: str) -> List[str]:
    config = json.loads(world.layout.read(world.image.config["digest"]))
    rewrite(world.layout, config=world.layout.blob(flooded(config, kind, 8 * MEGABYTE), OCI_CONFIG))
    serve(world.server, world.layout)
    return ["pull", world.ref]


def as_archive(world: World, kind: str) -> List[str]:
    (world.path / "archive").write_bytes(pack({"manifest.json": flood(kind, 8 * MEGABYTE - 64)}))
    return ["load", "-i", str(world.path / "archive")]


def as_store(world: World, kind: str) -> List[str]:
    (world.path / "store").mkdir()
    raw = flooded({"schemaVersion": 2, "manifests": []}, kind, 12 * MEGABYTE)
    (world.path / "store" / "index.json").write_bytes(raw)
    return ["images"]


def as_tags(world: World, kind: str) -> List[str]:
    world.server.on("GET", "/tags/list", reply(200, flooded({"name": "r"}, kind, 8 * MEGABYTE)))
    return ["tags", world.ref]


PLACES: Dict[str, Callable[[World, str], List[str]]] = {
    "manifest": as_manifest, "index": as_index, "config": as_config, "archive": as_archive, "store": as_store,
    "tags": as_tags}
CASES = [("manifest", "objects"), ("manifest", "wide")] + [(place, "members") for place in PLACES]


@pytest.mark.parametrize("place, kind", CASES, ids=["%s of %s" % case for case in CASES])
def test_a_flood_of_values_is_refused_within_64_megabytes(
        place: str, kind: str, tmp_path: Path, server: ScriptedServer) -> None:
    world = World(tmp_path, server)
    code, peak, text = world.measured(*PLACES[place](world, kind))
    assert peak < 64, text
    assert code == (7 if place == "store" else 9), text
    assert "its JSON would take" in text.splitlines()[-1] and len(text) < 1000


def test_the_dates_of_many_tags_take_less_than_64_megabytes(tmp_path: Path, server: ScriptedServer) -> None:
    world = World(tmp_path, server)
    raw = json.dumps({"architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z", "config": {
        "Env": ["x" * 1000] * 3000}, "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    config = Descriptor.of(raw, OCI_CONFIG)
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_json(), "layers": []})
    server.on("GET", "/blobs/", content(raw))
    server.on("GET", "/manifests/", content(manifest.encode(), OCI_MANIFEST))
    server.on("GET", "/tags/list", reply(200, {"tags": ["v%d" % number for number in range(40)]}))
    code, peak, text = world.measured("tags", "--created", world.ref)
    assert code == 0 and peak < 64 and "is larger than" in text, text


@pytest.mark.parametrize("command, key", [("tags", "tags"), ("catalog", "repositories")])
def test_a_list_of_100000_names_takes_less_than_50_megabytes(
        command: str, key: str, tmp_path: Path, server: ScriptedServer) -> None:
    world = World(tmp_path, server)
    names = ["version-%d.%d" % (number // 100, number % 100) for number in range(100000)]
    server.on("GET", "/tags/list|/_catalog", reply(200, {key: names}))
    code, peak, text = world.measured(command, world.ref if command == "tags" else server.host)
    assert code == 0 and peak < 50, text


#: By the parts of an image that are many: commands for it, in which each is parsed in its turn.
MANY = {
    "children, copied": ("index", ["copy store:x.io/a:1 oci:copy"]),
    "children, converted": ("index", ["copy --format docker store:x.io/a:1 oci:copy"]),
    "children, pushed and checked": ("index", ["push x.io/a:1 HOST/a:1", "check docker://HOST/a:1"]),
    "children, saved and loaded": ("index", ["save -o a.tar x.io/a:1", "--root new load -i a.tar"]),
    "children, listed": ("index", ["gc", "df"]),
    "referrers, copied": ("referrers", ["copy --referrers store:x.io/a:1 docker://HOST/a:1"])}


@pytest.mark.parametrize("case", MANY)
def test_the_manifests_of_an_image_are_parsed_a_few_at_a_time(
        case: str, tmp_path: Path, server: ScriptedServer, serve: Callable[..., Serve]) -> None:
    """Ten of 700 kB, full of annotations: parsed, they take 50 MB."""
    world, store = World(tmp_path, server), Store(str(tmp_path / "store"))
    kind, commands = MANY[case]

    def put(document: object, media_type: str) -> Descriptor:
        raw = compact(document)
        blob = Descriptor.of(raw, media_type)
        store.content.put(blob.digest, raw)
        return blob

    def image(number: int, **more: object) -> Descriptor:
        layer = put("layer %d" % number, images.OCI_LAYER)
        config = put({"os": "linux", "architecture": "amd64", "rootfs": {
            "type": "layers", "diff_ids": [layer.digest]}}, OCI_CONFIG)
        noted = layer.to_json() if "subject" in more else dict(layer.to_json(), annotations=notes)
        return put(dict({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_json(),
                         "layers": [noted]}, **more), OCI_MANIFEST)

    notes: Dict[str, str] = {}
    top = image(10)
    notes.update({"k%06d" % number: "" for number in range(50000)})
    more = {} if kind == "index" else {"subject": top.to_json(), "artifactType": "a/b", "annotations": notes}
    many = [image(number, **more) for number in range(10)]
    names = [Reference.parse("x.io/a@" + one.digest) for one in many]
    if kind == "index":
        names, many = [], [put({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            one.to_json() for one in many]}, OCI_INDEX)]
        top = many.pop()
    store.references.put([Association(name, one, one.digest).to_json() for name, one in zip(
        [Reference.parse("x.io/a:1"), *names], [top, *many])])
    registry = serve(tmp_path / "registry", "--writable")
    for command in commands:
        code, peak, text = world.measured(*command.replace("HOST", registry.host).split())
        assert code == 0 and peak < 64, text


def test_images_and_df_of_2000_images_take_less_than_64_megabytes(tmp_path: Path, server: ScriptedServer) -> None:
    world, entries = World(tmp_path, server), []
    store = Store(str(tmp_path / "store"))

    def put(data: bytes) -> Digest:
        path = Path(store.content.path(Digest.of(data)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Digest.of(data)

    for number in range(2000):
        layers = [put(b"%d" % part) for part in (number % 20, number // 2 + 100, number + 10000)]
        config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {
            "type": "layers", "diff_ids": layers}, "config": {"Env": ["A=%d" % number] * 20}}).encode()
        raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {
            "mediaType": OCI_CONFIG, "digest": put(config), "size": len(config)}, "layers": [
            {"mediaType": images.OCI_LAYER, "digest": layer, "size": 1} for layer in layers]}).encode()
        name = Reference.parse("registry.example.com/app%d:%d" % (number % 50, number))
        entries.append(Association(name, Descriptor(OCI_MANIFEST, put(raw), len(raw)), Digest.of(raw)).to_json())
    store.references.put(entries)
    for command in ("images", "df"):
        code, peak, text = world.measured(command)
        assert (code, text) == (0, "") and peak < 64, command
