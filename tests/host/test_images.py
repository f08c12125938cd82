"""What IMAGE can be: kinds of files, layers and configurations."""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.image_support import (
    BASE,
    CONFIG,
    INDEX,
    UPPER,
    Layout,
    assert_store_is_clean,
    compress,
    docker_save,
    entry,
    hardlink,
    opened,
    said,
    symlink,
    tar,
    tree,
    write,
)
from vmm.image.load import Loader
from vmm.image.model import ImageError
from vmm.image.resolve import resolve
from vmm.image.store import Store


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "store"))
    return Store()


# What IMAGE can be


def test_host_directory_and_elf(tmp_path: Path) -> None:
    assert (resolve("host").kind, resolve("host").layers) == ("host", [b"/"])
    image = resolve(str(tmp_path))
    assert (image.kind, image.layers, image.attributes) == ("directory", [os.fsencode(tmp_path)], [None])
    assert (resolve("/bin/sh").kind, resolve("/bin/sh").elf) == ("elf", b"/bin/sh")
    assert not (tmp_path / "store").exists(), "looking made a store"


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
