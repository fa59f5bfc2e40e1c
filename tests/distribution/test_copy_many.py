# SPDX-License-Identifier: Apache-2.0
"""Many images in one copy: blobs that siblings share, names that stay, runs that send nothing."""
import json
import os
from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import pytest

from minipull.cancel import Cancel
from minipull.distribution.copy import Copies
from minipull.distribution.job import Options, Outcome
from minipull.distribution.places import Place
from minipull.errors import Cancelled, Error, InvalidReference, NotFound
from minipull.progress import Output, discard
from minipull.registry.auth import Keyring
from minipull.registry.client import Client
from minipull.registry.endpoints import RegistryService
from minipull.store.store import Store
from minipull.xfer.upload import LayerUploadManager
from tests.kit import images
from tests.kit.copies import artifact, bare, entries
from tests.kit.images import Layout
from tests.kit.servers import Connection, ScriptedServer, Uploads, content, error, reply

pytestmark = pytest.mark.usefixtures("no_repeats")


class Pair(NamedTuple):
    """A registry that takes pushes to library/a and library/b, and a layout of a:1 and b:1 with two common layers."""
    server: ScriptedServer
    a: Uploads
    b: Uploads
    layout: Layout

    @property
    def place(self) -> str:
        return "docker://%s/" % self.server.host

    def digest(self, name: str) -> str:
        return str(self.layout.resolve(name)["digest"])

    def share(self) -> None:
        """Mount blobs from a into b."""
        self.b.elsewhere["library/a"] = self.a.blobs

    def mounts(self) -> List[str]:
        """Each blob that was to be mounted into b."""
        return [request.query["mount"] for request in self.server.seen("POST", "library/b/")
                if request.query.get("from") == "library/a"]

    def sent(self) -> List[str]:
        """Each blob that was sent, and each manifest that was put."""
        return [request.query.get("digest") or request.path for request in self.server.seen("PUT")]


@pytest.fixture
def pair(server: ScriptedServer, tmp_path: Path) -> Pair:
    layout = Layout(tmp_path / "layout")
    for number, name in enumerate(("a:1", "b:1")):
        layout.image([*images.specs(2, 9000), *images.specs(1, 3000, seed=10 + number)], name)
    return Pair(server, Uploads(server, "library/a"), Uploads(server, "library/b"), layout)


def copied(target: str, *sources: str, store: Any = None, progress: Output = discard, cancel: Any = None,
           **options: Any) -> List[Outcome]:
    outcomes: List[Outcome] = []
    with Client(RegistryService(), Keyring()) as client:
        Copies((client, client), store, Options(**options), LayerUploadManager(tick=0.001), progress,
               cancel or Cancel()).run([Place.parse(text) for text in sources], Place.parse(target), outcomes.append)
    return outcomes


def counts(outcome: Outcome) -> Tuple[int, int, int]:
    """Blobs that moved, were there, were mounted."""
    moved, there, mounted = outcome.sizes
    return len(moved), len(there), len(mounted)


# -- shared blobs ----------------------------------------------------------------


def test_a_blob_that_went_to_one_repository_is_mounted_into_the_next(pair: Pair) -> None:
    pair.share()
    planned = copied(pair.place, "oci:%s" % pair.layout.root, dry_run=True)
    assert pair.server.seen("POST|PUT|PATCH") == []
    done = copied(pair.place, "oci:%s" % pair.layout.root)
    assert [counts(outcome) for outcome in done] == [(4, 0, 0), (2, 0, 2)]
    assert [outcome.sizes for outcome in planned] == [outcome.sizes for outcome in done]
    assert [outcome.digest for outcome in planned] == [outcome.digest for outcome in done]
    sent = [text for text in pair.sent() if text.startswith("sha256:")]
    assert len(sent) == len(set(sent)) == 6
    # What was just sent to a sibling is mounted without a question.
    assert len(pair.mounts()) == 2
    assert not any(pair.server.seen("HEAD", "library/b/blobs/" + blob) for blob in pair.mounts())
    assert pair.b.manifests["1"] == pair.layout.read(pair.digest("b:1"))


def test_a_blob_that_served_two_tags_is_still_known_to_be_new(pair: Pair) -> None:
    pair.share()
    pair.layout.name(bare(pair.layout.resolve("a:1")), "a:2")
    names = ["oci:%s:%s" % (pair.layout.root, name) for name in ("a:1", "a:2", "b:1")]
    assert [counts(outcome) for outcome in copied(pair.place, *names)] == [(4, 0, 0), (0, 4, 0), (2, 0, 2)]
    assert not any(pair.server.seen("HEAD", "library/b/blobs/" + blob) for blob in pair.mounts())


