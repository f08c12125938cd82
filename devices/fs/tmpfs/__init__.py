"""tmpfs and ramfs: file systems in guest memory, and memfd_create.

A regular file is a `FilePages` (devices/memory/filepages.py): its frames are what shared mappings show and what read
and write copy from and to. superblock.py has the limits and mount options, inode.py directories, links and special
files, file.py regular files, memfd.py files without a name and their seals.

Follows mm/shmem.c, mm/memfd.c, fs/ramfs, and fs/libfs.c for the order of directories.
"""

from devices.fs.tmpfs.superblock import FILE_SYSTEMS, RAMFS, TMPFS, Tmpfs, make_tmpfs

__all__ = ["FILE_SYSTEMS", "RAMFS", "TMPFS", "Tmpfs", "make_tmpfs"]
