# SPDX-License-Identifier: Apache-2.0
"""Schema 1: signed manifests, verified, converted to schema 2, and written.

The signatures are of the payload: the document without them, byte for byte as
the protected header says.  Only the payload is parsed, and its digest is the
manifest's.  Every signature must verify; since its key comes with it, that
proves only that the holder of some key signed, whose id the caller may show.

An entry carries the JSON of an image as docker 1.9 knew it.  Entries marked as
thrown away have no layer, and become history alone.

Mirrors docker/distribution's manifest/schema1, docker/libtrust, and moby's
fixManifestLayers, HistoryFromConfig and MakeConfigFromV1Config.
"""
import base64
import contextlib
import hashlib
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..digest import DiffID, Digest
from ..errors import InvalidDocument, PolicyError, Unsupported
from . import es256
from .config import History, ImageConfig
from .descriptor import DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor
from .manifest import MAX_LAYERS, Manifest
from .strictjson import digest_at, int_at, object_at, objects_at, parse_json, string_at, strings_at

MAX_SIGNATURES = 16
#: The layer of thrown away entries: an empty tar, 1024 zeros, in docker's own compression.
EMPTY = bytes.fromhex("1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")
_SOURCE = "schema 1 manifest"
_GO = {ord(char): "\\u%04x" % ord(char) for char in "<>&\u2028\u2029"}  # as Go escapes them
_NEVER = "0001-01-01T00:00:00Z"
#: Members of an image's v1 JSON that its config does not take over.
_V1_ONLY = frozenset("id parent Size parent_id layer_id throwaway history rootfs".split())
#: DER: the algorithm of an RSA key, and the DigestInfo before a SHA-256.
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")


class Entry(NamedTuple):
    """An image of the chain: its layer, unless thrown away, and its JSON."""
    blob: Digest
    v1: Dict[str, Any]

    @property
    def throwaway(self) -> bool:
        return self.v1.get("throwaway") is True


class Schema1(NamedTuple):
    """A manifest of schema 1, the bottom entry first; ``raw`` is the payload."""
    raw: bytes
    digest: Digest
    entries: Tuple[Entry, ...]
    signers: Tuple[str, ...] = ()  # key ids

    @property
    def layers(self) -> Tuple[Digest, ...]:
        """The blobs of the layers, the bottom one first."""
        return tuple(entry.blob for entry in self.entries if not entry.throwaway)


def payload(raw: bytes) -> bytes:
    """Return the bytes that all signatures are of, not verified yet; raises InvalidDocument."""
    payloads, source = set(), _SOURCE + ": protected header"
    for _, _, protected in _signatures(raw):
        header = parse_json(_decoded(protected, "protected"), source)
        length = int_at(header, "formatLength", source)
        if length > len(raw):
            raise InvalidDocument("%s: formatLength is too much" % source)
        payloads.add(raw[:length] + _bytes_at(header, "formatTail"))
    if len(payloads) != 1:
        raise InvalidDocument("%s: its signatures are of different payloads" % _SOURCE)
    return payloads.pop()


def parse(raw: bytes) -> Schema1:
    """Parse a manifest and verify all its signatures; raises InvalidDocument, PolicyError."""
    signed = payload(raw)
    encoded = _base64(signed)
    signers = [_verified(header, ("%s.%s" % (protected, encoded)).encode(), signature)
               for header, signature, protected in _signatures(raw)]
    return read(signed)._replace(signers=tuple(signers))


def read(raw: bytes) -> Schema1:
    """Parse a payload; raises InvalidDocument, PolicyError."""
    obj = parse_json(raw, _SOURCE)
    if type(obj.get("schemaVersion")) is not int or obj["schemaVersion"] != 1:
        raise InvalidDocument("%s: schemaVersion must be 1" % _SOURCE)
    blobs = [digest_at(layer, "blobSum", _SOURCE) for layer in objects_at(obj, "fsLayers", _SOURCE)]
    images = [string_at(entry, "v1Compatibility", _SOURCE) for entry in objects_at(obj, "history", _SOURCE)]
    if len(blobs) != len(images) or not blobs:
        raise InvalidDocument("%s: %d layers with a history of %d" % (_SOURCE, len(blobs), len(images)))
    if len(blobs) > MAX_LAYERS:
        raise PolicyError("%s: %d layers, the limit is %d" % (_SOURCE, len(blobs), MAX_LAYERS))
    entries = _chain([Entry(blob, parse_json(text.encode(), _SOURCE + ": v1Compatibility"))
                      for blob, text in zip(blobs, images)])
    return Schema1(raw, Digest.of(raw), tuple(reversed(entries)))


