# SPDX-License-Identifier: Apache-2.0
"""--limit-rate, --only and --offline reach every command, and -v tells how the network was used."""
import json
import re
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.kit import images
from tests.kit.certificates import Certificates
from tests.kit.commands import Call, digest
from tests.kit.images import Layout
from tests.kit.processes import Minipull
from tests.kit.proxies import Proxy
from tests.kit.servers import ScriptedServer, Uploads, error, redirect, reply, send

pytestmark = pytest.mark.usefixtures("no_waiting", "no_repeats")

RULE = "is not among --only (allowed-hosts)"
NETWORK = ("pull", "push", "copy", "tags", "manifest", "digest", "unpack", "export", "cat", "login")


def config(home: Path, **settings: Any) -> str:
    document = {name.replace("_", "-"): value for name, value in settings.items()}
    (home / "settings.json").write_text(json.dumps(document))
    return str(home / "settings.json")


def commands(ref: str, home: Path) -> List[List[str]]:
    """Every command that asks the registry of ``ref``."""
    return [["pull", ref], ["push", ref], ["copy", "docker://" + ref, "oci:out"], ["tags", ref],
            ["manifest", ref], ["digest", ref], ["unpack", ref + ":other", "rootfs"],
            ["export", ref + ":other"], ["cat", ref + ":other", "/etc/x"]]


@pytest.mark.parametrize("command", NETWORK)
def test_every_command_of_the_network_has_the_flags(call: Call, command: str) -> None:
    done = call(command, "--help")
    assert all(flag in done.out for flag in ("--limit-rate SIZE", "--only HOST[:PORT],...", "--offline"))


# -- values --------------------------------------------------------------------------


@pytest.mark.parametrize("flag, value", [
    *[("--limit-rate", value) for value in (
        "0", "", "0k", "-1", "1.5M", "10M/s", "fast", "10T", " 1k", "9" * 13)],
    *[("--only", value) for value in (
        "", ",", "a.lan,", "https://a.lan", "a.lan/x", "u:p@a.lan", "*.lan", "10.0.0.0/8", "a b", "::1",
        "a.lan:x", "a.lan:99999", "-a.lan")]])
def test_a_value_that_makes_no_sense_is_refused_in_a_line(
        call: Call, ref: str, server: ScriptedServer, flag: str, value: str) -> None:
    done = call("digest", flag + "=" + value, ref)
    assert done.code == 2 and server.connections == 0 and "u:p" not in done.line
    words = " must be a size|--only.* (invalid host|'.*' should not)|invalid index name"
    assert re.search(flag + words, done.line)
    if value:
        env = {"MINIPULL_" + flag[2:].replace("-", "_").upper(): value}
        assert call("digest", ref, env=env).code == 2 and server.connections == 0


def test_the_flag_beats_the_variable_which_beats_the_file(call: Call, ref: str, home: Path) -> None:
    host = ref.partition("/")[0]
    file = config(home, allowed_hosts=["a.lan"], limit_rate=0)
    for env, flags, code in (
            ({}, [], 2), ({"MINIPULL_LIMIT_RATE": "1G"}, [], 9), ({}, ["--limit-rate", "1G"], 9),
            ({"MINIPULL_LIMIT_RATE": "1G", "MINIPULL_ONLY": host}, [], 0),
            ({"MINIPULL_LIMIT_RATE": "0", "MINIPULL_ONLY": host}, ["--limit-rate", "1G"], 0),
            ({"MINIPULL_LIMIT_RATE": "1G", "MINIPULL_ONLY": host}, ["--only", "a.lan"], 9),
            ({"MINIPULL_LIMIT_RATE": "1G"}, ["--only", "a.lan," + host], 0),
            ({"MINIPULL_LIMIT_RATE": "1G", "MINIPULL_ONLY": host, "MINIPULL_OFFLINE": "1"}, [], 9)):
        assert call("--config", file, "digest", *flags, ref, env=env).code == code, (env, flags)


