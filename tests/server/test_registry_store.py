# SPDX-License-Identifier: Apache-2.0
"""The registry and its store: deletes, other processes at work on it, trouble, and serve()."""
import concurrent.futures
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import List, Tuple, cast

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.errors import InvalidReference, NetworkError, StorageError
from minipull.server.message import Body, Request
from minipull.server.registry import Registry, serve
from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit.images import OCI_MANIFEST, digest_of, multi_platform, push_layout_http, single
from tests.kit.processes import ask, free_port, wait_until
from tests.kit.site import ABSENT, DATA, OCTETS, Site, Start, append, children, finish, half_sent, path_of
from tests.kit.stores import problems

pytestmark = pytest.mark.usefixtures("quick_stop")


# -- deletes -------------------------------------------------------------------


def test_a_deleted_tag_leaves_the_rest(site: Site) -> None:
    raw = site.push()
    assert site.put(raw, "2").status == site.put(raw, "1", "other").status == 201
    assert site.ask("DELETE", "/v2/app/manifests/1").status == 202
    assert site.ask("DELETE", "/v2/app/manifests/1").outcome == (404, "MANIFEST_UNKNOWN")
    assert site.ask("DELETE", "/v2/nothing/manifests/1").outcome == (404, "MANIFEST_UNKNOWN")
    assert site.names() == ["localhost/app:2", "localhost/other:1"]
    assert site.ask("GET", "/v2/app/manifests/" + digest_of(raw)).body == raw


def test_a_deleted_digest_takes_its_tags_and_its_bytes_at_once(site: Site) -> None:
    raw = site.push()
    assert site.put(raw, digest_of(raw), query="?tag=2").status == 201
    kept = site.push("two", "3")
    target = "/v2/app/manifests/" + digest_of(raw)
    assert site.ask("DELETE", target).status == 202
    assert [site.ask("HEAD", path).status for path in (target, "/v2/app/manifests/1")] == [404, 404]
    assert not path_of(site, digest_of(raw)).exists()
    assert site.ask("DELETE", target).outcome == (404, "MANIFEST_UNKNOWN")
    assert site.ask("DELETE", "/v2/app/manifests/sha256:x").outcome == (400, "DIGEST_INVALID")
    assert site.names() == ["localhost/app:3"] and site.ask("GET", "/v2/app/manifests/3").body == kept
    assert problems(site.store) == []


def test_a_deleted_digest_takes_the_tags_that_resolved_to_it(site: Site, tmp_path: Path) -> None:
    layout, top, _ = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    name = site.host + "/up:1"
    minipull.pull(name, site.store, platform="linux/amd64")  # which names one child, from this index
    assert name in site.names()
    assert site.ask("DELETE", "/v2/up/manifests/%s?ns=%s" % (top.digest, site.host)).status == 202
    assert name not in site.names() and "localhost/up:1" in site.names()
    assert site.ask("GET", "/v2/up/manifests/1").body == top.raw


@pytest.mark.parametrize("by_digest", [False, True], ids=["tag", "digest"])
def test_a_delete_reaches_the_one_repository_that_a_push_would(site: Site, by_digest: bool) -> None:
    theirs = site.manifest("theirs")
    for ns, repository in (("docker.io", "library/alpine"), ("corp.example:5", "team/alpine")):
        assert site.put(theirs, "3", repository, "?ns=" + ns).status == 201
    kept = site.names()
    ours = theirs if by_digest else site.manifest("ours")
    target = "/v2/library/alpine/manifests/" + (digest_of(ours) if by_digest else "3")
    assert site.put(ours, "3", "library/alpine").status == 201
    assert site.ask("DELETE", target).status == 202
    for path in (target, target.replace("library/", ""), target.replace("library/", "team/")):
        assert site.ask("DELETE", path).outcome == (404, "MANIFEST_UNKNOWN")
        assert site.ask("DELETE", path + "?ns=quay.io").outcome == (404, "MANIFEST_UNKNOWN")
        assert site.ask("GET", path).body == theirs  # which a read still finds
    assert site.ask("DELETE", target.replace("library/", "docker.io/")).outcome == (400, "NAME_INVALID")
    assert site.names() == kept and problems(site.store) == []
    assert site.ask("DELETE", target + "?ns=docker.io").status == 202
    assert site.names() == ["corp.example:5/team/alpine:3"]


def test_a_manifest_without_a_name_is_deleted_by_its_digest(site: Site) -> None:
    raw = site.push()
    assert site.ask("DELETE", "/v2/app/manifests/1").status == 202
    assert site.ask("DELETE", "/v2/app/manifests/" + digest_of(raw)).status == 202
    assert not path_of(site, digest_of(raw)).exists()


