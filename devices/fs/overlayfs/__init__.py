"""overlayfs: read-only layers below, a writable one on top, seen as one tree (fs/overlayfs).

A directory shows the entries of the upper one and those of the lower ones that no higher layer has. A lower file is
copied up before the first change, with its directories. What was removed is hidden by a whiteout (a character device
0:0 in the upper layer), and a directory that replaces a lower one is marked opaque (trusted.overlay.opaque).

What Linux does with the mount options redirect_dir=on, index=on and xino=on holds here always, as the upper layer is in
memory and so can be what belongs to it: a directory of a lower layer can be renamed, a file with several names stays
one when it is copied up, and inode numbers do not change. A file that was opened for reading shows what is written to
it after it was copied up, but a mapping of it does not, as on Linux.

superblock.py holds what is known of all files, inode.py attributes and contents, directory.py names, listing.py the
order of entries, copy_up.py copying.
"""

from devices.fs.overlayfs.superblock import OverlayFs

__all__ = ["OverlayFs"]
