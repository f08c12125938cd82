"""Where a machine's randomness comes from: the one named place, so that a replay can put another source there."""

from __future__ import annotations

import os


class Random:
    """The host's getrandom(2)."""

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        return os.urandom(count)

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1; the bias of the remainder is below limit / 2^64."""
        return int.from_bytes(os.urandom(8), "little") % limit
