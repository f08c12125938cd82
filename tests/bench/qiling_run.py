"""Runs a static program in Qiling: qiling_run.py PROGRAM [ARGUMENT...]. For the interpreter that has Qiling."""

from __future__ import annotations

import struct
import sys
import time
from typing import Any

from qiling import Qiling  # type: ignore[import-not-found]  # in an environment of its own
from qiling.const import QL_VERBOSE  # type: ignore[import-not-found]


def clock_gettime(ql: Any, clock: int, address: int, *unused: int) -> int:
    """Qiling does not serve this call, and without it the programs could not time themselves."""
    seconds, nanoseconds = divmod(time.clock_gettime_ns(clock), 10**9)
    ql.mem.write(address, struct.pack("<QQ", seconds, nanoseconds))
    return 0


machine = Qiling(sys.argv[1:], "/", verbose=QL_VERBOSE.OFF)
machine.os.set_syscall("clock_gettime", clock_gettime)
machine.run()
