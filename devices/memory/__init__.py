"""Address spaces: what a program's memory is, and every access that the monitor makes to it.

Serves mmap, munmap, mprotect, mremap, brk, madvise, msync, mincore, mlock, mlock2, munlock, mlockall and munlockall,
all page faults, and the copies between guest memory and the monitor that every other subsystem makes.

The model: an `AddressSpace` (space.py) has a sorted list of `Vma`s (vma.py), which say what may be there, and a page
table (vmm/memory/pagetable.py), which says what is. It is built up in layers, a file each: core.py (both together,
taking pages out), faults.py (putting pages in: demand zero, files, stack growth, copy-on-write), access.py (user
copies), mapping.py (mmap, munmap, mprotect, brk), space.py (fork). remap.py, advice.py and locking.py are the rarer
calls; backing.py is what a mapping shows when it is not private anonymous memory; machine.py is what all share.

Follows mm/mmap.c, mm/vma.c, mm/mprotect.c, mm/mremap.c, mm/madvise.c, mm/mlock.c, mm/msync.c, mm/mincore.c, mm/memory.c
and arch/x86/mm/{fault,mmap}.c. Everything needs the kernel lock held.
"""
