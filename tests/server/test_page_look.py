# SPDX-License-Identifier: Apache-2.0
"""How the page looks and what it bears: contrast, headings, many images, hostile ones."""
import html.parser
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest

from minipull.server import overview, page
from minipull.server.catalog import Catalog
from minipull.server.overview import DAMAGED, TOO_MUCH
from minipull.server.page import colour, luminance
from minipull.store.references import IMAGE_NAME
from tests.kit.images import CREATED, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of, to_json
from tests.kit.site import Site, Start, described

BROWSER = {"Accept": "text/html"}

pytestmark = pytest.mark.usefixtures("quick_stop")


class Blobs:
    """A store written by hand, without layers: what is listed is never opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "blobs" / "sha256"
        self.folder.mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.entries: List[Dict[str, Any]] = []

    def put(self, document: Dict[str, Any], media_type: str) -> Dict[str, Any]:
        raw = to_json(document)
        (self.folder / digest_of(raw)[7:]).write_bytes(raw)
        return described(raw, media_type)

    def image(self, *sizes: int, layers: Sequence[Tuple[str, int]] = (), **config: Any) -> Dict[str, Any]:
        described = self.put({"os": "linux", "architecture": "amd64", "created": CREATED, **config}, OCI_CONFIG)
        own = [("%s%d" % (described["digest"], n), size) for n, size in enumerate(sizes)]
        return self.put({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": [
            {"mediaType": OCI_LAYER, "digest": digest_of(text.encode()), "size": size}
            for text, size in [*layers, *own]]}, OCI_MANIFEST)

    def index(self, *children: Dict[str, Any]) -> Dict[str, Any]:
        return self.put({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}, OCI_INDEX)

    def referrer(self, subject: Optional[Dict[str, Any]], kind: str = "text/x") -> Dict[str, Any]:
        return self.put({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "layers": [],
                         "config": self.put({}, "application/vnd.oci.empty.v1+json"),
                         **({"subject": subject} if subject else {})}, OCI_MANIFEST)

    def name(self, descriptor: Dict[str, Any], *names: str) -> None:
        self.entries += [{**descriptor, "annotations": {IMAGE_NAME: "localhost/" + name}} for name in names]
        (self.root / "index.json").write_bytes(to_json({"schemaVersion": 2, "manifests": self.entries}))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "root")


def look(site: Site, path: str = "/", **headers: str) -> str:
    answer = site.ask("GET", path, headers=dict(BROWSER, **headers))
    assert answer.status == 200, answer
    assert site.trouble() == []
    return answer.body.decode()


class Outline(html.parser.HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def named(self, name: str) -> List[Dict[str, Optional[str]]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def contrast(*colours: str) -> float:
    long = ["".join(2 * digit for digit in text[1:]) if len(text) == 4 else text[1:] for text in colours]
    dark, light = sorted(luminance([int(text[n:n + 2], 16) / 255 for n in (0, 2, 4)]) for text in long)
    return (light + 0.05) / (dark + 0.05)


# -- Reading -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_a_contrast_of_4_5_and_shapes_one_of_3(scheme: int) -> None:
    colours = dict(re.findall("--([a-z]+):(#[0-9a-f]+)", re.findall(":root{[^}]*}", page._STYLE)[scheme]))
    assert sorted(colours) == ["box", "ink", "line", "link", "own", "pale", "paper"]
    for text in ("ink", "pale", "link"):
        for ground in ("paper", "box"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    shapes = [colours["own"], *(colour(number) for number in range(500))]
    assert min(contrast(shape, colours["paper"]) for shape in shapes) >= 3
    assert not re.search("(^|[;{])(color|background):(?!inherit|var)", page._STYLE), "a colour besides"


def test_colours_of_neighbours_differ() -> None:
    assert contrast("#fff", "#000") == pytest.approx(21)
    assert len({colour(number) for number in range(200)}) > 190
    for number in range(100):
        assert contrast(colour(number), colour(number + 1)) > 1.2


def test_a_page_has_a_language_a_title_labels_and_headings_in_order(blobs: Blobs, start: Start) -> None:
    shared = ("base", 10)
    for name in ("app:1", "app:2", "web:1"):
        blobs.name(blobs.image(5, layers=[shared], variant=name), name)
    outline = Outline(look(start(blobs.root, writable=False)))
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert levels.count(1) == 1 == len(outline.named("main"))
    assert outline.named("html") == [{"lang": "en"}]
    fields = [field["id"] for field in outline.named("input")]
    assert [label["for"] for label in outline.named("label")] == fields == ["q"]
    bars = [(svg["role"], svg["aria-label"]) for svg in outline.named("svg")]
    assert bars == [("img", "Layers: 10B shared, 5B")] * 3
    assert not {"script", "img", "link", "iframe", "object"}.intersection(tag for tag, _ in outline.elements)
    for _, attributes in outline.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "action")]


def test_what_is_shared_differs_in_more_than_its_colour(blobs: Blobs, start: Start) -> None:
    blobs.name(blobs.image(5, layers=[("base", 10)], variant="a"), "app:1")
    blobs.name(blobs.image(5, layers=[("base", 10)], variant="b"), "app:2")
    blobs.name(blobs.image(5, 5, 5, variant="c"), "app:3")
    text = look(start(blobs.root, writable=False))
    heights = {(rect.get("height"), "fill" in rect) for rect in Outline(text).named("rect")}
    assert heights == {("16", True), ("8", False)}
    assert text.count(", in 2 images</title>") == 2 == text.count("in 2 layers, 1 shared · ")
    assert "15B in 3 layers · " in text and "3 images in 1 repository, 35B in layers" in text


@pytest.mark.parametrize("sizes", [
    [0], [0, 0, 0], [1, 2**63 - 1], [2**63 - 1] * 3, [10**9] + [1] * 126, [1] * 999, [0, 5, 0]])
def test_a_bar_fills_its_box_and_each_layer_is_seen(blobs: Blobs, start: Start, sizes: List[int]) -> None:
    blobs.name(blobs.image(*sizes), "app:1")
    rects = Outline(look(start(blobs.root, writable=False))).named("rect")
    widths = [float(rect["width"] or 0) for rect in rects]
    assert len(rects) == len(sizes) and sum(widths) <= page.BAR * 1.06 and min(widths) >= 0.2
    assert [float(rect["x"] or 0) for rect in rects] == sorted(float(rect["x"] or 0) for rect in rects)
    if max(sizes) > 1:
        assert widths[sizes.index(max(sizes))] == max(widths)


@pytest.mark.parametrize("created, age", [
    ("2024-01-02T03:04:05Z", "<time datetime=\"2024-01-02\">2024-01-02</time>, [0-9]+ years old</p>"),
    ("2999-01-02T03:04:05Z", "2999-01-02</time></p>"), ("1970-01-01T00:00:00Z", "1 layer</p>"),
    ("0001-01-01T00:00:00Z", "1 layer</p>"), ("2024-13-40T00:00:00Z", "1 layer</p>"), ("<b>", "1 layer</p>"),
    ("2024-01-02T<script>", "2024-01-02</time>"), ("", "1 layer</p>"), ("\u0662024-01-02T", "1 layer</p>"),
    ("x" * 100000, "1 layer</p>")])
def test_a_time_is_a_day_or_nothing(blobs: Blobs, start: Start, created: str, age: str) -> None:
    blobs.name(blobs.image(5, created=created), "app:1")
    text = look(start(blobs.root, writable=False))
    assert re.search(age, text) and "<script>" not in text and "<b>" not in text


# -- Images --------------------------------------------------------------------


def test_tags_of_one_image_stand_together_and_the_one_asked_for_is_pulled(blobs: Blobs, start: Start) -> None:
    one = blobs.image(5)
    blobs.name(one, *("app:v%d" % number for number in range(5000)), "other:x")
    site = start(blobs.root, writable=False)
    text = look(site)
    assert "2 images in 2 repositories" in text and text.count("<svg") == 2
    assert "<h3>v0, v1, v2, v3," in text and " <span>and 4,980 more</span></h3>" in text and len(text) < 20000
    assert "docker pull %s/app:v4543</code>" % site.host in look(site, "/?q=V4543")


def test_referrers_are_counted_with_their_image_and_others_are_listed(blobs: Blobs, start: Start) -> None:
    child = blobs.image(5)
    top = blobs.index(child, blobs.referrer(None, "text/attestation"))
    blobs.name(top, "app:1")
    blobs.name(child, "app@" + child["digest"])
    blobs.name(blobs.referrer(top), "app@" + blobs.referrer(top)["digest"])
    blobs.name(blobs.referrer(child, "text/y"), "app@" + blobs.referrer(child, "text/y")["digest"])
    blobs.name(blobs.referrer(None, "text/sig"), "app:sha256-%s.sig" % top["digest"][7:])
    blobs.name(blobs.referrer(None, "text/<chart>"), "chart:1")
    blobs.name(blobs.referrer({**child, "digest": digest_of(b"elsewhere")}, "text/orphan"), "orphan:1")
    text = look(start(blobs.root, writable=False))
    assert re.findall("<h3>(.*?)</h3>", text) == ["1", "1", "1"]
    assert "3 signatures and other referrers" in text
    assert "<p>text/&lt;chart&gt; · " in text and "<p>text/orphan · " in text
    assert text.count("docker pull") == 1 and text.count("minipull pull") == 3  # docker can't pull a chart


def test_platforms_below_an_index_within_an_index_have_bars(blobs: Blobs, start: Start) -> None:
    inner = blobs.index(blobs.image(5, architecture="arm"), blobs.image(5, architecture="s390x"))
    many = [part for n in range(20) for part in (
        blobs.image(5, architecture="a%d" % n), blobs.referrer(None, "text/attestation"))]
    absent = {**inner, "digest": digest_of(b"a platform that was not pulled")}
    blobs.name(blobs.index(inner, *many, absent), "app:1")
    text = look(start(blobs.root, writable=False))
    assert text.count("<svg") == 22 and "linux/s390x · 5B in 1 layer" in text
    assert DAMAGED not in text and TOO_MUCH not in text


@pytest.mark.parametrize("case", ["manifest", "config", "all"])
def test_what_is_large_is_listed_and_not_read(
        blobs: Blobs, start: Start, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    if case == "all":
        monkeypatch.setattr(overview, "MAX_READ", 100)
    text = "x" * 300000
    large = blobs.put({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "x": text}, OCI_INDEX)
    blobs.name({"manifest": large, "config": blobs.image(5, x=text)}.get(case) or blobs.image(5), "app:1")
    text = look(start(blobs.root, writable=False))
    assert text.count("<h3>1</h3>") == text.count(TOO_MUCH) == 1 and DAMAGED not in text


def test_a_name_that_no_client_can_ask_for_is_told(blobs: Blobs, start: Start) -> None:
    blobs.name(blobs.image(5), "app:1")
    for domain in ("a.example:5000", "b.example:5000"):
        blobs.entries.append({**blobs.image(5), "annotations": {IMAGE_NAME: domain + "/twice:1"}})
    blobs.name(blobs.image(6), "app:2")
    site = start(blobs.root, writable=False)
    assert "2 more images can't be asked for by a name" in look(site)
    etag = site.ask("GET", "/", headers=BROWSER).headers["etag"]
    blobs.entries.append({**blobs.image(5), "annotations": {IMAGE_NAME: "a.example:5000/twice:2"}})
    blobs.entries.append({**blobs.image(5), "annotations": {IMAGE_NAME: "b.example:5000/twice:2"}})
    blobs.name(blobs.image(6), "app:2")
    assert site.ask("GET", "/", headers=dict(BROWSER, **{"If-None-Match": etag})).status == 200


# -- Many ----------------------------------------------------------------------


def test_a_thousand_images_are_one_answer_in_pieces_and_more_have_links(blobs: Blobs, start: Start) -> None:
    made = [blobs.image(7, number, layers=[("base%d" % (number % 50), 10)]) for number in range(1100)]
    for number in range(2100):
        tagged = made[min(number, 1099)]
        blobs.entries.append({**tagged, "annotations": {IMAGE_NAME: "localhost/r%04d:1" % number}})
    blobs.name(made[0], "z:1")
    site = start(blobs.root, writable=False)
    text = look(site)
    assert text.count("<svg") == text.count("<h3>") == 1000 and "2,101 images" in text
    assert re.findall('<a href="(.*?)">(.*?)</a>', text) == [("?q=&amp;from=1000", "More images")]
    last = look(site, "/?q=r&from=2000")
    assert last.count("<h3>") == 100 and re.findall('<a href="(.*?)">', last) == ["?", "?q=r&amp;from=1000"]
    for odd in ("999999", "x", "-1", "1e3", "9" * 40, "\u0663"):
        assert "</html>" in look(site, "/?from=" + "".join("%%%02x" % byte for byte in odd.encode()))
    listing = overview.Overview(site.store, Catalog(site.store.references, "localhost")).listing()
    colour(0)
    tracemalloc.start()
    try:
        sent = [len(piece) for piece in page._joined(page.Page(listing, "x:1", False, "", 0).parts())]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sent) > 1000000 and max(sent) < 2 * page.PIECE and len(sent) > 20
    assert peak < 500000


def test_what_a_page_draws_is_bounded_and_every_image_is_listed(
        blobs: Blobs, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_DRAWN", 3 * (1 + 4) * 2 + 1 + 2)
    large = blobs.index(*(blobs.image(5, 5, 5, 5, variant=name) for name in "abc"))
    blobs.name(large, *("r%d:1" % number for number in range(5)))
    blobs.name(blobs.image(5, 5, variant="small"), "small:1")
    text = look(start(blobs.root, writable=False))
    assert text.count("<h3>") == text.count("docker pull") == 6 and text.count(TOO_MUCH) == 4
    shown = re.findall("<h2>(r[0-9]|small)</h2>|<(svg)", text)
    assert "".join(map("".join, shown)) == "r0svgsvgsvgr1svgsvgsvgr2r3r4small"


def test_an_image_costs_a_page_the_same_however_many_names_it_has(blobs: Blobs, start: Start) -> None:
    layers = [("base%d" % number, 1) for number in range(1000)]
    image = blobs.index(*(blobs.image(layers=layers, variant="v%d" % number) for number in range(10)))
    blobs.name(image, *("r%d:1" % number for number in range(5000)))
    site = start(blobs.root, writable=False)
    listing = overview.Overview(site.store, Catalog(site.store.references, "localhost")).listing()
    assert [len(variant.layers) for variant in listing.images[0].variants] == [len(layers)] * 10
    assert sum(map(len, page.Page(listing, "x:1", False, "", 0).parts())) < 4000000


# -- Hostile -------------------------------------------------------------------

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "</title>", "&lt;",
           "-->", "\u202egnp.exe\u2066", "\x00\x1b[2J\r\n", "{host}", "%s%n", "'\"`", "\u2028", "\U0001f980",
           "x" * 10000]
BARE = "<script|<img|</style><b>|[\x00-\x09\x0b-\x1f\x7f\u2028\u202a-\u202e\u2066-\u2069]"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["os", "architecture", "variant", "os.version", "created"])
def test_no_text_of_an_image_is_markup_or_turns_a_line(
        blobs: Blobs, start: Start, field: str, text: str) -> None:
    blobs.name(blobs.image(5, layers=(), **{field: text}), "app:1")
    blobs.name(blobs.referrer(None, "text/" + text), "chart:1")
    plain = look(start(blobs.root, writable=False))
    assert not re.search(BARE, plain)
    assert plain.count("<style>") == plain.count("</title><style>") == 1 and plain.count("<h3>") == 2
    assert len(plain) < 20000


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_query_is_markup(blobs: Blobs, start: Start, text: str) -> None:
    blobs.name(blobs.image(5), "app:1")
    site = start(blobs.root, writable=False)
    plain = look(site, "/?q=" + "".join("%%%02x" % byte for byte in text.encode()))
    assert not re.search("<script|<img|</style><b>", plain) and plain.count("</style>") == 1
    [field] = Outline(plain).named("input")
    assert (field["value"] or "").split() == text.split()


@pytest.mark.parametrize("query, status", [
    ("?q=" + "x" * (1 << 20), 431), ("?" + "&".join("q=%d" % n for n in range(200)), 400),
    ("?q=%ff%fe%ed%a0%80", 200),
    ("?q=" + "a+" * 20000, 200), ("?q", 200), ("?q=a;b", 200), ("?q=a&q=b", 200)])
def test_any_query_has_an_answer(site: Site, query: str, status: int) -> None:
    answer = site.ask("GET", "/" + query, headers=BROWSER)
    assert answer.status == status and site.trouble() == []


def test_a_query_counts_its_first_words_each_once(blobs: Blobs, start: Start) -> None:
    blobs.name(blobs.image(5), "app:1", "web:1")
    words = ["a%s" % ("p" * (n % 2)) for n in range(20000)]
    text = look(start(blobs.root, writable=False), "/?q=" + "+".join(words))
    assert text.count("<h3>") == 1 and Outline(text).named("input")[0]["value"] == "a ap"
    kept = ["%02d" % n for n in range(page.MAX_WORDS)]
    text = look(start(blobs.root, writable=False), "/?q=" + "+".join([*kept, *"xyz", *kept]))
    assert Outline(text).named("input")[0]["value"] == " ".join(kept)


@pytest.mark.parametrize("members", [
    {"config": None}, {"layers": [{"size": -1}]}, {"layers": [{"size": 2**63}]}, {"layers": "x"},
    {"mediaType": "x"}, {"schemaVersion": 1},
    {"config": {"mediaType": OCI_CONFIG, "digest": "../../etc/passwd", "size": 1}}])
def test_a_manifest_that_is_none_hides_no_other(blobs: Blobs, start: Start, members: Dict[str, Any]) -> None:
    blobs.name(blobs.image(5), "app:1")
    sound = json.loads((blobs.folder / blobs.image(5)["digest"][7:]).read_text())
    blobs.name({**blobs.put({**sound, **members}, OCI_MANIFEST)}, "app:2")
    text = look(start(blobs.root, writable=False))
    assert text.count("<h3>") == 2 and text.count("<svg") == 1 and text.count(DAMAGED) == 1


def test_more_names_than_a_store_may_have_are_refused_and_not_listed(blobs: Blobs, start: Start) -> None:
    blobs.name(blobs.image(5), *("app:%d" % number for number in range(100000)))
    site = start(blobs.root, writable=False)
    answer = site.ask("GET", "/", headers=BROWSER)
    assert answer.status == 500 and "the server's log says more" in answer.json["errors"][0]["message"]
