"""What a task does about its signals: order, handlers, default actions, masks, calls cut short; and rt_sigreturn."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from devices.errors import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    ERESTARTSYS,
    TaskExit,
)
from devices.signals import fpstate
from devices.signals.abi import (
    SA_NODEFER,
    SA_ONSTACK,
    SA_RESETHAND,
    SA_RESTART,
    SA_RESTORER,
    SIG_IGN,
    SIGABRT,
    SIGCHLD,
    SIGFPE,
    SIGHUP,
    SIGQUIT,
    SIGRTMIN,
    SIGSEGV,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SS_AUTODISARM,
    SS_DISABLE,
    UCONTEXT,
)
from devices.signals.delivery import canonical, deliver_locked, pending_locked, return_locked
from devices.signals.info import SigInfo
from devices.signals.queue import Action
from devices.signals.send import force_locked, send_locked
from tests.unit.devices.signals.support import (
    CODE,
    DATA,
    HANDLER,
    STACK_TOP,
    U64,
    FakeTracer,
    World,
    catch,
    cpu_of,
    memory_of,
    signals,
)
from vmm.cpu import FIXED_RFLAGS, GP, RAX, RBX, RDI, RDX, RFLAGS, RIP, RSI, RSP
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task

SECOND = CODE + 0x800
SYSCALL_AT = CODE + 0x10


def regs(task: Task) -> list[int]:
    return task.cpu.save()


def writes(task: Task, then: Callable[[], object] = lambda: None) -> list[int]:
    """The addresses that are written to from now on; `then` is done at each."""
    addresses: list[int] = []
    memory = memory_of(task)
    write = memory.write

    def noting(address: int, data: bytes) -> None:
        addresses.append(address)
        then()
        write(address, data)

    setattr(memory, "write", noting)  # noqa: B010  # an instance's own method
    return addresses


def ret(task: Task) -> None:
    """The handler returns to sa_restorer, which calls rt_sigreturn; as the bus does it."""
    state = regs(task)
    state[RSP] += 8
    task.cpu.load(state)
    cpu_of(task).regs[RAX] = return_locked(task)
    if task.work:
        deliver_locked(task)


def test_nothing_pending_touches_nothing() -> None:
    task = World().task()
    task.work = True
    deliver_locked(task)
    assert cpu_of(task).loads == 0


def test_a_handler_runs_and_comes_back() -> None:
    task = World().task()
    cpu = cpu_of(task)
    catch(task.process, SIGUSR1, mask=signals(SIGUSR2))
    task.sigmask = signals(SIGHUP)
    cpu.regs[RBX] = 77
    cpu.regs[RFLAGS] = FIXED_RFLAGS | 0x401
    cpu.area = cpu.area[:40] + b"program's" + cpu.area[49:]
    before, area = regs(task), cpu.area
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert (cpu.regs[RIP], cpu.regs[RDI], cpu.regs[RAX], cpu.regs[RBX]) == (HANDLER, SIGUSR1, 0, 77)
    assert cpu.regs[RFLAGS] == FIXED_RFLAGS | 1
    assert task.sigmask == signals(SIGHUP, SIGUSR1, SIGUSR2)
    assert cpu.area == fpstate.initial(len(area))
    assert not task.work
    cpu.regs[RBX] = 0
    ret(task)
    assert regs(task) == before
    assert cpu.area[:464] == area[:464]
    assert cpu.area[512:] == area[512:]
    assert task.sigmask == signals(SIGHUP)


def test_handlers_nest_so_that_the_lowest_number_returns_last() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    catch(task.process, SIGUSR2, handler=SECOND)
    before = regs(task)
    send_locked(task, SIGUSR2)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert (regs(task)[RIP], regs(task)[RDI]) == (SECOND, SIGUSR2)
    assert cpu_of(task).loads == 1
    ret(task)
    assert (regs(task)[RIP], regs(task)[RDI]) == (HANDLER, SIGUSR1)
    assert task.sigmask == signals(SIGUSR1)
    ret(task)
    assert regs(task)[:RAX] == before[:RAX]
    assert regs(task)[RIP] == before[RIP]
    assert task.sigmask == 0


def test_sa_mask_keeps_the_other_waiting() -> None:
    task = World().task()
    catch(task.process, SIGUSR1, mask=signals(SIGUSR2))
    catch(task.process, SIGUSR2, handler=SECOND)
    for signo in (SIGUSR1, SIGUSR2):
        send_locked(task.process, signo)
    deliver_locked(task)
    assert regs(task)[RIP] == HANDLER
    ret(task)
    assert regs(task)[RIP] == SECOND


def test_a_fault_has_its_frame_first() -> None:
    task = World().task()
    catch(task.process, SIGHUP)
    catch(task.process, SIGFPE, handler=SECOND)
    send_locked(task, SIGHUP)
    force_locked(task, SigInfo.fault(SIGFPE, 1, CODE))
    deliver_locked(task)
    assert regs(task)[RIP] == HANDLER
    ret(task)
    assert regs(task)[RIP] == SECOND
    ret(task)
    assert regs(task)[RIP] == CODE


def test_nodefer_and_resethand() -> None:
    task = World().task()
    catch(task.process, SIGUSR1, SA_NODEFER)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert task.sigmask == 0
    catch(task.process, SIGUSR2, SA_RESETHAND)
    send_locked(task, SIGUSR2)
    deliver_locked(task)
    assert regs(task)[RDI] == SIGUSR2
    action = task.process.actions[SIGUSR2]
    assert (action.handler, action.flags) == (0, SA_RESETHAND | SA_RESTORER)
    assert not task.process.actions.caught & signals(SIGUSR2)


def test_own_signals_go_before_the_process_s() -> None:
    task = World().task()
    catch(task.process, SIGRTMIN)
    send_locked(task.process, SIGRTMIN, SigInfo(SIGRTMIN, -1, b"\0\0\0\0\2"))
    send_locked(task, SIGRTMIN, SigInfo(SIGRTMIN, -1, b"\0\0\0\0\1"))
    deliver_locked(task)
    assert regs(task)[RIP] == HANDLER
    assert not task.pending.bits
    assert task.process.pending.bits == signals(SIGRTMIN)


@pytest.mark.parametrize("signo", [SIGABRT, SIGQUIT, SIGSEGV])
def test_default_is_the_end_without_a_core(signo: int) -> None:
    world = World()
    world.kernel.tracer = FakeTracer()
    task = world.task()
    send_locked(task, signo)
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == signo
    assert [line[1] for line in world.kernel.tracer.lines] == [signo]


def test_what_is_ignored_by_now_is_dropped() -> None:
    task = World().task()
    task.sigmask = signals(SIGUSR1, SIGCHLD)
    catch(task.process, SIGUSR1)
    send_locked(task, SIGUSR1)
    send_locked(task, SIGCHLD)
    task.process.actions[SIGUSR1] = Action(SIG_IGN)
    task.sigmask = 0
    assert pending_locked(task)
    deliver_locked(task)
    assert not pending_locked(task)
    assert cpu_of(task).loads == 0


# Calls cut short

HANDLER_RUNS = {
    # restart code, SA_RESTART -> is the call made again?
    (ERESTARTSYS, False): False,
    (ERESTARTSYS, True): True,
    (ERESTARTNOINTR, False): True,
    (ERESTARTNOINTR, True): True,
    (ERESTARTNOHAND, False): False,
    (ERESTARTNOHAND, True): False,
    (ERESTART_RESTARTBLOCK, False): False,
    (ERESTART_RESTARTBLOCK, True): False,
}


def interrupted(task: Task, number: int, code: int) -> None:
    """The state in which the bus leaves a call that raised Interrupted."""
    cpu_of(task).regs[RIP] = SYSCALL_AT + 2
    cpu_of(task).regs[RAX] = -errno.EINTR & U64
    task.interrupted_call_locked(number, code)


@pytest.mark.parametrize(("code", "restart"), HANDLER_RUNS)
def test_restart_table_with_a_handler(code: int, restart: bool) -> None:
    task = World().task()
    catch(task.process, SIGUSR1, SA_RESTART if restart else 0)
    interrupted(task, 202, code)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert regs(task)[RIP] == HANDLER
    assert task.restart is None
    ret(task)
    again = HANDLER_RUNS[code, restart]
    assert regs(task)[RIP] == (SYSCALL_AT if again else SYSCALL_AT + 2)
    assert regs(task)[RAX] == (202 if again else -errno.EINTR & U64)


@pytest.mark.parametrize("code", [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK])
@pytest.mark.parametrize("ignored", [False, True])
def test_restart_table_without_one(code: int, ignored: bool) -> None:
    task = World().task()
    interrupted(task, 35, code)
    if ignored:
        task.sigmask = signals(SIGCHLD)
        send_locked(task, SIGCHLD)
        task.sigmask = 0
    deliver_locked(task)
    assert regs(task)[RIP] == SYSCALL_AT
    assert regs(task)[RAX] == (219 if code == ERESTART_RESTARTBLOCK else 35)


def test_only_the_first_handler_decides_about_the_call() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    catch(task.process, SIGUSR2, SA_RESTART, handler=SECOND)
    interrupted(task, 0, ERESTARTSYS)
    send_locked(task, SIGUSR1)
    send_locked(task, SIGUSR2)
    deliver_locked(task)
    ret(task)
    ret(task)
    assert (regs(task)[RIP], regs(task)[RAX]) == (SYSCALL_AT + 2, -errno.EINTR & U64)


def test_sigreturn_forgets_a_sleep_to_go_on_with() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    task.restart_block = lambda task: 0
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert task.restart_block is not None
    ret(task)
    assert task.restart_block is None


def test_a_saved_mask_comes_back_with_the_handlers_end() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    task.saved_sigmask, task.sigmask = signals(SIGHUP), 0
    interrupted(task, 130, ERESTARTNOHAND)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert task.sigmask == signals(SIGUSR1)
    assert task.saved_sigmask is None
    ret(task)
    assert task.sigmask == signals(SIGHUP)
    assert regs(task)[RAX] == -errno.EINTR & U64


def test_a_saved_mask_comes_back_without_a_handler() -> None:
    task = World().task()
    task.saved_sigmask, task.sigmask = signals(SIGHUP), 0
    interrupted(task, 130, ERESTARTNOHAND)
    deliver_locked(task)
    assert task.sigmask == signals(SIGHUP)
    assert task.saved_sigmask is None
    assert (regs(task)[RIP], regs(task)[RAX]) == (SYSCALL_AT, 130)


def test_what_the_saved_mask_lets_through_is_delivered_too() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    task.saved_sigmask, task.sigmask = 0, signals(SIGUSR1)
    interrupted(task, 130, ERESTARTNOHAND)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert regs(task)[RIP] == HANDLER
    ret(task)
    assert (regs(task)[RIP], regs(task)[RAX]) == (SYSCALL_AT, 130)


# Frames that cannot be written


def test_no_stack_is_a_segmentation_fault() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    cpu_of(task).regs[RSP] = 0x1000
    send_locked(task, SIGUSR1)
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


def test_no_restorer_is_a_segmentation_fault() -> None:
    task = World().task()
    task.process.actions[SIGUSR1] = Action(HANDLER)
    send_locked(task, SIGUSR1)
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


def test_its_handler_may_run_on_the_alternate_stack() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    catch(task.process, SIGSEGV, SA_ONSTACK, handler=SECOND)
    task.altstack = (DATA, 0x2000, 0)
    cpu_of(task).regs[RSP] = 0x1000
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert (regs(task)[RIP], regs(task)[RDI]) == (SECOND, SIGSEGV)
    assert DATA < regs(task)[RSP] < DATA + 0x2000
    assert task.sigmask == signals(SIGSEGV)  # the other handler was not entered


def test_an_unwritable_stack_for_sigsegv_itself() -> None:
    task = World().task()
    catch(task.process, SIGSEGV)
    cpu_of(task).regs[RSP] = 0x1000
    force_locked(task, SigInfo.fault(SIGSEGV, 1, 0))
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


def test_a_full_stack_ends_in_bounded_time() -> None:
    task = World().task()
    catch(task.process, SIGRTMIN, SA_NODEFER)
    for _ in range(99):
        send_locked(task, SIGRTMIN, SigInfo(SIGRTMIN, -1))
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


def test_a_read_only_stack() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    memory_of(task).read_only.update(range((STACK_TOP - 16 * PAGE_SIZE) // PAGE_SIZE, STACK_TOP // PAGE_SIZE))
    send_locked(task, SIGUSR1)
    with pytest.raises(TaskExit):
        deliver_locked(task)


def test_autodisarm() -> None:
    task = World().task()
    catch(task.process, SIGUSR1, SA_ONSTACK)
    task.altstack = (DATA, 0x2000, SS_AUTODISARM)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    assert task.altstack == (0, 0, SS_DISABLE)
    ret(task)
    assert task.altstack == (DATA, 0x2000, SS_AUTODISARM)


# rt_sigreturn


def entered(flags: int = 0) -> Task:
    task = World().task()
    catch(task.process, SIGUSR1, flags)
    send_locked(task, SIGUSR1)
    deliver_locked(task)
    return task


def edit(task: Task, offset: int, value: int) -> None:
    """Change a word of the frame's ucontext."""
    task.memory.write_u64(regs(task)[RDX] + offset, value)


