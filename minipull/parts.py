# SPDX-License-Identifier: Apache-2.0
"""Parts of the package that a build may leave out.

``archive/``, ``rootfs/``, ``server/`` and the legacy protocols (v1, schema 1) are
imported by name when they are needed, so that everything else works without
them: see ``scripts/pyz --without``.
"""
import importlib
from typing import Any

from .errors import NotInBuild


def part(name: str) -> Any:
    """The module ``name``, counted from the package: ``part("server.registry")``.

    Raises NotInBuild if that file, or one that it needs, was left out.
    """
    try:
        return importlib.import_module("." + name, __package__)
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith(__package__ + "."):
            raise
        raise NotInBuild("%s is not in this build of minipull" % name.replace(".", "/")) from exc
