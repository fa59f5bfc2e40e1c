# SPDX-License-Identifier: Apache-2.0
"""copy(): images from one place to another, without keeping them.

Mirrors skopeo's copy; moby has none.

Where this leaves skopeo: an index is copied whole, entries of unknown kinds included,
unless platforms are asked for; manifests are converted and foreign layers copied on
request only; a copy that was interrupted is continued within its blobs.
"""
import contextlib
import os
from typing import Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

from ..cancel import Cancel
from ..digest import Digest
from ..errors import Error, InvalidReference, NoSupport, NotFound, within
from ..image.platform import Platform
from ..image.signature import Key
from ..parts import part, tempfile
from ..progress import Output, Progress, discard, serialized
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..store.signatures import StoredSignatures
from ..store.store import ImageSource, Store, host_platform
from ..xfer.download import LayerDownloadManager
from ..xfer.upload import LayerUploadManager
from .convert import FORMATS
from .ends import End, LayoutEnd, RegistryEnd
from .job import Copied, CopyJob, GzipJob, Options, Outcome, Tally
from .places import ARCHIVES, Place

T = TypeVar("T")


def copy(source: str, target: str, *, store: Optional[ImageSource] = None,
         platforms: Sequence[Union[str, Platform]] = (), format: str = "", referrers: bool = False,
         chunk_size: int = 0, foreign: bool = False, compress: str = "", keys: Sequence[Key] = (),
         progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         uploads: Optional[LayerUploadManager] = None, cancel: Optional[Cancel] = None) -> Copied:
    """Copy from ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or ``oci-archive:FILE[:REF]`` to another.

    ``platforms`` select images of an index; ``format`` is "oci" or "docker" to convert;
    ``chunk_size`` (bytes) is the most that one request sends; ``foreign`` copies foreign
    layers, too; ``compress`` is "gzip" for zstd and plain layers to become that; if there are
    ``keys``, one must have signed each image.  An archive without REF is copied whole, and its
    last image returned.
    Raises any minipull.Error; its text is one line that names the operation and its subject.

    Example::

        copied = minipull.copy("docker://registry.lan/app:1.0", "oci:layouts:app")
        print(copied.descriptor.digest, copied.source)
    """
    chosen = [platform if isinstance(platform, Platform) else Platform.parse(platform, host_platform())
              for platform in platforms]
    outcomes: List[Outcome] = []
    with Client(service, credentials) as client:
        options = Options(chosen, format, referrers, chunk_size, foreign, compress, keys)
        copies = Copies((client, client), store, options, uploads or LayerUploadManager(),
                        serialized(progress), cancel or Cancel())
        copies.run([Place.parse(source)], Place.parse(target), outcomes.append)
    copied = outcomes[-1].copied
    assert copied is not None  # what failed was raised
    return copied


