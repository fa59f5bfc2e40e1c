# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol: an index of repositories, and the registries that it names.

Images have no digests, and the index's answers decide where requests and tokens
go next.  The rules:

- an index may name registries on its own host only;
- the registries get the index's token.  The password goes to the index alone; to
  one that is a registry as well it goes with every request, but only over https;
- ids are checked before they become part of a URL or a path.

Mirrors moby's registry/{endpoint_v1,session}.go.
"""
import contextlib
import json
import re
from typing import Callable, Collection, Dict, List, NamedTuple, Sequence

from ..cancel import Cancel
from ..errors import ContentMismatch, InvalidDocument, NetworkError, NoSupport, NotFound, PolicyError, shown
from ..image.manifest import MAX_LAYERS
from ..image.strictjson import as_object, compact, parse_json, parse_value
from ..reference import Reference
from .auth import Credential, basic
from .endpoints import HUB_INDEX, Endpoint
from .errors import ErrorDetail, RegistryError
from .request import Body, Request
from .response import Response
from .transport import Transport
from .url import Origin
from .v2 import MAX_TAGS, valid_tags

MAX_JSON = 8 << 20  # bytes, of one image
_MAX_LIST = 64 << 20  # bytes, of the images of a repository
_JSON = {"Content-Type": "application/json"}
_RANGE = re.compile("(?:bytes )?([0-9]{1,18})-")  # docker-registry 0.9 leaves the unit out


class V1Image(NamedTuple):
    """The JSON of an image, and the checksums that its registry knows of JSON, line feed and layer."""
    raw: bytes
    checksums: Collection[str]


class Session:
    """A repository at an index and its registries, shared by threads.

    ``warn`` is called when the protocol is used.  Raises as Transport.send;
    RegistryError for a request that is refused, NotFound, InvalidDocument and
    PolicyError for an answer that is malformed or against the rules.
    """

    def __init__(self, endpoint: Endpoint, reference: Reference, transport: Transport,
                 credential: Callable[[], Credential], warn: Callable[[str], None] = lambda text: None) -> None:
        self.name = reference.name
        self.domain = reference.domain
        #: The registries that have images and tags, as URLs with a slash at the end; from the index.
        self.registries: Sequence[str] = ()
        self._index = endpoint.url + "/v1/"
        self._repository = "%srepositories/%s/" % (self._index, reference.path)
        # A registry knows "alpine" as "library/alpine", the index does not.
        self._namespace = "" if "/" in reference.path else "library/"
        self._path = reference.path
        self._transport = transport
        self._credential = credential
        self._warn = warn
        self._origin = Origin.of(endpoint.url)
        self._always = False  # whether the password goes with every request
        self._token = ""

    def ping(self, cancel: Cancel) -> None:
        """Ask whether the endpoint speaks v1, and is an index and registry in one; raises NoSupport."""
        if self._origin.host == HUB_INDEX:
            return
        with self._authorized(Request("GET", self._index + "_ping", cancel)) as response:
            if response.status not in (200, 401):
                raise NoSupport("%s does not speak the v1 protocol" % (self._origin,))
            standalone = response.header("X-Docker-Registry-Standalone")
            body = response.read(MAX_JSON)
        if not standalone and response.status == 200 and body.lstrip()[:1] == b"{":
            standalone = str(parse_json(body, "answer to a ping").get("standalone", True))
        self._warn("%s speaks the v1 protocol, in which nothing is verified" % (self._origin,))
        self._always = (standalone.lower() in ("", "true", "1") and self._origin.scheme == "https"
                        and bool(self._credential().username))

    # The index.

    def look_up(self, tag: str, cancel: Cancel) -> None:
        """Ask the index for the registries of the repository; ``tag`` is for the error alone."""
        image = "%s:%s" % (self._path, tag) if tag else self._path
        self._learn(self._send(
            Request("GET", self._repository + "images", cancel), "trying to pull repository %s" % self.name,
            "Error: image %s not found" % image, index=True))

    def start_push(self, images: List[Dict[str, str]], cancel: Cancel) -> None:
        """Announce the images of a push to the index."""
        request = Request("PUT", self._repository, cancel, _JSON, Body.of(compact(images)))
        response = self._send(request, "trying to push repository %s" % self.name, index=True)
        self._learn(response)
        if not response.header("X-Docker-Endpoints"):
            raise InvalidDocument("Index response didn't contain any endpoints")

    def end_push(self, images: List[Dict[str, str]], cancel: Cancel) -> None:
        """Tell the index that the registries have all images."""
        headers = dict(_JSON, **{"X-Docker-Endpoints": ",".join(self.registries)})
        request = Request("PUT", self._repository + "images", cancel, headers, Body.of(compact(images)))
        self._send(request, "trying to push checksums %s" % self.name, index=True).discard()

    def _learn(self, response: Response) -> None:
        """Keep the token and the registries in an answer of the index."""
        response.discard()
        tokens = [re.fullmatch(r"(?:Token )?([!-~]+)", value) for value in response.values("X-Docker-Token")]
        self._token = ",".join(token.group(1) for token in tokens if token)
        hosts = [host.strip() for host in response.header("X-Docker-Endpoints").split(",")]
        registries = []
        for host in filter(None, hosts):
            origin = Origin.of("%s://%s" % (self._origin.scheme, host))
            if "/" in host or origin.host != self._origin.host:
                raise PolicyError("%s names a registry on another host, %s, refused" % (
                    self._origin, shown(host, 200)))
            registries.append("%s://%s/v1/" % (origin.scheme, origin))
        self.registries = registries or [self._index]

    # A registry.

    def all_tags(self, cancel: Cancel) -> List[str]:
        """All tags, sorted; the index is asked first."""
        self.ping(cancel)
        self.look_up("", cancel)
        tags = as_object(self._ask_any("", "Repository not found", cancel), "tags", "list of tags")
        if len(tags) > MAX_TAGS:
            raise PolicyError("%s: more than %d tags" % (self._origin, MAX_TAGS))
        return sorted(valid_tags(tags, str(self._origin), self._warn))

    def tag(self, tag: str, cancel: Cancel) -> str:
        """The id of the image with a tag."""
        missing = "Tag %s not found in repository %s" % (tag, self.name)
        return check_v1_id(self._ask_any(tag, missing, cancel))

    def _ask_any(self, tag: str, missing: str, cancel: Cancel) -> object:
        """The tags, or one of them, from the first registry that answers."""
        for registry in self.registries[:-1]:
            with contextlib.suppress(NetworkError, RegistryError):
                return self._get(self._tag_url(registry, tag), cancel, "trying to get tags", missing)
        return self._get(self._tag_url(self.registries[-1], tag), cancel, "trying to get tags", missing)

    def ancestry(self, registry: str, v1_id: str, cancel: Cancel) -> List[str]:
        """The ids of an image and all its parents, the top one first."""
        document = self._get("%simages/%s/ancestry" % (registry, v1_id), cancel,
                             "trying to fetch remote history for %s" % v1_id)
        if not isinstance(document, list) or not document:
            raise InvalidDocument("empty history for image %s" % v1_id)
        ids = [check_v1_id(item) for item in document]
        if ids[0] != v1_id or len(set(ids)) != len(ids):
            raise InvalidDocument("history of image %s is another's, or goes in circles" % v1_id)
        if len(ids) > MAX_LAYERS:
            raise PolicyError("image %s has %d layers, the limit is %d" % (v1_id, len(ids), MAX_LAYERS))
        return ids

    def image(self, registry: str, v1_id: str, cancel: Cancel) -> V1Image:
        """Fetch the JSON of an image."""
        request = Request("GET", "%simages/%s/json" % (registry, v1_id), cancel)
        with self._send(request, "trying to fetch the JSON of image %s" % v1_id) as response:
            told = " ".join(response.values("X-Docker-Checksum-Payload"))
            checksums = re.findall("(?<![+.0-9a-z])sha256:[0-9a-f]{64}", told)  # tarsum+sha256 is none of these
            return V1Image(response.read(MAX_JSON), checksums)

    def layer(self, registry: str, v1_id: str, cancel: Cancel, start: int = 0, size: int = 0) -> Response:
        """Fetch a layer, or the rest of its ``size`` bytes from ``start`` on; raises ContentMismatch."""
        # docker-registry 0.9 promises one byte too many for a range without an end.
        headers = {"Range": "bytes=%d-%d" % (start, size - 1)} if start else {}
        response = self._send(Request("GET", "%simages/%s/layer" % (registry, v1_id), cancel, headers),
                              "while fetching image layer (%s)" % v1_id)
        match = _RANGE.match(response.header("Content-Range"))
        if start and (response.status != 206 or match is None or int(match.group(1)) != start):
            response.close()
            raise ContentMismatch("%s answered with another range" % (response.origin,), retry=True)
        return response

    def put_image(self, registry: str, v1_id: str, raw: bytes, cancel: Cancel) -> bool:
        """Start an image with its JSON; False if the registry has it already."""
        request = Request("PUT", "%simages/%s/json" % (registry, v1_id), cancel, _JSON, Body.of(raw))
        try:
            self._send(request, "while uploading metadata").discard()
        except RegistryError as exc:
            if "Image already exists" not in str(exc):
                raise
            return False
        return True

    def put_layer(self, registry: str, v1_id: str, body: Body, cancel: Cancel) -> None:
        """Send the layer of an image that has been started."""
        headers = {"Content-Type": "application/octet-stream"}
        request = Request("PUT", "%simages/%s/layer" % (registry, v1_id), cancel, headers, body)
        self._send(request, "while uploading layer").discard()

    def put_checksum(self, registry: str, v1_id: str, tarsum: str, payload: str, cancel: Cancel) -> None:
        """Finish an image; the registry verifies the checksum of the payload."""
        headers = dict(_JSON, **{"X-Docker-Checksum": tarsum, "X-Docker-Checksum-Payload": payload})
        request = Request("PUT", "%simages/%s/checksum" % (registry, v1_id), cancel, headers, Body.of(b""))
        self._send(request, "while uploading metadata").discard()

    def put_tag(self, registry: str, tag: str, v1_id: str, cancel: Cancel) -> str:
        """Let a tag point to an image; returns the URL of the tag."""
        url = self._tag_url(registry, tag)
        self._send(Request("PUT", url, cancel, _JSON, Body.of(compact(v1_id))),
                   "trying to push tag %s on %s" % (tag, self.name)).discard()
        return url

    def _tag_url(self, registry: str, tag: str) -> str:
        tags = "%srepositories/%s%s/tags" % (registry, self._namespace, self._path)
        return "%s/%s" % (tags, tag) if tag else tags

    def _get(self, url: str, cancel: Cancel, action: str, missing: str = "") -> object:
        with self._send(Request("GET", url, cancel), action, missing) as response:
            return parse_value(response.read(_MAX_LIST), "answer of %s" % (self._origin,))

    def _send(self, request: Request, action: str, missing: str = "", index: bool = False) -> Response:
        """Return the successful answer; raises NotFound (``missing``), RegistryError (``action``)."""
        response = self._authorized(request, index)
        if response.status in (200, 201, 204, 206):
            return response
        with response:
            answer = response.read(MAX_JSON).decode("utf-8", "replace")
        if response.status == 401:
            hint = "; over http no password goes with every request" if self._origin.scheme == "http" else ""
            raise RegistryError(401, [ErrorDetail("UNAUTHORIZED", "authentication required" + hint)])
        text = "Error: Status %d %s: %s" % (response.status, action, json.dumps(answer.strip()[:300]))
        if response.status == 404:
            raise NotFound(missing or text)
        raise RegistryError(response.status, text=text)

    def _authorized(self, request: Request, index: bool = False) -> Response:
        """Send a request with the password, for the ``index``, which gives a token, or with that token."""
        headers = {"X-Docker-Token": "true"} if index else {}
        if (index or self._always) and Origin.of(request.url) == self._origin and self._credential().username:
            headers["Authorization"] = basic(self._credential())
        elif self._token:
            headers["Authorization"] = "Token " + self._token
        request = request._replace(role="named by %s" % (self._origin,))
        return self._transport.send(request.with_headers(headers))


def check_v1_id(text: object) -> str:
    """An image id of the v1 protocol; raises InvalidDocument for anything else."""
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{64}", text):
        raise InvalidDocument("image ID %s is invalid" % ascii(text)[:100])
    return text
