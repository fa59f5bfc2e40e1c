# SPDX-License-Identifier: Apache-2.0
"""cosign's signatures of images: keys, payloads and the verdict on each.

A good one is ECDSA P-256 over a payload of the simple signing format that names the
digest of the image; the name in it is told and binds nothing.  Certificates (keyless),
attestations (DSSE), bundles and Notary's signatures are not checked, and so never
good; nor is the transparency log, or any date.

Spec: cosign's SIGNATURE_SPEC.md; RFC 5480 (keys), RFC 3279 (signatures).
"""
import abc
import base64
import contextlib
import json
import re
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument, InvalidReference, NotFound, PolicyError, StorageError, shown
from . import es256
from .descriptor import Descriptor
from .manifest import Document, Manifest
from .strictjson import object_at, parse_json, string_at

MAX_SIGNATURES = 128  # of one image, and the manifests that hold them
MAX_PAYLOAD = 1 << 20  # bytes
#: Signatures that are not checked, by how their media type begins.
_OTHERS = {
    "application/vnd.dsse.": "an attestation (DSSE)", "application/vnd.cncf.notary.": "a Notary signature",
    "application/vnd.dev.sigstore.bundle": "a sigstore bundle"}
#: The media types of signatures, and of manifests that hold them, begin so.
KINDS = (*_OTHERS, "application/vnd.dev.cosign.")
_TYPE = "cosign container image signature"


class Key(NamedTuple):
    """A public key, its file, and the sha256 of its DER form."""
    point: es256.Point
    source: str
    fingerprint: Digest


class Signature(NamedTuple):
    """The verdict on a signature: good, bad or unchecked; only the claims of a good one are told."""
    result: str
    reason: str
    digest: Digest  # of the image
    key: Optional[Key] = None
    identity: str = ""  # the name that the image was signed under
    annotations: Mapping[str, Any] = {}

    def __str__(self) -> str:
        if self.key is None:
            return ("not checked: %s" if self.result == "unchecked" else "bad signature: %s") % self.reason
        return "%s is signed by %s (%s) as %s, with %s" % (
            self.digest, self.key.source, self.key.fingerprint, self.identity, json.dumps(self.annotations))


def parse_key(data: bytes, source: str) -> Key:
    """Parse a file with one public key in PEM, that messages call ``source``; raises InvalidReference.

    Example::

        with open("cosign.pub", "rb") as file:
            keys = [minipull.parse_key(file.read(), "cosign.pub")]  # as pull() and copy() take them
    """
    text = data.decode("ascii", "replace")
    labels = re.findall("-----BEGIN ([^-\n]*)-----", text)
    body = re.search("-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\\s]*)-----END PUBLIC KEY-----", text)
    der = _decoded("".join(body.group(1).split())) if body else b""
    point = int.from_bytes(der[-64:-32], "big"), int.from_bytes(der[-32:], "big")
    if labels == ["PUBLIC KEY"] and der[:-64] == es256.PREFIX and es256.on_curve(point):
        return Key(point, source, Digest.of(der))
    held = " and ".join(labels) or "none in PEM"
    if labels == ["PUBLIC KEY"]:
        held += ", broken or of another kind"
    raise InvalidReference("%s: want one public key (ECDSA P-256), it holds %s" % (
        shown(source, 300), shown(held, 100)))


def _decoded(text: str) -> bytes:
    """Decode base64, of which there is one way to write it; empty if it is not that."""
    with contextlib.suppress(ValueError):
        data = base64.b64decode(text)
        if base64.b64encode(data).decode() == text:
            return data
    return b""


