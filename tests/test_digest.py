# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from typing import Any, Mapping

import pytest

from tests.kit import DATA
from minipull.digest import ChainID, DiffID, Digest, Verifier, next_chain_id
from minipull.errors import ContentMismatch, InvalidDocument
from tests.kit.layers import chain_id

TABLES = json.loads((DATA / "tables.json").read_text())
ALGORITHMS = ("sha256", "sha384", "sha512")
HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_digest_is_a_string_with_parts(algorithm: str) -> None:
    text = "%s:%s" % (algorithm, hashlib.new(algorithm, b"x").hexdigest())
    digest = Digest.parse(text)
    assert digest == text and json.dumps([digest]) == json.dumps([text])
    assert "%s:%s" % (digest.algorithm, digest.encoded) == text
    assert digest.short == text.partition(":")[2][:12]


@pytest.mark.parametrize("text", [
    "", "sha256", "sha256:", HEX, ":" + HEX, "sha256:" + HEX[1:], "sha256:" + HEX + "0",
    "sha256:" + HEX.upper(), "SHA256:" + HEX, "sha256:" + HEX + "\n", " sha256:" + HEX,
    "sha256:" + "g" * 64, "sha256:" + "\u0661" * 64, "sha256:../../../etc/passwd",
    "sha256:" + "../" * 21 + "x", "sha256:" + HEX[:-1] + "\0", "sha384:" + HEX, "sha512:" + HEX,
    "md5:" + HEX[:32], "sha1:" + HEX[:40], "sha256+b64:" + HEX, None, 1, b"sha256:" + HEX.encode(),
    ["sha256:" + HEX], "x" * 1000000,
], ids=lambda text: ascii(text)[:30])
def test_a_malformed_digest_is_refused_in_one_short_line(text: object) -> None:
    with pytest.raises(InvalidDocument) as caught:
        Digest.parse(text)
    assert str(caught.value).startswith("invalid digest ")
    assert len(str(caught.value)) < 120 and str(caught.value).isprintable()


def test_a_digest_of_bytes_is_sha256() -> None:
    assert Digest.of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("case", TABLES["chain_id"]["cases"], ids=lambda case: len(case["diff_ids"]))
def test_a_chain_names_a_layer_and_all_below_it(case: Mapping[str, Any]) -> None:
    diff_ids = [DiffID(Digest.parse(text)) for text in case["diff_ids"]]
    assert chain_id(diff_ids) == case["chain_id"]
    if len(diff_ids) > 1:
        assert next_chain_id(chain_id(diff_ids[:-1]), diff_ids[-1]) == case["chain_id"]
    else:
        assert chain_id(diff_ids) == ChainID(diff_ids[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_exactly_the_promised_bytes_pass(algorithm: str) -> None:
    digest = Digest("%s:%s" % (algorithm, hashlib.new(algorithm, b"one two").hexdigest()))
    verifier = Verifier(algorithm)
    for piece in (b"one", memoryview(b" two"), b""):
        verifier.update(piece)
    assert (verifier.digest, verifier.size) == (digest, 7)
    verifier.verify(digest, 7, "the blob")
    for size in (6, 8):
        with pytest.raises(ContentMismatch, match="the blob: size is 7, expected %d" % size) as caught:
            verifier.verify(digest, size, "the blob")
        assert not caught.value.retry
    verifier.update(b"")
    verifier.verify(digest, 7, "the blob")
    with pytest.raises(ContentMismatch, match="the blob: content is %s, expected sha256:e3b0" % digest):
        verifier.verify(Digest.of(b""), 7, "the blob")
