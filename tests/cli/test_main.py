# SPDX-License-Identifier: Apache-2.0
"""The command line: its grammar, exit codes, streams and signals."""
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest

import minipull
from minipull.cli import images as commands, main as cli
from tests.kit import images
from tests.kit.commands import Call, digest
from tests.kit.images import Layout, Spec
from tests.kit.processes import clean_env, end, free_port, minipull_env, wait_until
from tests.kit.servers import ScriptedServer, content, drip, error, head, reply, send


# -- the parser ------------------------------------------------------------------


@pytest.mark.parametrize("args", [
    [], ["frob"], ["pull"], ["pull", "a", "--frob"], ["pull", "a", "--cred", "x"], ["tag", "a"],
    ["pull", "a", "--format", "xml"], ["--root"], ["pull", "\x1b[31m", "\n", "--x\n\x1b"]])
def test_a_wrong_use_is_one_line_and_exit_2(call: Call, args: List[str]) -> None:
    done = call(*args)
    assert done.code == 2 and done.out == ""
    assert "\x1b" not in done.line


def test_every_command_explains_itself_with_an_example(call: Call) -> None:
    commands = "pull push images inspect tag rm gc check tags manifest digest".split()
    for name in commands:
        done = call(name, "--help")
        assert done.code == 0 and "example: minipull " + name in done.out and done.err == ""
    assert "example: minipull pull" in call("--help").out


@pytest.mark.parametrize("args", [["--version"], ["-v", "--version"]])
def test_version_is_printed(call: Call, args: List[str]) -> None:
    assert call(*args).out.splitlines()[0] == "minipull " + minipull.__version__


# -- exit codes ------------------------------------------------------------------


def wrong_blob(server: ScriptedServer, layout: Layout) -> None:
    server.on("GET", "/blobs/", reply(200, b"x"))


@pytest.mark.parametrize("code, script, words", [
    (3, error(404, "MANIFEST_UNKNOWN"), "manifest unknown"),
    (3, error(404, "NAME_UNKNOWN"), "name unknown"),
    (4, error(401, "UNAUTHORIZED"), "unauthorized"),
    (4, error(403, "DENIED"), "denied"),
    (6, reply(200, '{"schemaVersion":2,"manifests":[],"layers":[]}', {"Content-Type": images.OCI_INDEX}), ""),
    (8, error(429, "TOOMANYREQUESTS", {"Retry-After": "3600"}), "try again in 3600 seconds"),
    (9, reply(302, headers={"Location": "http://user@[::1/"}), "refused"),
    (6, reply(200, json.dumps({"schemaVersion": 1, "fsLayers": []}), {"Content-Type": "application/json"}),
     "0 signatures, want 1 to 16"),
])
def test_the_exit_code_says_whose_fault_it_is(
        call: Call, ref: str, server: ScriptedServer, code: int, script: Any, words: str) -> None:
    server.on("GET", "/manifests/latest", script)
    done = call("pull", "--progress", "none", ref + ":latest")
    assert done.code == code
    assert done.line.startswith("minipull: pull %s:latest: " % ref) and words in done.line
    assert call("images", "--format", "json").json == []


@pytest.mark.parametrize("name", ["a//b", "-x", "UPPER/../x", "x" * 300, "a:" + "t" * 129, "a@sha256:1",
                                  "host:99999/x", "a\n", "\x1b[31m", "", "user@host/x"])
def test_a_malformed_name_is_exit_2_before_any_request(call: Call, root: Path, name: str) -> None:
    for command in ("pull", "push", "rm", "tags", "manifest", "digest"):
        done = call(command, "--", name)
        assert done.code == 2
        assert "\x1b" not in done.line
    assert not root.exists()


@pytest.mark.usefixtures("no_repeats")
def test_a_dead_host_is_exit_5(call: Call) -> None:
    dead = "127.0.0.1:%d" % free_port()
    done = call("pull", "--progress", "none", "--plain-http", dead + "/r:1")
    assert done.code == 5
    assert done.line == "minipull: pull %s/r:1: %s: connection refused\n" % (dead, dead)


def test_a_wrong_blob_is_exit_6(call: Call, ref: str, server: ScriptedServer, layout: Layout) -> None:
    wrong_blob(server, layout)
    done = call("pull", "--progress", "none", ref + ":latest")
    assert done.code == 6 and "size" in done.line


def test_the_text_of_a_registrys_error_cannot_steer_the_terminal(call: Call, ref: str, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/latest", reply(403, "\x1b]0;owned\x07\r\nline\u202e"))
    done = call("pull", ref + ":latest")
    assert done.code == 4
    assert not set(done.line[:-1]) & set("\x1b\x07\r\u202e")


