# SPDX-License-Identifier: Apache-2.0
"""A credential is found where docker and podman keep it, and goes nowhere else."""
import base64
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import pytest

from tests.kit import DATA
from minipull.registry.auth import Credential
from minipull.registry.url import Origin
from minipull.registry.credentials import Credentials, Source
from minipull.errors import InvalidDocument, StorageError

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
HUB = "https://index.docker.io/v1/"
NOBODY = Credential()


def auth(user: str, password: str = "pw") -> Dict[str, str]:
    return {"auth": base64.b64encode(("%s:%s" % (user, password)).encode()).decode()}


def auths(*keys: str) -> Dict[str, Any]:
    """A config.json in which each key has a user of the same name (slashes and colons cut)."""
    return {"auths": {key: auth(user_of(key)) for key in keys}}


def user_of(key: str) -> str:
    return key.replace(":", "_").replace("/", "_")


def text(document: object) -> Source:
    return Source("TEXT", json.dumps(document))


def lookup(document: object, host: str, path: str = "") -> Credential:
    return Credentials([text(document)]).get(host, path)


# --- Which key ---------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, host, found",
    [
        *((case["stored_keys"], case["index"], case["found"]) for case in TABLES["resolve_auth_config"]),
        (["https://r.example.com"], "r.example.com", "https://r.example.com"),
        (["docker.io", HUB], "docker.io", HUB),
        (["registry-1.docker.io", "index.docker.io", "docker.io"], "docker.io", "docker.io"),
        (["registry-1.docker.io", "index.docker.io"], "docker.io", "index.docker.io"),
        (["https://registry-1.docker.io/v2/"], "docker.io", "https://registry-1.docker.io/v2/"),
        (["Registry.IO"], "registry.io", "Registry.IO"),
        (["registry.io"], "Registry.IO", "registry.io"),
        (["https://r.io/v1/", "r.io"], "r.io", "r.io"),
        (["https://r.io/v1/", "http://r.io/"], "r.io", "https://r.io/v1/"),
        (["localhost:5000"], "localhost:5000", "localhost:5000"),
        (["https://[::1]:5000/v2/"], "[::1]:5000", "https://[::1]:5000/v2/"),
    ],
)
def test_a_host_finds_its_own_entry(keys: List[str], host: str, found: Optional[str]) -> None:
    assert lookup(auths(*keys), host) == (Credential(user_of(found), "pw") if found else NOBODY)


@pytest.mark.parametrize("case", TABLES["auth_challenge_host_normalization"])
def test_a_challenge_holds_for_its_origin_however_it_is_spelled(case: Dict[str, str]) -> None:
    assert Origin.of(case["added_for"]) == Origin.of(case["found_for"])


@pytest.mark.parametrize(
    "host",
    [
        "registry.io:444", "registry.io:443", "registry.io.evil.com", "evil-registry.io", "io",
        "sub.registry.io", "registry.i", "", "docker.io", "index.docker.io.evil.com",
    ],
)
def test_a_credential_never_goes_to_another_host(host: str) -> None:
    assert lookup(auths("registry.io", "https://registry.io/v1/"), host, "a/b").anonymous


def test_only_the_hub_has_aliases() -> None:
    stored = auths(HUB, "docker.io")
    assert lookup(stored, "registry-1.docker.io").anonymous
    assert lookup(auths("quay.io"), "docker.io").anonymous


@pytest.mark.parametrize(
    "path, found",
    [
        ("ns/repo", "r.io/ns/repo"),
        ("ns/other", "r.io/ns"),
        ("ns/repo/deeper", "r.io/ns/repo"),
        ("ns", "r.io/ns"),
        ("nsx", "r.io"),
        ("other/ns", "r.io"),
        ("", "r.io"),
    ],
)
def test_the_most_specific_path_wins(path: str, found: str) -> None:
    stored = auths("r.io", "r.io/ns", "r.io/ns/repo")
    assert lookup(stored, "r.io", path).username == user_of(found)


