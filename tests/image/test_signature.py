# SPDX-License-Identifier: Apache-2.0
"""Signatures: one that openssl made is good, and with one byte changed nothing is."""
import base64
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest

from minipull.digest import Digest
from minipull.errors import ContentMismatch, Error, InvalidReference, NotFound, PolicyError
from minipull.image import es256
from minipull.image.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor
from minipull.image.manifest import Document, Manifest, parse
from minipull.image.signature import MAX_SIGNATURES, Signature, Signatures, first_good, parse_key
from tests.kit.images import to_json
from tests.kit.processes import peer, run
from tests.kit.signatures import (
    CERTIFICATE, PRIVATE, SIGNATURE, SIMPLE, STRANGER, VECTORS, integer, payload_of, pem, public_pem, sequence,
    signed)

IMAGE = Digest("sha256:" + "12" * 32)
KEY = parse_key(VECTORS["key"].encode(), "cosign.pub")
OURS = parse_key(public_pem().encode(), "ours.pub")
PAYLOAD, DER = VECTORS["payload"].encode(), base64.b64decode(VECTORS["signature"])
CONFIG = Descriptor.of(b"{}", OCI_CONFIG).to_json()


class Held(Signatures):
    """One manifest with these layers, as (payload, notes, media type)."""

    def __init__(self, *layers: Tuple[bytes, Dict[str, str], str]) -> None:
        self.blobs: Dict[Digest, bytes] = {}
        listed: List[Dict[str, Any]] = []
        for payload, notes, media_type in layers:
            layer = Descriptor.of(payload, media_type)
            self.blobs[layer.digest] = payload
            listed.append(layer._replace(annotations=notes).to_json())
        self.document = parse(to_json({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": listed}))

    def manifests(self, digest: Digest) -> Iterator[Document]:
        yield self.document

    def read(self, blob: Descriptor, limit: int) -> bytes:
        if blob.digest not in self.blobs:
            raise NotFound("blob %s is not there" % blob.digest)
        return self.blobs[blob.digest]


def judged(payload: bytes, text: Optional[str], *keys: Any, image: Digest = IMAGE, kind: str = SIMPLE,
           notes: Optional[Dict[str, str]] = None) -> Signature:
    held = Held((payload, {**({} if text is None else {SIGNATURE: text}), **(notes or {})}, kind))
    [signature] = held.of([image], keys or (KEY,))
    return signature


def encoded(der: bytes) -> str:
    return base64.b64encode(der).decode()


def flipped(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        yield data[:position] + bytes([data[position] ^ 1]) + data[position + 1:]


# -- good, and with one byte changed ---------------------------------------------------


def test_a_signature_of_openssl_is_good_and_its_claims_are_told() -> None:
    signature = judged(PAYLOAD, VECTORS["signature"])
    assert signature == Signature(
        "good", "", IMAGE, KEY, "registry.example.com/team/app", {"build": "42", "git": {"sha": "abc"}})
    assert KEY.fingerprint == VECTORS["fingerprint"]  # of openssl pkey -pubin -outform DER
    assert str(signature) == (
        "%s is signed by cosign.pub (%s) as registry.example.com/team/app, with"
        ' {"build": "42", "git": {"sha": "abc"}}' % (IMAGE, KEY.fingerprint))
    assert judged(PAYLOAD, VECTORS["signature"], OURS, KEY).key == KEY


def test_no_byte_of_a_signature_may_change() -> None:
    assert {judged(PAYLOAD, encoded(der)).result for der in flipped(DER)} == {"bad"}


def test_no_byte_of_a_payload_may_change() -> None:
    assert {judged(payload, VECTORS["signature"]).result for payload in flipped(PAYLOAD)} == {"bad"}


def test_a_payload_has_the_size_that_its_descriptor_says() -> None:
    for size in (len(PAYLOAD) - 1, len(PAYLOAD) + 1):
        held = Held((PAYLOAD, {SIGNATURE: VECTORS["signature"]}, SIMPLE))
        assert isinstance(held.document, Manifest)
        [layer] = held.document.layers
        held.document = held.document._replace(layers=(layer._replace(size=size),))
        [signature] = held.of([IMAGE], [KEY])
        assert (signature.result, signature.reason) == (
            "bad", "payload %s: size is %d, expected %d" % (layer.digest, len(PAYLOAD), size))


def test_another_key_or_image_makes_it_bad_and_nothing_that_it_claims_is_told() -> None:
    other = parse_key(VECTORS["other"].encode(), "other.pub")
    for signature in (judged(PAYLOAD, VECTORS["signature"], other),
                      judged(PAYLOAD, VECTORS["signature"], image=Digest("sha256:" + "13" * 32))):
        assert signature.result == "bad" and signature.key is None
        assert (signature.identity, signature.annotations) == ("", {})


# -- the forms of a signature ------------------------------------------------------


R, S = (int.from_bytes(part, "big") for part in (
    es256.sign(PRIVATE, payload_of(IMAGE))[:32], es256.sign(PRIVATE, payload_of(IMAGE))[32:]))
GOOD = sequence(integer(R) + integer(S))
FORMS = {
    "none": None, "empty": "", "no base64": "!!!!", "not ASCII": "é" * 8, "line break": encoded(GOOD) + "\n",
    "blank": " " + encoded(GOOD), "no padding": encoded(GOOD).rstrip("=") + "=" * 4, "url-safe": "-_" * 48,
    "raw r and s": encoded(es256.sign(PRIVATE, payload_of(IMAGE))), "trailing byte": encoded(GOOD + b"\0"),
    "trailing byte within": encoded(sequence(integer(R) + integer(S) + b"\0")),
    "third number": encoded(sequence(integer(R) + integer(S) + integer(1))),
    "one number": encoded(sequence(integer(R))), "long length": encoded(b"\x30\x81" + GOOD[1:]),
    "leading zero": encoded(sequence(b"\2\x22\0\0" + R.to_bytes(32, "big") + integer(S))),
    "r is 0": encoded(sequence(integer(0) + integer(S))), "s is 0": encoded(sequence(integer(R) + integer(0))),
    "both are 0": encoded(sequence(integer(0) * 2)),
    "s + n": encoded(sequence(integer(R) + integer(S + es256.ORDER))),
    "r + n": encoded(sequence(integer(R + es256.ORDER) + integer(S))),
    "r and s exchanged": encoded(sequence(integer(S) + integer(R))),
    "huge": encoded(sequence(integer(R) + integer(1 << 300))), "octets": encoded(sequence(b"\4\1\1\4\1\1"))}


@pytest.mark.parametrize("form", FORMS)
def test_a_signature_has_one_form(form: str) -> None:
    assert judged(payload_of(IMAGE), encoded(GOOD), OURS).result == "good"
    assert judged(payload_of(IMAGE), FORMS[form], OURS).result == "bad"


CRITICAL = {"identity": {"docker-reference": "x"}, "image": {"docker-manifest-digest": IMAGE},
            "type": "cosign container image signature"}
PAYLOADS = {
    "no JSON": b"x", "an array": b"[]", "empty": b"", "no critical": b"{}",
    "a type of Red Hat's": to_json({"critical": {**CRITICAL, "type": "atomic container signature"}}),
    "no type": to_json({"critical": {**CRITICAL, "type": None}}),
    "no image": to_json({"critical": {**CRITICAL, "image": {}}}),
    "digest in another case": to_json({
        "critical": {**CRITICAL, "image": {"docker-manifest-digest": IMAGE.upper()}}}),
    "digest no string": to_json({"critical": {**CRITICAL, "image": {"docker-manifest-digest": [IMAGE]}}}),
    "identity no object": to_json({"critical": {**CRITICAL, "identity": "x"}}),
    "optional no object": to_json({"critical": CRITICAL, "optional": "x"}),
    "a key twice": b'{"critical":{},' + to_json({"critical": CRITICAL})[1:],
    "something behind": to_json({"critical": CRITICAL}) + b"x"}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_that_is_signed_must_still_be_of_this_image(name: str) -> None:
    payload = PAYLOADS[name]
    assert judged(payload, signed(payload), OURS).result == "bad"


@pytest.mark.parametrize("optional", [{}, {"optional": None}, {"optional": {}}])
def test_a_payload_may_have_no_annotations(optional: Dict[str, Any]) -> None:
    payload = to_json({"critical": CRITICAL, **optional})
    signature = judged(payload, signed(payload), OURS)
    assert (signature.result, signature.identity, signature.annotations) == ("good", "x", {})


# -- other kinds, many, none -------------------------------------------------------


@pytest.mark.parametrize("kind, words", [
    ("application/vnd.dsse.envelope.v1+json", "an attestation"),
    ("application/vnd.dev.sigstore.bundle.v0.3+json", "a sigstore bundle"),
    ("application/vnd.cncf.notary.signature", "a Notary signature"), (SIMPLE, "a certificate (keyless)")])
def test_signatures_of_other_kinds_are_told_and_never_good(kind: str, words: str) -> None:
    payload = payload_of(IMAGE)
    notes = {CERTIFICATE: "-----BEGIN CERTIFICATE-----"}
    signature = judged(payload, signed(payload, STRANGER), OURS, kind=kind, notes=notes)
    assert signature.result == "unchecked" and words in str(signature)
    with pytest.raises(ContentMismatch, match="no good signature by ours.pub: not checked: "):
        first_good([signature], [OURS])


def test_the_first_good_signature_of_several_counts() -> None:
    payload = payload_of(IMAGE)
    layers = [(payload, {SIGNATURE: signed(payload, private)}, SIMPLE) for private in (STRANGER, PRIVATE)]
    signatures = list(Held(*layers).of([IMAGE], [OURS]))
    assert [item.result for item in signatures] == ["bad", "good"]
    assert first_good(signatures, [OURS]) == signatures[1]
    gone = Held(*layers, (b"{}", {}, "application/spdx+json"))
    gone.blobs.clear()
    assert [item.result for item in gone.of([IMAGE], [OURS])] == ["bad", "bad"]
    for held, words in ((gone, "bad signature: blob"), (Held(), "there is none")):
        with pytest.raises(ContentMismatch, match="no good signature by ours.pub or cosign.pub: " + words):
            first_good(held.of([IMAGE], [OURS]), [OURS, KEY])


def test_there_is_a_bound_on_signatures() -> None:
    payload = payload_of(IMAGE)
    layer = (payload, {SIGNATURE: "!"}, SIMPLE)
    assert len(list(Held(*[layer] * (MAX_SIGNATURES - 1)).of([IMAGE], [OURS]))) == MAX_SIGNATURES - 1
    with pytest.raises(PolicyError, match="more than %d signatures" % MAX_SIGNATURES):
        list(Held(*[layer] * MAX_SIGNATURES).of([IMAGE], [OURS]))


# -- keys --------------------------------------------------------------------------


DER_KEY = base64.b64decode("".join(VECTORS["key"].splitlines()[1:-1]))
FILES: Dict[str, str] = {
    **VECTORS["wrong"], "empty": "", "garbage": "\x00\xff", "ssh": "ssh-ed25519 AAAAC3Nz comment",
    "two keys": VECTORS["key"] * 2, "a key and a certificate": VECTORS["key"] + VECTORS["wrong"]["certificate"],
    "no end": VECTORS["key"].partition("-----END")[0], "no base64": pem(DER_KEY).replace("M", "!"),
    "not on the curve": pem(DER_KEY[:-1] + bytes([DER_KEY[-1] ^ 1])), "trailing byte": pem(DER_KEY + b"\0"),
    "short": pem(DER_KEY[:-1]), "zero": pem(DER_KEY[:-64] + bytes(64)), "only a point": pem(DER_KEY[-64:]),
    "too large": pem(DER_KEY[:-64] + b"\xff" * 64), "nothing in it": pem(b""), "label": pem(DER_KEY, "EC KEY")}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_single_key_of_p256_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_key(FILES[name].encode("latin-1"), "k\n.pub")
    text = str(caught.value)
    assert text.startswith("k\\n.pub: want one public key (ECDSA P-256), it holds ") and "\n" not in text
    labels = {"private key": "PRIVATE", "certificate": "CERTIFICATE", "RSA": "another kind",
              "empty": "none in PEM", "two keys": "PUBLIC KEY and PUBLIC KEY"}
    assert labels.get(name, "") in text and len(text) < 200


def test_a_key_may_have_text_around_it_and_other_line_ends() -> None:
    text = "our key\n" + VECTORS["key"].replace("\n", "\r\n") + "\nsince 2024\n"
    assert parse_key(text.encode(), "cosign.pub") == KEY


def test_openssl_and_we_agree_on_a_signature_that_we_made(tmp_path: Path) -> None:
    payload = payload_of(IMAGE)
    for name, data in (("key", public_pem().encode()), ("payload", payload),
                       ("signature", base64.b64decode(signed(payload)))):
        (tmp_path / name).write_bytes(data)
    done = run([peer("openssl"), "dgst", "-sha256", "-verify", tmp_path / "key", "-signature",
                tmp_path / "signature", tmp_path / "payload"])
    assert "Verified OK" in done.out


def test_an_error_that_is_not_about_a_signature_is_not_its_verdict() -> None:
    class Broken(Held):
        def read(self, blob: Descriptor, limit: int) -> bytes:
            raise Error("no way to the registry")

    with pytest.raises(Error, match="no way"):
        list(Broken((b"x", {SIGNATURE: "x"}, SIMPLE)).of([IMAGE], [OURS]))
