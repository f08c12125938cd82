"""KVM: programs run on the CPU itself, in ring 3 of a virtual machine whose ring 0 holds a few instructions of stub.

    abi.py       mirror of <linux/kvm.h>
    system.py    /dev/kvm               stub.py      guest/stub.S, taken apart
    probe.py     what kind of KVM it is segments.py  GDT, TSS, IDT, special registers
    vm.py        the accelerator        cpuid.py, xsave.py   what programs see, what they may set
    state.py     a vCPU's registers     cpu.py       running it, exits, kicks (kick.py)

There are two classes of CPU: on hardware KVM the stub of guest/stub.S runs in ring 0, on software KVM in ring 3.
"""

from vmm.kvm.system import KvmUnavailable
from vmm.kvm.vm import KvmAccelerator

__all__ = ["KvmAccelerator", "KvmUnavailable"]
