# SPDX-License-Identifier: Apache-2.0
"""The copy command: results on stdout, one line for an error, and no end learns a secret of the other's."""
import base64
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Union

import pytest

from tests.kit import images
from tests.kit.commands import Call as Command
from tests.kit.images import Layout
from tests.kit.certificates import Certificates
from tests.kit.proxies import Proxy
from tests.kit.servers import ScriptedServer, content, redirect
from tests.kit.copies import Target, blobs_of, entries, who

pytestmark = pytest.mark.usefixtures("no_repeats")


# -- the command -------------------------------------------------------------------


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1 and self.err.startswith("minipull: copy "), self.err
        return self.err[len("minipull: copy "):-1]


Call = Callable[..., Result]


@pytest.fixture
def call(call: Command) -> Call:
    """Run ``copy`` in this process, with an environment of its own."""
    def run(*args: Union[str, Path], **options: Any) -> Result:
        done = call("copy", *args, **options)
        return Result(done.code, done.out, done.err)
    return run


def test_copy_prints_the_new_digest(call: Call, target: Target, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    source = "oci:%s" % layout.root
    done = call(source, target.place)
    assert (done.code, done.out) == (
        0, "%s@%s\nStatus: Copied %s to %s\n" % (target.place[9:], index.digest, source, target.place))
    assert ": Pushed\n" in done.err
    assert call("-q", source, "store:a") == (0, index.digest + "\n", "")
    done = call("--platform", "linux/amd64", "--platform", "linux/arm64", "store:a", "oci:new:b")
    digest = images.digest_of(blobs_of(Path("new"))[entries(Path("new"))[0]["digest"]])
    assert done.out.startswith("b@%s\n" % digest)
    assert "the index is rewritten, with 3 of its 5 manifests\n" in done.err
    done = call("--format", "docker", "store:a", "oci:new:c")
    assert done.code == 0 and "left out: 1 that are no images\n" in done.err
    assert done.out.startswith("c@%s\n" % entries(Path("new"))[1]["digest"])


@pytest.mark.parametrize("args, code, line", [
    (["alpine", "oci:x"], 2, "alpine: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["oci:x", "docker:x"], 2, "docker:x: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["oci:x", "docker://UPPER"], 2, "docker://UPPER: invalid reference format: repository name (library/UPPER)"
     " must be lowercase"),
    (["oci:x\n", "\x1b[1m"], 2, "\\x1b[1m: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["--format", "docker", "--referrers", "oci:x", "oci:y"], 2, None),
    (["--platform", "x", "oci:x", "oci:y"], 2, None),
    (["--chunk-size", "x", "oci:x", "oci:y"], 2, None),
    (["--format", "xml", "oci:x", "oci:y"], 2, None),
    (["oci:x"], 2, None),
    (["oci:none", "oci:y"], 3, None),
    (["store:a", "oci:y"], 3, None)])
def test_a_failed_copy_prints_one_line(call: Call, args: List[str], code: int, line: Optional[str]) -> None:
    done = call(*args)
    assert (done.code, done.out) == (code, "") and done.err.count("\n") == 1
    assert line is None or done.line == line
    assert not Path("y").exists()


def test_a_layout_of_several_images_wants_a_name(call: Call, target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", "one")
    layout.image(images.specs(1), "two")
    for name, said in (("", "no image without a name"), (":no", "no image no")):
        done = call("oci:%s%s" % (layout.root, name), target.place)
        assert (done.code, done.line) == (3, "%s to %s/r: %s: %s; there is one, two" % (
            layout.root, target.host, layout.root, said))
    assert target.requests == []
    assert call("-q", "oci:%s:one" % layout.root, target.place).out == image.digest + "\n"


ANN, BOB = "ann:4pple", "bob:b4nana"


class Ends(NamedTuple):
    """Two registries that want to know who asks, ann and bob."""
    source: Target
    target: Target
    layout: Layout

    @property
    def places(self) -> List[str]:
        return [self.source.place.replace(":1", ":latest"), self.target.place]

    def assert_told_apart(self) -> None:
        assert {who(request) for request in self.source.requests} <= {"", ANN}
        assert {who(request) for request in self.target.requests} <= {"", BOB}
        for server, foreign in ((self.source, BOB), (self.target, ANN)):
            for request in server.requests:
                text = request.target + repr(sorted(request.headers.items()))
                for secret in foreign.split(":"):
                    assert secret not in text
                    assert base64.b64encode(foreign.encode()).decode() not in text


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Target({"/": ANN}) as source, Target({"/": BOB}, host="127.0.0.2") as target:
        layout, _ = images.single(tmp_path / "layout")
        source.serve(layout.root, "r")
        yield Ends(source, target, layout)


def authfile(path: Path, **logins: str) -> Path:
    path.write_text(json.dumps({"auths": {
        host: {"auth": base64.b64encode(login.encode()).decode()} for host, login in logins.items()}}))
    path.chmod(0o600)
    return path


def give_flags(ends: Ends, tmp_path: Path) -> Any:
    return ["--src-creds", ANN, "--dest-creds", BOB], {}


def give_variables(ends: Ends, tmp_path: Path) -> Any:
    return [], {"MINIPULL_SRC_CREDS": ANN, "MINIPULL_DEST_CREDS": BOB}


def give_files(ends: Ends, tmp_path: Path) -> Any:
    """Each file has a wrong password for the other end."""
    one = authfile(tmp_path / "one.json", **{ends.source.host: ANN, ends.target.host: "wrong:wrong"})
    two = authfile(tmp_path / "two.json", **{ends.source.host: "wrong:wrong", ends.target.host: BOB})
    return ["--src-authfile", one, "--dest-authfile", two], {}


def give_file(ends: Ends, tmp_path: Path) -> Any:
    return [], {"REGISTRY_AUTH_FILE": str(
        authfile(tmp_path / "both.json", **{ends.source.host: ANN, ends.target.host: BOB}))}


def give_both(ends: Ends, tmp_path: Path) -> Any:
    """A flag beats its variable, and a file."""
    _, env = give_file(ends, tmp_path)
    return ["--dest-creds", BOB], {"MINIPULL_DEST_CREDS": "wrong:wrong", **env}


@pytest.mark.parametrize("give", [give_flags, give_variables, give_files, give_file, give_both])
def test_each_end_is_told_its_own_password_alone(
        give: Callable[[Ends, Path], Any], call: Call, ends: Ends, tmp_path: Path) -> None:
    flags, env = give(ends, tmp_path)
    done = call(*flags, *ends.places, env=env)
    assert done.code == 0, done
    assert ends.target.put()[-1] == "1"
    ends.assert_told_apart()
    assert not any(secret in done.out + done.err for secret in (ANN, BOB, "4pple", "b4nana"))


@pytest.mark.parametrize("flags, missing", [
    (["--src-creds", ANN], "target"), (["--dest-creds", BOB], "source"),
    (["--src-creds", ANN, "--dest-creds", "bob:wrong"], "target")])
def test_one_ends_password_does_not_open_the_other(
        flags: List[str], missing: str, call: Call, ends: Ends) -> None:
    done = call("-q", *flags, *ends.places)
    assert done.code == 4 and getattr(ends, missing).host in done.line
    assert ends.target.put() == []
    assert {who(request) for request in ends.source.requests} <= {"", ANN}
    assert ANN not in {who(request) for request in ends.target.requests}


@pytest.mark.parametrize("flags, env", [
    (["--creds", ANN], {}), (["--registry-token", "t"], {}), ([], {"MINIPULL_CREDS": ANN}),
    (["--creds", ANN, "--dest-creds", BOB], {})])
def test_one_password_for_two_registries_is_refused(
        flags: List[str], env: Dict[str, str], call: Call, ends: Ends) -> None:
    done = call(*flags, *ends.places, env=env)
    assert done.code == 2 and "are for one registry, not for %s and %s" % (
        ends.source.host, ends.target.host) in done.err
    assert ends.source.requests == ends.target.requests == []
    assert call("-q", "--creds", ANN, ends.places[0], "store:a").code == 0
    assert call("-q", "--creds", BOB, "store:a", ends.places[1]).code == 0
    ends.assert_told_apart()


def test_no_password_goes_along_a_redirect(call: Call, ends: Ends, foreign: ScriptedServer) -> None:
    for path in (ends.layout.root / "blobs" / "sha256").iterdir():
        foreign.on("GET", path.name, content(path.read_bytes()))
    ends.source.on("GET", "/blobs/", lambda connection: redirect(
        foreign.url + connection.request.path)(connection))
    assert call("-q", "--src-creds", ANN, "--dest-creds", BOB, *ends.places).code == 0
    assert len(foreign.seen("GET", "/blobs/")) == 4
    ends.assert_told_apart()


def test_a_mount_is_asked_for_with_the_credentials_of_the_target(call: Call, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    with Target({"/v2/a/b/": ANN, "/v2/r/": BOB}) as server:
        server.serve(layout.root, "a/b")
        server.uploads.elsewhere["a/b"] = blobs_of(layout.root)
        place = "docker://%s/a/b:latest" % server.host
        done = call("--src-creds", ANN, "--dest-creds", BOB, place, server.place)
        assert done.code == 0 and done.err.count("Mounted from a/b") == 4, done
        for request in server.requests:
            assert who(request) in ("", ANN if "/v2/a/b/" in request.path else BOB)
        assert not server.seen("GET", "/blobs/") and not server.seen("PATCH|PUT", "/blobs/")
        # One password will do if there is one registry.
        server.logins = {"/": ANN}
        assert call("-q", "--creds", ANN, place, server.place).code == 0


# Of certificates and schemes, by way of a proxy: on loopback everything is trusted.


@pytest.mark.parametrize("flags, port, refused", [
    (["--ca-file", "CA"], 5443, ""),
    (["--src-ca-file", "CA", "--dest-ca-file", "CA"], 5443, ""),
    (["--src-ca-file", "CA"], 5443, "registry.test:5443"),
    (["--dest-ca-file", "CA"], 5443, "registry.test"),
    (["--src-tls-verify=false", "--dest-cert-dir", "DIR"], 5443, ""),
    (["--src-cert-dir", "DIR", "--dest-tls-verify", "no"], 5443, ""),
    (["--tls-verify", "0", "--dest-tls-verify", "1"], 5443, "registry.test:5443"),
    (["--src-tls-verify=0"], 5443, "registry.test:5443"),
    (["--src-cert-dir", "DIR"], 5443, "registry.test:5443"),
    (["--src-ca-file", "CA", "--dest-plain-http"], 5000, ""),
    (["--src-plain-http", "--dest-ca-file", "CA"], 5443, ""),
    (["--plain-http"], 5000, ""),
    (["--src-plain-http"], 5443, "registry.test:5443")])
def test_each_end_trusts_its_own_certificates_alone(
        flags: List[str], port: int, refused: str, call: Call, certificates: Certificates, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", layers=1)
    folder = certificates.folder(tmp_path / "certs")
    given = [flag.replace("CA", str(certificates.ca)).replace("DIR", str(folder)) for flag in flags]
    tls = certificates.context()
    with Target(tls=tls) as source, Target() as plain, Target(tls=tls) as target, Target() as bare_target:
        for server in (source, plain):
            server.serve(layout.root, "r")
        hosts = {"registry.test:443": source.host, "registry.test": plain.host,
                 "registry.test:5443": target.host, "registry.test:5000": bare_target.host}
        with Proxy(hosts) as proxy:
            done = call("-q", *given, "docker://registry.test/r", "docker://registry.test:%d/r:1" % port,
                        env={"https_proxy": proxy.url, "HTTP_PROXY": proxy.url})
        if refused:
            assert (done.code, "certificate of %s is not trusted" % refused in done.line) == (9, True), done
            assert {**target.manifests, **bare_target.manifests} == {}
        else:
            assert done.code == 0, done
            assert set((bare_target if port == 5000 else target).manifests) == {"1", image.digest}
        trusted = refused != "registry.test" and not {"--src-plain-http", "--plain-http"} & set(flags)
        assert bool(source.requests) == trusted


@pytest.mark.parametrize("there", ["docker", "oci"])
def test_a_blob_that_rotted_in_the_store_is_the_stores_fault(
        call: Call, target: Target, tmp_path: Path, root: Path, there: str) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(images.specs(1, 900), "1")
    assert call("-q", "oci:%s:1" % layout.root, "store:a").code == 0
    digest = image.layers[0].descriptor["digest"]
    path = root / "blobs/sha256" / digest[7:]
    path.write_bytes(b"?" * len(path.read_bytes()))
    done = call("-q", "store:a", target.place if there == "docker" else "oci:%s:1" % (tmp_path / "there"))
    assert done.code == 7
    assert "blob %s in the store is corrupt; run minipull check --repair, then pull again" % digest in done.line
