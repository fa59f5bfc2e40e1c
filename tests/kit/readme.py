# SPDX-License-Identifier: Apache-2.0
"""The commands of the README, run top to bottom as a reader would type them.

They run in one shell, in a network of their own with nothing but loopback, where the hosts
that the README names are servers of this process.  ``python -m tests.kit.readme`` in such a
network (see :func:`play`) prints what each command has printed.
"""
import contextlib
import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.kit import ROOT
from tests.kit.certificates import Certificates
from tests.kit.commands import auth
from tests.kit.images import Layout, Spec, attestation, parse_platform, push_layout_http
from tests.kit.processes import clean_env, peer
from tests.kit.servers import Action, Connection, ScriptedServer, Uploads, challenge, content, reply
from tests.kit.signatures import key_file, sign
from tests.kit.v1server import V1Server, blobs

README = ROOT / "README.md"
HOSTS = {"registry.lan": "127.0.0.3", "old.lan": "127.0.0.4", "older.lan": "127.0.0.5"}
#: This runs the tests.
NOT_RUN = ("scripts/test                    # the tests, in a virtual environment of their own (ten minutes)",)
_END = "=== end of a command:"


class Command(NamedTuple):
    line: int  # of the README
    text: str
    output: List[str]


def commands(text: str) -> List[Command]:
    """The commands of all console blocks, with the output that stands below each."""
    result: List[Command] = []
    console = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            console = line == "```console"
        elif console and line.startswith("$ "):
            result.append(Command(number, line[2:], []))
        elif console:
            result[-1].output.append(line)
    return result


