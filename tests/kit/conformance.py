# SPDX-License-Identifier: Apache-2.0
"""Conformance checks, what they share: the known deviations, a registry, and its answers."""
import hashlib
import http.client
import json
import random
import re
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlencode, urljoin, urlsplit

from tests.kit.images import MANIFESTS, OCI_CONFIG, OCI_MANIFEST, to_json

#: What docker-registry 2.8 does instead: by the name of the check, or of the data set.
DEVIATIONS: Dict[str, Any] = {
    # Errors.
    "GET of a malformed manifest digest": (500, "UNKNOWN"),
    "PUT of a malformed digest": (500, "UNKNOWN"),
    "as long as it says": (416, False),
    "a range that ends too early": False,
    # Uploads.
    "POST with the digest": 202,
    "a mount from anywhere": 202,
    "PATCH out of order": 202,
    "PUT out of order": (400, "DIGEST_INVALID"),
    "a chunk again": (404, "BLOB_UPLOAD_INVALID"),
    "the state at an old Location": 404,
    "a short chunk": (202, ""),
    "an unknown algorithm": (202, ""),
    "a sha512 keeps its name": False,
    "a mounted sha512": 404,
    # Manifests.
    "nondistributable_layers": (500, "UNKNOWN"),
    "sha512": (400, "DIGEST_INVALID"),
    "a manifest by sha512": (400, "DIGEST_INVALID"),
    "a manifest without a config": (400, "DIGEST_INVALID"),
    "a manifest that is not accepted": False,
    "a manifest above the limit": (400, "MANIFEST_INVALID"),
    # Tags: no pages, and no deletes.
    "tags with the manifest": False,
    "n tags": [["B", "a", "b", "c"]] * 4,
    "no tags": ["B", "a", "b", "c"],
    "tags after one": ["B", "a", "b", "c"],
    "tags after one that is not there": ["B", "a", "b", "c"],
    "n tags after one": ["B", "a", "b", "c"],
    "tags page by page": [["B", "a", "b", "c"]],
    "a page of no size": 200,
    "deleting a missing tag": (400, "DIGEST_INVALID"),
    "a tag is deleted": 400,
    "a tag alone is deleted": (400, "DIGEST_INVALID"),
    # Referrers: it knows of none.
    "OCI-Subject": False,
    "referrers of nothing": 404,
    "referrers": 404,
    "referrers counted": 404,
    "referrers in pages": 404,
    "referrers of a malformed digest": (404, ""),
}

ALGORITHMS = ("sha256", "sha512")
CHUNK = 1024
OCTETS = "application/octet-stream"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
KIND_1, KIND_2 = "application/vnd.example.first.v1", "application/vnd.example.second.v1"

#: The codes that the specification registers.
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN",
    "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"}


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return "%s:%s" % (algorithm, hashlib.new(algorithm, data).hexdigest())


