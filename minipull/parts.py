# SPDX-License-Identifier: Apache-2.0
"""Parts of the package that a build may leave out, and modules that a command may do without.

Everything else works without a part (see ``scripts/pyz --without``), because it is imported by
name when it is needed.  So are modules of the standard library that few commands use, since
importing them takes longer than many a command.
"""
import importlib
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from .errors import NotInBuild

if TYPE_CHECKING:
    import calendar as calendar
    import email.utils
    import hmac as hmac
    import random as random
    import shutil as shutil
    import ssl as ssl
    import subprocess as subprocess
    import tempfile as tempfile
    from concurrent import futures as futures
    email_utils = email.utils

#: The wings and modules of each part.
PARTS: Dict[str, Tuple[str, ...]] = {
    "archive": ("archive", "distribution.archives"),
    "legacy": ("distribution.pull_v1", "distribution.push_v1", "distribution.schema1",
               "image.schema1", "registry.v1"),
    "rootfs": ("rootfs",),
    "server": ("server",)}


def part(name: str) -> Any:
    """Import a module, such as ``part("server.registry")``; raises NotInBuild where a file was left out."""
    try:
        return importlib.import_module("." + name, __package__)
    except ModuleNotFoundError as exc:
        raise left_out(exc) or exc


class Late:
    """A module that is imported when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if not TYPE_CHECKING:
    futures, email_utils = map(Late, ("concurrent.futures", "email.utils"))
    calendar, hmac, random, shutil, ssl, subprocess, tempfile = map(Late, (
        "calendar", "hmac", "random", "shutil", "ssl", "subprocess", "tempfile"))


def left_out(error: ImportError) -> Optional[NotInBuild]:
    """The error to raise for a module of this package that is missing; None for any other module."""
    module = (error.name or "").partition(__package__ + ".")[2]
    for name, modules in PARTS.items():
        if module.startswith(modules):
            label = "the part legacy (v1, schema 1)" if name == "legacy" else name + "/"
            return NotInBuild("%s is not in this build of minipull" % label)
    return None
