# SPDX-License-Identifier: Apache-2.0
"""login keeps what a registry has accepted where docker looks for it, and disturbs nothing else."""
import fcntl
import json
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from minipull.cancel import Cancel
from minipull.errors import InvalidReference
from minipull.registry import login as logins
from minipull.registry.auth import Credential
from tests.kit.layers import in_child
from tests.kit.commands import Login, auth, auths, basic
from tests.kit.processes import Docker, Finished, Minipull, Tool, minipull_env, run
from tests.kit.certificates import Certificates
from tests.kit.proxies import FaultProxy
from tests.kit.servers import ScriptedServer, challenge, error, reply

HUB = "https://index.docker.io/v1/"


def wrote(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(0o600)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(done: Finished, code: int, words: str) -> None:
    assert (done.code, done.out) == (code, "") and words in done.err, done
    assert done.err.startswith("minipull: ") and done.err.count("\n") == 1


# -- login and logout --------------------------------------------------------------


def test_login_keeps_what_a_registry_has_accepted_as_docker_does(
    private: ScriptedServer, login: Login, file: Path, run_minipull: Minipull
) -> None:
    done = login(private.host)
    assert (done.code, done.out, done.err) == (0, "Login Succeeded\n", "")
    assert file.read_text() == '{\n\t"auths": {\n\t\t"%s": {\n\t\t\t"auth": "%s"\n\t\t}\n\t}\n}' % (
        private.host, auth("ann", "s3cret")["auth"])
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    done = run_minipull("logout", private.host)
    assert (done.code, done.out, done.err) == (
        0, "Removing login credentials for %s\n" % private.host, "")
    assert auths(file) == {}
    done = run_minipull("logout", private.host)
    assert (done.code, done.out, done.err) == (0, "Not logged in to %s\n" % private.host, "")


def test_login_and_logout_print_json(private: ScriptedServer, login: Login, run_minipull: Minipull) -> None:
    found = {"registry": private.host, "username": "ann"}
    assert json.loads(login(private.host, "--format", "json").out) == found
    for removed in (True, False):
        found = json.loads(run_minipull("logout", private.host, "--format", "json").out)
        assert found == {"registry": private.host, "removed": removed}


def test_login_and_logout_help_has_an_example(run_minipull: Minipull) -> None:
    for command in ("login", "logout"):
        done = run_minipull(command, "--help")
        assert done.code == 0 and "example: python3 -m minipull " + command in done.out


def test_a_wrong_password_is_not_kept(
    private: ScriptedServer, tokens: FaultProxy, login: Login, home: Path
) -> None:
    for host in (private.host, tokens.host):
        refused(login(host, password="wr0ng"), 4, "login to %s: " % host)
    refused(login(tokens.host, user="bob"), 4, "unauthorized")
    assert list(home.iterdir()) == []


def test_login_at_a_host_that_answers_like_no_registry_tells_its_status(
    server: ScriptedServer, login: Login, home: Path
) -> None:
    text = "login to %s: login attempt to %s/v2/ failed with status: %s"
    for status, code, words in ((404, 5, "404 Not Found"), (403, 4, "403 Forbidden")):
        server.on("GET", "/v2/$", error(status))
        refused(login(server.host), code, text % (server.host, server.url, words))
    server.on("GET", "/v2/$", challenge("Negotiate"))
    refused(login(server.host), 4, "unauthorized")
    assert list(home.iterdir()) == []


def test_an_identity_token_is_kept_instead_of_the_password(
    tokens: FaultProxy, login: Login, file: Path, run_minipull: Minipull
) -> None:
    assert login(tokens.host).out == "Login Succeeded\n"
    asked = [request.target for request in tokens.seen("GET", "/token")]
    assert asked == ["/token?account=ann&client_id=minipull&offline_token=true&service=test-registry"]
    assert auths(file) == {tokens.host: dict(auth("ann", ""), identitytoken="refresh-of-ann")}
    assert run_minipull("tags", tokens.host + "/r").out == "latest\n"
    assert len(tokens.seen("POST", "/token")) == 1
    run_minipull("logout", tokens.host)
    assert run_minipull("tags", tokens.host + "/r").code == 4


def test_a_password_with_anything_in_it_is_kept_whole(
    server: ScriptedServer, login: Login, file: Path
) -> None:
    for password in ("a:b", ' "\\\t', "pä", '{\n  "key": "x"\n}', "x\n", "x" * 5000):
        server.on("GET", "/v2/$", basic("ann", password))
        assert login(server.host, password=password).code == 0
        assert auths(file) == {server.host: auth("ann", password)}


@pytest.mark.parametrize("args, stdin, words", [
    (["-u", "ann"], b"", "use -u USER --password-stdin"),
    ([], b"ann\ns3cret\n", "use -u USER --password-stdin"),
    (["--password-stdin"], b"s3cret", "--password-stdin needs -u USER"),
    (["-u", "ann", "--password-stdin"], b"", "want a user name, without colons, and a password"),
    (["-u", "ann", "--password-stdin"], b"\n", "want a user name"),
    (["-u", "a:b", "--password-stdin"], b"s3cret", "want a user name, without colons"),
    (["-u", "ann", "--password-stdin"], b"s3cret\xff", "must be UTF-8"),
    (["-u", "ann", "--password-stdin"], b"s3cret" * 20000, "longer than 65536 bytes"),
    (["-u", "ann", "-p", "s3cret"], b"", "unrecognized arguments: -p"),
    (["ann", "s3cret"], b"", "unrecognized arguments: a word after REGISTRY; did you mean -u USER"),
    (["-u", "ann", "--creds", "ann:s3cret"], b"", "unrecognized arguments: --creds")])
def test_login_without_user_and_password_sends_no_request(
    private: ScriptedServer, run_minipull: Minipull, args: List[str], stdin: bytes, words: str
) -> None:
    done = run_minipull("login", private.host, *args, stdin=stdin)
    refused(done, 2, words)
    assert "s3cret" not in done.err.replace("arguments: -p s3cret", "").replace("ann:s3cret", "")
    assert private.requests == []


def test_settings_that_can_not_be_read_are_told_before_a_password_is_asked_for(
        private: ScriptedServer, run_minipull: Minipull) -> None:
    refused(run_minipull("--config", "absent", "login", private.host, stdin=b""), 2, "settings file 'absent'")


def test_a_closed_stdin_is_no_terminal(private: ScriptedServer, home: Path) -> None:
    for flags in ("", " --password-stdin"):
        done = run(["sh", "-c", "%s -m minipull login -u ann %s%s <&-" % (
            sys.executable, private.host, flags)], minipull_env(home), check=False)
        refused(done, 2, "password")


@pytest.mark.parametrize("text, domain", [
    ("docker.io", "docker.io"), ("index.docker.io", "docker.io"), ("registry-1.docker.io", "docker.io"),
    (HUB, "docker.io"), ("https://docker.io", "docker.io"), ("Docker.IO", "docker.io"),
    ("registry.example.com", "registry.example.com"), ("R.example.com:5000", "r.example.com:5000"),
    ("http://r.example.com/v2/", "r.example.com"), ("HTTPS://r.example.com/a/b", "r.example.com"),
    ("localhost", "localhost"), ("localhost:5000", "localhost:5000"), ("[::1]:5000", "[::1]:5000")])
def test_a_registry_is_known_by_its_host(text: str, domain: str) -> None:
    assert logins.registry(text).domain == domain


@pytest.mark.parametrize("text", [
    "", "/", "https://", "alpine", "a b.c", "r.io:port", "r.io:99999", "-r.io", "ann:s3cret@r.io",
    "https://ann:s3cret@r.io/", "\x1b[31m.io", "r.io?x", "r.io#x", "ftp://r.io", "a" * 2000])
def test_login_refuses_a_registry_that_is_no_host(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        logins.registry(text)
    assert "is no registry: want HOST[:PORT]" in str(caught.value)
    assert "s3cret" not in str(caught.value) and len(str(caught.value)) < 400


# -- who gets the password ----------------------------------------------------------


def test_a_password_goes_to_no_other_host(
    server: ScriptedServer, foreign: ScriptedServer, login: Login, home: Path
) -> None:
    server.on("GET", "/v2/$", challenge('Bearer realm="%s/token",service="s"' % foreign.url))
    refused(login(server.host), 9, "on another host, %s, which gets no credentials" % foreign.host)
    server.on("GET", "/v2/$", reply(307, headers={"Location": foreign.url + "/v2/"}))
    foreign.on("GET", "/v2/$", basic("ann", "s3cret"))
    refused(login(server.host), 4, "unauthorized")
    assert list(home.iterdir()) == []


def test_login_uses_no_plain_http_once_tls_was_spoken(
    certificates: Certificates, login: Login, home: Path
) -> None:
    with ScriptedServer(tls=certificates.context("self-signed")) as server:
        server.on("GET", "/v2/$", basic("ann", "s3cret"))
        assert login(server.host).code == 0
        server.on("GET", "/v2/$", error(404))
        refused(login(server.host, password="other"), 5, "login attempt to https://")
        assert server.tls_errors == []
        refused(login(server.host, "--plain-http"), 5, "login to " + server.host)


def test_a_registry_that_is_not_loopback_is_never_asked_by_plain_http(login: Login, home: Path) -> None:
    done = login("registry.invalid:5000")
    refused(done, 5, "registry.invalid")
    assert "http:" not in done.err


# -- the file -----------------------------------------------------------------------


def test_login_keeps_the_other_members_of_the_config_file(
    private: ScriptedServer, login: Login, file: Path, run_minipull: Minipull
) -> None:
    before: Dict[str, Any] = {
        "psFormat": "table {{.ID}}\\t<ü>", "auths": {
            "z.io": auth("z", "z"), private.host: auth("old", "old"), private.host + "/ns": auth("n", "n"),
            "a.io": {"email": "a@b", "auth": None}},
        "HttpHeaders": {"b": "1", "a": [1, 2.5, None, True]}, "credHelpers": {"gcr.io": "gcloud"}}
    wrote(file, before).chmod(0o644)
    done = login(private.host)
    assert done.code == 0
    text = file.read_text()
    assert "\n\t\"psFormat\": \"table {{.ID}}\\\\t<ü>\",\n" in text
    after = json.loads(text)
    assert after["auths"][private.host] == auth("ann", "s3cret")
    assert run_minipull("logout", "http://%s/v1/" % private.host).out.startswith("Removing")
    last = json.loads(file.read_text())
    assert private.host not in last["auths"]
    for document in (after, last):
        assert list(document) == list(before)
        assert [key for key in before["auths"] if key in document["auths"]] == list(document["auths"])
        document["auths"][private.host] = before["auths"][private.host]
        assert document == before
    assert mode(file) == 0o600


def test_logout_forgets_every_spelling_of_a_host(file: Path, run_minipull: Minipull) -> None:
    mine = [HUB, "docker.io", "https://registry-1.docker.io/v2/", "index.docker.io/v1/"]
    others = ["docker.io/ns", "docker.io.example.com", "quay.io"]
    wrote(file, {"auths": {key: auth("u", "p") for key in mine + others}})
    assert run_minipull("logout").out == "Removing login credentials for docker.io\n"
    assert list(auths(file)) == others


def test_the_file_is_the_one_that_is_named(
    private: ScriptedServer, login: Login, home: Path, tmp_path: Path, run_minipull: Minipull
) -> None:
    flag, env, docker = tmp_path / "new" / "auth.json", tmp_path / "env.json", tmp_path / "docker"
    variables = {"DOCKER_CONFIG": str(docker)}
    assert login(private.host, env=variables).code == 0
    variables["REGISTRY_AUTH_FILE"] = str(env)
    assert login(private.host, env=variables).code == 0
    assert login(private.host, "--authfile", flag, env=variables).code == 0
    for path in (flag, env, docker / "config.json"):
        assert auths(path) == {private.host: auth("ann", "s3cret")}
        assert mode(path) == 0o600
    assert mode(flag.parent) == 0o700
    assert run_minipull("logout", "--authfile", flag, private.host, env=variables).code == 0
    assert (auths(flag), list(auths(env))) == ({}, [private.host])
    assert not (home / ".docker").exists()


def test_a_link_to_the_file_stays_one(private: ScriptedServer, login: Login, file: Path, home: Path) -> None:
    target = wrote(home / "dotfiles" / "docker.json", {"auths": {}, "x": 1})
    file.parent.mkdir()
    file.symlink_to(Path("..") / "dotfiles" / "docker.json")
    assert login(private.host).code == 0
    assert file.is_symlink() and list(auths(target)) == [private.host]
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.json"]


@pytest.mark.parametrize("text", [
    "{", "[]", '"s3cret"', '{"auths": []}', '{"auths": {}, "auths": {}}', '{"a": NaN}', '{"a": 1e999}',
    "\ufeff{}", "{}" + " " * (1 << 20)])
def test_login_does_not_replace_a_malformed_config_file(
    private: ScriptedServer, login: Login, file: Path, text: str
) -> None:
    wrote(file, text)
    refused(login(private.host), 6, str(file))
    assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".minipull-")] == []


