# SPDX-License-Identifier: Apache-2.0
"""A setting that has no effect is told, and doctor tells what is in effect and why."""
import json
import os
from pathlib import Path
from typing import Any, List

import pytest

import minipull
from minipull.cli.effective import unknown_keys
from tests.kit.commands import Call

FILE = "/etc/x"


@pytest.mark.parametrize("document, texts", [
    ({"registry-mirror": []}, ["unknown key registry-mirror; did you mean registry-mirrors?"]),
    ({"insecure_registries": []}, ["unknown key insecure_registries; did you mean insecure-registries?"]),
    ({"log-diver": "x"}, ["unknown key log-diver; did you mean log-driver?"]),
    ({"zzz": 1, "a\x1b\n": 2}, ["unknown key zzz; it has no effect", "unknown key a\\x1b\\n; it has no effect"]),
    ({"hosts": {"r.com": {"mirror": [], "ca": ""}}}, ["unknown key mirror of r.com; did you mean mirrors?"]),
    ({"hosts": {"r.com": {"data-root": ""}}}, ["unknown key data-root of r.com; it has no effect"]),
    ({"hosts": ["unix:///var/run/docker.sock"]}, []),  # the engine's own meaning
    ({"hosts": {"r.com": 5}}, []),  # another error
    ({"data-root": "/x", "log-driver": "json-file", "max-concurrent-downloads": 3, "features": {}, "bip": "",
      "registry-mirrors": [], "hosts": {}, "storage-driver": "overlay2", "live-restore": True}, [])])
def test_an_unknown_key_is_told_with_the_nearest_one_and_the_engines_are_not(document: Any, texts: Any) -> None:
    assert list(unknown_keys(document, FILE)) == ["%s: %s" % (FILE, text) for text in texts]


def test_a_warning_of_a_key_is_given_once_and_the_command_goes_on(call: Call, ref: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text(json.dumps({"registry-mirror": ["https://m"], "debug": True}))
    for quiet in ((), ("-q",)):
        done = call("--config", settings, "pull", ref, *quiet)
        text = "warning: %s: unknown key registry-mirror; did you mean registry-mirrors?\n" % settings
        assert done.code == 0 and done.err.count("registry-mirror;") == 1 and text in done.err
    assert call("--config", settings, "images").err == text


def test_a_program_that_embeds_the_package_is_warned_too(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    events: List[minipull.Progress] = []
    settings.write_text(json.dumps({"verify-keys": ["k"], "log-driver": "x"}))
    minipull.environment({"HOME": str(tmp_path)}, config=str(settings), progress=events.append)
    assert [event.message for event in events] == [
        "warning: %s: unknown key verify-keys; did you mean verify-key?" % settings]


def test_doctor_shows_what_is_in_effect_and_where_it_comes_from(call: Call, home: Path) -> None:
    settings = home / ".config" / "minipull" / "config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({
        "registry-mirrors": ["https://m.test"], "insecure-registries": ["10.0.0.0/8", "r.test:5"],
        "hosts": {"r.test": {"mirrors": ["http://n.test"], "fallback": False}}, "limit-rate": "5M",
        "max-concurrent-downloads": 9, "max-download-attempts": 3}))
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text("{}")
    folder = home / ".config" / "containers" / "certs.d" / "r.test"
    folder.mkdir(parents=True)
    env = {"MINIPULL_JOBS": "4", "MINIPULL_CREDS": "ann:s3cret", "MINIPULL_PLAINHTTP": "1",
           "MINIPULL_SRC_CREDS": "bob:s3cret", "MINIPULL_DEST_CREDS": "s3cret", "MINIPULL_SRC_JOBS": "4",
           "DOCKER_DEFAULT_PLATFORM": "linux/arm64", "MINIPULL_HEADER": "X-Key: s3cret"}
    done = call("doctor", "--tls-verify", "false", "--registry-token", "s3cret", "--format", "json", env=env)
    assert done.code == 0 and "s3cret" not in done.out
    host, rows = done.json["host"], {row["name"]: (row["value"], row["source"]) for row in done.json["settings"]}
    assert host["settings"] == str(settings)
    assert host["mirrors"] == "r.test: http://n.test/, and no other; docker.io: https://m.test/"
    assert host["insecure"] == "loopback, 10.0.0.0/8, r.test:5"
    assert (host["certs.d"], host["credentials"]) == (str(folder), str(home / ".docker" / "config.json"))
    assert rows.pop("root")[1] == "MINIPULL_ROOT"
    assert rows == {
        "jobs": ("4", "MINIPULL_JOBS"), "creds": ("ann...", "MINIPULL_CREDS"),
        "src-creds": ("bob...", "MINIPULL_SRC_CREDS"), "dest-creds": ("...", "MINIPULL_DEST_CREDS"),
        "src-jobs": ("", "MINIPULL_SRC_JOBS, which is not known"), "header": ("...", "MINIPULL_HEADER"),
        "plainhttp": ("", "MINIPULL_PLAINHTTP, which is not known"), "tls-verify": ("false", "--tls-verify"),
        "registry-token": ("...", "--registry-token"), "platform": ("linux/arm64", "DOCKER_DEFAULT_PLATFORM"),
        "max-download-attempts": ("3", str(settings)), "limit-rate": ('"5M"', str(settings)),
        "registry-mirrors": ('["https://m.test"]', str(settings)), "insecure-registries": (
            '["10.0.0.0/8", "r.test:5"]', str(settings)), "hosts": (
            '{"r.test": {"mirrors": ["http://n.test"], "fallback": false}}', str(settings))}
    assert "\nset          jobs = 4, from MINIPULL_JOBS\n" in call("doctor", env={"MINIPULL_JOBS": "4"}).out


@pytest.mark.parametrize("value, shown", [
    (5, ""), ("r.test", ""), ({"a": 1}, ""), ([None, "ann:s3cret@r.test", "r.test:5"], ", r.test:5")], ids=repr)
def test_doctor_lists_the_insecure_hosts_that_count(call: Call, tmp_path: Path, value: Any, shown: str) -> None:
    path = tmp_path / "settings"
    path.write_text(json.dumps({"insecure-registries": value, "https://ann:s3cret@r.test": {},
                                "hosts": {"ann:s3cret@r.test": {"mirors": []}}}))
    done = call("--config", path, "doctor", "--format", "json")
    assert done.json["host"]["insecure"] == "loopback" + shown
    assert "s3cret" not in done.out + done.err


def test_a_directory_that_can_not_be_listed_is_a_line_of_doctor(
        call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / ".config" / "containers" / "certs.d"
    folder.mkdir(parents=True)
    listed = os.listdir

    def listing(path: str = ".") -> Any:
        if path == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", listing)
    done = call("doctor", "--format", "json")
    assert done.code == 0 and "Permission denied" in done.json["host"]["certs.d"]
