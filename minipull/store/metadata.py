# SPDX-License-Identifier: Apache-2.0
"""Distribution metadata: the layer of each blob, and the repositories that have it.

A cache in JSON files, laid out like the engine's.  Any of them may be torn, stale
or missing: values are validated when they are read, and None means "find out
again".  Writes are atomic but not synced.

Mirrors moby's distribution/metadata.
"""
import contextlib
import hashlib
import json
import os
import re
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .. import files
from ..digest import DiffID, Digest
from ..errors import Error, InvalidDocument, storage_errors
from ..image.strictjson import compact
from ..parts import hmac

V1_IDS = "v1id-mappings"  # a namespace: DiffIDs by ids of the v1 protocol
LIMIT = 50  # associations kept for one DiffID, the newest
_MAX_FILE = 1 << 20  # bytes
_CREDENTIAL = ("username", "password", "auth", "identitytoken", "registrytoken")


class MetadataStore:
    """Small values by namespace and key; a key may contain slashes."""

    def __init__(self, root: str, scratch: str) -> None:
        self.root = root
        self._scratch = scratch

    def path(self, namespace: str, key: str) -> str:
        return os.path.join(self.root, namespace, *key.split("/"))

    def get(self, namespace: str, key: str) -> Optional[bytes]:
        """Return a value, or None; raises StorageError if it can't be read."""
        return files.read_bytes(self.path(namespace, key), _MAX_FILE)

    def diff_id(self, namespace: str, key: str) -> Optional[DiffID]:
        """Return a value that is a DiffID, or None if it is missing or unsound."""
        with contextlib.suppress(Error):
            value = self.get(namespace, key) or b""
            return DiffID(Digest.parse(value.decode("ascii", "replace")))
        return None

    def set(self, namespace: str, key: str, value: bytes) -> None:
        path = self.path(namespace, key)
        for directory in (self._scratch, os.path.dirname(path)):
            files.make_directory(directory)
        files.write_atomic(path, value, self._scratch, durable=False, settle=False)

    def delete(self, namespace: str, key: str) -> None:
        path = self.path(namespace, key)
        with storage_errors("delete %s" % path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class V2Metadata(NamedTuple):
    """A blob of a layer, and a repository that has it."""
    digest: Digest
    source_repository: str
    hmac: str = ""  # by the credentials that proved it

    @property
    def checksum(self) -> str:
        """A checksum by which `check` finds a flipped byte; the engine ignores the member."""
        return hashlib.sha256("\0".join(self).encode()).hexdigest()[:16]


def hmac_key(credential: Optional[Mapping[str, str]]) -> bytes:
    """Return the key that stands for credentials, with members as in docker's config.json; empty for none."""
    if credential is None:
        return b""
    members = {name: credential[name] for name in _CREDENTIAL if credential.get(name)}
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False)
    # Go's encoder escapes these.
    text = re.sub("[<>&\u2028\u2029]", lambda match: "\\u%04x" % ord(match.group()), text)
    return Digest.of(text.encode("utf-8", "surrogateescape")).encode()


def compute_hmac(key: bytes, entry: V2Metadata) -> str:
    """Sign an association with the credentials behind ``key``; empty without any."""
    text = (entry.digest + entry.source_repository).encode()
    return hmac.new(key, text, "sha256").hexdigest() if key else ""


def check_hmac(key: bytes, entry: V2Metadata) -> bool:
    """Whether an association was proved with these credentials."""
    return hmac.compare_digest(compute_hmac(key, entry).encode(), entry.hmac.encode())


class V2MetadataService(MetadataStore):
    """Associations DiffID to blobs, newest last, and blob to DiffID."""
    BY_DIFF_ID = "v2metadata-by-diffid"
    BY_DIGEST = "diffid-by-digest"

    def get_metadata(self, diff_id: DiffID) -> List[V2Metadata]:
        with contextlib.suppress(Error):
            return parse_metadata(self.get(self.BY_DIFF_ID, _key(diff_id)) or b"[]")
        return []

    def get_diff_id(self, digest: Digest) -> Optional[DiffID]:
        """Return the DiffID of a blob that was once decompressed, or None."""
        return self.diff_id(self.BY_DIGEST, _key(digest))

    def add(self, diff_id: DiffID, entry: V2Metadata) -> None:
        """Record an association as the newest; raises StorageError."""
        old = self.get_metadata(diff_id)
        entries = ([other for other in old if other != entry] + [entry])[-LIMIT:]
        if entries != old:
            self._set(diff_id, entries)
        if self.get_diff_id(entry.digest) != diff_id:
            self.set(self.BY_DIGEST, _key(entry.digest), diff_id.encode())

    def forget(self, digest: Digest) -> None:
        """Remove the DiffID of a blob, so that it is found out again."""
        self.delete(self.BY_DIGEST, _key(digest))

    def tag_and_add(self, diff_id: DiffID, key: bytes, entry: V2Metadata) -> None:
        """Record an association that the credentials behind ``key`` have proved."""
        self.add(diff_id, entry._replace(hmac=compute_hmac(key, entry)))

    def remove(self, entry: V2Metadata) -> None:
        """Remove one association; raises StorageError."""
        diff_id = self.get_diff_id(entry.digest)
        if diff_id:
            self.retain(diff_id, lambda other: other != entry)

    def retain(self, diff_id: Digest, keep: Callable[[V2Metadata], bool]) -> None:
        """Keep only the associations for which ``keep`` is true."""
        old = self.get_metadata(DiffID(diff_id))
        entries = [entry for entry in old if keep(entry)]
        if entries != old or not old:
            self._set(diff_id, entries)

    def _set(self, diff_id: Digest, entries: List[V2Metadata]) -> None:
        if not entries:
            self.delete(self.BY_DIFF_ID, _key(diff_id))
            return
        self.set(self.BY_DIFF_ID, _key(diff_id), compact([
            {"Digest": entry.digest, "SourceRepository": entry.source_repository,
             "HMAC": entry.hmac, "Sum": entry.checksum} for entry in entries]))


class MemoryMetadata(V2MetadataService):
    """The associations of an archive, which nothing is written into: they end with its user."""

    def __init__(self) -> None:
        super().__init__("", "")
        self._values: Dict[Tuple[str, str], bytes] = {}

    def get(self, namespace: str, key: str) -> Optional[bytes]:
        return self._values.get((namespace, key))

    def set(self, namespace: str, key: str, value: bytes) -> None:
        self._values[namespace, key] = value

    def delete(self, namespace: str, key: str) -> None:
        self._values.pop((namespace, key), None)


def parse_metadata(data: bytes) -> List[V2Metadata]:
    """Parse a list of associations; raises InvalidDocument."""
    entries = []
    try:
        for item in json.loads(data.decode()):
            entry = V2Metadata(Digest.parse(item["Digest"]), item["SourceRepository"], item["HMAC"])
            if len(item) != 4 or item["Sum"] != entry.checksum:
                raise InvalidDocument("association fails its checksum")
            entries.append(entry)
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise InvalidDocument("not a list of associations (%s)" % type(exc).__name__) from exc
    return entries


def _key(digest: Digest) -> str:
    return digest.replace(":", "/")
