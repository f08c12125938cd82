"""Constants of <linux/futex.h>."""

from __future__ import annotations

from typing import Annotated

from devices.args import INT, UINT, EnumSet, FlagSet

FUTEX_WAIT, FUTEX_WAKE, FUTEX_FD, FUTEX_REQUEUE, FUTEX_CMP_REQUEUE, FUTEX_WAKE_OP = range(6)
FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI, FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET = range(6, 11)
FUTEX_WAIT_REQUEUE_PI, FUTEX_CMP_REQUEUE_PI, FUTEX_LOCK_PI2 = range(11, 14)
FUTEX_PRIVATE_FLAG = 128
FUTEX_CLOCK_REALTIME = 256
FUTEX_CMD_MASK = ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
FUTEX_BITSET_MATCH_ANY = 0xFFFF_FFFF

FUTEX_WAITERS = 0x8000_0000
FUTEX_OWNER_DIED = 0x4000_0000
FUTEX_TID_MASK = 0x3FFF_FFFF

FUTEX_OP_SET, FUTEX_OP_ADD, FUTEX_OP_OR, FUTEX_OP_ANDN, FUTEX_OP_XOR = range(5)
FUTEX_OP_OPARG_SHIFT = 8
FUTEX_OP_CMP_EQ, FUTEX_OP_CMP_NE, FUTEX_OP_CMP_LT, FUTEX_OP_CMP_LE, FUTEX_OP_CMP_GT, FUTEX_OP_CMP_GE = range(6)

FUTEX2_SIZE_U32 = 2
FUTEX2_SIZE_MASK = 3
FUTEX2_PRIVATE = FUTEX_PRIVATE_FLAG
FUTEX_WAITV_MAX = 128
FUTEX_WAITV = "<QQII"
"""struct futex_waitv: val, uaddr, flags, __reserved."""
FUTEX_WAITV_SIZE = 24

ROBUST_LIST_LIMIT = 2048
ROBUST_LIST_HEAD_SIZE = 24
"""struct robust_list_head: list.next, futex_offset, list_op_pending."""

_OPERATIONS = {
    name: value
    for name, value in list(globals().items())
    if name.startswith("FUTEX_")
    and isinstance(value, int)
    and 0 <= value <= FUTEX_LOCK_PI2
    and not name.startswith(("FUTEX_OP_", "FUTEX_CMD"))
}
_OP_FLAGS = {"FUTEX_PRIVATE_FLAG": FUTEX_PRIVATE_FLAG, "FUTEX_CLOCK_REALTIME": FUTEX_CLOCK_REALTIME}

FutexOp = Annotated[int, FlagSet(_OP_FLAGS, code=INT, enum=FUTEX_CMD_MASK & 0xFFFF_FFFF, values=_OPERATIONS)]
Futex2Flags = Annotated[
    int,
    FlagSet(
        {"FUTEX2_PRIVATE": FUTEX2_PRIVATE},
        code=UINT,
        enum=FUTEX2_SIZE_MASK,
        values={"FUTEX2_SIZE_U8": 0, "FUTEX2_SIZE_U16": 1, "FUTEX2_SIZE_U32": 2, "FUTEX2_SIZE_U64": 3},
    ),
]
ClockId = Annotated[int, EnumSet({"CLOCK_REALTIME": 0, "CLOCK_MONOTONIC": 1})]
