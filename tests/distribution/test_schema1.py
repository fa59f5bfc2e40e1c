# SPDX-License-Identifier: Apache-2.0
"""Schema 1: what is signed is what is read, whatever is spoilt is refused, and the store has schema 2 of it."""
import base64
import gzip
import json
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import pytest

from tests.kit import DATA
from tests.kit import images
import minipull
from tests.kit.processes import peer, run
from tests.kit.images import EMPTY_LAYER, Layout, Spec
from minipull.image import schema1
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.image.descriptor import SCHEMA1, SCHEMA1_SIGNED
from minipull.digest import Digest
from minipull.errors import ContentMismatch, Error, InvalidDocument, NotFound, PolicyError, Unsupported
from minipull.registry.errors import RegistryError
from minipull.image.config import History, ImageConfig
from tests.kit.servers import Connection, ScriptedServer, Uploads, content, error, reply
from tests.kit.pulls import asked, pull, refused
from tests.kit.work import Log
from tests.kit.pushes import kept, loaded, push

pytestmark = pytest.mark.usefixtures("no_waiting")

TABLES = json.loads((DATA / "schema1.json").read_text("utf-8"))
TIME = "2015-04-01T20:15:23Z"
IDS = {"I%d" % n: "%064x" % n for n in range(9)}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout", docker=True)


def entry(name: str, parent: str = "", **members: Any) -> Dict[str, Any]:
    return {"id": IDS.get(name, name), **({"parent": IDS.get(parent, parent)} if parent else {}), **members}


def written(entries: Sequence[Dict[str, Any]], blobs: Sequence[str] = (), **members: Any) -> bytes:
    """A payload with these images, the top one first."""
    blobs = blobs or [images.digest_of(b"%d" % n) for n in range(len(entries))]
    return json.dumps({
        "schemaVersion": 1, "name": "r", "tag": "latest", "architecture": "amd64",
        "fsLayers": [{"blobSum": blob} for blob in blobs],
        "history": [{"v1Compatibility": json.dumps(each)} for each in entries], **members}, indent=3).encode()


def signed(payload: bytes, key: int = 5) -> bytes:
    return schema1.sign(payload, key, TIME)


ONE = written([entry("I2", "I1", created=TIME), entry("I1")])


# -- the engine's tables -----------------------------------------------------------


@pytest.mark.parametrize("case", TABLES["schema1_vectors"], ids=lambda case: case["name"])
def test_payloads_are_the_engines(case: Dict[str, Any]) -> None:
    config = ImageConfig.parse(case["config"].encode())
    made = schema1.build(case["name"], case["tag"], config, [Digest(layer) for layer in case["layers"]])
    assert Digest.of(made) == case["canonical_digest"]
    found = schema1.parse(signed(made))
    assert (found.raw, found.digest, list(found.layers)) == (made, case["canonical_digest"], case["layers"])
    assert len(found.entries) == len(config.history)


@pytest.mark.parametrize("case", TABLES["fix_manifest_layers"], ids=lambda case: case["error"] or "fixed")
def test_the_chain_is_the_engines(case: Dict[str, Any]) -> None:
    raw = written([entry(each["id"], each.get("parent", "")) for each in case["entries_top_first"]])
    if case["error"]:
        with pytest.raises(InvalidDocument) as caught:
            schema1.read(raw)
        assert case["error"] in str(caught.value)
    else:
        names = [each.v1["id"] for each in schema1.read(raw).entries]
        assert names[::-1] == [IDS[name] for name in case["result"]]


def test_the_empty_layer_is_dockers() -> None:
    assert schema1.EMPTY == EMPTY_LAYER and gzip.decompress(EMPTY_LAYER) == bytes(1024)


# -- what is refused -----------------------------------------------------------------

