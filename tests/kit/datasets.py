# SPDX-License-Identifier: Apache-2.0
"""Data sets of the specification's suite: blobs and manifests, children first."""
import base64
import gzip
import random
from typing import Any, Callable, Dict, List, NamedTuple

from tests.kit.conformance import EMPTY, KIND_1, KIND_2, NONDISTRIBUTABLE, digest_of
from tests.kit.images import (
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER,
    OCI_MANIFEST, Descriptor, parse_platform, to_json)


class Manifest(NamedTuple):
    raw: bytes
    media_type: str
    digest: str
    subject: str


class DataSet:
    """Blobs and manifests, children first, their tags, and the referrers that follow from them."""

    def __init__(self, seed: str) -> None:
        self.algorithm = "sha256"
        self.blobs: Dict[str, bytes] = {}
        self.manifests: List[Manifest] = []
        self.tags: Dict[str, Manifest] = {}
        self.referrers: Dict[str, List[Descriptor]] = {}
        self._random = random.Random(seed)

    def describe(self, data: bytes, media_type: str) -> Descriptor:
        return {"mediaType": media_type, "digest": digest_of(data, self.algorithm), "size": len(data)}

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        described = self.describe(data, media_type)
        self.blobs[described["digest"]] = data
        return described

    def layer(self, kind: str = OCI_LAYER + "+gzip", size: int = 300) -> Descriptor:
        data = self._random.randbytes(size)
        return self.blob(gzip.compress(data, 1, mtime=0) if kind.endswith("gzip") else data, kind)

    def config(self, platform: str = "linux/amd64", kind: str = OCI_CONFIG, **members: Any) -> Descriptor:
        """As careless of its layers as the specification's suite is."""
        return self.blob(to_json({
            **parse_platform(platform), "author": self._random.randbytes(8).hex(), **members,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(b"")]}}), kind)

    def add(self, tag: str = "", **document: Any) -> Descriptor:
        raw = to_json({"schemaVersion": 2, **document})
        described = self.describe(raw, document["mediaType"])
        subject = document.get("subject", {}).get("digest", "")
        made = Manifest(raw, document["mediaType"], described["digest"], subject)
        self.manifests.append(made)
        if tag:
            self.tags[tag] = made
        if subject:
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
            entry = {"artifactType": kind, "annotations": document.get("annotations"), **described}
            self.referrers.setdefault(subject, []).append(
                {key: value for key, value in entry.items() if value is not None})
        return described

    def image(self, tag: str = "", platform: str = "linux/amd64", **members: Any) -> Descriptor:
        return self.add(tag, **{
            "mediaType": OCI_MANIFEST, "config": self.config(platform),
            "layers": [self.layer(), self.layer()], **members})

    def artifact(self, tag: str = "", kind: str = KIND_1, **members: Any) -> Descriptor:
        return self.add(tag, **{
            "mediaType": OCI_MANIFEST, "artifactType": kind, "config": self.blob(b"{}", EMPTY),
            "layers": [self.layer(kind)], **members})

    def index(self, children: List[Descriptor], tag: str = "", **members: Any) -> Descriptor:
        return self.add(tag, **{"mediaType": OCI_INDEX, "manifests": children, **members})

    def platforms(self) -> List[Descriptor]:
        return [{**self.image(platform=name), "platform": parse_platform(name)}
                for name in ("linux/amd64", "linux/arm64")]

    def notes(self) -> Dict[str, str]:
        return {"org.example.note": "a referrer", "org.example.unique": self._random.randbytes(8).hex()}


def image(data: DataSet) -> None:
    data.image("image")


def image_uncompressed(data: DataSet) -> None:
    data.image("plain", layers=[data.layer(OCI_LAYER), data.layer(OCI_LAYER)])


def large_manifest(data: DataSet) -> None:
    data.image("large", annotations={"org.example.%d" % n: "A" * 10000 for n in range(390)})


def index(data: DataSet) -> None:
    data.index(data.platforms(), "index")


def nested_index(data: DataSet) -> None:
    data.index([data.index(data.platforms()), data.index(data.platforms())], "nested")


def empty_index(data: DataSet) -> None:
    data.index([], "empty", annotations=data.notes())


def artifact(data: DataSet) -> None:
    data.artifact("artifact")


def artifact_index(data: DataSet) -> None:
    data.index([data.artifact(), data.artifact()], "artifacts", artifactType=KIND_1)


def artifact_without_layers(data: DataSet) -> None:
    data.artifact("bare", layers=[data.blob(b"{}", EMPTY)])


def artifacts_with_subject(data: DataSet) -> None:
    subject = data.image("image")
    data.image(subject=subject)  # its type is its config's
    data.artifact("first", subject=subject, annotations=data.notes())
    data.artifact("second", KIND_2, subject=subject, annotations=data.notes())


def index_with_subject(data: DataSet) -> None:
    subject = data.index(data.platforms(), "index")
    data.index([data.artifact(), data.artifact()], "artifacts", artifactType=KIND_1, subject=subject,
               annotations=data.notes())
    data.index([], subject=subject)  # of no type


def missing_subject(data: DataSet) -> None:
    subject = data.describe(b"never pushed " + data.notes()["org.example.unique"].encode(), OCI_MANIFEST)
    data.artifact("lonely", subject=subject, annotations=data.notes())


def data_field(data: DataSet) -> None:
    config, layer = data.config(), data.layer()
    for described in (config, layer):
        described["data"] = base64.b64encode(data.blobs[described["digest"]]).decode()
    data.image("data", config=config, layers=[layer])


def nondistributable_layers(data: DataSet) -> None:
    layers = [data.layer(NONDISTRIBUTABLE + "+gzip"), data.layer(NONDISTRIBUTABLE), data.layer()]
    for described in layers[:2]:
        del data.blobs[described["digest"]]
        described["urls"] = ["https://store.example.com/" + described["digest"]]
    data.image("elsewhere", layers=layers)


def custom_fields(data: DataSet) -> None:
    extra: Dict[str, Any] = {"org.example.extra": {"nested": [1, 2.5, None, "\u00e4"]}}
    child = data.image(config=data.config(**extra), layers=[{**data.layer(), **extra}], **extra)
    data.index([{**child, **extra}], "custom", **extra)


def no_layers(data: DataSet) -> None:
    data.image("none", layers=[])


def docker_schema_2(data: DataSet) -> None:
    child = data.add(mediaType=DOCKER_MANIFEST, config=data.config(kind=DOCKER_CONFIG),
                     layers=[data.layer(DOCKER_LAYER + ".gzip")])
    data.add("list", mediaType=DOCKER_LIST, manifests=[
        {**child, "platform": parse_platform("linux/amd64")}])


def sha512(data: DataSet) -> None:
    data.algorithm = "sha512"
    subject = data.index(data.platforms())
    data.artifact(subject=subject)


DATA: List[Callable[[DataSet], None]] = [
    image, image_uncompressed, large_manifest, index, nested_index, empty_index, artifact, artifact_index,
    artifact_without_layers, artifacts_with_subject, index_with_subject, missing_subject, data_field,
    nondistributable_layers, custom_fields, no_layers, docker_schema_2, sha512]
