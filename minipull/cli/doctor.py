# SPDX-License-Identifier: Apache-2.0
"""The command doctor: a self-test, and what this host offers.

The self-test serves a registry on loopback, pushes a small image to it, pulls the
image into a fresh store and checks it there, by the commands that a user would
type, in processes of their own, with none of the user's settings.  The report
lists the parts of the host that speed and trust depend on.  The command needs no
network but loopback and leaves no file behind.
"""
import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from typing import Callable, Dict, Iterator, List, Sequence

from .. import files
from ..digest import Digest
from ..errors import ContentMismatch, Error, StorageError
from ..image.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from ..image.strictjson import compact
from ..progress import human_size
from ..store.references import REF_NAME
from ..store.store import Store
from .context import Context
from .diagnosis import Diagnosis, authorities
from .effective import given
from .parser import program
from .settings import find_zstd

PATIENCE = 20.0  # seconds for one command
_SAMPLE = 0.1  # seconds of one measurement
#: Variables by which a user's settings would reach the self-test.
_USERS = re.compile("MINIPULL_|DOCKER_|REGISTRY_|XDG_|SSL_|.*_PROXY$", re.I)


def do_doctor(context: Context, flags: argparse.Namespace) -> int:
    """Show the self-test and the host, or the way of a pull; returns an exit code."""
    if flags.ref is not None:
        return Diagnosis(context, flags.ref).run()
    context.require("server.registry")
    test, error, code = _SelfTest(context), "", 0
    try:
        with tempfile.TemporaryDirectory(prefix="minipull-") as folder:
            test.run(folder)
    except (Error, OSError) as exc:
        context.cancel.check()
        error, code = str(exc) or type(exc).__name__, getattr(exc, "exit_code", 1)
    host, settings = _host(context), given(context.settings, vars(flags))
    context.answer(
        {"ok": not error, "error": error, "host": host, "settings": settings, "steps": test.steps},
        ["self-test: %s" % (error or "ok"), ""] + ["%-12s %s" % line for line in host.items()]
        + ["%-12s %s%s, from %s" % ("set", row["name"], row["value"] and " = " + row["value"], row["source"])
           for row in settings])
    return code


