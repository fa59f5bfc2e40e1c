# SPDX-License-Identifier: Apache-2.0
"""cosign's signatures in tests: those that openssl made, and any that a test wants."""
import base64
import json
from pathlib import Path
from typing import Any, Dict, Optional

from minipull.image import es256
from tests.kit import DATA
from tests.kit.images import OCI_CONFIG, OCI_MANIFEST, Descriptor, Layout, to_json

VECTORS: Dict[str, Any] = json.loads((DATA / "signature.json").read_text("utf-8"))
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
PRIVATE, STRANGER = 0x1234567890ABCDEF, 0xFEDCBA0987654321
_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


def pem(der: bytes, label: str = "PUBLIC KEY") -> str:
    return "-----BEGIN %s-----\n%s-----END %s-----\n" % (label, base64.encodebytes(der).decode(), label)


def public_pem(private: int = PRIVATE) -> str:
    x, y = es256.public(private)
    return pem(_PREFIX + x.to_bytes(32, "big") + y.to_bytes(32, "big"))


def key_file(folder: Path, private: int = PRIVATE, name: str = "cosign.pub") -> str:
    path = folder / name
    path.write_text(public_pem(private))
    return str(path)


def integer(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes([2, len(data)]) + data


def sequence(data: bytes) -> bytes:
    return bytes([0x30, len(data)]) + data


def signed(payload: bytes, private: int = PRIVATE) -> str:
    """The annotation of a payload: base64 of DER."""
    raw = es256.sign(private, payload)
    parts = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    return base64.b64encode(sequence(b"".join(map(integer, parts)))).decode()


def payload_of(digest: str, **members: Any) -> bytes:
    critical = {"identity": {"docker-reference": "registry.example.com/app"},
                "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}
    return to_json({"critical": critical, "optional": {"build": "42"}, **members})


def layer_of(layout: Layout, payload: bytes, signature: str, media_type: str = SIMPLE) -> Descriptor:
    return {**layout.blob(payload, media_type), "annotations": {SIGNATURE: signature}}


def sign(layout: Layout, digest: str, private: int = PRIVATE, name: Optional[str] = None, suffix: str = ".sig",
         **members: Any) -> Descriptor:
    """Sign an image of a layout; ``name`` is that of the signature, by default cosign's tag."""
    payload = payload_of(digest)
    document = layout.blob(to_json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layout.blob(b"{}", OCI_CONFIG),
        "layers": [layer_of(layout, payload, signed(payload, private))], **members}), OCI_MANIFEST)
    if name != "":
        layout.name(document, name or digest.replace(":", "-") + suffix)
    return document
