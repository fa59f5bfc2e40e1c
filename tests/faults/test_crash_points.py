# SPDX-License-Identifier: Apache-2.0
"""kill -9 and power cuts: whatever was there is still there, and the next run ends the work.

Every third call of the system is tried in commands that make many of them: others with
another MINIPULL_TEST_SEED, all of them with MINIPULL_TEST_ALL=1.
"""
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Tuple

import pytest

from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit import scenes
from tests.kit.crashes import Disk, State, in_child, killed_at, load_all, memory_folder, power_cut, workers
from tests.kit.images import push_layout_http
from tests.kit.processes import Serve, driver_env, run
from tests.kit.scenes import SCENES, Scene

EVERY = os.environ.get("MINIPULL_TEST_ALL") == "1"
FIRST = int(os.environ.get("MINIPULL_TEST_SEED", "0"))
WORKERS = 2


def debris(folder: Path, scene: Scene) -> Iterator[str]:
    """What a second run has left, beside its target or in the store."""
    for path in sorted(folder.iterdir()):
        known = ("store", "made", *scene.beside)
        if path.name not in known and not re.fullmatch(scenes.ACCEPTED, path.name):
            yield "debris beside the target: %s" % path.name
    for root in (folder / "store", folder / "layout"):
        if (root / "index.json").exists():
            gc(Store(str(root), timeout=5), 0)
            yield from ("debris in the store: %s" % path.name for path in (root / "ingest").glob("*"))


def problems_after_a_kill(scene: Scene, folder: Path, host: str) -> List[str]:
    def examined() -> List[str]:
        found = ["after the kill: " + text for text in scene.between(folder)]
        found += scene.again(folder, host)
        found += ["after the second run: " + text for text in scene.after(folder)]
        return found + list(debris(folder, scene))
    return in_child(examined)


Results = List[Tuple[str, List[str]]]  # what was tried, and what was wrong after it


def in_memory(work: Callable[[str, Path, str], Results], name: str, host: str) -> None:
    """Print the results of ``work`` in a scene; runs in a process of its own, which forks."""
    load_all()
    with memory_folder() as folder:
        scene, template = SCENES[name], folder / "template"
        template.mkdir()
        in_child(lambda: scene.prepare(template, host))
        print(json.dumps(work(name, folder, host)))


def points(number: int, step: int) -> Iterable[int]:
    """The calls at which one of the workers kills."""
    step = 1 if EVERY else step
    return range(1 + FIRST % step + number * step, 5000, WORKERS * step)


def kill_everywhere(name: str, work: Path, host: str) -> Results:
    """Kill the command at one call after the other, and run it again."""
    scene, template = SCENES[name], work / "template"

    def tried(number: int) -> Results:
        results = []
        for k in points(number, scene.step):
            folder = work / str(k)
            shutil.copytree(str(template), str(folder), symlinks=True)
            call = killed_at(k, lambda: scene.act(folder, host), scene.stdin)
            results.append(("%d (%s)" % (k, call), problems_after_a_kill(scene, folder, host)))
            shutil.rmtree(str(folder))
            if call is None:
                break
        return results
    return workers(WORKERS, tried)


