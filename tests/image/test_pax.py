# SPDX-License-Identifier: Apache-2.0
"""Sparse files in the formats of GNU tar, and what is wrong with a map."""
import itertools
import subprocess
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from minipull.errors import InvalidDocument, PolicyError
from minipull.image import pax as pax_module
from minipull.image.tar import Reader
from tests.image.test_tar import read
from tests.kit.layers import BLOCK, END, extended, file, head, padded, record, sparse, symlink
from tests.kit.processes import clean_env, peer

VERSIONS = ["0.0", "0.1", "1.0"]
EXTENTS: Dict[str, Tuple[int, List[Tuple[int, bytes]]]] = {
    "hole before, between and behind": (5000, [(600, b"abc"), (2000, b"d" * 600)]),
    "no hole": (3, [(0, b"abc")]), "a hole alone": (3000, []), "nothing": (0, []),
    "empty extent at the end, as GNU tar has it": (3000, [(0, b"x"), (3000, b"")]),
    "hole of more than a piece": ((1 << 20) + 1, [(1 << 20, b"x")]),
    "map of many blocks": (300000, [(n * 1000, b"x") for n in range(300)])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EXTENTS)
def test_sparse_files_are_read_with_their_holes(version: str, name: str) -> None:
    size, extents = EXTENTS[name]
    expected = bytearray(size)
    for offset, piece in extents:
        expected[offset:offset + len(piece)] = piece
    stream = sparse(version, size, extents)
    assert [content for _, content in read(stream + file(b"g", b"next") + END)] == [bytes(expected), b"next"]
    reader = Reader(iter([stream + file(b"g") + END]))
    assert [(entry.name, entry.size) for entry in reader] == [(b"f", size), (b"g", 0)]
    assert reader.holes == size - sum(len(piece) for _, piece in extents)


TWO = [(0, b"ab"), (600, b"cd")]
HUGE = b"9" * 18
EMPTY = record(b"GNU.sparse.size", b"0") + record(b"GNU.sparse.numblocks", b"1")
GARBAGE: Dict[str, bytes] = {
    "size alone": extended(record(b"GNU.sparse.size", b"1152921504606846976")) + file(b"f"),
    "version alone": extended(record(b"GNU.sparse.major", b"1")) + file(b"f"),
    "name alone": extended(record(b"GNU.sparse.name", b"f")) + file(b"f"),
    "version 2": sparse("1.0", 700, TWO, major=b"2"),
    "version 1.1": sparse("1.0", 700, TWO, minor=b"1"),
    "no size": sparse("1.0", 700, TWO, realsize=None),
    "size below the last extent": sparse("1.0", 601, TWO),
    "size that is none": sparse("0.1", 700, TWO, size=b"-1"),
    "size of 64 bits": sparse("0.1", 700, TWO, size=b"9" * 30),
    "extents that overlap": sparse("1.0", 700, [(0, b"ab"), (1, b"cd")]),
    "extents in no order": sparse("0.0", 700, TWO[::-1]),
    "more extents than are counted": sparse("0.0", 700, TWO, numblocks=b"1"),
    "fewer": sparse("0.1", 700, TWO, numblocks=b"3"),
    "no count": sparse("0.1", 700, TWO, numblocks=None),
    "half an extent": sparse("0.1", 700, TWO, map=b"0,2,600"),
    "no map": sparse("0.1", 700, TWO, map=None),
    "map that is no list": sparse("0.1", 700, TWO, map=b"0,2,,600,2"),
    "map below zero": sparse("0.1", 700, TWO, map=b"0,2,-600,2"),
    "map of other data": sparse("0.1", 700, TWO, map=b"0,2,600,3"),
    "map past 63 bits": sparse("0.1", 700, TWO, map=b"0,2," + HUGE + b"," + HUGE),
    "offset twice": extended(EMPTY + record(b"GNU.sparse.offset", b"0") * 2) + file(b"f"),
    "length before its offset": extended(
        EMPTY + record(b"GNU.sparse.numbytes", b"0") + record(b"GNU.sparse.offset", b"0")) + file(b"f"),
    "map of 0.1 in version 2": sparse("0.1", 700, TWO, major=b"2"),
    "two maps": sparse("0.0", 700, TWO, map=b"0,2,600,2"),
    "lines that are missing": sparse("1.0", 700, []).replace(b"0\n" + bytes(510), b"7\n" + bytes(510)),
    "first line that is no number": sparse("1.0", 700, []).replace(b"0\n" + bytes(510), b"x\n" + bytes(510)),
    "first line without an end": sparse("1.0", 700, []).replace(b"0\n" + bytes(510), b"0" * 512),
    "link": extended(record(b"GNU.sparse.size", b"0") + record(b"GNU.sparse.numblocks", b"0")) + symlink(b"f", b"t")}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_sparse_file_whose_map_is_wrong_is_refused(name: str) -> None:
    with pytest.raises((InvalidDocument, PolicyError), match="^tar: .*sparse"):
        read(GARBAGE[name] + END)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_map_of_a_sparse_file_has_a_bound(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pax_module.MAX_EXTENTS == 1 << 16
    monkeypatch.setattr(pax_module, "MAX_EXTENTS", 50)
    extents = [(n, b"x") for n in range(51)]
    assert len(read(sparse(version, 99, extents[:50]) + END)) == 1
    with pytest.raises(PolicyError, match="sparse file 'f' has more than 50 extents"):
        read(sparse(version, 99, extents) + END)


@pytest.mark.parametrize("line", [b"1\n", b"1" * BLOCK], ids=["lines", "no lines"])
def test_no_more_of_a_map_is_read_than_it_may_have(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pax_module, "MAX_EXTENTS", 500)
    records = {b"major": b"1", b"minor": b"0", b"name": b"f", b"realsize": b"5"}
    start = extended(b"".join(record(b"GNU.sparse." + key, value) for key, value in records.items()))
    blocks = itertools.chain([start + head(b"x", size=1 << 40) + padded(b"9" * 18 + b"\n")],
                             itertools.repeat(line * (BLOCK // len(line)), 100))
    with pytest.raises((InvalidDocument, PolicyError), match="sparse file 'f' has"):
        list(Reader(blocks))
    assert next(blocks, None) is not None


def test_the_hole_of_a_sparse_file_that_nobody_reads_takes_no_time() -> None:
    reader = Reader(iter([sparse("1.0", 1 << 58, [(0, b"x")]) + END]))
    assert [entry.size for entry in reader] == [1 << 58]


@pytest.mark.parametrize("version", VERSIONS)
def test_gnu_tars_sparse_files_are_read_as_they_are(version: str, tmp_path: Path, home: Path) -> None:
    with (tmp_path / ("n" * 120)).open("wb") as out:
        out.seek(1 << 20)
        out.write(b"abc" * 1000)
        out.truncate(3 << 20)
    made = subprocess.run(
        [peer("tar"), "--format=pax", "--sparse", "--sparse-version=" + version, "-cf-", "n" * 120],
        cwd=str(tmp_path), env=clean_env(home), stdout=subprocess.PIPE, check=True).stdout
    assert len(made) < 1 << 20
    [(entry, content)] = read(made)
    assert (entry.name, content) == (b"n" * 120, (tmp_path / ("n" * 120)).read_bytes())
