# SPDX-License-Identifier: Apache-2.0
"""A command imports what it runs, and no more: start-up is half of the time of a small one."""
import sys
from pathlib import Path
from typing import Dict

import pytest

from tests.kit.commands import Call
from tests.kit.processes import driver_env, run
from tests.kit.servers import ScriptedServer

#: Modules of the standard library that take a millisecond or more, or bring others along that do.
SLOW = {
    "argparse", "asyncio", "bz2", "concurrent.futures", "datetime", "decimal", "email", "glob", "hmac", "http.client",
    "http.server", "inspect", "logging", "lzma", "multiprocessing", "pathlib", "pickle", "random", "secrets",
    "shutil", "socket", "ssl", "subprocess", "tarfile", "tempfile", "unittest", "urllib.parse", "urllib.request",
    "uuid", "xml", "zipfile"}
GROUND = """
    parts cancel digest errors files progress reference
    cli.commands cli.context cli.habits cli.main cli.pace cli.parser cli.render cli.settings
    image.config image.descriptor image.manifest image.platform image.strictjson image.walk
    store.compression store.content store.layer store.metadata store.references store.sessions store.source
    store.store argparse hmac"""
NETWORK = """
    distribution.ask distribution.blobs distribution.read distribution.sessions sendfile
    registry.auth registry.client registry.connection registry.credentials registry.endpoints registry.errors
    registry.head registry.network registry.proxy registry.request registry.response registry.tls registry.transport
    registry.upload registry.url registry.v2 xfer.download xfer.transfer xfer.upload socket urllib.parse"""
#: What a command loads, of the package and of the slow modules.
LOADED: Dict[str, str] = {
    "--version": "cli.main",
    "images": GROUND + " cli.images store.usage",
    "rm": GROUND + " cli.store",
    "pull": GROUND + NETWORK,
    "push": GROUND + NETWORK,
    "copy": GROUND + NETWORK}


PROGRAM = """
import sys
from minipull.cli.main import main
code = main(sys.argv[1:])
print("\\n" + " ".join(sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize("command", LOADED)
def test_a_command_loads_what_it_runs_and_no_more(command: str, server: ScriptedServer, ref: str, call: Call,
                                                  home: Path, root: Path) -> None:
    call("--root", root, "pull", ref)
    words = {"images": [], "rm": [ref], "pull": [ref + ":other"], "push": [ref + ":latest", ref + ":pushed"],
             "copy": ["docker://" + ref, "oci:%s" % (home / "copied")]}.get(command, [])
    done = run([sys.executable, "-S", "-c", PROGRAM, "--root", root, command, *words], driver_env(home))
    modules = done.out.rpartition("\n\n")[2].split()
    assert {name.replace("minipull.", "", 1) for name in modules
            if name in SLOW or name.startswith("minipull.") and name.count(".") + (name[9:] in GROUND) > 1} == set(LOADED[command].split())
