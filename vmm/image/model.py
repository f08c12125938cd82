"""What the other modules exchange: an image, its configuration, the limits of unpacking, the one error."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Progress = Callable[[str, int, int], None]
    """Called with what is being done and how many bytes of how many are read; often."""


class ImageError(Exception):
    """An image that cannot be used; one line says which and why."""


class Limits:
    """What an archive may unpack to.

    size: bytes, None for what the file system has free, less a sixteenth; entries: files of all kinds; ratio: unpacked
    bytes to one compressed byte, which counts from `RATIO_FROM` bytes on.
    """

    __slots__ = ("entries", "ratio", "size")

    RATIO_FROM = 256 << 20

    def __init__(self, size: int | None = None, entries: int = 2_000_000, ratio: int = 200) -> None:
        self.size = size
        self.entries = entries
        self.ratio = ratio


class ImageConfig:
    """How an image wants its program started (the OCI image specification, config.md)."""

    __slots__ = ("cmd", "entrypoint", "env", "exposed_ports", "labels", "stop_signal", "user", "working_dir")

    def __init__(
        self,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),
        user: str = "",
        working_dir: str = "",
        labels: Mapping[str, str] | None = None,
        stop_signal: str = "",
        exposed_ports: Sequence[str] = (),
    ) -> None:
        self.entrypoint = list(entrypoint)
        self.cmd = list(cmd)
        self.env = list(env)
        """NAME=VALUE."""
        self.user = user
        """USER[:GROUP], names of the image's /etc/passwd and group, or numbers; empty for root."""
        self.working_dir = working_dir
        """An absolute path; empty for /."""
        self.labels = dict(labels or {})
        self.stop_signal = stop_signal
        """Such as SIGTERM or 15; empty for SIGTERM."""
        self.exposed_ports = list(exposed_ports)
        """Such as 80/tcp."""

    @classmethod
    def from_oci(cls, config: Any) -> ImageConfig:
        """The object `config` of an image's configuration. ImageError for what does not fit the specification."""
        if config is None:
            return cls()
        if not isinstance(config, dict):
            raise ImageError("its configuration is not an object")
        return cls(
            _strings(config, "Entrypoint"),
            _strings(config, "Cmd"),
            _variables(config),
            _string(config, "User"),
            _string(config, "WorkingDir"),
            _labels(config),
            _string(config, "StopSignal"),
            sorted(_object(config, "ExposedPorts")),
        )

    def to_oci(self) -> dict[str, Any]:
        """What `from_oci` reads."""
        return {
            "Entrypoint": self.entrypoint,
            "Cmd": self.cmd,
            "Env": self.env,
            "User": self.user,
            "WorkingDir": self.working_dir,
            "Labels": self.labels,
            "StopSignal": self.stop_signal,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
        }


def _clean(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ImageError(f"its configuration's {name} is not a string")
    return value


def _string(config: dict[str, Any], name: str) -> str:
    return _clean(name, config.get(name) or "")


def _strings(config: dict[str, Any], name: str) -> list[str]:
    value = config.get(name) or []
    if not isinstance(value, list):
        raise ImageError(f"its configuration's {name} is not a list")
    return [_clean(name, item) for item in value]


def _object(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise ImageError(f"its configuration's {name} is not an object")
    return value


def _labels(config: dict[str, Any]) -> dict[str, str]:
    return {name: _clean("Labels", value) for name, value in _object(config, "Labels").items()}


def _variables(config: dict[str, Any]) -> list[str]:
    variables = _strings(config, "Env")
    for variable in variables:
        if variable.find("=") < 1:
            raise ImageError(f"its configuration's Env holds {variable!r}, which is not NAME=VALUE")
    return variables


class Image:
    """An image that can be started. Layers out of the store stay there until `close`, or the end of this process."""

    __slots__ = ("attributes", "config", "digest", "elf", "kind", "layers", "leases", "name")

    def __init__(
        self,
        kind: str,
        layers: Sequence[bytes] = (),
        *,
        attributes: Sequence[bytes | None] | None = None,
        config: ImageConfig | None = None,
        elf: bytes | None = None,
        name: str = "",
        digest: str = "",
        leases: Sequence[int] = (),
    ) -> None:
        self.kind = kind
        """host, directory, rootfs, oci, docker or elf."""
        self.layers = list(layers)
        """Host directories, the topmost first: each is to be a read-only hostfs below one overlay."""
        self.attributes = list(attributes) if attributes is not None else [None] * len(self.layers)
        """For each layer the path of the file that tells what its directory does not (`unpack.py`), or None."""
        self.config = config or ImageConfig()
        self.elf = elf
        """Path of the bare ELF file."""
        self.name = name
        self.digest = digest
        """ALGORITHM:HEX of the manifest, or of the tar; empty for what is not addressed by content."""
        self.leases = list(leases)

    def close(self) -> None:
        """Let the store remove the layers again."""
        for fd in self.leases:
            os.close(fd)
        self.leases.clear()
