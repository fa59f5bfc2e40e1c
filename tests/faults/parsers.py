# SPDX-License-Identifier: Apache-2.0
"""Documents, texts and streams from outside, and what parses each of them.

Each function gets an empty directory and returns a :class:`Kind`.
"""
import base64
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple, cast

from minipull.cancel import Cancel
from minipull.cli.access import Access
from minipull.cli.settings import Settings
from minipull.digest import DiffID, Digest
from minipull.distribution.places import Place
from minipull.errors import Error
from minipull.image import manifest, schema1
from minipull.image.config import ImageConfig
from minipull.image.descriptor import Descriptor, select
from minipull.image.manifest import Document, Index
from minipull.image.platform import Platform, preference
from minipull.image.tar import Reader
from minipull.image.walk import walk
from minipull.reference import Reference
from minipull.registry.auth import parse_challenges
from minipull.registry.credentials import Credentials, Source, host_of
from minipull.registry.errors import decode_answer
from minipull.registry.proxy import Proxies
from minipull.registry.transport import retry_after
from minipull.registry.url import Origin, joined
from minipull.rootfs.overlay import Overlay
from minipull.store.compression import decompressed
from tests.kit import images, layers
from tests.kit.fuzz import Kind, spoiled, spoiled_json, spoiled_text
from tests.kit.images import Layout, Spec
from tests.kit.stores import multi, text_layer

HOST = Platform("linux", "arm64", "v8")
_TYPES = [*images.MANIFESTS, images.OCI_CONFIG, images.OCI_LAYER, "application/json", ""]
_CLAIMED = [*_TYPES, *[""] * 12]  # Content-Types


def _documents(folder: Path) -> Tuple[List[Any], List[Any], List[Any]]:
    """Manifests, indexes and configs, parsed."""
    layout, index, made = multi(folder / "layout", nested=True)
    image = made["linux/amd64"]
    blob = {"mediaType": images.OCI_LAYER, "digest": image.digest, "size": 5}
    document = json.loads(image.raw.decode())
    rich = dict(document, subject=blob, artifactType="a/b", annotations={"a": "b"}, layers=[
        dict(blob, urls=["https://x.example.com/y"], annotations={"c": "d"}, data="aGVsbG8=")])
    old = json.loads(Layout(folder / "old", docker=True).image([text_layer("x")]).raw.decode())
    config = json.loads(layout.read(image.config["digest"]).decode())
    config.update(created=images.CREATED, author="me", history=[
        {"created": images.CREATED, "created_by": "RUN", "comment": "", "empty_layer": True}, {"author": "x"}],
        config={"Cmd": ["sh"], "Env": ["A=b"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}})
    config["os.features"] = ["x"]
    listed = json.loads(index.raw.decode())
    listed["manifests"][0]["platform"].update({"os.version": "10.0.1", "os.features": ["x"]})
    return [document, rich, old], [listed], [config]


def manifests(folder: Path) -> Kind:
    documents, _, _ = _documents(folder)

    def make(rng: random.Random) -> Tuple[bytes, str]:
        return spoiled_json(rng, rng.choice(documents), _TYPES), rng.choice(_CLAIMED)

    def use(case: Tuple[bytes, str]) -> None:
        manifest.is_schema1(*case)
        document = manifest.parse(*case)
        assert document.raw == case[0]
        manifest.listed(document)
        for item in document.blobs:
            assert Descriptor.from_json(json.loads(json.dumps(item.to_json())), "") == item
        assert isinstance(document, Index) or manifest.is_runnable(document) in (True, False)
    return Kind(make, use)


