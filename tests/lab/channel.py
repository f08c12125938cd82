"""What the lab sends back over its serial line, and what pytest's last line says.

A record is MARK, the token, a space, words, a line feed; everything else is the command's output, byte for byte. The
token is random for each run, so no output can be taken for a record.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

MARK = b"\x1e"  # ASCII record separator

# No test's output is so long; a program that prints without end must not fill the host's memory.
OUTPUT_LIMIT = 4 << 20


class Ready(NamedTuple):
    """The lab is up: the kernel's release, kvm_amd's npt parameter as sysfs shows it, seconds since the boot."""

    release: str
    npt: str
    uptime: float

    @property
    def nested_paging(self) -> bool:
        return self.npt in ("Y", "1")


class End(NamedTuple):
    """The command ended: its status as a shell sees it (128+n for signal n), seconds since the boot."""

    status: int
    uptime: float


class Failure(NamedTuple):
    """The lab's process 1 could not go on."""

    reason: str


Record = Ready | End | Failure
R = TypeVar("R", Ready, End, Failure)


def parse_record(text: str) -> Record:
    """A record without its mark and token. One that init.sh does not write is a Failure too."""
    kind, _, rest = text.partition(" ")
    words = rest.split()
    try:
        if kind == "ready" and len(words) == 3:
            return Ready(words[0], words[1], float(words[2]))
        if kind == "end" and len(words) == 2:
            return End(int(words[0]), float(words[1]))
    except ValueError:
        return Failure(f"a garbled record: {text!r}")
    return Failure(rest if kind == "error" else f"a garbled record: {text!r}")


class Channel:
    """Parts the bytes of the line, in whatever pieces they come, into output and records."""

    __slots__ = ("_head", "_pending", "cut", "output", "records")

    def __init__(self, token: str) -> None:
        self._head = MARK + token.encode() + b" "
        self._pending = b""
        self.output = bytearray()
        self.cut = 0  # bytes of output dropped from its beginning
        self.records: list[Record] = []

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns the output that became certain by it."""
        pending, fresh = self._pending + data, b""
        while True:
            at = pending.find(self._head)
            end = pending.find(b"\n", at) if at >= 0 else -1
            if end < 0:
                break
            fresh += pending[:at]
            self.records.append(parse_record(pending[at + len(self._head) : end].decode(errors="replace")))
            pending = pending[end + 1 :]
        keep = len(pending) - at if at >= 0 else self._beginning_of_head(pending)
        fresh += pending[: len(pending) - keep]
        self._pending = pending[len(pending) - keep :]
        self._store(fresh)
        return fresh

    def close(self) -> bytes:
        """The line has ended: what looked like the beginning of a record was output."""
        fresh, self._pending = self._pending, b""
        self._store(fresh)
        return fresh

    def last(self, kind: type[R]) -> R | None:
        """The newest record of a kind, or None."""
        return next((record for record in reversed(self.records) if isinstance(record, kind)), None)

    def _beginning_of_head(self, data: bytes) -> int:
        """How many bytes at the end of data may be the beginning of a record."""
        at = data.rfind(MARK, max(0, len(data) - len(self._head)))
        return len(data) - at if at >= 0 and self._head.startswith(data[at:]) else 0

    def _store(self, data: bytes) -> None:
        self.output += data
        if len(self.output) > 2 * OUTPUT_LIMIT:
            surplus = len(self.output) - OUTPUT_LIMIT
            self.cut += surplus
            del self.output[:surplus]


def pytest_counts(output: str) -> dict[str, int] | None:
    """pytest's summary, such as {"passed": 12, "skipped": 1}; None when there is none.

    >>> pytest_counts("=== 3 passed, 1 skipped in 0.10s ===")
    {'passed': 3, 'skipped': 1}
    """
    for line in reversed(output.splitlines()):
        if re.search(r"\bin \d+(\.\d+)?s\b", line):
            found = re.findall(r"(\d+) (passed|failed|skipped|deselected|xfailed|xpassed|warnings?|errors?)\b", line)
            if found or "no tests ran" in line:
                return {word.removesuffix("s") if word.startswith(("e", "w")) else word: int(n) for n, word in found}
    return None


def panic_line(console: str) -> str | None:
    """The line in which the kernel said that it gives up, without its time stamp; None when it did not."""
    for line in console.splitlines():
        if "Kernel panic - not syncing" in line:
            return re.sub(r"^\[[^]]*\]\s*", "", line).strip()
    return None
