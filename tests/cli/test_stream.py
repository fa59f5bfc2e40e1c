# SPDX-License-Identifier: Apache-2.0
"""``--progress json`` is the engine's stream whole: an object a line on stderr, failures too, and no prose."""
import argparse
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Dict, List

import pytest

from minipull.cancel import Cancel
from minipull.cli.context import Context
from minipull.errors import Cancelled
from minipull.progress import Progress
from tests.kit.commands import Call
from tests.kit.processes import minipull_env, run, wait_until
from tests.kit.servers import ScriptedServer, error


def stream(text: str) -> List[Dict[str, Any]]:
    events: List[Dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(event, dict) for event in events)
    return events


FAILURES = {
    "not found": (["pull", "REF:nope"], 3, "not found"),
    "reference": (["pull", "REF:UPPER CASE"], 2, "invalid"),
    "flag": (["pull", "--jobs", "none", "REF"], 2, "--jobs"),
    "settings": (["pull", "--config", "missing.json", "REF"], 2, "missing.json"),
    "push": (["push", "REF:nope"], 3, "pull it first"),
    "load": (["load", "-i", "missing.tar"], 7, "missing.tar"),
    "unpack": (["unpack", "REF:nope", "rootfs"], 3, "not found"),
    "save": (["save", "-o", "x.tar", "REF:nope"], 3, "nope"),
    "check": (["check", "REF:nope"], 3, "nope"),
    "gc": (["gc", "--keep", "soon"], 2, "--keep"),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("flags", [[], ["-v"], ["-q"]])
def test_a_failure_is_an_object_with_the_exit_code(call: Call, ref: str, case: str, flags: List[str]) -> None:
    words, code, text = FAILURES[case]
    done = call(*flags[:flags == ["-v"]], words[0], "--progress", "json", *flags[flags == ["-v"]:],
                *[word.replace("REF", ref) for word in words[1:]])
    last = [event for event in stream(done.err) if "error" in event]
    assert done.code == code and len(last) == 1
    assert last[0] == {"errorDetail": {"code": code, "message": last[0]["error"]}, "error": last[0]["error"]}
    assert text in last[0]["error"]


def test_each_image_that_fails_has_its_object_and_the_others_their_lines(call: Call, ref: str) -> None:
    events = stream(call("pull", "--progress", "json", ref + ":nope", ref, ref + ":odd").err)
    assert [event["errorDetail"]["code"] for event in events if "error" in event] == [3, 3]
    assert sum(event.get("status", "").startswith("Digest: ") for event in events) == 1


def test_an_internal_error_is_an_object(call: Call, ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("minipull.cli.registry.do_pull", broken)
    [event] = stream(call("pull", "--progress", "json", ref).err)
    text = "internal error: ZeroDivisionError: division; by zero (run with -v for the traceback)"
    assert event == {"errorDetail": {"code": 1, "message": text}, "error": text}


def test_warnings_and_details_are_events(call: Call, ref: str, root: Path) -> None:
    assert call("pull", "-q", ref).code == 0
    root.chmod(0o777)
    for flags in ([], ["-q"]):
        events = stream(call("-v", "pull", *flags, "--progress", "json", ref).err)
        texts = [event.get("status", "") for event in events]
        assert any(text.startswith("warning: other users may change the store") for text in texts)
        assert any("bytes in" in text for text in texts)


def test_quiet_leaves_of_a_stream_by_the_environment_what_is_no_progress(call: Call, ref: str) -> None:
    env = {"MINIPULL_PROGRESS": "json"}
    assert call("pull", "-q", ref, env=env).err == ""
    [event] = stream(call("pull", "-q", ref + ":nope", env=env).err)
    assert event["errorDetail"]["code"] == 3
    assert len(stream(call("pull", "-q", "--progress", "json", ref).err)) > 2, "a flag that asks for it is obeyed"


def test_an_interrupt_is_an_object_once(capsys: pytest.CaptureFixture[str]) -> None:
    cancel = Cancel()
    context = Context(argparse.Namespace(command="pull", format="text", verbose=False, progress="json"), cancel)
    context.renderer(Progress(id="a", action="Downloading", current=1000, total=4000, kept=True))
    cancel.cancel()
    assert [context.failed(Cancelled()) for _ in "abc"] == [130] * 3
    text = "interrupted; the same command goes on at 1 of 4kB"
    assert stream(capsys.readouterr().err)[1:] == [{"errorDetail": {"code": 130, "message": text}, "error": text}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stream_with_its_code(
        server: ScriptedServer, home: Path, root: Path, number: signal.Signals) -> None:
    server.on("GET", "/v2/r/manifests/", [error(503)] * 99)
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "--root", str(root), "pull", "--progress", "json", server.host + "/r"],
        env=minipull_env(home), cwd=str(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: bool(server.seen("GET")), "pull", process)
        process.send_signal(number)
        last = stream(process.communicate(timeout=30)[1].decode())[-1]
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert last == {"errorDetail": {"code": 128 + number, "message": "interrupted"}, "error": "interrupted"}


@pytest.mark.parametrize("mode,err", [("json", ["interrupted"]), ("plain", [])])
def test_an_interrupt_of_a_look_up_that_hangs_ends_the_stream_too(home: Path, root: Path, mode: str,
                                                                  err: List[str]) -> None:
    script = ("import os, signal, socket, sys, threading\n"
              "def hang(*args: object, **kwargs: object) -> None:\n"
              "    os.kill(os.getpid(), signal.SIGINT)\n"
              "    threading.Event().wait()\n"
              "socket.getaddrinfo = hang\n"
              "from minipull.cli import main\n"
              "main.GRACE = 0.1\n"
              "main.run()\n")
    words = ["--root", root, "pull", "--progress", mode, "registry.test/r:1"]
    done = run([sys.executable, "-c", script, *map(str, words)], minipull_env(home), 30, check=False)
    assert (done.code, [event["error"] for event in stream(done.err)]) == (130, err)


def test_the_log_of_a_server_is_part_of_the_stream(home: Path, root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "--root", str(root), "-v", "serve", "--listen", "127.0.0.1:0"],
        env=minipull_env(home, {"MINIPULL_PROGRESS": "json"}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().split()[-1]
        assert urllib.request.urlopen(url + "/v2/", timeout=10).status == 200
        process.send_signal(signal.SIGTERM)
        events = stream(process.communicate(timeout=30)[1].decode())
    finally:
        process.kill()
    assert "/v2/" in events[0]["status"] and "error" not in events[0]
