# SPDX-License-Identifier: Apache-2.0
"""Rows of copy, push and pull: on loopback, and through the relay."""
import contextlib
import shutil
from pathlib import Path
from typing import Callable, List

from .bench import Bench, Source
from .contest import BARE, Contestants, Prepare, Prepared
from .processes import Measured

FAR = (0.05, 20e6)  # seconds a round trip, bytes a second
FAR_AWAY = "%g ms a round trip, %g MB/s" % (FAR[0] * 1000, FAR[1] / 1e6)
NEAR = (0.005, 0.0)


def _into_layout(bench: Bench, source: Source, args: List[str], root: Path) -> Measured:
    cost = bench.measure(args)
    bench.verify_layout(root, source)
    return cost


def _copies(bench: Bench, source: Source, host: str) -> Contestants:
    """All that copy an image from ``host`` into a layout, and curl of its blobs with sha256sum after it."""
    root = bench.work / "copied"
    reference, oci = source.at(host), "oci:%s:1" % root
    return {
        "minipull": lambda: _into_layout(
            bench, source, bench.minipull("copy", "docker://" + reference, oci), root),
        "skopeo": lambda: _into_layout(
            bench, source, bench.skopeo("--src-tls-verify=false", "docker://" + reference, oci), root),
        "crane": lambda: _into_layout(
            bench, source, [bench.program("crane") or "", "pull", "--format=oci", reference, str(root)], root),
        BARE: lambda: _into_layout(
            bench, source, bench.bare("copy", host, "bench/" + source.name, str(root)), root),
        "curl": lambda: _curl(bench, source, host)}


def _curl(bench: Bench, source: Source, host: str) -> Measured:
    """curl --parallel of all blobs; sha256sum then verifies them, and its time counts."""
    folder = bench.work / "curled"
    folder.mkdir()
    names = sorted({blob["digest"].partition(":")[2] for blob in source.blobs})
    url = "http://%s/v2/bench/%s/blobs/sha256:" % (host, source.name)
    (folder / "urls").write_text("".join(
        'url = "%s%s"\noutput = "%s"\n' % (url, name, folder / name) for name in names))
    (folder / "sums").write_text("".join("%s  %s\n" % (name, folder / name) for name in names))
    cost = bench.measure(["sh", "-c", "curl -sSf --parallel --parallel-max 6 -K %s && sha256sum --quiet -c %s"
                          % (folder / "urls", folder / "sums")])
    shutil.rmtree(folder)
    return cost


def copy(name: str) -> Prepare:
    @contextlib.contextmanager
    def prepare(bench: Bench) -> Prepared:
        source = bench.source(name)
        yield str(source), _copies(bench, source, source.host)
    return prepare


def push(name: str) -> Prepare:
    @contextlib.contextmanager
    def prepare(bench: Bench) -> Prepared:
        source = bench.source(name)
        store = bench.store(name)

        def pushed(command: Callable[[str], List[str]]) -> Measured:
            with bench.empty_registry() as host:
                cost = bench.measure(command(host + "/bench/pushed:1"))
                bench.verify_pushed(host, source)
            return cost
        yield str(source), {
            "minipull": lambda: pushed(lambda to: bench.minipull("push", source.reference, to, root=store)),
            "skopeo": lambda: pushed(lambda to: bench.skopeo(
                "--dest-tls-verify=false", "oci:%s:%s" % (source.layout, name), "docker://" + to)),
            "crane": lambda: pushed(lambda to: [bench.program("crane") or "", "push", str(source.layout), to]),
            BARE: lambda: pushed(lambda to: bench.bare(
                "push", to.partition("/")[0], "bench/pushed", str(source.layout)))}
    return prepare


def _pull(bench: Bench, source: Source, reference: str, *flags: str) -> Measured:
    root = bench.work / "pulled"
    return _into_layout(bench, source, bench.minipull("pull", *flags, reference, root=root), root)


def _bare_pull(bench: Bench, source: Source, host: str) -> Measured:
    root = bench.work / "pulled"
    return _into_layout(bench, source, bench.bare("pull", host, "bench/" + source.name, str(root)), root)


@contextlib.contextmanager
def pull(bench: Bench) -> Prepared:
    source = bench.source(bench.sizes.slow)
    yield str(source), {
        "minipull": lambda: _pull(bench, source, source.reference),
        "docker": lambda: bench.docker(source, "pull", "--quiet", source.reference),
        BARE: lambda: _bare_pull(bench, source, source.host)}


@contextlib.contextmanager
def growth(bench: Bench) -> Prepared:
    huge, small = bench.source("huge"), bench.source("twentieth")
    yield str(huge), {"minipull": lambda: _pull(bench, huge, huge.reference),
                      "a twentieth": lambda: _pull(bench, small, small.reference)}


@contextlib.contextmanager
def index(bench: Bench) -> Prepared:
    source = bench.source("index")
    with bench.relay(*NEAR) as host:
        yield "%d manifests, %g ms a round trip" % (bench.sizes.children, NEAR[0] * 1000), {
            "minipull": lambda: _pull(bench, source, source.at(host), "--all-platforms"),
            "--jobs 1": lambda: _pull(bench, source, source.at(host), "--all-platforms", "--jobs", "1"),
            BARE: lambda: _bare_pull(bench, source, host)}


@contextlib.contextmanager
def far(bench: Bench) -> Prepared:
    source = bench.source("tiny")
    with bench.relay(*FAR) as host:
        yield "%s, %s" % (source, FAR_AWAY), _copies(bench, source, host)


@contextlib.contextmanager
def wire(bench: Bench) -> Prepared:
    """The link itself is reckoned: bytes by rate.  curl's share says that the relay keeps that rate."""
    source = bench.source(bench.sizes.slow)
    with bench.relay(*FAR) as host:
        contestants = _copies(bench, source, host)
        yield "%s, %s" % (source, FAR_AWAY), {
            "minipull": contestants["minipull"], "the link": lambda: Measured(source.size / FAR[1], 0.0, 0.0),
            "curl": contestants["curl"]}
