# SPDX-License-Identifier: Apache-2.0
"""ES256: ECDSA over P-256 with SHA-256, in plain integers.

Schema 1 and cosign need signatures, and the standard library has none.  This module
is fit to verify them, and to sign with a key that is made for one push and thrown away.
It is not fit for any other key: its timing depends on the key, the key stays in
memory, and it has not been reviewed.

Nonces are deterministic, so a bad source of randomness does not reveal the key.
Spec: FIPS 186-4; RFC 6979; RFC 7518, "Digital Signature with ECDSA".
"""
import hashlib
import itertools
from typing import Iterator, Tuple

from ..parts import hmac

Point = Tuple[int, int]
#: A SubjectPublicKeyInfo of P-256 up to the point, which DER lets nobody write in another way.
PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
#: Jacobian X, Y and Z, where x is X/Z² and y is Y/Z³; the point at infinity if Z is 0.
_Jacobian = Tuple[int, int, int]

_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
_B = 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b
_G = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
      0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)


def public(key: int) -> Point:
    """Return the public key of a private one, which is from 1 to ORDER - 1."""
    return _affine(_times(key, _G))


def on_curve(point: Point) -> bool:
    """Whether a point is on the curve, as every public key is."""
    x, y = point
    return 0 <= x < _P and 0 <= y < _P and (y * y - x * x * x + 3 * x - _B) % _P == 0


def sign(key: int, message: bytes) -> bytes:
    """Sign a message; returns the 64 bytes of r and s."""
    e = _hashed(message)
    for nonce in _nonces(key, e):
        r = public(nonce)[0] % ORDER
        s = _inverse(nonce, ORDER) * (e + r * key) % ORDER
        if nonce < ORDER and r and s:
            break
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify(key: Point, message: bytes, signature: bytes) -> bool:
    """Whether a signature of 64 bytes is of this message, by the private key of ``key``."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if len(signature) != 64 or not (0 < r < ORDER and 0 < s < ORDER and on_curve(key)):
        return False
    w = _inverse(s, ORDER)
    point = _add(_times(_hashed(message) * w % ORDER, _G), _times(r * w % ORDER, key))
    return point[2] != 0 and _affine(point)[0] % ORDER == r


def _hashed(message: bytes) -> int:
    return int.from_bytes(hashlib.sha256(message).digest(), "big")


def _nonces(key: int, e: int) -> Iterator[int]:
    """Yield the nonces of RFC 6979, section 3.2; the first is almost always fit."""
    seed = key.to_bytes(32, "big") + (e % ORDER).to_bytes(32, "big")
    secret, value = bytes(32), b"\1" * 32
    for more in itertools.chain((b"\0" + seed, b"\1" + seed), itertools.repeat(b"\0")):
        if more == b"\0":  # the first two rounds only mix in key and message
            value = _mac(secret, value)
            yield int.from_bytes(value, "big")
        secret = _mac(secret, value + more)
        value = _mac(secret, value)


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _inverse(number: int, modulus: int) -> int:
    return pow(number, modulus - 2, modulus)


def _affine(point: _Jacobian) -> Point:
    x, y, z = point
    inverse = _inverse(z, _P)
    return x * inverse**2 % _P, y * inverse**3 % _P


def _times(factor: int, point: Point) -> _Jacobian:
    result = (1, 1, 0)
    for bit in bin(factor)[2:]:
        result = _double(result)
        if bit == "1":
            result = _add(result, point + (1,))
    return result


def _double(point: _Jacobian) -> _Jacobian:
    x, y, z = point
    zz, yy = z * z % _P, y * y % _P
    slope, xyy = 3 * (x - zz) * (x + zz) % _P, x * yy % _P
    doubled = (slope * slope - 8 * xyy) % _P
    return doubled, (slope * (4 * xyy - doubled) - 8 * yy * yy) % _P, 2 * y * z % _P


def _add(one: _Jacobian, other: _Jacobian) -> _Jacobian:
    (x1, y1, z1), (x2, y2, z2) = one, other
    if not z1 or not z2:
        return other if not z1 else one
    u1, u2 = x1 * z2 * z2 % _P, x2 * z1 * z1 % _P
    s1, s2 = y1 * z2**3 % _P, y2 * z1**3 % _P
    h, r = (u2 - u1) % _P, (s2 - s1) % _P
    if not h:
        return (1, 1, 0) if r else _double(one)
    hh = h * h % _P
    x = (r * r - h * hh - 2 * u1 * hh) % _P
    return x, (r * (u1 * hh - x) - s1 * h * hh) % _P, h * z1 * z2 % _P
