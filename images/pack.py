"""pack.py ROOT CONFIG OUTPUT: the tree ROOT as the archive of an OCI image, in which nothing tells when it was made."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from typing import Any

NAMES = "application/vnd.oci.image"
LEVEL = 6


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member without time and user names; owned by root if this user could not own it otherwise."""
    info.mtime = 0
    info.uname = info.gname = ""
    if os.geteuid() != 0:
        info.uid = info.gid = 0
    return info


def layer(root: str) -> bytes:
    """The tar of a tree, sorted by name."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, "./", filter=plain)  # it sorts what is in a directory
    return output.getvalue()


class Layout:
    """An OCI layout that is written into a tar."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def file(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._archive.addfile(info, io.BytesIO(data))

    def blob(self, kind: str, data: bytes) -> dict[str, Any]:
        """Add a blob; its descriptor."""
        digits = hashlib.sha256(data).hexdigest()
        self.file(f"blobs/sha256/{digits}", data)
        return {"mediaType": f"{NAMES}.{kind}", "digest": f"sha256:{digits}", "size": len(data)}

    def json(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return self.blob(kind, json.dumps(value, sort_keys=True).encode())


def pack(root: str, config: dict[str, Any], output: str) -> None:
    """Write the image of the tree `root` that starts as `config` says (image-spec, config.md) to the file `output`."""
    name = os.path.basename(output).removesuffix(".tar")
    tree = layer(root)
    diff_id = "sha256:" + hashlib.sha256(tree).hexdigest()
    temporary = f"{output}.part.{os.getpid()}"
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        layout = Layout(archive)
        packed = layout.blob("layer.v1.tar+gzip", gzip.compress(tree, LEVEL, mtime=0))
        rootfs = {"type": "layers", "diff_ids": [diff_id]}
        image = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
        described = layout.json("config.v1+json", image)
        manifest = layout.json(
            "manifest.v1+json",
            {"schemaVersion": 2, "mediaType": f"{NAMES}.manifest.v1+json", "config": described, "layers": [packed]},
        )
        manifest["annotations"] = {"org.opencontainers.image.ref.name": f"{name}:latest"}
        layout.file("index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}, sort_keys=True).encode())
        layout.file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    os.rename(temporary, output)


def main() -> None:
    root, config, output = sys.argv[1:]
    with open(config, encoding="utf-8") as file:
        pack(root, json.load(file), output)


if __name__ == "__main__":
    main()
