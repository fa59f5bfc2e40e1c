# SPDX-License-Identifier: Apache-2.0
"""An error is one line and an exit code, and says whether the work may be repeated."""
import concurrent.futures
import copy
import errno
import multiprocessing
import pickle
from typing import Dict, List, Type

import pytest

from minipull import errors
from minipull.errors import (
    Cancelled, ContentMismatch, Error, InvalidDocument, InvalidReference, NetworkError, NoSupport, NotFound, NotInBuild,
    NotStored, PolicyError, RateLimited, StorageError, TLSError, Unauthorized, Unsupported, storage_errors)
from minipull.files import Locked
from minipull.registry.errors import ErrorDetail, RegistryError, decode_answer

EXIT_CODES: Dict[Type[Error], int] = {
    Error: 1, Unsupported: 1, NoSupport: 1, NotInBuild: 2, InvalidReference: 2, NotFound: 3, NotStored: 3, Unauthorized: 4, NetworkError: 5,
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
    Cancelled(), ContentMismatch("bad", retry=True), RegistryError(403, [ErrorDetail("DENIED", "no")]), NetworkError("down"),
    NotStored("No such image: x", "x")])
def test_within_changes_the_text_and_nothing_else(error: Error) -> None:
    text = str(error)
    other = error.within("pull busybox")
    assert str(other) == "pull busybox: " + text and str(error) == text
    assert type(other) is type(error) and vars(other) == vars(error)
    assert (other.exit_code, other.retry) == (error.exit_code, error.retry)


@pytest.mark.parametrize("text, unless, told", [
    ("no signature", "", "no: no signature"), ("no: no signature", "", "no: no signature"),
    ("copy x: down", "copy ", "copy x: down"), ("no: down", "copy ", "no: no: down")])
def test_a_subject_is_told_once(text: str, unless: str, told: str) -> None:
    with pytest.raises(NotFound) as caught, errors.within("no", NotFound, unless=unless):
        raise NotFound(text)
    assert str(caught.value) == told


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


ERRORS: List[Error] = [kind("text") for kind in EXIT_CODES] + [
    ContentMismatch("text", retry=True), Locked("text"), decode_answer(503, "", "", b""),
    RegistryError(403, [ErrorDetail("DENIED", "no")]), RegistryError(429, text="slow").within("pull x"),
    RegistryError(404, [ErrorDetail("MANIFEST_UNKNOWN", "")])]


def state(error: BaseException) -> object:
    return type(error), error.args, str(error), vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(type(error).__name__))
def test_an_error_travels_whole(error: Error) -> None:
    copies = [copy.copy(error), copy.deepcopy(error)]
    copies += [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    assert all(state(other) == state(error) for other in copies)


def refuse() -> None:
    raise decode_answer(404, "Not Found", "application/json", b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')


def test_an_error_leaves_a_process_pool_alive() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        for _ in range(2):
            with pytest.raises(RegistryError, match="^blob unknown$") as caught:
                pool.submit(refuse).result()
            assert (caught.value.status, caught.value.code, caught.value.exit_code) == (404, "BLOB_UNKNOWN", 3)


@pytest.mark.parametrize("text,line", [
    ("plain, ünï and 漢字 \\ stay", "plain, ünï and 漢字 \\ stay"),
    ("a\nb\r\n\nc", "a; b; c"),
    ("a\x85b\u2028c\x0bd", "a; b; c; d"),
    ("\x1b[2J\t\0", r"\x1b[2J\t\x00"),
    ("\udc80\ud800 \u202eevil", r"\udc80\ud800 \u202eevil"),
    ("", "")])
def test_the_text_of_an_error_is_one_line_of_utf_8(text: str, line: str) -> None:
    for error in (Error(text), NetworkError(text).within("pull x"), RegistryError(500, text=text),
                  decode_answer(401, "", "text/plain", text.encode("utf-8", "surrogatepass")),
                  decode_answer(500, text, "", b"")):
        assert len(str(error).splitlines()) < 2 and str(error).encode("utf-8").decode() == str(error)
    assert str(Error(text)) == line
    assert str(Error(text).within("x").within("y")) == "y: x: " + line
