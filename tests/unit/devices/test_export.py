"""devices/export.py: what is exported is a layer: unpacked over the same lower one it shows the same tree."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings

from devices.export import Exporter
from devices.fs.hostfs import HostFs
from devices.fs.overlayfs import OverlayFs
from devices.fs.tmpfs import make_tmpfs
from tests.unit.devices.fs.test_overlayfs import fill, overlay
from tests.unit.devices.fs.trees import (
    INITIAL,
    O_CREAT,
    O_RDWR,
    PAGE,
    Call,
    RootKernel,
    directory,
    host_tree,
    sequences,
    tree,
)
from tests.unit.devices.support import world
from tests.unit.devices.vfs.oracle import Data, Fd
from vmm.image.model import Limits
from vmm.image.streams import Budget
from vmm.image.unpack import unpack

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
ONE_NAME = [entry for entry in INITIAL if entry[0] != "link"]
"""A lower file of several names is exported under those that it was changed or moved by only."""


def exported(kernel: RootKernel, target: bytes) -> Exporter:
    sb = kernel.sb
    assert isinstance(sb, OverlayFs)
    assert sb.upper_root is not None
    exporter = Exporter(kernel.world.kernel)
    exporter.write_locked(sb.upper_root, target)
    return exporter


def layer_of(target: bytes, place: bytes) -> tuple[bytes, bytes]:
    """Unpack an exported directory as a layer of an image: the directory, and the file of attributes."""
    archive, root, sidecar = (os.path.join(place, name) for name in (b"layer.tar", b"layer", b"layer.json"))
    command: list[str | bytes] = [
        "tar",
        "--xattrs",
        "--format=posix",
        "--numeric-owner",
        "-C",
        target,
        "-cf",
        archive,
        ".",
    ]
    subprocess.run(command, check=True)
    os.mkdir(root)
    with open(archive, "rb") as source:
        attributes, _ = unpack(source, os.fsdecode(root), Budget(Limits(), os.fsdecode(place)), whiteouts=True)
    with open(sidecar, "w") as file:
        json.dump(attributes, file)
    return root, sidecar


@needs_root
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=30)
@given(sequences)
def test_a_layer_again(calls: list[Call]) -> None:
    with directory() as lower, directory() as target, directory() as place, world() as w:
        fill(lower, ONE_NAME)
        before = host_tree(lower)
        kernel = overlay(w, lower)
        kernel.descriptors.fds = [1000, 1000, 1000]
        for name, arguments in calls:
            if name != "mknod" or stat.S_IFMT(arguments[1]) != stat.S_IFSOCK:  # type: ignore[arg-type]  # a mode
                kernel.call(name, *arguments)
        exported(kernel, target)
        root, sidecar = layer_of(target, place)
        layers = [
            HostFs(w.kernel.new_dev_locked(), root, read_only=True, attributes=sidecar),
            HostFs(w.kernel.new_dev_locked(), lower, read_only=True),
        ]
        upper = make_tmpfs(w.kernel, mode=0o755)
        again = RootKernel(w, OverlayFs(w.kernel, [layer.root for layer in layers], upper.root))
        assert tree(again) == tree(kernel)
        assert host_tree(lower) == before


def test_what_is_written_and_what_is_left_out() -> None:
    with directory() as lower, directory() as target, world() as w:
        fill(lower, INITIAL)
        kernel = overlay(w, lower)
        calls: list[Call] = [
            ("unlink", (b"/a",)),
            ("rename", (b"/d", b"/e/moved")),
            ("open", (b"/new", O_RDWR | O_CREAT, 0o4755)),
            ("pwrite64", (Fd(0), Data(b"end"), 3, 100 * PAGE)),
            ("link", (b"/new", b"/e/second")),
            ("open", (b"/.wh.e", O_RDWR | O_CREAT, 0o600)),
            ("mknod", (b"/device", stat.S_IFCHR | 0o600, 0x103)),
            ("mknod", (b"/socket", stat.S_IFSOCK | 0o600, 0)),
            ("symlink", (b"/anywhere", b"/link")),
            ("setxattr", (b"/new", b"user.k", Data(b"v"), 1, 0)),
            ("setxattr", (b"/new", b"trusted.k", Data(b"v"), 1, 0)),
        ]
        for name, arguments in calls:
            assert kernel.call(name, *arguments)[0] >= 0, name
        exporter = exported(kernel, target)
        assert sorted(exporter.left_out) == [b".wh.e", b"device", b"socket"]
        assert sorted(os.listdir(target)) == [b".wh.a", b".wh.d", b"e", b"link", b"new"]
        assert sorted(os.listdir(os.path.join(target, b"e/moved"))) == [b".wh..wh..opq", b"s", b"sub", b"x"]
        with open(os.path.join(target, b"e/moved/x"), "rb") as file:
            assert file.read() == b"in a directory"
        new, second = (os.stat(os.path.join(target, name)) for name in (b"new", b"e/second"))
        assert (new.st_ino, new.st_nlink) == (second.st_ino, 2)
        assert (stat.S_IMODE(new.st_mode), new.st_size) == (0o755, 100 * PAGE + 3)
        assert new.st_blocks < 100
        assert os.listxattr(os.path.join(target, b"new")) == ["user.k"]
        with pytest.raises(OSError, match="not empty"):
            exported(kernel, target)