BLOB = images.digest_of(b"x")
READ: Dict[str, bytes] = {
    "no JSON": b"{", "schema 2": written([entry("I1")], schemaVersion=2),
    "a schema that is true": written([entry("I1")], schemaVersion=True),
    "nothing": written([]), "more history": written([entry("I2", "I1"), entry("I1")], [BLOB]),
    "more layers": written([entry("I1")], [BLOB, BLOB]), "no digest": written([entry("I1")], ["sha256:../../etc"]),
    "layers of strings": written([entry("I1")], fsLayers=[BLOB]),
    "history of strings": written([entry("I1")], history=["{}"]),
    "an image that is no JSON": written([entry("I1")], history=[{"v1Compatibility": "{"}]),
    "an image that is a list": written([entry("I1")], history=[{"v1Compatibility": "[]"}]),
    "an id with a path": written([entry("../../etc/passwd")]), "an id in capitals": written([entry("A" * 64)]),
    "a loop": written([entry("I1", "I2"), entry("I2", "I1")]),
    "an id twice": written([entry("I1", "I2"), entry("I2", "I1"), entry("I1")]),
    "a parent that is a number": written([dict(entry("I1"), parent=3)]),
    "a member twice": ONE[:-1] + b', "tag": "other"}'}


@pytest.mark.parametrize("raw", READ.values(), ids=READ.keys())
def test_a_malformed_payload_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        schema1.read(raw)


def test_more_layers_than_we_take_are_refused() -> None:
    with pytest.raises(PolicyError):
        schema1.read(written([entry("%064x" % n, "%064x" % (n + 1)) for n in range(1001)]))


def respoilt(change: Callable[[Dict[str, Any]], object], raw: bytes = b"") -> bytes:
    """A signed manifest, changed in its first signature."""
    document = json.loads(raw or signed(ONE))
    change(document["signatures"][0])
    head = ONE[:-2] + b',\n   "signatures": '
    return head + json.dumps(document["signatures"]).encode() + b"\n}"


def protected(**members: Any) -> str:
    data = json.dumps({"formatLength": len(ONE) - 2, "formatTail": "Cn0", **members}).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


SPOILT: Dict[str, Callable[[Dict[str, Any]], object]] = {
    "no header": lambda s: s.pop("header"), "no key": lambda s: s["header"].pop("jwk"),
    "no key id": lambda s: s["header"]["jwk"].pop("kid"), "no algorithm": lambda s: s["header"].pop("alg"),
    "no signature": lambda s: s.pop("signature"), "nothing protected": lambda s: s.pop("protected"),
    "none": lambda s: s["header"].update(alg="none"), "HS256": lambda s: s["header"].update(alg="HS256"),
    "another curve": lambda s: s["header"]["jwk"].update(crv="P-384"),
    "RS256 with such a key": lambda s: s["header"].update(alg="RS256"),
    "RS256 without a key": lambda s: s["header"].update(alg="RS256", jwk={"kty": "RSA"}),
    "a point elsewhere": lambda s: s["header"]["jwk"].update(x="AAAA"),
    "a padded signature": lambda s: s.update(signature=s["signature"] + "=="),
    "a signature in letters of others": lambda s: s.update(signature="\u00e9" * 8),
    "a signature with a blank": lambda s: s.update(signature=" " + s["signature"]),
    "a length that is too much": lambda s: s.update(protected=protected(formatLength=1 << 40)),
    "a length that is negative": lambda s: s.update(protected=protected(formatLength=-1)),
    "no length": lambda s: s.update(protected=protected(formatLength=None)),
    "another time": lambda s: s.update(protected=protected(time=TIME)),
    "another tail": lambda s: s.update(protected=protected(formatTail="fQ")),
    "protected in another spelling": lambda s: s.update(protected=s["protected"] + "=")}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_signature_is_refused(change: Callable[[Dict[str, Any]], object]) -> None:
    with pytest.raises(InvalidDocument):
        schema1.parse(respoilt(change))


