# SPDX-License-Identifier: Apache-2.0
"""Progress says how fast, how long, and what it came to."""
import io
from typing import Sequence

import pytest

from minipull.cli.render import JSON, Plain, Terminal
from minipull.progress import Meter, Progress
from tests.cli.test_render import plain, terminal
from tests.kit.screens import Clock, Screen


@pytest.mark.parametrize("columns", range(40, 201, 10))
def test_numbers_are_never_cut_and_the_bar_shrinks_first(columns: int) -> None:
    renderer, screen, clock = terminal(columns=columns)
    sizes = {"c92248fd8a62": 207800000, "0f6bafcbbe1c": 1048576000}
    for step in range(4):
        for id, size in sizes.items():
            renderer(Progress(id=id, action="Downloading", current=31200000 + step * 12000000, total=size,
                              start=31200000))
        clock.now += 1
    shown = screen.shown()
    for line, numbers in zip(shown, (
            "67.2/207.8MB 12MB/s 0:12", "67.2MB/1.049GB 12MB/s 1:22", "122.4MB/1.256GB 20MB/s 0:57")):
        assert line.endswith(" " + numbers)
    assert all(len(line) < columns for line in shown)
    assert shown[0].startswith("c92248fd8a62 Downloading =" if columns > 50 else
                                "c92248fd8a62 Downloading 67.2" if columns == 50 else "c92248fd8a62 67.2")
    assert shown[2].startswith("in all ")


def test_a_terminal_for_utf_8_gets_lines_of_its_characters() -> None:
    raw = io.BytesIO()
    renderer = Terminal(io.TextIOWrapper(raw, "utf-8"), Clock(), lambda: (60, 24))
    renderer(Progress(id="a", action="Downloading", current=1, total=2))
    assert "a Downloading \u2501\u2501\u2501".encode() in raw.getvalue()


@pytest.mark.parametrize("mode", ["tty", "plain"])
def test_the_last_line_is_the_sum_of_what_has_moved(mode: str) -> None:
    screen, clock = Screen(), Clock()
    renderer = Terminal(screen, clock, screen.size) if mode == "tty" else Plain(screen, clock)
    for id, size in (("a", 150000000), ("b", 70000000), ("c", 5000000)):
        renderer(Progress(id=id, action="Pulling fs layer", expected=size))
    renderer(Progress(id="c", action="Already exists"))
    meters = [Meter(renderer, "a", "Downloading", 150000000),
              Meter(renderer, "b", "Downloading", 70000000, 7000000)]
    for meter in meters:
        meter.advance(60000000)
    clock.now += 17
    renderer(Progress(id="a", action="Retrying in 5 seconds"))
    meters[0] = Meter(renderer, "a", "Downloading", 150000000, 60000000)
    meters[0].advance(90000000)
    for id in "ab":
        renderer(Progress(id=id, action="Download complete"))
        renderer(Progress(id=id, action="Extracting", current=5, total=9))
        renderer(Progress(id=id, action="Pull complete"))
    renderer.finish()
    assert screen.shown()[-1] == "213MB in 17 s, 12.5MB/s; 1 layer was there"


def test_a_blob_without_a_meter_counts_as_moved_unless_it_was_there() -> None:
    renderer, screen, clock = terminal()
    for id, last in (("a", "Download complete"), ("b", "Layer already exists"), ("c", "Skipped foreign layer")):
        renderer(Progress(id=id, action="Preparing", expected=1000))
        renderer(Progress(id=id, action="Waiting"))
        renderer(Progress(id=id, action=last))
    clock.now += 2
    renderer.finish()
    assert screen.shown()[-1] == "1kB in 2 s, 500B/s; 1 layer was there"


def test_layers_that_are_read_twice_are_summed_once_and_whole() -> None:
    renderer, screen, clock = terminal()
    for action in ("Reading", "Extracting"):
        for id in "ab" if action == "Extracting" else "":
            renderer(Progress(id=id, action="Waiting", expected=4000000))
        for id in "ab":
            meter = Meter(renderer, id, action, 4000000)
            meter.advance(1000000)
            clock.now += 1
            if action == "Extracting" and id == "a":
                assert screen.shown()[-1].split()[-3] == "1/8MB", "what waits is part of it"
            meter.move(4000000)
            meter.finish()
    renderer.finish()
    assert screen.shown()[-1] == "8MB in 4 s, 2MB/s"


def test_an_interrupt_says_how_far_a_download_came() -> None:
    renderer, screen, clock = terminal()
    renderer(Progress(id="a", action="Pulling fs layer", expected=100000000))
    renderer(Progress(id="b", action="Pulling fs layer", expected=108000000))
    Meter(renderer, "a", "Downloading", 100000000, kept=True).advance(71000000)
    renderer.finish(interrupted=True)
    assert screen.shown()[-1] == "interrupted; the same command goes on at 71 of 208MB"


@pytest.mark.parametrize("kept, done, text", [
    ((), (), "interrupted"),
    ((), ("b",), "interrupted; the same command goes on at 50 of 300MB"),
    (("a",), (), "interrupted; the same command goes on at 70 of 250MB if the registry does"),
    (("a", "c"), (), "interrupted; the same command goes on at 80 of 250MB if the registry does"),
    (("a",), ("b",), "interrupted; the same command goes on at 120 of 300MB if the registry does")])
def test_an_interrupt_of_a_push_counts_what_its_registry_keeps(
        kept: Sequence[str], done: Sequence[str], text: str) -> None:
    renderer, screen, clock = terminal()
    for id in done:
        Meter(renderer, id, "Pushing", 50000000).advance(50000000)
        renderer(Progress(id=id, action="Pushed"))
    Meter(renderer, "a", "Pushing", 150000000, 60000000, "a" in kept).advance(10000000)
    Meter(renderer, "c", "Pushing", 100000000, kept="c" in kept).advance(10000000)
    renderer.finish(interrupted=True)
    assert screen.shown()[-1] == text


def test_nothing_is_summed_where_nothing_has_moved() -> None:
    for renderer in (terminal()[0], plain()[0], JSON(io.StringIO())):
        renderer(Progress(id="a", action="Already exists"))
        renderer.finish()
    renderer, screen, _ = terminal()
    renderer.finish()
    assert screen.shown() == []


def test_what_others_write_to_the_terminal_stays() -> None:
    renderer, screen, clock = terminal()
    for id in "ab":
        renderer(Progress(id=id, action="Downloading", current=1, total=2))
    assert screen.shown()[-1].startswith("in all ")
    renderer.leave()
    screen.write("a result\n")
    renderer(Progress(id="a", action="Pull complete"))
    clock.now += 1
    renderer.finish()
    assert [line[:8] for line in screen.shown()] == ["a Downlo", "b Downlo", "a result", "a Pull c", "3B in 1 "]