def test_a_path_scoped_key_is_no_key_for_the_whole_host() -> None:
    assert lookup(auths("r.io/ns"), "r.io", "other/repo").anonymous
    assert lookup(auths("r.io/ns"), "r.io").anonymous


def test_the_first_source_with_an_entry_wins() -> None:
    sources = [text({}), text({"auths": {"a.io": {}}}), text(auths("b.io"))]
    last = text({"auths": {"a.io": auth("late"), "b.io": auth("late")}})
    credentials = Credentials(sources + [last])
    assert credentials.get("b.io").username == "b.io"
    assert credentials.get("a.io").username == "late"


def test_an_explicit_credential_overrules_every_source_for_its_host_alone() -> None:
    explicit = {"A.io": Credential("me", "x"), "b.io": NOBODY}
    credentials = Credentials([text(auths("a.io", "b.io", "c.io"))], explicit=explicit)
    assert credentials.get("a.io") == Credential("me", "x")
    assert credentials.get("b.io").anonymous
    assert credentials.get("c.io").username == "c.io"


# --- What an entry says ------------------------------------------------------


@pytest.mark.parametrize(
    "entry, found",
    [
        ({"auth": "dTpw"}, Credential("u", "p")),
        ({"auth": "dTpw\r\n"}, Credential("u", "p")),
        (auth("u", "p:with:colons"), Credential("u", "p:with:colons")),
        (auth("u", "p\0\0\0"), Credential("u", "p")),
        (auth("u", ""), Credential("u", "")),
        (auth("ü", "pä"), Credential("ü", "pä")),
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        (dict(auth("u", "p"), username="x", password="y"), Credential("u", "p")),
        ({"identitytoken": "id"}, Credential(identity_token="id")),
        (dict(auth("u", ""), identitytoken="id"), Credential("u", "", "id")),
        ({"registrytoken": "reg"}, Credential(registry_token="reg")),
        ({"auth": None, "email": "a@b", "username": None}, NOBODY),
        ({}, NOBODY),
        (None, NOBODY),
    ],
)
def test_an_entry_is_decoded(entry: object, found: Credential) -> None:
    assert lookup({"auths": {"r.io": entry}}, "r.io") == found


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "c2VjcmV0"},  # "secret": no colon
        {"auth": "OnNlY3JldA=="},  # ":secret": no user
        {"auth": "secret!"},
        {"auth": "c2VjcmV"},
        {"auth": base64.b64encode(b"u:secret\xff").decode()},
        {"auth": ["secret"]},
        {"username": 5},
        {"registrytoken": "secret\r\nHost: evil"},
        {"registrytoken": "sécret"},
        "secret",
        ["secret"],
    ],
)
def test_a_broken_entry_is_named_without_its_secret(entry: object) -> None:
    with pytest.raises(InvalidDocument) as caught:
        Credentials([text({"auths": {"r.io": entry}})._replace(required=True)]).get("r.io")
    assert str(caught.value) == "TEXT: Invalid auth configuration file"


def test_a_broken_entry_of_another_host_does_no_harm() -> None:
    assert lookup({"auths": {"r.io": auth("u"), "x.io": {"auth": "!"}}}, "r.io").username == "u"