#: At how many calls each command must have been killed at least.
LEAST = {"tag": 5, "rm": 5, "gc": 8, "login": 5, "pull": 15, "load": 12, "save": 2, "save over": 2, "copy": 10,
         "copy to archive": 12, "unpack": 8, "served upload": 10}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with an image."""
    folder = tmp_path_factory.mktemp("registry")
    layout, one, _ = scenes.layout_of(folder / "layout")
    layout.name(one.descriptor, "one")
    server = Serve(folder, folder / "store", "--writable")
    push_layout_http(layout, "one", "%s/%s" % (server.host, scenes.REMOTE))
    yield server.host
    server.stop()


Driver = Callable[[str, str], Results]


@pytest.fixture
def driver(tmp_path: Path, host: str) -> Driver:
    """Call a function of this module in a process of its own, which may fork."""
    def call(function: str, name: str) -> Results:
        code = "from tests.faults import test_crash_points as t; t.in_memory(t.%s, %r, %r)" % (
            function, name, host)
        results: Results = json.loads(run([sys.executable, "-c", code], driver_env(tmp_path), 900).out)
        return results
    return call


def nothing_wrong(results: Results, least: int) -> None:
    wrong = ["at %s: %s" % (label, "; ".join(problems)) for label, problems in results if problems]
    if wrong:
        pytest.fail("seed %d\n%s" % (FIRST, "\n".join(wrong)), pytrace=False)
    assert len(results) >= least


@pytest.mark.parametrize("name", SCENES)
def test_kill_9_at_any_call_leaves_the_old_state_or_the_new(driver: Driver, name: str) -> None:
    nothing_wrong(driver("kill_everywhere", name), LEAST[name])


# -- power cuts --------------------------------------------------------------------------


def cut_work(scene: Scene, name: str, folder: Path, host: str, disk: Disk) -> None:
    """Do the work, and mark each moment at which it has said that it is done."""
    if name == "served upload":
        scenes.push_here(folder, lambda text: disk.mark("ok: " + text))
    else:
        assert scene.act(folder, host) == 0
    disk.mark("ok")


#: Layer records and metadata are caches, which are not synced: torn ones are no damage.
CACHE = r"check: (layers|metadata)/\S+: rebuilt: "


def problems_after_a_cut(scene: Scene, state: State, eager: bool, folder: Path, host: str) -> List[str]:
    def examined() -> List[str]:
        state.restore(folder, eager)
        ok = state.event.startswith("ok")
        found = [text for text in (scene.after if state.event == "ok" else scene.between)(folder)]
        for digest in re.findall("sha256:[0-9a-f]{64}", state.event):
            blob = folder / "store" / "blobs" / digest.replace(":", "/")
            found += [] if blob.exists() else ["%s is lost" % digest]
        found += [] if ok else [*scene.again(folder, host), *scene.after(folder)]
        return [text for text in found if not re.match(CACHE, text)]
    return in_child(examined)


def cut_everywhere(name: str, work: Path, host: str) -> Results:
    """Try every state that a power cut may leave."""
    scene, template = SCENES[name], work / "template"
    disk = Disk(template, work / "log")
    states, told = power_cut(lambda disk: cut_work(scene, name, template, host, disk), disk)
    tries: List[Tuple[State, bool]] = []
    seen = set()
    for state in states:
        for eager in (False, True):
            key = (state.event.startswith("ok"), state.key(eager))
            if key not in seen:
                seen.add(key)
                tries.append((state, eager))

    def tried(number: int) -> Results:
        results = []
        for n in range(number, len(tries), WORKERS):
            state, eager = tries[n]
            folder = work / ("cut-%d" % n)
            label = "%d: %s, %s" % (n, state.event, "all names" if eager else "what was synced")
            results.append((label, problems_after_a_cut(scene, state, eager, folder, host)))
            shutil.rmtree(str(folder))
        return results
    results = workers(WORKERS, tried)
    ended = any(state.event == "ok" for state in states)
    return results + ([] if ended else [("the end", ["it failed: " + told])])


@pytest.mark.parametrize("name", ["pull", "tag", "save", "save over", "served upload"])
def test_a_power_cut_takes_nothing_that_was_said_to_be_done(driver: Driver, name: str) -> None:
    nothing_wrong(driver("cut_everywhere", name), 4)


SYNCS = ("fsync", "rename", "replace", "mkdir")


def cut_after_a_kill(name: str, work: Path, host: str) -> Results:
    """Kill a first run, let a second end, and cut the power then."""
    scene, template = SCENES[name], work / "template"

    def tried(number: int) -> Results:
        results = []
        for k in points(number, (scene.step + 1) // 2):
            folder, log = work / str(k), work / ("log-%d" % k)
            shutil.copytree(str(template), str(folder))
            disk = Disk(folder, log)
            call = killed_at(k, lambda: scene.act(folder, host), scene.stdin, disk, SYNCS)
            if call is None:
                break
            states, _ = power_cut(lambda disk: cut_work(scene, name, folder, host, disk), disk.load())
            shutil.rmtree(str(folder))
            found = problems_after_a_cut(scene, states[-1], False, folder, host)
            results.append(("%d (%s)" % (k, call), found))
            shutil.rmtree(str(folder))
            log.unlink()
        return results
    return workers(WORKERS, tried)


@pytest.mark.parametrize("name", ["pull", "tag", "load"])
def test_what_the_second_run_finds_is_synced_before_it_says_ok(driver: Driver, name: str) -> None:
    nothing_wrong(driver("cut_after_a_kill", name), 3 if name == "tag" else 8)
