# SPDX-License-Identifier: Apache-2.0
"""One row: contestants in turn, the medians of their times, and whether minipull keeps the targets."""
import contextlib
import statistics
import sys
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .bench import Bench
from .processes import Measured

#: Contestants of one row by name, minipull first; each run is verified by who runs it.
Contestants = Dict[str, Callable[[], Measured]]
#: Makes ready for a row and cleans up after it: the sizes in words, and who contends.
Prepare = Callable[[Bench], ContextManager[Tuple[str, Contestants]]]
#: What such a context manager is written as.
Prepared = Iterator[Tuple[str, Contestants]]
BARE = "a bare loop"  # the contestant that does no more than it must: bare.py
MEMORY, GROWTH = 48.0, 4.0  # MB at most: of any row, and more for what is twenty times as large


class Row(NamedTuple):
    name: str
    title: str
    prepare: Prepare
    targets: Dict[str, float] = {}  # minipull's time as a share of theirs, at most
    runs: str = "runs"  # the field of Sizes that says how many
    needs: Tuple[str, ...] = ("docker-registry",)
    growth: Optional[str] = None  # the contestant that says how much memory a smaller task takes


class Report:
    """What was measured: lines for a reader as it comes, a document at the end."""

    def __init__(self, quiet: bool) -> None:
        self._output = sys.stderr if quiet else sys.stdout
        self.rows: List[Dict[str, Any]] = []
        self.skipped: List[Dict[str, str]] = []
        self.kept = True

    def line(self, text: str) -> None:
        print(text, file=self._output, flush=True)

    def skip(self, row: Row, contestant: Optional[str], reason: str) -> None:
        """A row, or one contestant in it, that can't be measured here."""
        self.skipped.append({"row": row.name, "reason": reason})
        if contestant:
            self.skipped[-1]["contestant"] = contestant
        self.line("%s: skipped%s: %s" % (row.name, ", no " + contestant if contestant else "", reason))

    def verdict(self, text: str, value: float, at_most: float) -> bool:
        kept = value <= at_most
        self.kept = self.kept and kept
        self.line("  %-44s %7.2f, at most %g: %s" % (text, value, at_most, "kept" if kept else "MISSED"))
        return kept

    def summary(self) -> Dict[str, Any]:
        """The peak memory of all rows."""
        peaks = {row["row"]: row["contestants"]["minipull"]["memory"] for row in self.rows}
        if not peaks:
            return {}
        name = max(peaks, key=lambda row: peaks[row])
        kept = self.verdict("peak memory of any row (%s), MB" % name, peaks[name], MEMORY)
        return {"row": name, "memory": peaks[name], "at_most": MEMORY, "kept": kept}


def run_row(row: Row, bench: Bench, report: Report, runs: int) -> None:
    """Measure a row, or say why it is skipped."""
    lacking = {peer: bench.lacks(peer) for peer in (*row.needs, *row.targets)}
    reason = next((lacking[peer] for peer in row.needs if lacking[peer]), "")
    if row.targets and all(lacking[peer] for peer in row.targets):
        reason = reason or "; ".join(lacking[peer] for peer in row.targets)
    if reason:
        report.skip(row, None, reason)
        return
    with contextlib.ExitStack() as stack:
        size, contestants = stack.enter_context(row.prepare(bench))
        for name in list(contestants):
            if bench.lacks(name):
                del contestants[name]
                if name != "crane":  # nobody expects it unless it is named
                    report.skip(row, name, bench.lacks(name))
        report.line("%s: %s: %s" % (row.name, row.title, size))
        costs: Dict[str, List[Measured]] = {name: [] for name in contestants}
        for _ in range(runs):
            for name, run in contestants.items():
                costs[name].append(run())
    report.rows.append(_judged(row, size, costs, report))


def _judged(row: Row, size: str, costs: Dict[str, List[Measured]], report: Report) -> Dict[str, Any]:
    document: Dict[str, Any] = {
        "row": row.name, "title": row.title, "size": size, "contestants": {}, "ratios": []}
    medians: Dict[str, float] = {}
    for name, runs in costs.items():
        medians[name] = statistics.median(cost.seconds for cost in runs)
        cpu, memory = statistics.median(cost.cpu for cost in runs), max(cost.memory for cost in runs)
        document["contestants"][name] = {"seconds": medians[name], "runs": [cost.seconds for cost in runs],
                                         "cpu": cpu, "memory": memory}
        shown = sorted(cost.seconds for cost in runs)
        report.line("  %-16s %8.3f s  (%.3f to %.3f)  cpu %7.3f s  peak %6.1f MB" % (
            name, medians[name], shown[0], shown[-1], cpu, memory))
    for name in list(medians)[1:] if row.growth is None else []:
        ratio, at_most = medians["minipull"] / medians[name], row.targets.get(name)
        entry: Dict[str, Any] = {"to": name, "ratio": ratio}
        if at_most is None:
            report.line("  %-44s %7.2f" % ("minipull / " + name, ratio))
        else:
            entry.update(at_most=at_most, kept=report.verdict("minipull / " + name, ratio, at_most))
        if BARE in medians and at_most is not None:
            entry["limit"] = medians[BARE] / medians[name]
            report.line("  %-44s %7.2f" % ("%s / %s" % (BARE, name), entry["limit"]))
        document["ratios"].append(entry)
    if row.growth is not None:
        peaks = {name: contestant["memory"] for name, contestant in document["contestants"].items()}
        growth = peaks["minipull"] - peaks[row.growth]
        document["growth"] = {"memory": growth, "at_most": GROWTH,
                              "kept": report.verdict("more memory than %s, MB" % row.growth, growth, GROWTH)}
    return document
