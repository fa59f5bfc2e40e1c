# SPDX-License-Identifier: Apache-2.0
"""The catalogue: which of a store's repositories a name in a URL means.

Names in the store include a domain, the path of a request does not.  So that a
store can mirror other registries, ``library/alpine`` finds an image pulled as
``docker.io/library/alpine``.  The domain is that of ``?ns=DOMAIN`` (sent by
containerd), or else the first of these that has such a repository: the first
component of the path, the server's own domain, ``localhost``, Docker Hub's, and
the only domain with that path.
"""
import contextlib
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..errors import InvalidReference
from ..reference import DEFAULT_DOMAIN, DOMAIN, PATH, Reference
from ..store.references import Association, Names

_NAME = re.compile(r"(?:%s/)?%s" % (DOMAIN, PATH))

#: Images of one repository, by tag or digest.
Repository = Dict[str, Association]


def is_name(text: str) -> bool:
    """Whether a text may be the name of a repository in a URL."""
    return len(text) <= 255 and _NAME.fullmatch(text) is not None


def within(domain: str, path: str) -> Optional[Reference]:
    """Return the repository ``path`` of ``domain``, or None if that is no valid name."""
    with contextlib.suppress(InvalidReference):
        repository = Reference.parse("%s/%s" % (domain, path))
        if repository == Reference(domain, repository.path):
            return repository
    return None


class Catalog:
    """The names of a store by repository, under ``domain``; raises InvalidReference for a malformed one."""

    def __init__(self, references: Names, domain: str) -> None:
        if within(domain, "a/b") is None:
            raise InvalidReference("%s is not the domain of a registry" % ascii(domain)[:100])
        self.domain = domain
        self._references = references
        # The index as it was last read, and its repositories.
        self._read: Tuple[Any, Dict[Tuple[str, str], Repository]] = (None, {})

    def repositories(self) -> Dict[Tuple[str, str], Repository]:
        """Return every repository by domain and path."""
        entries = self._references.descriptors()
        read, repositories = self._read
        if read != entries:
            repositories = {}
            for image in self._references.all():
                repository = repositories.setdefault((image.name.domain, image.name.path), {})
                repository[image.name.tag or str(image.name.digest)] = image
            self._read = (entries, repositories)
        return repositories

    def find(self, name: str, ns: str) -> Iterator[Repository]:
        """Yield the repositories that ``name`` may mean, the likeliest first."""
        domains = [ns]
        if not ns:
            domain, _, path = name.partition("/")
            yield from self._named(domain, path)
            domains = [self.domain, "localhost", DEFAULT_DOMAIN]
            others = [domain for domain, path in self.repositories() if path == name]
            if len(others) == 1:
                domains += others
        for domain in dict.fromkeys(domains):
            yield from self._named(domain, name)

    def target(self, name: str, ns: str) -> Reference:
        """Return the repository that a push to ``name`` goes to; raises InvalidReference."""
        repository = within(ns or self.domain, name)
        if repository is None:
            raise InvalidReference("invalid repository name")
        domain, _, path = name.partition("/")
        if not ns and any(self._named(domain, path)):
            raise InvalidReference("%s is another domain's; push with ?ns= or serve it --as" % name)
        return repository

    def names(self, ns: str) -> List[str]:
        """Return the names of repositories, those of the server's own domain without it."""
        bare = ns or self.domain
        return list({path if domain == bare else "%s/%s" % (domain, path)
                     for domain, path in self.repositories() if not ns or domain == ns})

    def _named(self, domain: str, path: str) -> Iterator[Repository]:
        """Yield the repository ``path`` of ``domain`` if the store has it."""
        reference = within(domain, path)
        if reference is not None and (reference.domain, reference.path) in self.repositories():
            yield self.repositories()[reference.domain, reference.path]
