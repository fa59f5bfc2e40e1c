# SPDX-License-Identifier: Apache-2.0
"""Flags beat the environment, which beats the file; nothing else is read."""
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Type

import pytest

from minipull.registry.auth import Credential
from minipull.registry.endpoints import RegistryService
from minipull.errors import Error, InvalidDocument, InvalidReference, StorageError
from minipull.reference import Reference
from minipull.cli.access import Access
from minipull.cli.settings import Settings, find_zstd


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def settings(home: Path, env: Optional[Mapping[str, str]] = None, **flags: Any) -> Settings:
    return Settings({"HOME": str(home), **(env or {})}, flags)


def written(home: Path, document: Any, path: str = ".config/minipull/config.json") -> Path:
    file = home / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


# -- who is heard ----------------------------------------------------------------


def test_a_flag_beats_the_environment_which_beats_the_file(home: Path) -> None:
    assert settings(home).number("attempts", 5, "max-download-attempts") == 5
    written(home, {"max-download-attempts": 2, "max-concurrent-downloads": 9})
    assert settings(home).number("attempts", 5, "max-download-attempts") == 2
    assert settings(home, {"MINIPULL_ATTEMPTS": "3"}).number("attempts", 5, "max-download-attempts") == 3
    assert settings(home, {"MINIPULL_ATTEMPTS": "3"}, attempts="4").number("attempts", 5, "max-download-attempts") == 4
    downloads = settings(home).downloads()
    assert (downloads.transfers.limit, downloads.attempts) == (9, 2)


def test_an_empty_variable_counts_as_unset(home: Path) -> None:
    env = {"MINIPULL_JOBS": "", "MINIPULL_TLS_VERIFY": "", "MINIPULL_PLAIN_HTTP": "", "MINIPULL_ROOT": ""}
    assert settings(home, env).downloads().transfers.limit == 6
    assert Access(settings(home, env)).service().tls_verify
    assert not Access(settings(home, env)).service().plain_http
    assert settings(home, env).store().root == str(home / ".local/share/minipull")


@pytest.mark.parametrize("text, value", [
    ("1", True), ("TRUE", True), ("yes", True), ("0", False), ("False", False), ("no", False),
    ("", None), ("2", None), ("on ", None)])
def test_a_truth_value_that_is_neither_true_nor_false_is_refused(home: Path, text: str, value: Optional[bool]) -> None:
    made = settings(home, tls_verify=text)
    if value is None:
        with pytest.raises(InvalidReference, match="--tls-verify must be true or false"):
            made.truth("tls_verify", True)
    else:
        assert made.truth("tls_verify", not value) is value


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "1" * 7, "٣", ""])
def test_a_number_below_1_or_no_number_is_refused(home: Path, text: str) -> None:
    with pytest.raises(InvalidReference, match="--timeout must be a number from 1"):
        settings(home, timeout=text).timeout


def test_the_platform_is_dockers_unless_ours_is_given(home: Path) -> None:
    assert settings(home).platform is None
    env = {"DOCKER_DEFAULT_PLATFORM": "linux/arm64"}
    assert settings(home, env).platform == "linux/arm64"
    env["MINIPULL_PLATFORM"] = "linux/s390x"
    assert settings(home, env).platform == "linux/s390x"
    assert settings(home, env, platform="linux/386").platform == "linux/386"


# -- the file --------------------------------------------------------------------


def test_the_file_is_found_where_it_is_named(home: Path, tmp_path: Path) -> None:
    file = written(home, {"max-download-attempts": 7}, "elsewhere.json")
    for made in (settings(home, config=str(file)), settings(home, {"MINIPULL_CONFIG": str(file)})):
        assert made.number("attempts", 5, "max-download-attempts") == 7
    written(home, {"max-download-attempts": 8}, "xdg/minipull/config.json")
    assert settings(home, {"XDG_CONFIG_HOME": str(home / "xdg")}).number("attempts", 5, "max-download-attempts") == 8
    with pytest.raises(InvalidReference, match="does not exist"):
        settings(home, config=str(home / "none.json"))


def test_the_file_may_be_a_link(home: Path) -> None:
    file = written(home, {"max-download-attempts": 7}, "dotfiles/config.json")
    link = home / ".config/minipull/config.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(file)
    assert settings(home).number("attempts", 5, "max-download-attempts") == 7


