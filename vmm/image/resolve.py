"""What IMAGE on a command line is."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from vmm.image.model import Image, ImageError

if TYPE_CHECKING:
    from typing import Any

    from vmm.image.model import Limits, Progress

HOST = "host"
NOT_AN_IMAGE = (
    "is not an ELF file, nor a tar of a root file system or an image (plain or compressed with gzip, xz or zstd)"
)


def resolve(text: str, progress: Progress | None = None, limits: Limits | None = None) -> Image:
    """The image that `text` names:

    * `host`: the host's own root,
    * the path of a directory, of a tar of a root file system, of an OCI layout or an archive of one, of what
      `docker save` wrote, or of an ELF file; where a layout holds several images, PATH:NAME,
    * NAME[:TAG] of an image in the store.

    A path that exists is taken before a name. Archives are unpacked into the store, and found there the next time as
    long as they look unchanged. `progress` is told how that goes. ImageError for everything else.
    """
    if text == HOST:
        return Image(HOST, [b"/"], name=HOST)
    if not text or "\0" in text:
        raise ImageError(f"{text!r} is no image: name one, or `host`")
    path, ref = split_path(text)
    if path is None:
        return _named(text)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            if not is_layout_directory(path):
                if ref:
                    raise ImageError(f"{path}: is a plain directory, in which there is no image {ref!r}")
                return Image("directory", [os.fsencode(os.path.abspath(path))], name=path)
        elif not ref and is_elf(path, status):
            return Image("elf", elf=os.fsencode(path), name=path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    return _unpacked(path, ref, progress, limits)


def split_path(text: str) -> tuple[str | None, str]:
    """(path, name of the image in it) if `text` is a path that exists, or PATH:NAME of one that does; else None."""
    if os.path.lexists(text):
        return text, ""
    path = text
    while ":" in path:
        path = path.rpartition(":")[0]
        if path and os.path.exists(path):
            return path, text[len(path) + 1 :]
    return None, ""


def is_layout_directory(path: str) -> bool:
    """Is the directory an OCI layout, and not a root file system?"""
    return all(os.path.isfile(os.path.join(path, name)) for name in ("oci-layout", "index.json"))


def is_elf(path: str, status: os.stat_result) -> bool:
    """Is the file a program? If not, it is an archive: ImageError if it is neither."""
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is not a regular file")
    with open(path, "rb", buffering=0) as file:
        head = file.read(512)
    if not head:
        raise ImageError(f"{path}: is empty")
    if head.startswith(b"\x7fELF"):
        return True
    from vmm.image.streams import kind_of

    kind = kind_of(head)
    if kind == "script":
        raise ImageError(f"{path}: is a script and not an ELF file: boot what interprets it, such as `host -- {path}`")
    if not kind:
        raise ImageError(f"{path}: {NOT_AN_IMAGE}")
    return False


def _named(text: str) -> Image:
    """An image of the store."""
    from vmm.image.store import Store, split_name

    if text.startswith(("/", ".")):
        raise ImageError(f"{text}: No such file or directory")
    try:
        split_name(text)
    except ImageError:
        raise ImageError(f"{text}: No such file or directory, and not an image's name") from None
    store = Store()
    try:
        return store.image(text)
    except ImageError as error:
        if "no image" not in str(error):
            raise
        raise ImageError(f"{text}: No such file or directory, and {error}; `pyvmm image list` shows them") from None


def _unpacked(path: str, ref: str, progress: Progress | None, limits: Limits | None) -> Image:
    """The image in an archive or layout, out of the store, where it is put first if need be."""
    import hashlib

    from vmm.image.store import Store

    store = Store()
    identity = _identity(path, ref)
    key = hashlib.sha256(os.fsencode(f"{identity[0]}\0{ref}")).hexdigest()
    known = store.cached(key, identity)
    if known is not None:
        known.name = path
        return known
    from vmm.image.load import Loader

    loader = Loader(store, path, progress, limits)
    try:
        record = loader.load(ref).record
        if _identity(path, ref) == identity:
            store.cache(key, identity, record)
        with store.locked():
            image = store.open(record, path)
    finally:
        loader.close()
    assert image is not None  # the loader kept the layers there
    return image


def _identity(path: str, ref: str) -> list[Any]:
    """What tells whether an archive is still the same: of a layout, what its index.json is."""
    real = os.path.realpath(path)
    status = os.stat(os.path.join(real, "index.json") if os.path.isdir(real) else real)
    return [real, ref, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
