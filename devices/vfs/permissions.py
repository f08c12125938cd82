"""Who may do what to a file: modes, owners, capabilities (fs/namei.c, fs/attr.c, fs/inode.c, security/commoncap.c)."""

from __future__ import annotations

import errno
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, S_ISUID, S_ISVTX, S_IXGRP
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import MAY_EXEC, MAY_READ, MAY_WRITE

if TYPE_CHECKING:
    from devices.task.process import Credentials
    from devices.task.task import Task
    from devices.vfs.inode import Inode
    from devices.vfs.mount import Mount
    from devices.vfs.path import Dentry, Path

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID = range(5)
CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_MKNOD, CAP_LEASE, CAP_SETFCAP = 18, 21, 27, 28, 31

SB_RDONLY = 1
SECURE_NO_SETUID_FIXUP = 4


def generic_permission(inode: Inode, task: Task, mask: int) -> None:
    """May `task` access the inode as `mask` (MAY_*) says, by its mode and owner? SysError(EACCES)."""
    mode = inode.mode
    wanted = mask * 0o111
    if mode & wanted == wanted:
        return  # whoever it is
    credentials = task.credentials
    if credentials.fsuid == inode.uid:
        mode >>= 6
    elif in_group(credentials, inode.gid):
        mode >>= 3
    if mode & mask == mask:
        return
    if S_IFMT(inode.mode) == S_IFDIR:
        overridden = not mask & MAY_WRITE and credentials.capable(CAP_DAC_READ_SEARCH)
        executable = True
    else:
        overridden = mask == MAY_READ and credentials.capable(CAP_DAC_READ_SEARCH)
        executable = bool(inode.mode & 0o111)
    if overridden or ((executable or not mask & MAY_EXEC) and credentials.capable(CAP_DAC_OVERRIDE)):
        return
    raise SysError(errno.EACCES)


def in_group(credentials: Credentials, gid: int) -> bool:
    """in_group_p(): for access to files."""
    return gid == credentials.fsgid or gid in credentials.groups


def inode_permission(task: Task, inode: Inode, mask: int) -> None:
    """May the file be accessed so, on this file system and by its permissions? SysError(EROFS, EACCES)."""
    if mask & MAY_WRITE and inode.sb.flags & SB_RDONLY and S_IFMT(inode.mode) in (S_IFREG, S_IFDIR, S_IFLNK):
        raise SysError(errno.EROFS)
    inode.permission(task, mask)


def owner_or_capable(task: Task, inode: Inode) -> bool:
    """inode_owner_or_capable(): is the file the task's own?"""
    credentials = task.credentials
    return credentials.fsuid == inode.uid or credentials.capable(CAP_FOWNER)


def want_write(mount: Mount) -> None:
    """mnt_want_write(): SysError(EROFS) where the mount or the file system is read-only."""
    if (mount.flags | mount.sb.flags) & SB_RDONLY:
        raise SysError(errno.EROFS)


# Directories


def may_create(task: Task, parent: Dentry) -> None:
    """May the task make a name in the directory? SysError(ENOENT, EACCES)."""
    if parent.unlinked:
        raise SysError(errno.ENOENT, "the directory was removed")
    inode_permission(task, parent.inode, MAY_WRITE | MAY_EXEC)


def may_delete(task: Task, victim: Dentry, directory: bool) -> None:
    """May the task take the name away, by rmdir or as rename of a directory does it (`directory`), or by unlink?

    SysError(EACCES, EPERM, ENOTDIR, EBUSY, EISDIR, ENOENT)."""
    parent = victim.parent
    inode_permission(task, parent.inode, MAY_WRITE | MAY_EXEC)
    if is_sticky_for(task, parent.inode, victim.inode):
        raise SysError(errno.EPERM, "the directory is sticky and the file another's")
    if S_IFMT(victim.inode.mode) == S_IFDIR:
        if not directory:
            raise SysError(errno.EISDIR)
        if parent is victim:
            raise SysError(errno.EBUSY, "the root of a file system")
    elif directory:
        raise SysError(errno.ENOTDIR)
    if parent.unlinked:
        raise SysError(errno.ENOENT, "the directory was removed")


def is_sticky_for(task: Task, directory: Inode, inode: Inode) -> bool:
    """check_sticky(): does the directory's sticky bit keep the task from removing the file?"""
    if not directory.mode & S_ISVTX:
        return False
    credentials = task.credentials
    return credentials.fsuid not in (inode.uid, directory.uid) and not credentials.capable(CAP_FOWNER)


# What the sysctls fs.protected_* restrict in sticky directories that all may write


def may_follow_link(task: Task, parent: Inode, link: Inode) -> None:
    """fs.protected_symlinks: SysError(EACCES) for a trailing link of another user in such a directory."""
    if task.kernel.vfs.sysctls["protected_symlinks"] == 0 or task.credentials.fsuid == link.uid:
        return
    if parent.mode & (S_ISVTX | 2) == S_ISVTX | 2 and parent.uid != link.uid:
        raise SysError(errno.EACCES, "protected_symlinks")