def _chain(entries: Sequence[Entry]) -> List[Entry]:
    """Check that each entry names the next as its parent, and drop repeated ones (moby: fixManifestLayers)."""
    chain: List[Entry] = []
    for entry in entries:
        name = string_at(entry.v1, "id", _SOURCE)
        if not re.fullmatch("[0-9a-f]{64}", name):
            raise InvalidDocument("%s: image ID %s is invalid" % (_SOURCE, ascii(name)[:100]))
        if chain and chain[-1].v1["id"] == name:
            chain.pop()
        chain.append(entry)
    names = [entry.v1["id"] for entry in chain]
    if len(set(names)) < len(names):
        raise InvalidDocument("%s: an ID appears multiple times" % _SOURCE)
    for entry, below in zip(chain, names[1:] + [""]):
        parent = string_at(entry.v1, "parent", _SOURCE)
        if parent != below:
            raise InvalidDocument("%s: invalid parent ID%s. Expected %s, got %s" % (
                _SOURCE, "" if below else " in the base layer of the image", below or "none",
                ascii(parent)[:100]))
    return chain


# Signatures.


def _signatures(raw: bytes) -> List[Tuple[Dict[str, Any], bytes, str]]:
    """Header, signature and protected header of each."""
    items = objects_at(parse_json(raw, _SOURCE), "signatures", _SOURCE)
    if not 0 < len(items) <= MAX_SIGNATURES:
        raise InvalidDocument("%s: %d signatures, want 1 to %d" % (_SOURCE, len(items), MAX_SIGNATURES))
    return [(object_at(item, "header", _SOURCE), _bytes_at(item, "signature"),
             string_at(item, "protected", _SOURCE)) for item in items]


def _verified(header: Dict[str, Any], message: bytes, signature: bytes) -> str:
    """Verify a signature, and return the id of its key; raises InvalidDocument."""
    source = _SOURCE + ": key"
    jwk = object_at(header, "jwk", source)
    kind = [string_at(header, "alg", source), string_at(jwk, "kty", source), string_at(jwk, "crv", source)]
    if kind == ["ES256", "EC", "P-256"]:
        x, y = _bytes_at(jwk, "x"), _bytes_at(jwk, "y")
        der = es256.PREFIX + x + y
        good = len(x) == len(y) == 32 and es256.verify(
            (int.from_bytes(x, "big"), int.from_bytes(y, "big")), message, signature)
    elif kind == ["RS256", "RSA", ""]:
        n, e = (int.from_bytes(_bytes_at(jwk, name), "big") for name in "ne")
        der = _rsa_key(n, e)
        good = verify_rs256(n, e, message, signature)
    else:
        raise InvalidDocument("%s: signed with %s, which is not supported" % (_SOURCE, ascii(kind)[:100]))
    name = key_id(der)
    if not good or string_at(jwk, "kid", source) != name:
        raise InvalidDocument("%s: the signature by %s is not good" % (_SOURCE, name))
    return name


def verify_rs256(n: int, e: int, message: bytes, signature: bytes) -> bool:
    """Verify RSASSA-PKCS1-v1_5 with SHA-256, by a key of 2048 to 8192 bits (RFC 8017)."""
    size = (n.bit_length() + 7) // 8
    if not 256 <= size <= 1024 or not 2 < e < 1 << 32 or len(signature) != size:
        return False
    ending = b"\0" + _SHA256 + hashlib.sha256(message).digest()
    padded = b"\0\1" + b"\xff" * (size - 2 - len(ending)) + ending
    return pow(int.from_bytes(signature, "big"), e, n) == int.from_bytes(padded, "big")


def key_id(der: bytes) -> str:
    """Return libtrust's id of a key, which is given as SubjectPublicKeyInfo."""
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(re.findall("....", text))


