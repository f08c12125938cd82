"""Bringing the layers of an archive or layout into the store."""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmm.image.layout import Archive, Directory, is_image_archive, spooled
from vmm.image.model import ImageConfig, ImageError, Limits
from vmm.image.oci import describe
from vmm.image.store import Record
from vmm.image.streams import Budget, Slice, TarStream, check_digest, damage, kind_of
from vmm.image.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.image.layout import Layout
    from vmm.image.model import Progress
    from vmm.image.oci import LayerBlob
    from vmm.image.store import Store

UNPACKING = "unpacking"


class Loaded(NamedTuple):
    """What came of it: the image's record, the names it has in its archive, and what was left out."""

    record: Record
    names: list[str]
    notes: list[str]


class Loader:
    """Puts the image in the file or directory `path` into the store. As long as it is open, its layers stay there."""

    def __init__(self, store: Store, path: str, progress: Progress | None = None, limits: Limits | None = None) -> None:
        self._store = store
        self._path = path
        self._progress = progress
        self._limits = limits or Limits()
        self._notes: list[str] = []
        self._leases: list[int] = []

    def close(self) -> None:
        for fd in self._leases:
            os.close(fd)
        self._leases.clear()

    def load(self, ref: str = "") -> Loaded:
        """`ref`: which image of several. ImageError, which begins with the path, for all that goes wrong."""
        self._store.prepare()
        with _blamed(self._path), ExitStack() as stack:
            budget = Budget(self._limits, self._store.path)
            if stat.S_ISDIR(os.stat(self._path).st_mode):
                layout: Layout = Directory(self._path)
                stack.callback(layout.close)
                return self._load_layout(layout, ref, budget)
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            if is_image_archive(fd, Budget(self._limits, self._store.path)):
                kind = kind_of(os.pread(fd, 512, 0))
                layout = Archive(os.dup(fd) if kind == "tar" else spooled(fd, self._store.folder("tmp"), budget))
                stack.callback(layout.close)
                return self._load_layout(layout, ref, budget)
            if ref:
                raise ImageError(f"is a root file system, in which there is no image {ref!r}")
            return self._load_root(fd, budget)

    def _load_root(self, fd: int, budget: Budget) -> Loaded:
        size = os.fstat(fd).st_size
        blob = Slice(fd, 0, size)
        with self._store.workplace() as work:
            stream = TarStream(blob, budget, passed=self._counter(size))
            attributes, notes = unpack(stream.tar, work, budget, whiteouts=False)
            stream.tar.drain()
            digits = stream.tar.hash.hexdigest()
            self._leases.append(self._store.put_layer(f"root-{digits}", work, attributes))
        record = Record("rootfs", f"sha256:{digits}", [f"root-{digits}"], ImageConfig(), size, int(time.time()))
        return Loaded(record, [], notes)

    def _load_layout(self, layout: Layout, ref: str, budget: Budget) -> Loaded:
        image = describe(layout, ref)
        blobs = [(layer, layout.open(layer.file)) for layer in image.layers]
        size = sum(blob.size for _, blob in blobs)
        before = 0
        for layer, blob in blobs:
            self._add_layer(layer, blob, budget, before, size)
            before += blob.size
        keys = [check_digest(layer.diff_id)[1] for layer in image.layers]
        record = Record(image.kind, image.digest, keys, image.config, size, int(time.time()))
        return Loaded(record, image.names, self._notes)

    def _add_layer(self, layer: LayerBlob, blob: Slice, budget: Budget, before: int, size: int) -> None:
        """Have a layer in the store: unpack it unless it is there."""
        diff_algorithm, diff_digits = check_digest(layer.diff_id)
        with self._store.locked():
            lease = self._store.lease(diff_digits)
        if lease is not None:
            self._leases.append(lease)
            return
        algorithm, digits = check_digest(layer.digest) if layer.digest else ("sha256", "")
        with self._store.workplace() as work:
            stream = TarStream(blob, budget, (algorithm, diff_algorithm), self._counter(size, before))
            try:
                attributes, notes = unpack(stream.tar, work, budget, whiteouts=True)
                stream.tar.drain()
                stream.raw.drain()
            except damage() as error:
                raise ImageError(f"is damaged: layer {layer.file}: {error}") from error
            if digits and stream.raw.hash.hexdigest() != digits:
                raise ImageError(f"is damaged: {layer.file} does not have its digest")
            if stream.tar.hash.hexdigest() != diff_digits:
                raise ImageError(f"is damaged: {layer.file} does not unpack to what has the digest {layer.diff_id}")
            self._leases.append(self._store.put_layer(diff_digits, work, attributes))
            self._notes += notes

    def _counter(self, size: int, before: int = 0) -> _Counter | None:
        return _Counter(self._progress, size, before) if self._progress is not None else None


class _Counter:
    """Adds up what was read, for the progress to be shown."""

    def __init__(self, progress: Progress, size: int, before: int) -> None:
        self._progress = progress
        self._size = size
        self._done = before

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(UNPACKING, self._done, self._size)


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Say of every failure which archive it is about."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except OSError as error:
        from gzip import BadGzipFile

        what = f"is damaged: {error}" if isinstance(error, BadGzipFile) else error.strerror or str(error)
        raise ImageError(f"{path}: {what}") from error
    except damage() as error:
        raise ImageError(f"{path}: is truncated or damaged: {error}") from error