def test_a_bug_is_one_line_that_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: object, flags: object) -> int:
        raise ValueError("two\nlines")

    monkeypatch.setattr(commands, "do_images", broken)
    done = call("images")
    assert (done.code, done.line) == (
        1, "minipull: internal error: ValueError: two; lines (run with -v for the traceback)\n")
    done = call("-v", "images")
    assert done.code == 1 and "Traceback" in done.err and "in broken" in done.err
    assert done.err.endswith("\nminipull: internal error: ValueError: two; lines\n")


def test_a_bad_setting_fails_before_any_request(call: Call, ref: str, server: ScriptedServer) -> None:
    for args in (["--progress", "fancy"], ["--jobs", "0"], ["--attempts", "x"], ["--timeout", "-1"],
                 ["--tls-verify", "maybe"], ["--header", "x"], ["--authfile", "/nonexistent"]):
        assert call("pull", *args, ref + ":latest").code == 2
    assert "does not exist" in call("--config", "/nonexistent", "images").line
    assert server.connections == 0


# -- streams ---------------------------------------------------------------------


def shell(home: Path, root: Path, command: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of sh in which $M is minipull."""
    env = minipull_env(home, {"MINIPULL_ROOT": str(root)})
    line = command.replace("$M", "%s -m minipull" % sys.executable)
    return subprocess.run(["sh", "-c", line], env=env, cwd=str(home), timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_broken_pipe_is_exit_141_without_a_message(home: Path, root: Path, stored: str) -> None:
    done = shell(home, root, "{ $M images; echo $? >&2; } | true")
    assert done.stderr in (b"141\n", b"0\n")
    read, write = os.pipe()
    os.close(read)
    env = minipull_env(home, {"MINIPULL_ROOT": str(root)})
    for args in (["images"], ["inspect", stored], ["manifest", stored], ["--help"], ["--version"]):
        gone = subprocess.run([sys.executable, "-m", "minipull", *args], env=env, cwd=str(home),
                              stdout=write, stderr=subprocess.PIPE, timeout=60)
        assert (gone.returncode, gone.stderr) == (141, b""), args
    os.close(write)


def test_results_that_cannot_be_written_are_exit_7(home: Path, root: Path, stored: str) -> None:
    done = shell(home, root, "$M images >/dev/full")
    assert (done.returncode, done.stderr) == (7, b"minipull: write to stdout: No space left on device\n")
    assert shell(home, root, "$M --version >/dev/full").returncode == 7
    for words in ("--help", "pull --help", "--version"):
        done = shell(home, root, "$M %s >/dev/full" % words)
        assert (done.returncode, done.stderr) == (7, b"minipull: write to stdout: No space left on device\n"), words
        done = shell(home, root, "(sleep 0.2; $M %s; echo $? >&2) | true" % words)
        assert done.stderr in (b"141\n", b"0\n"), words
    for words in ("save %s", "export %s", "cat %s /etc/none"):
        done = shell(home, root, "$M %s >&-" % (words % stored))
        assert done.returncode and done.stderr.count(b"minipull: ") == 1, words
    assert b"write to stdout: it is closed" in shell(home, root, "$M save %s >&-" % stored).stderr


def test_a_pull_works_with_stdout_and_stderr_closed(home: Path, root: Path, ref: str) -> None:
    assert shell(home, root, "$M pull %s >&- 2>&-" % ref).returncode == 0
    done = shell(home, root, "$M inspect absent 2>&-")
    assert (done.returncode, done.stdout) == (3, b"")
    assert shell(home, root, "$M manifest %s >&-" % ref).returncode == 0


def test_characters_that_stdout_cannot_encode_are_escaped(
        call: Call, ref: str, server: ScriptedServer, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.image([], "odd", config={"created": "2024年1月2日"})
    server.serve(layout.root, "r")
    call("pull", ref + ":odd")
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["images"]) == 0
    stream.seek(0)
    assert "2024\\u5e741\\u67082\\u65e5" in stream.read()


def test_a_manifest_cannot_steer_the_terminal(home: Path, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/", reply(200, b'{"a":"\x1b[31m"}'))
    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "-m", "minipull", "manifest", server.host + "/r"],
                          env=minipull_env(home), cwd=str(home), stdout=slave, timeout=60)
    assert done.returncode == 0
    assert b"\x1b" not in os.read(master, 4096)
    os.close(master)
    os.close(slave)


def test_main_works_below_the_main_thread_and_leaves_the_handlers_alone(call: Call) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    codes: List[int] = []
    thread = threading.Thread(target=lambda: codes.append(call("images").code))
    thread.start()
    thread.join(20)
    assert codes == [0] and call("images").code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# -- signals ---------------------------------------------------------------------


@pytest.fixture
def slow(server: ScriptedServer, tmp_path: Path) -> Layout:
    """A layer of which 60 kB come at once, and the rest never ends."""
    layout = Layout(tmp_path / "slow")
    made = layout.image([Spec(200000)], "slow")
    server.serve(layout.root, "slow")
    layer = made.layers[0].descriptor["digest"]
    data = layout.read(layer)
    server.on("GET", "/blobs/" + layer, [
        send(head(200, {"Content-Length": str(len(data))})), drip(data[:60000], 30000, 0.1),
        drip(data[60000:], 1, 0.05)])
    return layout


@pytest.fixture
def pulling(home: Path, root: Path, server: ScriptedServer, slow: Layout) -> "Iterator[subprocess.Popen[bytes]]":
    """``minipull pull`` in the middle of a layer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "pull", server.host + "/slow:slow"], cwd=str(home),
        env=minipull_env(home, {"MINIPULL_ROOT": str(root)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    layer = json.loads(slow.read(digest(slow, "slow")))["layers"][0]["digest"]
    partial = root / "ingest" / layer.replace(":", "-")
    try:
        wait_until(lambda: partial.exists() and partial.stat().st_size >= 60000, "pull", process)
        yield process
    finally:
        end(process)
        process.communicate()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_pull_and_keeps_the_bytes_received(
        call: Call, root: Path, server: ScriptedServer, slow: Layout,
        pulling: "subprocess.Popen[bytes]", number: int, code: int) -> None:
    pulling.send_signal(number)
    out, err = pulling.communicate(timeout=10)
    assert pulling.returncode == code
    assert b"Traceback" not in err and b"minipull:" not in err and b"Status" not in out
    assert call("check").code == 0 and call("images", "--format", "json").json == []
    layer = json.loads(slow.read(digest(slow, "slow")))["layers"][0]["digest"]
    server.on("GET", "/blobs/" + layer, content(slow.read(layer)))
    assert call("pull", server.host + "/slow:slow").code == 0
    assert int(server.seen("GET", "/blobs/" + layer)[-1].headers["range"][6:-1]) >= 60000
    assert call("check").code == 0


@pytest.fixture
def stuck(home: Path, server: ScriptedServer) -> "Iterator[subprocess.Popen[bytes]]":
    """A command in a credential helper that does not answer, which nothing interrupts."""
    helper = home / "docker-credential-stuck"
    helper.write_text("#!/bin/sh\necho $$ >%s/pid\nexec sleep 60\n" % home)
    helper.chmod(0o755)
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text('{"credsStore": "stuck"}')
    server.on("GET", "/manifests/", error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'}))
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "manifest", server.host + "/r"], cwd=str(home),
        env=minipull_env(home, {"PATH": "%s:%s" % (home, clean_env(home)["PATH"])}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = home / "pid"
    try:
        wait_until(lambda: pid.exists() and pid.read_text() != "", "the helper", process)
        yield process
    finally:
        end(process)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        process.communicate()


def test_a_command_that_ignores_cancelling_is_left_after_two_seconds(stuck: "subprocess.Popen[bytes]") -> None:
    begin = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    assert stuck.wait(10) == 130
    assert 1.5 < time.monotonic() - begin < 5


def test_a_second_signal_ends_it_at_once(stuck: "subprocess.Popen[bytes]") -> None:
    begin = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    threading.Event().wait(0.3)
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait(10) == 143
    assert time.monotonic() - begin < 1.5


def test_a_signal_that_the_system_gives_to_another_thread_ends_it_too(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", """if True:
            import signal, sys, threading
            from minipull.cli.main import run

            class Stdout:
                def write(self, text):  # by the thread of the command
                    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                flush = isatty = lambda self: None

            sys.stdout, sys.argv[1:] = Stdout(), ["serve", "--listen", "127.0.0.1:0"]
            run()
        """], env=minipull_env(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.wait(20) == 143
    finally:
        end(process)
        process.communicate()


# -- a full disk -----------------------------------------------------------------


def test_a_full_disk_is_exit_7_and_one_line(
        home: Path, root: Path, server: ScriptedServer, tmp_path: Path, call: Call) -> None:
    layout = Layout(tmp_path / "big")
    made = layout.image([Spec(400000, text=0.0)], "big")
    server.serve(layout.root, "big")
    ref = server.host + "/big:big"
    done = shell(home, root, "ulimit -f 200; $M pull -q " + ref)
    assert done.returncode == 7
    assert done.stderr.startswith(b"minipull: pull %s: " % ref.encode()) and done.stderr.count(b"\n") == 1
    assert b"File too large" in done.stderr
    assert not (root / "blobs" / "sha256" / made.layers[0].descriptor["digest"][7:]).exists()
    assert call("images", "--format", "json").json == []
    assert call("pull", ref).code == 0
    assert server.seen("GET", made.layers[0].descriptor["digest"])[-1].headers["range"]
    assert call("check").code == 0
