# SPDX-License-Identifier: Apache-2.0
"""Ten processes with random verbs in one store, some of them killed: every name stays whole.

MINIPULL_TEST_MODEL_SECONDS lets it run longer, MINIPULL_TEST_SEED chooses other verbs; what
the processes do to each other still differs from run to run.
"""
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Counter, Dict, List, NamedTuple, Optional, Sequence, Tuple

import pytest

from tests.kit.crashes import Ended, command, in_child, load_all, memory_folder, workers
from tests.kit.images import Layout, Spec, push_layout_http
from tests.kit.processes import Serve, driver_env, run
from tests.kit.stores import text_layer

SECONDS = float(os.environ.get("MINIPULL_TEST_MODEL_SECONDS", "20"))
SEED = int(os.environ.get("MINIPULL_TEST_SEED", "0"))
PROCESSES = 10
KILLED = 0.1  # the share of verbs that are killed within 80 ms
IMAGES = ("a:1", "a:2", "b:1")

#: A name was removed by another process before the verb looked for it.
GONE = r"No such image: |tag does not exist: |An image does not exist locally"
#: The image was removed and collected between the look at its name and the lock under which it is read.
COLLECTED = r"(is missing from the store|lacks blob|No such file or directory|does not exist|is not stored)"


class Verb(NamedTuple):
    """A command line, and the exit codes that it may have besides 0, each with what it must then say."""
    args: List[str]
    allowed: Dict[int, str] = {}


def verb_of(rng: random.Random, root: Path, host: str, number: int) -> Verb:
    """A random verb; its files are its process's own, its names are everybody's."""
    remote = "%s/demo/%s" % (host, rng.choice(IMAGES))
    local = "%s/local/x:%d" % (host, rng.randrange(4))
    name, mine = rng.choice((remote, local)), str(root / ("p%d" % number))
    turn = "%s-%d" % (mine, rng.randrange(10**9))
    gone = {3: GONE}
    # A name that is not in the store is pulled, and of the local ones the registry knows nothing.
    pulled = {3: "manifest unknown|repository name not known|" + GONE, 7: COLLECTED}
    verbs: List[Tuple[int, Verb]] = [
        (5, Verb(["pull", "-q", remote])), (4, Verb(["tag", name, local], gone)), (4, Verb(["rm", name], gone)),
        (3, Verb(["gc", "--keep", "0"])), (1, Verb(["check"])), (2, Verb(["images", "--format", "json"])),
        (2, Verb(["save", "-q", "-o", mine + ".tar", name], gone)),
        (2, Verb(["load", "-q", "-i", str(root / "in.tar")])),
        (2, Verb(["unpack", "-q", name, turn], pulled)),
        (2, Verb(["push", "-q", name, "%s/pushed/%d:1" % (host, number)], {3: GONE, 7: COLLECTED})),
        (2, Verb(["copy", "-q", "store:" + name, "oci:%s-layout:x" % mine],
                 {3: "no image|" + GONE, 7: COLLECTED})),
        (2, Verb(["copy", "-q", "docker://" + remote, "store:" + local])),
        (1, Verb(["inspect", name], gone))]
    weights, choices = zip(*verbs)
    return Verb(*rng.choices(choices, weights)[0])


def tried(verb: Verb, store: Path, killed_after: float) -> Tuple[str, str]:
    """Run a verb in a fork; returns its outcome, and what is wrong with it if anything is."""
    def ended() -> Ended:
        if killed_after:
            signal.setitimer(signal.ITIMER_REAL, killed_after)  # SIGALRM has no handler, and kills
        return command("--root", store, *verb.args)

    try:
        code, _, err = in_child(ended)
    except RuntimeError as exc:
        return "killed" if killed_after else "died", "" if killed_after else str(exc)
    lines = [line for line in err.splitlines() if line.startswith("minipull: ")]
    last = lines[-1] if lines else ""
    problem = ""
    if "Traceback" in err or "internal error" in err or code and len(lines) != 1:
        problem = "it said: " + err
    elif code and not (code in verb.allowed and re.search(verb.allowed[code], last)):
        problem = "exit %d: %s" % (code, last)
    return str(code), problem