def test_content_that_a_name_needs_is_not_deleted(site: Site) -> None:
    child = site.manifest("child")
    index = children(site, OCI_MANIFEST, child)
    assert site.put(index, "1").status == site.put(index, "1", "other").status == 201
    for target in (
            "manifests/" + digest_of(child), "blobs/" + digest_of(b"child"), "blobs/" + digest_of(index)):
        assert site.ask("DELETE", "/v2/app/" + target).outcome == (405, "UNSUPPORTED")
        assert site.ask("HEAD", "/v2/app/" + target).status == 200
    assert site.ask("DELETE", "/v2/app/manifests/" + digest_of(index)).status == 202
    assert site.names() == ["localhost/other:1"]  # which needs its bytes
    assert site.ask("GET", "/v2/other/manifests/1").body == index
    assert problems(site.store) == []


def test_a_deleted_blob_is_gone_from_every_repository(site: Site) -> None:
    digest = site.blob(DATA)["digest"]
    for repository in ("app", "other"):
        assert site.ask("GET", "/v2/%s/blobs/%s" % (repository, digest)).body == DATA
    assert site.ask("DELETE", "/v2/other/blobs/" + digest).status == 202
    for repository in ("app", "other"):
        assert site.ask("HEAD", "/v2/%s/blobs/%s" % (repository, digest)).status == 404
    assert site.ask("DELETE", "/v2/app/blobs/" + digest).outcome == (404, "BLOB_UNKNOWN")
    mount = site.ask("POST", "/v2/app/blobs/uploads/?from=other&mount=" + digest)
    assert mount.status == 202


def test_a_delete_waits_for_users_of_the_store_and_then_gives_up(start: Start) -> None:
    site = start(timeout=0.1)
    digest = site.blob(DATA)["digest"]
    with site.store.writing():  # a push, say
        answer = site.ask("DELETE", "/v2/app/blobs/" + digest)
        assert answer.outcome == (503, "TOOMANYREQUESTS") and answer.headers["retry-after"] == "10"
    assert site.ask("DELETE", "/v2/app/blobs/" + digest).status == 202


def test_deleting_one_tag_many_times_at_once_is_deleting_it(site: Site) -> None:
    site.push()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: site.ask("DELETE", "/v2/app/manifests/1").outcome, range(16)))
    assert (202, "") in found and set(found) <= {(202, ""), (404, "MANIFEST_UNKNOWN")}
    assert site.names() == [] and site.trouble() == []


# -- others at work on the same store ------------------------------------------


def test_gc_between_two_requests_is_told_to_the_client(site: Site) -> None:
    location = site.session()
    append(site, location, DATA[:100])
    raw = site.manifest("mounted")
    mounted = site.ask("POST", "/v2/app/blobs/uploads/?from=x&mount=" + digest_of(b"mounted"))
    assert mounted.status == 201
    gc(site.store, 0)
    assert site.ask("PATCH", location, DATA[100:]).outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    assert site.put(raw).outcome == (404, "MANIFEST_BLOB_UNKNOWN")
    site.push("mounted")
    assert gc(site.store, 0).blobs == [] and problems(site.store) == []


def test_gc_and_delete_neither_interrupt_nor_wait_for_a_body_that_is_being_received(start: Start) -> None:
    """However slowly a client sends, it holds its own session alone."""
    site = start(timeout=1)
    site.push("needed")
    doomed = site.blob(b"doomed")["digest"]
    location = site.session()
    with half_sent(site, "PATCH", location, "Content-Length: 1000", DATA[:600]) as client:
        wait_until(lambda: site.held(location) == "0-599", "the first bytes")
        assert gc(Store(str(site.root), timeout=0.1), 0).blobs == [doomed]
        other = site.blob(b"other")["digest"]
        assert site.ask("DELETE", "/v2/app/blobs/" + other).status == 202
        client.sendall(DATA[600:1000])
        assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
    finish(site, location, rest=DATA[1000:])
    with half_sent(site, "PUT", "/v2/app/manifests/slow", "Content-Length: 1000", b"{"):
        assert gc(Store(str(site.root), timeout=0.1), 24 * 3600).blobs == []
    location = site.session()
    append(site, location, DATA[:100])
    gc(site.store, 0)
    assert site.ask("PATCH", location, DATA[100:]).status == 404 and problems(site.store) == []


def test_clients_get_retry_after_while_gc_works(start: Start) -> None:
    site = start(timeout=0.1)
    raw = site.push()
    with site.store.alone():
        for method, path in (("GET", "/v2/app/manifests/1"), ("POST", "/v2/app/blobs/uploads/")):
            answer = site.ask(method, path)
            assert answer.outcome == (503, "TOOMANYREQUESTS") and answer.headers["retry-after"] == "10"
    assert site.ask("GET", "/v2/app/manifests/1").body == raw