def indexes(folder: Path) -> Kind:
    _, listed, _ = _documents(folder)

    def make(rng: random.Random) -> Tuple[bytes, str]:
        return spoiled_json(rng, rng.choice(listed), _TYPES), rng.choice(_CLAIMED)

    def use(case: Tuple[bytes, str]) -> None:
        document = manifest.parse(*case)

        def get(item: Descriptor) -> Document:
            return document

        assert len(list(walk(document, lambda item: None))) > 0
        if isinstance(document, Index):
            for item in select(HOST, document.offered):
                str(item.platform and item.platform.normalized())
            list(walk(document.manifests[0], get) if document.manifests else ())
    return Kind(make, use)


def configs(folder: Path) -> Kind:
    _, _, made = _documents(folder)

    def use(case: bytes) -> None:
        config = ImageConfig.parse(case)
        str(config.platform.normalized())
        config.platform.matches(HOST)
        schema1.build("demo/a", "1", config, [Digest.of(b"x")] * len(config.diff_ids))
    return Kind(lambda rng: spoiled_json(rng, rng.choice(made)), use)


def old_manifests(folder: Path) -> Kind:
    """Manifests of schema 1."""
    layout, image = images.single(folder / "layout", layers=2, size=100)
    config = ImageConfig.parse(layout.read(image.config["digest"]))
    signed = schema1.sign(schema1.build("demo/a", "1", config, [Digest.of(b"x")] * 2), 5, images.CREATED)
    document = json.loads(signed.decode())

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return spoiled(rng, signed)
        if rng.random() < 0.5:
            return spoiled_json(rng, document)
        other = json.loads(signed.decode())
        for entry in other["history"]:
            image = json.loads(entry["v1Compatibility"])
            entry["v1Compatibility"] = spoiled_json(rng, image).decode("utf-8", "replace")
        return json.dumps(other).encode()

    def use(case: bytes) -> None:
        for parse in (schema1.payload, schema1.read) if len(case) % 8 else (schema1.parse,):
            try:
                parsed = parse(case)
            except Error:
                continue
            if isinstance(parsed, schema1.Schema1):
                pairs = [(Descriptor(images.DOCKER_LAYER, blob, 1), DiffID(blob)) for blob in parsed.layers]
                schema1.converted(parsed.entries, pairs)
    return Kind(make, use)


_FIELDS = [
    'Bearer realm="https://auth.example.com/token",service="r",scope="repository:a/b:pull,push"',
    'Basic realm="a \\"b\\""', "Negotiate a+b/c==, Basic realm=x", "Digest a=b",
    '</v2/a/tags/list?last=b&n=2>; rel="next"',
    "120", "Wed, 21 Oct 2015 07:28:00 GMT", "bytes 0-9/10", "bytes */10", "0-9", "bytes=0-",
    "Fri, 31 Dec 1999 23:59:59 GMT",
    "1 Jan 1 0.0.0.0", "http://127.0.0.1:5000/v2/?x=y#z", "https://[::1]:443/a b", "//other.example.com/x",
    "../x",
    "http://user:pass@host/", '299 - "old"', "http://xn--nxasmq6b/"]
_WORDS = ["Bearer", "Basic", "realm", "=", '"', "\\", ",", ";", "rel", "next", "bytes", "-", "/", "*",
          "GMT", "http://",
          "https://", "[", "]", "@", "%", "9999999999", "\u212a", "\u0661", "\x85", "\xa0"]


def headers(folder: Path) -> Kind:
    def use(case: str) -> None:
        for challenge in parse_challenges([case, case]):
            challenge.parameters.get("realm", "").encode("utf-8", "surrogateescape")
        assert retry_after(case) >= 0
        decode_answer(401, case, case, case.encode("utf-8", "surrogateescape"), case)
        host_of(case)
        try:
            Origin.of(joined("http://127.0.0.1:5000/v2/", case))
        finally:
            Proxies(case, case, case).find(Origin.of("http://a.example.com:80/"))
    return Kind(lambda rng: spoiled_text(rng, rng.choice(_FIELDS), _WORDS), use)


