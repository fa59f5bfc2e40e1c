# SPDX-License-Identifier: Apache-2.0
"""What commands share: warnings, and what is said in spite of -q."""
import argparse

import pytest

from minipull.cancel import Cancel
from minipull.cli.context import Context
from minipull.errors import Cancelled
from minipull.progress import Progress


@pytest.mark.parametrize("quiet, said", [(True, "minipull: warning: x\n"), (None, "warning: x\n")])
def test_what_explains_a_failure_is_said_with_quiet_too(
        quiet: object, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPULL_CONFIG", "")
    context = Context(argparse.Namespace(format=None, quiet=quiet, progress="plain", verbose=False, config=None), Cancel())
    context.settings  # made of the flags
    context.alert("x")
    assert capsys.readouterr().err == said


def test_an_interrupt_of_many_images_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    cancel = Cancel()
    flags = argparse.Namespace(command="pull", format="text", verbose=False, progress="plain")
    context = Context(flags, cancel)
    context.renderer(Progress(id="a", action="Downloading", current=1000, total=4000, kept=True))
    cancel.cancel()
    assert [context.failed(Cancelled()) for _ in "abc"] == [130] * 3
    assert capsys.readouterr().err == (
        "a: Downloading\ninterrupted; the same command goes on at 1 of 4kB\n")
