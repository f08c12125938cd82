"""overlayfs: read-only layers below, a writable one on top, seen as one tree (fs/overlayfs).

A directory shows the entries of the upper one and those of the lower ones that no higher layer has. A lower file is
copied up before the first change, with its directories. What was removed is hidden by a whiteout (a character device
0:0 in the upper layer), and a directory that replaces a lower one is marked opaque (trusted.overlay.opaque). As Linux by
default: a directory that has a lower part cannot be renamed (EXDEV; mv copies instead).
"""

from devices.fs.overlayfs.inode import OverlayFs

__all__ = ["OverlayFs"]