def error_bodies(folder: Path) -> Kind:
    document = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "m", "detail": {"Tag": "x"}},
                           {"code": "DENIED", "message": "n", "detail": None}], "details": "x"}

    def make(rng: random.Random) -> Tuple[int, str, str, bytes, str]:
        return (rng.choice((400, 401, 403, 404, 416, 429, 500, 503, 302)),
                rng.choice(("", "Not Found", "\x85\ud800")),
                rng.choice(("application/json", "text/html", "application/json; charset=x", "", "\0")),
                spoiled_json(rng, document), rng.choice(("", "invalid_token", "insufficient_scope")))

    def use(case: Tuple[int, str, str, bytes, str]) -> None:
        text = str(decode_answer(*case))
        assert len(text) <= 1100
    return Kind(make, use)


def references(folder: Path) -> Kind:
    digest = "@sha256:" + "0123456789abcdef" * 4
    names = ["alpine", "alpine:3.20", "docker.io/library/alpine:latest" + digest, "localhost/a/b__c.d-e:f",
             "127.0.0.1:5000/a" + digest, "[::1]:5000/a:b", "REG.example.com/a/b/c:" + "x" * 128, "a" * 64,
             "index.docker.io/x", "a/" * 100 + "a", "xn--abc.example.com/x", "localhost:65536/a"]
    tokens = ["docker://", "oci:", "store:", "oci-archive:", "sha512:", "library/", "localhost", "\u00df",
              "\u0130", "K"]

    def make(rng: random.Random) -> str:
        text = spoiled_text(rng, rng.choice(names), tokens)
        return text if rng.random() < 0.7 else rng.choice(tokens) + text

    def use(case: str) -> None:
        for parse in (Place.parse, Origin.of, Digest.parse):
            try:
                cast(Callable[[str], object], parse)(case)
            except Error:
                pass
        name = Reference.parse(case)
        assert Reference.parse(str(name)) == name == Reference.parse(name.familiar), name
        assert str(name).isascii() if hasattr(str, "isascii") else str(name).encode("ascii")
        name.with_default_tag().docker_ref()
    return Kind(make, use)


def platforms(folder: Path) -> Kind:
    names = ["linux/amd64", "linux/arm/v7", "windows(10.0.17763)/amd64", "linux/arm64/v8.1",
             "linux/arm64/v9.5", "arm64", "darwin",
             "linux/386", "macOS/x86_64", "linux/amd64/v4", "freebsd/aarch64/8", "Linux/ARMHF"]

    def use(case: str) -> None:
        platform = Platform.parse(case, HOST)
        assert Platform.parse(str(platform), HOST).normalized() == platform.normalized()
        assert Platform.from_json(platform.to_json(), "") == platform
        for other in preference(platform):
            other.matches(platform)
    tokens = ["/", "v", ".", "(", ")", "\u0661", "arm", "x86-64"]
    return Kind(lambda rng: spoiled_text(rng, rng.choice(names), tokens), use)


#: Offset and width of the fields of a header.
_TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8),
               (265, 32), (329, 8), (337, 8), (345, 155))


