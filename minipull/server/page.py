# SPDX-License-Identifier: Apache-2.0
"""The page of a registry: its images, for people at a site with no other tool than a browser.

One HTML document without script; nothing is fetched from elsewhere, and the policy
sent with it allows nothing but its own style sheet.  Every text of an image is
escaped.  Each image has a bar of its layers to scale, a layer of several images in
a colour of its own.
"""
import base64
import calendar
import contextlib
import hashlib
import html
import threading
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

from ..digest import Digest
from ..errors import Error
from ..image.config import ImageConfig
from ..image.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from ..image.manifest import Index, Manifest, is_runnable
from ..progress import human_size
from ..reference import version
from ..store.store import ImageSource
from .catalog import Catalog
from .message import Headers

BAR = 1000  # units of the width of a bar
MAX_VARIANTS = 16  # platforms of an image
SMALL = 256 << 10  # bytes; larger documents are not looked into
MAX_DRAWN = 200  # layers of one bar
MAX_LAYERS = 50000  # of all bars together

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--pale:#57606a;--line:#d0d7de;--own:#8c959f}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--paper:#0d1117;--pale:#9aa4af;--line:#30363d;--own:#6e7681}}
body{margin:0 auto;max-width:60rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem}
h2{font-size:1.2rem;border-bottom:1px solid var(--line);margin:2rem 0 0}
h3{font-size:1rem;margin:1rem 0 0}
p{margin:.2rem 0;color:var(--pale)}
code{user-select:all;color:var(--ink)}
pre{margin:.2rem 0 .8rem;white-space:pre-wrap}
svg{display:block;width:100%;height:.8rem;margin:.2rem 0}
.own{fill:var(--own)}
input,button{font:inherit;padding:.2rem .5rem;max-width:100%;box-sizing:border-box}
summary{cursor:pointer}
"""
_POLICY = (
    "default-src 'none'; style-src 'sha256-%s'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    % base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode())
HEADERS: Headers = (
    ("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-cache"))

#: The line that fetches an image, by tool: this registry speaks no TLS.
_PULLS = (
    ("docker", "docker pull {name}"),
    ("containerd", "ctr images pull --plain-http {name}"),
    ("k3s", "k3s crictl pull {name}"),
    ("podman", "podman pull --tls-verify=false {name}"),
    ("minipull", "python3 -m minipull pull --plain-http {name}"))
#: A setting that a tool needs first.
_SETTINGS = (
    ("docker, in /etc/docker/daemon.json", '{{"insecure-registries": ["{host}"]}}'),
    ("k3s, in /etc/rancher/k3s/registries.yaml",
     'mirrors:\n  "{host}":\n    endpoint:\n      - "http://{host}"'))


class Variant(NamedTuple):
    """An image for one platform; ``created`` is a time in RFC 3339, or empty."""
    platform: str
    created: str
    layers: Sequence[Tuple[Digest, int]]  # with their sizes in bytes


class Listed(NamedTuple):
    """An image by its name at this registry; ``size`` (bytes) counts each blob once."""
    repository: str
    tag: str  # empty for an image by digest
    digest: Digest
    size: int
    variants: Sequence[Variant]


class Overview:
    """The images of a store, as the page lists them; read anew when a name has changed."""

    def __init__(self, store: ImageSource, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._lock = threading.Lock()
        # The repositories as they were last seen, and their images.
        self._seen: Tuple[object, List[Listed]] = (None, [])

    def images(self) -> List[Listed]:
        """List every image by the name that a client asks for; one that can't be read has no variants."""
        with self._lock:
            repositories = self._catalog.repositories()
            if self._seen[0] is not repositories:
                self._seen = (repositories, self._listed())
            return self._seen[1]

    def _listed(self) -> List[Listed]:
        images, room = [], MAX_LAYERS
        children: Set[Digest] = set()
        for address, repository in self._catalog.addresses():
            for image in repository.values():
                size = image.descriptor.size
                variants: Sequence[Variant] = ()
                with contextlib.suppress(Error):
                    if room > 0:
                        size, variants = self._read(image.descriptor, children)
                room -= sum(len(variant.layers) for variant in variants)
                images.append(Listed(address, image.name.tag, image.descriptor.digest, size, variants))
        # A push of an index leaves its manifests with names of their own, by digest.
        return sorted((image for image in images if image.tag or image.digest not in children),
                      key=lambda image: (image.repository, version(image.tag), image.digest))

    def _read(self, top: Descriptor, children: Set[Digest]) -> Tuple[int, Sequence[Variant]]:
        """Return the bytes of an image, each blob counted once, and its platforms; add the manifests below."""
        sizes, variants = {top.digest: top.size}, []
        manifests = self._manifests(top)
        children.update(item.digest for item in manifests if item is not top)
        for item in manifests:
            document = self._store.document(item)
            sizes.update((blob.digest, blob.size) for blob in (item, *document.blobs))
            if isinstance(document, Manifest) and is_runnable(document) and document.config.size <= SMALL:
                config = ImageConfig.parse(self._store.content.read(document.config.digest, SMALL))
                layers = [(layer.digest, layer.size) for layer in document.layers[:MAX_DRAWN]]
                variants.append(Variant(str(config.platform), config.created, layers))
        return sum(sizes.values()), variants

    def _manifests(self, top: Descriptor) -> List[Descriptor]:
        """List the manifests of an image that are stored and small enough to be looked into."""
        if top.size > SMALL:
            return []
        if top.media_type not in INDEX_TYPES:
            return [top]
        document = self._store.document(top)
        return [entry for entry in (document.manifests if isinstance(document, Index) else ())[:MAX_VARIANTS]
                if entry.media_type in MANIFEST_TYPES and self._store.content.has(entry.digest, entry.size)
                and entry.size <= SMALL]