@pytest.mark.parametrize("hosts, code", [
    ([], 9), ("127.0.0.1", 9), (["127.0.0.1"], 0), (["b@d", "127.0.0.1"], 0), (["b@d"], 9), ([1], 9), ({}, 9)])
def test_hosts_in_the_file_that_can_not_be_read_allow_nothing(
        call: Call, ref: str, home: Path, server: ScriptedServer, hosts: Any, code: int) -> None:
    done = call("--config", config(home, allowed_hosts=hosts), "digest", ref)
    assert done.code == code and (server.connections > 0) is (code == 0)
    assert (": allowed-hosts: " in done.err) is (hosts not in ([], {}, ["127.0.0.1"]))


# -- egress ----------------------------------------------------------------------


def test_no_command_asks_a_host_that_is_not_allowed(
        call: Call, stored: str, home: Path, server: ScriptedServer) -> None:
    before = server.connections
    for flags, text in ((["--only", "127.0.0.2"], RULE), (["--offline"], "is not asked with --offline")):
        for command in commands(stored, home):
            done = call(command[0], *flags, *command[1:])
            if command[0] == "pull" and flags == ["--offline"]:
                assert done.code == 0 and "Image is up to date" in done.out
            else:
                assert done.code == 9 and "%s %s" % (server.host, text) in done.err, command
    assert server.connections == before


def test_what_needs_no_network_works_offline(call: Call, stored: str, home: Path, layout: Layout) -> None:
    for command in (["unpack", stored, "rootfs"], ["export", stored], ["copy", "store:" + stored, "oci:out"],
                    ["copy", "oci:out", "oci:again"], ["pull", "%s@%s" % (stored, digest(layout))]):
        assert call(command[0], "--offline", *command[1:]).code == 0, command


def test_login_asks_no_other_host(run_minipull: Minipull, private: ScriptedServer) -> None:
    for flags, code in ((["--only", "127.0.0.2"], 9), (["--offline"], 9), (["--only", private.host], 0)):
        done = run_minipull("-v", "login", *flags, "-u", "ann", "--password-stdin", private.host,
                            stdin=b"s3cret")
        assert done.code == code and (private.connections > 0) is (code == 0)
        assert ("connected to %s at 127.0.0.1, without TLS" % private.host in done.err) is (code == 0)


def test_a_copy_may_ask_the_same_hosts_at_both_ends(
        call: Call, ref: str, server: ScriptedServer, foreign: ScriptedServer) -> None:
    taken = Uploads(foreign)
    copy = ["copy", "--dest-plain-http", "docker://" + ref, "docker://%s/r" % foreign.host]
    assert (call(*copy, "--only", server.host).code, foreign.connections) == (9, 0)
    assert call(*copy, "--only", "%s, %s" % (server.host, foreign.host)).code == 0 and taken.manifests


# -- the rate ------------------------------------------------------------------------


def test_a_copy_shares_one_limit_between_its_ends(
        call: Call, server: ScriptedServer, foreign: ScriptedServer, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "large")
    image = layout.image(images.specs(3, 40000), "latest")
    server.serve(layout.root, "large")
    taken = Uploads(foreign)
    size = sum(layer.descriptor["size"] for layer in image.layers)
    begin = time.monotonic()
    done = call("copy", "--limit-rate", str(4 * size), "--dest-plain-http", "docker://%s/large" % server.host,
                "docker://%s/r" % foreign.host)
    assert done.code == 0 and taken.manifests
    assert 0.4 < time.monotonic() - begin < 2  # in and out: half a second


# -- -v ------------------------------------------------------------------------------