def test_a_blob_that_a_sibling_had_before_is_mounted_only_where_it_is_missing(pair: Pair) -> None:
    pair.share()
    copied(pair.place, "oci:%s:a:1" % pair.layout.root)
    shared = [blob for blob in pair.a.blobs if blob in str(pair.layout.read(pair.digest("b:1")))]
    pair.b.blobs[shared[0]] = pair.a.blobs[shared[0]]
    for dry_run in (True, False):
        done = copied(pair.place, "oci:%s" % pair.layout.root, dry_run=dry_run)
        assert [counts(outcome) for outcome in done] == [(0, 4, 0), (2, 1, 1)]
    assert pair.mounts() == shared[1:] and len(shared) == 2


def test_what_a_registry_does_not_mount_is_sent(pair: Pair) -> None:
    done = copied(pair.place, "oci:%s" % pair.layout.root)
    assert [counts(outcome) for outcome in done] == [(4, 0, 0), (4, 0, 0)]
    assert len(pair.mounts()) == 2
    assert len(pair.server.seen("POST", "library/b/")) == 4, "the upload that was opened instead is used"
    assert set(pair.b.blobs) >= {blob for blob in pair.a.blobs if blob in str(pair.layout.read(pair.digest("b:1")))}


def test_a_mount_that_is_forbidden_costs_no_more_than_itself(pair: Pair) -> None:
    def forbidden(connection: Connection) -> None:
        mount = "mount" in connection.request.query
        (error(401, "UNAUTHORIZED") if mount else pair.b.start)(connection)

    pair.server.on("POST", "library/b/blobs/uploads/", forbidden)
    done = copied(pair.place, "oci:%s" % pair.layout.root)
    assert [counts(outcome) for outcome in done] == [(4, 0, 0), (4, 0, 0)]
    assert len(pair.mounts()) == 2 and "1" in pair.b.manifests


def test_a_second_tag_of_a_repository_asks_for_none_of_its_blobs_again(pair: Pair) -> None:
    first = pair.layout.resolve("a:1")
    pair.layout.name(bare(first), "a:2")
    done = copied(pair.place, "oci:%s:a:1" % pair.layout.root, "oci:%s:a:2" % pair.layout.root)
    assert [counts(outcome) for outcome in done] == [(4, 0, 0), (0, 4, 0)]
    heads = [request.path for request in pair.server.seen("HEAD", "/blobs/")]
    assert len(heads) == 4 + 2, "each once, and the first config of a job once more, for the connection"


def test_a_failed_image_lends_its_blobs_to_the_next(pair: Pair) -> None:
    pair.share()
    pair.server.on("PUT", "library/a/manifests/", error(403, "DENIED"))
    done = copied(pair.place, "oci:%s" % pair.layout.root, keep_going=True)
    assert [(outcome.result, counts(outcome)) for outcome in done] == [("failed", (4, 0, 0)), ("copied", (2, 0, 2))]
    assert "1" in pair.b.manifests


# -- --no-clobber ----------------------------------------------------------------


@pytest.mark.parametrize("head", ["digest", "no digest", "refused"])
def test_a_name_that_is_there_stays_and_the_source_is_not_asked(pair: Pair, foreign: ScriptedServer, head: str) -> None:
    old = Layout(pair.layout.root.parent / "old").image(images.specs(1))
    path = "^/v2/library/a/manifests/1$"
    if head == "digest":
        pair.server.on("HEAD", path, reply(200, headers={"Docker-Content-Digest": old.digest}))
    else:
        pair.server.on("HEAD", path, reply(200) if head == "no digest" else error(405, "UNSUPPORTED"))
        pair.server.on("GET", path, content(old.raw, images.OCI_MANIFEST))
    for dry_run in (True, False):
        [done] = copied("docker://%s/library/a:1" % pair.server.host, "docker://%s/a:1" % foreign.host,
                        no_clobber=True, dry_run=dry_run)
        assert (done.result, done.digest, counts(done)) == ("there", old.digest, (0, 0, 0))
    assert foreign.requests == [] and pair.server.seen("POST|PUT|PATCH") == []


@pytest.mark.parametrize("status, code", [(403, "DENIED"), (401, "UNAUTHORIZED"), (500, "UNKNOWN")])
def test_an_answer_that_is_not_clear_overwrites_nothing(pair: Pair, status: int, code: str) -> None:
    pair.server.on("HEAD|GET", "/manifests/1$", error(status, code))
    with pytest.raises(Error):
        copied(pair.place, "oci:%s" % pair.layout.root, no_clobber=True)
    assert pair.server.seen("POST|PUT|PATCH") == []


