# SPDX-License-Identifier: Apache-2.0
"""Signatures and recompressed layers on their way between real registries, and what other tools say of them."""
import gzip
import json
from pathlib import Path
from typing import Any, Dict, List, Set

import pytest

from tests.kit import images
from tests.kit.images import Layout
from tests.kit.processes import Docker, DockerRegistry, Minipull, Tool
from tests.kit.signed import Signed, make_signed

REPOSITORY = "carried/app"


@pytest.fixture
def signed(registry: DockerRegistry, tmp_path: Path) -> Signed:
    """At a registry without a list of referrers."""
    signed = make_signed(tmp_path / "layout")
    layout = signed.layout
    for tag, descriptor in signed.cosign.items():
        layout.name(descriptor, tag)
    for subject, entries in signed.listed.items():
        layout.index(entries, subject.replace(":", "-"))
    layout.name(signed.top, "1")
    for tag in [*signed.cosign, *(subject.replace(":", "-") for subject in signed.listed), "1"]:
        images.push_layout_http(layout, tag, "%s/%s:%s" % (registry.host, REPOSITORY, tag))
    return signed


def test_signatures_cross_an_archive_between_registries(
        signed: Signed, registry: DockerRegistry, tmp_path: Path, home: Path, run_minipull: Minipull, serve: Any,
        skopeo: Tool, podman: Tool, dockerd: Docker) -> None:
    def call(*args: Any) -> str:
        done = run_minipull(*args)
        assert done.code == 0, done
        return done.out

    def tags(host: str, repository: str = REPOSITORY) -> Set[str]:
        listed = json.loads(skopeo("list-tags", "--tls-verify=false", "docker://%s/%s" % (host, repository)).out)
        return set(listed["Tags"])

    def referrers(server: Any, repository: str = REPOSITORY) -> Dict[str, List[Any]]:
        return {subject: json.loads(server.request("GET", "/v2/%s/referrers/%s" % (repository, subject))[2])["manifests"]
                for subject in signed.listed}
    source = "docker://%s/%s:1" % (registry.host, REPOSITORY)
    archive, name = "oci-archive:copied.tar", "registry.example.com/app:1"
    call("copy", "--referrers", source, "%s:%s" % (archive, name))
    listing = serve(tmp_path / "listing", "--writable")
    for place in ("docker://%s/%s:1" % (listing.host, REPOSITORY), "docker://%s/again/app:1" % registry.host):
        call("copy", "--referrers", archive, place)
    assert tags(listing.host) == {"1", *signed.cosign} and referrers(listing) == signed.listed
    assert tags(registry.host, "again/app") == tags(registry.host)
    # pull, save, load and copy; and back from the list
    for number, host in enumerate((registry.host, listing.host)):
        image = "%s/%s:1" % (host, REPOSITORY)
        near, far = ["--root", "near-%d" % number], ["--root", "far-%d" % number]
        call(*near, "pull", "--all-platforms", "--referrers", image)
        call(*near, "save", "--referrers", "-o", "saved.tar", image)
        call(*far, "load", "-i", "saved.tar")
        call(*far, "copy", "--referrers", "store:" + image, "docker://%s/far-%d:1" % (listing.host, number))
        assert tags(listing.host, "far-%d" % number) == {"1", *signed.cosign}
        assert referrers(listing, "far-%d" % number) == signed.listed
        served = serve(home / ("far-%d" % number), "--as", host)
        assert tags(served.host) == {"1", *signed.cosign} and referrers(served) == signed.listed
    # Others see the image alone.
    assert dockerd("load", "-i", home / "copied.tar").out == "Loaded image: %s\n" % name
    assert podman("load", "-i", home / "copied.tar").out.split() == ["Loaded", "image:", name]
    raw = skopeo("inspect", "--raw", "%s:%s" % (archive, name)).raw
    assert images.digest_of(raw) == signed.top["digest"]
    assert json.loads(skopeo("inspect", "docker-archive:copied.tar").out)["Os"] == "linux"


def test_zstd_becomes_gzip_that_every_tool_reads(
        registry: DockerRegistry, tmp_path: Path, home: Path, run_minipull: Minipull, skopeo: Tool, podman: Tool,
        dockerd: Docker) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image([*images.specs(2, 30000, compression="zstd", seed=90), *images.specs(1, 9000, seed=92)], "1")
    images.push_layout_http(layout, "1", "%s/carried/zstd:1" % registry.host)
    place = "docker://%s/carried/zstd:" % registry.host
    printed = {run_minipull("copy", "-q", "--compress", "gzip", place + "1", place + tag).out
               for tag in ("gzip", "again")}
    raw = skopeo("inspect", "--raw", "--tls-verify=false", place + "gzip").raw
    assert printed == {images.digest_of(raw) + "\n"}
    document = json.loads(raw)
    assert document["config"] == image.config
    for layer, diff_id in zip(document["layers"], image.diff_ids):
        data = registry.request("GET", "/v2/carried/zstd/blobs/" + layer["digest"])[2]
        assert images.digest_of(gzip.decompress(data)) == diff_id
    skopeo("copy", "--src-tls-verify=false", place + "gzip", "docker-archive:%s" % (home / "z.tar"))
    assert dockerd("pull", "-q", place[9:] + "gzip").out
    assert podman("pull", "-q", "--tls-verify=false", place + "gzip").out.strip() == image.config["digest"][7:]
