"""hostfs: a directory of the host as a file system, read-only or read-write.

How the guest is kept inside (the guest is hostile, and so may be what is in the directory):

* The only path that the monitor ever gives to the host is the directory that a person named. From there each inode
  holds an O_PATH descriptor of its own. A lookup opens *one* component, which has no slash and is no `.` or `..`,
  relative to that descriptor with O_NOFOLLOW. The host never follows a symbolic link: its text goes to the VFS, which
  walks it in the guest's tree. So neither `..`, nor links, nor a rename in the middle of a walk lead out.
* An inode is acted on through its descriptor (/proc/self/fd/N of the monitor, which names that very inode), never by
  name again; names serve only to create, remove and rename, relative to the directory's descriptor.
* Device nodes, FIFOs and sockets of the host are never opened: in the guest a device node is the guest's own device of
  that number, a FIFO and a socket are the guest's own.
* Where the host has mounted a kernel's own file system (proc, sysfs, cgroup...) there is an empty directory; a file of
  one (a network namespace, say) cannot be opened. Such a file system cannot be named as the root either.
* Nothing that has power on the host is made there: no device nodes, no set-user-id or set-group-id programs, no
  extended attributes but user.*; such bits go from a file of the host that the guest writes to.

Identity is the host's (st_dev, st_ino), so hard links are one inode. write(2) returns when the host has the bytes;
pages of mapped files are in the page cache (devices/memory/pagecache.py), whose changes reach the host at msync, fsync,
munmap and the end. Times of access are left to the host, and not changed by what is mounted read-only where the host
lets a reader say so (O_NOATIME).

The directory may be a layer of an image with a file of attributes beside it (sidecar.py). Follows what fs/fuse and
fs/9p do with the inodes of a server.
"""

from devices.fs.hostfs.superblock import HostFs

__all__ = ["HostFs"]
