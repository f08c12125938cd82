"""Images: what IMAGE can be, what an archive must not do, and the store."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import ROOT
from tests.host.image_support import INDEX, Entry, Layout, docker_save, entry, folder, hardlink, symlink, tar
from vmm.image.load import Loader
from vmm.image.model import ImageError, Limits
from vmm.image.resolve import resolve
from vmm.image.store import Store, split_name

if TYPE_CHECKING:
    from vmm.image.model import Image

BASE = (folder("./"), folder("./bin"), entry("./bin/sh", b"shell", mode=0o755))


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "store"))
    return Store()


def pyvmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "image", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, stdin=subprocess.DEVNULL)


def write(tmp_path: Path, *entries: Entry) -> Path:
    file = tmp_path / "image.tar"
    file.write_bytes(tar(*entries))
    return file


def opened(text: str | Path, limits: Limits | None = None) -> Image:
    image = resolve(str(text), limits=limits)
    image.close()
    return image


def tree(image: Image, layer: int = 0) -> Path:
    return Path(os.fsdecode(image.layers[layer]))


def said(image: Image, name: str = "", layer: int = 0) -> dict[str, Any]:
    """What the file of attributes says of one file."""
    path = image.attributes[layer]
    assert path is not None
    attributes = json.loads(Path(os.fsdecode(path)).read_text())
    assert (attributes["version"], attributes["owner"]) == (1, [0, 0])
    node = attributes["tree"]
    for part in filter(None, name.split("/")):
        node = node.get(part, {})
    found: dict[str, Any] = node.get("", {})
    return found


def assert_store_is_clean(store: Store, layers: int = 0) -> None:
    assert os.listdir(store.folder("tmp")) == []
    assert len(os.listdir(store.folder("layers"))) == 2 * layers


# What IMAGE can be


def test_host_directory_and_elf(tmp_path: Path) -> None:
    assert (resolve("host").kind, resolve("host").layers) == ("host", [b"/"])
    image = resolve(str(tmp_path))
    assert (image.kind, image.layers, image.attributes) == ("directory", [os.fsencode(tmp_path)], [None])
    assert (resolve("/bin/sh").kind, resolve("/bin/sh").elf) == ("elf", b"/bin/sh")
    assert not (tmp_path / "store").exists(), "looking made a store"


def compress(data: bytes, kind: str) -> bytes:
    if kind == "zstd":
        compressed: bytes = pytest.importorskip("zstandard").compress(data)
        return compressed
    if kind == "gzip":
        return gzip.compress(data)
    return lzma.compress(data) if kind == "xz" else data


@pytest.mark.parametrize("kind", ["plain", "gzip", "xz", "zstd"])
def test_a_root_file_system(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "root"
    file.write_bytes(compress(tar(*BASE, symlink("a", "/etc/passwd"), hardlink("bin/b", "bin/sh")), kind))
    image = opened(file)
    assert (image.kind, len(image.layers), image.digest[:7]) == ("rootfs", 1, "sha256:")
    assert (tree(image) / "bin/sh").read_bytes() == b"shell"
    assert (tree(image) / "bin/sh").stat().st_nlink == 2
    assert os.readlink(tree(image) / "a") == "/etc/passwd"


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_archives_of_several_compressed_parts(kind: str, tmp_path: Path) -> None:
    data = tar(*BASE)
    file = tmp_path / "root"
    file.write_bytes(compress(data[:700], kind) + compress(data[700:], kind))
    assert (tree(opened(file)) / "bin/sh").read_bytes() == b"shell"


def test_zstd_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    file = tmp_path / "root"
    file.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    with pytest.raises(ImageError, match=r"zstd.*pip install"):
        resolve(str(file))


def test_a_second_start_unpacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, *BASE)
    first = opened(file)
    with monkeypatch.context() as without:
        without.setattr(Loader, "load", lambda self, ref="": pytest.fail("it was unpacked again"))
        assert opened(file).layers == first.layers
    file.write_bytes(tar(*BASE, entry("new")))
    assert opened(file).layers != first.layers


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello\n" * 200, "is not an ELF file, nor a tar"),
        (b"#!/bin/sh\n", "is a script"),
        (bytes(100), "is not an ELF file"),
    ],
)
def test_files_that_are_no_images(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=f"^{file}: {reason}"):
        resolve(str(file))


def test_names_that_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    for text, reason in (
        ("", "is no image"),
        ("/nonexistent", "No such file"),
        ("nonexistent", "no image nonexistent:latest in the store"),
        ("no such", "not an image's name"),
        (str(tmp_path / "fifo"), "is not a regular file"),
        (str(tmp_path / "dangling"), "No such file"),
        (f"{tmp_path}:x", "is a plain directory"),
    ):
        with pytest.raises(ImageError, match=reason):
            resolve(text)


# Layouts

CONFIG = {
    "Entrypoint": ["/bin/sh"],
    "Cmd": ["-c", "true"],
    "Env": ["A=b"],
    "User": "nobody:nogroup",
    "WorkingDir": "/srv",
    "Labels": {"k": "v"},
    "StopSignal": "SIGINT",
    "ExposedPorts": {"80/tcp": {}},
}
UPPER = (folder("bin"), entry("bin/.wh.sh"), folder("etc"), entry("etc/.wh..wh..opq"), entry("etc/x", b"x"))


def make_layout(form: str, tmp_path: Path) -> Path:
    layers = [tar(*BASE), tar(*UPPER), tar(*BASE)]
    if form == "directory":
        return Layout().add(layers, CONFIG).write(tmp_path / "layout")
    if form == "archive":
        return Layout().add(layers, CONFIG).archive(tmp_path / "layout.tar")
    saved = tar(*docker_save(layers, CONFIG, ["app:1"]))
    file = tmp_path / "saved"
    file.write_bytes(gzip.compress(saved) if form == "compressed docker save" else saved)
    return file


@pytest.mark.parametrize("form", ["directory", "archive", "docker save", "compressed docker save"])
def test_layers_and_configuration(form: str, tmp_path: Path, store: Store) -> None:
    image = opened(make_layout(form, tmp_path))
    assert image.kind == ("docker" if "docker" in form else "oci")
    assert len(image.layers) == 3
    assert image.layers[0] == image.layers[2], "the same layer is unpacked once"
    assert image.config.to_oci() == CONFIG
    assert (tree(image, 2) / "bin/sh").read_bytes() == b"shell"
    assert said(image, "bin/sh", 1) == {"mode": stat.S_IFCHR, "rdev": 0}
    assert said(image, "etc", 1) == {"xattrs": {"trusted.overlay.opaque": "y"}}
    assert sorted(os.listdir(tree(image, 1) / "etc")) == ["x"]
    assert_store_is_clean(store, layers=2)


def test_one_image_of_several(tmp_path: Path) -> None:
    layout = Layout().add([tar(*BASE)], name="one").add([tar(*UPPER)], name="example/two:2").write(tmp_path / "layout")
    with pytest.raises(ImageError, match=r"holds several images \(example/two:2, one\)"):
        resolve(str(layout))
    with pytest.raises(ImageError, match="holds no image 'three', but"):
        resolve(f"{layout}:three")
    one, two = opened(f"{layout}:one"), opened(f"{layout}:2")
    assert one.layers != two.layers
    assert two.layers == opened(f"{layout}:example/two:2").layers


def test_the_index_of_many_platforms(tmp_path: Path) -> None:
    layout = Layout().add([tar(*BASE)]).add([tar(*UPPER)], architecture="arm64")
    amd, arm = layout.manifests
    amd["platform"] = {"os": "linux", "architecture": "amd64"}
    arm["platform"] = {"os": "linux", "architecture": "arm64"}
    nested = layout.blob(json.dumps({"manifests": [arm, amd]}).encode(), mediaType=INDEX)
    layout.manifests = [nested]
    assert (tree(opened(layout.write(tmp_path / "layout"))) / "bin/sh").exists()
    layout.manifests = [arm]
    with pytest.raises(ImageError, match="no image for linux/amd64"):
        resolve(str(layout.write(tmp_path / "other")))
    del arm["platform"]
    with pytest.raises(ImageError, match="is for linux/arm64"):
        resolve(str(layout.write(tmp_path / "third")))


@pytest.mark.parametrize("what", ["layer", "manifest", "config", "missing", "swapped"])
def test_damaged_blobs(what: str, tmp_path: Path, store: Store) -> None:
    layout = Layout()
    if what == "swapped":
        layout.add([tar(*BASE)], packed=[gzip.compress(tar(*UPPER))])
    else:
        layout.add([tar(*BASE)])
    manifest_file = "blobs/" + layout.manifests[0]["digest"].replace(":", "/")
    manifest = json.loads(layout.files[manifest_file])
    file = {
        "manifest": manifest_file,
        "config": "blobs/" + manifest["config"]["digest"].replace(":", "/"),
    }.get(what, "blobs/" + manifest["layers"][0]["digest"].replace(":", "/"))
    if what == "layer":
        layout.files[file] = gzip.compress(tar(*BASE), compresslevel=1)
    elif what == "missing":
        del layout.files[file]
    elif what != "swapped":
        layout.files[file] = layout.files[file].replace(b'"', b"'", 1)
    with pytest.raises(ImageError, match="has no file" if what == "missing" else "is damaged.*digest"):
        resolve(str(layout.write(tmp_path / "layout")))
    assert_store_is_clean(store)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"Entrypoint": "sh"}, "Entrypoint is not a list"),
        ({"Cmd": [1]}, "Cmd is not a string"),
        ({"Env": ["=x"]}, "not NAME=VALUE"),
        ({"User": ["root"]}, "User is not a string"),
        ({"WorkingDir": "/a\0b"}, "WorkingDir is not a string"),
        ({"Labels": ["a"]}, "Labels is not an object"),
    ],
)
def test_bad_configurations(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=reason):
        resolve(str(Layout().add([tar(*BASE)], config).write(tmp_path / "layout")))


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b'{"manifests": 1}', "not a list"),
        (b'{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}', "not a digest"),
        (b'{"manifests": []}', "no image for linux/amd64"),
        (b" " * (5 << 20), "too long"),
    ],
)
def test_bad_indexes(index: bytes, reason: str, tmp_path: Path) -> None:
    layout = Layout().write(tmp_path / "layout")
    (layout / "index.json").write_bytes(index)
    with pytest.raises(ImageError, match=reason):
        resolve(str(layout))


def test_links_in_a_layout_directory_are_not_followed(tmp_path: Path) -> None:
    layout = Layout().add([tar(*BASE)]).write(tmp_path / "layout")
    blobs = layout / "blobs/sha256"
    for blob in list(blobs.iterdir()):
        blob.rename(tmp_path / blob.name)
        blob.symlink_to(tmp_path / blob.name)
    with pytest.raises(ImageError, match="has no file"):
        resolve(str(layout))


def test_layer_files_of_docker_save_stay_in_the_archive(tmp_path: Path) -> None:
    (tmp_path / "outside.tar").write_bytes(tar(*BASE))
    entries = docker_save([tar(*BASE)], {}, [])
    manifest = json.loads(entries.pop()[1])
    manifest[0]["Layers"] = [str(tmp_path / "outside.tar")]
    with pytest.raises(ImageError, match="has no file"):
        resolve(str(write(tmp_path, *entries, entry("manifest.json", json.dumps(manifest).encode()))))


# Hostile archives


def device(name: str, kind: bytes, major: int, minor: int) -> Entry:
    return entry(name, type=kind, devmajor=major, devminor=minor, mode=0o666)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry("../evil", b"x")], "leads out of the image"),
        ([entry("a/../../evil", b"x")], "leads out of the image"),
        ([folder("a/..")], "leads out of the image"),
        ([symlink("a", "/tmp"), entry("a/evil", b"x")], "goes through 'a', which is no directory"),
        ([symlink("a", "."), folder("a/b")], "goes through 'a'"),
        ([folder("d"), symlink("d/a", ".."), entry("d/a/evil", b"x")], "goes through 'd/a'"),
        ([entry("f", b"x"), entry("f/g", b"x")], "goes through 'f'"),
        ([hardlink("a", "../../etc/passwd")], "leads out of the image"),
        ([hardlink("a", "/etc/passwd")], "not in the archive before it"),
        ([symlink("s", "/etc"), hardlink("a", "s/passwd")], "not in the archive before it"),
        ([folder("d"), hardlink("a", "d")], "is a directory"),
        ([entry("a"), hardlink("a", "a")], "to itself"),
        ([hardlink("a", ".")], "no file"),
        ([folder("d"), entry("d/f"), hardlink("d", "d/f")], "not in the archive"),
        ([symlink("a", "x" * 5000)], "whose target no link can have"),
        ([symlink("a", "")], "whose target no link can have"),
        ([entry("x" * 300, b"x")], "name too long"),
        ([entry("x/" * 2500, b"x")], "which no file can have"),
        ([entry("x/" * 300 + "y", b"x")], "more than 256 components"),
        ([entry("./", b"x")], "root that is no directory"),
        ([device("d", tarfile.BLKTYPE, 1 << 14, 0)], "number out of bounds"),
        ([entry("f", pax_headers={"uid": "-1"})], "owner out of bounds"),
        ([entry("f", pax_headers={"uid": str(1 << 40)})], "owner out of bounds"),
        ([entry("f", pax_headers={"comment": "x" * (2 << 20)})], "header out of bounds"),
        ([entry("f", pax_headers={"path": "a\0b"})], "which no file can have"),
    ],
)
def test_refused(entries: list[Entry], reason: str, tmp_path: Path, store: Store) -> None:
    before = set(os.listdir("/tmp"))
    with pytest.raises(ImageError, match=f"(?i)^{tmp_path}/image.tar: .*{reason}") as failure:
        resolve(str(write(tmp_path, *BASE, *entries)))
    assert "\n" not in str(failure.value)
    assert "evil" not in set(os.listdir("/tmp")) - before
    assert not list(tmp_path.rglob("evil"))
    assert_store_is_clean(store)


@pytest.mark.parametrize("hidden", ["", ".", ".."])
def test_refused_whiteouts(hidden: str, tmp_path: Path, store: Store) -> None:
    layout = Layout().add([tar(*BASE), tar(folder("d"), entry(f"d/.wh.{hidden}"))]).write(tmp_path / "layout")
    with pytest.raises(ImageError, match="hides no name"):
        resolve(str(layout))


def test_absolute_names_are_inside(tmp_path: Path) -> None:
    image = opened(write(tmp_path, entry("/etc/x", b"x"), entry("//y", b"y"), hardlink("z", "/etc/x")))
    assert sorted(os.listdir(tree(image))) == ["etc", "y", "z"]


def test_later_entries_replace_and_follow_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    image = opened(
        write(
            tmp_path,
            symlink("a", str(outside)),
            entry("a", b"new"),
            folder("d"),
            folder("d/e"),
            entry("d/e/f", uid=7),
            symlink("d", "/etc"),
            entry("h", b"1"),
            hardlink("i", "h"),
            entry("h", b"2"),
            symlink("t", str(tmp_path)),
            folder("t", 0o777),
            device("n", tarfile.CHRTYPE, 1, 3),
            entry("n", b"file"),
        )
    )
    root = tree(image)
    assert outside.read_text() == "kept"
    assert [(root / name).read_bytes() for name in "ahin"] == [b"new", b"2", b"1", b"file"]
    assert os.readlink(root / "d") == "/etc"
    assert not (root / "t").is_symlink()
    assert said(image, "n") == {}
    assert said(image, "d/e/f") == {}


def test_nothing_with_power_gets_on_the_host(tmp_path: Path) -> None:
    image = opened(
        write(
            tmp_path,
            folder("./", 0o700),
            entry("suid", b"x", mode=0o4755, uid=3, gid=4),
            entry("secret", b"x", mode=0),
            folder("tmp", 0o1777),
            device("null", tarfile.CHRTYPE, 1, 3),
            device("sda", tarfile.BLKTYPE, 8, 300),
            entry("fifo", type=tarfile.FIFOTYPE, mode=0o600),
            hardlink("null2", "null"),
            entry("caps", b"x", pax_headers={"SCHILY.xattr.security.capability": "\1\0\udcff"}),
            entry("user", b"x", pax_headers={"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.opaque": "y"}),
        )
    )
    for path in tree(image).iterdir():
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode) or path.name == "tmp"
        assert not status.st_mode & 0o7000
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert os.listxattr(path) == []
    assert tree(image).parent.stat().st_mode & 0o777 == 0o700
    assert said(image, "suid") == {"mode": stat.S_IFREG | 0o4755, "owner": [3, 4]}
    assert said(image, "secret") == {"mode": stat.S_IFREG}
    assert said(image, "tmp") == {"mode": stat.S_IFDIR | 0o1777}
    assert said(image, "null") == said(image, "null2") == {"mode": stat.S_IFCHR | 0o666, "rdev": os.makedev(1, 3)}
    assert said(image, "sda") == {"mode": stat.S_IFBLK | 0o666, "rdev": os.makedev(8, 300)}
    assert said(image, "fifo") == {"mode": stat.S_IFIFO | 0o600}
    assert said(image, "caps") == {"xattrs": {"security.capability": "\1\0\xff"}}
    assert said(image, "user") == {"xattrs": {"user.a": "b"}}


def test_whiteouts_and_entries_of_one_layer(tmp_path: Path) -> None:
    """A whiteout hides what is below its layer, whichever comes first."""
    opaque = {"xattrs": {"trusted.overlay.opaque": "y"}}
    upper = tar(
        entry(".wh.a"), entry("a", b"a"), entry("b", b"b"), entry(".wh.b"), folder("c"), entry(".wh.c"), entry(".wh.d"),
        folder("d"), entry(".wh.e"), entry("e/f", b"f"), entry(".wh..wh.plnk", b"aufs"), entry(".wh..wh..opq"),
    )  # fmt: skip
    image = opened(Layout().add([tar(*BASE), upper]).write(tmp_path / "layout"))
    assert sorted(os.listdir(tree(image))) == ["a", "b", "c", "d", "e"]
    assert [said(image, name) for name in "abcde"] == [{}, {}, opaque, opaque, opaque]
    assert said(image) == opaque


def test_whiteouts_mean_nothing_in_a_root_file_system(tmp_path: Path) -> None:
    image = opened(write(tmp_path, *BASE, entry(".wh.bin")))
    assert sorted(os.listdir(tree(image))) == [".wh.bin", "bin"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    image = opened(write(tmp_path, entry("n\udcff", b"x", uid=1)))
    assert os.listdir(image.layers[0]) == [b"n\xff"]
    assert said(image, "n\udcff") == {"owner": [1, 0]}


@pytest.mark.parametrize("time", ["1e300", "-1e300", "nan", "inf", "123.5"])
def test_times(time: str, tmp_path: Path) -> None:
    image = opened(write(tmp_path, entry("f", pax_headers={"mtime": time}), folder("d", pax_headers={"mtime": time})))
    expected = 123.5 if time == "123.5" else 0
    assert [(tree(image) / name).stat().st_mtime for name in "fd"] == [expected] * 2


def old_sparse(name: bytes, parts: list[tuple[int, int]], real: int, data: bytes) -> bytes:
    """A member in GNU tar's old form of sparse files."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = len(data), tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for number, part in enumerate(parts):
        header[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % part
    header[483:495] = b"%011o\0" % real
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def test_sparse_files(tmp_path: Path) -> None:
    file = tmp_path / "sparse.tar"
    size = 64 << 20
    file.write_bytes(old_sparse(b"s", [(0, 512), (size - 512, 512)], size, b"a" * 1024) + bytes(1024))
    status = (tree(opened(file)) / "s").stat()
    assert status.st_size == size
    assert status.st_blocks < 4096
    assert (tree(opened(file)) / "s").read_bytes()[-513:] == b"\0" + b"a" * 512
    with pytest.raises(ImageError, match="unpacks to more than is allowed"):
        Loader(Store(), str(file), limits=Limits(size=32 << 20)).load()


# Limits, damage


def test_bombs(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb"
    file.write_bytes(gzip.compress(tar(entry("zeroes", bytes(4 << 20)))))
    with pytest.raises(ImageError, match="unpacks to more than is allowed"):
        opened(file, Limits(size=1 << 20))
    with monkeypatch.context() as small:
        small.setattr(Limits, "RATIO_FROM", 1 << 20)
        with pytest.raises(ImageError, match="more than 200 times its size"):
            opened(file)
    assert_store_is_clean(store)
    assert opened(file).layers
    file.write_bytes(tar(*(folder(f"{number}/a/b") for number in range(50))))
    with pytest.raises(ImageError, match="more than 100 files"):
        opened(file, Limits(entries=100))


def test_trailing_bytes_count(tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(gzip.compress(tar(*BASE) + bytes(4 << 20)))
    with pytest.raises(ImageError, match="unpacks to more than is allowed"):
        opened(file, Limits(size=1 << 20))


@pytest.mark.parametrize("kind", ["plain", "gzip", "xz", "zstd"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_archives(kind: str, share: float, tmp_path: Path, store: Store) -> None:
    data = compress(tar(*BASE, entry("random", os.urandom(200_000)), entry("z")), kind)
    file = tmp_path / "short"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"short: .*(truncated|damaged)") as failure:
        resolve(str(file))
    assert "\n" not in str(failure.value)
    assert_store_is_clean(store)


@pytest.mark.parametrize("kind", ["plain", "gzip", "xz"])
def test_a_damaged_archive(kind: str, tmp_path: Path, store: Store) -> None:
    data = bytearray(tar(*BASE, entry("middle"), entry("end")) if kind == "plain" else b"")
    if kind == "plain":
        data[data.index(b"middle") + 3] ^= 1  # tarfile alone would take it for the end
    else:
        data += compress(tar(*BASE, entry("random", os.urandom(100_000))), kind)
        data[len(data) // 2] ^= 0x55
    file = tmp_path / "damaged"
    file.write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        resolve(str(file))
    assert_store_is_clean(store)


def test_random_damage_has_one_line(tmp_path: Path, store: Store) -> None:
    """Whatever is in the headers: an image or an ImageError."""
    import random

    chance = random.Random(5)
    good = tar(*BASE, entry("f", b"x", pax_headers={"SCHILY.xattr.user.a": "b"}), symlink("s", "t"), hardlink("h", "f"))
    sparse = old_sparse(b"s", [(0, 512), (4096, 512)], 8192, b"a" * 1024) + bytes(1024)
    file = tmp_path / "fuzzed"
    outcomes = set()
    for number in range(300):
        data = bytearray(good if number % 2 else sparse)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice(b"\x00\x80\xff0179 =./")
        for block in range(0, len(data), 512):  # the check sums are right, so that the damage is read
            header = data[block : block + 512]
            if header[257:262] == b"ustar":
                total = sum(header[:148]) + 256 + sum(header[156:])
                data[block + 148 : block + 156] = b"%06o\0 " % total
        file.write_bytes(data)
        try:
            Loader(store, str(file), limits=Limits(size=1 << 20)).load()
        except ImageError as error:
            outcomes.add("two lines" if "\n" in str(error) else "refused")
        else:
            outcomes.add("unpacked")
    assert outcomes == {"refused", "unpacked"}
    assert os.listdir(store.folder("tmp")) == []


def test_sparse_maps_have_bounds(tmp_path: Path) -> None:
    """A map in the file's data (GNU sparse 1.0) that would fill the monitor's memory."""
    numbers = b"0\n" * (8 << 20)
    count = b"%d\n" % (4 << 20)
    data = count + numbers
    data += bytes(-len(data) % 512)
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
    file = tmp_path / "map.gz"
    file.write_bytes(gzip.compress(tar(entry("GNUSparseFile.0/s", data, pax_headers=pax))))
    with pytest.raises(ImageError, match="header out of bounds"):
        resolve(str(file))


def test_xz_that_wants_much_memory(tmp_path: Path) -> None:
    file = tmp_path / "big.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(tar(*BASE), check=lzma.CHECK_NONE, filters=filters))
    at = data.index(b"\x21\x01", 12)  # the filter, the length of its properties, the dictionary's size
    data[at + 2] = 38
    length = (data[12] + 1) * 4
    data[12 + length - 4 : 12 + length] = struct.pack("<I", __import__("zlib").crc32(data[12 : 12 + length - 4]))
    file.write_bytes(data)
    with pytest.raises(ImageError, match=r"(?i)memory"):
        resolve(str(file))


# The store


def test_import_list_inspect_remove(tmp_path: Path, store: Store) -> None:
    archive = Layout().add([tar(*BASE), tar(*UPPER)], CONFIG, name="example/app:2").archive(tmp_path / "app.tar")
    done = pyvmm("import", archive)
    assert (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "example/app:2")
    assert pyvmm("import", write(tmp_path, *BASE), "base").stdout.split()[0] == "base:latest"
    lines = [line.split() for line in pyvmm("list").stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["NAME", "TAG", "KIND"],
        ["base", "latest", "rootfs"],
        ["example/app", "2", "oci"],
    ]
    listed = json.loads(pyvmm("list", "--json").stdout)
    assert [item["name"] for item in listed] == ["base", "example/app"]
    inspected = json.loads(pyvmm("inspect", "example/app:2").stdout)
    assert inspected["config"] == CONFIG
    assert all(map(os.path.isdir, inspected["directories"]))
    image = opened("example/app:2")
    assert (image.name, image.config.cmd, len(image.layers)) == ("example/app:2", ["-c", "true"], 2)
    assert list(map(os.fsdecode, reversed(image.layers))) == inspected["directories"]
    assert pyvmm("remove", "example/app:2", "base").returncode == 0
    assert pyvmm("list", "--json").stdout == "[]\n"
    assert_store_is_clean(store)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "import, list, remove, inspect"),
        (["frob"], "import, list, remove, inspect"),
        (["import"], "SRC"),
        (["import", "/nonexistent"], "No such file"),
        (["import", "/bin/sh"], "is an ELF file"),
        (["import", "/etc"], "is a plain directory"),
        (["import", "/etc/passwd"], "not an ELF file, nor a tar"),
        (["import", "/bin/sh", "../x"], "not a name"),
        (["import", "/bin/sh", "--max-size=lots"], "--max-size"),
        (["remove"], "name an image"),
        (["remove", "nothing"], "not in the store: nothing:latest"),
        (["inspect", "nothing"], "no image nothing:latest"),
        (["inspect", "../../etc/passwd"], "not a name"),
        (["list", "--frob"], "--frob"),
    ],
)
def test_misuse_gets_one_line(words: list[str], reason: str) -> None:
    done = pyvmm(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith("pyvmm: image")
    assert reason in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["import", "--help"], ["list", "--help"], ["remove", "--help"]])
def test_help(words: list[str]) -> None:
    done = pyvmm(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: pyvmm image" in done.stdout


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    done = pyvmm("import", write(tmp_path, *BASE, entry("label", type=b"V")))
    assert done.returncode == 0
    assert done.stderr == "pyvmm: left out 'label': an entry of the unknown type b'V'\n"


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    archive = write(tmp_path, *BASE, entry("big", bytes(8 << 20)))
    command = [sys.executable, "-m", "vmm", "image", "import", str(archive)]
    master, slave = os.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=env, timeout=60)
    os.close(slave)
    assert done.returncode == 0
    assert b"unpacking: " in os.read(master, 4096)
    os.close(master)
    assert pyvmm("import", archive).stderr == ""


def test_names() -> None:
    assert split_name("a") == ("a", "latest")
    assert split_name("a/b.c-d:1.0") == ("a/b.c-d", "1.0")
    for text in ("", ":x", "a:", "a/", "/a", "a//b", "..", "a/../b", ".a", "a:b/c", "a b", "a%b", "host", "a\n", "é"):
        with pytest.raises(ImageError):
            split_name(text)


def test_layers_are_shared_and_go_with_the_last_image(tmp_path: Path, store: Store) -> None:
    one = Layout().add([tar(*BASE), tar(*UPPER)]).write(tmp_path / "one")
    two = Layout().add([tar(*BASE)]).write(tmp_path / "two")
    assert pyvmm("import", one).returncode == pyvmm("import", two).returncode == 0
    assert_store_is_clean(store, layers=2)
    assert pyvmm("remove", "one").returncode == 0
    assert_store_is_clean(store, layers=1)
    assert (tree(opened("two")) / "bin/sh").exists()
    assert pyvmm("remove", "two").returncode == 0
    assert_store_is_clean(store)


def test_layers_in_use_stay(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "used").returncode == 0
    image = resolve("used")
    assert pyvmm("remove", "used").returncode == 0
    assert (tree(image) / "bin/sh").read_bytes() == b"shell"
    assert_store_is_clean(store, layers=1)
    image.close()
    assert store.collect() == 1
    assert_store_is_clean(store)


def test_the_cache_goes_with_its_archives(tmp_path: Path, store: Store) -> None:
    file = write(tmp_path, *BASE)
    opened(file)
    assert store.collect() == 0
    file.unlink()
    assert store.collect() == 1
    opened(write(tmp_path, *BASE))
    assert pyvmm("remove", "--cache").returncode == 0
    assert_store_is_clean(store)
    assert (tree(opened(tmp_path / "image.tar")) / "bin/sh").exists()


def test_a_name_that_is_imported_again(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "x").returncode == 0
    assert pyvmm("import", write(tmp_path, *BASE, entry("new", b"n")), "x").returncode == 0
    assert (tree(opened("x")) / "new").exists()
    store.collect()
    assert_store_is_clean(store, layers=1)


def test_many_at_once(tmp_path: Path, store: Store) -> None:
    """Threads that import the same image, remove it, collect and boot it: never half an image, nothing left."""
    layout = Layout().add([tar(*BASE), tar(*UPPER)]).write(tmp_path / "layout")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(8):
                loader = Loader(store, str(layout))
                record = loader.load().record
                store.put("shared", "latest", record)
                loader.close()
                if (turn + number) % 3 == 0:
                    store.remove("shared", "latest")
                    store.collect()
                try:
                    image = store.image("shared")
                except ImageError as error:
                    if "no image" not in str(error):
                        raise
                    continue
                assert (tree(image, 1) / "bin/sh").read_bytes() == b"shell"
                image.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    store.remove("shared", "latest")
    store.collect()
    assert_store_is_clean(store)


def test_processes_that_import_the_same(tmp_path: Path, store: Store) -> None:
    layout = Layout().add([tar(*BASE, entry("big", os.urandom(1 << 20)))]).write(tmp_path / "layout")
    command = [sys.executable, "-m", "vmm", "image", "import", str(layout), "same"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    imports = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) for _ in range(4)]
    assert {i.communicate(timeout=60)[1] for i in imports} == {b""}
    assert [i.returncode for i in imports] == [0] * 4
    assert_store_is_clean(store, layers=1)