def test_a_file_that_cannot_be_used_is_named(home: Path) -> None:
    for text in ("{", "[]", '{"a":1,"a":2}', '{"a":"%s"}' % ("x" * (1 << 20))):
        file = written(home, text)
        with pytest.raises(InvalidDocument, match=str(file)):
            settings(home)
    with pytest.raises(StorageError, match="read %s: Is a directory" % home):
        settings(home, config=str(home))


def test_v1_is_spoken_where_the_file_or_the_flag_says_so(home: Path) -> None:
    old, other = Reference.parse("old.lan:5000/r"), Reference.parse("r.com/r")
    assert not Access(settings(home)).service().v1_endpoints(old)
    assert Access(settings(home, {"MINIPULL_LEGACY_V1": "1"})).service().v1_endpoints(other)
    written(home, {"legacy-registries": ["old.lan:5000"]})
    service = Access(settings(home)).service()
    assert service.v1_endpoints(old) and not service.v1_endpoints(other)


def test_the_settings_file_takes_the_engines_keys_and_hosts(home: Path) -> None:
    written(home, {
        "registry-mirrors": ["https://mirror.example"], "insecure-registries": ["10.0.0.0/8", "plain:5000"],
        "hosts": {"docker.io": {"mirrors": ["http://near:5000"], "fallback": False, "ca": "/ca.pem"}}})
    service = Access(settings(home)).service()
    host = service.hosts["docker.io"]
    assert (host.fallback, host.ca) == (False, "/ca.pem")
    assert [endpoint.url for endpoint in service.pull_endpoints(Reference.parse("alpine"))] == [
        "http://near:5000", "https://mirror.example"]
    assert not service.is_secure("plain:5000") and not service.is_secure("10.1.2.3")
    assert service.is_secure("docker.io")


@pytest.mark.parametrize("document, domain, kind, text", [
    ({"registry-mirrors": "https://m"}, "docker.io", InvalidDocument, 'registry-mirrors: .*"https://m".*must be an array'),
    ({"registry-mirrors": [1]}, "docker.io", InvalidReference, r"registry-mirrors: .*\[1\].*no scheme"),
    ({"registry-mirrors": ["https://a", None]}, "docker.io", InvalidReference, "null.*no scheme"),
    ({"registry-mirrors": ["https://a", "m"]}, "docker.io", InvalidReference, 'registry-mirrors: .*"m".*no scheme specified: m$'),
    ({"registry-mirrors": ["https://u:secret@m"]}, "docker.io", InvalidReference, "xxxxx@m.*username/password not allowed"),
    ({"hosts": {"docker.io": {"mirrors": ["m"]}}}, "docker.io", InvalidReference, "hosts: .*docker.io.*no scheme"),
    ({"hosts": {"a.lan": {"mirrors": "https://m"}}}, "a.lan", InvalidDocument, "a.lan.*'mirrors' must be an array"),
    ({"hosts": {"a.lan": {"mirrors": ["https://m?x"]}}}, "a.lan", InvalidReference, "a.lan.*query or fragment"),
    ({"hosts": {"A.lan": {"fallback": "no"}}}, "a.lan", InvalidReference, "A.lan.*fallback must be true or false"),
    ({"hosts": {"a.lan": {"ca": 1}}}, "a.lan", InvalidDocument, "a.lan.*'ca' must be a string"),
    ({"hosts": {"a.lan": []}}, "a.lan", InvalidDocument, "a.lan.*must be an object"),
    ({"hosts": {"https://a.lan/v2/": {}}}, "a.lan", InvalidReference, "a.lan.*want HOST")], ids=repr)
def test_a_bad_setting_is_an_error_for_its_registry_alone(
        home: Path, document: Any, domain: str, kind: Type[Error], text: str) -> None:
    file = written(home, document)
    alerts: List[str] = []
    service = Access(Settings({"HOME": str(home)}, {}, alert=alerts.append)).service()
    assert service.pull_endpoints(Reference.parse("other.lan/r"))
    for ask in (service.pull_endpoints, service.push_endpoints):
        with pytest.raises(kind, match=text) as caught:
            ask(Reference.parse(domain + "/r"))
        assert str(file) in str(caught.value) and "secret" not in str(caught.value)
    others = {"docker.io", "a.lan"} - {domain}
    assert alerts == [] and [service.push_endpoints(Reference.parse(other + "/r")) for other in others]


