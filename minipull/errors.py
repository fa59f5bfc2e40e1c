# SPDX-License-Identifier: Apache-2.0
"""Errors, by what the caller can do about them, and whether the work may be tried again.

One tree under :class:`Error`; each class carries the exit code of the command line.
Answers of registries are in registry/errors.py.

Mirrors moby's errdefs.
"""
import contextlib
import errno
import re
from typing import ContextManager, Iterator, Mapping, Optional, Tuple, Type

# C0, DEL, C1; marks that turn the direction of text or end a line; surrogates.
_CONTROL = "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_USERINFO = r"([^\s/@:]{1,100}):(?!//)\S{1,300}@(?=[^\s/@]+/)"  # USER:PASSWORD@HOST/


class Error(Exception):
    """Root of every error that minipull raises on purpose; its text is one line."""
    exit_code = 1
    retry = False  # may the engine's attempts repeat the work?

    def __str__(self) -> str:
        return one_line(super().__str__())

    def __reduce__(self) -> Tuple[object, ...]:
        # pickle would call the class with its text, and some take other arguments.
        return type(self).__new__, (type(self),) + self.args, self.__dict__

    def within(self, subject: str) -> "Error":
        """Return the same error, with a text that begins with the action or name that failed."""
        return self.reworded("%s: %s" % (subject, self))

    def reworded(self, text: str) -> "Error":
        """The same error with another text."""
        other = self.__new__(type(self), text)
        vars(other).update(vars(self))
        return other


class Cancelled(Error):
    """The caller cancelled the operation; nothing is wrong."""
    exit_code = 130

    def __init__(self, text: str = "cancelled") -> None:
        super().__init__(text)


class InvalidReference(Error):
    """A name, tag, platform or flag value that does not fit its grammar; no password in one is told."""
    exit_code = 2

    def __str__(self) -> str:
        return re.sub(_USERINFO, r"\1:***@", super().__str__())


class NotFound(Error):
    """No such manifest, repository, local image or platform."""
    exit_code = 3


class NotStored(NotFound):
    """No image of the ``name`` in the store."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class Unauthorized(Error):
    """Authentication failed, or permission is missing."""
    exit_code = 4


class NetworkError(Error):
    """DNS, connection, malformed HTTP, or a registry that keeps failing."""
    exit_code = 5
    retry = True


class TLSError(NetworkError):
    """The TLS handshake failed; asking again would not help."""
    retry = False


class InvalidDocument(Error):
    """A manifest, config, archive or layer that is malformed or ambiguous."""
    exit_code = 6


class ContentMismatch(Error):
    """Bytes that are not what their digest or size says."""
    exit_code = 6

    def __init__(self, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class StorageError(Error):
    """The disk or the store: no space, read-only, corrupt, lock not had."""
    exit_code = 7


class RateLimited(Error):
    """The registry asks for a longer wait than the caller allows."""
    exit_code = 8


class PolicyError(Error):
    """Refused by our own rules: insecure, redirect, realm, certificate, limit."""
    exit_code = 9


class Unsupported(Error):
    """A document or request that is understood, and that this command can't handle."""


class NotInBuild(Unsupported):
    """A part that was left out of this build, and is needed here."""
    exit_code = 2


class NoSupport(Unsupported):
    """A feature that the protocol of an endpoint lacks; any other error tells more."""


def corrupt(digest: str, kind: str = "blob") -> StorageError:
    """The error for stored bytes that no longer have their digest."""
    return StorageError(
        "%s %s in the store is corrupt; run minipull check --repair, then pull again" % (kind, digest))


def escape(text: str) -> str:
    r"""Make characters that steer a terminal or end a line visible: ESC becomes ``\x1b``."""
    if text.isprintable():
        return text
    return re.sub(_CONTROL, lambda match: match.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Foreign text as one line of UTF-8, its lines joined by semicolons."""
    return escape("; ".join(filter(None, text.splitlines())))


def shown(text: str, limit: Optional[int] = None) -> str:
    """Foreign text as one harmless line of ASCII, cut off after ``limit`` characters."""
    return ascii(text)[1:-1][:limit]


@contextlib.contextmanager
def within(subject: str, *kinds: Type[Error], unless: str = "") -> Iterator[None]:
    """Begin the text of every error of the block, of these ``kinds`` if there are any, with ``subject``.

    A text that begins with that, or else with ``unless`` where it is given, has been told already.
    """
    try:
        yield
    except kinds or Error as exc:
        if str(exc).startswith(unless or subject + ":"):
            raise
        raise exc.within(subject) from exc


@contextlib.contextmanager
def file_errors(action: str, hints: Mapping[int, str] = {}) -> Iterator[None]:
    """Map an OSError to a StorageError: the ``action`` ("write /a/b"), its text, and a hint by errno."""
    try:
        yield
    except OSError as exc:
        hint = hints.get(exc.errno or 0, "")
        raise StorageError("%s: %s%s" % (action, exc.strerror or exc, hint)) from exc


def storage_errors(action: str) -> ContextManager[None]:
    """Map errors on the store's own files as file_errors() does, with advice for its user."""
    return file_errors(action, _STORAGE_HINTS)


_STORAGE_HINTS = {
    errno.ENOSPC: "; free some space (minipull gc) and try again",
    errno.EDQUOT: "; raise the quota or choose another --root or directory",
    errno.EROFS: "; choose another --root or directory",
    errno.EACCES: "; choose another --root or directory, or run as its owner",
    errno.ELOOP: "; a symbolic link stands where the store keeps a file"}
