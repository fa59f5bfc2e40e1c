# SPDX-License-Identifier: Apache-2.0
"""The catalogue: which of a store's repositories a name in a URL means.

Names in the store are whole, domain included; the path of a request is not.  So
that a store is the mirror of a site, ``library/alpine`` finds what was pulled as
``docker.io/library/alpine``: where ``?ns=DOMAIN`` does not say it (containerd
does), the first component may be the domain, then come our own, ``localhost``,
Docker Hub's, and the only one that has such a path.
"""
import contextlib
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..errors import InvalidReference
from ..reference import DEFAULT_DOMAIN, DOMAIN, PATH, Reference
from ..store.references import Association, ReferenceStore

_NAME = re.compile(r"(?:%s/)?%s" % (DOMAIN, PATH))
_MAX_NAME = 255

#: What has a tag or a digest in one repository.
Repository = Dict[str, Association]


def is_name(text: str) -> bool:
    """Whether this may stand for a repository in a URL."""
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def within(domain: str, path: str) -> Optional[Reference]:
    """The repository ``path`` of ``domain``, or None if there can be none."""
    with contextlib.suppress(InvalidReference):
        found = Reference.parse("%s/%s" % (domain, path))
        if found == Reference(domain, found.path):
            return found
    return None


class Catalog:
    """The names of a store by repository; ``domain`` is what pushes are recorded under.

    Raises InvalidReference for a domain that is none.
    """

    def __init__(self, references: ReferenceStore, domain: str) -> None:
        if within(domain, "a/b") is None:
            raise InvalidReference("%s is not the domain of a registry" % ascii(domain)[:100])
        self.domain = domain
        self._references = references
        # The index as it was last read, and what it says.
        self._read: Tuple[Any, Dict[Tuple[str, str], Repository]] = (None, {})

    def repositories(self) -> Dict[Tuple[str, str], Repository]:
        """Every repository by domain and path."""
        entries = self._references.descriptors()
        seen, found = self._read
        if seen is not entries:
            found = {}
            for known in self._references.all():
                there = found.setdefault((known.name.domain, known.name.path), {})
                there[known.name.tag or str(known.name.digest)] = known
            self._read = (entries, found)
        return found

    def find(self, name: str, ns: str) -> Iterator[Repository]:
        """The repositories that ``name`` may mean, the likeliest first."""
        known = self.repositories()
        if ns:
            domains = [ns]
        else:
            yield from self._behind(name)
            domains = list(dict.fromkeys((self.domain, "localhost", DEFAULT_DOMAIN)))
            having = [domain for domain, path in known if path == name]
            domains += [domain for domain in having if len(having) == 1 and domain not in domains]
        for domain in domains:
            item = within(domain, name)
            if item is not None and (item.domain, item.path) in known:
                yield known[item.domain, item.path]

    def target(self, name: str, ns: str) -> Reference:
        """The repository that a push to ``name`` goes to; raises InvalidReference."""
        found = within(ns or self.domain, name)
        if found is None:
            raise InvalidReference("invalid repository name")
        if not ns and any(self._behind(name)):
            raise InvalidReference("%s is another domain's; push with ?ns= or serve it --as" % name)
        return found

    def names(self, ns: str) -> List[str]:
        """Repositories as they are asked for, ours without their domain."""
        bare = ns or self.domain
        return list({path if domain == bare else "%s/%s" % (domain, path)
                     for domain, path in self.repositories() if not ns or domain == ns})

    def _behind(self, name: str) -> Iterator[Repository]:
        """What ``name`` means if it begins with a domain."""
        domain, _, path = name.partition("/")
        item = within(domain, path)
        there = self.repositories().get((item.domain, item.path)) if item else None
        if there:
            yield there
