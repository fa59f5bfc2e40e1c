# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol: an index of repositories, and the registries that it names.

Nothing here is named by its content, and an answer decides where images and
tokens go next.  The rules:

- an index may name registries on its own host only;
- its tokens go to those; a password goes to the index alone, and if that is a
  registry as well, with every request, but that only over https;
- ids are checked before they are part of a URL or a path.

Mirrors moby's registry/{endpoint_v1,session}.go.
"""
import contextlib
import json
import re
from typing import Any, Callable, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..cancel import Cancel
from ..digest import check_v1_id
from ..errors import InvalidDocument, NetworkError, NoSupport, NotFound, PolicyError
from ..image.manifest import MAX_LAYERS
from ..image.strictjson import object_at, parse_json, parse_value
from ..reference import Reference, is_tag
from .auth import Credential, basic
from .endpoints import HUB_INDEX, Endpoint
from .errors import ErrorDetail, RegistryError
from .request import Body, Request
from .response import Response
from .transport import Transport
from .url import Origin

MAX_TAGS = 100000
MAX_JSON = 8 << 20  # bytes, of one image
_MAX_LIST = 64 << 20  # bytes, of the images of a repository
_JSON = {"Content-Type": "application/json"}
_TOKEN = re.compile(r"(?:Token )?([!-~]+)")
#: tarsum+sha256 is none of these.
_CHECKSUM = re.compile("(?<![+.0-9a-z])sha256:[0-9a-f]{64}")


class V1Image(NamedTuple):
    """The JSON of an image; of it, a line feed and the layer are ``checksums``, if there are any."""
    raw: bytes
    checksums: Collection[str]


class Session:
    """Asks the index at one endpoint, and its registries, about one repository.

    Threads may share it; ``warn`` hears that it is used.  Errors are those of
    Transport, RegistryError for a request that is refused, NotFound,
    InvalidDocument and PolicyError for an answer that won't do.
    """

    def __init__(self, endpoint: Endpoint, reference: Reference, transport: Transport,
                 credential: Callable[[], Credential], warn: Callable[[str], None] = lambda text: None) -> None:
        self.name = reference.name
        self.domain = reference.domain
        #: Who has images and tags, as URLs that end with a slash; from look_up() or start_push().
        self.registries: Sequence[str] = ()
        self._index = endpoint.url + "/v1/"
        self._repository = "%srepositories/%s/" % (self._index, reference.path)
        # What has no namespace has this one to a registry, and none to the index.
        self._namespace = "" if "/" in reference.path else "library/"
        self._path = reference.path
        self._transport = transport
        self._credential = credential
        self._warn = warn
        self._origin = Origin.of(endpoint.url)
        self._always = False  # is the password to go with every request?
        self._token = ""

    def ping(self, cancel: Cancel) -> None:
        """Find out whom we speak to; raises NoSupport if that is no v1 registry."""
        if self._origin.host == HUB_INDEX:
            return
        with self._send(Request("GET", self._index + "_ping", cancel)) as response:
            if response.status not in (200, 401):
                raise NoSupport("%s does not speak the v1 protocol" % (self._origin,))
            text = response.header("X-Docker-Registry-Standalone")
            body = response.read(MAX_JSON)
        if not text and response.status == 200 and body.lstrip()[:1] == b"{":
            text = str(parse_json(body, "answer to a ping").get("standalone", True))
        standalone = text.lower() in ("", "true", "1")
        self._warn("%s speaks the v1 protocol, in which nothing is verified" % (self._origin,))
        self._always = standalone and self._origin.scheme == "https" and bool(self._credential().username)

    # The index.

    def look_up(self, tag: str, cancel: Cancel) -> None:
        """Learn who has the repository, of which a tag or, without one, everything is wanted."""
        self._learn(self._checked(
            "GET", self._repository + "images", cancel, "trying to pull repository %s" % self.name,
            missing="Error: image %s not found" % ":".join(filter(None, (self._path, tag))), token=True))

    def start_push(self, images: List[Dict[str, str]], cancel: Cancel) -> None:
        """Announce the images of a push."""
        response = self._checked("PUT", self._repository, cancel, "trying to push repository %s" % self.name,
                                 images, token=True)
        self._learn(response)
        if not response.header("X-Docker-Endpoints"):
            raise InvalidDocument("Index response didn't contain any endpoints")

    def end_push(self, images: List[Dict[str, str]], cancel: Cancel) -> None:
        """Tell the index that all of them are there."""
        self._checked("PUT", self._repository + "images", cancel, "trying to push checksums %s" % self.name,
                      images, {"X-Docker-Endpoints": ",".join(self.registries)}, token=True).discard()

    def _learn(self, response: Response) -> None:
        response.discard()
        found = [_TOKEN.fullmatch(value) for value in response.headers.get("x-docker-token", ())]
        self._token = ",".join(match.group(1) for match in found if match)
        hosts = [host.strip() for host in response.header("X-Docker-Endpoints").split(",")]
        urls = []
        for host in filter(None, hosts):
            origin = Origin.of("%s://%s" % (self._origin.scheme, host))
            if "/" in host or origin.host != self._origin.host:
                raise PolicyError("%s names a registry on another host, %s, refused" % (
                    self._origin, ascii(host)[1:-1][:200]))
            urls.append("%s://%s/v1/" % (origin.scheme, origin))
        self.registries = urls or [self._index]

    # A registry.

    def all_tags(self, cancel: Cancel) -> List[str]:
        """Every tag, from the first question on."""
        self.ping(cancel)
        self.look_up("", cancel)
        found = object_at({"tags": self._ask_any("", "Repository not found", cancel)}, "tags", "list of tags")
        if len(found) > MAX_TAGS:
            raise PolicyError("%s: more than %d tags" % (self._origin, MAX_TAGS))
        for tag in found:
            if not is_tag(tag):
                raise InvalidDocument("list of tags: invalid tag %s" % ascii(tag)[:150])
        return sorted(found)

    def tag(self, tag: str, cancel: Cancel) -> str:
        """The id that a tag stands for."""
        missing = "Tag %s not found in repository %s" % (tag, self.name)
        return check_v1_id(self._ask_any(tag, missing, cancel))

    def _ask_any(self, tag: str, missing: str, cancel: Cancel) -> object:
        """What the first registry that gives an answer says."""
        for registry in self.registries[:-1]:
            with contextlib.suppress(NetworkError, RegistryError):
                return self._get(registry + self._tag(tag), cancel, "trying to get tags", missing)
        return self._get(self.registries[-1] + self._tag(tag), cancel, "trying to get tags", missing)

    def ancestry(self, registry: str, v1_id: str, cancel: Cancel) -> List[str]:
        """An id and those of all that it lies on, the top first."""
        found = self._get("%simages/%s/ancestry" % (registry, v1_id), cancel,
                          "trying to fetch remote history for %s" % v1_id)
        if not isinstance(found, list) or not found:
            raise InvalidDocument("empty history for image %s" % v1_id)
        ids = [check_v1_id(each) for each in found]
        if ids[0] != v1_id or len(set(ids)) != len(ids):
            raise InvalidDocument("history of image %s is another's, or goes in circles" % v1_id)
        if len(ids) > MAX_LAYERS:
            raise PolicyError("image %s has %d layers, the limit is %d" % (v1_id, len(ids), MAX_LAYERS))
        return ids

    def image(self, registry: str, v1_id: str, cancel: Cancel) -> V1Image:
        """What the registry knows of an image."""
        with self._checked("GET", "%simages/%s/json" % (registry, v1_id), cancel,
                           "trying to fetch the JSON of image %s" % v1_id) as response:
            said = " ".join(response.headers.get("x-docker-checksum-payload", ()))
            return V1Image(response.read(MAX_JSON), _CHECKSUM.findall(said))

    def layer(self, registry: str, v1_id: str, cancel: Cancel, start: int = 0, size: int = 0) -> Response:
        """The layer of an image, all of it, or from ``start`` on what is left of ``size`` bytes."""
        # Where the end is not said, docker-registry promises one byte too many.
        headers = {"Range": "bytes=%d-%d" % (start, size - 1)} if start else {}
        return self._checked("GET", "%simages/%s/layer" % (registry, v1_id), cancel,
                             "while fetching image layer (%s)" % v1_id, headers=headers)

    def put_image(self, registry: str, v1_id: str, raw: bytes, cancel: Cancel) -> bool:
        """Begin an image by its JSON; False if the registry has it."""
        try:
            self._checked("PUT", "%simages/%s/json" % (registry, v1_id), cancel, "while uploading metadata",
                          raw).discard()
        except RegistryError as exc:
            if "Image already exists" not in str(exc):
                raise
            return False
        return True

    def put_layer(self, registry: str, v1_id: str, body: Body, cancel: Cancel) -> None:
        """Send the layer of an image that has been begun."""
        self._checked("PUT", "%simages/%s/layer" % (registry, v1_id), cancel, "while uploading layer", body,
                      {"Content-Type": "application/octet-stream"}).discard()

    def put_checksum(self, registry: str, v1_id: str, tarsum: str, payload: str, cancel: Cancel) -> None:
        """Finish an image; the registry compares the checksum of the payload."""
        self._checked(
            "PUT", "%simages/%s/checksum" % (registry, v1_id), cancel, "while uploading metadata", b"",
            {"X-Docker-Checksum": tarsum, "X-Docker-Checksum-Payload": payload}).discard()

    def put_tag(self, registry: str, tag: str, v1_id: str, cancel: Cancel) -> str:
        """Let a tag stand for an image; returns the tag's URL."""
        url = registry + self._tag(tag)
        self._checked("PUT", url, cancel, "trying to push tag %s on %s" % (tag, self.name), v1_id).discard()
        return url

    def _tag(self, tag: str) -> str:
        return "repositories/%s%s/tags%s" % (self._namespace, self._path, tag and "/" + tag)

    def _get(self, url: str, cancel: Cancel, what: str, missing: str = "") -> object:
        with self._checked("GET", url, cancel, what, missing=missing) as response:
            return parse_value(response.read(_MAX_LIST), "answer of %s" % (self._origin,))

    def _checked(self, method: str, url: str, cancel: Cancel, what: str, content: Any = None,
                 headers: Optional[Mapping[str, str]] = None, missing: str = "",
                 token: bool = False) -> Response:
        """The answer, unless it is an error, which is raised: ``what`` could not be done, or is ``missing``."""
        fields, body = dict(headers or {}), content
        if isinstance(content, bytes):
            body = Body.of(content)
        elif content is not None and not isinstance(content, Body):
            body = Body.of(json.dumps(content, separators=(",", ":")).encode())
        if body is not None:
            fields = dict(_JSON, **fields)
        response = self._send(Request(method, url, cancel, fields, body), token)
        if response.status in (200, 201, 204, 206):
            return response
        with response:
            said = response.read(MAX_JSON).decode("utf-8", "replace")
        if response.status == 401:
            plain = "; over http no password goes with every request" * (self._origin.scheme == "http")
            raise RegistryError(401, [ErrorDetail("UNAUTHORIZED", "authentication required" + plain)])
        text = "Error: Status %d %s: %s" % (response.status, what, json.dumps(said.strip()[:300]))
        if response.status == 404:
            raise NotFound(missing or text)
        raise RegistryError(response.status, text=text)

    def _send(self, request: Request, token: bool = False) -> Response:
        """Send a request with what proves who we are, and ask for a ``token``."""
        headers = {"X-Docker-Token": "true"} if token else {}
        if (token or self._always) and Origin.of(request.url) == self._origin and self._credential().username:
            headers["Authorization"] = basic(self._credential())
        elif self._token:
            headers["Authorization"] = "Token " + self._token
        return self._transport.send(request.with_headers(headers))
