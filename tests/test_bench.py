# SPDX-License-Identifier: Apache-2.0
"""scripts/bench has a row for every figure that is promised, and one document of what it measured."""
import json
import os
import re
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from tests.kit import ROOT
from tests.kit.processes import Finished, peer, run

#: The most that minipull's time may be of a peer's, by row.
TARGETS: Dict[str, Dict[str, float]] = {
    "version": {"python": 2.0}, "images": {"python": 5.0}, "pyz-images": {"python": 12.0},
    "pull-again": {"python's imports": 1.4},
    "copy-big": {"skopeo": 0.47}, "copy-tiny": {"skopeo": 0.45}, "copy-small": {"skopeo": 0.7},
    "push-big": {"skopeo": 0.55}, "push-tiny": {"skopeo": 0.25},
    "index": {"--jobs 1": 0.25}, "far-tiny": {"skopeo": 0.6}, "wire": {"the link": 1.03},
    "unpack": {"umoci": 0.42, "pigz | tar": 0.75}, "load": {"docker": 0.25}, "pull": {"docker": 0.13},
    "serve-blob": {"docker-registry": 0.8}, "serve-manifests": {"docker-registry": 0.9}}
UNJUDGED = {"growth", "serve-heads", "serve-patch", "serve-pushes", "serve-crowd"}


def bench(*arguments: str, check: bool = True) -> Finished:
    env = dict(os.environ, COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="")
    return run([sys.executable, ROOT / "scripts" / "bench", *arguments], env, check=check)


def test_every_promised_figure_has_a_row() -> None:
    rows = json.loads(bench("--list", "--json").out)
    assert {row["row"]: row["at_most"] for row in rows if row["at_most"]} == TARGETS
    assert {row["row"] for row in rows if not row["at_most"]} == UNJUDGED
    assert re.findall(r"^[\w-]+", bench("--list").out, re.M) == [row["row"] for row in rows] + ["peak"]


@pytest.mark.parametrize("arguments, complaint", [
    (["--only", "nothing"], "invalid choice: 'nothing'"),
    (["--skopeo", "/no/such/program"], "--skopeo: /no/such/program is no program"),
    (["--crane", os.devnull], "--crane: %s is no program" % os.devnull),
    (["--runs", "few"], "invalid int value: 'few'")])
def test_a_wrong_option_is_told_before_anything_is_measured(arguments: List[str], complaint: str) -> None:
    done = bench(*arguments, check=False)
    assert done.code == 2 and complaint in done.err


def test_the_limit_of_a_bare_loop_stands_beside_the_target() -> None:
    peers = {"copy-small": "skopeo", "push-tiny": "skopeo", "index": "--jobs 1", "unpack": "umoci"}
    for program in ("docker-registry", "skopeo", "umoci"):
        peer(program)
    document = json.loads(bench(
        "--quick", "--json", "--runs", "1", *(word for row in peers for word in ("--only", row))).out)
    assert {row["row"]: row["ratios"][0]["to"] for row in document["rows"]} == peers
    for row in document["rows"]:
        assert row["contestants"]["a bare loop"]["seconds"] > 0 and row["ratios"][0]["limit"] > 0


def test_a_run_gives_one_document_and_leaves_nothing(tmp_path: Path) -> None:
    peer("docker-registry")
    done = bench("--quick", "--json", "--runs", "1", "--only", "version", "--only", "serve-heads",
                 "--dir", str(tmp_path))
    document = json.loads(done.out)
    assert [row["row"] for row in document["rows"]] == ["version", "serve-heads"]
    for row, other in zip(document["rows"], ("python", "docker-registry")):
        assert list(row["contestants"]) == ["minipull", other] and row["ratios"][0]["ratio"] > 0
        assert all(len(cost["runs"]) == 1 and cost["memory"] > 1 for cost in row["contestants"].values())
    assert os.listdir(tmp_path) == []
