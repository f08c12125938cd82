"""Guest memory as the CPU sees it: the RAM behind guest-physical addresses (physical.py), who uses which frame of it
(frames.py), and the page tables that live in it (pagetable.py).

Knows x86 and the host's memfd, and nothing of Linux in the guest: address spaces, faults and copy-on-write policy are
devices/memory. Sources: Intel SDM volume 3, chapter 4; man 2 memfd_create, madvise.
"""
