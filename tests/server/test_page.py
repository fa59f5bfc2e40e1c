# SPDX-License-Identifier: Apache-2.0
"""The page that a registry shows to a browser."""
import base64
import hashlib
import http.client
import re
import shlex
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from minipull.cli.main import main
from minipull.digest import Digest
from minipull.reference import version
from minipull.server import overview
from minipull.server.overview import DAMAGED
from minipull.store.store import Store
from tests.kit import images
from tests.kit.images import OCI_CONFIG, OCI_LAYER, digest_of, multi_platform, push_layout_http, to_json
from tests.kit.site import Site, described

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

pytestmark = pytest.mark.usefixtures("quick_stop")


def look(site: Site, query: str = "") -> str:
    answer = site.ask("GET", "/" + query, headers=BROWSER)
    assert answer.status == 200, answer
    return answer.body.decode()


def push(site: Site, layers: List[bytes], reference: str, repository: str, **config: Any) -> bytes:
    """Push an image with these layers; returns its manifest."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    raw = to_json(dict({"architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
                        "rootfs": rootfs}, **config))
    manifest = to_json({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": site.blob(raw, OCI_CONFIG), "layers": [site.blob(layer, OCI_LAYER) for layer in layers]})
    assert site.put(manifest, reference, repository).status == 201
    return manifest


def test_a_browser_gets_the_page_and_other_clients_what_they_got_before(site: Site) -> None:
    answer = site.ask("GET", "/", headers=BROWSER)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert site.ask("GET", "/").outcome == (404, "NAME_INVALID")
    head = site.ask("HEAD", "/", headers=BROWSER)
    assert (head.status, head.body) == (200, b"")
    assert site.ask("POST", "/", headers=BROWSER).outcome == (405, "UNSUPPORTED")
    assert "holds no image yet" in answer.body.decode()


@pytest.mark.parametrize("accept, is_page", [
    ("text/html", True), ("text/html,*/*;q=0.8", True), ("application/json, TEXT/HTML ; q=0.5", True),
    ("*/*", False), ("", False), ("text/*", False), ("text/html;q=0", False), ("text/html;q=0.0, */*", False),
    ("text/html ; level=1 ; q=0", False),
    ("application/vnd.oci.image.index.v1+json, application/json", False), ("text/htmlx", False)])
def test_only_who_names_html_gets_a_page(site: Site, accept: str, is_page: bool) -> None:
    answer = site.ask("GET", "/", headers={"Accept": accept})
    assert answer.status == (200 if is_page else 404) and "Accept" in answer.headers["vary"]
    for path in ("/v2/", "/v2/_catalog"):
        assert site.ask("GET", path, headers={"Accept": accept}).headers["content-type"] == "application/json"


def test_a_page_allows_its_own_style_and_nothing_else(site: Site) -> None:
    push(site, [b"layer"], "1", "app")
    answer = site.ask("GET", "/", headers=BROWSER)
    text, policy = answer.body.decode(), answer.headers["content-security-policy"]
    (style,) = re.findall("<style>(.*?)</style>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'sha256-%s'; " % digest)
    assert not re.search(r"<script|<link|<img|style=|\bon[a-z]+=|url\(", text)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_image_is_shown_with_all_that_is_known_of_it(site: Site) -> None:
    manifest = push(site, [b"base" * 500, b"own"], "v1.9", "team/app")
    push(site, [b"base" * 500, b"other"], "v1.10", "team/app", architecture="arm64", variant="v8")
    text = look(site)
    assert "<h2>team/app</h2>" in text and "2 images" in text
    assert described(manifest)["digest"] in text
    assert re.findall("<h3>(v.*?)</h3>", text) == ["v1.9", "v1.10"]
    assert re.search("<time datetime=\"2026-01-02\">2026-01-02</time>, [0-9]+ (day|month|year)s? old", text)
    assert "linux/amd64 · 2.003kB in 2 layers, 1 shared · <time" in text
    assert text.count('aria-label="Layers: 2kB shared, 3B"') == 1
    colours = re.findall('fill="(#[^"]*)"', text)
    assert len(colours) == 2 and len(set(colours)) == 1 and text.count('class="own"') == 2


def test_each_platform_of_an_index_has_a_bar(site: Site, tmp_path: Path) -> None:
    layout, _, _ = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    text = look(site)
    platforms = re.findall("<p>(linux/[^<· ]*) · [^<]*</p>\n?<svg", text)
    assert platforms == list(images.PLATFORMS) and text.count("<svg") == len(platforms)
    assert "without a tag" not in text  # each platform's manifest has been pushed by digest


@pytest.mark.parametrize("text", [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "&lt;",
    "\u202e\u0000\x1b[2J", "{host}", "%s"])
def test_no_text_from_outside_is_markup(site: Site, text: str) -> None:
    push(site, [b"layer"], "1", "app", os="linux", architecture=text.replace("\u0000", ""), created=text)
    plain = look(site)
    asked = look(site, "?q=" + "".join("%%%02x" % byte for byte in text.encode()))
    for page in (plain, asked):
        assert not re.search(r"<script|<img|onerror=[^&]*>|</style><b>", page)
        assert page.count("<style>") == page.count("</style>") == 1


@pytest.mark.parametrize("query, names", [
    ("", ["app:1", "app:2", "web/site:1"]), ("+1++app", ["app:1"]),
    ("sha256:", ["app:1", "app:2", "web/site:1"]),
    ("APP", ["app:1", "app:2"]), ("app:2", ["app:2"]),
    ("site", ["web/site:1"]), ("none", []), ("%3Cb%3E", [])])
def test_a_filter_shows_the_images_whose_name_contains_it(site: Site, query: str, names: List[str]) -> None:
    for name in ("app:1", "app:2", "web/site:1"):
        push(site, [name.encode()], name[-1], name[:-2])
    text = look(site, "?q=" + query)
    assert re.findall(r"docker pull 127[^/]*/(\S+?)</code>", text) == names
    assert ("%d of 3 images" % len(names) if query else "3 images") in text


@pytest.mark.parametrize("host", [
    "", "a b", "x<y", "x\"y", "x/y", "[::1", "x@y", "x:y:", "x:99999", "x_y:5000", "-x", "x" * 256,
    "a." * 5000, "\xe9"])
def test_a_host_that_no_tool_can_name_gets_no_page(site: Site, host: str) -> None:
    answer = site.ask("GET", "/", headers=dict(BROWSER, Host=host))
    assert answer.outcome == (400, "UNSUPPORTED") and "<" not in answer.json["errors"][0]["message"]


@pytest.mark.parametrize("host, proto, name, flags", [
    ("registry.lan:5000", "", "registry.lan:5000", True), ("registry.lan", "", "registry.lan", True),
    ("Registry.LAN", "http", "registry.lan", True), ("[::1]:5000", "", "[::1]:5000", True),
    ("registry", "", "registry:80", True),  # registry/app would be one of Docker Hub's
    ("registry", "https", "registry:443", False), ("registry.lan", "HTTPS", "registry.lan", False),
    ("registry.lan", "https, http", "registry.lan", False), ("registry.lan", "<b>", "registry.lan", True)])
def test_lines_are_for_this_host_and_for_tls_if_a_proxy_speaks_it(
        site: Site, host: str, proto: str, name: str, flags: bool) -> None:
    push(site, [b"layer"], "1", "app")
    text = site.ask("GET", "/", headers=dict(BROWSER, Host=host, **{"X-Forwarded-Proto": proto})).body.decode()
    assert re.findall("<code>(docker pull .*?)</code>", text) == ["docker pull %s/app:1" % name]
    for word in ("--plain-http", "--tls-verify=false", "insecure-registries"):
        assert (word in text) == flags


def test_a_page_is_sent_once_and_again_when_it_differs(site: Site) -> None:
    def tagged(path: str = "/", **fields: str) -> Tuple[int, str]:
        answer = site.ask("GET", path, headers=dict(BROWSER, **fields))
        return answer.status, answer.headers["etag"]
    push(site, [b"layer"], "1", "app")
    _, etag = tagged()
    assert tagged(**{"If-None-Match": etag}) == (304, etag)
    others = [tagged("/?q=a"), tagged("/?from=1"), tagged(Host="x:1"), tagged(**{"X-Forwarded-Proto": "https"})]
    push(site, [b"layer"], "2", "app")  # another name of the same image
    others.append(tagged(**{"If-None-Match": etag}))
    assert {status for status, _ in others} == {200} and len({etag, *(tag for _, tag in others)}) == 6


def test_the_lines_of_a_page_fetch_the_image(site: Site, tmp_path: Path, capsys: Any) -> None:
    push(site, [], "1", "team/app")
    (line,) = re.findall("<code>python3 -m (minipull pull [^<]*)</code>", look(site))
    assert main(["--root", str(tmp_path / "far"), *shlex.split(line)[1:]]) == 0
    names = [str(entry.name) for entry in Store(str(tmp_path / "far")).references.all()]
    assert names == [site.host + "/team/app:1"]
    for tool in ("docker pull", "ctr images pull --plain-http", "k3s crictl pull",
                 "podman pull --tls-verify=false"):
        assert "%s %s/team/app:1</code>" % (tool, site.host) in look(site)


def test_a_page_is_sent_in_pieces_and_the_connection_is_kept(site: Site) -> None:
    push(site, [b"layer"], "1", "app")
    connection = http.client.HTTPConnection(site.host, timeout=30)
    for _ in range(2):
        connection.request("GET", "/", headers=BROWSER)
        response = connection.getresponse()
        assert response.getheader("Transfer-Encoding") == "chunked"
        assert response.read().endswith(b"</html>\n")
    connection.request("GET", "/", headers=dict(BROWSER, Connection="close"))
    response = connection.getresponse()
    assert response.getheader("Transfer-Encoding") is None and response.read().endswith(b"</html>\n")
    connection.close()


def test_an_image_that_can_not_be_read_says_so_and_has_no_bar(site: Site) -> None:
    raw = push(site, [b"layer"], "1", "app")
    Path(site.store.content.path(Digest(described(raw)["digest"]))).write_bytes(b"rotten")
    push(site, [b"layer", b"other"], "2", "app")
    text = look(site)
    assert "<h3>1</h3>" in text and text.count("<svg") == 1 and text.count(DAMAGED) == 1


def test_damage_hides_no_other_platform_and_is_gone_soon_after_it_is_mended(
        site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, _, made = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    path = Path(site.store.content.path(Digest(made["linux/arm/v7"].digest)))
    raw = path.read_bytes()
    path.write_bytes(b"rotten")
    text = look(site)
    assert text.count("<svg") == len(made) - 1 and DAMAGED in text
    path.write_bytes(raw)
    assert DAMAGED in look(site)
    monkeypatch.setattr(overview, "AGAIN", 0.0)
    push(site, [b"x"], "2", "app")  # so that it is read again at once
    assert DAMAGED not in look(site)


def test_a_page_is_read_anew_when_a_name_has_changed_and_not_before(site: Site) -> None:
    raw = push(site, [b"layer"], "1", "app")
    assert look(site).count("<svg") == 1
    path = Path(site.store.content.path(Digest(described(raw)["digest"])))
    path.rename(str(path) + ".away")
    assert look(site).count("<svg") == 1
    path.with_name(path.name + ".away").rename(path)
    push(site, [b"other"], "2", "app")
    assert look(site).count("<svg") == 2


@pytest.mark.parametrize("tags", [
    ["1", "1.2", "1.10", "2"], ["v1.9", "v1.10", "v1.10-rc1"], ["3.9-alpine", "3.10", "latest"],
    ["", "a", "a1", "a02", "a10"]])
def test_tags_are_sorted_as_versions(tags: List[str]) -> None:
    assert sorted(reversed(tags), key=version) == tags