MASK_AT, RIP_AT, CS_AT, FPSTATE_AT = UCONTEXT.size - 8, 40 + 8 * 16, 40 + 8 * 18, 40 + 184


def test_a_mask_from_the_frame_cannot_block_everything() -> None:
    task = entered()
    edit(task, MASK_AT, U64)
    ret(task)
    assert task.sigmask == U64 & ~signals(9, 19)


def test_unblocking_by_sigreturn_delivers() -> None:
    task = entered()
    send_locked(task, SIGUSR1)
    ret(task)
    assert regs(task)[RIP] == HANDLER
    assert regs(task)[RDI] == SIGUSR1


@pytest.mark.parametrize("rsp", [0, 0x1000, 1 << 47, U64 - 7, 0xFFFF_8000_0000_0000])
def test_no_frame_is_a_segmentation_fault(rsp: int) -> None:
    task = World().task()
    before = regs(task)
    before[RSP] = rsp
    task.cpu.load(before)
    assert return_locked(task) == 0
    assert regs(task) == before
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


@pytest.mark.parametrize("rip", [1 << 47, 1 << 63, U64 >> 1, 0xFFFF_7FFF_FFFF_FFFF])
def test_a_rip_that_is_not_canonical(rip: int) -> None:
    task = entered()
    catch(task.process, SIGSEGV, handler=SECOND)
    edit(task, RIP_AT, rip)
    ret(task)
    assert (regs(task)[RIP], regs(task)[RDI]) == (SECOND, SIGSEGV)
    assert task.pending.trap[:2] == (GP, 0)
    context = regs(task)[RDX]
    assert task.memory.read_u64(context + RIP_AT) == rip
    edit(task, RIP_AT, CODE)
    ret(task)
    assert regs(task)[RIP] == CODE


