# SPDX-License-Identifier: Apache-2.0
"""doctor: the first command that a newcomer types."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from tests.kit import ROOT
from tests.kit.processes import (
    Finished, Minipull, clean_env, interpreters, missing, peer, run, wait_until)

PASSWORD = "hunter2"
HOST = ["Python", "OpenSSL", "SHA-256", "zlib", "zstd", "CAs", "proxies", "settings", "mirrors", "insecure", "certs.d",
        "credentials", "store"]


def typed(done: Finished) -> List[str]:
    """What each command of the self-test did."""
    return re.findall(r"^\$ .*? (serve|copy|push|pull|check)\b", done.out, re.M)


def host(done: Finished) -> "dict[str, str]":
    """What doctor says of the host, the lines after the self-test."""
    lines = done.out.partition("\nself-test: ")[2].splitlines()[2:]
    return {line[:13].strip(): line[13:] for line in lines}


def changed(folder: Path, module: str, old: str, new: str) -> Path:
    """A copy of the package in which one thing goes wrong."""
    shutil.copytree(ROOT / "minipull", folder / "minipull", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "minipull" / module
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    return folder


def test_doctor_serves_pushes_pulls_and_checks_and_leaves_no_file_behind(run_minipull: Minipull, home: Path) -> None:
    done = run_minipull("doctor")
    assert (done.code, done.err) == (0, "")
    assert typed(done) == ["serve", "copy", "push", "pull", "check"]
    pushed = re.findall("^1: digest: (sha256:.*) size: ", done.out, re.M)
    assert "Digest: %s\n" % pushed[-1] in done.out
    assert re.search("/fresh: ok\nok: 1 image, 3 blobs, .*\nself-test: ok\n", done.out)
    assert list(host(done)) == HOST
    assert [path.name for path in home.iterdir()] == []


def test_doctor_json_is_one_object_with_the_steps_and_the_host(run_minipull: Minipull) -> None:
    done = run_minipull("doctor", "--format", "json")
    shown = json.loads(done.out)
    assert (done.code, shown["ok"], shown["error"]) == (0, True, "")
    assert [set(step) for step in shown["steps"]] == [{"command", "output", "code"}] * 5
    assert {step["code"] for step in shown["steps"]} == {0}
    assert list(shown["host"]) == HOST


@pytest.mark.parametrize("python", [path for _, path in interpreters()],
                         ids=[version for version, _ in interpreters()])
def test_doctor_passes_under_every_interpreter_unprivileged_read_only_and_offline(
    python: str, tmp_path: Path
) -> None:
    """Of root only the right to read is left, for interpreters that lie in its home."""
    if os.geteuid() != 0:
        missing("a network of its own and another user need root")
    shutil.copytree(ROOT / "minipull", tmp_path / "minipull", ignore=shutil.ignore_patterns("__pycache__"))
    tmp_path.chmod(0o555)
    only = "-all,+dac_read_search"
    done = run(
        [peer("unshare"), "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", peer("setpriv"),
         "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=" + only,
         "--ambient-caps=" + only, "--bounding-set=" + only, python, "-m", "minipull", "doctor"],
        {"PATH": os.defpath, "HOME": "/nonexistent"}, cwd=tmp_path, check=False)
    assert (done.code, done.err) == (0, ""), done
    assert typed(done)[-2:] == ["pull", "check"]
    assert host(done)["store"].endswith("Permission denied; choose another --root")


def test_doctor_runs_from_the_pyz_without_site_packages(home: Path) -> None:
    run([sys.executable, ROOT / "scripts" / "pyz", home / "minipull.pyz"], clean_env(home))
    done = run([sys.executable, "-I", "-S", home / "minipull.pyz", "doctor"], clean_env(home), cwd=home)
    assert typed(done)[-1] == "check"


def test_the_users_settings_and_proxies_have_no_part_in_the_self_test(
    run_minipull: Minipull, home: Path
) -> None:
    settings = home / "settings.json"
    settings.write_text(json.dumps({"registry-mirrors": ["http://127.0.0.1:1"]}))
    done = run_minipull("doctor", env={
        "MINIPULL_CONFIG": str(settings), "MINIPULL_ATTEMPTS": "none", "MINIPULL_LISTEN": "127.0.0.1:1",
        "http_proxy": "http://user:%s@127.0.0.1:1" % PASSWORD, "NO_PROXY": ".example.com",
        "MINIPULL_ROOT": str(home / "mine")})
    assert done.code == 0, done
    assert host(done)["proxies"] == (
        "http by proxy 127.0.0.1:1; but for loopback and what NO_PROXY lists: .example.com")
    assert host(done)["store"].startswith("%s, " % (home / "mine"))
    assert host(done)["store"].endswith(" free, locks work")
    assert PASSWORD not in done.out
    assert not (home / "mine").exists()


def test_doctor_names_a_remedy_for_each_thing_that_the_host_lacks(run_minipull: Minipull, home: Path) -> None:
    done = run_minipull("doctor", env={
        "PATH": "/nonexistent", "SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent",
        "REGISTRY_AUTH_FILE": "/nonexistent", "https_proxy": "socks5://user:%s@127.0.0.1:1" % PASSWORD})
    assert done.code == 0, done
    if sys.version_info < (3, 14):
        assert host(done)["zstd"].startswith("none: install zstd or use Python 3.14")
    assert host(done)["CAs"] == "none: install ca-certificates, or give --ca-file"
    assert host(done)["credentials"] == "authfile '/nonexistent' does not exist"
    assert host(done)["proxies"] == "HTTPS_PROXY names a proxy that speaks socks5; only http:// will do"


def test_credential_files_are_named_and_not_shown(run_minipull: Minipull, home: Path) -> None:
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(PASSWORD)
    done = run_minipull("doctor", env={"DOCKER_AUTH_CONFIG": PASSWORD})
    assert host(done)["credentials"] == "DOCKER_AUTH_CONFIG, %s/.docker/config.json" % home
    assert PASSWORD not in done.out


@pytest.mark.parametrize("module, old, new, last, code", [
    ("cli/serve.py", "    serve(source, host", '    raise InvalidReference("no")\n    serve(source, host',
     "serve", 2),
    ("server/blobs.py", "upload.commit(digest)", "raise Refusal(403, 'DENIED', 'no')", "push", 4),
    ("cli/registry.py", '"Digest: ', '"', "pull", 6),
    ("cli/check.py", "    archives = [", '    raise StorageError("no")\n    archives = [', "check", 7),
    ("cli/check.py", "    archives = [", "    os.kill(os.getpid(), 9)\n    archives = [", "check", 1),
], ids=["serve", "push", "digest", "check", "killed"])
def test_doctor_ends_at_the_first_command_that_fails_with_its_exit_code(
    home: Path, module: str, old: str, new: str, last: str, code: int
) -> None:
    broken = changed(home / "broken", module, old, new)
    done = run([sys.executable, "-m", "minipull", "doctor"], clean_env(home), cwd=broken, check=False)
    assert (done.code, typed(done)[-1]) == (code, last), done
    assert "\nself-test: ok" not in done.out
    assert list(host(done)) == HOST


def test_a_host_without_room_for_temporary_files_is_one_line(home: Path, run_minipull: Minipull) -> None:
    copy = changed(home / "copy", "cli/doctor.py", 'prefix="minipull-"', 'dir="/nonexistent"')
    done = run([sys.executable, "-m", "minipull", "doctor"], clean_env(home), cwd=copy, check=False)
    assert (done.code, typed(done), done.err) == (1, [], "")
    assert "No such file or directory" in done.out


def test_a_stopped_doctor_takes_its_registry_along(home: Path) -> None:
    copy = changed(home / "copy", "server/blobs.py", "upload.commit(digest)", "__import__('time').sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=clean_env(home), cwd=copy)
    assert process.stdout is not None
    with process:
        assert b" serve " in process.stdout.readline()
        folder = next(home.glob("minipull-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: not run(["pgrep", "-f", str(folder)], check=False).out, "the registry's end")
