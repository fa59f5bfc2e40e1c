# SPDX-License-Identifier: Apache-2.0
"""Progress is drawn as docker draws it, and a registry can't draw anything else."""
import fcntl
import io
import json
import os
import re
import struct
import sys
import termios
import threading
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pytest

from minipull.errors import escape
from minipull.errors import InvalidReference
from minipull.progress import Meter, Progress, human_size
from minipull.cli.render import JSON, Plain, Renderer, Terminal, bar, choose
from tests.kit.screens import Clock, Screen


def terminal(columns: int = 80, rows: int = 24) -> Tuple[Terminal, Screen, Clock]:
    screen, clock = Screen(columns, rows), Clock()
    return Terminal(screen, clock, screen.size), screen, clock


# --- Numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "size, text",
    [
        (0, "0B"), (1, "1B"), (999, "999B"), (1000, "1kB"), (1024, "1.024kB"), (10 ** 7, "10MB"),
        (1048576, "1.049MB"), (2747253, "2.747MB"), (123456789, "123.5MB"), (999999, "1000kB"),
        (5 * 10 ** 9, "5GB"), (3.42 * 10 ** 12, "3.42TB"), (10 ** 15, "1PB"), (10 ** 28, "1e+04YB"),
    ],
)
def test_sizes_have_decimal_units_and_four_digits(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    "current, total, width, text",
    [
        (0, 0, 200, ""),
        (-1, -1, 200, ""),
        (1024, 0, 200, " 1.024kB"),
        (1024, -1, 80, " 1.024kB"),
        (0, 100, 111, "[>" + " " * 50 + "]       0B/100B"),
        (50, 100, 200, "[" + "=" * 25 + ">" + " " * 25 + "]      50B/100B"),
        (3, 100, 200, "[=>" + " " * 49 + "]       3B/100B"),
        (100, 100, 200, "[" + "=" * 50 + ">]     100B/100B"),
        (200, 100, 200, "[" + "=" * 50 + ">]     200B"),
        (50, 100, 110, "     50B/100B"),
    ],
)
def test_the_bar_is_the_engine_s(current: int, total: int, width: int, text: str) -> None:
    assert bar(current, total, width) == text


