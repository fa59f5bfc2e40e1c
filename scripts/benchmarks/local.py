# SPDX-License-Identifier: Apache-2.0
"""Rows of what needs no registry to be fast: the start-up, unpack and load."""
import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import List, Tuple

from .bench import Bench
from .contest import BARE, Prepare, Prepared
from .processes import PYTHON, ROOT, Measured

NOTHING = [PYTHON, "-I", "-S", "-c", "pass"]
IMPORTS = [PYTHON, "-S", "-c", "import urllib.request, ssl, json, hashlib, threading"]


def start(peer: str, beside: List[str], *command: str, pyz: bool = False) -> Prepare:
    """minipull beside a bare interpreter; the word IMAGE stands for the name of what is stored."""
    expected = "minipull " if command == ("--version",) else "bench/small"

    @contextlib.contextmanager
    def prepare(bench: Bench) -> Prepared:
        source = bench.source("small")
        program = [PYTHON, "-S", "-m", "minipull"]
        if pyz:
            program = [PYTHON, "-S", str(bench.work / "minipull.pyz")]
            subprocess.run([PYTHON, str(ROOT / "scripts" / "pyz"), program[-1]], env=bench.env, check=True)
        words = [source.reference if word == "IMAGE" else word for word in command]
        root = [] if command == ("--version",) else ["--root", str(bench.store("small"))]
        args = [*program, *root, *words]

        def run() -> Measured:
            cost = bench.measure(args)
            if expected not in bench.log.read_text():
                raise RuntimeError("%s does not tell of %s" % (" ".join(args), expected))
            return cost
        yield "python -S %s %s, beside python %s" % (
            "minipull.pyz" if pyz else "-m minipull", " ".join(command), " ".join(beside[1:])), {
                "minipull": run, peer: lambda: bench.measure(beside)}
    return prepare


@contextlib.contextmanager
def unpack(bench: Bench) -> Prepared:
    source, store = bench.source("big"), bench.store("big")
    memory = Path("/dev/shm")
    free = shutil.disk_usage(memory).free if memory.is_dir() else 0
    in_memory = free > 1.2e6 * sum(bench.sizes.big)
    folder = (memory if in_memory else bench.work) / (bench.work.name + "-unpacked")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir()
        out = folder / "tree"
        trees: List[Tuple[int, int]] = []

        def unpacked(args: List[str]) -> Measured:
            cost = bench.measure(args)
            sizes = subprocess.run(["find", str(out), "-mindepth", "1", "-type", "f", "-printf", "%s\n"],
                                   stdout=subprocess.PIPE, check=True).stdout.split()
            trees.append((len(sizes), sum(map(int, sizes))))
            if trees[-1] != trees[0]:
                raise RuntimeError("%s: %d files of %d bytes, not %d of %d" % (args[0], *trees[-1], *trees[0]))
            shutil.rmtree(out)
            return cost
        blobs = source.layout / "blobs" / "sha256"
        lines = ["mkdir %s" % out] + [
            "pigz -dc %s | tar x -C %s" % (blobs / layer.descriptor["digest"].partition(":")[2], out)
            for layer in source.image.layers]
        yield "%s, %s" % (source, "in memory" if in_memory else "on disk: /dev/shm is too small"), {
            "minipull": lambda: unpacked(bench.minipull("unpack", source.reference, str(out), root=store)),
            "umoci": lambda: unpacked(["umoci", "raw", "unpack", "--image",
                                       "%s:%s" % (source.layout, source.name), str(out)]),
            "pigz | tar": lambda: unpacked(["sh", "-ec", "\n".join(lines)]),
            BARE: lambda: unpacked(bench.bare("unpack", str(source.layout), str(out)))}


@contextlib.contextmanager
def load(bench: Bench) -> Prepared:
    source = bench.source("archive")
    archive, root = bench.work / "archive.tar", bench.work / "loaded"
    bench.measure(bench.minipull("save", "-o", str(archive), source.reference, root=bench.store("archive")))

    def loaded() -> Measured:
        cost = bench.measure(bench.minipull("load", "-i", str(archive), root=root))
        bench.verify_layout(root, source)
        return cost
    yield str(source), {"minipull": loaded,
                        "docker": lambda: bench.docker(source, "load", "--quiet", "-i", str(archive))}
    archive.unlink()
