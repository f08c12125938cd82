"""What is said of the files of an image's layer that the host's directory cannot hold: owners, devices, whiteouts.

The file is the one that vmm/image/unpack.py writes beside the directory, where its form is told.
"""

from __future__ import annotations

import os
import stat
from typing import Any

Node = dict[str, Any]
"""NAME: Node for each entry of a directory; under the empty name what is said of the file itself."""
VERSION = 1
OWN = ""


class Said:
    """What is said of one file. None: as the host has it."""

    __slots__ = ("mode", "owner", "rdev", "xattrs")

    def __init__(self, mode: int | None, owner: tuple[int, int], rdev: int, xattrs: dict[bytes, bytes]) -> None:
        self.mode = mode
        """st_mode with the kind."""
        self.owner = owner
        self.rdev = rdev
        self.xattrs = xattrs


class Sidecar:
    """A layer's attributes. OSError, ValueError when the file cannot be used."""

    def __init__(self, path: bytes) -> None:
        import json

        with open(path, "rb") as file:
            found = json.load(file)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise ValueError(f"{os.fsdecode(path)} is no file of attributes of version {VERSION}")
        uid, gid = found["owner"]
        self.root: Node = found["tree"]
        self.plain = Said(None, (uid, gid), 0, {})
        """What holds for files of which nothing is said."""

    def of(self, node: Node | None) -> Said:
        own = node.get(OWN) if node is not None else None
        if own is None:
            return self.plain
        uid, gid = own.get("owner", self.plain.owner)
        xattrs = {os.fsencode(name): value.encode("latin-1") for name, value in own.get("xattrs", {}).items()}
        return Said(own.get("mode"), (uid, gid), own.get("rdev", 0), xattrs)


def below(node: Node | None, name: bytes) -> Node | None:
    """What is said below the entry `name` of a directory."""
    if not node:
        return None
    found: Node | None = node.get(os.fsdecode(name))
    return found


def kind_of(node: Node | None, name: bytes, kind: int) -> int:
    """DT_* of an entry that the host says is `kind`."""
    said = (below(node, name) or {}).get(OWN)
    mode = said.get("mode") if said is not None else None
    return kind if mode is None else stat.S_IFMT(mode) >> 12
