# SPDX-License-Identifier: Apache-2.0
"""Pushes by the v1 protocol: the chain that stands for an image, and what is sent of it."""
import gzip
import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping

import pytest

from tests.kit import DATA
from tests.kit import images
from tests.kit import layers as tars
import minipull
from minipull.registry.auth import Credential
from minipull.errors import NetworkError, PolicyError, StorageError, Unsupported
from minipull.registry.errors import RegistryError
from minipull.distribution.pull_v1 import V1IDService
from minipull.distribution.push_v1 import tarsum
from minipull.cancel import Cancel
from minipull.archive.reader import opened
from minipull.store.store import ImageSource
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import ScriptedServer, hold, reply, reset, sleep
from tests.kit.stores import keep
from tests.kit.v1server import V1Server

pytestmark = pytest.mark.usefixtures("no_waiting")

TABLES = json.loads((DATA / "tables.json").read_text())


def stored(store: minipull.Store, tmp_path: Path, *names: str, **more: Any) -> images.Image:
    layout, made = images.single(tmp_path / "layout", **more)
    for name in names:
        keep(store, layout, made, name)
    return made


def push(server: ScriptedServer, store: ImageSource, name: str = "ns/r:1", **more: Any) -> List[Any]:
    return minipull.push(
        server.host + "/" + name, store, service=minipull.RegistryService(legacy_v1=True, timeout=5),
        uploads=LayerUploadManager(tick=0.001), **more)


def chain_ids(diff_ids: List[str]) -> List[str]:
    found: List[str] = []
    for diff_id in diff_ids:
        text = "sha256:%s %s" % (found[-1] if found else "", diff_id)
        found.append(hashlib.sha256(text.encode()).hexdigest() if found else diff_id[7:])
    return found