def tars(folder: Path) -> List[bytes]:
    simple = io.BytesIO()
    images.write_tar(Spec(1500, files=2, entries=[
        ("d", None), ("d/" + "n" * 150, b"x" * 600), ("l", "d/../d"), ("\u00e9", b"")]), simple)
    whiteouts = [layers.head(b"d/", b"5"), layers.head(b"d/.wh.x", b"0"), layers.head(b"d/.wh..wh..opq", b"0"),
                 layers.head(b"../x", b"0", size=3) + layers.padded(b"abc"),
                 layers.head(b"c", b"3", major=1, minor=3)]
    records = b"".join(layers.record(*pair) for pair in [
        (b"path", b"p/" * 60 + b"q"), (b"mtime", b"1.5"), (b"uid", b"5000000"),
        (b"SCHILY.xattr.user.a", b"b\0c"), (b"size", b"3"), (b"linkpath", b"x" * 120), (b"uname", b"u")])
    pax = layers.extended(records) + layers.head(b"short", b"0") + layers.padded(b"abc")
    glob = layers.extended(layers.record(b"comment", b"c"), b"g") + layers.head(b"h", b"1", link=b"short")
    gnu = layers.extended(b"g" * 200 + b"\0", b"L") + layers.extended(b"t" * 200 + b"\0", b"K")
    gnu += layers.head(b"g", b"2", link=b"t", magic=layers.GNU, uid=layers.base256(1 << 30, 8))
    sparse = layers.extended(b"".join(layers.record(b"GNU.sparse." + key, value) for key, value in [
        (b"major", b"1"), (b"minor", b"0"), (b"name", b"s"), (b"realsize", b"4096")]))
    sparse += layers.head(b"GNUSparseFile.0/s", b"0", size=512) + layers.padded(b"1\n0\n3\n")
    return [simple.getvalue(), b"".join(whiteouts) + layers.END, pax + glob + pax + layers.END,
            gnu + sparse + layers.END]