class _SelfTest:
    def __init__(self, context: Context) -> None:
        self.steps: List[Dict[str, object]] = []
        self._context = context
        self._environ = {key: value for key, value in os.environ.items() if not _USERS.match(key)}

    def run(self, folder: str) -> None:
        """Serve, push, pull, check; raises Error after the first that fails."""
        served, layout, pushed, pulled, settings = (
            os.path.join(folder, name) for name in ("served", "layout", "made", "fresh", "settings"))
        with open(settings, "w") as file:
            file.write("{}")
        self._environ.update(HOME=folder, MINIPULL_CONFIG=settings)
        serve = ("--root", served, "serve", "--listen", "127.0.0.1:0", "--writable")
        with self._running(*serve) as process:
            assert process.stdout is not None
            line = process.stdout.readline().decode().strip()
            address = line.partition("http://")[2]
            self._record([*serve, "&"], line, 0 if address else process.wait() or 1)
            name = "%s/doctor/hello:1" % address
            digest = _make_image(layout)
            self._command("--root", pushed, "copy", "-q", "oci:%s:hello" % layout, "store:" + name)
            self._command("--root", pushed, "push", name)
            output = self._command("--root", pulled, "pull", name)
            if "Digest: %s" % digest not in output:
                raise ContentMismatch("what was pulled is not what was pushed")
        self._command("--root", pulled, "check")

    def _record(self, args: Sequence[str], output: str, code: int) -> None:
        """Record and show a command as a user would type it; raises Error for a code but 0."""
        command = "%s %s" % (program(), " ".join(args))
        self.steps.append({"command": command, "output": output, "code": code})
        if not self._context.json:
            self._context.show("$ %s\n%s" % (command, output))
        if code:
            error = Error("the last command failed")
            error.exit_code = code
            raise error

    def _command(self, *args: str) -> str:
        with self._running(*args) as process:
            output = process.communicate()[0].decode("utf-8", "replace").strip()
        code = process.returncode
        if code < 0:
            output += "\nended by signal %d, after at most %d s" % (-code, PATIENCE)
        self._record(args, output, code if code >= 0 else 1)
        return output

    @contextlib.contextmanager
    def _running(self, *args: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run this very package as a command, wherever it was imported from."""
        code = "import sys; sys.path[:0] = %r; from %s.main import run; run()" % (
            [os.path.abspath(path) for path in sys.path], __package__)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=self._environ)
        timer = threading.Timer(PATIENCE, process.kill)
        with process, self._context.cancel.calling(process.kill):
            timer.start()
            try:
                yield process
            finally:
                process.terminate()
                timer.cancel()


def _make_image(folder: str) -> Digest:
    """Write an image layout with a small image named hello; returns the digest of its manifest."""
    store, tar = Store(folder), bytes(10240)  # a tar without entries

    def put(data: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor.of(data, media_type)
        store.content.put(descriptor.digest, data)
        return descriptor

    layer = put(gzip.compress(tar), OCI_LAYER + "+gzip")
    config = put(compact({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest.of(tar)]}}), OCI_CONFIG)
    manifest = put(compact({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_json(),
        "layers": [layer.to_json()]}), OCI_MANIFEST)
    store.references.put([manifest._replace(annotations={REF_NAME: "hello"}).to_json()])
    return manifest.digest


def _host(context: Context) -> Dict[str, str]:
    host = {
        "Python": "%s, %s" % (sys.version.split()[0], sys.executable),
        "OpenSSL": ssl.OPENSSL_VERSION, "SHA-256": _sha256(), "zlib": _zlib(), "zstd": _zstd(context),
        "CAs": authorities()}
    for name, look in (("proxies", _proxies), ("settings", lambda context: context.settings.path or "no file"),
                       ("mirrors", _mirrors),
                       # --tls-verify and --plain-http are among the settings.
                       ("insecure", lambda context: ", ".join(["loopback", *context.access.service().insecure])),
                       ("certs.d", lambda context: ", ".join(
                           os.path.join(root, name) for root in context.access.certs if os.path.isdir(root)
                           for name in sorted(os.listdir(root))) or "none"),
                       ("credentials", lambda context: ", ".join(
                           source.name for source in context.access.sources()
                           if os.path.exists(source.name) or "/" not in source.name) or "none"),
                       ("store", _store)):
        try:
            host[name] = look(context)
        except (Error, OSError) as exc:  # the latter of a directory that is not for us
            host[name] = str(exc)
    return host


def _rate(work: Callable[[], int]) -> str:
    """The speed of ``work`` in MB/s; each call returns how many bytes it has processed."""
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < _SAMPLE:
        done += work()
    return "%.0f MB/s" % (done / (time.perf_counter() - begun) / 1e6)


def _sha256() -> str:
    block = bytes(1 << 20)
    rate = _rate(lambda: len(hashlib.sha256(block).digest()) and len(block))
    if type(hashlib.sha256()).__module__ != "_hashlib":
        return rate + ", Python's own: with OpenSSL's hashing it would be several times faster"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flag = re.search(r"^(?:flags|Features)\s*:.*?\b(sha_ni|sha2)\b", file.read(), re.M)
        processor = "accelerated by %s" % flag.group(1) if flag else "no help from the processor"
        return "%s, OpenSSL, %s" % (rate, processor)
    return rate + ", OpenSSL"


def _zlib() -> str:
    text = "".join(hashlib.sha256(b"%d" % i).hexdigest() for i in range(4096))
    packed = zlib.compress(text.encode())
    rate = _rate(lambda: len(zlib.decompress(packed)))
    return "%s, inflates %s" % (zlib.ZLIB_RUNTIME_VERSION, rate)


def _zstd(context: Context) -> str:
    if importlib.util.find_spec("compression") and importlib.util.find_spec("compression.zstd"):
        return "Python's own"
    return find_zstd(context.settings.environ.get("PATH", os.defpath)) or (
        "none: install zstd or use Python 3.14, or layers that need it stay unverified")


def _proxies(context: Context) -> str:
    proxies = context.access.proxies()
    urls = [(scheme, proxies.get(scheme)) for scheme in ("https", "http")]
    used = ", ".join("%s by %s" % (scheme, url) for scheme, url in urls if url)
    listed = " and what NO_PROXY lists: " + proxies.no_proxy if proxies.no_proxy else ""
    return "%s; but for loopback%s" % (used, listed) if used else "none"


def _mirrors(context: Context) -> str:
    hosts = context.access.service().hosts
    return "; ".join("%s: %s%s" % (name, ", ".join(host.mirrors), "" if host.fallback else ", and no other")
                     for name, host in hosts.items() if host.mirrors) or "none"


def _store(context: Context) -> str:
    """The locks and the free space at the store's root, or at the nearest directory above it."""
    try:
        root = folder = context.settings.store().root
    except StorageError as exc:  # no home directory
        return "none: %s" % exc
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            files.lock(file.fileno(), folder, True)
        return "%s, %s free, locks work" % (root, human_size(shutil.disk_usage(folder).free))
    except OSError as exc:
        return "%s: %s; choose another --root" % (root, exc.strerror)