class Copies:
    """The copies of one command, one image after another, with a client for either end."""

    def __init__(self, clients: Tuple[Client, Client], store: Optional[ImageSource], options: Options,
                 uploads: LayerUploadManager, output: Output, cancel: Cancel) -> None:
        if options.format and options.format not in FORMATS:
            raise InvalidReference("invalid format %s, not oci or docker" % ascii(options.format))
        if options.compress not in ("", "gzip"):
            raise InvalidReference("invalid compression %s, not gzip" % ascii(options.compress))
        if options.referrers and (options.format or options.compress):
            raise InvalidReference("what refers to an image does not follow it into another format or"
                                   " compression")
        if options.compress and options.dry_run:
            raise InvalidReference("the sizes of compressed layers are not known before they are made")
        self.many = False  # so an image goes by its full name
        self.planned = 0  # images
        self._tally = Tally()
        self._reader, self._writer = clients
        self._store = store
        self._options = options._replace(zstd=store.layers.zstd if store else None)
        self._uploads = uploads
        self._output = output
        self._cancel = cancel
        self._opened: Dict[str, LayoutEnd] = {}  # sources on disk
        self._stack = contextlib.ExitStack()

    def run(self, sources: Sequence[Place], target: Place, told: Callable[[Outcome], object],
            listed: bool = False) -> None:
        """Copy every image of ``sources``, which are ``listed`` if one may be of many.

        ``told`` is called with each outcome once it stands.  Raises the error of an image that
        failed after telling it, unless the options say to go on.
        """
        source = "%d sources" % len(sources) if listed or len(sources) > 1 else str(sources[0])
        subject = "copy %s to %s" % (source, target)
        self.many = listed or len(sources) > 1 or sources[0].many or target.many and not target.folder
        written: List[Outcome] = []
        errors: List[Error] = []
        with within(subject, unless="copy "), self._stack:
            plan = self._plan(sources, target)
            self.planned = len(plan)
            layout = self._target(target, any(item.source.domains for item in plan))
            for number, item in enumerate(plan, 1):
                if self.many and not self._options.dry_run:
                    self._output(Progress(message="Copying %s (%d of %d)" % (
                        item.source.written, number, len(plan))))
                outcome = self._copied(item, layout, "" if self.many else subject)
                if outcome.error is not None:
                    errors.append(outcome.error)
                if outcome.error is None and target.kind in ARCHIVES:
                    written.append(outcome)  # it stands once the archive does
                else:
                    told(outcome)
                if errors and not self._options.keep_going:
                    raise errors[0]
            if errors and not written and target.kind in ARCHIVES:
                raise errors[0]
        for outcome in written:
            told(outcome)

    def _plan(self, sources: Sequence[Place], target: Place) -> List[Outcome]:
        """List the images to copy, each once; raises InvalidReference for two with one name at the target."""
        plan: Dict[Place, Outcome] = {}
        for item in (item for source in sources for item in self._images(source, target)):
            other = plan.setdefault(item.target if item.target.tag else item.source, item)
            if other.source != item.source and target.tag:
                every = "//HOST/[PATH/]" if target.domains else target.folder
                raise InvalidReference("several images, so name one: %s, %s, ...; or write %s:%s for all" % (
                    other.source.label, item.source.label, target.kind, every))
            if other.source != item.source:
                raise InvalidReference("%s and %s would both become %s" % (
                    other.source.written, item.source.written, item.target.written))
        return list(plan.values())

    def _images(self, source: Place, target: Place) -> List[Outcome]:
        """List one image of a source, or all that it has if it names none."""
        planned = Outcome(source, target, "would copy" if self._options.dry_run else "copied")
        named = self.many and not target.tag
        if source.tag or source.kind == "oci" and not self.many:
            return [planned._replace(target=target.of(source.label) if named else target)]
        if source.kind == "docker":
            raise InvalidReference("%s names no image" % (source,))
        try:
            end = self._layout(source)
            if source.kind == "store":  # which may have entries of other tools as well
                every = [Place.parse("store:%s" % (item.name,)) for item in end.source.references.all()]
            else:
                every = [source._replace(tag=label or digest, label=label) for label, digest in end.images()]
            # What refers to an image does not follow it to another name, or into another format.
            referring = end.referring() if target.tag or self._options.format else ()
            places = [place for place in every if place.label not in referring] or every
            if not places:
                raise NotFound("%s has no images" % (source,))
            if self._options.keys:
                planned = planned._replace(
                    covered=StoredSignatures(end.source).require_all(self._options.keys))
        except Error as exc:
            self._cancel.check()
            if not self._options.keep_going:
                raise
            return [planned._replace(error=exc)]
        return [planned._replace(source=place, target=target.of(place.label) if named else target)
                for place in places]

    def _layout(self, place: Place) -> LayoutEnd:
        """Open a source on disk, once for all its images."""
        key = "%s:%s" % (place.kind, place.folder)
        if key not in self._opened:
            end = self._source(place, "", self._stack)
            assert isinstance(end, LayoutEnd)
            self._opened[key] = end
        return self._opened[key] if place.folder else LayoutEnd(place, self._store)

    def _target(self, target: Place, costly: bool) -> Optional[LayoutEnd]:
        """Open a target on disk, for all images, of which some may be ``costly``; None for a registry."""
        layout: Optional[LayoutEnd] = None
        if target.kind in ARCHIVES:
            if self._options.no_clobber and os.path.lexists(target.folder):
                raise InvalidReference("%s is there already, and an archive is written anew" % target.folder)
            layout = self._stack.enter_context(part("distribution.archives").archive_end(
                target, self._uploads.transfers, self._output, self._cancel, self._options.dry_run, costly))
        elif target.kind != "docker":
            layout = LayoutEnd(target, self._store, self._options.dry_run)
            self._stack.enter_context(layout.holding(self._cancel))
        return layout

    def _copied(self, item: Outcome, layout: Optional[LayoutEnd], subject: str) -> Outcome:
        """Copy an image, unless its name is there and stays; an error is a part of the outcome."""
        options, place = self._options._replace(covered=item.covered), item.target
        subject = subject or "copy %s to %s" % (item.source.written, place.written)
        try:
            with within(subject, unless="copy "), contextlib.ExitStack() as stack:
                if layout is not None and place.kind in ARCHIVES:
                    stack.enter_context(part("distribution.archives").in_terms_of(place, layout.store.root))
                if item.error is not None:
                    raise item.error
                if options.no_clobber:
                    digest = self._at(
                        place, layout, subject, lambda end, tag: end.named(tag, self._cancel))
                    if digest is not None:
                        return item._replace(result="there", digest=digest)
                remote = item.source.domains
                source = self._source(item.source, subject, stack) if remote else self._layout(item.source)
                kind = GzipJob if options.compress else CopyJob
                job = kind(source, item.source.tag, options, self._uploads, self._output, self._cancel,
                           self._tally)
                copied = self._at(place, layout, subject, job.to)
        except Error as exc:
            self._cancel.check()
            return item._replace(result="failed", error=exc, sizes=self._tally.sizes())
        return item._replace(digest=copied.descriptor.digest, copied=copied, sizes=self._tally.sizes())

    def _source(self, source: Place, subject: str, stack: contextlib.ExitStack) -> End:
        return open_source(source, self._reader, self._store, subject, stack, self._output, self._cancel,
                           not (self._options.keys or self._options.dry_run))

    def _at(self, place: Place, layout: Optional[LayoutEnd], subject: str,
            work: Callable[[End, str], T]) -> T:
        """Return the result of ``work`` with the target of one image, and its name there."""
        def asked(endpoint: Endpoint) -> T:
            repository = self._writer.repository(endpoint, place.name, push=True)
            return work(RegistryEnd(repository, self._options.chunk_size, self._options.dry_run,
                                    self._store), place.tag)

        if layout is None:
            return over_endpoints(
                self._writer, place.name, subject, asked, self._cancel, self._output, push=True)
        return work(layout if place.folder else LayoutEnd(place, self._store, self._options.dry_run), place.tag)


