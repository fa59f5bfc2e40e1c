# SPDX-License-Identifier: Apache-2.0
"""A next page is never missed: a Link header is read as RFC 8288 has it, or is an error."""
import contextlib
import time
from typing import List

import pytest

from minipull.errors import NetworkError
from minipull.registry.v2 import next_links


@pytest.mark.parametrize("header, targets", [
    ('<a>; rel="next"', ["a"]), ('<a>;rel=next', ["a"]), ('<a>; rel = "next"', ["a"]), ("<a>; rel='next'", ["a"]),
    ('<a>; rel="prev next"', ["a"]), ('<a>; rel="next last"', ["a"]), ("<a>; REL='Prev NEXT'", ["a"]), ('<>; rel=next', [""]),
    ('<a>; title="x, <b>; rel=prev"; rel="next" ; hreflang=en', ["a"]), ("<a> ;rel=next;x;", ["a"]),
    ('<a>; title="\\"; rel=next"; rel=prev', []), ('<a>; rel=prev; title="rel=next"', []), ('<a>; rel=nextish', []),
    ('<a>; rel=prev; rel=next', []), ('<a>; rel=next; rel=prev', ["a"]), ('<a>; xrel=next; rel=prev', []),
    ('<a>; rel=prev, <b>; rel=next', ["b"]), ('<a>; rel=next,<b>; rel="first"', ["a"]), ("<a,b;c>; rel=next", ["a,b;c"]),
    (' , <a>; rel=next,, <b>; rel=next ,', ["a", "b"]), ("", []), (" , ", []),
])
def test_links_to_next_pages_are_found(header: str, targets: List[str]) -> None:
    assert next_links(header) == targets


@pytest.mark.parametrize("header", [
    "a; rel=next", "a", "<a; rel=next", "<a>", "<a>;", "<a>; rel", '<a>; rel=""', "<a>; rel=", '<a>; rel="next', "<a> rel=next",
    "<a>; rel='next", "<a>; title=x", "<a>; rel=next junk", "<a>; rel=prev <b>; rel=next", "<a>; rel=prev, b; rel=next",
    "<a<b>; rel=next", '<a>; rel="next"x', '<a>; rel=ne"xt', ";", "<a>; rel=next, <b>"])
def test_a_link_that_can_not_be_read_is_an_error(header: str) -> None:
    with pytest.raises(NetworkError, match="malformed Link to the next page"):
        next_links(header)


@pytest.mark.parametrize("header", [
    "<a>;" * 20000, "<a>" + '; a="' * 20000, "<" * 60000, ", " * 30000 + "x", "<a>; a=b" + " " * 60000 + "c",
    "<a>; rel=next, " * 4000, "<a>; a='" + "; a='" * 20000, '<a>; a="' + '\\"' * 30000, "<a>" + "; a=b" * 20000,
    "<a>; rel=next, " + "<" + "a" * 60000, "<a>;" + " " * 60000, "<a>; " + "a" * 60000,
    "<a>" + "; " * 30000 + '"', "<a>" + ";a= " * 15000 + '"', "<a>;" + " " * 60000 + 'x;y="'], ids=lambda header: ascii(header[:12]))
def test_a_long_link_takes_no_time(header: str) -> None:
    start = time.monotonic()
    with contextlib.suppress(NetworkError):
        next_links(header)
    assert time.monotonic() - start < 0.5
