# SPDX-License-Identifier: Apache-2.0
"""Images with real content, made without a network, the same bytes every time.

A :class:`Spec` says what a layer holds, a :class:`Layout` is an OCI image
layout on disk that images and indexes are added to, and the functions after it
make the images that many tests want.  Nothing here comes from minipull, so the
package is never checked against itself.
"""
import gzip
import hashlib
import http.client
import io
import json
import random
import subprocess
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union
from urllib.parse import urlsplit

Descriptor = Dict[str, Any]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
MANIFESTS = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
NAME = "org.opencontainers.image.ref.name"

# The layer that docker writes for "nothing changed": a gzip of 1,024 zero bytes.
EMPTY_LAYER = bytes.fromhex(
    "1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")

CREATED = "2024-01-02T03:04:05Z"
MTIME = 1704164645


class Spec(NamedTuple):
    """What one layer holds: ``size`` bytes over ``files`` made-up files, then ``entries``.

    ``text`` is the share that compresses well.  An entry is a path and bytes
    (a file), a string (a symlink) or None (a directory).
    """

    size: int = 0
    files: int = 4
    seed: int = 0
    text: float = 0.5
    entries: Sequence[Tuple[str, Union[bytes, str, None]]] = ()
    compression: str = "gzip"  # or "zstd", or "" for a plain tar
    raw: Optional[bytes] = None  # the finished blob, gzip unless compression is ""


class Layer(NamedTuple):
    descriptor: Descriptor
    diff_id: str


class Image(NamedTuple):
    """An image or an index in a layout."""

    descriptor: Descriptor
    config: Descriptor
    layers: List[Layer]
    raw: bytes  # the manifest as stored

    @property
    def digest(self) -> str:
        return str(self.descriptor["digest"])

    @property
    def diff_ids(self) -> List[str]:
        return [layer.diff_id for layer in self.layers]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def to_json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


class _Sink:
    """A writable that hashes and counts what it passes on."""

    def __init__(self, *outputs: Any) -> None:
        self._outputs, self._hash, self.size = outputs, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        for output in self._outputs:
            output.write(data)
        return len(data)

    def flush(self) -> None:
        pass

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


# -- tar streams ---------------------------------------------------------------


def _text_block() -> bytes:
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(1000)]
    lines = [" ".join(rng.choices(words[:100] * 4 + words, k=9)) for _ in range(1 << 8)]
    return "\n".join(rng.choices(lines, k=1 << 14)).encode()


_TEXT = _text_block()


