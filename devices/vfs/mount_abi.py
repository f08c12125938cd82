"""Constants and structures of <linux/mount.h>; names and values are the kernel's."""

from __future__ import annotations

import struct
from typing import Annotated

from devices.args import UINT, EnumSet, FlagSet

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = (
    1 << i for i in range(8)
)
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC, MS_SILENT = (
    256,
    1024,
    2048,
    4096,
    8192,
    16384,
    32768,
)
MS_POSIXACL, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = (1 << i for i in range(16, 21))
MS_RELATIME, MS_KERNMOUNT, MS_I_VERSION, MS_STRICTATIME, MS_LAZYTIME = (1 << i for i in range(21, 26))
MS_NOUSER = 1 << 31
MS_MGC_VAL, MS_MGC_MSK = 0xC0ED0000, 0xFFFF0000
PROPAGATION_TYPES = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE
SUPERBLOCK_FLAGS = (
    MS_RDONLY | MS_SYNCHRONOUS | MS_MANDLOCK | MS_DIRSYNC | MS_SILENT | MS_POSIXACL | MS_LAZYTIME | MS_I_VERSION
)

MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8

# A mount's flags are kept as statfs(2) shows them (ST_* of <linux/statfs.h>); most are the MS_* bits too
MNT_READONLY, MNT_NOSUID, MNT_NODEV, MNT_NOEXEC, ST_VALID = 1, 2, 4, 8, 0x20
MNT_NOATIME, MNT_NODIRATIME, MNT_RELATIME, MNT_NOSYMFOLLOW = 0x400, 0x800, 0x1000, 0x2000
MNT_ATIME = MNT_NOATIME | MNT_NODIRATIME | MNT_RELATIME
MNT_USER_FLAGS = MNT_READONLY | MNT_NOSUID | MNT_NODEV | MNT_NOEXEC | MNT_ATIME | MNT_NOSYMFOLLOW

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
ATIME_ATTRS, MOUNT_ATTR_RELATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME = 0x70, 0, 0x10, 0x20
MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOSYMFOLLOW = 0x80, 0x100000, 0x200000
ALL_MOUNT_ATTRS = 0x2000BF
MOUNT_ATTRS_SIZE_VER0 = 32

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, 0o2000000
MOVE_MOUNT_F_SYMLINKS, MOVE_MOUNT_F_AUTOMOUNTS, MOVE_MOUNT_F_EMPTY_PATH = 1, 2, 4
MOVE_MOUNT_T_SYMLINKS, MOVE_MOUNT_T_AUTOMOUNTS, MOVE_MOUNT_T_EMPTY_PATH = 0x10, 0x20, 0x40
MOVE_MOUNT_SET_GROUP, MOVE_MOUNT_BENEATH = 0x100, 0x200
ALL_MOVE_MOUNT_FLAGS = 0x377
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSPICK_CLOEXEC, FSPICK_SYMLINK_NOFOLLOW, FSPICK_NO_AUTOMOUNT, FSPICK_EMPTY_PATH = 1, 2, 4, 8
(
    FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_BINARY, FSCONFIG_SET_PATH, FSCONFIG_SET_PATH_EMPTY,
    FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE, FSCONFIG_CMD_CREATE_EXCL,
) = range(9)  # fmt: skip

STATMOUNT_SB_BASIC, STATMOUNT_MNT_BASIC, STATMOUNT_PROPAGATE_FROM, STATMOUNT_MNT_ROOT = 1, 2, 4, 8
STATMOUNT_MNT_POINT, STATMOUNT_FS_TYPE, STATMOUNT_MNT_NS_ID, STATMOUNT_MNT_OPTS = 16, 32, 64, 128
STATMOUNT_FS_SUBTYPE, STATMOUNT_SB_SOURCE = 256, 512
MNT_ID_REQ_SIZE_VER0, MNT_ID_REQ_SIZE_VER1 = 24, 32
LSMT_ROOT = (1 << 64) - 1
LISTMOUNT_REVERSE = 1

FLAG_NAMES = {
    MNT_READONLY: (b"ro", MOUNT_ATTR_RDONLY),
    MNT_NOSUID: (b"nosuid", MOUNT_ATTR_NOSUID),
    MNT_NODEV: (b"nodev", MOUNT_ATTR_NODEV),
    MNT_NOEXEC: (b"noexec", MOUNT_ATTR_NOEXEC),
    MNT_NOATIME: (b"noatime", MOUNT_ATTR_NOATIME),
    MNT_NODIRATIME: (b"nodiratime", MOUNT_ATTR_NODIRATIME),
    MNT_RELATIME: (b"relatime", MOUNT_ATTR_RELATIME),
    MNT_NOSYMFOLLOW: (b"nosymfollow", MOUNT_ATTR_NOSYMFOLLOW),
}
"""A mount's flags: as /proc/mounts names them, and MOUNT_ATTR_*."""

MOUNT_ATTR = struct.Struct("<4Q")
"""struct mount_attr: attr_set, attr_clr, propagation, userns_fd."""
MNT_ID_REQ = struct.Struct("<IIQQQ")
"""struct mnt_id_req: size, spare, mnt_id, param, mnt_ns_id."""


def _flags(prefix: str, code: str = UINT) -> FlagSet:
    return FlagSet({n: v for n, v in list(globals().items()) if n.startswith(prefix) and isinstance(v, int)}, code=code)


MountFlags = Annotated[int, _flags("MS_", "{r}")]
UmountFlags = Annotated[
    int,
    FlagSet(
        {
            "MNT_FORCE": MNT_FORCE,
            "MNT_DETACH": MNT_DETACH,
            "MNT_EXPIRE": MNT_EXPIRE,
            "UMOUNT_NOFOLLOW": UMOUNT_NOFOLLOW,
        }
    ),
]
MoveMountFlags = Annotated[int, _flags("MOVE_MOUNT_")]
FsopenFlags = Annotated[int, FlagSet({"FSOPEN_CLOEXEC": 1}, code=UINT)]
FspickFlags = Annotated[int, _flags("FSPICK_")]
FsconfigCmd = Annotated[int, EnumSet({n: v for n, v in list(globals().items()) if n.startswith("FSCONFIG_")}, UINT)]
MountAttrs = Annotated[int, _flags("MOUNT_ATTR_")]
OpenTreeFlags = Annotated[
    int,
    FlagSet(
        {
            "OPEN_TREE_CLONE": 1,
            "OPEN_TREE_CLOEXEC": OPEN_TREE_CLOEXEC,
            "AT_SYMLINK_NOFOLLOW": 0x100,
            "AT_NO_AUTOMOUNT": 0x800,
            "AT_EMPTY_PATH": 0x1000,
            "AT_RECURSIVE": 0x8000,
        },
        code=UINT,
    ),
]
