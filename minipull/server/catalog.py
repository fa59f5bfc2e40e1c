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
import urllib.parse
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ..errors import InvalidReference
from ..reference import DEFAULT_DOMAIN, DOMAIN, PATH, Reference
from ..store.references import Association, Names
from .message import Headers, Refusal, Request

MAX_PAGE = 10000  # names

_NAME = re.compile(r"(?:%s/)?%s" % (DOMAIN, PATH))

#: Images of one repository, by tag or digest.
Repository = Dict[str, Association]
#: Repositories by path and then domain: which domains have a path is asked for each name.
Repositories = Dict[str, Dict[str, Repository]]


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
        self._read: Tuple[Any, Repositories] = (None, {})

    def repositories(self) -> Repositories:
        entries = self._references.descriptors()
        read, repositories = self._read
        if read != entries:
            repositories = {}
            for image in self._references.all():
                repository = repositories.setdefault(image.name.path, {}).setdefault(image.name.domain, {})
                repository[image.name.tag or str(image.name.digest)] = image
            self._read = (entries, repositories)
        return repositories

    def find(self, name: str, ns: str) -> Iterator[Repository]:
        """Yield the repositories that ``name`` may mean, the likeliest first."""
        repositories = self.repositories()
        for domain, path in self._keys(repositories, name, ns):
            yield repositories[path][domain]

    def _keys(self, repositories: Repositories, name: str, ns: str = "") -> Iterator[Tuple[str, str]]:
        preferred = [ns] if ns else list(dict.fromkeys((self.domain, "localhost", DEFAULT_DOMAIN)))
        first, _, rest = name.partition("/")
        pairs = [] if ns else [(first, rest)]
        for domain, path in pairs + [(domain, name) for domain in preferred]:
            path = "library/" + path if domain == DEFAULT_DOMAIN and "/" not in path else path  # as Reference.parse
            if domain in repositories.get(path, ()):
                yield domain, path
        others = set() if ns else set(repositories.get(name, ()))
        if len(others) == 1 and not others.intersection(preferred):
            yield others.pop(), name

    def target(self, name: str, ns: str) -> Reference:
        """Return the repository that a push to ``name`` goes to; raises InvalidReference."""
        repository = within(ns or self.domain, name)
        if repository is None:
            raise InvalidReference("invalid repository name")
        domain, _, path = name.partition("/")
        within_domain = within(domain, path)
        if not ns and within_domain and within_domain.domain in self.repositories().get(within_domain.path, ()):
            raise InvalidReference("%s is another domain's; add its ?ns= or serve it --as" % name)
        return repository

    def names(self, ns: str) -> List[str]:
        """Return the names that clients can ask for, of the repositories of ``ns`` or of all domains."""
        if ns:
            return [path for path, domains in self.repositories().items() if ns in domains]
        return [address for address, _ in self.addresses()]

    def addresses(self) -> Iterator[Tuple[str, Repository]]:
        """Yield each repository that a client can ask for without ``?ns=``, by the name to ask for.

        A domain with a port or capitals can't stand in a path: its repository goes by the path alone,
        if that means no other.
        """
        repositories = self.repositories()
        for domain, path in [(domain, path) for path, domains in repositories.items() for domain in domains]:
            for name in [path] if domain == self.domain else ["%s/%s" % (domain, path), path]:
                if re.fullmatch(PATH, name) and next(self._keys(repositories, name), None) == (domain, path):
                    yield name, repositories[path][domain]
                    break


def page_of(request: Request, items: Sequence[str]) -> Tuple[List[str], Headers]:
    """Return a page of names, and the headers that link to the next page."""
    count, last = request.parameter("n"), request.parameter("last")
    if "n" in request.query and not re.fullmatch("[0-9]{1,18}", count):
        raise Refusal(400, "UNSUPPORTED", "n must be a number from 0")
    limit = min(int(count or MAX_PAGE), MAX_PAGE)
    left = sorted(item for item in items if item > last)
    names = left[:limit]
    more = 0 < len(names) < len(left)
    return names, [next_link(request, n=str(limit), last=names[-1])] if more else []


def next_link(request: Request, **changed: str) -> Tuple[str, str]:
    kept = {key: values[0] for key, values in request.query.items()}
    query = urllib.parse.urlencode({**kept, **changed})
    return "Link", '<%s?%s>; rel="next"' % (urllib.parse.quote(request.path), query)
