# SPDX-License-Identifier: Apache-2.0
"""The command doctor REF: the way of a pull, a line a step, to where it ends.

The loop, the endpoints and the connections are those of a pull; nothing is stored, and
no line holds a secret.  A step that fails says what to do, and the exit code is that of
the pull.  A wrong clock is a note: alone it stops no pull.
"""
import contextlib
import datetime
import email.utils
import os
import re
import ssl
import time
from typing import Dict, List, Optional, Tuple

from ..distribution.pull import pull_options
from ..distribution.pull_v2 import V2Puller
from ..errors import Error, NetworkError, PolicyError, one_line
from ..image.manifest import Index, Manifest, is_schema1
from ..progress import discard, human_size
from ..reference import Reference
from ..registry.auth import parse_challenges
from ..registry.client import Client, over_endpoints
from ..registry.connection import Connection
from ..registry.endpoints import Endpoint, addresses_of
from ..registry.errors import MAX_TEXT, Outage, continue_on_error
from ..registry.network import Connected
from ..registry.request import Request
from ..registry.response import Response
from ..registry.tls import add_authorities, client_context
from ..registry.transport import Transport
from ..registry.url import Origin
from .context import Context, reference
from .parser import program

_MAX_CHALLENGES = 8  # of one answer
MAX_SKEW = 120  # seconds by which two good clocks may differ
#: Steps, how an exit code and an error begin or go on, and the remedy; the first that fits counts.
_REMEDIES = (
    (".*", "9 .*(--only|--offline)", "allow that host with --only or allowed-hosts, or leave these out"),
    ("name", "", "write [HOST[:PORT]/]PATH[:TAG][@DIGEST]"),
    ("settings|mirrors", "", "correct that setting; --config names another settings file"),
    ("proxy", "4", "put USER:PASSWORD@ in front of the proxy's host in %(variable)s"),
    ("proxy", "", "correct %(variable)s, have the proxy let %(host)s through, or put that in NO_PROXY"),
    ("certificates", "", "correct or remove that file, or make it readable"),
    ("addresses", "", "check the name, this host's DNS, and %(variable)s if only a proxy leads out"),
    ("connect", "", "check host, port and firewall, and %(variable)s if only a proxy leads out"),
    (".*", ".*client certificate", "put NAME.cert and NAME.key into %(folder)s"),
    ("tls", "(?i).*(match|not valid for)", "use a name of the certificate (%(names)s), or renew it for this"),
    ("tls", "9", "put the certificate of that CA into %(folder)s/ca.crt, or name the file with --ca-file"),
    ("tls", "", "if it is a registry without TLS, give --plain-http or put %(host)s in insecure-registries"),
    ("/v2/", "5 .*speaks TLS", "leave out --plain-http"),
    ("/v2/", "", "check that a registry speaks %(scheme)s on this port; --timeout gives it longer"),
    ("credentials|token", "[2467]",
     "%(program)s login %(host)s, or correct --creds or the file of credentials"),
    ("token|manifest|blob", "5 no answer", "make %(peer)s reachable as well: firewall, %(variable)s, NO_PROXY"),
    ("platform", "3", "give --platform one that there is"),
    ("manifest", "3 (?!elsewhere)", "check name and tag: %(program)s tags %(repository)s"),
    (".*", "4 (?!elsewhere)", "%(program)s login %(host)s as one who may pull it"),
    (".*", "8", "wait, or %(program)s login %(host)s for a higher limit"),
    (".*", "", "ask whoever runs %(peer)s"))