@pytest.mark.parametrize("key", ["insecure-registries", "legacy-registries"])
@pytest.mark.parametrize("value", [
    "r.lan", 5, ["ok.lan", "ftp://r.lan"], ["ok.lan", "-r"], ["ok.lan", 5], ["ok.lan", None], ["10.0.0.0/33", "ok.lan"],
    ["ok.lan", "r.lan/v2"], ["ok.lan", "http://u:secret@r.lan"], ["ok.lan", {}]], ids=json.dumps)
def test_a_host_that_can_not_be_read_is_told_once_and_gets_no_right(home: Path, key: str, value: Any) -> None:
    file = written(home, {key: value})
    alerts: List[str] = []
    made = Settings({"HOME": str(home)}, {}, alert=alerts.append)
    services = [Access(made).service(), Access(made.end("src")).service(), Access(made.end("dest")).service()]
    assert len(alerts) == 1 and "secret" not in alerts[0]
    assert alerts[0].startswith("%s: %s: " % (file, key)) and alerts[0].endswith("; passed over")
    for service in services:
        assert service.is_secure("r.lan") and not service.v1_endpoints(Reference.parse("r.lan/r"))
        if isinstance(value, list):
            granted = service.v1_endpoints(Reference.parse("ok.lan/r")) or not service.is_secure("ok.lan")
            assert granted


def test_a_host_that_none_can_be_is_told_and_passed_over(home: Path) -> None:
    written(home, {"hosts": {"r .lan": {"ca": "x"}, "a.lan": {"ca": "y"}}})
    alerts: List[str] = []
    assert Access(Settings({"HOME": str(home)}, {}, alert=alerts.append)).service().hosts["a.lan"].ca == "y"
    assert len(alerts) == 1 and "r .lan" in alerts[0]


def test_hosts_that_are_no_object_are_an_error_for_all(home: Path) -> None:
    written(home, {"hosts": []})
    with pytest.raises(InvalidDocument, match="config.json: 'hosts' must be an object"):
        Access(settings(home)).service()


@pytest.mark.parametrize("name, value", [
    ("REGISTRY_AUTH_FILE", "/a\0b"), ("DOCKER_CONFIG", "\0"), ("XDG_CONFIG_HOME", "/a\0b"), ("PATH", "/bin:\0")])
def test_a_variable_or_flag_with_a_nul_is_refused(home: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidReference, match="%s must not contain a NUL" % name):
        settings(home, {name: value})
    with pytest.raises(InvalidReference, match="authfile must not contain a NUL"):
        settings(home, authfile=value)


@pytest.mark.parametrize("path", ["/a\nb", "/" + "a" * 5000, "/" + "a/" * 5000, "\udcff"], ids=ascii)
def test_an_odd_path_is_one_short_line(home: Path, path: str) -> None:
    alerts: List[str] = []
    with pytest.raises(InvalidReference, match="does not exist") as caught:
        Access(settings(home, authfile=path)).credentials([])
    made = Settings({"HOME": str(home), "DOCKER_CONFIG": path}, {}, alert=alerts.append)
    assert Access(made).credentials([]).get("r").anonymous
    written(home, {"credsStore": "x" * 5000}, ".docker/config.json")
    made = Settings({"HOME": str(home)}, {}, alert=alerts.append)
    assert Access(made).credentials([]).get("r").anonymous
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value) and "not found on PATH" in alerts[-1]
    assert len(alerts[-1]) < 400


# -- the registry service and the store -------------------------------------------


def test_flags_reach_the_service(home: Path) -> None:
    service = Access(settings(home, plain_http=True, tls_verify="false", ca_file="/ca.pem")).service()
    assert (service.plain_http, service.tls_verify, service.ca_file) == (True, False, "/ca.pem")


