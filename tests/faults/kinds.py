# SPDX-License-Identifier: Apache-2.0
"""Every kind of input from outside; one case again, in the root of the project:

    python3 -c "from tests.faults import kinds; kinds.again('tar', 0, 17)"
"""
import os
from pathlib import Path
from typing import Callable, Dict, List, Sequence

from tests.faults import parsers, sources
from tests.kit.crashes import memory_folder
from tests.kit.fuzz import Kind, hunt, without_waiting_or_network

KINDS: Dict[str, Callable[[Path], Kind]] = {
    "manifests": parsers.manifests, "indexes": parsers.indexes, "configs": parsers.configs,
    "schema 1": parsers.old_manifests, "headers": parsers.headers, "error bodies": parsers.error_bodies,
    "references": parsers.references, "platforms": parsers.platforms, "tar": parsers.tar,
    "compressed": parsers.compressed, "settings": parsers.settings, "credentials": parsers.credentials,
    "archives": sources.archives, "store files": sources.store_files, "requests": sources.requests,
    "answers": sources.answers, "pulls": sources.pulls}


def hunted(name: str, seed: int, numbers: Sequence[int]) -> List[str]:
    """Try some cases of a kind in this process; returns the failures."""
    setattr(os, "fsync", lambda fd: None)
    setattr(os, "cpu_count", lambda: 1)
    with memory_folder() as folder:
        kind = KINDS[name](folder)
        without_waiting_or_network(sources.PORTS)
        return hunt(kind, name, seed, numbers)


def again(name: str, seed: int, number: int) -> None:
    """Print how one case fails."""
    print("\n".join(hunted(name, seed, [number])) or "ok")