@pytest.mark.parametrize("call", ["write", "dup", "replace"])
@pytest.mark.parametrize("then", ["keep", "forget"])
def test_a_password_that_a_killed_login_left_goes_with_the_next_login_or_logout(
        tmp_path: Path, call: str, then: str) -> None:
    """It is the owner's alone till then."""
    file = logins.Logins(str(tmp_path / "config.json"), {})

    def killed() -> None:
        setattr(os, call, lambda *args: os._exit(9))
        file.keep("r.example", Credential("ann", "s3cret"), Cancel())

    file.keep("r.example", Credential("ann", "s3cret"), Cancel())
    with pytest.raises(EOFError):
        in_child(killed)
    [debris] = tmp_path.glob(".minipull-config.json-*")
    assert mode(debris) == 0o600
    if then == "keep":
        file.keep("other.example", Credential("bob", "x"), Cancel())
    else:
        assert not file.forget("other.example", Cancel())
    assert set(os.listdir(str(tmp_path))) <= {"config.json", "config.json.lock"}


def test_the_directory_of_the_file_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login that made it may have been killed before it was synced."""
    (tmp_path / "docker").mkdir()
    synced, fsync = set(), os.fsync

    def record(fd: int) -> None:
        synced.add(os.readlink("/proc/self/fd/%d" % fd))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    logins.Logins(str(tmp_path / "docker" / "config.json"), {}).keep("r.example", Credential("ann", "x"), Cancel())
    assert synced >= {str(tmp_path), str(tmp_path / "docker")}


@pytest.mark.parametrize("text", ["", " \n", "{}", '{"auths": null}'])
def test_an_empty_file_is_filled(private: ScriptedServer, login: Login, file: Path, text: str) -> None:
    wrote(file, text)
    assert login(private.host).code == 0
    assert list(auths(file)) == [private.host]


def test_login_names_a_path_where_it_can_not_write(private: ScriptedServer, login: Login, tmp_path: Path) -> None:
    path = wrote(tmp_path / "file", "{}") / "auth.json"
    done = login(private.host, "--authfile", path)
    refused(done, 7, "create %s: File exists; --authfile names another file" % path.parent)


def test_login_does_not_replace_a_device(private: ScriptedServer, login: Login, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(str(device), stat.S_IFCHR | 0o600, os.stat(os.devnull).st_rdev)
    except PermissionError:
        pytest.skip("makes a device, as root may")
    refused(login(private.host, "--authfile", device), 7, "%s is not a regular file" % device)
    assert stat.S_ISCHR(device.stat().st_mode)


def test_logins_at_once_do_not_lose_one_another(tmp_path: Path) -> None:
    path = tmp_path / "config.json"

    def one(number: int) -> None:
        for each in range(5):
            keeper = logins.Logins(str(path), {})
            keeper.keep("r%d-%d.io" % (number, each), Credential("u", "p"), Cancel())
            assert keeper.forget("r%d-%d.io" % (number, each - 1), Cancel()) is bool(each)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(auths(path)) == ["r%d-4.io" % number for number in range(8)]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["config.json", "config.json.lock"]


def test_a_lock_that_is_not_had_says_who_holds_it(
    private: ScriptedServer, login: Login, file: Path
) -> None:
    wrote(file, "{}")
    with (file.parent / "config.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(login(private.host, "--timeout", "1"), 7, "is locked by process %d" % os.getpid())
    assert file.read_text() == "{}"


def test_login_works_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "config.json"
    logins.Logins(str(path), {}).keep("r.io", Credential("u", "p"), Cancel())
    assert auths(path) == {"r.io": auth("u", "p")}


# -- helpers ------------------------------------------------------------------------

KEYCHAIN = """#!{python}
import json, os, sys
verb, text = sys.argv[1], sys.stdin.read()
with open({log!r}, "a") as log: print(verb, text, file=log)
path = {kept!r}
kept = json.load(open(path)) if os.path.exists(path) else {{}}
if verb == "store":
    kept[json.loads(text)["ServerURL"]] = json.loads(text)
