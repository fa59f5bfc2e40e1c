# SPDX-License-Identifier: Apache-2.0
"""Options of scripts/bench, and the rows that they ask for."""
import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

from .bench import FULL, PROGRAMS, QUICK, Bench
from .contest import MEMORY, Report, run_row
from .processes import PYTHON
from .rows import ROWS


def machine(bench: Bench) -> Dict[str, Any]:
    """Processor, system and peers that a ratio holds for."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    peers = {}
    for name in sorted({name for programs in PROGRAMS.values() for name in programs}):
        path = bench.program(name)
        if path is not None:
            flag = "version" if name == "crane" else "--version"
            told = subprocess.run([path, flag], env=bench.env, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
            peers[name] = (re.findall(r"\d+\.\d[^\s,]*", told.decode("utf-8", "replace")) or ["unknown"])[0]
    version = subprocess.run([PYTHON, "--version"], stdout=subprocess.PIPE, check=True).stdout.decode().split()[1]
    return {"processor": model[0] if model else platform.machine(), "processors": os.cpu_count(),
            "system": "%s %s" % (platform.system(), platform.release()), "load": os.getloadavg()[0],
            "python": "%s (%s)" % (version, PYTHON), "peers": peers}


def table() -> List[Dict[str, Any]]:
    return [{"row": row.name, "title": row.title, "at_most": row.targets} for row in ROWS]


def parse(arguments: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure minipull beside its peers: speed and memory of whole processes.",
        epilog="Exits with 1 if a target is missed, unless --quick: the targets are those of the full sizes.")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], metavar="ROW",
                        help="this row; may be repeated (see --list)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer runs: under two minutes")
    parser.add_argument("--json", action="store_true", help="a document on stdout; lines go to stderr")
    parser.add_argument("--list", action="store_true", help="only list the rows and their targets")
    parser.add_argument("--runs", type=int, help="runs of each contestant in every row")
    parser.add_argument("--dir", help="where 20 GB are free")
    parser.add_argument("--skopeo", metavar="PATH", help="another skopeo than the one on the path")
    parser.add_argument("--crane", metavar="PATH", help="crane, a contestant only if named")
    flags = parser.parse_args(arguments)
    for name in ("skopeo", "crane"):
        path = getattr(flags, name)
        if path is not None and not os.access(path, os.X_OK):
            parser.error("--%s: %s is no program" % (name, path))
    return flags


def show(document: Any) -> None:
    json.dump(document, sys.stdout, indent=1)
    print()


def main(arguments: List[str]) -> int:
    flags = parse(arguments)
    if flags.list:
        if flags.json:
            show(table())
            return 0
        for row in ROWS:
            print("%-16s %s%s" % (row.name, row.title, "".join(
                "; / %s at most %g" % target for target in row.targets.items())))
        print("%-16s of minipull in any row, at most %g MB" % ("peak memory", MEMORY))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # clean up as well
    report, start = Report(quiet=flags.json), time.monotonic()
    sizes = QUICK if flags.quick else FULL
    if flags.runs:
        sizes = sizes._replace(**{name: flags.runs for name in sizes._fields if name.endswith("runs")})
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="minipull-bench-", dir=flags.dir))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        given = {"skopeo": flags.skopeo, "crane": flags.crane}
        named = {name: os.path.abspath(path) for name, path in given.items() if path is not None}
        bench = Bench(work, stack, sizes, named)
        about = machine(bench)
        report.line("%(processor)s, %(processors)s processors, %(system)s, "
                    "python %(python)s, load %(load).1f" % about)
        report.line(", ".join("%s %s" % peer for peer in about["peers"].items()))
        if flags.quick:
            report.line("sizes are small: the targets are those of the full sizes")
        if about["load"] > 0.5:
            report.line("the machine is busy: believe the ratios only")
        for row in ROWS:
            if flags.only is None or row.name in flags.only:
                run_row(row, bench, report, getattr(sizes, row.runs))
        memory = report.summary()
    seconds = time.monotonic() - start
    report.line("%.0f s" % seconds)
    if flags.json:
        show({"machine": about, "quick": flags.quick, "seconds": seconds, "rows": report.rows,
              "skipped": report.skipped, "peak_memory": memory})
    return 0 if report.kept or flags.quick else 1