def test_every_signature_must_be_good_and_of_the_same() -> None:
    two = json.loads(signed(ONE, 7))["signatures"][0]
    both = respoilt(lambda s: None).replace(b"\n}", b"")[:-1] + b"," + json.dumps(two).encode() + b"]\n}"
    assert len(set(schema1.parse(both).signers)) == 2
    for other in (dict(two, signature="AAAA"), dict(two, protected=protected(formatTail="fQ"))):
        with pytest.raises(InvalidDocument):
            schema1.parse(both.replace(json.dumps(two).encode(), json.dumps(other).encode()))
    many = json.loads(signed(ONE))["signatures"] * 17
    with pytest.raises(InvalidDocument, match="17 signatures"):
        schema1.parse(ONE[:-2] + b', "signatures": ' + json.dumps(many).encode() + b"\n}")


def test_members_outside_the_payload_are_not_read() -> None:
    raw = signed(ONE).replace(b',\n   "signatures"', b',\n   "mediaType": "x",\n   "signatures"')
    assert schema1.parse(raw).raw == ONE


def test_each_flipped_bit_is_refused() -> None:
    raw = signed(ONE)
    rng = random.Random(3)
    for position in range(len(raw)):
        spoilt = bytearray(raw)
        spoilt[position] ^= 1 << rng.randrange(8)
        with pytest.raises(InvalidDocument):
            schema1.parse(bytes(spoilt))


def test_no_document_leads_to_anything_but_an_error() -> None:
    rng = random.Random(4)
    raw = signed(ONE)
    for _ in range(400):
        spoilt = bytearray(raw)
        for _ in range(rng.choice((1, 2, 8))):
            start = rng.randrange(len(spoilt))
            piece = rng.choice((b"", b'"', b"{}", b"null", b"9" * 30, b"\\u0000", raw[:40]))
            spoilt[start:start + rng.choice((0, 1, 20))] = piece
        for read in (schema1.parse, schema1.payload, schema1.read):
            try:
                read(bytes(spoilt))
            except Error:
                pass


def test_rs256_is_openssls(tmp_path: Path) -> None:
    openssl = peer("openssl")
    for bits in (1024, 2048, 3072):
        run([openssl, "genrsa", "-out", "key", str(bits)], cwd=tmp_path)
        run([openssl, "rsa", "-in", "key", "-pubout", "-outform", "DER", "-out", "public"], cwd=tmp_path)
        modulus = run([openssl, "rsa", "-in", "key", "-noout", "-modulus"], cwd=tmp_path).out
        n = bytes.fromhex(modulus.strip().partition("=")[2])
        message = protected() + "." + base64.urlsafe_b64encode(ONE).decode().rstrip("=")
        (tmp_path / "message").write_text(message)
        run([openssl, "dgst", "-sha256", "-sign", "key", "-out", "signature", "message"], cwd=tmp_path)
        texts = [base64.urlsafe_b64encode(data).decode().rstrip("=")
                 for data in ((tmp_path / "signature").read_bytes(), n, b"\1\0\1")]
        name = schema1.key_id((tmp_path / "public").read_bytes())
        jwk = {"kty": "RSA", "n": texts[1], "e": texts[2], "kid": name}
        made = {"header": {"alg": "RS256", "jwk": jwk}, "signature": texts[0], "protected": protected()}
        raw = respoilt(lambda s: s.update(made))
        if bits == 1024:
            with pytest.raises(InvalidDocument, match="is not good"):
                schema1.parse(raw)
        else:
            assert schema1.parse(raw).signers == (name,)
            with pytest.raises(InvalidDocument, match="is not good"):
                schema1.parse(raw.replace(b"latest", b"newest"))


# -- pulls -----------------------------------------------------------------------------