def test_two_servers_and_pulls_share_a_store(start: Start, tmp_path: Path) -> None:
    layout, made = single(tmp_path / "layout", layers=4)
    source = start(tmp_path / "source")
    push_layout_http(layout, "latest", source.host + "/app:1")
    sites = [start(), start()]
    location = sites[0].session()
    for n in range(0, len(DATA), 1024):  # one session, by turns
        assert append(sites[n // 1024 % 2], location, DATA[n:n + 1024], n).status == 202

    def push(n: int) -> None:
        push_layout_http(layout, "latest", "%s/app:%d" % (sites[n % 2].host, n))

    def pull(n: int) -> None:
        minipull.pull(source.host + "/app:1", Store(str(tmp_path / "root"), timeout=30))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit((push, push, pull)[n % 3], n) for n in range(18)]:
            done.result()
    finish(sites[1], location)
    tags = [str(n) for n in range(18) if n % 3 < 2]
    for site in sites:
        assert sorted(site.ask("GET", "/v2/app/tags/list").json["tags"]) == sorted(tags)
        assert site.ask("GET", "/v2/app/manifests/1").body == made.raw and site.trouble() == []
    assert source.host + "/app:1" in sites[0].names()
    assert problems(sites[0].store) == [] and os.listdir(sites[0].store.content.scratch) == []


def test_many_clients_read_and_write_at_once(site: Site) -> None:
    raw = site.push()

    def work(n: int) -> List[int]:
        return [
            site.put(raw, "t%d" % n).status, site.ask("GET", "/v2/app/manifests/t%d" % n).status,
            site.ask("GET", "/v2/app/tags/list").status, site.ask("GET", "/v2/_catalog").status,
            site.ask("GET", "/v2/app/referrers/" + ABSENT).status,
            site.ask("DELETE", "/v2/app/manifests/t%d" % n).status]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [[201, 200, 200, 200, 200, 202]] * 24
    assert site.names() == ["localhost/app:1"] and site.trouble() == [] and problems(site.store) == []


# -- trouble -------------------------------------------------------------------


def test_paths_on_the_disk_are_for_the_log_only(site: Site) -> None:
    site.push()
    (site.root / "index.json").write_bytes(b"{")
    for path in ("/v2/_catalog", "/v2/app/tags/list", "/v2/app/manifests/1"):
        answer = site.ask("GET", path)
        assert answer.outcome == (500, "UNKNOWN") and str(site.root).encode() not in answer.body
        assert str(site.root) in site.trouble()[-1]
    assert site.put(site.manifest()).status == 500


def test_no_answer_is_a_page_that_a_browser_would_run(site: Site) -> None:
    script = b"<script>alert(1)</script>"
    digest = site.blob(script)["digest"]
    for path in ("/v2/app/blobs/" + digest, "/v2/<script>/tags/list", "/v2/app/manifests/<script>",
                 "/v2/app/manifests/sha256:<script>", "/v2/app/tags/list?n=<script>", "/<script>"):
        answer = site.ask("GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] in ("application/json", OCTETS)
        assert script.decode() not in str(answer.headers)


# -- serve() -------------------------------------------------------------------


def test_a_program_serves_a_store_until_it_cancels(tmp_path: Path) -> None:
    store, cancel = Store(str(tmp_path / "root")), Cancel()
    urls: List[str] = []
    log: List[Tuple[int, str]] = []
    thread = threading.Thread(target=lambda: serve(
        store, port=0, cancel=cancel, ready=urls.append, log=lambda *line: log.append(line)))
    thread.start()
    wait_until(lambda: bool(urls), "serve")
    host = urls[0][len("http://"):]
    assert ask(host, "GET", "/v2/")[2] == b"{}"
    assert ask(host, "POST", "/v2/app/blobs/uploads/")[0] == 405
    assert [status for status, _ in log] == [200, 405] and log[0][1].startswith("GET /v2/ 200")
    cancel.cancel()
    thread.join()
    with pytest.raises(OSError):
        ask(host, "GET", "/v2/")
    assert not os.path.exists(store.root)


def test_an_impossible_address_or_domain_is_an_error(tmp_path: Path) -> None:
    store, port = Store(str(tmp_path / "root")), free_port()
    with pytest.raises(InvalidReference, match="not the domain of a registry"):
        serve(store, port=port, domain="no domain")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen(1)
        with pytest.raises(NetworkError, match="listen on 127.0.0.1:%d" % port):
            serve(store, port=port)
    assert not os.path.exists(store.root)


def test_a_store_that_can_not_be_made_ends_a_writable_server_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="^create %s" % (tmp_path / "file")):
        serve(Store(str(tmp_path / "file" / "root")), port=0, writable=True)


def test_a_small_manifest_is_answered_at_once_unless_the_store_is_locked(site: Site) -> None:
    site.push()
    request = Request("GET", "/v2/app/manifests/1", {}, {}, cast(Body, SimpleNamespace(finished=True)), False)
    registry = Registry(site.store, False, "localhost")
    answer = registry.at_once(request)
    assert answer is not None and answer.status == 200
    with site.store.alone():
        assert registry.at_once(request) is None
