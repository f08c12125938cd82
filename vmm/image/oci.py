"""Which layers and which configuration an image has: OCI layouts (image-spec: image-layout.md, manifest.md, config.md)
and what `docker save` writes (manifest.json, Docker's image specification 1.2)."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.image.model import ImageConfig, ImageError
from vmm.image.streams import check_digest

if TYPE_CHECKING:
    from vmm.image.layout import Layout

MAXIMUM_JSON = 4 << 20
MAXIMUM_LAYERS = 500
MAXIMUM_NESTING = 4
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"


class LayerBlob(NamedTuple):
    """One layer: the file it is in, what that must be, and what it must unpack to."""

    file: str
    digest: str
    """ALGORITHM:HEX of the file; empty where the archive tells none."""
    diff_id: str


class Description(NamedTuple):
    """An image as its manifest has it; `layers`: the lowest first."""

    kind: str
    digest: str
    names: list[str]
    config: ImageConfig
    layers: list[LayerBlob]


class Candidate(NamedTuple):
    """One image of several in a layout."""

    descriptor: dict[str, Any]
    names: list[str]


def describe(layout: Layout, ref: str) -> Description:
    """The image called `ref` in the layout; an empty `ref` for the only one that this machine can run."""
    if layout.has("oci-layout") and layout.has("index.json"):
        return _describe_oci(layout, ref)
    return _describe_docker(layout, ref)


def _json(layout: Layout, file: str, digest: str = "", size: object = None) -> Any:
    source = layout.open(file)
    if source.size > MAXIMUM_JSON:
        raise ImageError(f"has a file {file} of {source.size} bytes, which is too long")
    if size is not None and source.size != size:
        raise ImageError(f"is damaged: {file} has {source.size} bytes, not {size}")
    data = b""
    while part := source.read(MAXIMUM_JSON):
        data += part
    if digest:
        algorithm, digits = check_digest(digest)
        if hashlib.new(algorithm, data).hexdigest() != digits:
            raise ImageError(f"is damaged: {file} does not have its digest")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError(f"has a file {file} that is not JSON") from None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"has a {what} that is not an object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ImageError(f"has {what} that are not a list")
    return value


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/{}/{}".format(*check_digest(descriptor.get("digest")))


def _load(layout: Layout, descriptor: dict[str, Any], what: str) -> dict[str, Any]:
    return _object(_json(layout, _blob(descriptor), descriptor["digest"], descriptor.get("size")), what)


# OCI


def _describe_oci(layout: Layout, ref: str) -> Description:
    version = _object(_json(layout, "oci-layout"), "oci-layout").get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise ImageError(f"is an OCI layout of the version {version!r}; pyvmm knows 1")
    candidates = _candidates(layout, _object(_json(layout, "index.json"), "index.json"), [], 0)
    chosen = _choose(candidates, ref)
    manifest = _load(layout, chosen.descriptor, "manifest")
    config_descriptor = _object(manifest.get("config"), "config")
    config = _load(layout, config_descriptor, "configuration")
    layers = [_object(layer, "layer") for layer in _list(manifest.get("layers"), "layers")]
    diff_ids = _diff_ids(config, len(layers))
    blobs = [LayerBlob(_blob(layer), layer["digest"], diff_id) for layer, diff_id in zip(layers, diff_ids, strict=True)]
    return Description("oci", chosen.descriptor["digest"], chosen.names, _config(config), blobs)


def _candidates(layout: Layout, index: dict[str, Any], names: list[str], depth: int) -> list[Candidate]:
    """The images in an index, and in the indexes that it names, that are for this machine."""
    if depth == MAXIMUM_NESTING:
        raise ImageError("has indexes in indexes in indexes")
    found: list[Candidate] = []
    for item in _list(index.get("manifests"), "manifests")[:1000]:
        descriptor = _object(item, "manifest")
        platform = _object(descriptor.get("platform") or {}, "platform")
        if platform and (platform.get("os"), platform.get("architecture")) != ("linux", "amd64"):
            continue
        annotations = _object(descriptor.get("annotations") or {}, "annotations")
        own = [value for key in (IMAGE_NAME, REF_NAME) if isinstance(value := annotations.get(key), str)]
        if descriptor.get("mediaType") in INDEXES:
            below = _load(layout, descriptor, "index")
            found += _candidates(layout, below, own or names, depth + 1)
        elif descriptor.get("mediaType") in (*MANIFESTS, None):
            check_digest(descriptor.get("digest"))
            found.append(Candidate(descriptor, own or names))
    return found


def _choose(candidates: list[Candidate], ref: str) -> Candidate:
    endings = (f":{ref}", f"/{ref}")
    matching = [c for c in candidates if not ref or any(n == ref or n.endswith(endings) for n in c.names)]
    different = {c.descriptor["digest"]: c for c in matching}
    if len(different) == 1:
        return matching[0]
    called = ", ".join(sorted({c.names[0] for c in candidates if c.names})) or "none with a name"
    if not candidates:
        raise ImageError("holds no image for linux/amd64")
    if not matching:
        raise ImageError(f"holds no image {ref!r}, but: {called}")
    raise ImageError(f"holds several images ({called}): add a colon and the name of one")


def _diff_ids(config: dict[str, Any], count: int) -> list[str]:
    rootfs = _object(config.get("rootfs"), "rootfs")
    diff_ids = _list(rootfs.get("diff_ids"), "diff_ids")
    if len(diff_ids) != count or count > MAXIMUM_LAYERS:
        raise ImageError(f"has {count} layers and {len(diff_ids)} digests for them")
    for diff_id in diff_ids:
        check_digest(diff_id)
    return diff_ids


def _config(config: dict[str, Any]) -> ImageConfig:
    platform = config.get("os") or "linux", config.get("architecture") or "amd64"
    if platform != ("linux", "amd64"):
        raise ImageError("is for {}/{}; pyvmm runs linux/amd64".format(*platform))
    return ImageConfig.from_oci(config.get("config"))


# docker save


def _describe_docker(layout: Layout, ref: str) -> Description:
    entries = [_object(entry, "manifest") for entry in _list(_json(layout, "manifest.json"), "manifests")]
    candidates = []
    for entry in entries:
        file = entry.get("Config")
        names = _list(entry.get("RepoTags") or [], "RepoTags")
        if not isinstance(file, str):
            raise ImageError("has an image without a configuration")
        descriptor = {"digest": file, "entry": entry}
        candidates.append(Candidate(descriptor, [name for name in names if isinstance(name, str)]))
    chosen = _choose(candidates, ref)
    file = chosen.descriptor["digest"]
    layers = _list(chosen.descriptor["entry"].get("Layers"), "layers")
    digest = _digest_in_name(file)
    config = _object(_json(layout, file, digest), "configuration")
    if not digest:
        digest = "sha256:" + hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    blobs = []
    for name, diff_id in zip(layers, _diff_ids(config, len(layers)), strict=True):
        if not isinstance(name, str):
            raise ImageError("has a layer whose name is not a string")
        blobs.append(LayerBlob(name, _digest_in_name(name) if name.startswith("blobs/") else "", diff_id))
    return Description("docker", digest, chosen.names, _config(config), blobs)


def _digest_in_name(file: str) -> str:
    """The digest that a file is named after; empty if it is named otherwise."""
    found = re.fullmatch(r"(?:blobs/(sha256|sha512)/([0-9a-f]+)|([0-9a-f]{64})\.json)", file)
    if found is None:
        return ""
    return f"sha256:{found[3]}" if found[3] else f"{found[1]}:{found[2]}"
