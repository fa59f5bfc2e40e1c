# SPDX-License-Identifier: Apache-2.0
"""The settings in effect: where each comes from, keys that nobody reads, and all of them for another program."""
import json
import os
import re
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import shown
from ..progress import Output, Progress, discard, serialized
from .settings import Settings, find_zstd

if TYPE_CHECKING:
    from ..image.signature import Key
    from ..registry.credentials import Credentials
    from ..registry.endpoints import RegistryService

#: Our keys in the settings file, each with the flag that wins over it.
KEYS = {
    "registry-mirrors": "", "insecure-registries": "", "legacy-registries": "legacy_v1", "hosts": "",
    "max-concurrent-downloads": "jobs", "max-concurrent-uploads": "jobs", "max-download-attempts": "attempts",
    "allowed-hosts": "only", "limit-rate": "limit_rate", "strict-store": "strict_store", "verify-key": "verify_key"}
_HOST_KEYS = ("mirrors", "fallback", "ca")
#: The engine's other keys (dockerd, "Daemon configuration file"), of a daemon.json that is shared.
_ENGINES = frozenset("""
    allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge
    bridge-accept-fwmark builder cdi-spec-dirs cgroup-parent config-file containerd containerd-namespace
    containerd-plugins-namespace cpu-rt-period cpu-rt-runtime data-root debug default-address-pools
    default-cgroupns-mode default-gateway default-gateway-v6 default-ipc-mode default-network-opts default-runtime
    default-shm-size default-ulimits dns dns-opts dns-search exec-opts exec-root experimental features
    firewall-backend fixed-cidr fixed-cidr-v6 graph group host-gateway-ip host-gateway-ips http-proxy https-proxy
    icc init init-path ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6 labels
    live-restore log-driver log-format log-level log-opts metrics-addr minimum-api-version mtu
    network-control-plane-mtu network-diagnostic-port no-new-privileges no-proxy node-generic-resources
    oom-score-adjust pidfile proxies raw-logs rootless runtimes seccomp-profile selinux-enabled shutdown-timeout
    storage-driver storage-opt storage-opts swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify
    userland-proxy userland-proxy-path userns-remap cluster-advertise cluster-store cluster-store-opts
    deprecated-key-path disable-legacy-registry""".split())
#: Variables that no flag of doctor stands for.
_VARIABLES = frozenset("""as attempts bundle chunk_size compress config convert dry_run foreign header jobs keep_going
    legacy_schema1 listen max_unpacked no_clobber referrers root strict_store verify_key writable""".split())
#: The end of a copy that a variable is for.
_ENDS = re.compile("^(src|dest)_(?=(creds|registry_token|authfile|tls_verify|ca_file|cert_dir)$)")
_NO_SETTINGS = ("command", "module", "ref", "format", "version", "verbose")


def unknown_keys(document: Mapping[str, Any], name: str) -> Iterator[str]:
    """A warning for each key that is neither ours nor the engine's, with the nearest one."""
    hosts = document.get("hosts")
    places = [("", document, [*KEYS, *sorted(_ENGINES)])]
    for host, members in hosts.items() if isinstance(hosts, dict) else ():
        if isinstance(members, dict):
            places.append((" of " + _masked(host), members, list(_HOST_KEYS)))
    for place, members, known in places:
        for key in members:
            if key not in known:
                import difflib

                nearest = difflib.get_close_matches(key, known, 1)
                hint = "did you mean %s?" % nearest[0] if nearest else "it has no effect"
                yield "%s: unknown key %s%s; %s" % (name, _masked(key), place, hint)


def _masked(key: str) -> str:
    """A key as it may be shown: in a URL there may be a password."""
    return shown(re.sub("(?s).*@", "xxxxx@", key), 100)


def given(settings: Settings, flags: Mapping[str, Any]) -> List[Dict[str, str]]:
    """The name, the value and the source of each setting that is not left to its default; no secrets."""
    environ, rows = settings.environ, []
    names = {name for name in flags if flags[name] is not None and name not in _NO_SETTINGS}
    names.update(name[9:].lower() for name in environ if name.startswith("MINIPULL_") and environ[name])
    for name in sorted(names):
        source = settings.origin(name)
        bare = _ENDS.sub("", name)
        if bare in flags or bare in _VARIABLES:
            text = str(flags.get(name) or environ.get("MINIPULL_" + name.upper()))
            if bare in ("creds", "registry_token", "header"):  # creds without a colon may be a token
                text = (text.partition(":")[0] if bare == "creds" and ":" in text else "") + "..."
            rows.append({"name": name.replace("_", "-"), "value": text, "source": source})
        else:
            rows.append({"name": name.replace("_", "-"), "value": "", "source": source + ", which is not known"})
    for name, variable in (("platform", "DOCKER_DEFAULT_PLATFORM"), ("authfile", "REGISTRY_AUTH_FILE"),
                           ("docker-config", "DOCKER_CONFIG")):
        if environ.get(variable) and name not in names:
            rows.append({"name": name, "value": environ[variable], "source": variable})
    for key, flag in KEYS.items():
        if key in settings.document and flag not in names:
            text = re.sub(r'"(?:[^"\\]|\\.)*@', '"xxxxx@', json.dumps(settings.document[key]))
            rows.append({"name": key, "value": text[:300], "source": settings.path})
    return rows


class Environment(NamedTuple):
    """Arguments of the functions that speak to registries; ``zstd`` is one of Store()."""
    service: "RegistryService"
    credentials: "Credentials"
    platform: Optional[str]  # of $MINIPULL_PLATFORM or $DOCKER_DEFAULT_PLATFORM; None for the host's
    keys: Tuple["Key", ...]  # of ``verify-key``: pull() and copy() then take what one of them has signed
    zstd: Optional[str]  # the path of the program


def environment(environ: Mapping[str, str] = os.environ, *, config: Optional[str] = None,
                registries: Sequence[str] = (), progress: Output = discard) -> Environment:
    """The settings of this host and user: the one public function that reads the environment.

    They are those of the command line without flags: ``MINIPULL_*``, the settings file (or
    the one at ``config``), ``certs.d`` of docker and containers, the proxies of ``HTTPS_PROXY``
    and ``NO_PROXY``, the credentials and helpers of docker and podman.  ``$MINIPULL_CREDS``,
    ``$MINIPULL_REGISTRY_TOKEN`` and ``$MINIPULL_CERT_DIR`` are for ``registries`` (``HOST[:PORT]``)
    alone, the first two for one.  ``progress`` gets warnings.  Raises InvalidReference for a value that
    does not fit, StorageError and InvalidDocument for a file that can't be used.

    Example::

        host = minipull.environment()
        minipull.pull("registry.lan/app:1.0", store, platform=host.platform,
                      service=host.service, credentials=host.credentials)
    """
    from ..registry.login import registry
    from .access import Access

    output = serialized(progress)
    settings = Settings(environ, {"config": config}, lambda text: output(Progress(message="warning: " + text)))
    for text in unknown_keys(settings.document, settings.path):
        output(Progress(message="warning: " + text))
    domains, access = [registry(text).domain for text in registries], Access(settings)
    return Environment(access.service(domains), access.credentials(domains), settings.platform,
                       settings.verify_keys(), find_zstd(environ.get("PATH", os.defpath)))
