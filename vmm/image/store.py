"""The store of unpacked images: $PYVMM_STORE, or $XDG_DATA_HOME/pyvmm, or ~/.local/share/pyvmm.

    layers/KEY/           a layer's tree; KEY is the digest of its tar, behind `root-` for a root file system's
    layers/KEY.json       what the tree does not say (unpack.py); a layer is there when this file is
    images/NAME/TAG.json  an image: its layers, the lowest first, and its configuration (`/` in NAME is written as %)
    cache/HEX.json        the same of an archive that was booted without an import, with what it looked like
    tmp/                  what is being made; each directory in it is locked by whoever makes it
    lock                  held while names and layers come and go: shared to read, exclusively to change

Files are written whole under another name, synced and renamed. Who uses a layer holds a shared lock on its KEY.json; a
layer that no image and no cached archive names is removed once nobody holds it. The folders are for their owner only:
a layer's files may have any mode.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.image.model import Image, ImageConfig, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
LATEST = "latest"
FOLDERS = ("layers", "images", "cache", "tmp")


def split_name(text: str) -> tuple[str, str]:
    """(name, tag) of NAME[:TAG]. ImageError when it is no such thing."""
    name, colon, tag = text.partition(":")
    tag = tag if colon else LATEST
    if not NAME.fullmatch(name) or len(name) > 200 or not TAG.fullmatch(tag) or name == "host":
        raise ImageError(f"{text!r} is not a name for an image: NAME or NAME:TAG, of letters, digits and ._-/")
    return name, tag


def default_path() -> str:
    """Where the store is."""
    chosen = os.environ.get("PYVMM_STORE")
    if chosen:
        return chosen
    data = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(data if os.path.isabs(data) else os.path.expanduser("~/.local/share"), "pyvmm")


class Record(NamedTuple):
    """An image in the store. `layers`: keys, the lowest first; `size`: of the archive, in bytes; `created`: when it was
    imported, seconds since 1970."""

    kind: str
    digest: str
    layers: list[str]
    config: ImageConfig
    size: int
    created: int

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"version": 1, "config": self.config.to_oci()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        config = ImageConfig.from_oci(value["config"])
        return cls(value["kind"], value["digest"], value["layers"], config, value["size"], value["created"])


class Store:
    """The store at `path`; nothing is made before something is put into it."""

    def __init__(self, path: str | None = None) -> None:
        self.path = os.path.abspath(path or default_path())

    def folder(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def prepare(self) -> None:
        """Make the folders, and remove what killed processes left in tmp/."""
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            for name in FOLDERS:
                try:
                    os.mkdir(self.folder(name), 0o700)
                except FileExistsError:
                    continue
        except OSError as error:
            raise ImageError(f"the store {self.path}: {error.strerror}") from error
        if os.listdir(self.folder("tmp")):
            with self.locked(exclusive=True):
                for name in os.listdir(self.folder("tmp")):
                    _remove_unless_used(self.folder("tmp", name))

    @contextmanager
    def locked(self, exclusive: bool = False) -> Iterator[None]:
        """Hold the store's lock; it is held for short times only. Without a store there is nothing to lock."""
        try:
            fd = os.open(self.folder("lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            yield
            return
        except OSError as error:
            raise ImageError(f"the store {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    # Layers

    def lease(self, key: str) -> int | None:
        """A descriptor that keeps a layer in the store as long as it is open; None if the layer is not there. Call it
        with the lock held."""
        try:
            fd = os.open(self.folder("layers", f"{key}.json"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    @contextmanager
    def workplace(self) -> Iterator[str]:
        """A new directory in tmp/, which is gone in the end."""
        import tempfile

        with self.locked():
            path = tempfile.mkdtemp(dir=self.folder("tmp"))
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            _remove(path)
            os.close(fd)

    def put_layer(self, key: str, tree: str, attributes: dict[str, Any]) -> int:
        """Move the directory `tree` into the store as a layer, unless somebody else has just done it; its lease."""
        _sync_file_system(tree)
        with self.locked(exclusive=True):
            lease = self.lease(key)
            if lease is None:
                target = self.folder("layers", key)
                _remove(target)  # a leftover without its attributes
                os.rename(tree, target)
                self._write("layers", f"{key}.json", attributes)
                lease = self.lease(key)
        assert lease is not None
        return lease

    def _write(self, folder: str, name: str, value: object) -> None:
        """Put a JSON file in place as a whole."""
        temporary = self.folder(folder, f".{name}.{os.getpid()}")
        try:
            with open(temporary, "w", encoding="ascii") as file:
                json.dump(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self.folder(folder, name))
        except BaseException:
            _remove(temporary)
            raise
        fd = os.open(self.folder(folder), os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)

    # Images

    def put(self, name: str, tag: str, record: Record) -> None:
        folder = os.path.join("images", name.replace("/", "%"))
        with self.locked(exclusive=True):
            os.makedirs(self.folder(folder), mode=0o700, exist_ok=True)
            self._write(folder, f"{tag}.json", record.to_json())

    def get(self, name: str, tag: str) -> Record | None:
        return self._read(self.folder("images", name.replace("/", "%"), f"{tag}.json"))

    @staticmethod
    def _read(path: str) -> Record | None:
        try:
            with open(path, encoding="ascii") as file:
                return Record.from_json(json.load(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ImageError) as error:
            raise ImageError(f"the store is damaged: {path}: {error}") from error

    def images(self) -> list[tuple[str, str, Record]]:
        """All images: name, tag and what is known; by name."""
        found = []
        for folder in _listed(self.folder("images")):
            for file in _listed(self.folder("images", folder)):
                if file.endswith(".json") and not file.startswith("."):
                    record = self._read(self.folder("images", folder, file))
                    if record is not None:
                        found.append((folder.replace("%", "/"), file[:-5], record))
        return sorted(found, key=lambda item: item[:2])

    def image(self, text: str) -> Image:
        """The image NAME[:TAG], its layers leased. ImageError when there is none."""
        name, tag = split_name(text)
        with self.locked():
            record = self.get(name, tag)
            image = self.open(record, f"{name}:{tag}") if record is not None else None
        if record is None:
            raise ImageError(f"no image {name}:{tag} in the store {self.path}")
        if image is None:
            raise ImageError(f"the store is damaged: a layer of {name}:{tag} is gone; import it again")
        return image

    def open(self, record: Record, name: str) -> Image | None:
        """The image of a record, its layers leased; None when a layer is not there. Call it with the lock held."""
        leases: list[int] = []
        for key in record.layers:
            lease = self.lease(key)
            if lease is None:
                for fd in leases:
                    os.close(fd)
                return None
            leases.append(lease)
        layers = [os.fsencode(self.folder("layers", key)) for key in reversed(record.layers)]
        return Image(
            record.kind,
            layers,
            attributes=[layer + b".json" for layer in layers],
            config=record.config,
            name=name,
            digest=record.digest,
            leases=leases,
        )

    def remove(self, name: str, tag: str) -> bool:
        """Forget an image; was there one?"""
        with self.locked(exclusive=True):
            folder = self.folder("images", name.replace("/", "%"))
            try:
                os.unlink(os.path.join(folder, f"{tag}.json"))
            except FileNotFoundError:
                return False
            try:
                os.rmdir(folder)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
        return True

    # Archives that were booted without an import

    def cached(self, key: str, identity: list[Any]) -> Image | None:
        """The image of an archive, if it still looks as it did when it was unpacked."""
        with self.locked():
            try:
                with open(self.folder("cache", f"{key}.json"), encoding="ascii") as file:
                    value = json.load(file)
                if value["identity"] != identity:
                    return None
                return self.open(Record.from_json(value["image"]), value["identity"][0])
            except (OSError, ValueError, KeyError, TypeError, ImageError):
                return None  # it is made again

    def cache(self, key: str, identity: list[Any], record: Record) -> None:
        with self.locked(exclusive=True):
            self._write("cache", f"{key}.json", {"identity": identity, "image": record.to_json()})

    # Garbage

    def collect(self, cache: bool = False) -> int:
        """Remove the layers that nothing names and nobody uses, and what the cache has of archives that are gone
        (`cache`: of all); the number of layers that were removed."""
        if not os.path.isdir(self.folder("tmp")):
            return 0
        removed = 0
        with self.workplace() as work, self.locked(exclusive=True):
            used = {key for _, _, record in self.images() for key in record.layers}
            used |= self._collect_cache(cache)
            for file in _listed(self.folder("layers")):
                key = file.removesuffix(".json")
                if key in used or file.startswith("."):
                    continue
                if file == key and os.path.exists(self.folder("layers", f"{key}.json")):
                    continue  # its other file decides
                removed += self._retire(key, os.path.join(work, key))
        return removed

    def _retire(self, key: str, target: str) -> bool:
        """Move a layer out of the store to `target`, unless somebody uses it."""
        attributes = self.folder("layers", f"{key}.json")
        lease = self.lease(key)
        if lease is not None:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            finally:
                os.close(lease)
            os.unlink(attributes)
        tree = self.folder("layers", key)
        if os.path.isdir(tree):
            os.rename(tree, target)
        return True

    def _collect_cache(self, all_of_it: bool) -> set[str]:
        """Drop records of archives that are gone; the layers that the others name."""
        used: set[str] = set()
        for file in _listed(self.folder("cache")):
            path = self.folder("cache", file)
            try:
                with open(path, encoding="ascii") as source:
                    value = json.load(source)
                keys = set(value["image"]["layers"])
                gone = all_of_it or not os.path.exists(value["identity"][0])
            except (ValueError, KeyError, TypeError):
                keys, gone = set(), True
            if gone:
                os.unlink(path)
            else:
                used |= keys
        return used


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(path: str) -> None:
    """Remove a tree or a file, if it is there."""
    from shutil import rmtree

    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        rmtree(path)


def _remove_unless_used(path: str) -> None:
    """Remove a tree in tmp/ whose maker does not live any more."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # somebody else was faster
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(fd)


def _sync_file_system(path: str) -> None:
    """syncfs(2): one wait for all files of a layer."""
    import ctypes

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
