# SPDX-License-Identifier: Apache-2.0
"""Whatever comes from outside, only an Error of ours comes out: within a second, within 64 MiB.

``--fuzz N`` tries N cases of each kind, ``--fuzz-seed S`` others.
"""
import json
import sys
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS, hunted
from tests.kit.crashes import workers
from tests.kit.processes import driver_env, run

WORKERS = 2
SLOW = {"pulls": 5}  # kinds of which only one case of so many is tried


def main(name: str, seed: int, count: int) -> None:
    """Print the failures; runs in a process of its own, which forks."""
    print(json.dumps(workers(WORKERS, lambda number: hunted(name, seed, range(number, count, WORKERS)))))


@pytest.mark.parametrize("name", KINDS)
def test_only_our_errors_come_out(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seed, count = (int(pytestconfig.getoption(option)) for option in ("--fuzz-seed", "--fuzz"))
    count //= SLOW.get(name, 1)
    code = "from tests.faults import test_fuzz as t; t.main(%r, %d, %d)" % (name, seed, count)
    done = run([sys.executable, "-c", code], driver_env(tmp_path), 120 + count)
    failures = json.loads(done.out)
    if failures:
        pytest.fail("\n\n".join(failures), pytrace=False)