def tar(folder: Path) -> Kind:
    streams = tars(folder)
    tokens = [b"../", b"/etc", b".wh.", b".wh..wh..opq", b"ustar\x0000", b"ustar  \0", b"x", b"g", b"L", b"K",
              b"S", b"\x80" + bytes(11), b"\xff" * 12, b"77777777777\0", b"-1", b"30 mtime=-", b"12 path=",
              b"GNU.sparse.", b"SCHILY.xattr.", bytes(512), bytes(1024), b"a/" * 200]

    def make(rng: random.Random) -> bytes:
        data = rng.choice(streams)
        for _ in range(rng.choice((1, 1, 2, 5))):
            if rng.random() < 0.4:
                data = spoiled(rng, data, tokens)
                continue
            at = rng.randrange(len(data) // 512 or 1) * 512
            block = bytearray(data[at:at + 512].ljust(512, b"\0"))
            start, width = rng.choice(_TAR_FIELDS)
            field = spoiled(rng, bytes(block[start:start + width]), tokens)
            block[start:start + width] = field[:width].ljust(width, b"\0")
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
            data = data[:at] + bytes(block) + data[at + 512:]
        return data

    def use(case: bytes) -> None:
        overlay, size = Overlay(), 7 + len(case) % 700
        reader = Reader(case[start:start + size] for start in range(0, len(case), size))
        for position, entry in enumerate(reader):
            str(entry)
            assert sum(map(len, reader.data())) == entry.size
            overlay.add(position % 3, position, entry)
        overlay.finish_layer()
        list(overlay.walk())
        overlay.find(b"d/l/x")
    return Kind(make, use)


def compressed(folder: Path) -> Kind:
    """Layers, most of them gzip."""
    plain = tars(folder)
    streams = [gzip.compress(plain[0], 1), gzip.compress(plain[1], 9) + gzip.compress(plain[2], 1) + bytes(512),
               gzip.compress(bytes(3 << 19), 9), images.EMPTY_LAYER, b"BZh91AY&SY", b"\xfd7zXZ\0\0",
               b"\x28\xb5\x2f\xfd\0"]

    def use(case: bytes) -> None:
        file = io.BytesIO(case)
        for piece in decompressed(cast(Any, file), Cancel()):
            assert len(piece) <= 1 << 20
    return Kind(lambda rng: spoiled(rng, rng.choice(streams), [b"\x1f\x8b\x08", bytes(8),
                                                               b"\x1f\x8b\x08\x1f" + bytes(6)]), use)


def settings(folder: Path) -> Kind:
    document = {
        "registry-mirrors": ["https://mirror.example.com/", "http://10.0.0.1:5000"],
        "insecure-registries": ["10.0.0.0/8", "reg.lan:5000", "fd00::/8", "127.0.0.1"],
        "max-concurrent-downloads": 3, "max-concurrent-uploads": 5, "max-download-attempts": 5,
        "legacy-registries": ["old.example.com"], "hosts": {"docker.io": {
            "mirrors": ["https://a.example.com"], "fallback": False, "ca": "/etc/ca"}}}
    environ = {
        "HOME": str(folder), "PATH": "/nonexistent", "MINIPULL_TIMEOUT": "60", "MINIPULL_JOBS": "3",
        "HTTP_PROXY": "http://u:p@proxy.lan:3128/", "NO_PROXY": "a.lan,10.0.0.0/8,.b:80",
        "MINIPULL_PLATFORM": "linux/arm",
        "MINIPULL_CREDS": "a:b", "MINIPULL_CHUNK_SIZE": "10M", "MINIPULL_HEADER": "A:b\nC:d",
        "MINIPULL_TLS_VERIFY": "true",
        "XDG_DATA_HOME": str(folder), "DOCKER_CONFIG": str(folder), "MINIPULL_LISTEN": "127.0.0.1:0"}
    path = folder / "settings.json"

    def make(rng: random.Random) -> Tuple[bytes, Dict[str, str]]:
        changed = dict(environ)
        for name in rng.sample(sorted(environ), 2):
            changed[name] = spoiled_text(rng, environ[name], _WORDS).replace("\0", "")
        data = spoiled_json(rng, document, ["/x\0y"]) if rng.random() < 0.7 else json.dumps(document).encode()
        return data, changed

    def use(case: Tuple[bytes, Dict[str, str]]) -> None:
        path.write_bytes(case[0])
        read = Settings(case[1], {"config": str(path)})
        for ask in (lambda: read.timeout, read.downloads, read.uploads, read.store,
                    lambda: read.size("chunk_size"),
                    lambda: Access(read).sources(), lambda: Access(read).credentials(["a.lan"]),
                    lambda: read.truth("tls_verify"),
                    lambda: Platform.parse(read.platform or "linux/arm"), lambda: Access(read).docker_config):
            try:
                cast(Callable[[], object], ask)()
            except Error:
                pass
        service = Access(read).service(["a.lan"])
        for domain, host in service.hosts.items():
            if host.ca not in ("/etc/ca", ""):  # a context takes long
                service.tls_context(Origin.of("https://" + domain))
        for name in ("alpine", "10.0.0.1:5000/a", "reg.lan:5000/a", "[fd00::1]/a", "localhost/a"):
            reference = Reference.parse(name)
            service.v1_endpoints(reference)
            for endpoint in service.pull_endpoints(reference) + service.push_endpoints(reference):
                service.proxies.find(Origin.of(endpoint.url))
    return Kind(make, use)


def credentials(folder: Path) -> Kind:
    secret = base64.b64encode(b"ann:s3cret").decode()
    document = {"auths": {"a.lan": {"auth": secret},
                          "https://index.docker.io/v1/": {"auth": secret, "identitytoken": "t"},
                          "b.lan/ns": {"username": "u", "password": "p"}, "c.lan": {"registrytoken": "x"}},
                "credHelpers": {"d.lan": "none"}, "credsStore": "", "HttpHeaders": {"a": "b"}}

    def make(rng: random.Random) -> bytes:
        return spoiled_json(rng, document, [secret, secret + "=", "OmE=", "/w==", "../x", "a b"])

    def use(case: bytes) -> None:
        text = case.decode("utf-8", "surrogateescape")
        found = 0
        for flat in (False, True):
            for required in (False, True):
                ring = Credentials([Source("x", text, flat, required)], helper_environ={"PATH": "/nonexistent"})
                for host, path in (("a.lan", ""), ("docker.io", "library/x"), ("b.lan", "ns/repo"),
                                   ("d.lan", "x")):
                    try:
                        found += ring.get(host, path).anonymous
                    except Error:
                        assert required
        assert found >= 0
    return Kind(make, use)