def _body(size: int, text: float, rng: random.Random) -> bytes:
    """``size`` bytes: words that compress about sixfold, then noise."""
    words = int(size * text)
    start = rng.randrange(len(_TEXT) // 2)
    prose = (_TEXT[start:] * (words // (len(_TEXT) // 2) + 1))[:words]
    return prose + rng.randbytes(size - words)


def write_tar(spec: Spec, out: Any) -> None:
    """Write the tar stream that ``spec`` describes; memory is one file at most."""
    rng = random.Random(spec.seed)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as tar:
        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode, info.size = MTIME, 0o644, len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))

        if spec.size:
            top = "srv/layer-%d" % spec.seed
            each, left = divmod(spec.size, spec.files)
            add("srv", type=tarfile.DIRTYPE, mode=0o755)
            add(top, type=tarfile.DIRTYPE, mode=0o755)
            for n in range(spec.files):
                if n % 100 == 0:
                    add("%s/%03d" % (top, n // 100), type=tarfile.DIRTYPE, mode=0o755)
                data = _body(each + (left if n == 0 else 0), spec.text, rng)
                add("%s/%03d/file-%d" % (top, n // 100, n), data, mode=0o755 if n % 10 == 0 else 0o644)
            add(top + "/link", type=tarfile.SYMTYPE, linkname="000/file-0", mode=0o777)
            add(top + "/same", type=tarfile.LNKTYPE, linkname=top + "/000/file-0", mode=0o755)
        for name, content in spec.entries:
            if content is None:
                add(name, type=tarfile.DIRTYPE, mode=0o755)
            elif isinstance(content, str):
                add(name, type=tarfile.SYMTYPE, linkname=content, mode=0o777)
            else:
                add(name, content)


# -- layouts -------------------------------------------------------------------


class Layout:
    """An OCI image layout under ``root``, made by hand; ``docker`` for schema 2 media types."""

    def __init__(self, root: Path, docker: bool = False) -> None:
        self.root = root
        self.docker = docker
        self._layers: Dict[str, Layer] = {}
        self._names: Dict[str, Descriptor] = {}
        (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def path(self, digest: str) -> Path:
        return self.root.joinpath("blobs", *digest.split(":"))

    def read(self, digest: str) -> bytes:
        return self.path(digest).read_bytes()

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def layer(self, spec: Spec) -> Layer:
        """Write one layer; the same spec twice is the same blob."""
        key = repr(spec)
        if key not in self._layers:
            self._layers[key] = self._write_layer(spec)
        return self._layers[key]

    def _write_layer(self, spec: Spec) -> Layer:
        kind = {"gzip": "gzip", "zstd": "zstd", "": ""}[spec.compression]
        if self.docker:
            media_type = DOCKER_LAYER + ("." + kind if kind else "")
        else:
            media_type = OCI_LAYER + ("+" + kind if kind else "")
        if spec.raw is not None:
            tar = gzip.decompress(spec.raw) if kind == "gzip" and spec.raw else spec.raw
            return Layer(self.blob(spec.raw, media_type), digest_of(tar))
        partial = self.root / "blobs" / ("partial-%s" % uuid.uuid4())
        with partial.open("wb") as file:
            packed = _Sink(file)
            if kind == "gzip":
                with gzip.GzipFile("", "wb", 1, packed, mtime=0) as zipped:
                    plain = _Sink(zipped)
                    write_tar(spec, plain)
            elif kind == "zstd":
                stream = io.BytesIO()
                plain = _Sink(stream)
                write_tar(spec, plain)
                packed.write(subprocess.run(
                    ["zstd", "-q", "-c", "-1"], input=stream.getvalue(), check=True,
                    stdout=subprocess.PIPE, timeout=60).stdout)
            else:
                plain = packed
                write_tar(spec, plain)
        partial.replace(self.path(packed.digest))
        descriptor = {"mediaType": media_type, "digest": packed.digest, "size": packed.size}
        return Layer(descriptor, plain.digest)

    def image(self, layers: Sequence[Spec], name: Optional[str] = None, platform: str = "linux/amd64",
              config: Optional[Mapping[str, Any]] = None, **manifest: Any) -> Image:
        """Add an image of these layers, bottom first; ``manifest`` adds members to it."""
        with ThreadPoolExecutor(2) as pool:  # zlib works outside the interpreter lock
            made = list(pool.map(self.layer, layers))
        document: Dict[str, Any] = {
            "created": CREATED,
            "config": {"Env": ["PATH=/usr/bin"], "Cmd": ["/srv/run"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in made]},
            "history": [{"created": CREATED, "created_by": "layer %d" % n} for n in range(len(made))],
        }
        document.update(parse_platform(platform))
        document.update(config or {})
        described = self.blob(to_json(document), DOCKER_CONFIG if self.docker else OCI_CONFIG)
        raw = to_json({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST if self.docker else OCI_MANIFEST,
            "config": described, "layers": [layer.descriptor for layer in made], **manifest})
        descriptor = self.blob(raw, DOCKER_MANIFEST if self.docker else OCI_MANIFEST)
        if name is not None:
            self.name(descriptor, name)
        return Image(descriptor, described, made, raw)

    def index(self, children: Sequence[Descriptor], name: Optional[str] = None) -> Image:
        media_type = DOCKER_LIST if self.docker else OCI_INDEX
        raw = to_json({"schemaVersion": 2, "mediaType": media_type, "manifests": list(children)})
        descriptor = self.blob(raw, media_type)
        if name is not None:
            self.name(descriptor, name)
        return Image(descriptor, {}, [], raw)

    def name(self, descriptor: Descriptor, name: str) -> None:
        """Let the layout's index.json know ``descriptor`` as ``name``."""
        self._names[name] = {**descriptor, "annotations": {NAME: name}}
        self.root.joinpath("index.json").write_bytes(to_json(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(self._names.values())}))

    def resolve(self, name: str) -> Descriptor:
        return self._names[name]


def parse_platform(platform: str) -> Dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), platform.split("/")))


# -- images that many tests want -----------------------------------------------


def specs(count: int, size: int = 4096, files: int = 4, seed: int = 0, **fields: Any) -> List[Spec]:
    """``count`` different layers of ``size`` bytes (before compression) each."""
    return [Spec(size=size, files=files, seed=seed + n, **fields) for n in range(count)]


def single(root: Path, name: str = "latest", layers: int = 3, size: int = 40000,
           docker: bool = False) -> Tuple[Layout, Image]:
    layout = Layout(root, docker)
    return layout, layout.image(specs(layers, size), name)


def awkward(root: Path, name: str = "awkward", docker: bool = False) -> Tuple[Layout, Image]:
    """One layer twice, docker's empty layer, whiteouts, a plain tar (in OCI images)."""
    layout = Layout(root, docker)
    base = Spec(20000, seed=7, entries=[("etc", None), ("etc/motd", b"old\n"), ("etc/gone", b"x")])
    change = Spec(entries=[("etc", None), ("etc/motd", b"new\n"), ("etc/.wh.gone", b"")],
                  compression="gzip" if docker else "")
    return layout, layout.image([base, Spec(raw=EMPTY_LAYER), change, base, Spec(raw=EMPTY_LAYER)], name)


PLATFORMS = ("linux/amd64", "linux/arm/v7", "linux/arm/v6", "linux/arm64/v8")


def multi_platform(root: Path, name: str = "latest", docker: bool = False,
                   nested: bool = False) -> Tuple[Layout, Image, Dict[str, Image]]:
    """An index with :data:`PLATFORMS`, and an attestation unless docker.

    ``nested`` puts the two arm children into an index of their own.
    """
    layout = Layout(root, docker)
    images = {platform: layout.image(specs(2, 20000, seed=n * 10), platform=platform)
              for n, platform in enumerate(PLATFORMS)}
    children = [{**image.descriptor, "platform": parse_platform(platform)}
                for platform, image in images.items()]
    if nested:
        children[1:3] = [layout.index(children[1:3]).descriptor]
    if not docker:
        children.append(attestation(layout, children[0]["digest"]))
    return layout, layout.index(children, name), images


def attestation(layout: Layout, subject: str) -> Descriptor:
    """The child that builders add: not an image, though it looks like one."""
    statement = layout.blob(b'{"_type":"https://in-toto.io/Statement/v0.1"}',
                            "application/vnd.in-toto+json")
    config = layout.blob(to_json({
        **parse_platform("unknown/unknown"), "config": {},
        "rootfs": {"type": "layers", "diff_ids": [statement["digest"]]}}), OCI_CONFIG)
    manifest = layout.blob(to_json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [statement]}),
        OCI_MANIFEST)
    return {**manifest, "platform": parse_platform("unknown/unknown"), "annotations": {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject}}


