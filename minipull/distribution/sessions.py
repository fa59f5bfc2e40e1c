# SPDX-License-Identifier: Apache-2.0
"""Blobs to a registry with progress, each from where an interrupted process left it.

The URL of the upload of a large blob is noted in the store until the blob is there.
The next process asks it how much has arrived.  The registry's answer counts, and its
check of the whole; a blob that fails that is sent anew, once, before it is blamed.

moby starts each upload anew.
"""
from typing import Callable, Optional

from ..cancel import Cancel
from ..errors import Cancelled, ContentMismatch, Error, NetworkError, RateLimited, Unauthorized
from ..image.descriptor import Descriptor
from ..progress import Meter, Output, Progress
from ..registry.errors import RegistryError
from ..registry.request import Body
from ..registry.upload import Upload
from ..registry.v2 import Repository
from ..store.sessions import SessionNote, SessionNotes
from ..store.store import ImageSource
from .blobs import send_blob

NOTED = 4 << 20  # bytes; a smaller blob is sent again
Source = Callable[[int, int], Body]  # a part of a blob, by offset and size in bytes


def upload_blob(repository: Repository, blob: Descriptor, source: Source, output: Output, id: str,
                cancel: Cancel, upload: Optional[Upload] = None, chunk_size: int = 0,
                store: Optional[ImageSource] = None) -> None:
    """Send a blob as send_blob() does, but go on with the upload that ``store`` has noted of it, if any."""
    with _note(repository, blob, store) as note:

        def send(upload: Optional[Upload]) -> None:
            meter = Meter(output, id, "Pushing", blob.size, upload.offset if upload else 0, bool(note))

            def measured(offset: int, size: int) -> Body:
                body = source(offset, size)
                body.sent = lambda sent: meter.move(offset + sent)
                return body

            send_blob(repository, blob, measured, cancel, upload, chunk_size, note.write)

        try:
            resumed = _resumed(repository, blob, note, output, id, cancel)
            if resumed is not None:
                if upload is not None:
                    upload.abandon(cancel)
                upload, begin = None, resumed.offset
                try:
                    return send(resumed)
                except (NetworkError, RegistryError) as exc:
                    # An upload that can't be ended must not stand in the way of the blob.
                    hopeless = resumed.offset <= begin or isinstance(exc, RegistryError) and exc.status < 500
                    if note.url != resumed.url or isinstance(exc, RateLimited) or not hopeless:
                        raise
                    _begin_anew(repository, "can't end", output, id)
            send(upload)
        except Error as exc:
            # What a registry refused, it would refuse again.
            refused = isinstance(exc, RegistryError) and exc.status < 500 and exc.status not in (401, 429)
            passes = exc.retry or isinstance(exc, (Cancelled, NetworkError, RateLimited, Unauthorized))
            note.kept = passes and not refused and not isinstance(exc, ContentMismatch)
            raise


def _note(repository: Repository, blob: Descriptor, store: Optional[ImageSource]) -> SessionNote:
    """Own the note of a blob; it keeps nothing where it is not worth it or there is no room for it."""
    if store is None or not store.lasting or blob.size < NOTED:
        return SessionNote({})
    return SessionNotes(store.root).own(repository.endpoint.url, repository.path, blob.digest)


def _resumed(repository: Repository, blob: Descriptor, note: SessionNote, output: Output, id: str,
             cancel: Cancel) -> Optional[Upload]:
    """The upload that a note tells of, or None where there is none to go on with, which is told."""
    # Without an answer it is not known whether the registry may send us to private addresses.
    if not note.url or not repository.answered:
        return None
    try:
        upload = repository.resume_upload(note.url, cancel)
        if 0 < upload.offset <= blob.size:
            return upload
        reason = "has other bytes in" if upload.offset else "kept nothing of"
    except RegistryError:
        reason = "forgot"
    except Unauthorized:
        raise  # of a token server, where another try may lock an account
    except Error:
        cancel.check()
        reason = "can't go on with"
    _begin_anew(repository, reason, output, id)
    return None


def _begin_anew(repository: Repository, reason: str, output: Output, id: str) -> None:
    output(Progress(id=id, message="%s %s the interrupted upload; it begins anew" % (repository.endpoint, reason)))