elif text not in kept:
    sys.exit(print("credentials not found in native keychain") or 1)
elif verb == "get":
    print(json.dumps(kept[text]))
else:
    del kept[text]
with open(path, "w") as file: json.dump(kept, file)
"""


class Keychain:
    """A credential helper named ``test`` and what it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._kept, self._log = folder, folder / "kept", folder / "log"
        self.env = {"PATH": "%s:%s" % (folder, os.defpath)}
        self.script(KEYCHAIN.format(python=os.path.realpath(sys.executable), log=str(self._log),
                                    kept=str(self._kept)))

    def script(self, text: str) -> None:
        path = self.folder / "docker-credential-test"
        path.write_text(text)
        path.chmod(0o755)

    @property
    def kept(self) -> Any:
        return json.loads(self._kept.read_text())

    @property
    def log(self) -> List[str]:
        return self._log.read_text().splitlines()


@pytest.fixture
def keychain(tmp_path: Path) -> Keychain:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Keychain(folder)


def test_a_helper_keeps_the_credentials_of_its_host(
    private: ScriptedServer, login: Login, file: Path, keychain: Keychain, run_minipull: Minipull
) -> None:
    for config in ({"credsStore": "test"}, {"credHelpers": {private.host: "test"}, "credsStore": "absent"}):
        wrote(file, dict(config, auths={private.host: auth("old", "old")}))
        assert login(private.host, env=keychain.env).out == "Login Succeeded\n"
        assert keychain.kept == {private.host: {
            "ServerURL": private.host, "Username": "ann", "Secret": "s3cret"}}
        assert auths(file) == {private.host: {}}
        private.on("GET", "/v2/r/tags/list", basic("ann", "s3cret"))
        assert run_minipull("tags", private.host + "/r", env=keychain.env).code == 0
        assert run_minipull("logout", private.host, env=keychain.env).out.startswith("Removing")
        assert (keychain.kept, auths(file)) == ({}, {})
        assert run_minipull("logout", private.host, env=keychain.env).out.startswith("Not logged in")


