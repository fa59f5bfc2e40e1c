# SPDX-License-Identifier: Apache-2.0
"""The store: content, layers, names and metadata under one root.

The root is an OCI image layout that other tools may read.  Every user holds a
shared lock and ``gc`` an exclusive one, so no blob that an operation relies on
disappears.  Layer records and metadata are caches; blobs and ``index.json`` are
the truth, and the index is written last.

Mirrors moby's daemon wiring of its layer, image and reference stores.
"""
import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, Callable, ContextManager, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from .. import files
from ..cancel import Cancel
from ..digest import Digest
from ..errors import Error, InvalidDocument, InvalidReference, NotFound, NotStored, PolicyError, StorageError, storage_errors
from ..image.config import Image, ImageConfig
from ..image.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from ..image.manifest import MAX_MANIFEST, Document, Manifest, is_runnable, parse
from ..image.platform import Platform
from ..image.walk import Seen, choose, walk
from ..parts import part
from ..reference import Reference
from .content import ContentStore
from .references import Association, Names, ReferenceStore, tag_subject
from .source import BlobSource

if TYPE_CHECKING:
    from .layer import LayerSource, LayerStore
    from .metadata import V2MetadataService

MAX_CONFIG = 8 << 20  # bytes
MAX_CONFIGS = 2 << 20  # and of all in a list of images
MAX_CANDIDATES = 8  # that the error for an ambiguous ID lists
IMAGE_ID = "(?:sha256:)?([0-9a-f]{4,64})"

_MACHINES = {"armv5tel": "arm/v5", "armv6l": "arm/v6", "armv7l": "arm/v7", "armv8l": "arm/v7",
             "i586": "386", "i686": "386", "loongarch64": "loong64"}


class ImageSource:
    """Images to be read; ``root`` is the path of the store or archive, ``timeout`` in seconds."""
    root: str
    timeout = 60.0
    content: BlobSource
    references: Names
    lasting = False  # whether what is unfinished stays for another process
    if TYPE_CHECKING:
        layers: LayerSource
        metadata: V2MetadataService

    @property
    def writable(self) -> "Store":
        """The store to write to; raises StorageError for an archive."""
        raise StorageError("%s is an archive, and read-only; choose another --root" % self.root)

    def exists(self) -> bool:
        """Whether there is a store, if only an empty one, rather than no directory or an empty one."""
        return True

    @contextlib.contextmanager
    def reading(self, cancel: Optional[Cancel] = None) -> Iterator[None]:
        """Keep every blob in its place for the block; an archive needs no lock for that."""
        yield

    def image(self, name: Union[str, Reference]) -> Image:
        """Find an image by name or, where no name is that, by ID; raises NotFound, InvalidReference."""
        return self.load(self.named(name)[0])

    def named(self, name: Union[str, Reference]) -> List[Association]:
        """Find a name or, for four hex digits or more of an ID, all names of its image; raises as image()."""
        match = re.fullmatch(IMAGE_ID, name) if isinstance(name, str) else None
        digits, familiar = match.group(1) if match else "", str(name)
        if len(digits) < 64:  # which may be a name, and then wins
            reference = Reference.of(name).with_default_tag()
            association, familiar = self.references.find(reference), reference.familiar
            if association is not None:
                return [association]
        ids: Dict[Digest, List[Association]] = {}
        for image in self.images() if digits else []:
            if image.id.encoded.startswith(digits):
                ids.setdefault(image.id, []).append(Association(*image[:3]))
        if len(ids) > 1:
            texts = ["%s (%s)" % (digest.encoded[:max(12, len(digits) + 4)], names[0].name.familiar)
                     for digest, names in sorted(ids.items())]
            more = ["and %d more" % (len(texts) - MAX_CANDIDATES)] if len(texts) > MAX_CANDIDATES else []
            raise InvalidReference("image ID prefix %s is ambiguous: %s" % (
                digits, ", ".join(texts[:MAX_CANDIDATES] + more)))
        if not ids:
            raise NotStored("No such image: %s" % familiar, "" if len(digits) == 64 else familiar)
        return ids.popitem()[1]

    def top(self, name: Union[str, Reference]) -> Descriptor:
        """The manifest or index of an image, which may be damaged; raises as image()."""
        return self.named(name)[0].descriptor

    def images(self, warn: Callable[[str], None] = lambda text: None,
               names: Optional[Sequence[Association]] = None) -> List[Image]:
        """List every named image, or those of ``names``, whose config can be read.

        Configs past MAX_CONFIGS bytes are brief.  ``warn`` is told of each name of another image.
        """
        images, configs, room = [], {}, MAX_CONFIGS
        for association in self.references.all() if names is None else names:
            try:
                digest = association.descriptor.digest
                if digest not in configs:  # one may be large, and have many names
                    config = self.load(association).config
                    room -= len(config.raw) if config else 0
                    configs[digest] = config.brief() if config and room < 0 else config
                images.append(Image(*association, configs[digest]))
            except Error as exc:
                warn("%s can't be read: %s" % (association.name.familiar, exc))
        return images

    def load(self, association: Association) -> Image:
        """Return the image of a name; raises an Error if its documents are damaged."""
        config = None
        if association.descriptor.media_type in MANIFEST_TYPES:
            document = self.document(association.descriptor)
            if isinstance(document, Manifest) and is_runnable(document):
                config = ImageConfig.parse(self.content.read(document.config.digest, MAX_CONFIG))
        return Image(association.name, association.descriptor, association.source, config)

    def document(self, descriptor: Descriptor) -> Document:
        """Read and verify a manifest or index; raises an Error if it is damaged."""
        return parse(
            self.content.read(descriptor.digest, MAX_MANIFEST), descriptor.media_type)

    def stored(self, descriptor: Descriptor) -> Optional[Document]:
        """Return a manifest or index, or None if it is missing or of another kind; raises as document()."""
        stored = descriptor.is_document and self.content.size(descriptor.digest) is not None
        return self.document(descriptor) if stored else None

    def subject(self, name: Optional[Reference], top: Descriptor) -> Optional[Digest]:
        """Return the digest of the manifest that a referrer, as a signature, belongs to; None for an image."""
        tagged = tag_subject(name.tag) if name else None
        document = None if tagged else self.stored(top)
        return document.subject.digest if document and document.subject else tagged

    def walk(self, top: Descriptor, document: Optional[Document] = None,
             seen: Optional[Seen] = None) -> Iterator[Tuple[Descriptor, Optional[Document]]]:
        """Yield every blob and document that ``top`` needs, once; a document after all that it needs.

        ``document`` is that of a ``top`` that may not be stored yet.  Documents in ``seen``
        are left out.  Raises as image.walk and document().
        """
        blobs: Set[Tuple[object, ...]] = set()  # by digest and size, of which a document may claim two
        for item, parsed in walk(document or top, self.stored, seen=seen):
            for blob in parsed.blobs if parsed else ():
                if blob[1:3] not in blobs:
                    blobs.add(blob[1:3])
                    yield blob, None
            yield item, parsed

    def missing(self, top: Descriptor, foreign: bool = False) -> Iterator[Descriptor]:
        """Yield the blobs that ``top`` needs and that are missing; foreign layers only if ``foreign``."""
        for item, _ in self.walk(top):
            if not self.content.has(item.digest, item.size) and (foreign or not item.is_foreign):
                yield item

    def on(self, platform: Platform, top: Descriptor) -> Optional[Descriptor]:
        """Return the best manifest for a platform: ``top``, or one of its index; None if none fits."""
        if top.media_type not in INDEX_TYPES:
            return top
        return next((item for item, _ in choose(platform, top, self.document)), None)

    def size(self, top: Descriptor) -> int:
        """Return the bytes that an image takes, shared or not; of one over the bounds of a walk, a part."""
        digests: Set[Digest] = set()
        with contextlib.suppress(PolicyError):
            digests.update(item.digest for item, _ in self.walk(top))
        return sum(self.content.size(digest) or self.content.left_out.get(digest, 0) for digest in digests)


