# SPDX-License-Identifier: Apache-2.0
"""The page of a registry: its images, for people at a site with no other tool than a browser.

One HTML document without script; nothing is fetched from elsewhere, and the policy
sent with it allows nothing but its own style sheet.  Every text of an image is
escaped.  Each image has a bar of its layers to scale; a layer of several images is
high and has one colour wherever it is, one that no other image has is low and grey.
"""
import base64
import colorsys
import contextlib
import datetime
import functools
import hashlib
import html
import re
import urllib.parse
from typing import Dict, Iterator, List, Optional, Sequence

from ..digest import Digest
from ..progress import human_size
from ..reference import version
from ..store.store import ImageSource
from .catalog import Catalog, within
from .message import Headers, Refusal, Request, Response
from .overview import TOO_MUCH, Listed, Listing, Overview, Variant

MAX_SHOWN = 1000  # images of one page
MAX_DRAWN = 20000  # their platforms and layers
MAX_TAGS = 20  # of one image
MAX_WORDS = 20  # of a query
PIECE = 32 << 10  # characters that are sent at once
BAR = 1000  # units of the width of a bar

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--pale:#57606a;--line:#d0d7de;--box:#f3f5f7;
--own:#818b95;--link:#0550ae}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--pale:#9aa4af;--line:#30363d;
--box:#161b22;--own:#6e7681;--link:#79b8ff}}
body{margin:0 auto;max-width:60rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:0}
h2{font-size:1.25rem;margin:2.5rem 0 0;padding-bottom:.2rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 0}
h3 span{font-weight:400}
p,dl{margin:.2rem 0}
p,dt,label{color:var(--pale)}
a,summary{color:var(--link)}
b{color:var(--ink)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
code,pre{font:.875rem/1.5 ui-monospace,monospace;color:var(--ink)}
code{-webkit-user-select:all;user-select:all}
pre{margin:.2rem 0 .8rem;white-space:pre-wrap}
pre,dl{padding:.5rem .8rem;background:var(--box);border-radius:.4rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem}
dd{margin:0}
summary{cursor:pointer;padding:.2rem 0;width:max-content;max-width:100%}
svg{display:block;width:100%;height:1rem;margin:.3rem 0 .1rem}
rect{stroke:var(--paper);stroke-width:1;vector-effect:non-scaling-stroke}
.own{fill:var(--own)}
form{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:1rem 0}
input,button{font:inherit;padding:.4rem .7rem;max-width:100%;box-sizing:border-box;color:inherit;
background:var(--box);border:1px solid var(--own);border-radius:.4rem}
input{flex:1;min-width:12rem}
details h2{font-size:1rem;margin:.8rem 0 0;border:0}
@media(max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}label{width:100%}}
"""
_POLICY = (
    "default-src 'none'; style-src 'sha256-%s'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    % base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode())
_HEADERS: Headers = (
    ("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-cache"), ("Vary", "Accept, X-Forwarded-Proto"))

#: The line that fetches an image, by tool, and what it says in addition where there is no TLS.
_PULLS = (
    ("docker", "docker pull {name}", ""), ("containerd", "ctr images pull {flag}{name}", "--plain-http "),
    ("k3s", "k3s crictl pull {name}", ""), ("podman", "podman pull {flag}{name}", "--tls-verify=false "),
    ("minipull", "python3 -m minipull pull {flag}{name}", "--plain-http "))
#: The setting that a tool needs first where there is no TLS, and its file.
_SETTINGS = (
    ("docker", "/etc/docker/daemon.json", '{{"insecure-registries": ["{host}"]}}'),
    ("k3s", "/etc/rancher/k3s/registries.yaml",
     'mirrors:\n  "{host}":\n    endpoint:\n      - "http://{host}"'),
    ("containerd under Kubernetes", "/etc/containerd/certs.d/{host}/hosts.toml",
     '# found if config.toml says config_path = "/etc/containerd/certs.d"\nserver = "http://{host}"\n'
     '[host."http://{host}"]\n  capabilities = ["pull", "resolve"]'))


class Pages:
    """The handler of the page."""

    def __init__(self, source: ImageSource, catalog: Catalog) -> None:
        self._overview = Overview(source, catalog)

    def get(self, request: Request) -> Response:
        """Answer a browser; raises Refusal for another client, which must not take a page for an answer."""
        if not accepts_html(request.headers.get("accept", "")):
            raise Refusal(404, "NAME_INVALID", "no such page", [("Vary", "Accept")])
        scheme = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
        secure = scheme == "https"
        host = named_host(request.headers.get("host", ""), secure)
        if host is None:
            raise Refusal(400, "UNSUPPORTED", "no image can be pulled from a host of this name; use another")
        listing, start = self._overview.listing(), request.parameter("from")
        query = " ".join(list(dict.fromkeys(request.parameter("q").split()))[:MAX_WORDS])
        first = int(start) if re.fullmatch("[0-9]{1,6}", start) else 0
        # The age of an image changes with the day.
        state = (listing.state, host, secure, query, first, datetime.date.today())
        etag = '"%s"' % hashlib.sha256(repr(state).encode()).hexdigest()[:32]
        headers = [*_HEADERS, ("ETag", etag)]
        if etag in request.headers.get("if-none-match", ""):
            return Response(304, headers)
        return Response(200, headers, pieces=_joined(Page(listing, host, secure, query, first).parts()))


def accepts_html(accept: str) -> bool:
    """Whether an Accept names HTML: ``*/*`` is sent by every tool."""
    parts = re.sub("[ \t]", "", accept.lower()).split(",")
    return any(re.match("text/html(;|$)", part) and not re.search(r";q=0(\.0*)?(;|$)", part) for part in parts)


def named_host(host: str, secure: bool) -> Optional[str]:
    """Return a Host as clients write it in the name of an image, or None for one that they can't."""
    names = host.lower(), "%s:%d" % (host.lower(), 443 if secure else 80)  # without a dot or port it is a path
    return next((name for name in names if len(name) <= 255 and within(name, "a/b")), None)


def _joined(parts: Iterator[str]) -> Iterator[bytes]:
    texts: List[str] = []
    size = 0
    for text in parts:
        texts.append(text)
        size += len(text)
        if size >= PIECE:
            yield "".join(texts).encode()
            texts, size = [], 0
    yield "".join(texts).encode()


class Page:
    """The images of a listing whose names have every word of ``query``, from number ``first`` on."""

    def __init__(self, listing: Listing, host: str, secure: bool, query: str, first: int) -> None:
        self._listing = listing
        self._host = host
        self._secure = secure
        self._query = query
        self._chosen = list(_chosen(listing.images, query.lower().split()))
        self._first = min(first, len(self._chosen))
        self._colours = _colours(listing)

    def parts(self) -> Iterator[str]:
        yield self._head()
        repository, room = None, MAX_DRAWN
        for image in self._chosen[self._first:self._first + MAX_SHOWN]:
            if image.repository != repository:
                repository = image.repository
                yield "<h2>%s</h2>\n" % html.escape(repository)
            room -= sum(1 + len(variant.layers) for variant in image.variants)
            yield self._image(image if room >= 0 else image._replace(variants=(), note=image.note or TOO_MUCH))
        yield "%s</main></body></html>\n" % self._links()

    def _head(self) -> str:
        listing, host = self._listing, html.escape(self._host)
        total, repositories = len(listing.images), len({image.repository for image in listing.images})
        facts = "%s in %s, %s in layers, each counted once." % (
            _count(total, "image"), _count(repositories, "repository", "repositories"),
            human_size(listing.size))
        if not total:
            facts = "This registry holds no image yet."
        if listing.nameless:
            facts += " %s can't be asked for by a name here; minipull images lists them." % (
                _count(listing.nameless, "more image"))
        if self._query:
            facts = '%d of %s with <b>%s</b> in the name. <a href="?">Show all</a>' % (
                len(self._chosen), _count(total, "image"), html.escape(self._query))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<title>Images at {host}</title><style>{style}</style></head>\n"
            "<body><header><h1>Images at {host}</h1>\n"
            '<form role="search"><label for="q">Filter by name</label><input type="search" id="q" name="q"'
            ' value="{query}"><button>Filter</button></form>\n'
            "<p>{facts}</p>\n{first}{legend}</header>\n<main>\n"
        ).format(host=host, style=_STYLE, query=html.escape(self._query), facts=facts, first=self._settings(),
                 legend=_LEGEND if listing.users else "")

    def _settings(self) -> str:
        """Return what a tool must be told before its first pull."""
        if self._secure:
            return "<p>Over TLS a tool needs no setting, as long as it trusts the certificate.</p>\n"
        settings = "".join("<h2>{tool}: <code>{file}</code></h2>\n<pre><code>{text}</code></pre>\n".format(
            tool=tool, file=html.escape(file.format(host=self._host)),
            text=html.escape(text.format(host=self._host))) for tool, file, text in _SETTINGS)
        return ("<details><summary>Before the first pull: what docker, k3s and Kubernetes need</summary>\n"
                "%s</details>\n" % settings)

    def _links(self) -> str:
        """Return links to the images before and after these, if there are more."""
        starts = (self._first - MAX_SHOWN, "Images before"), (self._first + MAX_SHOWN, "More images")
        links = ['<a href="?%s">%s</a>\n' % (
            html.escape(urllib.parse.urlencode({"q": self._query, "from": max(start, 0)})), text)
            for start, text in starts if -MAX_SHOWN < start < len(self._chosen)]
        return "<nav>%s</nav>\n" % "".join(links) if links else ""

    def _image(self, image: Listed) -> str:
        tags = list(image.tags[:MAX_TAGS])
        name = "%s/%s%s" % (self._host, image.repository, ":" + tags[0] if tags else "@" + image.digest)
        title = ", ".join(tags) or "without a tag"
        if len(image.tags) > MAX_TAGS:
            title += " <span>and {:,} more</span>".format(len(image.tags) - MAX_TAGS)
        single = len(image.variants) == 1
        facts = [html.escape(image.kind), self._layers(image.variants[0]) if single else human_size(image.size)]
        facts += [_age(variant.created) for variant in image.variants[:1]]
        facts += [_count(image.referrers, "signature or other referrer", "signatures and other referrers")
                  if image.referrers else ""]
        bars = "".join(("" if single else "<p>%s</p>\n" % self._layers(variant)) + self._bar(variant)
                       for variant in image.variants)
        flagged = [(tool, text.format(name=name, flag="" if self._secure else flag))
                   for tool, text, flag in _PULLS]
        pulls = "".join("<dt>%s<dd><code>%s</code>" % (tool, html.escape(text)) for tool, text in flagged
                        if not image.kind or tool == "minipull")
        return (
            "<h3>{title}</h3>\n<p>{facts}</p>\n{note}<p><code>{digest}</code></p>\n{bars}"
            "<details><summary>Pull {name}</summary><dl>{pulls}</dl></details>\n").format(
                title=title, facts=" · ".join(filter(None, facts)), digest=image.digest, pulls=pulls,
                bars=bars, note="<p><b>%s</b></p>\n" % image.note if image.note else "",
                name=tags[0] if tags else "by digest")

    def _layers(self, variant: Variant) -> str:
        shared = sum(digest in self._colours for digest, _ in variant.layers)
        return "%s · %s in %s%s" % (
            html.escape(variant.platform or "unknown platform"),
            human_size(sum(size for _, size in variant.layers)), _count(len(variant.layers), "layer"),
            ", %d shared" % shared if shared else "")

    def _bar(self, variant: Variant) -> str:
        """Return the layers as a bar to scale; the thinnest is three units wide, or less if there are many."""
        if not variant.layers:
            return ""
        total = sum(size for _, size in variant.layers) or 1
        thinnest = min(3.0, BAR / 5 / len(variant.layers))
        scale = (BAR - thinnest * len(variant.layers)) / total
        parts, texts, left = [], [], 0.0
        for digest, size in variant.layers:
            width, text, colour = thinnest + scale * size, human_size(size), self._colours.get(digest)
            texts.append(text + " shared" if colour else text)
            parts.append('<rect x="%.1f" width="%.1f" %s><title>%s %s%s</title></rect>' % (
                left, width, 'height="16" fill="%s"' % colour if colour else 'y="8" height="8" class="own"',
                digest.short, text, ", in %d images" % self._listing.users[digest] if colour else ""))
            left += width
        return ('<svg viewBox="0 0 %d 16" preserveAspectRatio="none" role="img" aria-label="Layers: %s">'
                "%s</svg>\n" % (BAR, ", ".join(texts), "".join(parts)))


_LEGEND = """<p>In the bar of an image each layer is as wide as its share of the bytes. A layer that other
images have too is high and has its own colour, the same in every bar; one of this image alone is low and
grey.</p>
"""


def _chosen(images: Sequence[Listed], words: List[str]) -> Iterator[Listed]:
    """Yield the images that have each of these words in a name, the tags with them first."""
    form = "{0}:{1}@{2}" if any(word.startswith("sha256:") for word in words) else "{0}:{1}"
    for image in images:
        chosen = [tag for tag in image.tags or [""]
                  for name in [form.format(image.repository, tag, image.digest).lower()]
                  if all(word in name for word in words)]
        if chosen and image.tags and words:
            yield image._replace(tags=chosen + sorted(set(image.tags).difference(chosen), key=version))
        elif chosen:
            yield image


def _colours(listing: Listing) -> Dict[Digest, str]:
    """Return a colour for each layer of several images, in the order of the listing."""
    images = {image.digest: image for image in listing.images}.values()  # one of all its names
    layers = (layer for image in images for variant in image.variants for layer in variant.layers)
    shared = dict.fromkeys(digest for digest, _ in layers if listing.users[digest] > 1)
    return {digest: colour(number % 4096) for number, digest in enumerate(shared)}


@functools.lru_cache(maxsize=4096)
def colour(number: int) -> str:
    """Return one of many colours, far from the one before, that are seen on white and on black."""
    light, bright = (0.17, 0.27)[number % 2], (0.0, 1.0)
    for _ in range(12):  # until it is as luminous as that, by WCAG 2
        middle = sum(bright) / 2
        rgb = colorsys.hls_to_rgb((0.58 + number * 0.381966) % 1, middle, 0.6)
        bright = (bright[0], middle) if luminance(rgb) > light else (middle, bright[1])
    return "#%02x%02x%02x" % tuple(round(255 * value) for value in rgb)


def luminance(rgb: Sequence[float]) -> float:
    """Return the relative luminance of a colour of sRGB, by WCAG 2."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _count(number: int, one: str, many: str = "") -> str:
    return "{:,} {}".format(number, one if number == 1 else many or one + "s")


def _age(created: str) -> str:
    """Return a time in RFC 3339 as its day and age; empty if it is none, or as old as builds fake it."""
    match = re.match("([0-9]{4})-([0-9]{2})-([0-9]{2})T", created)
    with contextlib.suppress(ValueError):
        day = datetime.date(*map(int, match.groups())) if match else datetime.date.min
        days = (datetime.date.today() - day).days
        if day.year > 2000:
            length, unit = (365, "year") if days >= 730 else (30, "month") if days >= 60 else (1, "day")
            age = "%s old" % _count(days // length, unit) if days else "today"
            return '<time datetime="{0}">{0}</time>{1}'.format(day, ", " + age if days >= 0 else "")
    return ""
