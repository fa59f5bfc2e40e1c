# SPDX-License-Identifier: Apache-2.0
"""Screens of 40, 80 and 200 columns, of commands that run in a terminal of ours, through a relay of 12 MB/s.

That no line wraps is asserted while they are drawn, by the terminal.
"""
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple

import pytest

import minipull
from minipull.cli.render import Plain
from minipull.progress import Output, Progress, human_size
from minipull.store.store import Store
from tests.kit.images import Layout, Spec, push_layout_http
from tests.kit.processes import Serve, minipull_env, run
from tests.kit.screens import Relay, Shown, shown

RATE = 12e6  # bytes a second
COLUMNS = [40, 80, 200]
BASE = Spec(size=2000000, seed=9, text=0)  # the layer that is there
MOVED = [Spec(size=size, seed=seed, text=0) for seed, size in enumerate((9000000, 4000000, 3000))]

_SIZE = r"\d+(?:\.\d+)?[kM]?B"
_AMOUNT = r"(?P<current>\d+(?:\.\d+)?(?:[kM]?B)?)/(?P<total>%s)" % _SIZE
#: A line with numbers, none of which is cut: name, bar, amount, speed, time left.
_NUMBERS = re.compile(
    r"(?P<words>[0-9a-f]{12}|[0-9a-f]{8,12}|in all|(?:[0-9a-f]{12} )?[A-Z][a-z]+(?: layer)?)"
    r"(?P<bar> +[\u2501]*\u2578? *)?(?<= )(?:%s|(?P<alone>%s))(?: (?P<speed>%s)/s(?: (?P<left>\d+:\d\d))?)?" % (
        _AMOUNT, _SIZE, _SIZE))
_SUMMARY = re.compile(r"(?P<moved>%s) in (?P<seconds>[\d.]+) s, (?P<speed>%s)/s(?P<rest>(?:; .*)?)" % (_SIZE, _SIZE))


class Site(NamedTuple):
    """A registry with an image and its base; ``sizes`` of the layers above that."""
    home: Path
    layout: Layout
    serve: Serve
    sizes: List[int]

    def minipull(self, root: Path, *args: str) -> None:
        run([sys.executable, "-m", "minipull", "--root", root, *args], minipull_env(self.home))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("screens")
    layout = Layout(home / "layout")
    layout.image([BASE], "base")
    whole = layout.image([BASE] + MOVED, "latest")
    sizes = [int(layer["size"]) for layer in json.loads(whole.raw.decode())["layers"][1:]]
    serve = Serve(home, home / "source", "--writable")
    try:
        for name in ("base", "latest"):
            push_layout_http(layout, name, "%s/team/app:%s" % (serve.host, name))
        yield Site(home, layout, serve, sizes)
    finally:
        serve.stop()


@pytest.fixture
def target(site: Site, tmp_path: Path) -> Iterator[Serve]:
    """A registry that has the base alone."""
    serve = Serve(site.home, tmp_path / "target", "--writable")
    try:
        push_layout_http(site.layout, "base", "%s/team/app:base" % serve.host)
        yield serve
    finally:
        serve.stop()


def bytes_of(text: str) -> float:
    number = re.match(r"[\d.]+", text)
    assert number
    return float(number.group()) * {"kB": 1e3, "MB": 1e6}.get(text[number.end():], 1)


def normal(lines: List[str]) -> List[str]:
    """Lines with names for the layers in the order of the screen, and without what differs between runs."""
    text, names = "\n".join(lines), "abcdefgh"
    for number, id in enumerate(dict.fromkeys(re.findall(r"^([0-9a-f]{8})[0-9a-f]{0,4} ", text, re.M))):
        text = re.sub("^%s[0-9a-f]*" % id, 12 * names[number], text, flags=re.M)  # its end may be cut
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r" in [\d.]+ s, [\d.]+[kMG]B/s", " in # s, #/s", text)
    text = re.sub(r" [\d.]+(?:[kM]?B)?(/[\d.]+MB) [\d.]+[kM]B/s \d:\d\d", r" #\1 #MB/s #:##", text)
    return re.sub(r" (?:[\u2501]*\u2578)? *(?=#/.*:##)", " ~ ", text).split("\n")


def summary(screen: Shown) -> "re.Match[str]":
    """The last line, which may be folded into two."""
    at = next(number for number, line in enumerate(screen.last) if " in " in line and "/s" in line)
    match = _SUMMARY.fullmatch(" ".join(screen.last[at:]))
    assert match, screen.last
    return match


def assert_readable(screen: Shown, columns: int) -> None:
    """No line is longer than the screen, and no number of any frame is cut."""
    assert screen.code == 0 and screen.frames
    for line in (line for frame in screen.frames for line in frame):
        assert len(line) < columns
        numbers = re.search(r"\d[kMG]?B\b|/s", line)
        assert not numbers or _NUMBERS.fullmatch(line) or " in " in line, line