class Own:
    """A name that one process alone uses; ``held`` is whether the store has it, None if that is not known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: Optional[bool] = False

    def verb(self, rng: random.Random, remote: str) -> Verb:
        gone = {3: GONE}
        return rng.choice((
            Verb(["copy", "-q", "docker://" + remote, "store:" + self.name]), Verb(["rm", self.name], gone),
            Verb(["inspect", self.name], gone), Verb(["save", "-q", "-o", os.devnull, self.name], gone)))

    def learned(self, word: str, outcome: str) -> str:
        """Note the outcome of a verb; returns what is wrong with it."""
        before, present = self.held, outcome == "0"
        if outcome == "killed":
            self.held = None if word in ("copy", "rm") else before
        else:
            self.held = present and word != "rm"
        if outcome == "killed" or word == "copy" or before in (None, present):
            return ""
        return "the name is lost" if before else "the name is back"


def play(number: int, work: Path, host: str, seed: int, end: float) -> List[Any]:
    """Random verbs until the end; returns (verb, outcome, problem) of each."""
    rng, own = random.Random("%d %d" % (seed, number)), Own("%s/own/p:%d" % (host, number))
    results = []
    while time.monotonic() < end:
        alone = rng.random() < 0.25
        verb = verb_of(rng, work, host, number)
        if alone:
            verb = own.verb(rng, "%s/demo/%s" % (host, rng.choice(IMAGES)))
        killed_after = rng.uniform(0.001, 0.08) if rng.random() < KILLED else 0
        outcome, problem = tried(verb, work / "store", killed_after)
        if alone:
            problem = problem or own.learned(verb.args[0], outcome)
        for path in work.glob("p%d-[0-9]*" % number):
            shutil.rmtree(str(path), ignore_errors=True)
        results.append((verb.args[0], outcome, problem and "%s: %s" % (" ".join(verb.args), problem)))
    return results


def main(work: str, host: str, seed: int, seconds: float) -> None:
    """Play, then examine the store; prints both.  Runs in a process of its own, which forks."""
    load_all()
    root, end = Path(work), time.monotonic() + seconds
    os.setpgid(0, 0)
    results = workers(PROCESSES, lambda number: play(number, root, host, seed, end))
    print(json.dumps([results, in_child(lambda: final(root))]))


def final(work: Path) -> List[str]:
    """What is wrong with the store when all have ended."""
    problems = []

    def ran(*args: object) -> Ended:
        ended = command("--root", work / "store", *args)
        if ended.code:
            problems.append("%s: exit %d: %s%s" % (args, *ended))
        return ended

    ran("check")
    json.loads((work / "store" / "index.json").read_text())
    for row in json.loads(ran("images", "--format", "json").out):
        ran("save", "-q", "-o", work / "last.tar", row["name"])
    ran("gc", "--keep", "0")
    ran("check")
    problems += ["debris: %s" % path.name for path in (work / "store" / "ingest").glob("*")]
    return problems


def others_in(group: int) -> List[str]:
    """The processes of a group that are still there."""
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            left.append(path.parent.name)
    return left


def prepared(work: Path, host: str) -> None:
    """Push the images to the registry, and make an archive of one of them."""
    layout = Layout(work / "layout")
    shared = Spec(30000, files=3, seed=1)
    for name in IMAGES:
        layout.image([shared, text_layer(name), Spec(20000, seed=len(name), compression="")], name)
        push_layout_http(layout, name, "%s/demo/%s" % (host, name))
    other = work / "other"
    commands: Sequence[Sequence[str]] = [
        ["pull", "-q", host + "/demo/a:1"], ["tag", host + "/demo/a:1", host + "/local/x:0"],
        ["save", "-q", "-o", str(work / "in.tar"), host + "/local/x:0"]]
    for args in commands:
        done = run([sys.executable, "-m", "minipull", "--root", str(other), *args],
                   driver_env(work))
        assert done.code == 0


def test_ten_processes_with_random_verbs_leave_every_name_whole(tmp_path: Path) -> None:
    with memory_folder() as work:
        server = Serve(tmp_path, work / "registry", "--writable")
        try:
            prepared(work, server.host)
            code = "import os; from tests.faults import test_model as t; print(os.getpid(), flush=True);"
            code += "t.main(%r, %r, %d, %r)" % (str(work), server.host, SEED, SECONDS)
            done = run([sys.executable, "-c", code], driver_env(tmp_path), SECONDS + 120)
        finally:
            server.stop()
    pid, _, answer = done.out.partition("\n")
    results, problems = json.loads(answer)
    outcomes: Counter[str] = collections.Counter("%s %s" % (verb, outcome) for verb, outcome, _ in results)
    print("seed %d, %d verbs: %s" % (SEED, len(results), dict(sorted(outcomes.items()))))
    problems += [problem for _, _, problem in results if problem]
    if problems:
        pytest.fail("seed %d\n%s" % (SEED, "\n".join(problems)), pytrace=False)
    assert others_in(int(pid)) == []
    assert outcomes["pull 0"] and outcomes["rm 0"] and outcomes["gc 0"]
