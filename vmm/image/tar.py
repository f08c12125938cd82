"""Reading a hostile tar with tarfile: as a stream, with bounded headers, and to an end that is really there."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any

from vmm.image.model import ImageError
from vmm.image.streams import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

MAXIMUM_HEADER = 1 << 20
"""Most bytes of one extended header; tarfile reads them whole."""
MAXIMUM_MAP = 4 << 20
"""Most bytes that tarfile may read behind a header before it hands out the member: maps of sparse files."""
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def members(source: Any, seekable: bool = False) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar. ImageError when it does not end as a tar does, or has a header out of bounds; damage that
    tarfile notices raises what `streams.damage` lists."""
    ended = False
    fenced = source if isinstance(source, Reader) else None

    class Header(tarfile.TarInfo):
        """tarfile takes a damaged header behind the first one for the end: the end is seen here."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Header:
            nonlocal ended
            ended = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]  # None is for binary names
            if header.size < 0 or (header.type in EXTENDED and header.size > MAXIMUM_HEADER):
                raise ImageError("has a header out of bounds")
            if fenced is not None:
                fenced.fence = fenced.count + MAXIMUM_MAP
            return header

    mode: Any = "r:" if seekable else "r|"
    with tarfile.open(fileobj=source, mode=mode, tarinfo=Header, encoding="utf-8", errors="surrogateescape") as archive:
        while True:
            member = archive.next()
            if fenced is not None:
                fenced.fence = None
            if member is None:
                break
            if member.size < 0:
                raise ImageError("has a header out of bounds")
            archive.members.clear()  # type: ignore[attr-defined]  # or it keeps all of them
            yield member, archive
    if not ended:
        raise ImageError("is truncated or damaged: it has no end mark")


def split(name: str) -> list[bytes]:
    """The components of a name in the image's tree; none for its root. ImageError for a name that leads elsewhere."""
    path = name.encode("utf-8", "surrogateescape")
    if b"\0" in path or len(path) > 4096:
        raise ImageError(f"holds the name {name[:60]!r}..., which no file can have")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ImageError(f"holds the name {name[:200]!r}, which leads out of the image")
    return parts