def _rsa_key(n: int, e: int) -> bytes:
    numbers = b"".join(_der(2, number.to_bytes(number.bit_length() // 8 + 1, "big")) for number in (n, e))
    return _der(0x30, _RSA + _der(3, b"\0" + _der(0x30, numbers)))


def _der(kind: int, content: bytes) -> bytes:
    size = len(content)
    count = (size.bit_length() + 7) // 8 if size > 127 else 0
    return bytes([kind, 0x80 | count] if count else [kind]) + size.to_bytes(count or 1, "big") + content


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes_at(obj: Dict[str, Any], key: str) -> bytes:
    return _decoded(string_at(obj, key, _SOURCE), key)


def _decoded(text: str, key: str) -> bytes:
    """Decode base64url without padding; raises InvalidDocument unless it is the one encoding of its bytes."""
    data = b""
    with contextlib.suppress(ValueError):
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _base64(data) != text:
        raise InvalidDocument("%s: %s is not base64url" % (_SOURCE, key))
    return data


# From schema 1 to schema 2.


def converted(entries: Sequence[Entry],
              layers: Sequence[Tuple[Descriptor, DiffID]]) -> Tuple[ImageConfig, Manifest]:
    """Return the config and the schema 2 manifest of an image with these layers, always the same bytes."""
    if not entries:
        raise InvalidDocument("an image of no layers, which this format does not have")
    top = entries[-1].v1
    config: Dict[str, Any] = {key: top[key] for key in top if key not in _V1_ONLY}
    config["rootfs"] = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    config["history"] = [_history(entry) for entry in entries]
    raw = _json({key: config[key] for key in sorted(config)}).encode()
    descriptor = Descriptor.of(raw, DOCKER_CONFIG)
    document = _json({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor.to_json(),
                      "layers": [blob.to_json() for blob, _ in layers]}).encode()
    blobs = tuple(blob for blob, _ in layers)
    # Parsed before it has a name, rather than whenever it is read.
    return ImageConfig.parse(raw), Manifest(document, Digest.of(document), DOCKER_MANIFEST, descriptor, blobs)


def _history(entry: Entry) -> Dict[str, Any]:
    command = strings_at(object_at(entry.v1, "container_config", _SOURCE), "Cmd", _SOURCE)
    texts = {"author": string_at(entry.v1, "author", _SOURCE), "created_by": " ".join(command),
             "comment": string_at(entry.v1, "comment", _SOURCE), "empty_layer": entry.throwaway}
    created = string_at(entry.v1, "created", _SOURCE, _NEVER)
    return dict({"created": created}, **{key: value for key, value in texts.items() if value})


# From schema 2 to schema 1.


def build(path: str, tag: str, config: ImageConfig, layers: Sequence[Digest]) -> bytes:
    """Return the payload for an image, ``layers`` bottom first; raises Unsupported if history differs."""
    history = config.history or (History(),) * len(layers)
    if not layers or sum(not item.empty_layer for item in history) != len(layers):
        raise Unsupported("the history of the image does not fit its layers, as schema 1 would have it")
    blobs, parent = iter(layers), ""
    entries: List[Tuple[Digest, str]] = []
    for position, item in enumerate(history, 1):
        blob = Digest.of(EMPTY) if item.empty_layer else next(blobs)
        seed = ("%s %s" % (blob.encoded, parent)).encode()
        last = position == len(history)
        name = hashlib.sha256(seed + b" " + config.raw if last else seed).hexdigest()
        v1: Dict[str, Any] = {"id": name, "parent": parent}
        if not last:
            v1.update(comment=item.comment, created=item.created or _NEVER,
                      container_config={"Cmd": [item.created_by]}, author=item.author)
        v1 = {key: value for key, value in dict(v1, throwaway=item.empty_layer).items() if value}
        if last:
            top = parse_json(config.raw, "image config")
            v1.update((key, top[key]) for key in top if key not in _V1_ONLY)
            v1 = {key: v1[key] for key in sorted(v1)}
        entries.insert(0, (blob, _json(v1)))
        parent = name
    return _json({
        "schemaVersion": 1, "name": path, "tag": tag, "architecture": config.platform.architecture,
        "fsLayers": [{"blobSum": blob} for blob, _ in entries],
        "history": [{"v1Compatibility": text} for _, text in entries]}, 3).encode()


def sign(raw: bytes, key: int, time: str) -> bytes:
    """Add a signature to a payload; ``time`` is that of signing (RFC 3339)."""
    x, y = (number.to_bytes(32, "big") for number in es256.public(key))
    ending = raw[-2:]
    protected = _base64(_json(
        {"formatLength": len(raw) - 2, "formatTail": _base64(ending), "time": time}).encode())
    signature = es256.sign(key, ("%s.%s" % (protected, _base64(raw))).encode())
    jwk = {"crv": "P-256", "kid": key_id(es256.PREFIX + x + y), "kty": "EC", "x": _base64(x), "y": _base64(y)}
    signed = _json([{"header": {"jwk": jwk, "alg": "ES256"}, "signature": _base64(signature),
                     "protected": protected}], 3)
    return raw[:-2] + b',\n   "signatures": ' + signed.replace("\n", "\n   ").encode() + ending


def _json(value: Any, indent: Optional[int] = None) -> str:
    """Serialize JSON as Go does, so that digests and ids are those of docker."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=(",", ": " if indent else ":"))
    return text.translate(_GO)