def assert_plausible(screen: Shown) -> None:
    """The speed of all is that of the relay, and the time left is what is missing at that speed."""
    sums = [_NUMBERS.fullmatch(line) for frame in screen.frames for line in frame if line.startswith("in all")]
    timed = [line.groupdict() for line in sums if line and line.group("left")]
    assert len(timed) >= 5
    for line in timed[len(timed) // 2:]:
        speed, total = bytes_of(line["speed"]), bytes_of(line["total"])
        unit = "" if line["current"][-1] == "B" else line["total"][-2:]
        minutes, seconds = map(int, line["left"].split(":"))
        assert 0.3 * RATE < speed < 1.6 * RATE, line  # a send buffer takes the first megabytes at once
        assert abs(60 * minutes + seconds - (total - bytes_of(line["current"] + unit)) / speed) <= 0.6, line


def assert_of_the_wire(screen: Shown, moved: int, passed: int) -> None:
    """The bytes of the summary are those of the blobs that moved, and the wire had little besides."""
    last = summary(screen)
    assert last.group("moved") == human_size(moved) and 0 < passed - moved < 20000
    assert float(last.group("seconds")) <= screen.seconds + 0.1
    assert bytes_of(last.group("speed")) == pytest.approx(moved / float(last.group("seconds")), rel=0.1)
    assert 0.3 * RATE < bytes_of(last.group("speed")) < 1.1 * RATE


def middle(screen: Shown) -> List[str]:
    """The last frame in which both large layers and the sum have a speed and a time left: the small ones rest."""
    for frame in reversed(screen.frames):
        if sum(bool(re.search(r"/s \d:\d\d$", line)) for line in frame) == 3:
            return normal(frame)
    raise AssertionError("no such frame")


#: The screens, with # for what differs between runs, ~ for a bar if there is room, and letters for layers.
MOVING = {40: "%s ~ #/%s #MB/s #:##", 80: "%s %s ~ #/%s #MB/s #:##", 200: "%s %s ~ #/%s #MB/s #:##"}
SMALL = {
    40: "Extracting 3.442/3.442kB",
    80: "Extracting %s 3.442/3.442kB" % (39 * "\u2501" + "\u2578"),
    200: "Extracting %s 3.442/3.442kB" % (49 * "\u2501" + "\u2578")}
REFERS = {40: ["The push refers to repository", "[127.0.0.1:PORT/team/app]"],
          80: ["The push refers to repository [127.0.0.1:PORT/team/app]"],
          200: ["The push refers to repository [127.0.0.1:PORT/team/app]"]}
THERE = {40: ["13.01MB in # s, #/s; 1 layer was", "there"],
         80: ["13.01MB in # s, #/s; 1 layer was there"],
         200: ["13.01MB in # s, #/s; 1 layer was there"]}
A, B, C, D = ("a" * 12, "b" * 12, "c" * 12, "d" * 12)


def moving(columns: int, id: str, word: str, total: str) -> str:
    return MOVING[columns] % ((id, total) if columns == 40 else (id, word, total))


@pytest.mark.parametrize("columns", COLUMNS)
def test_screens(site: Site, target: Serve, columns: int, tmp_path: Path) -> None:
    """One test a width, since the commands build on each other: pull, push, check, unpack."""
    root = tmp_path / "store"
    with Relay(site.serve.host, RATE) as relay, Relay(target.host, RATE) as back:
        name = relay.host + "/team/app"
        site.minipull(root, "pull", "-q", name + ":base")
        before = sum(relay.passed.values())
        pull = shown(site.home, columns, "--root", root, "pull", name)
        passed = sum(relay.passed.values()) - before
        push = shown(site.home, columns, "--root", root, "push", name, back.host + "/team/app")
        pushed = sum(back.passed.values())
    check = shown(site.home, columns, "--root", root, "check")
    unpack = shown(site.home, columns, "--root", root, "unpack", name, tmp_path / "rootfs")
    for screen in (pull, push, check, unpack):
        assert_readable(screen, columns)
    for screen, count in ((pull, passed), (push, pushed)):
        assert_plausible(screen)
        assert_of_the_wire(screen, sum(site.sizes), count)
    pulling, in_all = "latest: Pulling from team/app", "in all ~ #/13.01MB #MB/s #:##"
    assert middle(pull) == [
        pulling, A + " Already exists", moving(columns, B, "Downloading", "9.004MB"),
        moving(columns, C, "Downloading", "4.002MB"), "%s %s" % (D, SMALL[columns]), in_all]
    assert normal(pull.last) == [
        pulling, A + " Already exists", B + " Pull complete", C + " Pull complete", D + " Pull complete",
        *THERE[columns]]
    assert middle(push) == REFERS[columns] + [
        A + " Pushed", moving(columns, B, "Pushing", "4.002MB"), moving(columns, C, "Pushing", "9.004MB"),
        D + " Layer already exists", in_all]
    assert normal(push.last) == REFERS[columns] + [
        A + " Pushed", B + " Pushed", C + " Pushed", D + " Layer already exists", *THERE[columns]]
    checking, result = normal(check.last)
    assert re.fullmatch("Checking \u2501+\u2578 15.01/15.01MB( %s/s)?" % _SIZE, checking)  # a slow one has a speed
    assert result == "15.01MB in # s, #/s"
    assert normal(unpack.last) == [
        A + " Extracted", B + " Extracted", C + " Extracted", D + " Extracted", "15.01MB in # s, #/s"]


class Ticks:
    """Time of which half a second passes whenever somebody asks for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture(scope="module")
def stored(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("stored")
    site.minipull(root, "pull", "-q", site.serve.host + "/team/app")
    return Store(str(root))


#: For each command that moves bytes on this host: its library function, given a name, a store and a directory.
LOCAL: Dict[str, Callable[[str, Store, Path, Output], object]] = {
    "Checking": lambda name, store, folder, output: minipull.check(store, progress=output),
    "Saving": lambda name, store, folder, output: minipull.save(
        [name], store, str(folder / "a.tar"), progress=output),
    "Extracting": lambda name, store, folder, output: minipull.unpack(
        name, store, str(folder / "rootfs"), progress=output),
    "Loading layer": lambda name, store, folder, output: minipull.load(
        str(folder / "saved.tar"), Store(str(folder / "other")), progress=output),
    "Reading": lambda name, store, folder, output: minipull.export(
        name, store, str(folder / "x.tar"), progress=output),
}


@pytest.mark.parametrize("action", LOCAL)
def test_in_a_log_local_work_tells_its_numbers_every_five_seconds(
        site: Site, stored: Store, action: str, tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Ticks()
    minipull.save([site.serve.host + "/team/app"], stored, str(tmp_path / "saved.tar"))
    LOCAL[action](site.serve.host + "/team/app", stored, tmp_path, Plain(stream, clock))
    lines = [line for line in stream.getvalue().splitlines() if action + " " in line]
    assert lines and all(re.fullmatch(
        r"([0-9a-f]{12}: )?%s %s \d+%%( %s/s)?( \d:\d\d)?" % (action, _AMOUNT, _SIZE), line) for line in lines), lines
    assert len(lines) <= clock.now / Plain.interval


@pytest.mark.parametrize("words", [
    ["check"], ["gc", "--keep", "7d"], ["save", "-o", "FOLDER/a.tar", "NAME"], ["load", "-i", "FOLDER/a.tar"],
    ["unpack", "NAME", "FOLDER/rootfs"], ["export", "NAME"]], ids=lambda words: words[0])
def test_local_commands_take_the_flags_of_progress(
        site: Site, stored: Store, words: List[str], tmp_path: Path) -> None:
    name = site.serve.host + "/team/app"
    site.minipull(Path(stored.root), "save", "-q", "-o", str(tmp_path / "a.tar"), name)
    words = [word.replace("FOLDER", str(tmp_path)).replace("NAME", name) for word in words]
    for flag, pattern in ((["-q"], ""), (["--progress", "none"], ""),
                          (["--progress", "plain"], r"([^\x1b\r]+\n)*"), (["--progress", "json"], r"(\{.*\}\n)*")):
        done = run([sys.executable, "-m", "minipull", "--root", stored.root, *words, *flag], minipull_env(site.home))
        assert re.fullmatch(pattern, done.err) and bool(done.err) == (bool(pattern) and words[0] != "gc"), done
        for folder in tmp_path.glob("rootfs"):
            shutil.rmtree(str(folder))


def test_a_load_of_what_is_there_has_moved_nothing(site: Site, stored: Store, tmp_path: Path) -> None:
    path = str(tmp_path / "saved.tar")
    minipull.save([site.serve.host + "/team/app"], stored, path)
    for root in (stored.root, str(tmp_path / "new"), str(tmp_path / "new")):  # pulled; loaded; loaded again
        fresh = not Path(root).exists()
        screen = shown(site.home, 80, "--root", root, "load", "-i", path)
        ends = [line.partition(" ")[2] for line in screen.last[:4]]
        assert ends == ["Load complete" if fresh else "Already exists"] * 4
        assert [line.partition(" in ")[0] for line in screen.last[4:]] == ["15.01MB"] * fresh


def test_gc_ends_at_all_that_it_deletes(site: Site, tmp_path: Path) -> None:
    site.minipull(tmp_path, "pull", "-q", site.serve.host + "/team/app")
    site.minipull(tmp_path, "rm", site.serve.host + "/team/app")
    events: List[Progress] = []
    collected = minipull.gc(Store(str(tmp_path)), 0, progress=events.append)
    assert events[-1] == Progress(
        action="Deleting", current=collected.size, total=collected.size, last_update=True)


@pytest.mark.parametrize("deep", [False, True])
def test_a_check_at_a_registry_tells_each_blob_and_sums_those_that_it_reads(site: Site, deep: bool) -> None:
    words = ["check", "docker://%s/team/app" % site.serve.host, *["--deep"] * deep]
    screen = shown(site.home, 80, *words)
    assert [line.partition(" ")[2] for line in screen.last[:5]] == ["Checked"] * 5
    assert [line.partition(" in ")[0] for line in screen.last[5:]] == ["15.01MB"] * deep
    totals = {line.split("/")[1].split()[0] for frame in screen.frames for line in frame if line.startswith("in all")}
    assert totals == {"15.01MB"} if deep else not totals