def test_a_rip_that_is_not_canonical_ends_the_process() -> None:
    task = entered()
    edit(task, RIP_AT, 1 << 63)
    with pytest.raises(TaskExit):
        ret(task)
    assert task.process.status == SIGSEGV


def test_a_kernel_address_is_for_the_cpu_to_refuse() -> None:
    task = entered()
    edit(task, RIP_AT, 0xFFFF_FFFF_8100_0000)
    ret(task)
    assert regs(task)[RIP] == 0xFFFF_FFFF_8100_0000
    assert not task.work


def test_a_bad_code_segment_is_a_general_protection_fault() -> None:
    task = entered()
    catch(task.process, SIGSEGV, handler=SECOND)
    edit(task, CS_AT, 0x10)
    ret(task)
    assert (regs(task)[RIP], regs(task)[RDI]) == (SECOND, SIGSEGV)
    assert task.pending.trap[:2] == (GP, 0x10)


def test_a_bad_fpu_state_is_a_segmentation_fault_after_the_return() -> None:
    task = entered()
    catch(task.process, SIGSEGV, handler=SECOND)
    edit(task, FPSTATE_AT, 0x10)
    ret(task)
    assert regs(task)[RIP] == SECOND
    assert task.memory.read_u64(regs(task)[RDX] + RIP_AT) == CODE
    assert cpu_of(task).area == fpstate.initial(len(cpu_of(task).area))
    assert task.sigmask == signals(SIGSEGV)


