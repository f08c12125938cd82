"""/proc/cpuinfo, stat, uptime, loadavg: the guest's CPUs (arch/x86/kernel/cpu/proc.c, fs/proc/stat.c).

The guest's CPUs are the host's, as its own /proc/cpuinfo shows them, less what no guest can have; or the emulator's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.fs.procfs.who import TICK_NS, asleep
from devices.time.abi import CLOCK_BOOTTIME
from devices.time.cputime import process_cpu_ns

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task

HOST_CPUINFO = "/proc/cpuinfo"
NOT_IN_GUESTS = frozenset(
    b"vmx svm smx monitor dtes64 ds_cpl est tm2 pdcm pcid dca x2apic tsc_deadline_timer ht tsc_adjust sgx smep"
    b" invpcid mpx smap intel_pt umip pku ospke waitpkg user_shstk ibt la57 bus_lock_detect split_lock_detect"
    b" enqcmd uintr amx_bf16 amx_tile amx_int8 amx_fp16 pconfig arch_capabilities arch_perfmon pebs bts xsaves lam"
    b" fred lkgs lass extapic ibs skinit wdt lwp topoext perfctr_core perfctr_nb perfctr_llc mwaitx cmp_legacy npt"
    b" lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter pfthreshold"
    b" v_vmsave_vmload vgif avic vnmi sev sev_es sev_snp sme aperfmperf acpi dts tm pbe dtherm ida arat pln pts hwp"
    b" hwp_notify hwp_act_window hwp_epp hfi ssbd ibrs ibpb stibp ibrs_enhanced md_clear flush_l1d cqm cqm_llc"
    b" cqm_occup_llc cqm_mbm_total cqm_mbm_local rdt_a cat_l3 cdp_l3 mba tpr_shadow flexpriority ept vpid ept_ad"
    b" vnmi xtopology vmmcall".split()
)
"""Flags that vmm/kvm/cpuid.py takes away, and those of an operating system that runs on the metal."""
EMULATED = (
    b"fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx"
    b" mmxext pdpe1gb rdtscp lm nopl cpuid pni ssse3 cx16 sse4_1 sse4_2 popcnt hypervisor lahf_lm abm sse4a".split()
)
"""What the emulator runs: x86-64-v2."""
FEATURES_EDX = (
    b"fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse"
    b" sse2 ss ht tm ia64 pbe".split()
)
"""CPUID leaf 1, EDX by bit (arch/x86/include/asm/cpufeatures.h, word 0)."""


class Processor:
    """What cpuinfo tells of every CPU. `values`: the lines of the host's, by name."""

    def __init__(self, kernel: Kernel) -> None:
        accelerator = kernel.accelerator
        self.values = host_values()
        flags = self.values.get(b"flags", b"").split()
        if accelerator.name == "emulator":
            known = FEATURES_EDX
            bits = accelerator.cpuid_features
            first = [f for n, f in enumerate(known) if bits >> n & 1 and f != b"-"]
            self.flags = first + [flag for flag in EMULATED if flag not in known]
            self.values.update({b"model name": b"pyvmm emulated CPU", b"bugs": b""})
        else:
            self.flags = [flag for flag in flags if flag not in NOT_IN_GUESTS]
            if b"hypervisor" not in self.flags:
                self.flags.append(b"hypervisor")


