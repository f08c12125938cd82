"""The lab: a place with hardware-KVM semantics on a machine that has none.

QEMU's TCG emulates AMD SVM with nested paging, so Debian's own kernel loads `kvm_amd` in it and offers a `/dev/kvm`
that behaves as on real hardware: the stub runs in ring 0, guest page tables are walked by the (emulated) processor.
The host's root is shared read-only into it over 9p, so that the same checkout runs with the same virtual environment.

    run.py        the command: `python tests/lab/run.py [-- COMMAND...]`
    errors.py     LabError, what ends it with status 125
    kernel.py     which kernel to boot, which of its modules in which order
    initramfs.py  the newc cpio archive: busybox, the modules, init.sh and what it is told
    init.sh       the lab's process 1
    qemu.py       QEMU's command line; runs it, bounded in time and surely ended
    selection.py  the tests that run by default, and their bytecode
    verdict.py    exit status and line of a run
    channel.py    what comes back: output and records on one serial line, and what pytest's last line says

How the result comes back: a second 16550 serial port whose far end is QEMU's standard output, a pipe. It is the only
device whose driver is part of the kernel image, so a failure to load modules or to mount 9p is told over the same
line; the kernel's console has the first port, so printk cannot cut into it; bytes arrive as they are written, which
`--verbose` shows; and the end of QEMU, however it came about, is the end of the file. The rejected: virtio-serial and
a writable 9p share need modules and a virtio transport before they can tell what is wrong with them, and the
debug-exit device carries seven bits and no output.
"""
