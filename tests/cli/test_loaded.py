# SPDX-License-Identifier: Apache-2.0
"""A command imports what it runs, and no more: start-up is half of the time of a small one."""
import sys
from pathlib import Path
from typing import Dict

import pytest

from tests.kit.processes import driver_env, run
from tests.kit.servers import ScriptedServer, Uploads

#: Modules of the standard library that take a millisecond or more, or bring others along that do.
SLOW = {
    "argparse", "asyncio", "bz2", "concurrent.futures", "datetime", "decimal", "email", "fnmatch", "glob", "hmac",
    "http.client", "http.server", "inspect", "logging", "lzma", "multiprocessing", "pathlib", "pickle",
    "random", "secrets", "shutil", "socket", "ssl", "subprocess", "tarfile", "tempfile", "unittest", "urllib.parse", "urllib.request",
    "uuid", "xml", "zipfile"}
GROUND = """
    cancel cli.context cli.lines cli.local cli.main cli.parser cli.settings digest errors files image.config
    image.descriptor image.manifest image.platform image.strictjson image.walk parts progress reference
    store.content store.references store.source store.store argparse"""
FLAGS = """
    cli.commands cli.habits"""
NETWORK = FLAGS + """
    cli.access cli.lists cli.pace cli.plan cli.render distribution.ask distribution.blobs
    distribution.documents distribution.read registry.auth registry.client registry.connection
    registry.credentials registry.endpoints registry.errors registry.head registry.network registry.proxy
    registry.request registry.response registry.tls registry.transport registry.upload registry.url
    registry.v2 sendfile store.ingest store.layer xfer.download xfer.transfer socket ssl urllib.parse"""
#: What a command loads, of the package and of the slow modules.
LOADED: Dict[str, str] = {
    "--version": "cli.main",
    "images": GROUND + """
        cli.images store.usage""",
    "tag": GROUND + FLAGS + """
        cli.lists cli.plan cli.store""",
    "pull": GROUND + NETWORK + """
        cli.registry distribution.layers distribution.naming distribution.pull distribution.pull_v2
        store.metadata""",
    "push": GROUND + NETWORK + """
        cli.registry distribution.mounts distribution.push distribution.push_v2 distribution.sessions
        store.metadata store.sessions xfer.upload hmac""",
    "copy": GROUND + NETWORK + """
        cli.copy distribution.convert distribution.copy distribution.ends
        distribution.job distribution.places distribution.referrers distribution.sessions
        distribution.verify image.es256 image.signature store.compression store.sessions store.signatures
        xfer.upload"""}
PROGRAM = """
import sys
from minipull.cli.main import main
code = main(sys.argv[1:])
print("\\n" + " ".join(name for name, module in sys.modules.items()
                       if name[:9] != "minipull." or not hasattr(module, "__path__")))
sys.exit(code)
"""


@pytest.mark.parametrize("command", LOADED)
def test_a_command_loads_what_it_runs_and_no_more(command: str, server: ScriptedServer, ref: str, stored: str,
                                                  home: Path, root: Path) -> None:
    Uploads(server, "pushed")
    words = {"--version": [], "images": [], "tag": [ref, "app:1"], "pull": [ref + ":other"],
             "push": [ref, server.host + "/pushed"], "copy": ["docker://" + ref, "oci:%s" % (home / "copied")]}[command]
    flags = ["--root", str(root)] if command != "--version" else []
    done = run([sys.executable, "-S", "-c", PROGRAM, *flags, command, *words], driver_env(home))
    modules = done.out.splitlines()[-1].split()
    assert {name.replace("minipull.", "", 1) for name in modules
            if name in SLOW or name[:9] == "minipull."} == set(LOADED[command].split())