def test_a_helper_keeps_identity_tokens_too(
    tokens: FaultProxy, login: Login, file: Path, keychain: Keychain, run_minipull: Minipull
) -> None:
    wrote(file, {"credsStore": "test"})
    assert login(tokens.host, env=keychain.env).code == 0
    assert keychain.kept[tokens.host] == {
        "ServerURL": tokens.host, "Username": "<token>", "Secret": "refresh-of-ann"}
    assert run_minipull("tags", tokens.host + "/r", env=keychain.env).out == "latest\n"


def test_a_helper_for_another_host_or_for_none_is_not_asked(
    private: ScriptedServer, login: Login, file: Path
) -> None:
    wrote(file, {"credHelpers": {private.host: "", "other.io": "absent"}, "credsStore": "absent"})
    assert login(private.host).code == 0
    assert auths(file) == {private.host: auth("ann", "s3cret")}


def test_the_hub_is_forgotten_under_all_its_names(
    file: Path, keychain: Keychain, run_minipull: Minipull
) -> None:
    wrote(file, {"credsStore": "test"})
    keeper = logins.Logins(str(file), keychain.env)
    keeper.keep("docker.io", Credential("ann", "s3cret"), Cancel())
    assert list(keychain.kept) == [HUB] == list(auths(file))
    run([str(keychain.folder / "docker-credential-test"), "store"], keychain.env,
        stdin=b'{"ServerURL": "docker.io"}')
    assert run_minipull("logout", env=keychain.env).out == "Removing login credentials for docker.io\n"
    assert (keychain.kept, auths(file)) == ({}, {})


