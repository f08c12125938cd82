"""Archives that are hostile, damaged or too large."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from tests.host.image_support import (
    BASE,
    Entry,
    Layout,
    assert_store_is_clean,
    compress,
    entry,
    folder,
    hardlink,
    opened,
    said,
    symlink,
    tar,
    tree,
    write,
)
from vmm.image.load import Loader
from vmm.image.model import ImageError, Limits
from vmm.image.resolve import resolve
from vmm.image.store import Store


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "store"))
    return Store()


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
