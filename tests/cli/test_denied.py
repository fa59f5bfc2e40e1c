# SPDX-License-Identifier: Apache-2.0
"""An answer of denied or unauthorized ends with what to do, and says whose credentials were used."""
import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kit import images
from tests.kit.commands import Call
from tests.kit.images import Layout
from tests.kit.proxies import FaultProxy
from tests.kit.servers import ScriptedServer, Uploads, challenge, error, reply

NONE = "no credentials were found"
VERBS = [("pull", "REF"), ("tags", "REPO"), ("digest", "REF"), ("manifest", "REF"), ("push", "REF"),
         ("copy", "docker://REF", "oci:x"), ("copy", "oci:layout:latest", "docker://REF"), ("inspect", "docker://REF"),
         ("check", "docker://REF"), ("referrers", "REF"), ("delete", "--yes", "docker://REF")]


def hint(host: str, described: str) -> str:
    other = "" if described.startswith("no ") else "another "
    return "; it may not exist, or require %sminipull login %s (%s)\n" % (other, host, described)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb)[:30])
def test_every_command_that_is_denied_ends_with_the_hint_to_log_in(
        call: Call, tokens: FaultProxy, home: Path, verb: Any) -> None:
    Layout(home / "layout").image(images.specs(1, 100), "latest")
    repository = tokens.host + "/r"
    if verb[0] == "push":
        call("copy", "oci:layout:latest", "store:%s:latest" % repository)
    words = [word.replace("REPO", repository).replace("REF", repository + ":latest") for word in verb]
    for flags, described in [((), NONE), (("--creds", "ann:wr0ng"), "user ann, from --creds")]:
        done = call(*words, *flags)
        assert done.code == 4 and done.err.endswith(hint(tokens.host, described)), done.err
        assert "wr0ng" not in done.err


def entry(user: str) -> Any:
    return {"auth": base64.b64encode((user + ":wr0ng").encode()).decode()}


def test_the_file_the_helper_or_the_variable_is_named_whose_credentials_were_used(
        call: Call, tokens: FaultProxy, home: Path) -> None:
    ref, file, helper = tokens.host + "/r:latest", home / ".docker" / "config.json", home / "docker-credential-x"
    file.parent.mkdir()
    helper.write_text('#!/bin/sh\necho \'{"Username": "eve", "Secret": "wr0ng"}\'\n')
    helper.chmod(0o755)
    stored = json.dumps({"auths": {tokens.host: entry("ann")}})
    other = home / "auth.json"
    other.write_text(stored)
    for content, env, described in [
            (stored, {}, "user ann, from %s" % file),
            (json.dumps({"auths": {tokens.host + "/r": entry("bob")}}), {}, "user bob, from %s" % file),
            (json.dumps({"credsStore": "x"}), {"PATH": str(home)}, "user eve, from docker-credential-x of %s" % file),
            (stored, {"MINIPULL_CREDS": "joe:wr0ng"}, "user joe, from MINIPULL_CREDS"),
            (stored, {"MINIPULL_CREDS": "wr0ng"}, "a token, from MINIPULL_CREDS"),
            (stored, {"MINIPULL_REGISTRY_TOKEN": "wr0ng"}, "a token, from MINIPULL_REGISTRY_TOKEN"),
            (stored, {"DOCKER_AUTH_CONFIG": json.dumps({"auths": {tokens.host: entry("kim")}})},
             "user kim, from DOCKER_AUTH_CONFIG"),
            (stored, {"REGISTRY_AUTH_FILE": str(other)}, "user ann, from %s" % other),
            ("{}", {}, NONE)]:
        file.write_text(content)
        file.chmod(0o600)
        other.chmod(0o600)
        done = call("digest", ref, env=env)
        assert done.code == 4 and done.err.endswith(hint(tokens.host, described)), done.err
        assert "wr0ng" not in done.err
        if described != NONE:  # doctor REF says the same
            assert re.search("^credentials *%s" % re.escape(described), call("doctor", ref, env=env).out, re.M)


def test_the_hint_is_true_of_a_registry_that_asks_for_nothing(call: Call, server: ScriptedServer) -> None:
    server.on("GET", "", error(403, "DENIED"))
    done = call("digest", server.host + "/r:1", "--creds", "ann:s3cret")
    assert done.line.endswith(hint(server.host, "no credentials were asked for"))


def test_the_login_that_is_refused_and_the_proxy_are_not_told_to_log_in(
        call: Call, server: ScriptedServer, run_minipull: Any) -> None:
    server.on("GET", "", challenge('Basic realm="r"'))
    done = run_minipull("login", "-u", "ann", "--password-stdin", server.host, stdin=b"wr0ng\n")
    assert done.code == 4 and "minipull login" not in done.err
    done = call("digest", server.host + "/r:1")
    assert done.line.count("minipull login") == 1
    server.on("GET", "", reply(407))
    done = call("digest", "registry.test/r:1", "--plain-http", env={"http_proxy": server.url})
    assert done.code == 4 and "minipull login" not in done.line


def test_the_login_of_the_source_is_not_told_as_that_of_the_target(
        call: Call, server: ScriptedServer, layout: Layout, ref: str, foreign: ScriptedServer) -> None:
    server.on("GET", "/blobs/", challenge('Bearer realm="http://%s/token"' % server.host))
    server.on("GET", "/token", error(401, "UNAUTHORIZED"))
    Uploads(foreign, "x")
    done = call("copy", "docker://" + ref, "docker://%s/x" % foreign.host, "--dest-creds", "bob:s3cret")
    assert done.code == 4 and "%s/r: token server %s: unauthorized" % (server.host, server.host) in done.err
    assert "minipull login" not in done.err


def test_a_refused_token_server_says_what_may_be_set(call: Call, server: ScriptedServer) -> None:
    server.on("GET", "/v2/", challenge('Bearer realm="http://127.0.0.2:5/token"'))
    done = call("digest", server.host + "/r:1", "--creds", "ann:s3cret")
    assert done.code == 9 and "127.0.0.2:5" in done.line
    assert "(--ca-file or certs.d, not insecure), or ask without credentials" in done.line
