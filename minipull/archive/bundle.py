# SPDX-License-Identifier: Apache-2.0
"""A bundle: an archive, and behind the tar's end this package as a zip that Python runs.

A tar is read up to its end, and a zip is found from the end of its file.  Offsets in
the zip count from its own start, for which zipimport allows, so the tar may be of any
size.  Members are stored as they are: whichever Python packs them, they are the same bytes.
"""
import contextlib
import importlib
import io
import os
import pkgutil
import zipfile
from typing import Dict, Sequence

from ..errors import InvalidReference, file_errors
from ..parts import PARTS


def program(without: Sequence[str] = ()) -> bytes:
    """Return this package as a zip that Python runs, less the parts ``without``.

    Raises InvalidReference for an unknown part, StorageError where the sources can't be read.
    """
    for part in without:
        if part not in PARTS:
            raise InvalidReference("no part %s; there are %s" % (ascii(part)[:100], ", ".join(PARTS)))
    members = dict(_sources(without), **{"__main__.py": b"import minipull.__main__\n"})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name)  # dated 1980-01-01
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, members[name])
    return file.getvalue()


def _sources(without: Sequence[str]) -> Dict[str, bytes]:
    """The files of this package, read by its own loader: from a folder, a zip or a bundle."""
    package = importlib.import_module(__package__.rpartition(".")[0])
    get_data = getattr(package.__spec__ and package.__spec__.loader, "get_data")
    folder = os.path.dirname(package.__file__ or "")
    left_out = tuple("%s." % module for part in without for module in PARTS[part])
    paths = ["__init__.py", "cli/completion.bash", "cli/completion.fish", "cli/completion.zsh"]
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        name = module.name[len(package.__name__) + 1:]
        if not (name + ".").startswith(left_out):
            paths.append(name.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py"))
    with file_errors("read the sources of minipull"):
        sources = {"minipull/" + path: get_data(os.path.join(folder, *path.split("/"))) for path in paths}
    with contextlib.suppress(OSError):
        text = get_data(os.path.join(os.path.dirname(folder), "LICENSE"))
        if b"Apache License" in text:  # not that of a package around this one
            sources["LICENSE"] = text
    return sources
