"""Whom a program runs as: set-user-ID and set-group-ID files, file capabilities, and what becomes of the capabilities
(bprm_fill_uid() of fs/exec.c, cap_bprm_creds_from_file() of security/commoncap.c)."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.task.capabilities import CAP_SETUID, SECURE_KEEP_CAPS, SECURE_NOROOT
from devices.vfs.mount_abi import MNT_NOSUID

if TYPE_CHECKING:
    from devices.task.process import Credentials
    from devices.task.task import Task
    from devices.vfs.path import Path

S_ISUID, S_ISGID, S_IXGRP = 0o4000, 0o2000, 0o010
XATTR = b"security.capability"
VFS_CAP = Struct("<5I")
"""struct vfs_cap_data: magic_etc, then permitted and inheritable, twice 32 bits."""
VFS_CAP_REVISIONS = {0x0200_0000: 20, 0x0300_0000: 24}
"""VFS_CAP_REVISION_2 and 3, and their sizes in bytes."""
VFS_CAP_EFFECTIVE = 1
VALID = (1 << 41) - 1


class FileCapabilities(NamedTuple):
    permitted: int
    inheritable: int
    effective: bool


def credentials_for(task: Task, place: Path) -> tuple[Credentials, bool]:
    """The credentials with which the task runs the file, and whether it gains something (AT_SECURE). SysError(EPERM)
    when it does not get the capabilities that a file without knowledge of them needs."""
    old = task.credentials
    new = old.copy()
    honoured = not place.mount.flags & MNT_NOSUID and not task.no_new_privs
    mode = place.inode.mode
    if honoured and mode & S_ISUID:
        new.euid = place.inode.uid
    if honoured and mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP:
        new.egid = place.inode.gid
    own = file_capabilities(task, place) if not place.mount.flags & MNT_NOSUID else None
    effective = own is not None and own.effective
    new.permitted = 0
    if own is not None:
        new.permitted = old.bounding & own.permitted | old.inheritable & own.inheritable
        if own.effective and own.permitted & ~new.permitted:
            raise SysError(errno.EPERM, "the file's capabilities are not to be had")
    effective = root_capabilities(old, new, own, effective)
    changed = new.euid not in (old.uid, old.euid) or new.egid not in (old.gid, old.egid, *old.groups)
    gained = bool(new.permitted & ~old.permitted)
    shared = task.process.fs.users > 1
    if (changed or gained) and (shared or task.no_new_privs):
        if not old.capable(CAP_SETUID) or task.no_new_privs:
            new.euid, new.egid = new.uid, new.gid
        new.permitted &= old.permitted
    new.suid = new.fsuid = new.euid
    new.sgid = new.fsgid = new.egid
    if own is not None or changed:
        new.ambient = 0
    new.permitted |= new.ambient
    new.effective = new.permitted if effective else new.ambient
    new.securebits &= ~SECURE_KEEP_CAPS
    elevated = new.uid != 0 and (effective or bool(new.permitted & ~new.ambient))
    return new, changed or elevated


def root_capabilities(old: Credentials, new: Credentials, own: FileCapabilities | None, effective: bool) -> bool:
    """handle_privileged_root(): root has them all. The file's effective bit."""
    if new.securebits & SECURE_NOROOT or (own is not None and new.euid == 0 and new.uid != 0):
        return effective
    if 0 in (new.euid, new.uid):
        new.permitted = old.bounding | old.inheritable
    return effective or new.euid == 0


def file_capabilities(task: Task, place: Path) -> FileCapabilities | None:
    """capabilities(7): what setcap(8) has given a file; None if nothing."""
    try:
        raw = place.inode.getxattr(task, XATTR)
    except SysError:
        return None
    if len(raw) < VFS_CAP.size:
        return None
    magic, permitted, inheritable, permitted_high, inheritable_high = VFS_CAP.unpack_from(raw)
    if VFS_CAP_REVISIONS.get(magic & 0xFF00_0000) != len(raw):
        return None
    return FileCapabilities(
        (permitted | permitted_high << 32) & VALID,
        (inheritable | inheritable_high << 32) & VALID,
        bool(magic & VFS_CAP_EFFECTIVE),
    )