def benchmark(root: Path, name: str = "bench") -> Tuple[Layout, Image]:
    """About 470 MB in 7 gzip layers; 1.4 GB and 60,000 entries unpacked."""
    layout = Layout(root)
    sizes = [16, 480, 80, 350, 4, 240, 240]
    return layout, layout.image([
        Spec(size=size * 1000 * 1000, files=size * 42, seed=n, text=0.85)
        for n, size in enumerate(sizes)], name)


# -- pushing a layout without minipull -----------------------------------------


def push_layout(layout: Layout, name: str, destination: str, *flags: str) -> None:
    """Copy one name of a layout to ``HOST/REPO:TAG`` with skopeo: whole indexes, but not nested ones."""
    done = subprocess.run(
        ["skopeo", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false", *flags,
         "oci:%s:%s" % (layout.root, name), "docker://" + destination],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    if done.returncode != 0:
        raise RuntimeError("skopeo copy: %s" % done.stdout.decode(errors="replace"))


def push_layout_http(layout: Layout, name: str, destination: str) -> None:
    """The same over plain HTTP with http.client: for machines without skopeo, and schema 2."""
    host, _, rest = destination.partition("/")
    repository, _, tag = rest.rpartition(":")
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        _push(connection, layout, repository, layout.resolve(name), tag)
    finally:
        connection.close()


def _push(connection: http.client.HTTPConnection, layout: Layout, repository: str,
          descriptor: Descriptor, reference: str) -> None:
    document = json.loads(layout.read(descriptor["digest"]))
    for child in document.get("manifests", []):
        _push(connection, layout, repository, child, child["digest"])
    for blob in document.get("layers", []) + [document[key] for key in ["config"] if key in document]:
        _push_blob(connection, layout, repository, blob)
    _ask(connection, "PUT", "/v2/%s/manifests/%s" % (repository, reference), (201,),
         layout.read(descriptor["digest"]), {"Content-Type": descriptor["mediaType"]})


def _push_blob(connection: http.client.HTTPConnection, layout: Layout, repository: str,
               blob: Descriptor) -> None:
    url = "/v2/%s/blobs/%s" % (repository, blob["digest"])
    if _ask(connection, "HEAD", url, (200, 404))[0] == 200:
        return
    _, headers = _ask(connection, "POST", "/v2/%s/blobs/uploads/" % repository, (202,))
    location = urlsplit(headers["location"])
    query = location.query + ("&" if location.query else "") + "digest=" + blob["digest"]
    with layout.path(blob["digest"]).open("rb") as file:
        _ask(connection, "PUT", location.path + "?" + query, (201,), file, {
            "Content-Type": "application/octet-stream", "Content-Length": str(blob["size"])})


def _ask(connection: http.client.HTTPConnection, method: str, url: str, expected: Tuple[int, ...],
         body: Union[bytes, IO[bytes], None] = None,
         headers: Optional[Dict[str, str]] = None) -> Tuple[int, Dict[str, str]]:
    connection.request(method, url, body, headers or {})
    response = connection.getresponse()
    text = response.read()
    if response.status not in expected:
        raise RuntimeError("%s %s: %d %r" % (method, url, response.status, text[:300]))
    return response.status, {key.lower(): value for key, value in response.getheaders()}