def test_a_handler_that_is_not_canonical() -> None:
    task = World().task()
    catch(task.process, SIGUSR1, handler=1 << 63)
    send_locked(task, SIGUSR1)
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV
    task = World().task()
    catch(task.process, SIGUSR1, handler=1 << 63)
    catch(task.process, SIGSEGV, SA_NODEFER, handler=1 << 62)
    send_locked(task, SIGUSR1)
    frames = writes(task)
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV
    assert len(frames) == 2  # not one after the other until the stack is full


def test_the_end_of_the_process_while_a_frame_is_written_is_not_forgotten() -> None:
    task = World().task()
    catch(task.process, SIGUSR1)
    send_locked(task, SIGUSR1)
    writes(task, lambda: task.process.exit_group_locked(9))  # out of memory
    deliver_locked(task)
    assert task.work


def test_siginfo_is_where_the_handler_looks() -> None:
    task = World().task()
    catch(task.process, SIGTERM, 4)
    info = SigInfo(SIGTERM, -1, bytes(range(36)), 5)
    send_locked(task, SIGTERM, info)
    deliver_locked(task)
    assert task.memory.read(regs(task)[RSI], 128) == info.pack()


@pytest.mark.parametrize(
    ("address", "expected"),
    [(0, True), ((1 << 47) - 1, True), (1 << 47, False), (1 << 63, False), (U64, True), (U64 - (1 << 47), False)],
)
def test_canonical(address: int, expected: bool) -> None:
    assert canonical(address) == expected