def offer(server: ScriptedServer, layout: Layout, specs: Sequence[Spec], kind: str = SCHEMA1_SIGNED,
          throwaway: int = 1, by_digest: bool = True, **members: Any) -> Tuple[bytes, List[images.Layer]]:
    """Let a registry have an image as schema 1; its payload and layers."""
    layers = [layout.layer(spec) for spec in specs]
    blobs = [layer.descriptor["digest"] for layer in layers] + [images.digest_of(EMPTY_LAYER)] * throwaway
    entries = [entry("I%d" % n, "I%d" % (n - 1) if n else "", **({"throwaway": True} if n >= len(specs) else {}))
               for n in range(len(blobs))]
    entries[0]["container_config"] = {"Cmd": ["/bin/sh", "-c", "make"]}
    entries[-1].update({"os": "linux", "architecture": "amd64", "created": TIME, "config": {"Cmd": ["<&>"]},
                        "Size": 7, **members})
    payload = written(entries[::-1], blobs[::-1])
    headers = {"Docker-Content-Digest": images.digest_of(payload)}
    for name in ("latest", images.digest_of(payload)) if by_digest else ("latest",):
        server.on("GET", "/manifests/%s$" % name, content(signed(payload), kind, ranges=False, headers=headers))
    for layer in layers:
        digest = layer.descriptor["digest"]
        server.on("GET", "/blobs/%s$" % digest, content(layout.read(digest)))
    return payload, layers


@pytest.mark.parametrize("kind", [SCHEMA1_SIGNED, "application/json; charset=utf-8"])
def test_a_schema_1_image_is_stored_as_schema_2(
        server: ScriptedServer, store: minipull.Store, layout: Layout, kind: str) -> None:
    payload, layers = offer(server, layout, images.specs(2), kind, by_digest=False)
    log = Log()
    pulled = pull(server, store, progress=log)
    assert log.tells("outdated schema 1 format, signed with key 3L6E:DDVQ:") and log.tells("may be anybody's")
    assert pulled.source == images.digest_of(payload) != pulled.descriptor.digest
    document = json.loads(store.content.read(pulled.descriptor.digest, 1 << 20))
    assert document["layers"] == [dict(layer.descriptor, mediaType=images.DOCKER_LAYER + ".gzip") for layer in layers]
    assert document["mediaType"] == pulled.descriptor.media_type == images.DOCKER_MANIFEST
    assert pulled.config is not None and list(pulled.config.diff_ids) == [layer.diff_id for layer in layers]
    assert pulled.config.history == (
        History("0001-01-01T00:00:00Z", created_by="/bin/sh -c make"), History("0001-01-01T00:00:00Z"),
        History(TIME, empty_layer=True))
    assert pulled.config.config == {"Cmd": ["<&>"]} and b"\\u003c\\u0026\\u003e" in pulled.config.raw
    assert not {"id", "parent", "Size", "throwaway"} & set(json.loads(pulled.config.raw))
    assert check(store) == [] and gc(store, 0).blobs == []
    asked(server)
    assert pull(server, store, progress=log) == pulled
    assert asked(server) == ["HEAD manifests/latest"]
    again = minipull.Store(store.root + "-2")
    assert pull(server, again)._replace(name=pulled.name) == pulled


