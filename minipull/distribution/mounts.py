# SPDX-License-Identifier: Apache-2.0
"""Mount candidates: repositories from which a registry may take a layer without an upload.

Mirrors moby's distribution/push_v2.go.

Where this leaves the engine: the HMAC key of a push without credentials is empty,
so that associations noted by a pull, which have no HMAC, count as its own.
"""
import contextlib
import itertools
from typing import List, NamedTuple, Sequence, Tuple

from ..errors import InvalidReference
from ..reference import Reference
from ..store.metadata import V2Metadata, check_hmac


class Budget(NamedTuple):
    """The requests that a registry may get for a layer before it is sent."""
    mounts: int
    checks: int
    elsewhere: bool  # also by digests seen in other repositories only


def budget(size: int) -> Budget:
    """Return the requests that a layer of ``size`` bytes is worth (getMaxMountAndExistenceCheckAttempts)."""
    if size > 10 << 20:
        return Budget(4, 3, True)
    return Budget(3, 1, False) if size > 100 << 10 else Budget(1, 1, False)


def by_likeness(target: str, key: bytes, entries: Sequence[V2Metadata]) -> List[V2Metadata]:
    """Sort associations, given oldest first, by the likelihood that ``target`` can have their blob.

    By credentials first, then by leading path components in common, then the newer one.
    """
    components = target.split("/")

    def rank(entry: V2Metadata) -> Tuple[bool, int]:
        pairs = zip(components, entry.source_repository.split("/"))
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return not check_hmac(key, entry), -len(list(common))

    return sorted(reversed(entries), key=rank)


def mount_candidates(target: Reference, key: bytes, most: int,
                     entries: Sequence[V2Metadata]) -> List[V2Metadata]:
    """Return the ``most`` likeliest repositories to mount a layer from (getRepositoryMountCandidates)."""
    candidates = []
    for entry in by_likeness(target.name, key, entries):
        with contextlib.suppress(InvalidReference):
            source = Reference.parse(entry.source_repository)
            canonical = source.name == entry.source_repository
            if canonical and source.domain == target.domain and source.name != target.name:
                candidates.append(entry)
    return candidates[:most] if most >= 0 else candidates
