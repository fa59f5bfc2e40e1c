# SPDX-License-Identifier: Apache-2.0
"""The table: rows in the order in which they run, with the share of a peer's time that is the target."""
from typing import List

from . import local, serving, transfers
from .contest import Row

ROWS: List[Row] = [
    Row("version", "start-up of --version", local.start("python", local.NOTHING, "--version"),
        {"python": 2.0}, "short_runs"),
    Row("images", "start-up of images", local.start("python", local.NOTHING, "images"),
        {"python": 5.0}, "short_runs"),
    Row("pyz-images", "start-up of the one-file program",
        local.start("python", local.NOTHING, "images", pyz=True), {"python": 12.0}, "short_runs"),
    Row("pull-again", "pull of what is there",
        local.start("python's imports", local.IMPORTS, "pull", "IMAGE"),
        {"python's imports": 1.4}, "short_runs"),
    Row("copy-big", "copy large layers to a layout", transfers.copy("big"), {"skopeo": 0.47}),
    Row("copy-tiny", "copy 80 tiny layers to a layout", transfers.copy("tiny"), {"skopeo": 0.45}),
    Row("copy-small", "copy a small image to a layout", transfers.copy("small"), {"skopeo": 0.7}),
    Row("push-big", "push large layers", transfers.push("big"), {"skopeo": 0.55}),
    Row("push-tiny", "push 80 tiny layers", transfers.push("tiny"), {"skopeo": 0.25}),
    Row("index", "pull an index of small manifests", transfers.index, {"--jobs 1": 0.25}, "slow_runs"),
    Row("far-tiny", "copy 80 tiny layers from far away", transfers.far, {"skopeo": 0.6}, "slow_runs"),
    Row("wire", "copy over a slow wire", transfers.wire, {"the link": 1.03}, "long_runs"),
    Row("unpack", "unpack from the store", local.unpack, {"umoci": 0.42, "pigz | tar": 0.75}, "slow_runs"),
    Row("load", "load an archive, verified to DiffIDs", local.load, {"docker": 0.25}, "slow_runs"),
    Row("pull", "pull, verified to DiffIDs", transfers.pull, {"docker": 0.13}, "slow_runs"),
    Row("growth", "pull one layer, and one of 20 times the size", transfers.growth, {}, "long_runs",
        growth="a twentieth"),
    Row("serve-blob", "serve a large blob", serving.blob, {"docker-registry": 0.8}),
    Row("serve-manifests", "serve a manifest to many", serving.manifests("GET", 16), {"docker-registry": 0.9}),
    Row("serve-heads", "serve HEADs of a manifest to one", serving.manifests("HEAD", 1)),
    Row("serve-patch", "take a blob by PATCH", serving.patch),
    Row("serve-pushes", "take 80 tiny layers of skopeo copy", serving.pushes,
        needs=("docker-registry", "skopeo")),
    Row("serve-crowd", "1,000 requests of many that push and pull", serving.crowd, runs="long_runs"),
]