@pytest.mark.parametrize(
    "document",
    [
        "secret", "[]", "{", '"x"', '{"auths": [1]}', '{"auths": "secret"}', '{"credHelpers": 1}',
        '{"credHelpers": {"r.io": ["secret"]}}', '{"credsStore": 5}', '{"credsStore": "a/b"}',
        '{"credsStore": "../secret"}', '{"credsStore": "a b;c"}', '{"credsStore": "x\\n"}',
        "[" * 100000,
    ],
)
def test_a_malformed_document_is_one_clear_line(document: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        Credentials([Source("/etc/x.json", document, required=True)]).get("r.io")
    assert str(caught.value) == "/etc/x.json: Invalid auth configuration file"


def test_no_secret_is_shown_by_repr() -> None:
    credential = Credential("bob", "hunter2", "hunter3", "hunter4")
    source = Source("DOCKER_AUTH_CONFIG", '{"hunter5": 1}')
    shown = "%r %s %r" % (credential, str(credential), source)
    assert "hunter" not in shown
    assert repr(Credential("bob", "hunter2")) == "Credential(username=..., password=...)"


# --- Files -------------------------------------------------------------------


def test_all_kinds_of_files_are_read(tmp_path: Path) -> None:
    config, dockercfg = tmp_path / "config.json", tmp_path / ".dockercfg"
    config.write_text(json.dumps(auths("a.io")), encoding="utf-8-sig")
    dockercfg.write_text(json.dumps({HUB: dict(auth("old"), email="x@y")}))
    credentials = Credentials([Source(str(config)), Source(str(dockercfg), flat=True)])
    assert credentials.get("a.io").username == "a.io"
    assert credentials.get("docker.io", "library/alpine").username == "old"


def test_a_missing_or_empty_file_is_no_source(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    paths = [tmp_path / "missing", tmp_path / "no" / "such" / "dir", empty / "x", empty]
    credentials = Credentials([Source(str(path)) for path in paths] + [text(auths("a.io"))])
    assert credentials.get("a.io").username == "a.io"


def test_an_unreadable_file_that_is_required_is_a_storage_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Credentials([Source(str(tmp_path), required=True)]).get("a.io")
    assert str(caught.value) == "read %s: Is a directory" % tmp_path


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', b"{" + b" " * (1 << 20) + b"}", b"{} {}"])
def test_a_file_of_anything_else_is_named_without_its_content(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InvalidDocument) as caught:
        Credentials([Source(str(path), required=True)]).get("a.io")
    assert str(caught.value) == "%s: Invalid auth configuration file" % path


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"auths": {"a.io": 5}}', b'{"credsStore": "../x"}', b"\xff"])
def test_a_source_that_can_not_be_read_is_warned_of_once_and_passed_over(
        tmp_path: Path, content: Optional[bytes]) -> None:
    """As docker does."""
    path = tmp_path / "config.json"
    warnings: List[str] = []
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
        path.chmod(0o600)
    credentials = Credentials([Source(str(path)), text(auths("a.io"))], warn=warnings.append)
    for _ in range(3):
        assert credentials.get("a.io").username == "a.io"
    [warning] = warnings
    assert str(path) in warning and warning.endswith("; going on without it")


def test_a_file_of_secrets_that_others_can_read_is_warned_of_once(tmp_path: Path) -> None:
    warnings: List[str] = []
    paths = [tmp_path / name for name in ("group", "world", "owner", "helped", "empty")]
    for path, mode in zip(paths, (0o640, 0o604, 0o600, 0o644, 0o644)):
        entry = {} if path.name == "helped" else auth("u")
        path.write_text("{}" if path.name == "empty" else json.dumps({"auths": {"r.io": entry}}))
        path.chmod(mode)
    credentials = Credentials([Source(str(path)) for path in paths], warn=warnings.append)
    assert credentials.get("r.io").username == "u"
    assert credentials.get("other.io") == credentials.get("another.io") == NOBODY
    assert warnings == ["%s can be read by others; chmod 600 it" % path for path in paths[:2]]


def test_nothing_is_read_before_it_is_needed_and_then_once(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    credentials = Credentials([Source(str(path))])
    path.write_text(json.dumps(auths("a.io")))
    assert credentials.get("a.io").username == "a.io"
    path.write_text("changed")
    assert credentials.get("a.io").username == "a.io"


# --- Helpers -----------------------------------------------------------------


class Helpers:
    """Scripts on a PATH of their own; every run leaves a line in ``log``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.warnings: List[str] = []

    def add(self, name: str, python: str) -> None:
        """``host`` is what came on stdin; ``answer(user, secret)`` prints the usual JSON."""
        script = self.folder / ("docker-credential-" + name)
        script.write_text(
            "#!%s\n" % os.path.realpath(sys.executable)
            + "import json, os, sys, time\n"
            + "host = sys.stdin.read()\n"
            + "with open(%r, 'a') as log: print(sys.argv[1:], host, file=log)\n" % str(self.log)
            + "def answer(user, secret):\n"
            + "    print(json.dumps({'ServerURL': host, 'Username': user, 'Secret': secret}))\n"
            + python
        )
        script.chmod(0o755)

    def credentials(self, *documents: object, timeout: float = 30) -> Credentials:
        return Credentials(
            [text(document) for document in documents],
            helper_environ={"PATH": str(self.folder), "HELPED": "yes"},
            helper_timeout=timeout,
            warn=self.warnings.append,
        )

    def runs(self) -> List[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(tmp_path)


NONE = "print('credentials not found in native keychain'), sys.exit(1)"


def test_a_helper_is_asked_on_stdin_and_only_once(helpers: Helpers) -> None:
    helpers.add("x", "answer('user', 'secret')")
    credentials = helpers.credentials({"credsStore": "x"})
    for path in ("a", "a", "b/c"):
        assert credentials.get("r.io:5000", path) == Credential("user", "secret")
    assert helpers.runs() == ["['get'] r.io:5000"]
    assert helpers.warnings == []


def test_the_hub_is_asked_for_under_its_old_url_first(helpers: Helpers) -> None:
    helpers.add("x", "answer('u', 's') if host == 'docker.io' else (%s)" % NONE)
    assert helpers.credentials({"credsStore": "x"}).get("docker.io").username == "u"
    assert helpers.runs() == ["['get'] %s" % HUB, "['get'] docker.io"]


def test_the_user_name_token_means_an_identity_token(helpers: Helpers) -> None:
    helpers.add("x", "answer('<token>', 'refresh')")
    found = helpers.credentials({"credsStore": "x"}).get("r.io")
    assert found == Credential(identity_token="refresh")


def test_a_helper_sees_the_environment_that_was_given_and_no_other(
    helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIPULL_CREDS", "user:secret")
    helpers.add("x", "answer(os.environ.get('HELPED'), str('MINIPULL_CREDS' in os.environ))")
    assert helpers.credentials({"credsStore": "x"}).get("r.io") == Credential("yes", "False")


def test_the_helper_of_a_host_comes_before_the_store_and_both_before_the_file(
    helpers: Helpers,
) -> None:
    for name in ("one", "all"):
        helpers.add(name, "answer(%r, host)" % name)
    stored = auths("a.io", "b.io", "c.io", "a.io/ns")
    helped = {"credHelpers": {"https://a.io": "one", "c.io": ""}, "credsStore": "all"}
    credentials = helpers.credentials(dict(stored, **helped))
    assert credentials.get("a.io", "other") == Credential("one", "a.io")
    assert credentials.get("a.io", "ns/repo").username == "a.io_ns"
    assert credentials.get("b.io") == Credential("all", "b.io")
    assert credentials.get("c.io").username == "c.io"


@pytest.mark.parametrize("nothing", [NONE, "answer('', '')", "answer('<token>', '')"])
def test_a_helper_that_has_nothing_leaves_the_search_going(helpers: Helpers, nothing: str) -> None:
    helpers.add("x", nothing)
    credentials = helpers.credentials(
        dict(auths("a.io"), credsStore="x"), {"auths": {"b.io": auth("second")}}
    )
    assert credentials.get("a.io").username == "a.io"
    assert credentials.get("b.io").username == "second"
    assert credentials.get("c.io").anonymous
    assert helpers.warnings == []


FAILURES: Mapping[str, str] = {
    "sys.exit(3)": "exit status 3",
    "answer('u', 'hunter2'); sys.exit(3)": "exit status 3",
    "print('hunter2')": "no answer of the kind",
    "print('[]')": "no answer of the kind",
    "print('\"hunter2\"')": "no answer of the kind",
    "print('{\"Username\": \"hunter2\"}')": "no answer of the kind",
    "answer(1, 'hunter2')": "no answer of the kind",
    "answer('hunter2', None)": "no answer of the kind",
    "print('[' * 60000)": "no answer of the kind",
    "sys.stdout.buffer.write(b'\\xff')": "no answer of the kind",
    "time.sleep(60)": "no answer in 1 s",
    "sys.stdout.write('hunter2' * 100000)": "no answer in 1 s",
}


@pytest.mark.parametrize("script", list(FAILURES))
def test_a_helper_that_fails_makes_its_host_anonymous_with_one_warning(
    helpers: Helpers, script: str
) -> None:
    helpers.add("x", script)
    other = {"auths": {"r.io": auth("other"), HUB: auth("other")}}
    timeout = 1 if "no answer in" in FAILURES[script] else 30
    credentials = helpers.credentials(dict(other, credsStore="x"), other, timeout=timeout)
    assert credentials.get("r.io").anonymous
    assert credentials.get("r.io", "again").anonymous
    assert helpers.warnings == [
        "docker-credential-x: %s; going on without credentials for r.io" % FAILURES[script]
    ]
    assert len(helpers.runs()) == 1


def test_a_missing_helper_makes_its_host_anonymous_and_no_other(helpers: Helpers) -> None:
    stored = auths("r.io", "s.io")
    credentials = helpers.credentials(dict(stored, credHelpers={"r.io": "gone"}), stored)
    assert credentials.get("r.io").anonymous
    assert credentials.get("s.io").username == "s.io"
    assert helpers.warnings == [
        "docker-credential-gone: not found on PATH; going on without credentials for r.io"
    ]


def test_a_helper_that_cannot_be_run_makes_its_host_anonymous(helpers: Helpers) -> None:
    script = helpers.folder / "docker-credential-x"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert helpers.credentials({"credsStore": "x"}).get("r.io").anonymous
    assert "docker-credential-x: No such file or directory" in helpers.warnings[0]


def test_no_helper_is_run_from_the_working_directory(
    helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.add("x", "answer('u', 's')")
    monkeypatch.chdir(helpers.folder)
    monkeypatch.setenv("PATH", str(helpers.folder))
    for path in ("", ".", ":", "./"):
        credentials = Credentials([text({"credsStore": "x"})], helper_environ={"PATH": path})
        assert credentials.get("r.io").anonymous
    assert Credentials([text({"credsStore": "x"})]).get("r.io").anonymous
    assert helpers.runs() == []


def test_a_helper_need_not_read_its_input(helpers: Helpers) -> None:
    script = helpers.folder / "docker-credential-x"
    script.write_text('#!/bin/sh\nexec <&-\necho \'{"Username":"u","Secret":"s"}\'\n')
    script.chmod(0o755)
    assert helpers.credentials({"credsStore": "x"}).get("r.io") == Credential("u", "s")


def test_a_child_that_a_helper_leaves_behind_is_not_waited_for(helpers: Helpers) -> None:
    helpers.add("x", "os.fork() or (time.sleep(20), os._exit(0)); answer('u', 's')")
    started = time.monotonic()
    assert helpers.credentials({"credsStore": "x"}).get("r.io") == Credential("u", "s")
    assert time.monotonic() - started < 15


def test_threads_share_one_answer(helpers: Helpers) -> None:
    helpers.add("x", "time.sleep(0.2); answer('u', 's')")
    credentials = helpers.credentials({"credsStore": "x"})
    found: List[Credential] = []
    threads = [
        threading.Thread(target=lambda: found.append(credentials.get("r.io"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Credential("u", "s")] * 8
    assert len(helpers.runs()) == 1