def _raw(der: bytes) -> bytes:
    """Return the 64 bytes of r and s of a signature in DER; empty if it is not that."""
    if 8 <= len(der) <= 72:
        numbers = [int.from_bytes(part, "big") for part in (der[4:4 + der[3]], der[6 + der[3]:])]
        parts = [number.to_bytes(number.bit_length() // 8 + 1, "big") for number in numbers]
        encoded = b"".join(b"\2%c%b" % (len(part), part) for part in parts)
        if der == b"\x30%c%b" % (len(encoded), encoded) and max(numbers) < 1 << 256:
            return b"".join(number.to_bytes(32, "big") for number in numbers)
    return b""


class Signatures(abc.ABC):
    """The signatures at a registry, in a store or in an archive."""

    @abc.abstractmethod
    def manifests(self, digest: Digest) -> Iterator[Document]:
        """Yield the manifests that may hold signatures of an image."""

    @abc.abstractmethod
    def read(self, blob: Descriptor, limit: int) -> bytes:
        """Read and verify a blob of at most ``limit`` bytes; raises as BlobSource.read()."""

    def above(self, digest: Digest) -> Sequence[Digest]:
        """List the indexes that are known to hold a manifest, whose signatures cover it, too."""
        return ()

    def of(self, digests: Iterable[Digest], keys: Sequence[Key]) -> Iterator[Signature]:
        """Judge each signature of these digests, and of the indexes above them; raises PolicyError."""
        for digest in sorted({item for digest in digests for item in (digest, *self.above(digest))}):
            left = MAX_SIGNATURES
            for document in self.manifests(digest):
                layers = document.layers if isinstance(document, Manifest) else ()
                left -= 1 + len(layers)
                if left < 0:
                    raise PolicyError("%s: more than %d signatures" % (digest, MAX_SIGNATURES))
                for layer in layers:
                    if layer.media_type.startswith(KINDS):
                        yield self._judged(layer, digest, keys)

    def _judged(self, layer: Descriptor, digest: Digest, keys: Sequence[Key]) -> Signature:
        for begin, kind in _OTHERS.items():
            if layer.media_type.startswith(begin):
                return Signature("unchecked", kind, digest)
        notes = layer.annotations or {}
        raw = _raw(_decoded(notes.get("dev.cosignproject.cosign/signature", "")))
        try:
            payload = self.read(layer, MAX_PAYLOAD)
            if len(payload) != layer.size:
                raise ContentMismatch("payload %s: size is %d, expected %d" % (
                    layer.digest, len(payload), layer.size))
            for key in keys:
                if es256.verify(key.point, payload, raw):
                    return _claims(payload, digest, key)
        except (InvalidDocument, ContentMismatch, NotFound, StorageError) as exc:
            return Signature("bad", str(exc), digest)
        if "dev.sigstore.cosign/certificate" in notes:
            return Signature("unchecked", "a signature by a certificate (keyless)", digest)
        return Signature("bad", "by no key that is given" if raw else "malformed", digest)


def _claims(payload: bytes, digest: Digest, key: Key) -> Signature:
    """Parse what a key has signed, and nothing else; raises InvalidDocument, PolicyError."""
    claims = parse_json(payload, "payload")
    critical = object_at(claims, "critical", "payload")
    signed = string_at(object_at(critical, "image", "payload"), "docker-manifest-digest", "payload")
    if string_at(critical, "type", "payload") != _TYPE or signed != digest:
        return Signature("bad", "it is of %s, not of %s" % (shown(signed, 100) or "nothing", digest), digest)
    identity = string_at(object_at(critical, "identity", "payload"), "docker-reference", "payload")
    return Signature("good", "", digest, key, identity, object_at(claims, "optional", "payload"))


def first_good(signatures: Iterable[Signature], keys: Sequence[Key]) -> Signature:
    """Return the first that is good; raises ContentMismatch, which tells of the others."""
    reasons = set()
    for signature in signatures:
        if signature.key is not None:
            return signature
        reasons.add(str(signature))
    raise ContentMismatch("no good signature by %s: %s" % (
        " or ".join(shown(key.source, 300) for key in keys), "; ".join(sorted(reasons)[:5]) or "there is none"))
