# SPDX-License-Identifier: Apache-2.0
"""An error is one line and an exit code, and says whether the work may be repeated."""
import errno
from typing import Dict, Type

import pytest

from minipull import errors
from minipull.errors import (
    Cancelled, ContentMismatch, Error, InvalidDocument, InvalidReference, NetworkError, NoSupport, NotFound, NotInBuild,
    PolicyError, RateLimited, StorageError, TLSError, Unauthorized, Unsupported, storage_errors)
from minipull.registry.errors import ErrorDetail, RegistryError

EXIT_CODES: Dict[Type[Error], int] = {
    Error: 1, Unsupported: 1, NoSupport: 1, NotInBuild: 2, InvalidReference: 2, NotFound: 3, Unauthorized: 4, NetworkError: 5,
    TLSError: 5, InvalidDocument: 6, ContentMismatch: 6, StorageError: 7, RateLimited: 8,
    PolicyError: 9, Cancelled: 130,
}


@pytest.mark.parametrize("kind", EXIT_CODES, ids=lambda kind: str(kind.__name__))
def test_a_class_is_an_exit_code_and_only_the_network_may_be_asked_again(kind: Type[Error]) -> None:
    error = kind("text")
    assert error.exit_code == EXIT_CODES[kind]
    assert error.retry is (kind is NetworkError)
    assert isinstance(error, Error) and str(error) == "text"


def test_every_class_has_its_exit_code_here() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Error)}
    assert kinds == set(EXIT_CODES)


@pytest.mark.parametrize("error", [
    Cancelled(), ContentMismatch("bad", retry=True), RegistryError(403, [ErrorDetail("DENIED", "no")]), NetworkError("down")])
def test_within_changes_the_text_and_nothing_else(error: Error) -> None:
    text = str(error)
    other = error.within("pull busybox")
    assert str(other) == "pull busybox: " + text and str(error) == text
    assert type(other) is type(error) and vars(other) == vars(error)
    assert (other.exit_code, other.retry) == (error.exit_code, error.retry)


@pytest.mark.parametrize("raised,text", [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; choose another --root"),
    (OSError(errno.ELOOP, "Too many levels"), "Too many levels; a symbolic link stands"),
    (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; choose another --root or"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (OSError("no number"), "no number"),
], ids=str)
def test_an_error_of_the_disk_names_the_action_and_gives_advice(raised: OSError, text: str) -> None:
    with pytest.raises(StorageError) as caught:
        with storage_errors("write /store/x"):
            raise raised
    assert str(caught.value).startswith("write /store/x: " + text)
    assert caught.value.__cause__ is raised


def test_other_errors_pass_the_disk_unchanged() -> None:
    for error in (NetworkError("down"), ValueError("bug")):
        with pytest.raises(type(error)) as caught:
            with storage_errors("write x"):
                raise error
        assert caught.value is error