def test_certificates_are_found_at_home_before_etc_and_where_a_flag_says(home: Path) -> None:
    made = Access(settings(home, cert_dir="/given")).service(["R.com:443", "docker.io"])
    assert list(made.certs) == ["%s/%s/certs.d" % (place, name) for place in (home / ".config", "/etc")
                                 for name in ("containers", "docker")]
    assert made._cert_dirs == {"r.com": "/given", "docker.io": "/given"}
    env = {"XDG_CONFIG_HOME": "/xdg", "MINIPULL_CERT_DIR": "/env"}
    made = Access(settings(home, env)).service(["r.com"])
    assert (made.certs[0], made._cert_dirs) == ("/xdg/containers/certs.d", {"r.com": "/env"})


@pytest.mark.parametrize("env, http, https, no_proxy", [
    ({}, 0, 0, ""),
    ({"HTTP_PROXY": "p:1"}, 1, 0, ""), ({"HTTPS_PROXY": "p:2"}, 0, 2, ""), ({"ALL_PROXY": "p:3"}, 0, 0, ""),
    ({"http_proxy": "p:1", "https_proxy": "p:2", "no_proxy": "a"}, 1, 2, "a"),
    ({"http_proxy": "p:1", "HTTP_PROXY": "p:9", "https_proxy": "p:2", "HTTPS_PROXY": "p:9", "no_proxy": "a",
      "NO_PROXY": "b"}, 1, 2, "a"),
    ({"http_proxy": "", "HTTP_PROXY": "p:1", "https_proxy": "", "HTTPS_PROXY": "p:2", "no_proxy": "",
      "NO_PROXY": "b"}, 1, 2, "b"),
    ({"REQUEST_METHOD": "GET", "HTTP_PROXY": "p:9", "HTTPS_PROXY": "p:2"}, 0, 2, ""),
    ({"REQUEST_METHOD": "GET", "http_proxy": "p:1", "HTTP_PROXY": "p:9"}, 1, 0, "")])
def test_proxies_are_the_environments(
    home: Path, env: Dict[str, str], http: int, https: int, no_proxy: str
) -> None:
    made = Access(settings(home, env)).service().proxies
    found = [made.get(scheme) for scheme in ("http", "https")]
    assert [proxy.port if proxy else 0 for proxy in found] == [http, https]
    assert made.no_proxy == no_proxy


def test_the_root_is_found_in_the_order_of_the_design(home: Path) -> None:
    assert settings(home).store().root == str(home / ".local/share/minipull")
    env = {"XDG_DATA_HOME": str(home / "data")}
    assert settings(home, env).store().root == str(home / "data/minipull")
    env["MINIPULL_ROOT"] = str(home / "root")
    assert settings(home, env).store().root == str(home / "root")
    assert settings(home, env, root=str(home / "flag")).store().root == str(home / "flag")
    assert list(home.iterdir()) == []
    assert settings(home, timeout="7").store().timeout == 7.0


def headers(home: Path, env: Optional[Mapping[str, str]] = None, **flags: Any) -> Dict[str, str]:
    return dict(Access(settings(home, env, **flags)).service()._headers or {})


def test_headers_come_from_the_flag_or_the_environment(home: Path) -> None:
    assert headers(home) == {}
    assert headers(home, header=["X-One: 1 ", "x-two:a:b"]) == {"X-One": "1", "X-Two": "a:b"}
    assert headers(home, {"MINIPULL_HEADER": "X-One: 1\nuser-agent: me"}) == {"User-Agent": "me", "X-One": "1"}


@pytest.mark.parametrize("line", [
    "X", ":v", "X Y: v", "X: a\r\nEvil: b", "X: é", "X: \x1b[31m", "Authorization: Basic x",
    "cookie: x", "Proxy-Authorization: x"])
def test_a_header_that_could_do_harm_is_refused(home: Path, line: str) -> None:
    with pytest.raises(InvalidReference, match="--header must be NAME:VALUE"):
        Access(settings(home, header=[line])).service()


def test_jobs_and_attempts_apply_to_uploads_too(home: Path) -> None:
    assert settings(home).uploads().transfers.limit == 6  # as many as of downloads; the engine has 5
    written(home, {"max-concurrent-uploads": 9, "max-download-attempts": 2})
    made = settings(home).uploads()
    assert (made.transfers.limit, made.attempts) == (9, 5)  # the key is for downloads
    assert settings(home, attempts="2").uploads().attempts == 2
    assert settings(home, jobs="3").uploads().transfers.limit == 3
    assert settings(home, {"MINIPULL_JOBS": "4"}).uploads().transfers.limit == 4