def test_the_digest_of_schema_1_is_that_of_its_payload(
        server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    payload, _ = offer(server, layout, images.specs(1))
    name = "r@" + images.digest_of(payload)
    pulled = pull(server, store, name)
    assert str(pulled) == "%s/%s" % (server.host, name)
    asked(server)
    pull(server, store, name)
    assert asked(server) == []


@pytest.mark.parametrize("old, new", [
    (b"make", b"fake"), (b'"signature": "', b'"signature": "A'), (b'"protected": "e', b'"protected": "f')])
def test_a_tampered_manifest_is_refused_by_tag_and_by_digest(
        server: ScriptedServer, store: minipull.Store, layout: Layout, old: bytes, new: bytes) -> None:
    payload, _ = offer(server, layout, images.specs(1))
    digest, raw = images.digest_of(payload), signed(payload)
    assert old in raw
    for headers in ({"Docker-Content-Digest": digest}, {"Docker-Content-Digest": ""}):
        server.on("GET", "/manifests/", content(raw.replace(old, new, 1), SCHEMA1_SIGNED, headers=headers))
        for name in ("r", "r@" + digest):
            with pytest.raises((InvalidDocument, ContentMismatch)) as caught:
                pull(server, store, name)
            assert caught.value.exit_code == 6 and store.images() == []


def test_an_unsigned_manifest_is_refused(server: ScriptedServer, store: minipull.Store) -> None:
    for kind in (SCHEMA1, SCHEMA1_SIGNED, ""):
        server.on("GET", "/manifests/", content(ONE, kind))
        assert "0 signatures, want 1 to 16" in refused(InvalidDocument, server, store)


def test_an_index_has_no_schema_1(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    child = dict(layout.blob(signed(ONE), images.DOCKER_MANIFEST), digest=images.digest_of(ONE),
                 platform={"os": "linux", "architecture": "amd64"})
    index = layout.index([child], "latest")
    server.on("GET", "/manifests/", content(signed(ONE), SCHEMA1_SIGNED))
    server.on("GET", "/manifests/latest$", content(index.raw, images.DOCKER_LIST))
    assert "only pull understands" in refused(Unsupported, server, store, platform="linux/amd64")


def test_a_layer_that_is_not_there_is_named(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    _, layers = offer(server, layout, images.specs(2))
    digest = layers[1].descriptor["digest"]
    server.on("GET", "/blobs/%s$" % digest, error(404, "BLOB_UNKNOWN"))
    assert "layer %s is not there" % digest in refused(NotFound, server, store)


def test_a_layer_that_nobody_can_read_is_refused(
        server: ScriptedServer, store: minipull.Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.store.compression.decompressed", unreadable)
    offer(server, layout, images.specs(1))
    assert "schema 1 does not say what is in it" in refused(InvalidDocument, server, store)


def unreadable(*args: Any) -> Any:
    raise Unsupported("no decoder")


def test_the_platform_is_that_of_the_top(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    offer(server, layout, images.specs(1), architecture="s390x")
    assert "image is for linux/s390x" in refused(NotFound, server, store, platform="linux/amd64")
    log = Log()
    assert pull(server, store, progress=log).architecture == "s390x"
    assert log.tells("WARNING: image is for linux/s390x")


def test_a_malformed_config_is_refused(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    offer(server, layout, images.specs(1), config="sh")
    assert "'config' must be an object" in refused(InvalidDocument, server, store)


def test_one_layer_may_be_there_twice(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    _, layers = offer(server, layout, images.specs(1) * 2, throwaway=0)
    pulled = pull(server, store)
    assert pulled.config is not None and pulled.config.diff_ids == (layers[0].diff_id,) * 2
    assert check(store) == []


# -- pushes ----------------------------------------------------------------------------


class OldRegistry(Uploads):
    """Takes schema 1 alone; ``refusal`` is what it says of anything else."""

    refusal = staticmethod(error(400, "MANIFEST_INVALID"))

    def put(self, connection: Connection) -> None:
        if connection.request.headers["content-type"] != SCHEMA1_SIGNED:
            return self.refusal(connection)
        raw = connection.body()
        found = schema1.parse(raw)
        assert set(entry.blob for entry in found.entries) <= set(self.blobs)
        self.manifests[connection.request.path.rpartition("/")[2]] = raw
        reply(201, headers={"Docker-Content-Digest": found.digest})(connection)


HISTORY = [{"created": TIME, "created_by": "<make>"}, {"created": TIME, "created_by": "CMD", "empty_layer": True},
           {"created_by": "more"}]


@pytest.mark.parametrize("refusal", [
    error(400, "MANIFEST_INVALID"), error(405, "UNSUPPORTED"), error(415, "UNKNOWN"), reply(404, "no such page")])
def test_an_old_registry_gets_schema_1_if_asked_to(
        server: ScriptedServer, store: minipull.Store, layout: Layout, refusal: Any) -> None:
    registry = OldRegistry(server)
    registry.refusal = refusal
    made = kept(server, store, layout, images.specs(2), config={"history": HISTORY})
    with pytest.raises(RegistryError, match="; an old registry may take it with --legacy-schema1"):
        push(server, store)
    assert not registry.manifests
    log = Log()
    [pushed] = push(server, store, legacy_schema1=True, progress=log)
    found = schema1.parse(registry.manifests["latest"])
    assert (pushed.descriptor.digest, pushed.descriptor.size) == (found.digest, len(found.raw))
    assert pushed.descriptor.media_type == SCHEMA1_SIGNED
    assert log.tells("WARNING:") and log.tells("the digest is now %s" % found.digest)
    assert list(found.layers) == [layer.descriptor["digest"] for layer in made.layers]
    assert images.digest_of(EMPTY_LAYER) in registry.blobs
    server.on("GET", "/manifests/", content(registry.manifests["latest"], SCHEMA1_SIGNED, headers={
        "Docker-Content-Digest": found.digest}))
    for digest, data in registry.blobs.items():
        server.on("GET", "/blobs/%s$" % digest, content(data))
    pulled = pull(server, minipull.Store(store.root + "-2"))
    assert pulled.config is not None and list(pulled.config.diff_ids) == made.diff_ids
    assert [item.created_by for item in pulled.config.history] == ["<make>", "CMD", ""]


def test_a_registry_that_knows_the_manifest_gets_it(
        server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    registry = Uploads(server)
    made = kept(server, store, layout, images.specs(1))
    [pushed] = push(server, store, legacy_schema1=True)
    assert pushed.descriptor.digest == made.digest in registry.manifests


def test_no_other_error_is_a_reason(server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    registry = OldRegistry(server)
    kept(server, store, layout, images.specs(1))
    for refusal in (error(403, "DENIED"), error(400, "TAG_INVALID"), error(404, "NAME_UNKNOWN")):
        registry.refusal = refusal
        with pytest.raises(RegistryError) as caught:
            push(server, store, legacy_schema1=True)
        assert "schema" not in str(caught.value) and not registry.manifests


def test_without_a_history_each_layer_has_its_own(
        server: ScriptedServer, store: minipull.Store, layout: Layout) -> None:
    registry = OldRegistry(server)
    kept(server, store, layout, images.specs(2), config={"history": []})
    push(server, store, legacy_schema1=True)
    assert len(schema1.parse(registry.manifests["latest"]).entries) == 2
    assert images.digest_of(EMPTY_LAYER) not in registry.blobs


@pytest.mark.parametrize("specs, history, text", [
    (images.specs(2), HISTORY[:1], "does not fit its layers"), ([], [], "does not fit its layers"),
    ([Spec(900, compression="zstd")], HISTORY[:1], "no layers of type")])
def test_an_image_that_schema_1_can_not_express_is_refused(
        server: ScriptedServer, store: minipull.Store, layout: Layout, specs: Any, history: Any, text: str) -> None:
    OldRegistry(server)
    if "type" in text:
        peer("zstd")
    loaded(server, store, layout, layout.image(specs, config={"history": history}))
    with pytest.raises(Unsupported, match=text):
        push(server, store, legacy_schema1=True)


def test_an_index_is_refused_as_it_was(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    OldRegistry(server)
    layout, index, _ = images.multi_platform(tmp_path / "layout", docker=True)
    loaded(server, store, layout, index)
    for legacy in (False, True):
        with pytest.raises(RegistryError) as caught:
            push(server, store, legacy_schema1=legacy)
        assert "legacy" not in str(caught.value)


@pytest.mark.parametrize("v1", [
    None, {"os": 5}, {"os": "linux", "architecture": []}, {"os": "linux", "config": "x"},
    {"os": "linux", "created": 1}], ids=str)
def test_what_makes_no_config_is_refused_before_it_has_a_name(v1: Any) -> None:
    """Old archives and v1 registries bring such images."""
    entries = [] if v1 is None else [schema1.Entry(Digest.of(b"x"), v1)]
    with pytest.raises(InvalidDocument):
        schema1.converted(entries, [])
