"""Runs sequences of credential calls on the host's kernel, each on a thread of its own, and tells what they led to.

A line of standard input is a JSON list of [system call number, arguments...]; the answer is a line with the state
before, and [result or -errno, state] for each call. The calls are made bare, so they change the calling thread alone.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NR_PRCTL = 157
PR_GET_SECUREBITS = 27


def state() -> Any:
    with open("/proc/thread-self/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    uids, gids = ([int(i) for i in fields[name].split()] for name in ("Uid", "Gid"))
    caps = [int(fields["Cap" + name], 16) for name in ("Eff", "Prm", "Inh", "Bnd", "Amb")]
    groups = [int(i) for i in fields["Groups"].split()]
    return uids, gids, groups, caps, libc.syscall(NR_PRCTL, PR_GET_SECUREBITS, 0, 0, 0, 0)


def argument(value: int | str) -> Any:
    if isinstance(value, str):
        return ctypes.create_string_buffer(bytes.fromhex(value))
    return ctypes.c_ulong(value & 0xFFFF_FFFF_FFFF_FFFF)


def play(calls: list[list[Any]], out: list[Any]) -> None:
    out.append(state())
    for number, *values in calls:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *[argument(value) for value in values])
        out.append((-ctypes.get_errno() if result == -1 and ctypes.get_errno() else result, state()))


for line in sys.stdin:
    found: list[Any] = []
    thread = threading.Thread(target=play, args=(json.loads(line), found))
    thread.start()
    thread.join()
    print(json.dumps(found), flush=True)