class Store(ImageSource):
    """A store under ``root``; creates nothing until written to.

    ``timeout`` (seconds) bounds the wait for a lock; ``zstd`` is the path of that program.
    """
    content: ContentStore
    references: ReferenceStore
    lasting = True
    if TYPE_CHECKING:
        layers: LayerStore
    else:
        def __getattr__(self, name: str) -> object:
            """Make a cache when it is first used, which many commands do without; two are as good as one."""
            if name not in ("layers", "metadata"):
                raise AttributeError("'Store' object has no attribute '%s'" % name)
            folder, scratch = os.path.join(self.root, name), self.content.scratch
            vars(self)[name] = part("store.metadata").V2MetadataService(
                folder, scratch) if name == "metadata" else part("store.layer").LayerStore(
                    folder, scratch, self.content, self._zstd)
            return vars(self)[name]

    def __init__(self, root: str, timeout: float = 60.0, zstd: Optional[str] = None) -> None:
        self.root = os.path.abspath(root)
        self.timeout = timeout
        self.content = ContentStore(self.root, timeout)
        self.references = ReferenceStore(self.root, self.content.scratch, timeout)
        self._zstd = zstd

    @property
    def writable(self) -> "Store":
        return self

    def exists(self) -> bool:
        if os.path.isdir(self.root) and not os.access(self.root, os.X_OK):
            return True  # as far as this user can tell
        # A first pull that failed may have left no more than a lock and partials.
        signs = ("index.json",), ("index.json.bak",), ("oci-layout",), ("blobs",), ("lock", "ingest")
        return any(all(os.path.lexists(os.path.join(self.root, name)) for name in names) for names in signs)

    @contextlib.contextmanager
    def reading(self, cancel: Optional[Cancel] = None) -> Iterator[None]:
        """Hold the store's lock, shared with all but gc; raises Cancelled, and Locked if gc does not end.

        Continues without one where there is no lock file, or no lock in this file system.
        """
        self._refuse_links()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._lock(False, cancel, os.O_RDONLY))
            except StorageError as exc:
                if isinstance(exc, files.Locked):
                    raise
            yield

    def writing(self, cancel: Optional[Cancel] = None) -> ContextManager[None]:
        """Hold the same lock and make sure that there is one; raises StorageError, Cancelled."""
        return self._locked(False, cancel)

    def alone(self, cancel: Optional[Cancel] = None) -> ContextManager[None]:
        """Hold the lock exclusively, to remove blobs; raises StorageError, Cancelled."""
        return self._locked(True, cancel)

    def _locked(self, exclusive: bool, cancel: Optional[Cancel]) -> ContextManager[None]:
        (cancel or Cancel()).check()  # not in reading(): serve takes that lock if it is free, and never waits
        self._refuse_links()
        files.make_directory(self.root)
        return self._lock(exclusive, cancel, os.O_RDWR | os.O_CREAT)

    def _lock(self, exclusive: bool, cancel: Optional[Cancel], flags: int) -> ContextManager[None]:
        pause = (cancel or Cancel()).pause
        return files.locked(os.path.join(self.root, "lock"), exclusive, pause, self.timeout, flags)

    def _refuse_links(self) -> None:
        caches = (os.path.join(self.root, name) for name in ("layers", "metadata"))
        for path in (*self.content.folders, self.content.scratch, *caches):
            if os.path.islink(path):
                raise StorageError("%s is a symbolic link, and the store follows none below its root" % path)

    def exposure(self) -> str:
        """Describe the first file that lets other users of this host change the store; empty if none does.

        All files, down from ``/``, must belong to this user or root, and only directories above
        the root may be writable by all, if sticky.  Groups are trusted: each user has one of his own.
        """
        with storage_errors("examine %s" % self.root):
            root = os.path.realpath(self.root)
        above = {path[:end.start()] or "/" for path in (root, self.root) for end in re.finditer("/", path)}
        content = ContentStore(root)
        own = (os.path.join(root, "index.json"), content.scratch, *content.folders)
        for path in (*sorted(above), self.root, root, *own) if os.name == "posix" else ():
            with contextlib.suppress(OSError):  # it is not there
                status = os.lstat(path)
                # The owner of / can do anything, and in a user namespace is not known as root.
                if status.st_uid not in (os.geteuid(), 0, os.stat("/").st_uid):
                    return "%s belongs to another user (%d)" % (path, status.st_uid)
                sticky = path in above and status.st_mode & stat.S_ISVTX
                if status.st_mode & stat.S_IWOTH and not sticky and not stat.S_ISLNK(status.st_mode):
                    return "%s is writable by all users" % path
        return ""

    def load(self, association: Association) -> Image:
        with damaged():
            return super().load(association)

    def document(self, descriptor: Descriptor) -> Document:
        with damaged():
            return super().document(descriptor)

    def tag(self, name: Union[str, Reference], image: Image, cancel: Optional[Cancel] = None) -> None:
        """Give an image another name; raises StorageError, InvalidReference."""
        reference = Reference.of(name)
        if reference.digest is not None:
            raise InvalidReference("refusing to create a tag with a digest reference")
        pause = (cancel or Cancel()).pause
        with self.writing(cancel):
            for blob in self.missing(image.descriptor):
                raise StorageError("%s lacks blob %s; pull it again" % (image, blob.digest))
            self.references.set(reference.with_default_tag(), image.descriptor, image.source, pause)

    def remove(self, *names: Union[str, Reference], cancel: Optional[Cancel] = None) -> None:
        """Remove names, all or none; the blobs stay until gc.  Raises NotFound."""
        listed = {item.name for item in self.references.all()}
        asked = [name if isinstance(name, Reference) else Reference.of(name).docker_ref() for name in names]
        lost = [name for name in asked if name not in listed]
        if not lost:
            with self.writing(cancel):
                if not asked or self.references.delete(*asked, pause=(cancel or Cancel()).pause):
                    return
        raise NotFound("No such image: %s" % [*lost, *asked][0].familiar)


@contextlib.contextmanager
def damaged() -> Iterator[None]:
    """Map InvalidDocument to StorageError: a stored document was valid when it came, so the disk spoiled it."""
    try:
        yield
    except InvalidDocument as exc:
        raise StorageError("%s; run minipull check" % exc) from exc


def host_platform() -> Platform:
    """Return the platform of images that run on this machine: Windows there, Linux elsewhere."""
    if os.name == "nt":
        return Platform("windows", "amd64")
    machine = os.uname().machine
    return Platform.parse("linux/" + _MACHINES.get(machine, machine))


def platform_of(platform: Union[str, Platform, None]) -> Optional[Platform]:
    """Return the platform that a caller names, completed by the host's; raises InvalidReference."""
    return Platform.parse(platform, host_platform()) if isinstance(platform, str) else platform
