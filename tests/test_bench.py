# SPDX-License-Identifier: Apache-2.0
"""scripts/bench has a row for every figure that is promised, and one document of what it measured."""
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import pytest

import minipull
from tests.kit import ROOT, images
from tests.kit.processes import DockerRegistry, Finished, peer, run

#: The most that minipull's time may be of a peer's, by row.
TARGETS: Dict[str, Dict[str, float]] = {
    "version": {"python": 2.0}, "images": {"python": 5.0}, "pyz-images": {"python": 12.0},
    "pull-again": {"python's imports": 1.4},
    "copy-big": {"skopeo": 0.47}, "copy-tiny": {"skopeo": 0.45}, "copy-small": {"skopeo": 0.7},
    "push-big": {"skopeo": 0.55}, "push-tiny": {"skopeo": 0.25},
    "index": {"--jobs 1": 0.25}, "far-tiny": {"skopeo": 0.6}, "wire": {"the link": 1.03},
    "unpack": {"umoci": 0.42, "pigz | tar": 0.75}, "load": {"docker": 0.25}, "pull": {"docker": 0.13},
    "serve-blob": {"docker-registry": 0.8}, "serve-manifests": {"docker-registry": 0.9}}
UNJUDGED = {"growth", "serve-heads", "serve-patch", "serve-pushes", "serve-crowd"}


def bench(*arguments: str, check: bool = True) -> Finished:
    env = dict(os.environ, COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="")
    return run([sys.executable, ROOT / "scripts" / "bench", *arguments], env, check=check)


def test_every_promised_figure_has_a_row() -> None:
    rows = json.loads(bench("--list", "--json").out)
    assert {row["row"]: row["at_most"] for row in rows if row["at_most"]} == TARGETS
    assert {row["row"] for row in rows if not row["at_most"]} == UNJUDGED
    assert re.findall(r"^[\w-]+", bench("--list").out, re.M) == [row["row"] for row in rows] + ["peak"]


@pytest.mark.parametrize("arguments, complaint", [
    (["--only", "nothing"], "invalid choice: 'nothing'"),
    (["--skopeo", "/no/such/program"], "--skopeo: /no/such/program is no program"),
    (["--crane", os.devnull], "--crane: %s is no program" % os.devnull),
    (["--runs", "few"], "invalid int value: 'few'")])
def test_a_wrong_option_is_told_before_anything_is_measured(arguments: List[str], complaint: str) -> None:
    done = bench(*arguments, check=False)
    assert done.code == 2 and complaint in done.err


@pytest.mark.parametrize("row, peers", [
    ("copy-small", ["docker-registry", "skopeo"]), ("push-tiny", ["docker-registry", "skopeo"]),
    ("index", ["docker-registry"]), ("unpack", ["docker-registry", "umoci"])])
def test_the_limit_of_a_bare_loop_stands_beside_the_target(row: str, peers: List[str]) -> None:
    for program in peers:
        peer(program)
    [document] = json.loads(bench("--quick", "--json", "--runs", "1", "--only", row).out)["rows"]
    seconds = {name: cost["seconds"] for name, cost in document["contestants"].items()}
    limits = {ratio["to"]: ratio["limit"] for ratio in document["ratios"] if "at_most" in ratio}
    assert limits == {name: seconds["a bare loop"] / seconds[name] for name in TARGETS[row] if name in seconds}
    assert limits


def bare(*arguments: Union[str, Path], check: bool = True) -> Finished:
    return run([sys.executable, "-I", ROOT / "scripts" / "benchmarks" / "bare.py", *arguments], check=check)


def tree(root: Path) -> Dict[str, Tuple[Any, ...]]:
    """What stands in a directory: modes, times, link targets and bytes by path."""
    return {str(path.relative_to(root)): (
        path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_nlink * path.is_file(),
        os.readlink(str(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b"")
        for path in root.glob("**/*")}


def test_a_bare_loop_unpacks_what_minipull_does(tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    layout.image(images.specs(3, size=300000), "localhost/app:1")
    bare("unpack", layout.root, tmp_path / "bare")
    minipull.unpack("localhost/app:1", minipull.Store(str(layout.root)), str(tmp_path / "ours"))
    assert tree(tmp_path / "bare") == tree(tmp_path / "ours") != {}


@pytest.mark.parametrize("damage", ["missing", "short", "trailing", "other", "fewer"])
def test_a_bare_loop_ends_at_a_damaged_layer(tmp_path: Path, damage: str) -> None:
    layout = images.Layout(tmp_path / "layout")
    specs = images.specs(2, size=300000)
    diff_ids = [layout.layer(spec).diff_id for spec in specs]
    claimed = {"other": diff_ids[:1] * 2, "fewer": diff_ids[:1]}.get(damage, diff_ids)
    image = layout.image(specs, "app:1", config={"rootfs": {"type": "layers", "diff_ids": claimed}})
    path = layout.path(image.layers[1].descriptor["digest"])
    if damage == "missing":
        path.unlink()
    elif damage in ("short", "trailing"):
        path.write_bytes(path.read_bytes()[:-8] if damage == "short" else path.read_bytes() + b"x")
    done = bare("unpack", layout.root, tmp_path / "tree", check=False)
    assert done.code == 1 and "Error: " in done.err


@pytest.mark.parametrize("wrong", [False, True])
def test_a_bare_pull_verifies_diff_ids_and_a_bare_copy_leaves_them(
        registry: DockerRegistry, tmp_path: Path, wrong: bool) -> None:
    layout = images.Layout(tmp_path / "layout")
    specs = images.specs(2, size=30000)
    diff_ids = [layout.layer(spec).diff_id for spec in specs]
    diff_ids = diff_ids[::-1] if wrong else diff_ids
    child = layout.image(specs, config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    layout.index([child.descriptor], "app")
    images.push_layout_http(layout, "app", "%s/bare/wrong-%s:1" % (registry.host, str(wrong).lower()))
    place = registry.host, "bare/wrong-%s" % str(wrong).lower()
    bare("copy", *place, tmp_path / "copied")
    for path in layout.root.glob("blobs/sha256/*"):
        assert (tmp_path / "copied" / path.relative_to(layout.root)).read_bytes() == path.read_bytes()
    done = bare("pull", *place, tmp_path / "pulled", check=False)
    assert (done.code, "DiffIDs" in done.err) == (1 if wrong else 0, wrong)


def test_a_run_gives_one_document_and_leaves_nothing(tmp_path: Path) -> None:
    peer("docker-registry")
    done = bench("--quick", "--json", "--runs", "1", "--only", "version", "--only", "serve-heads",
                 "--dir", str(tmp_path))
    document = json.loads(done.out)
    assert [row["row"] for row in document["rows"]] == ["version", "serve-heads"]
    for row, other in zip(document["rows"], ("python", "docker-registry")):
        assert list(row["contestants"]) == ["minipull", other] and row["ratios"][0]["ratio"] > 0
        assert all(len(cost["runs"]) == 1 and cost["memory"] > 1 for cost in row["contestants"].values())
    assert os.listdir(tmp_path) == []