def test_a_name_that_is_missing_is_written(pair: Pair) -> None:
    pair.server.on("HEAD|GET", "/manifests/1$", error(404, "NAME_UNKNOWN"))
    assert [outcome.result for outcome in copied(pair.place, "oci:%s" % pair.layout.root, no_clobber=True)] == [
        "copied", "copied"]
    assert "1" in pair.a.manifests and "1" in pair.b.manifests


@pytest.mark.parametrize("kind", ["oci:%s", "store:"])
def test_in_a_layout_and_in_the_store_names_stay_too(pair: Pair, tmp_path: Path, kind: str) -> None:
    store, target = Store(str(tmp_path / "store")), kind % (tmp_path / "new") if "%" in kind else kind
    source = "oci:%s" % pair.layout.root
    before = copied(target, source + ":a:1", source + ":b:1", store=store)
    old = {outcome.target: outcome.digest for outcome in before}
    pair.layout.image(images.specs(1, seed=77), "a:1")
    pair.layout.image(images.specs(1, seed=78), "c:1")
    names = [source + ":" + name for name in ("a:1", "b:1", "c:1")]
    done = copied(target, *names, store=store, no_clobber=True)
    assert [outcome.result for outcome in done] == ["there", "there", "copied"]
    assert all(old.get(outcome.target, outcome.digest) == outcome.digest for outcome in done)
    done = copied(target, *names, store=store)
    assert done[0].digest == pair.digest("a:1") != old[done[0].target]


def test_an_image_without_a_name_clobbers_none(pair: Pair, tmp_path: Path) -> None:
    for name in ("a:1", "b:1", "b:1"):
        copied("oci:%s" % (tmp_path / "new"), "oci:%s:%s" % (pair.layout.root, name), no_clobber=True)
    assert [entry["digest"] for entry in entries(tmp_path / "new")] == [pair.digest("a:1"), pair.digest("b:1")]


def test_what_refers_to_an_image_does_not_follow_all_into_another_format(pair: Pair, tmp_path: Path) -> None:
    image = pair.layout.resolve("a:1")
    artifact(pair.layout, "sig", payload=b"signature", subject=bare(image))
    store, source = Store(str(tmp_path / "store")), "oci:%s" % pair.layout.root
    copied("store:", source + ":a:1", source + ":b:1", store=store, referrers=True)
    assert len(store.references.all()) == 3
    assert len(copied("oci:%s" % (tmp_path / "new"), "store:", store=store, format="docker")) == 2


# -- dry runs --------------------------------------------------------------------


def test_a_dry_run_looks_at_referrers_and_sends_none(pair: Pair, tmp_path: Path) -> None:
    image = pair.layout.resolve("a:1")
    artifact(pair.layout, "sig", payload=b"signature", subject=bare(image))
    source = "oci:%s:a:1" % pair.layout.root
    [planned] = copied(pair.place, source, dry_run=True, referrers=True)
    assert pair.server.seen("POST|PUT|PATCH") == []
    pair.server.on("GET", "/manifests/sha256-", error(404, "MANIFEST_UNKNOWN"))
    [done] = copied(pair.place, source, referrers=True)
    assert planned.sizes == done.sizes and counts(done) == (6, 0, 0)
    [planned] = copied("oci:%s" % (tmp_path / "new"), source, dry_run=True, referrers=True)
    assert counts(planned) == (6, 0, 0) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("foreign_too", [False, True])
def test_a_dry_run_counts_foreign_layers_as_the_run_does(pair: Pair, tmp_path: Path, foreign_too: bool) -> None:
    store, source = Store(str(tmp_path / "store")), "oci:%s:f:1" % pair.layout.root
    layer = {**pair.layout.blob(b"foreign", images.OCI_LAYER), "urls": ["https://x.com/layer"]}
    config = pair.layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    pair.layout.name(pair.layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "config": config, "layers": [layer]}),
        images.OCI_MANIFEST), "f:1")
    [planned] = copied("store:", source, store=store, dry_run=True, foreign=foreign_too)
    assert not (tmp_path / "store").exists()
    [done] = copied("store:", source, store=store, foreign=foreign_too)
    assert planned.sizes == done.sizes and counts(done) == (1 + foreign_too, 0, 0)


def test_a_dry_run_fails_where_the_source_lacks_a_blob(pair: Pair, tmp_path: Path) -> None:
    layer = json.loads(pair.layout.read(pair.digest("a:1")))["layers"][0]["digest"]
    pair.layout.path(layer).unlink()
    for target in (pair.place, "oci:%s" % (tmp_path / "new"), "oci-archive:%s" % (tmp_path / "new.tar")):
        with pytest.raises(Error, match="open blob %s" % layer):
            copied(target, "oci:%s:a:1" % pair.layout.root, dry_run=True)


