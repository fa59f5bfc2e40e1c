# SPDX-License-Identifier: Apache-2.0
"""A URL has one origin or is refused, and only addresses of the internet are public."""
import json
import time
from typing import Any, Dict

import pytest

from minipull.errors import PolicyError
from minipull.registry.url import Origin, is_public, joined
from tests.kit import DATA

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))


@pytest.mark.parametrize("case", TABLES["origin_valid"], ids=lambda case: ascii(case["url"]))
def test_an_origin_is_scheme_host_and_port(case: Dict[str, Any]) -> None:
    origin = Origin.of(case["url"])
    assert [*origin] == case["origin"]
    assert str(origin) == case["text"]


@pytest.mark.parametrize("url", TABLES["origin_invalid"], ids=ascii)
def test_a_url_that_parsers_disagree_about_is_refused(url: str) -> None:
    with pytest.raises(PolicyError):
        Origin.of(url)


@pytest.mark.parametrize("case", TABLES["joined"], ids=lambda case: ascii(case["reference"]))
def test_a_location_is_resolved_without_its_userinfo(case: Dict[str, Any]) -> None:
    if case["url"] is None:
        with pytest.raises(PolicyError):
            joined(case["base"], case["reference"])
    else:
        assert joined(case["base"], case["reference"]) == case["url"]


@pytest.mark.parametrize("url", ["ftp://user:se?cret@host/", "ftp://host/?X-Signature=secret"])
def test_a_refused_url_is_shown_without_its_secrets(url: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Origin.of(url)
    assert "cret" not in str(caught.value)


def test_a_long_url_is_refused_at_once() -> None:
    before = time.process_time()
    with pytest.raises(PolicyError):
        Origin.of("/" * 250000)
    assert time.process_time() - before < 2


@pytest.mark.parametrize("address, public", TABLES["is_public"])
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