def test_verbose_tells_each_connection_once_and_the_bytes_at_the_end(
        call: Call, ref: str, server: ScriptedServer, foreign: ScriptedServer, layout: Layout) -> None:
    foreign.serve(layout.root, "r")
    server.on("GET", "/blobs/", lambda conn: redirect(foreign.url + "/secret" + conn.request.target)(conn))
    for flags in ([], ["-q"], ["--progress", "json"]):
        done = call("-v", "pull", *flags, ref, ref + ":other")
        assert done.code == 0 and "secret" not in done.err, done.err
        lines = [json.loads(line)["status"] if "json" in flags else re.sub("^minipull: ", "", line)
                 for line in done.err.splitlines()]
        told = [line for line in lines if line.startswith("connected to ")]
        hosts = [(server, "127.0.0.1"), (foreign, "127.0.0.2")][:1 if flags else 2]  # later nothing is moved
        assert sorted(told) == ["connected to %s at %s, without TLS" % (asked.host, address)
                                for asked, address in hosts]
        last = [re.fullmatch(r"(\S+): ([1-9]\d+) bytes in, ([1-9]\d+) bytes out", line)
                for line in lines[-len(hosts):]]
        assert [match and match.group(1) for match in last] == sorted(asked.host for asked, _ in hosts)
        assert flags or sum(int(match.group(2)) for match in last if match) > 9000
    silent = call("pull", ref).err + call("-v", "images").err
    assert "connected" not in silent and "bytes in" not in silent


def test_what_a_peer_sends_does_not_steer_the_terminal_in_the_traceback_of_verbose(
        call: Call, server: ScriptedServer) -> None:
    server.on("GET", "/v2/", send(b"HTTP/1.1 \x1b[31m\r\n\r\n"))
    done = call("-v", "pull", server.host + "/r")
    assert done.code == 5 and "MalformedHead: HTTP/1.1 \\x1b[31m" in done.err and "\x1b" not in done.err


def test_verbose_tells_proxy_tls_and_issuer_and_no_password(
        call: Call, certificates: Certificates, tmp_path: Path) -> None:
    with ScriptedServer(tls=certificates.context()) as server, Proxy(
            {"registry.test:443": server.host}, login="me:hidden") as proxy:
        server.on("GET", "/tags/list", reply(200, {"tags": ["1"]}))
        done = call("-v", "tags", "--ca-file", certificates.ca, "registry.test/r",
                    env={"HTTPS_PROXY": "http://me:hidden@" + proxy.host})
    assert (done.code, done.out) == (0, "1\n") and "hidden" not in done.err
    connected, traffic = done.err.splitlines()
    assert re.fullmatch(r"connected to registry\.test at 127\.0\.0\.1 by proxy %s, TLSv1\.[23],"
                        " issued by 'test authority'" % proxy.host, connected)
    assert traffic.startswith("registry.test: ")


def test_a_failure_is_told_before_the_bytes(call: Call, ref: str, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    lines = call("-v", "digest", ref).err.splitlines()
    assert lines[0].startswith("connected to ") and lines[-1].startswith(server.host + ": ")
    assert any(line.startswith("minipull: digest of ") for line in lines)


# -- quotas --------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["9;w=21600", "98;w=21600", "x"])
def test_a_quota_is_in_json_in_verbose_and_in_one_warning(
        call: Call, ref: str, server: ScriptedServer, layout: Layout, left: str) -> None:
    headers = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": left}
    for name in ("latest", "other"):
        raw, kind = layout.read(digest(layout, name)), images.OCI_MANIFEST
        for target in (name, digest(layout, name)):
            server.on("GET", "/manifests/%s$" % target, reply(200, raw, dict(
                headers, **{"Content-Type": kind, "Docker-Content-Digest": digest(layout, name)})))
    number = int(left.partition(";")[0]) if left != "x" else None
    quota: Dict[str, Any] = {"remaining": number, "limit": 100, "window": 21600}
    warning = "warning: %s: 9 of 100 pulls left (per 6 hours)" % server.host
    for command in (["pull", ref, ref + ":other"], ["digest", ref], ["manifest", ref]):
        done = call("-v", command[0], "--format", "json", *command[1:])
        rows = done.json if command[0] == "pull" else [done.json]
        assert [row.get("quota") for row in rows] == [quota if number else None] * len(rows)
        assert done.err.splitlines().count(warning) == (number == 9)
        suffix = "; %s of 100 pulls left (per 6 hours)" % number if number else " bytes out"
        assert done.err.splitlines()[-1].endswith(suffix)