@pytest.mark.parametrize("text, size", [
    ("0", 0), ("4096", 4096), ("512k", 512 << 10), ("10M", 10 << 20), ("2G", 2 << 30), ("", 0),
    ("-1", None), ("1.5M", None), ("10m", None), ("M", None), ("1MB", None), ("٣", None), ("9" * 13, None)])
def test_a_size_is_a_number_of_bytes_with_an_optional_unit(home: Path, text: str, size: Optional[int]) -> None:
    made = settings(home, {"MINIPULL_CHUNK_SIZE": text})
    if size is None:
        with pytest.raises(InvalidReference, match="^MINIPULL_CHUNK_SIZE must be a size such as 512k or 10M"):
            made.size("chunk_size")
    else:
        assert made.size("chunk_size") == size


# -- credentials -----------------------------------------------------------------


def test_explicit_credentials_are_for_one_registry(home: Path) -> None:
    made = Access(settings(home, creds="user:pass:word")).credentials(["a.example", "a.example"])
    assert made.get("a.example") == Credential("user", "pass:word")
    assert made.get("b.example").anonymous
    assert Access(settings(home, creds="user")).credentials(["a"]).get("a") == Credential("user")
    token = Access(settings(home, {"MINIPULL_REGISTRY_TOKEN": "abc"})).credentials(["a"])
    assert token.get("a") == Credential(registry_token="abc")
    with pytest.raises(InvalidReference, match="for one registry, not for a.example and b.example"):
        Access(settings(home, creds="u:p")).credentials(["b.example", "a.example"])
    with pytest.raises(InvalidReference) as caught:
        Access(settings(home, registry_token="secret\nEvil: 1")).credentials(["a"])
    assert "secret" not in str(caught.value)


def auths(host: str, user: str) -> Dict[str, Any]:
    return {"auths": {host: {"username": user, "password": "p"}}}


def test_stored_credentials_are_found_in_the_order_of_the_design(home: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(home / "run")}
    places = [".dockercfg", ".config/containers/auth.json", "run/containers/auth.json", ".docker/config.json"]
    for place in places:
        document = auths("r", place)
        written(home, document["auths"] if place == ".dockercfg" else document, place)
        assert Access(settings(home, env)).credentials([]).get("r").username == place
    written(home, auths("r", "DOCKER_CONFIG"), "docker/config.json")
    env["DOCKER_CONFIG"] = str(home / "docker")
    assert Access(settings(home, env)).credentials([]).get("r").username == "DOCKER_CONFIG"
    env["DOCKER_AUTH_CONFIG"] = json.dumps(auths("r", "text"))
    assert Access(settings(home, env)).credentials([]).get("r").username == "text"
    assert Access(settings(home, env, creds="flag:p")).credentials(["r"]).get("r").username == "flag"


def test_an_authfile_ends_the_search(home: Path) -> None:
    written(home, auths("r", "docker"), ".docker/config.json")
    file = written(home, auths("other", "alone"), "auth.json")
    for made in (settings(home, authfile=str(file)), settings(home, {"REGISTRY_AUTH_FILE": str(file)})):
        assert Access(made).credentials([]).get("r").anonymous
        assert Access(made).credentials([]).get("other").username == "alone"
    with pytest.raises(InvalidReference, match="authfile .* does not exist"):
        Access(settings(home, authfile=str(home / "none"))).credentials([])


def test_a_helper_does_not_get_minipulls_own_secrets(home: Path) -> None:
    helper = written(home, "#!/bin/sh\nenv >%s\necho '{\"Username\":\"u\",\"Secret\":\"s\"}'\n" % (home / "seen"),
                     "bin/docker-credential-test")
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    written(home, {"credsStore": "test"}, ".docker/config.json")
    env = {"PATH": "%s:%s" % (home / "bin", os.defpath), "KEPT": "yes", "MINIPULL_CREDS": "a:secret",
           "MINIPULL_REGISTRY_TOKEN": "secret", "DOCKER_AUTH_CONFIG": '{"auths":{"x":{"auth":"c2VjcmV0"}}}'}
    assert Access(settings(home, env)).credentials(["other"]).get("r") == Credential("u", "s")
    seen = (home / "seen").read_text()
    assert "KEPT=yes" in seen and "HOME=" in seen
    assert "MINIPULL_" not in seen and "DOCKER_AUTH_CONFIG" not in seen