def page(images: Sequence[Listed], host: str, query: str) -> Iterator[bytes]:
    """Yield the page, piece by piece; ``host`` is what clients call this registry.

    ``query`` is a part of the names to show.
    """
    users: Dict[Digest, int] = {}
    for image in images:
        for digest in {digest for variant in image.variants for digest, _ in variant.layers}:
            users[digest] = users.get(digest, 0) + 1
    asked = query.lower()
    chosen = [image for image in images if asked in ("%s:%s" % (image.repository, image.tag)).lower()]
    yield _head(host, query, len(chosen), len(images)).encode("utf-8", "replace")
    repository = None
    for image in chosen:
        text = "" if image.repository == repository else "<h2>%s</h2>\n" % html.escape(image.repository)
        repository = image.repository
        yield (text + _image(image, host, lambda digest: users[digest] > 1)).encode("utf-8", "replace")
    yield _foot(host).encode("utf-8", "replace")


def _head(host: str, query: str, shown: int, total: int) -> str:
    count = "%d image%s" % (total, "" if total == 1 else "s")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Images at {host}</title><style>{style}</style></head>\n<body><header><h1>Images at {host}</h1>"
        '<form action="/"><label>Filter by name <input type="search" name="q" value="{query}"></label>'
        " <button>Filter</button></form><p>{count}</p></header>\n<main>\n").format(
            host=html.escape(host), style=_STYLE, query=html.escape(query),
            count="%d of %s" % (shown, count) if query else count)


def _foot(host: str) -> str:
    settings = ["<h3>%s</h3>\n<pre><code>%s</code></pre>\n" % (
        tool, html.escape(text.format(host=host))) for tool, text in _SETTINGS]
    return "</main>\n<footer><h2>Settings that a tool needs first</h2>\n%s</footer></body></html>\n" % (
        "".join(settings))


def _image(image: Listed, host: str, is_shared: Callable[[Digest], bool]) -> str:
    several = len(image.variants) > 1
    name = "%s/%s%s" % (host, image.repository, ":" + image.tag if image.tag else "@" + image.digest)
    platforms = ", ".join(variant.platform for variant in image.variants if variant.platform)
    facts = [platforms, human_size(image.size)] + [_age(variant.created) for variant in image.variants[:1]]
    pulls = ["%s <code>%s</code>\n" % (tool, html.escape(text.format(name=name))) for tool, text in _PULLS]
    return (
        "<h3>{tag}</h3>\n<p>{facts}</p>\n<p><code>{digest}</code></p>\n{bars}"
        "<details><summary>Pull it</summary><pre>{pulls}</pre></details>\n").format(
            tag=html.escape(image.tag or "without a tag"), facts=html.escape(" · ".join(filter(None, facts))),
            digest=image.digest, pulls="".join(pulls),
            bars="".join(_bar(variant, is_shared, several) for variant in image.variants))


def _bar(variant: Variant, is_shared: Callable[[Digest], bool], several: bool) -> str:
    """Return the layers of an image as a bar to scale, with their number and size as its text."""
    total = sum(size for _, size in variant.layers)
    parts, left = [], 0.0
    for digest, size in variant.layers:
        width = BAR * size / (total or 1)
        colour = 'fill="hsl(%d 55%% 50%%)"' % (int(digest.encoded[:6], 16) % 360)
        parts.append('<rect x="%.1f" width="%.1f" height="8" %s><title>%s %s</title></rect>' % (
            left, max(width - 2, 1), colour if is_shared(digest) else 'class="own"', digest.short,
            human_size(size)))
        left += width
    shared = sum(is_shared(digest) for digest, _ in variant.layers)
    text = "%d layers, %s, %d shared with other images" % (len(variant.layers), human_size(total), shared)
    return '%s<svg viewBox="0 0 %d 8" preserveAspectRatio="none" role="img" aria-label="%s">%s</svg>\n' % (
        "<p>%s</p>" % html.escape(variant.platform) if several else "", BAR, text, "".join(parts))


def _age(created: str) -> str:
    """Return the age of a time in RFC 3339, in days; empty if it is none, or as old as builds fake it."""
    with contextlib.suppress(ValueError):
        seconds = time.time() - calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))
        days = int(seconds // 86400)
        if 0 <= days < 13000:
            return "today" if not days else "%d day%s old" % (days, "" if days == 1 else "s")
    return ""