@pytest.mark.parametrize("script, words", [
    ("echo one; echo 'two\x1b[31m' >&1; exit 2", "exit status 2: two\\x1b[31m"),
    ("cat; exit 1", "docker-credential-test: exit status 1\n"),
    ("exit 3", "docker-credential-test: exit status 3\n"),
    ("kill -9 $$", "docker-credential-test: exit status -9"),
    (None, "docker-credential-test: not found on PATH")])
def test_a_helper_that_fails_is_an_error_and_nothing_is_kept(
    private: ScriptedServer, login: Login, file: Path, keychain: Keychain, run_minipull: Minipull,
    script: Optional[str], words: str
) -> None:
    keychain.script("#!/bin/sh\n%s\n" % script)
    if script is None:
        (keychain.folder / "docker-credential-test").unlink()
    text = wrote(file, {"credsStore": "test", "auths": {private.host: auth("old", "old")}}).read_text()
    refused(login(private.host, password='s3"cret', env=keychain.env), 4, "unauthorized")
    private.on("GET", "/v2/$", basic("ann", 's3"cret'))
    done = login(private.host, password='s3"cret', env=keychain.env)
    refused(done, 7, words)
    assert "cret" not in done.err
    refused(run_minipull("logout", private.host, env=keychain.env), 7, "docker-credential-test: ")
    assert file.read_text() == text