def host_values() -> dict[bytes, bytes]:
    """The first CPU of the host's cpuinfo."""
    with open(HOST_CPUINFO, "rb") as file:
        first = file.read().split(b"\n\n", 1)[0]
    pairs = (line.partition(b":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpuinfo(task: Task) -> bytes:
    """/proc/cpuinfo."""
    kernel = task.kernel
    processor = Processor(kernel)
    return b"".join(one_cpu(kernel, processor, number) for number in range(kernel.cpus))


def one_cpu(kernel: Kernel, processor: Processor, number: int) -> bytes:
    def host(name: bytes, default: bytes = b"0") -> bytes:
        return processor.values.get(name, default)

    cpus, index = b"%d" % kernel.cpus, b"%d" % number
    lines = [
        (b"processor\t", index),
        (b"vendor_id\t", host(b"vendor_id", b"unknown")),
        (b"cpu family\t", host(b"cpu family")),
        (b"model\t\t", host(b"model")),
        (b"model name\t", host(b"model name", b"unknown")),
        (b"stepping\t", host(b"stepping")),
        (b"microcode\t", host(b"microcode", b"0x0")),
        (b"cpu MHz\t\t", host(b"cpu MHz")),
        (b"cache size\t", host(b"cache size", b"0 KB")),
        (b"physical id\t", b"0"),
        (b"siblings\t", cpus),
        (b"core id\t\t", index),
        (b"cpu cores\t", cpus),
        (b"apicid\t\t", index),
        (b"initial apicid\t", index),
        (b"fpu\t\t", b"yes"),
        (b"fpu_exception\t", b"yes"),
        (b"cpuid level\t", host(b"cpuid level", b"13")),
        (b"wp\t\t", b"yes"),
        (b"flags\t\t", b" ".join(processor.flags)),
        (b"bugs\t\t", host(b"bugs", b"")),
        (b"bogomips\t", host(b"bogomips")),
        (b"clflush size\t", host(b"clflush size", b"64")),
        (b"cache_alignment\t", host(b"cache_alignment", b"64")),
        (b"address sizes\t", host(b"address sizes", b"48 bits physical, 48 bits virtual")),
        (b"power management", b""),
    ]
    return b"".join(name + b":" + (b" " + value if value else b"") + b"\n" for name, value in lines) + b"\n"


# Time


def uptime_ns(task: Task) -> int:
    """Since boot."""
    return task.kernel.clock.now(CLOCK_BOOTTIME, task)


def busy_ns(kernel: Kernel) -> int:
    """CPU time of the processes that are there."""
    return sum(process_cpu_ns(process) for process in kernel.processes.values())


def running(kernel: Kernel) -> int:
    """Tasks that do not wait for anything."""
    return sum(not asleep(task) for task in kernel.tasks.values())


def uptime(task: Task) -> bytes:
    """/proc/uptime: seconds since boot, and idle seconds of all CPUs."""
    kernel = task.kernel
    up = uptime_ns(task)
    idle = max(0, up * kernel.cpus - busy_ns(kernel))
    return b"%d.%02d %d.%02d\n" % (*hundredths(up), *hundredths(idle))


def hundredths(ns: int) -> tuple[int, int]:
    return ns // 10**9, ns // 10**7 % 100


def loadavg(task: Task) -> bytes:
    """/proc/loadavg. No load averages are kept: they are 0, as in sysinfo(2)."""
    kernel = task.kernel
    last = max(kernel.tasks, default=0)
    return b"0.00 0.00 0.00 %d/%d %d\n" % (running(kernel), len(kernel.tasks), last)


def stat(task: Task) -> bytes:
    """/proc/stat. The guest's CPU time is spread over its CPUs: its tasks belong to none of them."""
    kernel = task.kernel
    busy = busy_ns(kernel) // TICK_NS
    up = uptime_ns(task)
    idle = max(0, up * kernel.cpus // TICK_NS - busy)

    def row(name: bytes, parts: int) -> bytes:
        return b"%s %d 0 0 %d 0 0 0 0 0 0\n" % (name, busy // parts, idle // parts)

    boot = (kernel.clock.realtime_ns() - up) // 10**9
    return (
        row(b"cpu ", 1)
        + b"".join(row(b"cpu%d" % number, kernel.cpus) for number in range(kernel.cpus))
        + b"intr 0\nctxt 0\nbtime %d\nprocesses %d\n" % (boot, max(kernel.tasks, default=0))
        + b"procs_running %d\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n" % running(kernel)
    )
