"""Reading archives: what a file is, decompression, digests and limits on the way."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

from vmm.image.model import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.image.model import Limits

MAGICS = (
    (b"\x7fELF", "elf"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"#!", "script"),
)
HEAD = 512
"""Bytes that `kind_of` wants to see: a tar header."""
CHUNK = 1 << 18
XZ_MEMORY = 256 << 20
"""Most memory that an xz archive may make its decoder use."""
ALGORITHMS = {"sha256": 64, "sha512": 128}
"""Digest algorithms of the OCI image specification, and the length of their digests in hexadecimal digits."""
NO_ZSTD = (
    "is compressed with zstd, which needs a Python package: pip install 'pyvmm[images]' (or decompress it: unzstd FILE)"
)


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes: elf, gzip, xz, zstd, script, tar, or an empty string."""
    for magic, kind in MAGICS:
        if head.startswith(magic):
            return kind
    return "tar" if is_tar(head) else ""


def is_tar(head: bytes) -> bool:
    """Whether this is a tar header (or the end of an empty archive): the check sum tells, in old archives alone."""
    if len(head) < HEAD:
        return False
    field = head[148:156].strip(b"\0 ")
    if not field:
        return not any(head)
    total = sum(head[:148]) + 8 * 32 + sum(head[156:512])
    try:
        return int(field, 8) == total
    except ValueError:
        return False


def check_digest(text: object) -> tuple[str, str]:
    """(algorithm, hexadecimal digits) of a digest. ImageError when it is none."""
    algorithm, _, digits = text.partition(":") if isinstance(text, str) else ("", "", "")
    if len(digits) != ALGORITHMS.get(algorithm, -1) or set(digits) - set("0123456789abcdef"):
        raise ImageError(f"{str(text)[:80]!r} is not a digest (sha256 or sha512)")
    return algorithm, digits


class Budget:
    """What is left of the limits, over all layers of an image."""

    def __init__(self, limits: Limits, folder: str) -> None:
        self.limits = limits
        self.entries = limits.entries
        if limits.size is None:
            free = os.statvfs(folder)
            self.size = free.f_bavail * free.f_frsize * 15 // 16
            self._of = "is free on the disk"
        else:
            self.size = limits.size
            self._of = "is allowed"

    def take(self, count: int) -> None:
        """Count bytes that were unpacked, or will be."""
        self.size -= count
        if self.size < 0:
            raise ImageError(f"unpacks to more than {self._of}")

    def take_entry(self) -> None:
        self.entries -= 1
        if self.entries < 0:
            raise ImageError(f"holds more than {self.limits.entries} files")


class Reader(io.RawIOBase):
    """Counts, hashes and reports the bytes that pass. `read` gives all that is asked for, except at the end."""

    def __init__(self, source: Any, hash: Any = None, passed: Callable[[int], None] | None = None) -> None:
        self._source = source
        self.hash = hash
        self.count = 0
        self.fence: int | None = None
        """Where reading is to have ended; None for no such place."""
        self._passed = passed

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "archives are not read whole"
        data: bytes = self._source.read(size)
        while 0 < len(data) < size:
            more = self._source.read(size - len(data))
            if not more:
                break
            data += more
        self.count += len(data)
        if self.fence is not None and self.count > self.fence:
            raise ImageError("has a header out of bounds")
        if self.hash is not None:
            self.hash.update(data)
        if self._passed is not None:
            self._passed(len(data))
        return data

    def drain(self) -> None:
        """Read to the end: digests and check sums are of all of it."""
        while self.read(CHUNK):
            pass


class Slice:
    """A part of a file, read from its beginning."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        left = self.size - self._position
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self.fd, wanted, self.offset + self._position) if wanted else b""
        if wanted and not data:
            raise ImageError("is truncated")
        self._position += len(data)
        return data

    def rewound(self) -> Slice:
        return Slice(self.fd, self.offset, self.size)


class Xz:
    """Decompression of .xz, as lzma.LZMAFile does it but with a limit on memory."""

    def __init__(self, source: Any) -> None:
        import lzma

        self._source = source
        self._format = lzma.FORMAT_XZ
        self._decoder = lzma.LZMADecompressor(self._format, XZ_MEMORY)
        self._left = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:
                self._left = (self._decoder.unused_data or self._source.read(CHUNK)).lstrip(b"\0")  # stream padding
                if not self._left:
                    return b""
                self._decoder = type(self._decoder)(self._format, XZ_MEMORY)
            data = self._left or (self._source.read(CHUNK) if self._decoder.needs_input else b"")
            if not data and self._decoder.needs_input:
                raise EOFError("the compressed data end too soon")
            self._left = b""
            found = self._decoder.decompress(data, size)
            if found:
                return found


def decompressed(source: Any, kind: str) -> Any:
    """`source`, decompressed if it is (kind: of `kind_of`)."""
    if kind == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=source, mode="rb")
    if kind == "xz":
        return Xz(source)
    if kind == "zstd":
        from importlib import import_module

        try:
            zstandard = import_module("zstandard")
        except ImportError:
            raise ImageError(NO_ZSTD) from None
        return zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    return source


class TarStream:
    """A tar as a stream of bytes, out of a file that may be compressed: digests of both, and the limits.

    `passed` is told of the compressed bytes that were read.
    """

    def __init__(
        self,
        blob: Slice,
        budget: Budget | None,
        algorithms: tuple[str, str] = ("sha256", "sha256"),
        passed: Callable[[int], None] | None = None,
    ) -> None:
        kind = kind_of(os.pread(blob.fd, min(HEAD, blob.size), blob.offset))
        self._budget = budget
        self.compressed = kind != "tar"
        self.raw = Reader(blob, hashlib.new(algorithms[0]), passed)
        self.tar = Reader(decompressed(self.raw, kind), hashlib.new(algorithms[1]), self._count)

    def _count(self, count: int) -> None:
        if self._budget is None:
            return
        self._budget.take(count)
        limits = self._budget.limits
        out = self.tar.count
        if self.compressed and out > limits.RATIO_FROM and out > limits.ratio * self.raw.count:
            raise ImageError(f"unpacks to more than {limits.ratio} times its size; is it a bomb?")


def damage() -> tuple[type[BaseException], ...]:
    """What reading a damaged or truncated archive raises."""
    import tarfile
    import zlib

    kinds: list[type[BaseException]] = [EOFError, tarfile.TarError, zlib.error, OverflowError, ValueError]
    import sys

    for module, name in (("gzip", "BadGzipFile"), ("lzma", "LZMAError"), ("zstandard", "ZstdError")):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)
