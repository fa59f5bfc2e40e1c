# SPDX-License-Identifier: Apache-2.0
"""How an end of a copy is written."""

import pytest

from minipull.digest import Digest
from minipull.distribution.places import Place
from minipull.errors import InvalidReference


HEX = "0123456789abcdef" * 4


# -- places --------------------------------------------------------------------


@pytest.mark.parametrize("text, kind, folder, tag, name, shown", [
    ("docker://alpine", "docker", "", "latest", "docker.io/library/alpine", "docker.io/library/alpine"),
    ("docker://r.com:5000/a/b:1", "docker", "", "1", "r.com:5000/a/b", "r.com:5000/a/b"),
    ("docker://r.com/a:1@sha256:" + HEX, "docker", "", "sha256:" + HEX, "r.com/a", "r.com/a"),
    ("store:alpine:3", "store", "", "3", "docker.io/library/alpine", "docker.io/library/alpine"),
    ("oci:some/dir", "oci", "some/dir", "", "/", "some/dir"),
    ("oci:/dir:r.com/a:1", "oci", "/dir", "r.com/a:1", "/", "/dir"),
    ("oci:dir:", "oci", "dir", "", "/", "dir"),
    ("oci-archive:a.tar:r.com/a:1", "oci-archive", "a.tar", "r.com/a:1", "/", "a.tar"),
    ("docker-archive:/a.tar", "docker-archive", "/a.tar", "", "/", "/a.tar"),
    ("docker://r.com/", "docker", "", "", "r.com/", "r.com/"),
    ("docker://r.com:5000/a/b/", "docker", "", "", "r.com:5000/a/b/", "r.com:5000/a/b/")])
def test_a_place_is_read(text: str, kind: str, folder: str, tag: str, name: str, shown: str) -> None:
    place = Place.parse(text)
    assert (place.kind, place.folder, place.tag, str(place.name), str(place)) == (kind, folder, tag, name, shown)
    assert isinstance(place.tag, Digest) == ("@" in text)
    assert place.domains == ([place.name.domain] if kind == "docker" else [])


@pytest.mark.parametrize("text", [
    "", "alpine", "docker:alpine", "docker://", "docker://UPPER", "docker://a:b:c", "docker:///a", "docker:///",
    "store://a", "store:a@sha256:1", "oci:", "oci::name", "oci-archive:", "docker-archive::x", "dir:x",
    "http://r.com/a", "Docker://alpine"])
def test_a_malformed_place_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Place.parse(text)