def test_a_killed_import_leaves_nothing_that_counts(tmp_path: Path, store: Store) -> None:
    """Its half is removed by the next one; and what another process is making is not."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    code = (
        "import os, sys; from vmm.image.store import Store\n"
        "store = Store(); store.prepare()\n"
        "with store.workplace() as work:\n"
        "    open(work + '/half', 'w').close(); print('made', flush=True); open(sys.argv[1]).read()\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, str(fifo)], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    store.prepare()
    assert len(os.listdir(store.folder("tmp"))) == 1, "it is at work"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert pyvmm("import", write(tmp_path, *BASE), "next").returncode == 0
    assert_store_is_clean(store, layers=1)


def test_a_damaged_store_is_said_to_be(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "x").returncode == 0
    (layer,) = (name for name in os.listdir(store.folder("layers")) if name.endswith(".json"))
    os.unlink(store.folder("layers", layer))
    with pytest.raises(ImageError, match="the store is damaged: a layer of x:latest is gone"):
        resolve("x")
    assert pyvmm("import", tmp_path / "image.tar", "x").returncode == 0
    assert opened("x").layers
    Path(store.folder("images", "x", "latest.json")).write_text("{")
    for words in (["list"], ["inspect", "x"]):
        done = pyvmm(*words)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "the store is damaged" in done.stderr
    assert pyvmm("remove", "x").returncode == 0


def test_a_store_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "file/store"))
    done = pyvmm("import", write(tmp_path, *BASE))
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "Not a directory" in done.stderr


# Other tools


def run(*words: str | Path, cwd: Path) -> None:
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("umoci"), reason="umoci is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="umoci unpacks as root only")
def test_what_umoci_and_skopeo_write(tmp_path: Path) -> None:
    run("umoci", "init", "--layout", "u", cwd=tmp_path)
    run("umoci", "new", "--image", "u:tag", cwd=tmp_path)
    run("umoci", "unpack", "--image", "u:tag", "bundle", cwd=tmp_path)
    root = tmp_path / "bundle/rootfs"
    (root / "dir").mkdir()
    (root / "dir/file").write_text("first")
    (root / "gone").write_text("x")
    run("umoci", "repack", "--refresh-bundle", "--image", "u:tag", "bundle", cwd=tmp_path)
    (root / "gone").unlink()
    run("umoci", "repack", "--image", "u:tag", "bundle", cwd=tmp_path)
    run("umoci", "config", "--image", "u:tag", "--config.cmd", "/dir/file", "--config.env", "A=b", cwd=tmp_path)
    sources = [tmp_path / "u"]
    if shutil.which("skopeo"):
        for form, file in (("oci-archive", "a.tar:x:1"), ("docker-archive", "d.tar:x:1")):
            run("skopeo", "copy", "--insecure-policy", "oci:u:tag", f"{form}:{file}", cwd=tmp_path)
        sources += [tmp_path / "a.tar", tmp_path / "d.tar"]
    for source in sources:
        image = opened(source)
        assert (image.config.cmd, len(image.layers)) == (["/dir/file"], 2)
        assert "A=b" in image.config.env
        assert (tree(image, 1) / "dir/file").read_text() == "first"
        assert said(image, "gone", 0) == {"mode": stat.S_IFCHR, "rdev": 0}


@pytest.mark.skipif(not shutil.which("busybox"), reason="busybox-static is not installed")
def test_the_recipe_of_busybox(tmp_path: Path) -> None:
    built = [tmp_path / "busybox.tar", tmp_path / "again.tar"]
    for file in built:
        run("make", "-s", "-C", ROOT / "images", f"BUILT={tmp_path}", f"PYTHON={sys.executable}", "busybox", cwd=ROOT)
        if file != built[0]:
            assert (tmp_path / "busybox.tar").read_bytes() == file.read_bytes(), "the build is not deterministic"
        else:
            shutil.move(file, built[1])
    image = opened(tmp_path / "busybox.tar")
    assert image.config.cmd == ["/bin/sh"]
    assert os.readlink(tree(image) / "bin/ls") == "/bin/busybox"
    assert (tree(image) / "etc/passwd").read_text().startswith("root:x:0:0:")
