# SPDX-License-Identifier: Apache-2.0
"""Upload sessions: notes of the URLs by which another process goes on with an upload.

One JSON file for a registry, repository and blob.  Its owner holds its lock, so that
two processes never send into one session.  Its URL may be a secret, so it is private;
credentials are not in it.  It is written in place, and one that is torn, of another
user or about another blob is none.  What it says is a claim: the caller checks the
URL as a registry's Location, and asks the registry how much has arrived.
"""
import contextlib
import hashlib
import json
import os
import re
import time
from typing import ContextManager, Dict, List, Tuple

from .. import files
from ..errors import InvalidDocument, StorageError
from ..image.strictjson import parse_json, string_at

MAX_NOTES = 100
MAX_AGE = 24 * 3600.0  # seconds; registries forget sessions within days
_MAX_NOTE = 16 << 10  # bytes; a Location of docker-registry has 600


class SessionNotes:
    """The notes of the store at ``root``; there are none where no store is."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folder = os.path.join(root, "metadata", "uploads")

    def own(self, registry: str, repository: str, digest: str) -> "SessionNote":
        """Own the note of an upload; one that can't be had keeps nothing."""
        subject = {"registry": registry, "repository": repository, "digest": digest}
        name = hashlib.sha256("\0".join(subject.values()).encode()).hexdigest()
        note = SessionNote(subject, os.path.join(self._folder, name + ".json"))
        with contextlib.suppress(StorageError, OSError):
            if os.path.lexists(os.path.join(self._root, "oci-layout")):
                files.make_directory(self._folder)
                note.open(os.O_RDWR | os.O_CREAT)
                notes = self._listed()
                for _, path in notes[:-MAX_NOTES]:
                    self._drop(path)
        return note

    def sweep(self, horizon: float) -> None:
        """Remove the notes that nobody owns and that are older than ``horizon`` (seconds) or MAX_AGE."""
        for age, path in self._listed():
            if age < max(horizon, time.time() - MAX_AGE):
                self._drop(path)

    def _listed(self) -> List[Tuple[float, str]]:
        """List the notes with their times, the oldest first; the folder may be a link, with files of others."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            return sorted((entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries
                          if re.fullmatch(r"[0-9a-f]{64}\.json", entry.name))
        return []

    @staticmethod
    def _drop(path: str) -> None:
        with contextlib.suppress(StorageError, OSError), SessionNote({}, path) as note:
            note.open(os.O_RDWR)


class SessionNote(ContextManager["SessionNote"]):
    """The ``url`` of an upload's session, empty if none is known; ``close`` removes a note that is not ``kept``."""

    def __init__(self, subject: Dict[str, str], path: str = "") -> None:
        self.url = ""
        self.kept = False
        self._subject = subject
        self._path = path
        self._fd = -1

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __bool__(self) -> bool:
        """Whether the note is owned."""
        return self._fd >= 0

    def open(self, flags: int) -> None:
        """Own the file and read it; raises StorageError, or an OSError, if another process does."""
        fd = files.open_regular(self._path, flags)
        try:
            try:
                files.lock(fd, self._path, True, timeout=0)
            except files.Locked:
                raise
            except StorageError:
                os.unlink(self._path)  # without locks nobody owns it, and nobody would sweep it
                raise
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or not os.path.samestat(status, os.lstat(self._path)):
                raise StorageError("%s is of another user, or gone" % self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        with contextlib.suppress(InvalidDocument, OSError):
            note = parse_json(os.pread(fd, _MAX_NOTE, 0), self._path)
            if {name: note.get(name) for name in self._subject} == self._subject:
                self.url = string_at(note, "url", self._path)

    def write(self, url: str) -> None:
        """Note where the session is now; a note that is too long or that the disk does not take is none."""
        if not self:
            return
        data = json.dumps(dict(self._subject, url=url)).encode()
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)  # so that what a kill leaves is a beginning, which is no JSON
            if len(data) <= _MAX_NOTE:
                os.pwrite(self._fd, data, 0)
                self.url = url

    def close(self) -> None:
        """Leave the note to the next process, or remove it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # a blob that is there is no failure
                try:
                    if not self.kept or not self.url:
                        os.ftruncate(fd, 0)  # no note, even where it can't be removed
                        os.unlink(self._path)
                finally:
                    os.close(fd)