# --- What may be shown -------------------------------------------------------


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain, ünï and 漢字 \\ stay", "plain, ünï and 漢字 \\ stay"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\x7f\x80\x9b31m\x9f", r"\x7f\x80\x9b31m\x9f"),
        ("\u202eevil\u2066\u2069\u200e\u200f\u061c", r"\u202eevil\u2066\u2069\u200e\u200f\u061c"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800\udc80", r"\ud800\udc80"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert escape(text) == shown


EVIL = "\x1b]0;pwned\x07\x1b[1A\x9b2J\r\n\t\x7f\u202e\ud83d"


@pytest.mark.parametrize("mode", ["tty", "plain", "json"])
def test_no_text_of_a_registry_reaches_the_stream_as_control(mode: str) -> None:
    stream = io.StringIO()
    renderer = choose(mode, stream, {})
    renderer(Progress(id=EVIL, message=EVIL, aux={EVIL: EVIL}))
    renderer(Progress(message=EVIL))
    for current in (0, 1, 2):
        renderer(Progress(id=EVIL, action=EVIL, current=current, last_update=True))
        renderer(Progress(id=EVIL, action=EVIL + "x", aux={EVIL: EVIL}))
    own = re.sub(r"\x1b\[\d*[ABK]", "", stream.getvalue()).replace("\r", "").replace("\n", "")
    assert own.isprintable() and "pwned" in own


def test_characters_that_the_stream_cannot_encode_are_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    choose("plain", stream, {})(Progress(message="漢"))
    assert raw.getvalue() == b"\\u6f22\n"


# --- JSON --------------------------------------------------------------------


@pytest.mark.parametrize(
    "event, line",
    [
        (Progress(message="hello"), '{"status":"hello"}'),
        (Progress(id="3.20", message="Pulling"), '{"status":"Pulling","id":"3.20"}'),
        (
            Progress(id="ab", action="Pull complete"),
            '{"status":"Pull complete","progressDetail":{},"id":"ab"}',
        ),
        (
            Progress(id="ab", action="Downloading", current=50, total=100),
            '{"status":"Downloading","progressDetail":{"current":50,"total":100},"progress":'
            '"[=========================>                         ]      50B/100B","id":"ab"}',
        ),
        (
            Progress(id="ab", action="Pushing", current=512, last_update=True),
            '{"status":"Pushing","progressDetail":{"current":512},"progress":"    512B","id":"ab"}',
        ),
        (Progress(aux={"Tag": "x", "Size": 0}), '{"progressDetail":{},"aux":{"Tag":"x","Size":0}}'),
        (Progress(message="\x7f\x9bü"), r'{"status":"\u007f\u009b\u00fc"}'),
    ],
)
def test_json_events_are_the_engine_s_objects(event: Progress, line: str) -> None:
    stream = io.StringIO()
    JSON(stream)(event)
    assert stream.getvalue() == line + "\n"


def test_json_keeps_every_event_and_its_exact_text() -> None:
    stream = io.StringIO()
    renderer = JSON(stream)
    for _ in range(3):
        renderer(Progress(id="a", message=EVIL))
    found: List[Dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert found == [{"status": EVIL, "id": "a"}] * 3


# --- Plain -------------------------------------------------------------------


def plain() -> Tuple[Plain, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Plain(stream, clock), stream, clock


def test_plain_prints_one_line_for_each_state() -> None:
    renderer, stream, clock = plain()
    renderer(Progress(id="3.20", message="Pulling from library/alpine"))
    for action in ("Pulling fs layer", "Waiting", "Waiting", "Downloading", "Pull complete"):
        renderer(Progress(id="a", action=action))
        renderer(Progress(id="b", action=action))
        clock.now += 60
    renderer(Progress(aux={"ID": "x"}))
    renderer(Progress(message="Status: done"))
    assert stream.getvalue().splitlines() == [
        "3.20: Pulling from library/alpine",
        "a: Pulling fs layer", "b: Pulling fs layer", "a: Waiting", "b: Waiting",
        "a: Downloading", "b: Downloading", "a: Pull complete", "b: Pull complete",
        "Status: done",
    ]


def test_plain_counts_bytes_every_few_seconds_of_a_download() -> None:
    renderer, stream, clock = plain()
    meter = Meter(renderer, "a", "Downloading", 45600000)
    for _ in range(24):
        meter.advance(1900000)
        clock.now += 0.5
    meter.finish()
    unknown = Meter(renderer, "b", "Downloading", 0)
    for _ in range(3):
        unknown.advance(1 << 20)
        clock.now += 5
    assert stream.getvalue().splitlines() == [
        "a: Downloading",
        "a: Downloading 20.9/45.6MB 45% 3.8MB/s 0:07",
        "a: Downloading 39.9/45.6MB 87% 3.8MB/s 0:02",
        "b: Downloading",
        "b: Downloading 2.097MB 210kB/s",
        "b: Downloading 3.146MB 210kB/s",
    ]


def test_plain_remembers_a_bounded_number_of_ids() -> None:
    renderer, stream, _ = plain()
    for number in range(5000):
        renderer(Progress(id=str(number), action="Waiting"))
        renderer(Progress(id="busy", action="Downloading"))
    renderer(Progress(id="0", action="Waiting"))
    lines = stream.getvalue().splitlines()
    assert lines.count("busy: Downloading") == 1
    assert lines.count("0: Waiting") == 2


# --- Terminal ----------------------------------------------------------------


def test_each_id_has_a_line_that_is_redrawn_in_place() -> None:
    renderer, screen, clock = terminal()
    renderer(Progress(id="3.20", message="Pulling from library/alpine"))
    for id in "abc":
        renderer(Progress(id=id, action="Pulling fs layer"))
    renderer(Progress(id="b", action="Waiting"))
    renderer(Progress(id="a", action="Downloading", current=1000, total=2000))
    clock.now += 1
    renderer(Progress(id="a", action="Downloading", current=1500, total=2000))
    renderer(Progress(id="c", action="Already exists"))
    assert screen.shown() == [
        "3.20: Pulling from library/alpine",
        "a Downloading " + "=" * 32 + ">" + " " * 11 + " 1.5/2kB 500B/s 0:01",
        "b Waiting",
        "c Already exists",
        "in all " + "=" * 36 + ">" + " " * 13 + " 1.5/2kB 1.5kB/s 0:00",
    ]


def test_the_bytes_are_those_that_every_terminal_understands() -> None:
    stream = io.StringIO()
    renderer = Terminal(stream, Clock(), lambda: (80, 24))
    renderer(Progress(id="a", action="Waiting"))
    renderer(Progress(id="b", action="Waiting"))
    renderer(Progress(id="a", action="Pull complete"))
    assert stream.getvalue() == (
        "\ra Waiting\x1b[K\n\rb Waiting\x1b[K\n\x1b[2A\ra Pull complete\x1b[K\r\x1b[2B"
    )


def test_a_wide_terminal_gets_bars() -> None:
    renderer, screen, _ = terminal(columns=120)
    renderer(Progress(id="a", action="Downloading", current=1, total=2))
    assert screen.shown() == [
        "a Downloading " + "=" * 24 + ">" + " " * 25 + " 1/2B"
    ]


def test_a_layer_that_several_images_share_counts_once() -> None:
    renderer, screen, clock = terminal()
    shared = Progress(id="a", action="Pulling fs layer", expected=3000000)
    renderer(shared)
    renderer(shared)
    meter = Meter(renderer, "a", "Downloading", 3000000)
    meter.advance(1000000)
    renderer(shared)  # while it is on its way
    meter.advance(2000000)
    renderer(Progress(id="a", action="Verifying Checksum"))
    meter.finish()  # told to a late watcher
    renderer(shared)
    renderer(Progress(id="a", action="Pull complete"))
    clock.now += 2
    renderer.finish()
    assert screen.shown()[-1] == "3MB in 2 s, 1.5MB/s"


def test_the_file_that_blobs_are_written_to_is_not_summed_with_them() -> None:
    renderer, screen, clock = terminal()
    renderer(Progress(id="a", action="Preparing", expected=3000000))
    Meter(renderer, "a", "Compressing", 3000000).advance(3000000)
    renderer(Progress(id="a", action="Compressed to b"))
    renderer(Progress(id="b", action="Preparing", expected=3000000))
    renderer(Progress(id="b", action="Download complete"))
    Meter(renderer, "", "Saving", 3000000).advance(3000000)
    clock.now += 2
    renderer.finish()
    assert screen.shown()[-1] == "3MB in 2 s, 1.5MB/s"


def test_an_upload_to_a_second_repository_counts_again() -> None:
    renderer, screen, clock = terminal()
    for _ in range(2):
        renderer(Progress(id="a", action="Preparing", expected=3000000))
        Meter(renderer, "a", "Pushing", 3000000).advance(3000000)
        renderer(Progress(id="a", action="Pushed"))
    clock.now += 2
    renderer.finish()
    assert screen.shown()[-1] == "6MB in 2 s, 3MB/s"


def test_the_sum_of_a_pull_is_that_of_its_downloads() -> None:
    renderer, screen, _ = terminal()
    for id in "ab":
        renderer(Progress(id=id, action="Pulling fs layer", expected=5000000))
    renderer(Progress(id="a", action="Verifying Checksum"))  # its partial was whole
    renderer(Progress(id="a", action="Extracting", current=5000000, total=5000000))
    Meter(renderer, "b", "Downloading", 5000000, kept=True).advance(1000000)
    renderer.finish(interrupted=True)
    assert screen.shown()[-1] == "interrupted; the same command goes on at 6 of 10MB"


def test_columns_of_the_environment_win() -> None:
    stream = io.StringIO()
    choose("tty", stream, {"COLUMNS": "40"})(Progress(id="x" * 200, action="Waiting"))
    assert stream.getvalue() == "\r" + "x" * 39 + "\x1b[K\n"


def test_after_a_message_every_id_starts_a_new_line() -> None:
    renderer, screen, _ = terminal()
    renderer(Progress(id="a", action="Waiting"))
    renderer(Progress(message="Status: x"))
    renderer(Progress(id="a", action="Pull complete"))
    renderer(Progress(aux={"ID": "x"}))
    assert screen.shown() == ["a Waiting", "Status: x", "a Pull complete"]


def test_keys_typed_during_a_pull_are_overwritten() -> None:
    renderer, screen, _ = terminal()
    screen.write("^C^C and more than a word")
    renderer(Progress(id="a", action="Waiting"))
    screen.write("^C")
    renderer(Progress(message="m"))
    assert screen.shown() == ["a Waiting", "m"]


def test_redraws_are_throttled_but_no_state_is_lost() -> None:
    renderer, screen, clock = terminal()
    for current in range(1, 1001):
        renderer(Progress(id="a", action="Downloading", current=current, total=1000))
        clock.now += 0.001
    assert 5 <= screen.drawn <= 20
    drawn = screen.drawn
    renderer(Progress(id="a", action="Downloading", current=1000, total=1000, last_update=True))
    renderer(Progress(id="a", action="Verifying Checksum"))
    renderer(Progress(id="a", action="Download complete"))
    assert screen.drawn == drawn + 3
    assert screen.shown() == ["a Download complete"]


def test_more_ids_than_rows_redraw_only_what_is_still_visible() -> None:
    renderer, screen, _ = terminal(rows=10)
    for number in range(30):
        renderer(Progress(id="id%02d" % number, action="Waiting"))
    for number in range(30):
        renderer(Progress(id="id%02d" % number, action="Pull complete"))
    assert screen.shown() == ["id%02d Pull complete" % number for number in range(21, 30)]
    assert screen.scrolled == ["id%02d Waiting" % number for number in range(21)]


@pytest.mark.parametrize("columns", [1, 2, 20, 40, 111])
def test_no_line_wraps_however_narrow_the_terminal(columns: int) -> None:
    renderer, screen, clock = terminal(columns=columns, rows=5)
    for current in (1, 2):
        renderer(Progress(id="漢" * 50, action="Downloading", current=current, total=2))
        renderer(Progress(id="b" * 200, action="Downloading", current=current, total=2))
        clock.now += 1
    assert len(screen.shown()) == 3
    assert all(len(line) <= columns - 1 for line in screen.shown())


def test_a_resized_terminal_is_drawn_anew_below() -> None:
    renderer, screen, _ = terminal(columns=120)
    for id in "ab":
        renderer(Progress(id=id, action="Downloading", current=1, total=2))
    screen.columns = 60
    for id in "ab":
        renderer(Progress(id=id, action="Downloading", current=2, total=2, last_update=True))
    renderer(Progress(id="a", action="Pull complete"))
    assert screen.shown()[3:] == [
        "a Pull complete", "b Downloading " + "=" * 38 + "> 2/2B", "in all " + "=" * 45 + "> 4/4B"]


@pytest.mark.parametrize("size, shown", [((40, 10), 39), ((0, 0), 79)])
def test_the_size_is_that_of_the_stream_s_own_terminal(size: Tuple[int, int], shown: int) -> None:
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        with open(slave, "w", closefd=False) as stream:
            renderer = choose("auto", stream, {"TERM": "xterm"})
            assert type(renderer) is Terminal
            renderer(Progress(id="x" * 200, action="Waiting"))
        written = os.read(master, 1000)
    finally:
        os.close(master)
        os.close(slave)
    assert written == b"\r" + b"x" * shown + b"\x1b[K\r\n"


def test_a_stream_that_is_no_terminal_counts_as_80_columns() -> None:
    stream = io.StringIO()
    choose("tty", stream, {})(Progress(id="x" * 200, action="Waiting"))
    assert stream.getvalue() == "\r" + "x" * 79 + "\x1b[K\n"


# --- Threads and broken streams ----------------------------------------------


@pytest.mark.parametrize("mode", ["tty", "plain", "json"])
def test_threads_may_draw_at_once(mode: str) -> None:
    screen = Screen(rows=60)
    renderer: Renderer = Terminal(screen, size=screen.size)
    if mode != "tty":
        renderer = choose(mode, screen, {})
    states = ["Waiting", "Downloading", "Verifying Checksum", "Pull complete"]

    def work(id: str) -> None:
        for state in states:
            renderer(Progress(id=id, action=state))

    ids = ["id%02d" % number for number in range(12)]
    threads = [threading.Thread(target=work, args=(id,)) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = screen.shown()
    if mode == "tty":
        assert sorted(shown) == ["%s Pull complete" % id for id in ids]
    elif mode == "plain":
        assert sorted(shown) == sorted("%s: %s" % (id, state) for id in ids for state in states)
    else:
        assert len([json.loads(line) for line in shown]) == 48


@pytest.mark.parametrize("mode", ["tty", "plain", "json"])
def test_a_broken_pipe_silences_the_renderer(mode: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")
    renderer = choose(mode, stream, {})
    for number in range(100):
        renderer(Progress(id=str(number), action="Waiting"))
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize("mode", ["tty", "plain", "json"])
def test_a_closed_stream_silences_the_renderer(mode: str) -> None:
    stream = io.StringIO()
    renderer = choose(mode, stream, {})
    stream.close()
    renderer(Progress(message="x"))
    renderer(Progress(id="a", action="x"))


# --- Which one ---------------------------------------------------------------


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "mode, stream, environ, kind",
    [
        ("auto", Tty(), {"TERM": "xterm"}, Terminal),
        ("auto", Tty(), {"CI": "", "NO_COLOR": ""}, Terminal),
        ("auto", Tty(), {"TERM": "dumb"}, Plain),
        ("auto", Tty(), {"NO_COLOR": "1"}, Plain),
        ("auto", Tty(), {"CI": "true"}, Plain),
        ("auto", io.StringIO(), {"TERM": "xterm"}, Plain),
        ("tty", io.StringIO(), {"CI": "true"}, Terminal),
        ("plain", Tty(), {}, Plain),
        ("json", Tty(), {}, JSON),
        ("none", Tty(), {}, Renderer),
        ("auto", None, {}, Renderer),
        ("json", None, {}, Renderer),
    ],
)
def test_the_mode_and_the_environment_choose(
    mode: str, stream: Optional[io.StringIO], environ: Mapping[str, str], kind: type
) -> None:
    assert type(choose(mode, stream, environ)) is kind


def test_none_draws_nothing() -> None:
    stream = io.StringIO()
    for renderer in (choose("none", stream, {}), Renderer(stream)):
        renderer(Progress(message="x"))
        renderer(Progress(id="a", action="x"))
    assert stream.getvalue() == ""


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidReference, match="invalid progress mode 'fancy"):
        choose("fancy\x1b", sys.stderr, {})
