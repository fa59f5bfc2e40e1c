# SPDX-License-Identifier: Apache-2.0
"""Every command of the README does what stands below it."""
import os
import re
from typing import Dict, List, Tuple

import pytest

from tests.kit.processes import missing, peer
from tests.kit.readme import NOT_RUN, README, Command, commands, played

COMMANDS = commands(README.read_text("utf-8"))
_HEX = r"\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b"
#: What differs from run to run, or is the host's, and the expressions for it.
VARYING = {
    r"[0-9.]+[kMG]?B\b": "[0-9.]+[kMG]?B",
    r"\b[0-9.]+ s\b": "[0-9.]+ s",
    r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}\b": "20[0-9-]{8}",
    "…": ".*",
    _HEX: "([0-9a-f]{12,64})",
    " {2,}": " +"}  # the columns of a table
_HOST = re.compile("(?:Python|OpenSSL|SHA-256|zlib|zstd|CAs|certificates|store)   ")


def pattern(line: str) -> str:
    """A regular expression for a line of the README; its groups are digests."""
    host, result = _HOST.match(line), ""
    line, rest = (host.group(), ".*") if host else (line, "")
    for part in re.split("(%s)" % "|".join(VARYING), line):
        same = [text for varying, text in VARYING.items() if re.fullmatch(varying, part)]
        result += same[0] if same else re.escape(part)
    return result + rest


def digests(text: str) -> List[str]:
    return re.findall(_HEX, text)


def compared(wanted: List[str], output: List[str]) -> List[Tuple[str, str]]:
    """The digests of both, by pair; a line of ``...`` stands for any lines.  Raises AssertionError."""
    pairs: List[Tuple[str, str]] = []
    rest, skip = output[:], False
    for line in wanted:
        if line == "...":
            skip = True
            continue
        while skip and rest and not re.fullmatch(pattern(line), rest[0]):
            rest.pop(0)
        assert rest, "nothing like %r in %r" % (line, output)
        match = re.fullmatch(pattern(line), rest[0])
        assert match, "%r instead of %r" % (rest[0], line)
        pairs += zip(digests(line), match.groups())
        rest.pop(0)
        skip = False
    assert skip or not rest, "and then %r" % rest
    return pairs


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> List[List[str]]:
    if os.geteuid() != 0:
        missing("a network of its own needs root")
    for name in ("ip", "skopeo", "umoci", "openssl"):
        peer(name)
    return played(tmp_path_factory.mktemp("readme"))


@pytest.mark.parametrize("number, command", list(enumerate(COMMANDS)), ids=["line %d: %s" % item[:2] for item in COMMANDS])
def test_a_command_prints_what_the_readme_shows(outputs: List[List[str]], number: int, command: Command) -> None:
    if command.text not in NOT_RUN:
        compared(command.output, outputs[number])


def test_a_digest_is_the_same_wherever_the_readme_shows_it(outputs: List[List[str]]) -> None:
    real: Dict[str, str] = {}
    for command, output in zip(COMMANDS, outputs):
        if command.text not in NOT_RUN:
            for shown, digest in compared(command.output, output):
                assert real.setdefault(shown, digest) == digest, command
    assert len(set(real.values())) == len(real) >= 10


@pytest.mark.parametrize("wanted, output, same", [
    ("Digest: sha256:" + 64 * "a", "Digest: sha256:" + 64 * "b", True),
    ("Digest: sha256:" + 64 * "a", "Digest: sha256:" + 12 * "b" + "x", False),
    ("a  1.5MB  b", "a      15kB b", True), ("a 1.5MB", "a 1.5MB b", False), ("3 of 3 images", "2 of 3 images", False),
    ("Python       3.11.2, /x", "Python       3.6.1, /y", True), ("12MB in 3 s, 4MB/s", "1kB in 0.01 s, 3GB/s", True)])
def test_what_differs_from_run_to_run_may(wanted: str, output: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(wanted), output)) is same
