# SPDX-License-Identifier: Apache-2.0
"""What commands share: warnings, and what is said in spite of -q."""
import argparse

import pytest

from minipull.cancel import Cancel
from minipull.cli.context import Context


@pytest.mark.parametrize("quiet, said", [(True, "minipull: warning: x\n"), (None, "warning: x\n")])
def test_what_explains_a_failure_is_said_with_quiet_too(
        quiet: object, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPULL_CONFIG", "")
    context = Context(argparse.Namespace(format=None, quiet=quiet, progress="plain", verbose=False, config=None), Cancel())
    context.settings  # made of the flags
    context.alert("x")
    assert capsys.readouterr().err == said
