"""Names of <linux/capability.h> and <linux/securebits.h>, and the rules of security/commoncap.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.task.process import Credentials

CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
CAP_IPC_LOCK = 14
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_SYS_TIME = 19, 21, 23, 24, 25
CAP_WAKE_ALARM = 35

FS_MASK = sum(1 << number for number in (0, 1, 2, 3, 4, 9, 27, 32))
"""CAP_FS_MASK: what goes with the file system user id."""

SECURE_NOROOT, SECURE_NO_SETUID_FIXUP, SECURE_KEEP_CAPS, SECURE_NO_CAP_AMBIENT_RAISE = 1 << 0, 1 << 2, 1 << 4, 1 << 6
SECURE_KEEP_CAPS_LOCKED = 1 << 5
SECURE_ALL_BITS = 0x55
SECURE_ALL_LOCKS = 0xAA


def user_ids_changed(new: Credentials, old: Credentials) -> None:
    """cap_emulate_setxuid(): what becomes of the capabilities when the user ids change. `new` is changed."""
    if old.securebits & SECURE_NO_SETUID_FIXUP:
        return
    was_root = 0 in (old.uid, old.euid, old.suid)
    is_root = 0 in (new.uid, new.euid, new.suid)
    if was_root and not is_root:
        if not old.securebits & SECURE_KEEP_CAPS:
            new.permitted = new.effective = 0
        new.ambient = 0
    if old.euid == 0 and new.euid != 0:
        new.effective = 0
    if old.euid != 0 and new.euid == 0:
        new.effective = new.permitted


def file_system_user_changed(new: Credentials, old: Credentials) -> None:
    """cap_task_fix_setuid(LSM_SETID_FS): the same for the file system user id."""
    if old.securebits & SECURE_NO_SETUID_FIXUP:
        return
    if old.fsuid == 0 and new.fsuid != 0:
        new.effective &= ~FS_MASK
    if old.fsuid != 0 and new.fsuid == 0:
        new.effective |= new.permitted & FS_MASK


def may_set(old: Credentials, effective: int, inheritable: int, permitted: int) -> bool:
    """cap_capset(): may the sets of `old` be replaced by these?"""
    if not old.capable(CAP_SETPCAP) and inheritable & ~(old.inheritable | old.permitted):
        return False
    if inheritable & ~(old.inheritable | old.bounding):
        return False
    return not permitted & ~old.permitted and not effective & ~permitted
