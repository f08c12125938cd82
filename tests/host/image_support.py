"""Archives for the tests of images, made by hand: good ones, and such as no tool would write."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmm.image.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.image.model import Image, Limits
    from vmm.image.store import Store

Entry = tuple[tarfile.TarInfo, bytes]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    """A member; `fields` are attributes of TarInfo (type, mode, uid, linkname, pax_headers...)."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*entries: Entry) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """The files of an OCI layout."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, **more: Any) -> dict[str, Any]:
        name = digest(data)
        self.files["blobs/" + name.replace(":", "/")] = data
        return {"digest": name, "size": len(data), **more}

    def add(
        self,
        layers: Sequence[bytes],
        config: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        diff_ids: Sequence[str] | None = None,
        packed: Sequence[bytes] | None = None,
        **more: Any,
    ) -> Layout:
        """Add an image. `diff_ids` and `packed` (the blobs of the layers) take the place of the right ones."""
        ids = [digest(layer) for layer in layers] if diff_ids is None else list(diff_ids)
        image = {"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"diff_ids": ids}} | more
        blobs = packed if packed is not None else [gzip.compress(layer, mtime=0) for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(json.dumps(image).encode()),
            "layers": [self.blob(blob) for blob in blobs],
        }
        described = self.blob(json.dumps(manifest).encode(), mediaType=MANIFEST)
        if name:
            described["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(described)
        return self

    def all_files(self) -> dict[str, bytes]:
        return {"index.json": json.dumps({"manifests": self.manifests}).encode()} | self.files

    def write(self, path: Path) -> Path:
        for name, data in self.all_files().items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return path

    def archive(self, path: Path) -> Path:
        path.write_bytes(tar(*(entry(name, data) for name, data in self.all_files().items())))
        return path


def docker_save(layers: Sequence[bytes], config: Mapping[str, Any], tags: Sequence[str]) -> list[Entry]:
    """What `docker save` wrote until version 24, each second layer a link to the first if they are the same."""
    image = json.dumps(
        {"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"diff_ids": [*map(digest, layers)]}}
    ).encode()
    name = hashlib.sha256(image).hexdigest() + ".json"
    entries = [entry(name, image)]
    seen: dict[bytes, str] = {}
    files = []
    for number, layer in enumerate(layers):
        identity = hashlib.sha256(b"%d" % number).hexdigest()
        files.append(f"{identity}/layer.tar")
        entries += [folder(identity), entry(f"{identity}/VERSION", b"1.0")]
        if layer in seen:
            entries.append(symlink(files[-1], f"../{seen[layer]}"))
        else:
            seen[layer] = files[-1]
            entries.append(entry(files[-1], layer))
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": files}]
    return [*entries, entry("manifest.json", json.dumps(manifest).encode())]


BASE = (folder("./"), folder("./bin"), entry("./bin/sh", b"shell", mode=0o755))
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


def compress(data: bytes, kind: str) -> bytes:
    if kind == "zstd":
        compressed: bytes = pytest.importorskip("zstandard").compress(data)
        return compressed
    if kind == "gzip":
        return gzip.compress(data)
    return lzma.compress(data) if kind == "xz" else data