def may_create_in_sticky(task: Task, parent: Inode, inode: Inode) -> None:
    """fs.protected_fifos, fs.protected_regular: SysError(EACCES) for open(O_CREAT) of another's file there."""
    if not parent.mode & S_ISVTX or inode.uid in (parent.uid, task.credentials.fsuid):
        return
    name = {S_IFREG: "protected_regular", S_IFIFO: "protected_fifos"}.get(S_IFMT(inode.mode))
    level = task.kernel.vfs.sysctls[name] if name else 0
    if level and (parent.mode & 2 or (level >= 2 and parent.mode & 0o20)):
        raise SysError(errno.EACCES, name or "")


def may_link(task: Task, inode: Inode) -> None:
    """fs.protected_hardlinks: SysError(EPERM) for a file that the task neither owns nor may read and write."""
    if not task.kernel.vfs.sysctls["protected_hardlinks"] or owner_or_capable(task, inode):
        return
    mode = inode.mode
    special = S_IFMT(mode) != S_IFREG or mode & S_ISUID or mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP
    if not special:
        try:
            inode_permission(task, inode, MAY_READ | MAY_WRITE)
            return
        except SysError:
            special = True
    raise SysError(errno.EPERM, "protected_hardlinks")


# Attributes


def new_mode(task: Task, parent: Inode, mode: int) -> int:
    """vfs_prepare_mode(): the mode of a new file, S_ISGID taken from who may not give it."""
    inherits = parent.mode & S_ISGID and S_IFMT(mode) != S_IFDIR
    if inherits and mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP:
        credentials = task.credentials
        if not in_group(credentials, parent.gid) and not credentials.capable(CAP_FSETID):
            mode &= ~S_ISGID
    return mode & ~task.process.fs.umask


def chmod_mode(task: Task, inode: Inode, mode: int, gid: int | None = None) -> int:
    """The permission bits that chmod gives the file; SysError(EPERM) unless it is the task's own."""
    if not owner_or_capable(task, inode):
        raise SysError(errno.EPERM)
    group = inode.gid if gid is None else gid
    if mode & S_ISGID and not in_group(task.credentials, group) and not task.credentials.capable(CAP_FSETID):
        mode &= ~S_ISGID
    return mode & 0o7777


def may_chown(task: Task, inode: Inode, uid: int | None, gid: int | None) -> None:
    """SysError(EPERM) unless the task may give the file this owner and group (None: as it is)."""
    credentials = task.credentials
    owner = credentials.fsuid == inode.uid
    may_user = uid is None or (owner and uid == inode.uid)
    may_group = gid is None or (owner and (gid == inode.gid or in_group(credentials, gid)))
    if not (may_user and may_group) and not credentials.capable(CAP_CHOWN):
        raise SysError(errno.EPERM)


def mode_after_chown(task: Task, inode: Inode) -> int | None:
    """The permission bits without set-user-id and set-group-id as chown leaves them; None if they do not change."""
    mode = inode.mode
    if S_IFMT(mode) == S_IFDIR or not mode & (S_ISUID | S_ISGID):
        return None
    kept = mode & ~S_ISUID
    if keeps_no_sgid(task, inode):
        kept &= ~S_ISGID
    return kept & 0o7777 if kept != mode else None


def keeps_no_sgid(task: Task, inode: Inode) -> bool:
    """setattr_should_drop_sgid()."""
    if not inode.mode & S_ISGID:
        return False
    credentials = task.credentials
    return bool(inode.mode & S_IXGRP or not (in_group(credentials, inode.gid) or credentials.capable(CAP_FSETID)))


def kill_privileges(task: Task, inode: Inode) -> None:
    """file_remove_privs(): whoever writes to or truncates a file takes its set-user-id and set-group-id bits away."""
    mode = inode.mode
    if not mode & (S_ISUID | S_ISGID) or S_IFMT(mode) != S_IFREG or task.credentials.capable(CAP_FSETID):
        return
    kept = mode & ~S_ISUID
    if keeps_no_sgid(task, inode):
        kept &= ~S_ISGID
    if kept != mode:
        inode.setattr(mode=kept & 0o7777, ctime=task.kernel.clock.realtime_ns())


def may_mknod(task: Task, mode: int) -> None:
    """SysError(EPERM) unless the task may make such a file."""
    if S_IFMT(mode) in (S_IFCHR, S_IFBLK) and not task.credentials.capable(CAP_MKNOD):
        raise SysError(errno.EPERM, "CAP_MKNOD")


# Access by the real ids


def real_credentials(credentials: Credentials) -> Credentials:
    """access_override_creds(): who the task is to access(2)."""
    effective = credentials.effective
    if not credentials.securebits & SECURE_NO_SETUID_FIXUP:
        effective = credentials.permitted if credentials.uid == 0 else 0
    same_ids = credentials.fsuid == credentials.uid and credentials.fsgid == credentials.gid
    if same_ids and credentials.effective == effective:
        return credentials
    real = credentials.copy()
    real.fsuid, real.fsgid = credentials.uid, credentials.gid
    real.effective = effective
    return real


def may_open_device(path: Path) -> bool:
    """may_open_dev()."""
    return not (path.mount.flags | path.mount.sb.flags) & 4
