"""Changing user and group ids: credentials in, credentials out (kernel/sys.c).

Every function returns the new credentials, or the old ones when nothing changes, and raises SysError(EPERM) when the
caller may not, SysError(EINVAL) for the id -1. `KEEP` leaves an id as it is where the call allows that.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.task.capabilities import CAP_SETGID, CAP_SETUID, file_system_user_changed, user_ids_changed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.task.process import Credentials

KEEP = 0xFFFF_FFFF
"""(uid_t)-1."""
NGROUPS_MAX = 65536


def _valid(identity: int) -> None:
    if identity == KEEP:
        raise SysError(errno.EINVAL, "-1 is no id")


def _permit(allowed: bool) -> None:
    if not allowed:
        raise SysError(errno.EPERM)


def setuid(old: Credentials, uid: int) -> Credentials:
    """All user ids with CAP_SETUID, else the effective one, to the real or the saved one."""
    _valid(uid)
    new = old.copy()
    if old.capable(CAP_SETUID):
        new.uid = new.suid = uid
    else:
        _permit(uid in (old.uid, old.suid))
    new.euid = new.fsuid = uid
    user_ids_changed(new, old)
    return new


def setgid(old: Credentials, gid: int) -> Credentials:
    """All group ids with CAP_SETGID, else the effective one, to the real or the saved one."""
    _valid(gid)
    new = old.copy()
    if old.capable(CAP_SETGID):
        new.gid = new.sgid = gid
    else:
        _permit(gid in (old.gid, old.sgid))
    new.egid = new.fsgid = gid
    return new


def setreuid(old: Credentials, ruid: int, euid: int) -> Credentials:
    """The real and the effective user id; the saved one follows unless only the effective one became the real one."""
    able = old.capable(CAP_SETUID)
    new = old.copy()
    if ruid != KEEP:
        _permit(able or ruid in (old.uid, old.euid))
        new.uid = ruid
    if euid != KEEP:
        _permit(able or euid in (old.uid, old.euid, old.suid))
        new.euid = euid
    if ruid != KEEP or euid not in (KEEP, old.uid):
        new.suid = new.euid
    new.fsuid = new.euid
    user_ids_changed(new, old)
    return new


def setregid(old: Credentials, rgid: int, egid: int) -> Credentials:
    """The real and the effective group id, as `setreuid`."""
    able = old.capable(CAP_SETGID)
    new = old.copy()
    if rgid != KEEP:
        _permit(able or rgid in (old.gid, old.egid))
        new.gid = rgid
    if egid != KEEP:
        _permit(able or egid in (old.gid, old.egid, old.sgid))
        new.egid = egid
    if rgid != KEEP or egid not in (KEEP, old.gid):
        new.sgid = new.egid
    new.fsgid = new.egid
    return new


def setresuid(old: Credentials, ruid: int, euid: int, suid: int) -> Credentials:
    """Real, effective and saved user id; without CAP_SETUID each to one of the three."""
    unchanged = ruid in (KEEP, old.uid) and suid in (KEEP, old.suid)
    if unchanged and (euid == KEEP or euid == old.euid == old.fsuid):
        return old
    allowed = (KEEP, old.uid, old.euid, old.suid)
    _permit(old.capable(CAP_SETUID) or (ruid in allowed and euid in allowed and suid in allowed))
    new = old.copy()
    new.uid = old.uid if ruid == KEEP else ruid
    new.euid = old.euid if euid == KEEP else euid
    new.suid = old.suid if suid == KEEP else suid
    new.fsuid = new.euid
    user_ids_changed(new, old)
    return new


def setresgid(old: Credentials, rgid: int, egid: int, sgid: int) -> Credentials:
    """Real, effective and saved group id; without CAP_SETGID each to one of the three."""
    unchanged = rgid in (KEEP, old.gid) and sgid in (KEEP, old.sgid)
    if unchanged and (egid == KEEP or egid == old.egid == old.fsgid):
        return old
    allowed = (KEEP, old.gid, old.egid, old.sgid)
    _permit(old.capable(CAP_SETGID) or (rgid in allowed and egid in allowed and sgid in allowed))
    new = old.copy()
    new.gid = old.gid if rgid == KEEP else rgid
    new.egid = old.egid if egid == KEEP else egid
    new.sgid = old.sgid if sgid == KEEP else sgid
    new.fsgid = new.egid
    return new


def setfsuid(old: Credentials, uid: int) -> Credentials:
    """The file system user id. Never fails: an id that is not allowed changes nothing."""
    if uid in (KEEP, old.fsuid) or not (uid in (old.uid, old.euid, old.suid) or old.capable(CAP_SETUID)):
        return old
    new = old.copy()
    new.fsuid = uid
    file_system_user_changed(new, old)
    return new


def setfsgid(old: Credentials, gid: int) -> Credentials:
    """The file system group id. Never fails: an id that is not allowed changes nothing."""
    if gid in (KEEP, old.fsgid) or not (gid in (old.gid, old.egid, old.sgid) or old.capable(CAP_SETGID)):
        return old
    new = old.copy()
    new.fsgid = gid
    return new


def setgroups(old: Credentials, groups: Iterable[int]) -> Credentials:
    """The supplementary groups, which the kernel keeps sorted. Needs CAP_SETGID."""
    _permit(old.capable(CAP_SETGID))
    new = old.copy()
    new.groups = tuple(sorted(groups))
    for gid in new.groups:
        _valid(gid)
    return new