class Shell:
    """A shell that keeps what it is told from one command to the next."""

    def __init__(self, folder: Path) -> None:
        self.env = clean_env(folder / "op", {
            "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "XDG_RUNTIME_DIR": str(folder / "run")})
        (folder / "storage.conf").write_text('[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' % (
            folder / "graph", folder / "run"))
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, cwd=folder / "srv", env=self.env)

    def run(self, text: str, lines: int = 0) -> List[str]:
        """Run a command; returns its output, of one in the background the first ``lines``."""
        assert self._process.stdin and self._process.stdout
        background = text.rstrip().endswith("&")
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()
        output = [self._line() for _ in range(lines if background else 0)]
        self._process.stdin.write(b"echo; echo '%s'\n" % _END.encode())
        self._process.stdin.flush()
        while not output or output[-1] != _END:
            output.append(self._line())
        output.pop()
        return output[:-1] if output[-1] == "" else output  # what comes without a line's end

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EOFError("the shell has ended")
        return line.decode("utf-8", "replace").rstrip("\n")


class Stage:
    """The hosts of the README, and what a reader has before a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("srv", "op", "far"):
            (folder / name).mkdir()
        self.shell = Shell(folder)
        self._resources = contextlib.ExitStack()
        self._registries: Dict[str, "subprocess.Popen[bytes]"] = {}
        self.layout = Layout(folder / "layout")
        base = Spec(1700000, files=9, seed=1, text=0.2, entries=[
            ("etc", None), ("etc/os-release", b'NAME="Example"\n')])
        apps = {"1.%d" % n: [base, Spec(130000, seed=n + 2, text=0.1)] for n in range(3)}
        for tag, layers in [*apps.items(), ("1", apps["1.0"])]:
            self.layout.image(layers, "demo/app:" + tag)
        self.layout.image([base, Spec(140000, seed=9, text=0.1)], "demo/web:1")
        children: List[Dict[str, object]] = []
        for platform in ("linux/amd64", "linux/arm64"):
            image = self.layout.image([Spec(9000, seed=len(children) + 20)], platform=platform)
            children.append({**image.descriptor, "platform": parse_platform(platform)})
        children.append(attestation(self.layout, str(children[0]["digest"])))
        self.layout.index(children, "demo/many:3")
        signed = self.layout.image([Spec(5000, seed=30)], "team/app:1")
        self.signed = ["team/app:1", "team/app:%s.sig" % signed.digest.replace(":", "-")]
        sign(self.layout, signed.digest, name=self.signed[1])
        key_file(folder / "srv")

    def home(self, name: str) -> None:
        self.shell.run("export HOME=%s" % (self.folder / name))

    def registry(self, address: str, *flags: str) -> None:
        """Start a registry, and push to it what it has to have, but for app:1.2."""
        process = subprocess.Popen(
            [sys.executable, "-m", "minipull", "--root", str(self.folder / address), "serve", "--writable",
             "--listen", address, *flags], env=self.shell.env, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline().startswith(b"Listening on ")
        self._registries[address] = process

    def push(self, address: str, *names: str) -> None:
        for name in names:
            push_layout_http(self.layout, name, "%s/%s" % (address, name))

    def server(self, host: str, tls: Optional[ssl.SSLContext] = None) -> ScriptedServer:
        return self._resources.enter_context(ScriptedServer(HOSTS[host], tls, 5000))

    def end(self, address: str) -> None:
        process = self._registries.pop(address)
        process.terminate()
        process.wait()

    def close(self) -> None:
        for address in list(self._registries):
            self.end(address)
        self._resources.close()


def _first(stage: Stage) -> None:
    stage.registry("127.0.0.1:5000")
    stage.push("127.0.0.1:5000", "demo/app:1", "demo/app:1.0", "demo/app:1.1", "demo/web:1", "demo/many:3",
               *stage.signed)


def _many(stage: Stage) -> None:
    stage.shell.run("python3 -m minipull pull -q --all-platforms localhost:5000/demo/many:3")


def _site(stage: Stage) -> None:
    (stage.folder / "srv" / "site.txt").write_text(
        "# what the site runs\nlocalhost:5000/demo/app:1.*\nlocalhost:5000/demo/web:1\n")


def _far(stage: Stage) -> None:
    stage.registry("127.0.0.1:5001")
    stage.home("far")


def _near(stage: Stage) -> None:
    stage.home("op")
    stage.push("127.0.0.1:5000", "demo/app:1.2")
    stage.shell.run("python3 -m minipull digest --pin @site.txt >pins2.txt; python3 -m minipull pull -q @pins2.txt")


def _far_again(stage: Stage) -> None:
    stage.home("far")


def _back(stage: Stage) -> None:
    stage.end("127.0.0.1:5001")
    stage.home("op")


def _clean(stage: Stage) -> None:
    """Begin with an empty store, since by now there are many names in it."""
    stage.shell.run("python3 -m minipull images -q --root ~/.local/share/minipull >/dev/null; rm -rf ~/.local/share")
    stage.shell.run("python3 -m minipull pull -q localhost:5000/demo/app:1; python3 -m minipull pull -q localhost:5000/demo/web:1")


def _rot(stage: Stage) -> None:
    """Let one byte of a layer rot."""
    manifest = json.loads(stage.layout.read(stage.layout.resolve("demo/app:1")["digest"]))
    digest = manifest["layers"][1]["digest"].partition(":")[2]
    [path] = (stage.folder / "op").glob("**/blobs/sha256/" + digest)
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    stage.shell.run("python3 -m minipull pull -q localhost:5000/demo/app:1")


def _serve(stage: Stage) -> None:
    stage.end("127.0.0.1:5000")


def _private(stage: Stage) -> None:
    """A registry with a private CA that wants a login."""
    stage.shell.run("kill $(jobs -p); wait 2>/dev/null")
    stage.registry("127.0.0.1:5000")
    certificates = Certificates(stage.folder, peer("openssl"))
    shutil.copy(str(certificates.ca), str(stage.folder / "srv" / "ca.crt"))
    (stage.folder / "srv" / "password").write_text("secret\n")
    server = stage.server("registry.lan", certificates.context("lan"))
    manifest = stage.layout.resolve("demo/app:1")
    document = content(stage.layout.read(manifest["digest"]), manifest["mediaType"], ranges=False)
    wanted = "Basic " + auth("ann", "secret")["auth"]

    def guarded(action: Action) -> Action:
        return lambda connection: (
            action if connection.request.headers.get("authorization") == wanted
            else challenge('Basic realm="registry.lan"'))(connection)

    server.on("GET", "^/v2/$", guarded(reply(200, {})))
    server.on("GET", "^/v2/demo/app/manifests/", guarded(document))


def _old(stage: Stage) -> None:
    """A registry that knows schema 1 alone, and one that speaks the v1 protocol."""
    server = stage.server("old.lan")
    uploads = Uploads(server, "demo/app")

    def put(connection: Connection) -> None:
        kind = connection.request.headers.get("content-type", "")
        if "v1+" in kind and "prettyjws" in kind:
            return uploads.put(connection)
        connection.body()
        reply(400, {"errors": [{"code": "MANIFEST_INVALID", "message": "manifest invalid"}]},
              {"Content-Type": "application/json"})(connection)

    server.on("PUT", "^/v2/demo/app/manifests/", put)
    V1Server(stage.server("older.lan"), endpoints="older.lan:5000").add(blobs(2), "1", os="linux", architecture="amd64")


def _logout(stage: Stage) -> None:
    stage.shell.run("python3 -m minipull logout registry.lan:5000")


#: What a reader has, or has done, before the first command that begins so.
BEFORE: List[Tuple[str, Callable[[Stage], None]]] = [
    ("python3 -m minipull pull localhost:5000/demo/app:1", _first),
    ("python3 -m minipull save -q -o bundle.tar", _many),
    ("cat site.txt", _site),
    ("python3 site.pyz", _far),
    ("python3 -m minipull save -q --base", _near),
    ("python3 site.pyz load -i week2.tar", _far_again),
    ("python3 -m minipull verify", _back),
    ("python3 -m minipull images", _clean),
    ("python3 -m minipull check -q --repair", _rot),
    ("python3 -m minipull serve --listen 0.0.0.0:5000", _serve),
    ("python3 -m minipull digest registry.lan", _private),
    ("python3 -m minipull push --plain-http", _old),
    ("python3 -m minipull doctor registry.lan", _logout),
]


def play(text: str, folder: Path) -> List[List[str]]:
    """Run the commands of the README in this process's network, which is to have nothing else."""
    stage, outputs, before = Stage(folder), [], BEFORE[:]
    try:
        for command in commands(text):
            if before and command.text.startswith(before[0][0]):
                before.pop(0)[1](stage)
            outputs.append(["(not run here)"] if command.text in NOT_RUN else
                           stage.shell.run(command.text, len(command.output)))
    finally:
        stage.close()
    if before:
        raise LookupError("there is no command that begins with %s" % before[0][0])
    return outputs


def played(folder: Path) -> List[List[str]]:
    """Run the commands of the README in a network of their own; returns the output of each."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join("%s %s\n" % (ip, name) for name, ip in HOSTS.items()))
    script = 'ip link set lo up && mount --bind "$1" /etc/hosts && exec "$2" -m tests.kit.readme "$3"'
    done = subprocess.run(
        [peer("unshare"), "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script,
         "sh", str(hosts), sys.executable, str(folder)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=300)
    outputs: List[List[str]] = json.loads(done.stdout.decode())
    return outputs


if __name__ == "__main__":
    home = Path(sys.argv[1])
    text = json.dumps(play(README.read_text("utf-8"), home))
    for name, shown in ((str(home / "op"), "/home/op"), (str(home / "far"), "/home/op"), (str(home / "srv"), "/srv")):
        text = text.replace(name, shown)
    print(text)