def with_query(location: str, **parameters: str) -> str:
    return location + ("&" if "?" in location else "?") + urlencode(parameters)


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]  # names in lower case, values of one name joined by ", "
    body: bytes

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The first code of an error; empty for a success, or where there is no JSON."""
        if self.status < 400 or not self.headers["content-type"].startswith("application/json"):
            return ""
        return str(self.json["errors"][0]["code"])

    @property
    def outcome(self) -> Tuple[int, str]:
        return self.status, self.code


class Remote:
    """A registry, and a repository of it that is the test's own."""

    def __init__(self, name: str, host: str, test: str) -> None:
        self.name = name
        self.host = host
        self.repository = "conformance/" + re.sub("[^a-z0-9]+", "-", test.lower()).strip("-")
        self.random = random.Random(test)
        self._connection = http.client.HTTPConnection(host, timeout=30)

    def check(self, what: str, got: object, wanted: object) -> bool:
        """Assert ``got``; False if it is what docker-registry is known to do instead."""
        instead = DEVIATIONS.get(what, wanted)
        assert what not in DEVIATIONS or instead != wanted, "no deviation: " + what
        expected = instead if self.name == "docker-registry" else wanted
        assert got == expected, what
        return bool(expected == wanted)

    def ask(self, method: str, target: str, body: Union[bytes, Iterable[bytes]] = b"",
            headers: Optional[Mapping[str, str]] = None) -> Answer:
        """``target`` is a path, or a Location as it was given; no bytes go in chunks."""
        parts = urlsplit(urljoin("http://%s/" % self.host, target))
        assert (parts.scheme, parts.netloc) == ("http", self.host)
        path = parts.path + ("?" + parts.query if parts.query else "")
        self._connection.request(method, path, body, {"Accept": ", ".join(MANIFESTS), **(headers or {})})
        response = self._connection.getresponse()
        names = {name.lower() for name in response.headers}
        fields = {name: ", ".join(response.headers.get_all(name, [])) for name in names}
        try:
            answer = Answer(response.status, fields, response.read())
        except http.client.IncompleteRead as error:
            self.check("as long as it says", (response.status, False), (response.status, True))
            answer = Answer(response.status, fields, error.partial)
        if self.name == "minipull" and answer.status >= 400 and method != "HEAD":
            assert fields["content-type"] == "application/json"
            assert {error["code"] for error in answer.json["errors"]} <= CODES
        return answer

    def get(self, *parts: str, headers: Optional[Mapping[str, str]] = None) -> Answer:
        return self.ask("GET", self.path(*parts), headers=headers)

    def head(self, *parts: str) -> Answer:
        return self.ask("HEAD", self.path(*parts))

    def delete(self, *parts: str) -> Answer:
        return self.ask("DELETE", self.path(*parts))

    def path(self, *parts: str) -> str:
        return "/".join(("/v2", self.repository) + parts)

    def close(self) -> None:
        self._connection.close()

    # Uploads.

    def noise(self, size: int = 512) -> bytes:
        return self.random.randbytes(size)

    def start(self, **query: str) -> Answer:
        return self.ask("POST", with_query(self.path("blobs", "uploads", ""), **query))

    def send(self, method: str, location: str, data: bytes, first: int, end: int, digest: str = "") -> Answer:
        """Send a chunk, ``data[first:end]``; the last one may come with the digest."""
        target = with_query(location, digest=digest) if digest else location
        return self.ask(method, target, data[first:end], {
            "Content-Type": OCTETS, "Content-Range": "%d-%d" % (first, end - 1)})

    def finish(self, location: str, digest: str, body: Union[bytes, Iterable[bytes]] = b"") -> Answer:
        return self.ask("PUT", with_query(location, digest=digest), body, {"Content-Type": OCTETS})

    def blob(self, data: bytes, algorithm: str = "sha256") -> str:
        """Push a blob; returns its digest."""
        digest = digest_of(data, algorithm)
        assert self.finish(self.start().location, digest, data).status == 201
        return digest

    # Manifests.

    def put(self, raw: bytes, media_type: str, reference: str) -> Answer:
        return self.ask("PUT", self.path("manifests", reference), raw, {"Content-Type": media_type})

    def image(self, *tags: str) -> Tuple[str, bytes]:
        """Push an image of this test's own by its digest and by tags: its digest and bytes."""
        config = to_json({"os": "linux", "architecture": "amd64", "author": self.noise(8).hex()})
        self.blob(config)
        raw = to_json({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}})
        for reference in (digest_of(raw),) + tags:
            assert self.put(raw, OCI_MANIFEST, reference).status == 201
        return digest_of(raw), raw

    def tags(self, **query: str) -> List[str]:
        answer = self.ask("GET", with_query(self.path("tags", "list"), **query))
        assert (answer.status, answer.json["name"]) == (200, self.repository)
        # docker-registry lists them as they lie on its disk.
        return list(answer.json["tags"]) if self.name == "minipull" else sorted(answer.json["tags"])

    def pages(self, target: str) -> Iterator[Answer]:
        """Every page of a list, by the links from one to the next."""
        for _ in range(100):
            answer = self.ask("GET", target)
            yield answer
            link = re.fullmatch('<([^>]+)>; *rel="next"', answer.headers.get("link", ""))
            if link is None:
                return
            target = urljoin(target, link.group(1))
        raise AssertionError("the pages have no end")

    def referrers(self, subject: str, **query: str) -> Answer:
        return self.ask("GET", with_query(self.path("referrers", subject), **query))


def assert_deleted(remote: Remote, kind: str, reference: str) -> None:
    """A delete works at once, and once."""
    assert remote.delete(kind, reference).status == 202
    assert remote.head(kind, reference).status == 404
    assert remote.get(kind, reference).status == 404
    assert remote.delete(kind, reference).status == 404