class Diagnosis:
    """The way of one pull, of the name that was ``typed``."""

    def __init__(self, context: Context, typed: str) -> None:
        self._context, self._cancel, self._typed = context, context.cancel, typed
        self._steps: List[Dict[str, str]] = []
        self._at = "name"  # the step under way; empty once its failure has been shown
        self._facts = {"name": typed, "names": "unknown", "url": "", "program": program()}  # for remedies
        self._connected: Dict[Origin, Connected] = {}
        self._last: Optional[Tuple[Connection, Request, Optional[Response]]] = None
        self._skew, self._clock = 0.0, ""  # seconds that this host is ahead of a registry

    def run(self) -> int:
        """Show each step; returns the exit code of the one at which the way ends."""
        error, code = "", 0
        try:
            self._go()
        except Error as exc:
            self._cancel.check()
            self._fail(exc)
            error, code = str(exc), exc.exit_code
        self._show_clock()
        if self._context.json:
            self._context.dump({"name": self._facts["name"], "ok": not code, "error": error, "code": code,
                                "steps": self._steps})
        return code

    def _tell(self, step: str, text: str, status: str = "ok", remedy: str = "") -> None:
        """Show a step, once for an endpoint."""
        line = {"step": step, "status": status, "endpoint": self._facts["url"],
                "text": one_line(text[:MAX_TEXT]), "try": one_line(remedy[:MAX_TEXT])}
        if line not in self._steps:
            self._steps.append(line)
            mark = {"ok": "", "fail": "FAILED: ", "note": "note: "}[status]
            if not self._context.json:
                advice = remedy and "; try: " + line["try"]
                self._context.show("%-12s %s%s%s" % (step, mark, line["text"], advice))

    def _fail(self, error: Error, status: str = "fail", advise: bool = True) -> None:
        """Show the failure of the step under way, unless that is done; our remedy replaces the error's own."""
        if self._at:
            text = re.sub("; (put|use) .*", "", str(error))
            self._tell(self._at, text, status, self._remedy(error) if advise else "")
        self._at = ""

    def _remedy(self, error: Error) -> str:
        conn, request, response = self._last or (None, None, None)
        origin = Origin.of(request.url) if request else None
        facts, step, mark = dict(self._facts, peer=str(origin)), self._at, ""
        if origin and origin != Origin.of(self._facts["url"]):  # a token server, or the target of a redirect
            mark = "elsewhere: "
            facts.update({} if response else self._naming(origin, str(origin)))
        if conn and not response:
            mark = "no answer: "
            if conn.stage == "proxy" or conn.stage == "tls" and isinstance(error, PolicyError):
                step = conn.stage
        if origin and step == "tls" and isinstance(error, PolicyError):
            self._handshake(client_context(verify=False), origin)
            connected = self._connected.get(origin)
            names, _, first, last = (connected.certificate if connected else None) or ((), "", 0, 0)
            facts["names"], now = ", ".join(names), time.time()
            if first and not first <= now <= last:
                good = first <= now - self._skew <= last  # by the registry's clock
                advice = "set this host's clock" if good else "have the certificate renewed"
                return "%s: the certificate is good from %s to %s, and this host's clock says %s" % (
                    advice, _date(first), _date(last), _date(now))
        text = "%d %s%s" % (error.exit_code, mark, error)
        return next(remedy for steps, begin, remedy in _REMEDIES
                    if re.fullmatch(steps, step) and re.match(begin, text)) % facts

    def _show_clock(self) -> None:
        """Show the quota, and this host's clock next to the first Date of a registry."""
        for quota in self._context.network.quotas.values() if self._last else ():
            self._tell("quota", str(quota))
        if self._clock:
            off, side = abs(self._skew) > MAX_SKEW, "ahead of" if self._skew > 0 else "behind"
            difference = datetime.timedelta(seconds=int(abs(self._skew)))
            self._tell("clock", "%s %s %s" % (difference, side, self._clock), "note" if off else "ok",
                       "set this host's clock, on which certificates and tokens depend" if off else "")

    def _go(self) -> None:
        """Walk the endpoints as a pull does; raises its error."""
        name = reference(self._typed).docker_ref()
        self._facts.update(name=str(name), repository=name.familiar_name)
        self._tell("name", "%s (typed %s)" % (name, self._typed))
        self._at = "settings"
        settings, network = self._context.settings, self._context.network
        options, store, downloads = pull_options(settings.platform), settings.store(), settings.downloads()
        access = self._context.access
        service = self._service = access.service([name.domain], network)
        self._credentials = access.credentials([name.domain])
        network.connected = lambda connected: self._connected.update({connected.origin: connected})
        self._tell("settings", settings.path or "no file")
        self._at = "mirrors"
        endpoints = service.pull_endpoints(name)
        mirrors = ", ".join(endpoint.url for endpoint in endpoints if endpoint.mirror)
        self._tell("mirrors", "%s, from %s" % (mirrors, settings.path) if mirrors else "none")
        if service.v1_endpoints(name):
            self._tell("mirrors", "the v1 protocol, which is allowed, is not looked into", "note")
        with Client(service, self._credentials) as client:
            client.transport.watch = self._watch

            def walk(endpoint: Endpoint) -> None:
                try:
                    self._prepare(endpoint, name)
                    self._reach(endpoint, client.transport)
                    self._ask(V2Puller(client.repository(endpoint, name), store, downloads, options, discard,
                                       self._cancel), str(name.digest or name.tag))
                except Error as exc:
                    self._cancel.check()
                    later = [other for other in endpoints[endpoints.index(endpoint) + 1:]
                             if other.url.startswith("https:") or not client.spoke_tls(other)]
                    goes_on = bool(later) and continue_on_error(exc, endpoint.mirror)
                    self._fail(exc, "note" if goes_on else "fail", endpoint.mirror or not goes_on)
                    # A diagnosis does not wait for the end of an outage.
                    raise NetworkError(str(exc)) if isinstance(exc, Outage) else exc

            over_endpoints(client, name, "doctor %s" % (name,), walk, self._cancel, discard)

    def _prepare(self, endpoint: Endpoint, name: Reference) -> None:
        """Show what decides how an endpoint is asked."""
        settings, service, origin = self._context.settings, self._service, Origin.of(endpoint.url)
        self._last, self._at = None, "proxy"
        self._facts.update(self._naming(origin, endpoint.host), url=endpoint.url)
        variable = self._facts["variable"]
        self._tell("endpoint", endpoint.url + (", a mirror" if endpoint.mirror else ""))
        rule = service.exemption(endpoint.host)
        rule += " in " + settings.path if "registries" in rule else ""
        rule = "plain-http is true" if service.plain_http else rule
        self._tell("insecure", "yes: " + rule if rule else "no")
        proxy = service.proxies.find(origin)
        self._tell("proxy", "http://%s:%d, from %s" % (proxy.host, proxy.port, variable) if proxy else
                   "none: " + (service.proxies.exemption(origin) or variable + " is not set"))
        self._at = "credentials"
        path = "" if endpoint.mirror else name.path
        credential, text = self._credentials.get(endpoint.host, path), self._credentials.described(endpoint.host, path)
        files = [source.name for source in self._context.access.sources()
                 if source.text or os.path.exists(source.name)]
        text = "none in " + (", ".join(files) or "any file") if credential.anonymous else text
        self._tell("credentials", ", ".join(
            [text] + ["asked docker-credential-" + helper for helper, _ in self._credentials.asked]))
        if origin.scheme == "https":
            self._at = "certificates"
            files, folders = service.certificates(origin)
            service.tls_context(origin)
            self._tell("certificates", ", ".join([authorities(), *files, *folders]))

    def _naming(self, origin: Origin, host: str) -> Dict[str, str]:
        """The facts of a host that remedies name."""
        variable = origin.scheme.upper() + "_PROXY"
        variable = variable.lower() if self._context.settings.environ.get(variable.lower()) else variable
        folders = self._service.certificates(origin)[1]
        folders.append(os.path.join(self._service.certs[0], host.lower()))
        return {"scheme": origin.scheme, "host": host, "variable": variable, "folder": folders[0]}

    def _reach(self, endpoint: Endpoint, transport: Transport) -> None:
        """Ask for the root of the API, and show each stage of the connection that is over."""
        self._at, begin = "addresses", time.monotonic()
        try:
            with transport.send(Request("GET", endpoint.api, self._cancel, once=True)) as response:
                spent = 1000 * (time.monotonic() - begin)
        finally:
            self._show_stages(Origin.of(endpoint.url))
        self._tell("/v2/", "%d %s in %d ms" % (response.status, response.reason, spent),
                   "ok" if response.status in (200, 401) else "note")

    def _show_stages(self, origin: Origin) -> None:
        stage = self._last[0].stage if self._last else "addresses"
        peer, connected = self._service.proxies.find(origin) or origin, self._connected.get(origin)
        for step in ("addresses", "connect", "proxy", "tls", ""):
            self._at = step or "/v2/"
            if step == stage:
                break
            if step == "addresses":
                self._tell(step, ", ".join(dict.fromkeys(addresses_of(peer.host.strip("[]")))))
            elif step == "connect":
                self._tell(step, "%s port %d" % (connected.address if connected else peer.host, peer.port))
            elif step == "tls" and connected and connected.certificate:
                names, issuer, _, last = connected.certificate
                self._tell(step, "%s, issued by '%s', until %s, %s, for %s" % (
                    connected.tls, issuer, _date(last), self._vouching(origin), ", ".join(names)))

    def _vouching(self, origin: Origin) -> str:
        """The CA file by which a certificate is trusted."""
        if self._service.tls_context(origin).verify_mode == ssl.CERT_NONE:
            return "not verified"
        files, folders = self._service.certificates(origin)
        files += [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder))
                  if name.endswith(".crt")]
        context = client_context(verify=True)
        if not files or self._handshake(context, origin):
            return "trusted by " + authorities()
        for path in files:
            add_authorities(context, path)
            if self._handshake(context, origin):
                return "trusted by " + path
        return "trusted by one of " + ", ".join(files)  # where the host wants a client certificate as well

    def _handshake(self, context: ssl.SSLContext, origin: Origin) -> bool:
        """Whether a host's certificate is good by another context; nothing secret is sent."""
        transport = Transport(lambda origin: context, self._context.settings.timeout,
                              proxy=self._service.proxies.find, network=self._context.network)
        transport.watch = lambda conn, request, response: self._see_date(response)
        request = Request("GET", "https://%s" % (origin,), self._cancel, once=True, follow=False)
        with contextlib.closing(transport), contextlib.suppress(Error):
            transport.send(request).close()
        return bool(transport.spoke_tls)

    def _ask(self, puller: V2Puller, target: str) -> None:
        """Ask for the manifest and the first byte of a blob."""
        self._at = "manifest"
        received = puller.repository.manifest(target, self._cancel)
        if is_schema1(received.raw, received.content_type):
            return self._tell("manifest", "%s, schema 1: its blobs are not looked at" % received.digest, "note")
        top = received.document()
        platforms = [str(entry.platform) for entry in (top.images if isinstance(top, Index) else ())]
        self._tell("manifest", ", ".join([top.digest, top.media_type, *platforms]))
        self._at = "platform"
        image = puller.chosen(top)[0]
        assert isinstance(image, Manifest)
        self._tell("platform", "%s, %d layers, %s" % (
            puller.options.platform, len(image.layers), human_size(sum(blob.size for blob in image.blobs))))
        self._at = "blob"
        blob = next((layer for layer in image.layers if layer.size and not layer.is_foreign), image.config)
        with puller.repository.blob(blob.digest, 0, self._cancel) as response:
            if not response.readinto(memoryview(bytearray(1))):
                raise NetworkError("%s sends nothing of blob %s" % (response.origin, blob.digest))
        self._tell("blob", "first byte of %s from %s" % (blob.digest, response.origin))

    def _watch(self, conn: Connection, request: Request, response: Optional[Response]) -> None:
        """Follow a request for the manifest to a challenge, to the token server, and back with a token."""
        former, self._last = self._last, (conn, request, response)
        self._see_date(response)
        if request.role:
            return
        if response is None and self._at in ("credentials", "token"):
            self._at = "manifest"
            if former and former[1].role:
                self._tell("token", "from %s for %s" % (Origin.of(former[1].url), self._facts["scope"]))
        elif response and response.status == 401 and self._at == "manifest":
            for scheme, parameters in parse_challenges(response.values("WWW-Authenticate"))[:_MAX_CHALLENGES]:
                self._facts["scope"] = parameters.get("scope", "no scope")
                text = scheme
                with contextlib.suppress(PolicyError):  # of a realm that is no URL, as for Basic
                    text += ", token server " + str(Origin.of(parameters.get("realm", "")))
                self._tell("challenge", text)
                if "Bearer" not in request.headers.get("Authorization", ""):
                    self._at = "token" if scheme == "bearer" else "credentials"

    def _see_date(self, response: Optional[Response]) -> None:
        if response and not self._clock:
            with contextlib.suppress(Exception):  # as various as there are versions and malformed dates
                date = email.utils.parsedate_to_datetime(response.header("Date")).timestamp()
                self._skew, self._clock = time.time() - date, str(response.origin)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def authorities() -> str:
    """The places of the system's CA certificates."""
    paths = ssl.get_default_verify_paths()
    names = ", ".join(filter(None, (paths.cafile, paths.capath)))
    return names or "none: install ca-certificates, or give --ca-file"