# -- others -------------------------------------------------------------------------


def test_skopeo_and_minipull_use_each_others_logins(
    tokens: FaultProxy, private: ScriptedServer, login: Login, skopeo: Tool, run_minipull: Minipull,
    tmp_path: Path
) -> None:
    name, ours, theirs = tokens.host + "/r:latest", tmp_path / "ours.json", tmp_path / "theirs.json"
    inspect = ["inspect", "--tls-verify=false", "docker://" + name, "--authfile"]
    assert login(tokens.host, "--authfile", ours).code == 0
    assert "refresh-of-ann" in ours.read_text()
    digest = json.loads(skopeo(*inspect, ours).out)["Digest"]
    skopeo("login", "--tls-verify=false", "--authfile", theirs, "-u", "ann", "--password-stdin",
           tokens.host, stdin=b"s3cret")
    assert run_minipull("digest", "--authfile", theirs, name).out == digest + "\n"
    skopeo("logout", "--authfile", ours, tokens.host)
    assert run_minipull("logout", "--authfile", theirs, tokens.host).out.startswith("Removing")
    assert skopeo(*inspect, theirs, check=False).code != 0
    assert run_minipull("digest", "--authfile", ours, name).code == 4
    assert login(private.host, "--authfile", theirs).code == 0
    assert skopeo("login", "--get-login", "--authfile", theirs, private.host).out == "ann\n"


def test_docker_and_minipull_use_each_others_logins(
    dockerd: Docker, tokens: FaultProxy, login: Login, file: Path, run_minipull: Minipull
) -> None:
    name, config = tokens.host + "/r:latest", ("--config", file.parent)
    assert login(tokens.host).code == 0
    dockerd(*config, "pull", name)
    dockerd("image", "rm", name)
    assert "Removing login credentials for " + tokens.host in dockerd(*config, "logout", tokens.host).out
    assert run_minipull("digest", name).code == 4
    assert "Login Succeeded" in dockerd(
        *config, "login", "-u", "ann", "--password-stdin", tokens.host, stdin=b"s3cret").out
    assert run_minipull("digest", name).out.startswith("sha256:")
    kept = file.read_text()
    assert run_minipull("logout", tokens.host).code == login(tokens.host).code == 0
    assert file.read_text() == kept


def test_login_where_nothing_was_asked_for_says_that_nothing_was_verified(
        server: ScriptedServer, login: Login, file: Path) -> None:
    server.on("GET", "/v2/$", reply(200))
    done = login(server.host)
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert done.err == "warning: %s asked for no credentials, so these are not verified\n" % server.host
