# SPDX-License-Identifier: Apache-2.0
"""Mount candidates: where a layer may be had from without sending it.

Mirrors moby's distribution/push_v2.go.
"""
import contextlib
from typing import List, NamedTuple, Sequence, Tuple

from ..errors import InvalidReference
from ..reference import Reference
from ..store.metadata import V2Metadata, check_hmac


class Budget(NamedTuple):
    """How often a registry may be asked for a layer before it is sent."""
    mounts: int
    checks: int
    elsewhere: bool  # also for what was seen in other repositories


def budget(size: int) -> Budget:
    """What is worth asking for a layer (getMaxMountAndExistenceCheckAttempts).

    ``size`` is in bytes as it is stored; the engine's is uncompressed.
    """
    if size > 10 << 20:
        return Budget(4, 3, True)
    return Budget(3, 1, False) if size > 100 << 10 else Budget(1, 1, False)


def by_likeness(target: str, key: bytes, entries: Sequence[V2Metadata]) -> List[V2Metadata]:
    """Associations, given oldest first, by how likely ``target`` can have their blob.

    Same credentials first, then more leading path components in common, then newer.
    """
    wanted = target.split("/")

    def rank(entry: V2Metadata) -> Tuple[bool, int]:
        common = 0
        for ours, theirs in zip(wanted, entry.source_repository.split("/")):
            if ours != theirs:
                break
            common += 1
        return not check_hmac(key, entry), -common

    return sorted(reversed(entries), key=rank)


def mount_candidates(target: Reference, key: bytes, most: int,
                     entries: Sequence[V2Metadata]) -> List[V2Metadata]:
    """Where a layer may be mounted from, the best ``most`` first (getRepositoryMountCandidates)."""
    found = []
    for entry in by_likeness(target.name, key, entries):
        with contextlib.suppress(InvalidReference):
            source = Reference.parse(entry.source_repository)
            canonical = source.name == entry.source_repository
            if canonical and source.domain == target.domain and source.name != target.name:
                found.append(entry)
    return found[:most] if most >= 0 else found