def test_an_image_is_a_chain_named_by_its_chain_ids_and_its_image_id(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    made = stored(store, tmp_path, server.host + "/ns/r:1")
    [pushed] = push(server, store)
    ids = chain_ids(made.diff_ids)[:-1] + [made.config["digest"][7:]]
    assert list(v1.images) == ids and v1.tags == {"1": ids[-1]}
    config = json.loads(store.content.read(minipull.Digest(made.config["digest"]), 1 << 20))
    del config["rootfs"], config["history"]
    documents: List[Dict[str, Any]] = [
        {"id": ids[0]}, {"id": ids[1], "parent": ids[0]}, {**config, "id": ids[2], "parent": ids[1]}]
    assert [each.raw for each in v1.images.values()] == [images.to_json(document) for document in documents]
    assert [each.layer for each in v1.images.values()] == [
        store.content.read(minipull.Digest(layer.descriptor["digest"]), 1 << 20) for layer in made.layers]
    listed = [{"id": ids[0]}, {"id": ids[1]}, {"id": ids[2], "Tag": "1"}]
    sums = [{"id": v1_id, "checksum": v1.tarsums[v1_id]} for v1_id in ids]
    assert v1.indexed == [("/v1/repositories/ns/r/", listed), ("/v1/repositories/ns/r/images", sums)]
    assert [layer.diff_id for layer in pushed.layers] == made.diff_ids
    assert {layer.result for layer in pushed.layers} == {"Image successfully pushed"}
    known = V1IDService(store.metadata)
    assert [known.get(v1_id, server.host) for v1_id in ids] == made.diff_ids


def test_an_archive_is_pushed_as_the_store_that_it_was_saved_from(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    name, path = server.host + "/ns/r:1", tmp_path / "a.tar"
    stored(store, tmp_path, name)
    minipull.save([name], store, str(path))
    with opened(str(path), Cancel()) as archive, ScriptedServer() as other:
        sent = []
        for source, target in ((store, server), (archive, other)):
            v1 = V1Server(target)
            pushed = minipull.push(name, source, dest=target.host + "/ns/r:1", uploads=LayerUploadManager(
                tick=0.001), service=minipull.RegistryService(legacy_v1=True, timeout=5))
            sent.append((v1.images, v1.tags, v1.tarsums, [layer.diff_id for layer in pushed[0].layers]))
        assert sent[0] == sent[1] and len(sent[1][0]) == 3
        assert V1IDService(archive.metadata).get(list(sent[1][0])[0], other.host) == sent[1][3][0]


def test_everything_comes_in_order(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    V1Server(server)
    made = stored(store, tmp_path, server.host + "/ns/r:1")
    push(server, store)
    ids = chain_ids(made.diff_ids)[:-1] + [made.config["digest"][7:]]
    wanted = ["/v1/repositories/ns/r/"]
    wanted += ["/v1/images/%s/%s" % (v1_id, what) for v1_id in ids for what in ("json", "layer", "checksum")]
    wanted += ["/v1/repositories/ns/r/tags/1", "/v1/repositories/ns/r/images"]
    assert [request.path for request in server.seen("PUT")] == wanted


def test_a_second_push_sends_no_layer(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    stored(store, tmp_path, *("%s/ns/r:%s" % (server.host, tag) for tag in "12"))
    push(server, store)
    count = len(server.seen("PUT", "/images/"))
    [pushed] = push(server, store, "ns/r:2")
    assert len(server.seen("PUT", "/images/.*/")) == count
    assert {layer.result for layer in pushed.layers} == {"Already exists"}
    assert set(v1.tags) == {"1", "2"}


def test_all_tags_go_in_one_list_and_an_image_with_several_once(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    made = stored(store, tmp_path, *("%s/ns/r:%s" % (server.host, tag) for tag in "12"))
    layout, other = images.single(tmp_path / "other", layers=4)
    keep(store, layout, other, server.host + "/ns/r:3")
    pushed = push(server, store, "ns/r", all_tags=True)
    assert [each.name.tag for each in pushed] == ["1", "2", "3"]
    top, last = made.config["digest"][7:], other.config["digest"][7:]
    assert v1.tags == {"1": top, "2": top, "3": last}
    assert [entry for entry in v1.indexed[0][1] if "Tag" in entry] == [
        {"id": top, "Tag": "1"}, {"id": top, "Tag": "2"}, {"id": last, "Tag": "3"}]
    assert len(v1.images) == 5 and len(server.seen("PUT", "/layer$")) == 5  # they share two


def test_at_most_five_images_are_looked_up_at_once(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1, full, lock = V1Server(server), threading.Event(), threading.Lock()
    stored(store, tmp_path, server.host + "/ns/r:1", layers=8, size=2000)
    inside, most = 0, 0

    def count(connection: Any) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if inside == 5:
                full.set()
        hold(full)(connection)
        with lock:
            inside -= 1
        v1.get_json(connection)

    server.on("GET", "/json$", count)
    push(server, store)
    assert most == 5 and len(server.seen("GET", "/json$")) == 8


def test_progress_is_told_in_the_engines_words(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    V1Server(server)
    made = stored(store, tmp_path, server.host + "/ns/r:1", layers=1)
    events: List[str] = []
    name, short = server.host + "/ns/r", made.config["digest"][7:19]
    wanted = ["The push refers to repository [%s]" % name, "Sending image list", "Pushing repository " + name,
              short + ": Pushing", short + ": Image successfully pushed",
              "Pushing tag for rev [%s] on {%s/v1/repositories/ns/r/tags/1}" % (short, server.url)]
    push(server, store, progress=lambda progress: events.append(str(progress)))
    assert [event for event in events if event in wanted] == wanted


def test_tokens_and_endpoints_work_and_one_elsewhere_is_refused(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server, "ann:secret")
    stored(store, tmp_path, server.host + "/ns/r:1")
    credentials = minipull.Credentials(explicit={server.host: Credential("ann", "secret")})
    push(server, store, credentials=credentials)
    assert v1.tags
    v1.endpoints = foreign.host
    with pytest.raises(PolicyError) as caught:
        push(server, store, credentials=credentials)
    assert caught.value.exit_code == 9 and foreign.requests == []


# -- bodies ----------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_a_layer_that_is_no_gzip_is_compressed_on_its_way(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, compression: str) -> None:
    v1 = V1Server(server)
    store.layers.zstd = "/usr/bin/zstd"
    layout = images.Layout(tmp_path / "layout")
    made = layout.image(images.specs(2, compression=compression), "latest")
    keep(store, layout, made, server.host + "/ns/r:1")
    push(server, store)
    assert [images.digest_of(gzip.decompress(each.layer or b"")) for each in v1.images.values()] == made.diff_ids
    assert len(set(v1.tarsums.values())) == 2


def test_an_image_without_layers_lies_on_an_empty_one(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    layout = images.Layout(tmp_path / "layout")
    keep(store, layout, layout.image([], "latest", config={"parent": "f" * 64}), server.host + "/ns/r:1")
    [pushed] = push(server, store)
    [image] = v1.images.values()
    assert image.layer == images.EMPTY_LAYER and pushed.layers == []
    assert "parent" not in json.loads(image.raw)


def test_a_push_that_breaks_off_is_tried_again(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    stored(store, tmp_path, server.host + "/ns/r:1")
    server.on("PUT", "/layer$", reset, reset, reply(500), reply(500), v1.put_layer)
    push(server, store)
    assert v1.tags
    server.on("PUT", "/json$", reply(400, {"error": "Image depends on a non existing parent"}))
    v1.images.clear()
    with pytest.raises(RegistryError, match="Image depends on a non existing parent"):
        push(server, store)
    server.on("PUT", "/json$", reset)
    with pytest.raises(NetworkError):
        minipull.push(server.host + "/ns/r:1", store, service=minipull.RegistryService(legacy_v1=True),
                      uploads=LayerUploadManager(attempts=1))


def test_a_layer_that_was_just_pushed_elsewhere_is_no_error(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    V1Server(server)
    stored(store, tmp_path, server.host + "/ns/r:1")
    server.on("PUT", "/json$", reply(409, {"error": "Image already exists"}))
    [pushed] = push(server, store)
    assert {layer.result for layer in pushed.layers} == {"Image already pushed, skipping"}
    assert server.seen("PUT", "/layer$") == []


# -- what can't be pushed --------------------------------------------------------


def test_an_index_can_not_be_pushed(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _, _ = images.multi_platform(tmp_path / "layout")
    server.serve(layout.root, "ns/whole")
    minipull.pull(server.host + "/ns/whole", store, all_platforms=True)
    V1Server(server)
    with pytest.raises(Unsupported, match="is no image of one platform"):
        push(server, store, "ns/whole", dest=server.host + "/ns/r:1")
    assert server.seen("PUT") == []


@pytest.mark.parametrize("compression", ["gzip", ""])
def test_a_layer_that_is_not_what_it_was_is_not_sent(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, compression: str) -> None:
    V1Server(server)
    layout = images.Layout(tmp_path / "layout")
    made = layout.image([images.Spec(entries=[("f", b"x" * 900)], compression=compression)], "latest")
    keep(store, layout, made, server.host + "/ns/r:1")
    path = Path(store.content.path(minipull.Digest(made.layers[0].descriptor["digest"])))
    stream = path.read_bytes()
    other = gzip.decompress(stream) if compression else stream
    other = other.replace(b"x" * 900, b"x" * 899 + b"y")
    # The same size, and still a tar: only its digest tells.
    path.write_bytes(gzip.compress(other, 9).ljust(len(stream), b"\0") if compression else other)
    assert path.stat().st_size == len(stream)
    with pytest.raises(StorageError, match="is corrupt; run minipull check"):
        push(server, store)
    path.unlink()
    with pytest.raises(StorageError, match="is not in the store"):
        push(server, store)
    assert server.seen("PUT", "/layer$") == []


def test_a_read_only_store_can_be_pushed_from(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    v1 = V1Server(server)
    stored(store, tmp_path, server.host + "/ns/r:1")
    shutil.rmtree(str(Path(store.root, "metadata")), ignore_errors=True)
    Path(store.root, "metadata").write_text("in the way")
    push(server, store)
    assert v1.tags


def test_a_cancelled_push_ends(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    V1Server(server)
    stored(store, tmp_path, server.host + "/ns/r:1")
    cancel = Cancel()
    server.on("PUT", "/layer$", [lambda connection: cancel.cancel(), sleep(5)])
    with pytest.raises(minipull.Cancelled):
        push(server, store, cancel=cancel)
    assert len(server.seen("PUT", "/layer$")) == 1


# -- checksums -------------------------------------------------------------------


def stream(entries: List[Mapping[str, Any]]) -> bytes:
    """A tar of the entries of the table, whose headers are told in the text that is hashed."""
    data = b""
    for entry in entries:
        folder = "named/mode" in entry["header_text"]
        body = entry["content"].encode()
        data += tars.folder(b"d/", mtime=0) if folder else tars.file(b"a.txt", body, mtime=0)
    return data + tars.END


@pytest.mark.parametrize("case", TABLES["tarsum_vectors"]["cases"], ids=str)
def test_tarsums_are_those_of_the_engine(case: Mapping[str, Any]) -> None:
    assert tarsum(iter([stream(case["entries"])]), case["json"].encode()) == case["tarsum"]


def test_a_tarsum_has_every_field_and_no_order() -> None:
    one = tars.head(b"l", b"2", link=b"t", mode=0o777, uid=1, gid=2, mtime=3, uname=b"u", gname=b"g")
    two = tars.head(b"n", b"3", mode=0o600, mtime=-1 % 8 ** 11, major=1, minor=2)
    text = ("namelmode511uid1gid2size0mtime3typeflag2linknametunameugnamegdevmajor0devminor0",
            "namenmode384uid0gid0size0mtime%dtypeflag3linknameunamegnamedevmajor1devminor2" % (-1 % 8 ** 11))
    sums = "".join(sorted(hashlib.sha256(each.encode()).hexdigest() for each in text))
    wanted = "tarsum+sha256:" + hashlib.sha256(("{}" + sums).encode()).hexdigest()
    assert tarsum(iter([one + two + tars.END]), b"{}") == tarsum(iter([two + one + tars.END]), b"{}") == wanted
