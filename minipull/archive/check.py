# SPDX-License-Identifier: Apache-2.0
"""check: is every byte of an archive what its name says?"""
import os
from typing import Callable, List, Optional

from ..cancel import Cancel
from ..errors import Error, StorageError
from ..progress import Output, Progress, discard
from ..store.check import UNVERIFIED, Problem, check_images
from ..store.usage import Counts, usage
from .reader import image_of, opened


def check_archive(path: str, cancel: Cancel, zstd: Optional[str] = None,
                  output: Output = discard, in_place: bool = False,
                  tell: Callable[[Counts], None] = lambda counts: None) -> List[Problem]:
    """Return every problem of the images in an archive; raises StorageError if it can't be read, Cancelled.

    ``tell`` is called with what it has.
    """
    def warn(text: str) -> None:
        output(Progress(message="warning: " + text))

    try:
        with opened(path, cancel, zstd, warn=warn, in_place=in_place) as archive:
            tops = [top for _, top in map(image_of, archive.references.descriptors())]
            problems = check_images(archive, tops, cancel, lambda event: output(event._replace(id=path)))
            if archive.content.left_out:
                sizes = archive.content.left_out.values()
                text = "a delta: %d blobs, %d bytes, are left out; %s had them"
                problems.append(Problem(".", UNVERIFIED, text % (len(sizes), sum(sizes), archive.base)))
            tell(usage(archive, tops).counts)
            return [problem._replace(path=os.path.join(path, problem.path)) for problem in problems]
    except Error as exc:
        cancel.check()
        if isinstance(exc, StorageError):  # which tells nothing about the archive
            raise
        return [Problem(path, "archive", str(exc))]