def open_source(source: Place, client: Client, store: Optional[ImageSource], subject: str,
                stack: contextlib.ExitStack, output: Output, cancel: Cancel, legacy: bool = False) -> End:
    """Open the source; of the endpoints of a registry, the first that has the image.

    With ``legacy``, one by the v1 protocol may be read where the user allows it: into a store on the way.
    """
    if source.kind in ARCHIVES:
        zstd = store.layers.zstd if store else None
        archive = stack.enter_context(part("archive.reader").opened(source.folder, cancel, zstd))
        end: LayoutEnd = part("distribution.archives").ArchiveEnd(source, archive)
        return end
    if source.kind != "docker":
        layout = LayoutEnd(source, store)
        stack.enter_context(layout.source.reading(cancel))
        return layout

    def answering(endpoint: Endpoint) -> End:
        if endpoint.version == 1:
            if not legacy:
                raise NoSupport("the v1 protocol has no signatures, and no sizes before a copy")
            passing = Store(stack.enter_context(tempfile.TemporaryDirectory(prefix="minipull-")))
            with passing.writing(cancel):
                part("distribution.pull_v1").V1Puller(
                    client.session(endpoint, source.name), passing, LayerDownloadManager(), output, cancel,
                ).pull(source.name.with_digest(source.tag) if isinstance(source.tag, Digest) else
                       source.name.with_tag(source.tag))
            return LayoutEnd(source._replace(kind="store"), passing)
        end = RegistryEnd(client.repository(endpoint, source.name))
        end.get(source.tag, cancel)
        return end

    return over_endpoints(client, source.name, subject, answering, cancel, output, legacy=True)
