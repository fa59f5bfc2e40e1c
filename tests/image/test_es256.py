# SPDX-License-Identifier: Apache-2.0
"""ES256: what was published, and what openssl says."""
import base64
import json
import random
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from tests.kit import DATA
from tests.kit.processes import peer, run
from minipull.image import es256
from minipull.image.es256 import ORDER, on_curve, public, sign, verify

VECTORS = json.loads((DATA / "schema1.json").read_text("utf-8"))["es256"]
#: RFC 6979, A.2.5.
KEY = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
PUBLIC = (0x60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6,
          0x7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299)
SIGNED = {
    b"sample": "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
               "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
    b"test": "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367"
             "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083"}
#: RFC 7515, A.3: x, y, the private key, what is signed, and the signature.
JWS = ("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
       "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
       "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc"
       "19yb290Ijp0cnVlfQ",
       "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q")


def test_signatures_are_those_of_rfc_6979() -> None:
    assert public(KEY) == PUBLIC
    for message, signature in SIGNED.items():
        assert sign(KEY, message) == bytes.fromhex(signature)
        assert verify(PUBLIC, message, bytes.fromhex(signature))
        assert not verify(PUBLIC, message + b"x", bytes.fromhex(signature))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: "good" if case["good"] else "bad")
def test_signatures_are_judged_as_by_nist(case: Dict[str, Any]) -> None:
    key = int(case["x"], 16), int(case["y"], 16)
    assert on_curve(key)
    assert verify(key, bytes.fromhex(case["msg"]), bytes.fromhex(case["r"] + case["s"])) == case["good"]


def test_the_example_of_rfc_7515_is_good() -> None:
    x, y, key, message, signature = [base64.urlsafe_b64decode(text + "==") for text in JWS[:3]] + [
        JWS[3].encode(), base64.urlsafe_b64decode(JWS[4] + "==")]
    point = int.from_bytes(x, "big"), int.from_bytes(y, "big")
    assert public(int.from_bytes(key, "big")) == point
    assert verify(point, message, signature)


def test_every_flipped_bit_is_noticed() -> None:
    signature = sign(KEY, b"sample")
    for bit in random.Random(1).sample(range(512), 64):
        spoilt = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
        assert not verify(PUBLIC, b"sample", spoilt)


@pytest.mark.parametrize("key, signature", [
    (PUBLIC, b""), (PUBLIC, bytes(64)), (PUBLIC, b"\xff" * 64), (PUBLIC, bytes(65)),
    (PUBLIC, ORDER.to_bytes(32, "big") + b"\1" * 32), (PUBLIC, b"\1" * 32 + bytes(32)),
    ((0, 0), b"\1" * 64), ((PUBLIC[0], PUBLIC[1] + 1), b"\1" * 64),
    ((PUBLIC[0] + es256._P, PUBLIC[1]), b"\1" * 64)])
def test_a_malformed_signature_or_key_is_refused(key: Tuple[int, int], signature: bytes) -> None:
    assert not verify(key, b"", signature)


def test_the_group_is_one() -> None:
    generator = public(1)
    assert on_curve(generator) and not on_curve((0, 0))
    assert public(2) == (0x7CF27B188D034F7E8A52380304B51AC3C08969E277F21B35A60B48FC47669978,
                         0x07775510DB8ED040293D9AC69F7430DBBA7DADE63CE982299E04B79D227873D1)
    assert public(ORDER - 1) == (generator[0], es256._P - generator[1])
    one = es256._times(5, generator)
    assert es256._add(one, es256._times(ORDER - 5, generator))[2] == 0
    assert es256._affine(es256._add(one, one)) == public(10)
    assert es256._affine(es256._add(es256._times(0, generator), one)) == public(5)


def test_a_nonce_that_will_not_do_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = es256._nonces(KEY, 1)
    first, second = next(found), next(found)
    assert first != second and max(first, second) < ORDER
    monkeypatch.setattr(es256, "_nonces", lambda key, e: iter([0, ORDER + 1, second]))
    assert verify(PUBLIC, b"sample", sign(KEY, b"sample"))


def test_openssl_agrees(tmp_path: Path) -> None:
    openssl = peer("openssl")
    rng = random.Random(2)
    for n in range(4):
        key, message = rng.randrange(1, ORDER), rng.randbytes(n * 50)
        x, y = (number.to_bytes(32, "big") for number in public(key))
        sec1 = (bytes.fromhex("30770201010420") + key.to_bytes(32, "big") +
                bytes.fromhex("a00a06082a8648ce3d030107a14403420004") + x + y)
        (tmp_path / "key").write_bytes(sec1)
        (tmp_path / "message").write_bytes(message)
        run([openssl, "ec", "-inform", "DER", "-in", "key", "-out", "key.pem"], cwd=tmp_path)
        run([openssl, "ec", "-in", "key.pem", "-pubout", "-out", "public.pem"], cwd=tmp_path)
        (tmp_path / "ours").write_bytes(der(sign(key, message)))
        run([openssl, "dgst", "-sha256", "-verify", "public.pem", "-signature", "ours", "message"], cwd=tmp_path)
        run([openssl, "dgst", "-sha256", "-sign", "key.pem", "-out", "theirs", "message"], cwd=tmp_path)
        assert verify(public(key), message, plain((tmp_path / "theirs").read_bytes()))


def der(signature: bytes) -> bytes:
    """A signature as openssl writes it."""
    numbers = b""
    for half in (signature[:32], signature[32:]):
        number = int.from_bytes(half, "big")
        data = number.to_bytes(number.bit_length() // 8 + 1, "big")
        numbers += bytes([2, len(data)]) + data
    return bytes([0x30, len(numbers)]) + numbers


def plain(data: bytes) -> bytes:
    """The other way round."""
    size = data[3]
    return b"".join(int.from_bytes(half, "big").to_bytes(32, "big") for half in (data[4:4 + size], data[6 + size:]))
