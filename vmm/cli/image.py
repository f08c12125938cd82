"""pyvmm image import|list|remove|inspect: the store of images."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from vmm.cli import UsageError, parser_of
from vmm.image.model import ImageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from vmm.image.model import Progress
    from vmm.image.store import Record

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".oci")
SHOWN_EVERY = 0.1
"""Seconds."""
NOTES = 5
"""Most notes that are printed one by one."""
ACTIONS = {
    "import": "put an archive or an OCI layout into the store",
    "list": "list the images in the store",
    "remove": "remove images, and the layers that no other one has",
    "inspect": "show what is known of an image, as JSON",
}
USAGE = "usage: pyvmm image ACTION [OPTION...]\n\nactions:\n" + "".join(
    f"  {name:<10} {text}\n" for name, text in ACTIONS.items()
)


def run(words: Sequence[str]) -> int:
    """Run `pyvmm image`; the exit status."""
    if words and words[0] in ("-h", "--help"):
        print(USAGE + "\n`pyvmm image ACTION --help` tells more.")
        return 0
    if not words or words[0] not in ACTIONS:
        raise UsageError(f"image: the first word is one of: {', '.join(ACTIONS)}")
    actions = {"import": import_, "list": list_, "remove": remove, "inspect": inspect}
    try:
        return actions[words[0]](words[1:])
    except ImageError as error:
        raise UsageError(f"image {words[0]}: {error}") from error
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        raise UsageError(f"image {words[0]}: {about}{error.strerror or error}") from error


def import_(words: Sequence[str]) -> int:
    """SRC [NAME[:TAG]]."""
    from vmm.cli.boot import size
    from vmm.image.load import Loader
    from vmm.image.model import Limits
    from vmm.image.store import Store, split_name

    limits = Limits()
    parser = parser_of(
        "image import",
        "Put the image SRC into the store: the tar of a root file system (plain or compressed with gzip, xz or zstd), "
        "an OCI layout or the archive of one, or what `docker save` wrote. SRC:NAME chooses one of several images.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("name", metavar="NAME[:TAG]", nargs="?", help="default: what the archive says, or SRC's name")
    parser.add_argument("--max-size", metavar="SIZE", type=size, help="unpacked (default: 15/16 of the free space)")
    parser.add_argument("--max-entries", metavar="N", type=int, default=limits.entries, help="files: %(default)s")
    parser.add_argument(
        "--max-ratio", metavar="N", type=int, default=limits.ratio, help="unpacked bytes to a packed one: %(default)s"
    )
    options = parser.parse_args(words)
    wanted = split_name(options.name) if options.name else None
    path, ref = importable(options.source)
    store = Store()
    loader = Loader(store, path, progress(), Limits(options.max_size, options.max_entries, options.max_ratio))
    try:
        loaded = loader.load(ref)
        name, tag = wanted or name_of(path, loaded.names)
        store.put(name, tag, loaded.record)
    finally:
        loader.close()
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
    for note in loaded.notes[:NOTES]:
        sys.stderr.write(f"pyvmm: {note}\n")
    if len(loaded.notes) > NOTES:
        sys.stderr.write(f"pyvmm: and {len(loaded.notes) - NOTES} more\n")
    print(f"{name}:{tag} {loaded.record.digest}")
    return 0


def importable(source: str) -> tuple[str, str]:
    """(path, name of the image in it) of what can be put into the store."""
    from vmm.image.resolve import is_elf, is_layout_directory, split_path

    path, ref = split_path(source)
    if path is None:
        raise ImageError(f"{source}: No such file or directory")
    if os.path.isdir(path):
        if not is_layout_directory(path):
            raise ImageError(f"{path}: is a plain directory: boot it as it is, or import a tar of it")
    elif is_elf(path, os.stat(path)):
        raise ImageError(f"{path}: is an ELF file, which needs no import: boot it as it is")
    return path, ref


def name_of(path: str, names: Sequence[str]) -> tuple[str, str]:
    """What an image is called that was not given a name: as the archive says, or else as its file."""
    from vmm.image.store import LATEST, TAG, split_name

    stem = os.path.basename(os.path.abspath(path))
    stem = next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), stem)
    for name in names:
        if ":" in name or "/" in name:
            try:
                return split_name(name.removeprefix("docker.io/").removeprefix("library/"))
            except ImageError:
                continue
    tag = next((name for name in names if TAG.fullmatch(name)), LATEST)
    try:
        return split_name(f"{stem}:{tag}")
    except ImageError as error:
        raise ImageError(f"{path}: give it a name: {error}") from None


def progress() -> Progress | None:
    """Shows a percentage on a terminal."""
    if not sys.stderr.isatty():
        return None
    shown = 0.0

    def show(what: str, done: int, size: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= SHOWN_EVERY:
            shown = now
            sys.stderr.write(f"\r\x1b[K{what}: {done * 100 // max(size, 1)}% of {human(size)}")
            sys.stderr.flush()

    return show


def human(size: int) -> str:
    """A number of bytes for people."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def as_json(name: str, tag: str, record: Record) -> dict[str, Any]:
    value = {"name": name, "tag": tag} | record.to_json()
    del value["version"]
    return value


def list_(words: Sequence[str]) -> int:
    from vmm.image.store import Store

    options = _parse_list(words)
    found = Store().images()
    if options.json:
        json.dump([as_json(*item) for item in found], sys.stdout, indent=1)
        print()
        return 0
    rows = [("NAME", "TAG", "KIND", "SIZE", "LAYERS", "DIGEST", "IMPORTED")]
    for name, tag, record in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
        digest = record.digest.partition(":")[2][:12]
        rows.append((name, tag, record.kind, human(record.size), str(len(record.layers)), digest, when))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _parse_list(words: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("image list", "List the images in the store.")
    parser.add_argument("--json", action="store_true", help="as JSON, with all that is known")
    return parser.parse_args(words)


def remove(words: Sequence[str]) -> int:
    """NAME[:TAG]...; their layers go with them, unless another image has them or a machine uses them."""
    from vmm.image.store import Store, split_name

    parser = parser_of("image remove", "Remove images, and the layers that no other one has.")
    parser.add_argument("names", metavar="NAME[:TAG]", nargs="*")
    parser.add_argument("--cache", action="store_true", help="also what was unpacked of archives booted by path")
    options = parser.parse_args(words)
    if not options.names and not options.cache:
        raise UsageError("image remove: name an image (see pyvmm image list)")
    store = Store()
    missing = []
    for name, tag in map(split_name, options.names):
        if not store.remove(name, tag):
            missing.append(f"{name}:{tag}")
    store.collect(options.cache)
    if missing:
        raise ImageError(f"not in the store: {', '.join(missing)}")
    return 0


def inspect(words: Sequence[str]) -> int:
    from vmm.image.store import Store, split_name

    parser = parser_of("image inspect", "Show what is known of an image, as JSON.")
    parser.add_argument("name", metavar="NAME[:TAG]")
    name, tag = split_name(parser.parse_args(words).name)
    store = Store()
    record = store.get(name, tag)
    if record is None:
        raise ImageError(f"no image {name}:{tag} in the store {store.path}")
    value = as_json(name, tag, record)
    value["directories"] = [store.folder("layers", key) for key in record.layers]
    json.dump(value, sys.stdout, indent=1)
    print()
    return 0