def test_a_dry_run_within_one_registry_would_mount(pair: Pair) -> None:
    pair.share()
    copied(pair.place, "oci:%s:a:1" % pair.layout.root)
    pair.server.on("GET", "library/a/manifests/", content(pair.layout.read(pair.digest("a:1")), images.OCI_MANIFEST))
    places = "docker://%s/library/b:1" % pair.server.host, "docker://%s/library/a:1" % pair.server.host
    assert [counts(copied(*places, dry_run=dry_run)[0]) for dry_run in (True, False)] == [(0, 0, 4), (0, 0, 4)]


# -- order and ends --------------------------------------------------------------


def test_an_interrupt_ends_all_of_it(pair: Pair) -> None:
    cancel = Cancel()
    pair.server.on("PUT", "library/a/manifests/1", lambda connection: cancel.cancel())
    with pytest.raises(Cancelled):
        copied(pair.place, "oci:%s" % pair.layout.root, cancel=cancel, keep_going=True)
    assert pair.server.seen("", "library/b") == []


def test_an_image_named_twice_is_copied_once(pair: Pair, tmp_path: Path) -> None:
    source = "oci:%s:a:1" % pair.layout.root
    [done] = copied("oci:%s" % (tmp_path / "new"), source, source)
    assert done.target.tag == "a:1"
    [done] = copied("oci:%s:x" % (tmp_path / "new"), source, source)
    assert done.target.tag == "x"


def test_a_pinned_image_keeps_its_tag(pair: Pair, foreign: ScriptedServer, tmp_path: Path) -> None:
    foreign.serve(pair.layout.root, "a")
    pin = "docker://%s/a:7@%s" % (foreign.host, pair.digest("a:1"))
    store = Store(str(tmp_path / "store"))
    assert copied("store:", pin, store=store)[0].target.image == foreign.host + "/a:7"
    assert [str(image.name) for image in store.images()] == [foreign.host + "/a:7"]
    [done] = copied("store:", pin.replace(":7", ""), store=store)
    assert done.target.image == "%s/a@%s" % (foreign.host, pair.digest("a:1"))
    [done] = copied("store:", pin.replace(":7", ""), store=store, no_clobber=True)
    assert (done.result, done.digest) == ("there", pair.digest("a:1"))


def test_images_without_a_name_stay_so_in_files_and_are_refused_elsewhere(pair: Pair, tmp_path: Path) -> None:
    layout, source = "oci:%s" % (tmp_path / "bare"), "oci:%s:" % pair.layout.root
    for name in ("a:1", "b:1"):
        copied(layout, source + name)
    for target in ("oci:%s" % (tmp_path / "new"), "oci-archive:%s" % (tmp_path / "tar")):
        done = copied(target, layout, source + "a:1")
        assert [outcome.digest for outcome in done] == [pair.digest(name) for name in ("a:1", "b:1", "a:1")]
    assert [entry.get("annotations") for entry in entries(tmp_path / "new")] == [None, None, {images.NAME: "a:1"}]
    with pytest.raises(InvalidReference, match="image without a name: repository name must have"):
        copied(pair.place, layout, source + "a:1")
    assert pair.server.requests == []


def test_many_images_of_a_store_hold_one_lock(pair: Pair, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    copied("store:", "oci:%s" % pair.layout.root, store=store)
    image = store.images()[0]
    names = ["x:%d" % number for number in range(30)]
    for name in names:
        store.tag(name, image)
    open_files: List[int] = []

    def count(outcome: Outcome) -> None:
        open_files.append(len(os.listdir("/proc/self/fd")))
    with Client(RegistryService(), Keyring()) as client:
        Copies((client, client), store, Options(), LayerUploadManager(tick=0.001), discard, Cancel()).run(
            [Place.parse("store:" + name) for name in names], Place.parse("oci:%s" % (tmp_path / "new")), count)
    assert len(open_files) == 30 and max(open_files) - open_files[0] < 5


def test_the_store_is_copied_by_its_names_alone(pair: Pair, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    copied("store:", "oci:%s" % pair.layout.root, store=store)
    copied("oci:%s" % store.root, "oci:%s:a:1" % pair.layout.root)  # another tool's, without a name
    done = copied("oci:%s" % (tmp_path / "new"), "store:", store=store)
    assert [outcome.target.image for outcome in done] == ["docker.io/library/a:1", "docker.io/library/b:1"]
    with pytest.raises(NotFound, match="^copy store: to new: store: has no images$"):
        copied("oci:new", "store:", store=Store(str(tmp_path / "none")))
