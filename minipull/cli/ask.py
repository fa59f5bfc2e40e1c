# SPDX-License-Identifier: Apache-2.0
"""The commands that ask a registry: catalog, referrers, blob, delete; inspect and check of docker://REF."""
import argparse
import sys
from typing import Any, Dict, Iterator, List, Tuple, Union

from ..digest import Digest
from ..distribution.ask import document_for, members_of
from ..distribution.check import check_repository
from ..distribution.read import read_blob, referring, verified
from ..errors import ContentMismatch, InvalidReference, NotFound, Unsupported, within
from ..image.descriptor import Descriptor
from ..image.manifest import Manifest
from ..progress import human_size
from ..reference import Reference, version
from ..registry.errors import RegistryError
from ..registry.v2 import Repository
from ..store.check import Problem
from ..store.store import MAX_CONFIG, host_platform, platform_of
from ..store.usage import Counts
from .context import Context, reference

_CAN_NOT_DELETE = (400, 404, 405, 415, 501)  # answers of registries that delete no tag alone


def do_catalog(context: Context, flags: argparse.Namespace) -> None:
    """List the repositories of a registry; with HOST/PATH those below that path."""
    text = flags.registry[len("docker://"):] if flags.registry.startswith("docker://") else flags.registry
    host, _, path = text.rstrip("/").partition("/")
    name = Reference.parse("%s/x" % host)
    if name.domain != host and host != "docker.io":
        raise InvalidReference("%s: want HOST[:PORT][/PATH], as registry.example.com" % host)
    paths = context.ask(Reference(name.domain, ""), "list repositories of %s" % host,
                lambda repository: repository.catalog(context.cancel))
    paths = sorted({item for item in paths if not path or item == path or item.startswith(path + "/")})
    context.answer(({"name": "%s/%s" % (name.domain, item)} for item in paths), paths)


def do_referrers(context: Context, flags: argparse.Namespace) -> None:
    """List the manifests that refer to an image, by the registry's API or else the fallback tag."""
    name = reference(flags.ref).docker_ref()

    def listed(repository: Repository) -> List[Dict[str, Any]]:
        digest = repository.manifest(str(name.digest or name.tag), context.cancel).digest
        return [entry.to_json() for entry in referring(repository, digest, context.cancel)]

    entries = context.ask(name, "referrers of %s" % (name,), listed)
    context.answer(entries, [
        "%s  %s  %s" % (entry["digest"], entry.get("artifactType") or entry["mediaType"],
                        human_size(entry["size"])) for entry in entries])


def do_blob(context: Context, flags: argparse.Namespace) -> None:
    """Write a blob to stdout as it arrives; a wrong one is told at its end."""
    name = reference(flags.ref)
    digest = name.digest
    if digest is None:
        raise InvalidReference("%s: want NAME@DIGEST" % name.familiar)
    if sys.stdout is not None and sys.stdout.isatty():
        raise InvalidReference("refusing to write a blob to a terminal; redirect stdout")

    def found(repository: Repository) -> Iterator[memoryview]:
        size = repository.stat(digest, context.cancel)
        if size is None:
            raise NotFound("%s has no blob %s" % (repository.endpoint, digest))
        return verified(repository, Descriptor("", digest, size), context.cancel)

    subject = "blob %s" % (name,)
    with context.client([name.domain]) as client:
        pieces = context.ask(name, subject, found, client)
        with within(name.familiar_name, ContentMismatch):
            context.write(pieces)


def do_delete(context: Context, flags: argparse.Namespace) -> None:
    """Delete a tag alone, or with --digest the manifest that it names and so all its tags."""
    if not flags.ref.startswith("docker://"):
        raise InvalidReference("want docker://REF, to delete at a registry; rm forgets names of the store")
    name = reference(flags.ref).docker_ref()
    subject, whole = "delete %s" % (name,), bool(flags.digest or name.digest)
    if not flags.yes:
        _confirm(name, whole)

    def delete(repository: Repository) -> str:
        digest = name.digest or repository.manifest(name.tag, context.cancel).digest
        target = str(digest) if whole else name.tag
        try:
            repository.delete(target, context.cancel)
            return target
        except RegistryError as exc:
            if exc.status not in _CAN_NOT_DELETE or whole and exc.status == 404:
                raise
            if whole:
                raise Unsupported("%s deletes no manifests (%s)" % (repository.endpoint, exc)) from exc
            # Those of that manifest, and those for which there is no clear answer.
            tags = ", ".join(tag for tag in sorted(repository.tags(context.cancel), key=version)
                             if repository.resolve(tag, context.cancel) in (digest, None))
            raise Unsupported(
                "%s deletes no tag alone (%s); --digest, if it deletes at all, takes the manifest %s, and"
                " with it %s" % (repository.endpoint, exc, digest, tags)) from exc

    deleted = context.ask(name, subject, delete, push=True)
    context.answer({"name": str(name), "deleted": deleted}, ["Deleted: %s%s" % (
        name.name, ("@" if ":" in deleted else ":") + deleted)])


def _confirm(name: Reference, whole: bool) -> None:
    """Ask on a terminal; raises InvalidReference for any answer but yes."""
    if sys.stdin is not None and sys.stdin.isatty():
        tags = " with all the tags of its manifest" if whole else ""
        sys.stderr.write("Delete %s%s at the registry? [y/N] " % (name.familiar, tags))
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InvalidReference("nothing is deleted")


def inspected(context: Context, flags: argparse.Namespace) -> None:
    """Show an image at a registry without its layers: the whole of an index, or one platform."""
    name = reference(flags.ref).docker_ref()
    platform = platform_of(flags.platform)

    def look(repository: Repository) -> Union[bytes, Dict[str, Any]]:
        received = repository.manifest(str(name.digest or name.tag), context.cancel)
        if not (flags.raw or flags.config_only):
            return members_of(repository, received, platform, context.cancel)
        wanted = platform or (host_platform() if flags.config_only else None)
        document = document_for(repository, received, wanted, context.cancel)
        if flags.raw:
            return document.raw
        if not isinstance(document, Manifest):
            raise InvalidReference("it has no config")
        return read_blob(repository, document.config, MAX_CONFIG, context.cancel)

    answer = context.ask(name, "inspect %s" % (name,), look)
    if isinstance(answer, bytes):
        context.show_document(answer)
    else:
        context.dump({"name": str(name), **answer})


def checked(context: Context, text: str, deep: bool) -> Tuple[Digest, List[Problem], Counts]:
    """Check an image at a registry: its digest, what is wrong, and what it has."""
    name = reference(text).docker_ref()

    def check(repository: Repository) -> Tuple[Digest, List[Problem], Counts]:
        top = repository.manifest(str(name.digest or name.tag), context.cancel)
        return (top.digest, *check_repository(repository, top, deep, context.renderer, context.cancel))

    return context.ask(name, "check %s" % (name,), check)