def test_warnings_go_to_the_callers_function(home: Path) -> None:
    written(home, {"credsStore": "absent"}, ".docker/config.json")
    warnings: List[str] = []
    made = Settings({"HOME": str(home), "PATH": "/nonexistent"}, {}, warnings.append)
    assert Access(made).credentials([]).get("r").anonymous
    assert "docker-credential-absent" in warnings[0]


def test_without_a_home_the_password_file_is_asked() -> None:
    assert Settings({}, {}).store().root.endswith("/minipull")


def test_only_a_zstd_in_an_absolute_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, sound = tmp_path / "planted", tmp_path / "sound"
    for folder in (planted, sound):
        folder.mkdir()
        (folder / "zstd").write_text("#!/bin/sh\n")
        (folder / "zstd").chmod(0o755)
    monkeypatch.chdir(planted)
    for relative in (".", "", "..", "../planted"):
        assert find_zstd(relative) is None
        assert find_zstd(os.pathsep.join([relative, str(tmp_path), str(sound)])) == str(sound / "zstd")
    (sound / "zstd").chmod(0o600)
    assert find_zstd(str(sound)) is None
    assert find_zstd("") is None
    find_zstd()


# -- no home ---------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of somebody else's, for a user who has no entry in the passwd file."""
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for folder in ("~", "x", "."):
        written(tmp_path / folder, {"registry-mirrors": ["https://evil.example.com"]})
        written(tmp_path / folder, {"auths": {}}, ".docker/config.json")
        written(tmp_path / folder, {"registry-mirrors": ["https://evil.example.com"]}, "minipull/config.json")
        written(tmp_path / folder, {"auths": {}}, "containers/auth.json")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    return tmp_path


@pytest.mark.parametrize("env", [
    {}, {"HOME": ""}, {"HOME": "x"}, {"HOME": "~"}, {"HOME": "."}, {"XDG_CONFIG_HOME": "x"},
    {"XDG_DATA_HOME": "x", "XDG_RUNTIME_DIR": "x", "XDG_CONFIG_HOME": "."}])
def test_without_a_home_nothing_of_the_working_directory_is_read_or_written(
        elsewhere: Path, env: Mapping[str, str]) -> None:
    made = Settings(env, {})
    assert Access(made).service().pull_endpoints(Reference.parse("alpine")) == RegistryService().pull_endpoints(
        Reference.parse("alpine"))
    assert Access(made).sources() == []
    with pytest.raises(StorageError, match="^no home directory: give --root$"):
        made.store()
    with pytest.raises(InvalidReference, match="^no home directory: give --authfile$"):
        Access(made).docker_config
    assert Settings(env, {"root": "here"}).store().root == str(elsewhere / "here")
    absolute = Settings(dict(env, XDG_DATA_HOME=str(elsewhere)), {})
    assert absolute.store().root == str(elsewhere / "minipull")


@pytest.mark.parametrize("home", [None, "", "x"])
def test_a_relative_home_is_that_of_the_passwd_file_instead(home: Optional[str]) -> None:
    entry = pwd.getpwuid(os.getuid()).pw_dir
    made = Settings({} if home is None else {"HOME": home}, {})
    assert made.store().root == os.path.join(entry, ".local/share/minipull")
    assert Access(made).docker_config == os.path.join(entry, ".docker/config.json")


@pytest.mark.parametrize("flags, env, settings, source", [
    ({"jobs": "x"}, {"MINIPULL_JOBS": "y"}, '{"max-concurrent-downloads": "z"}', "--jobs"),
    ({}, {"MINIPULL_JOBS": "y"}, '{"max-concurrent-downloads": "z"}', "MINIPULL_JOBS"),
    ({}, {}, '{"max-concurrent-downloads": "z"}', "settings: max-concurrent-downloads")])
def test_a_value_that_does_not_fit_is_named_by_where_it_is(
        home: Path, flags: Dict[str, str], env: Dict[str, str], settings: str, source: str) -> None:
    (home / "config.json").write_text(settings)
    with pytest.raises(InvalidReference, match="^%s must be a number from 1$" % source):
        Settings({"HOME": str(home), **env}, {"config": str(home / "config.json"), **flags}).downloads()
