"""Signals: what is sent, what is pending, and what a task does about it before it goes on.

Serves rt_sigaction, rt_sigprocmask, rt_sigreturn, rt_sigpending, rt_sigsuspend, rt_sigtimedwait, rt_sigqueueinfo,
rt_tgsigqueueinfo, sigaltstack, kill, tkill, tgkill, pause and restart_syscall (signal(7) and their manual pages).
Follows kernel/signal.c and arch/x86/kernel/signal.c, signal_64.c, fpu/signal.c and traps.c.

`info.py` is siginfo_t, `queue.py` the dispositions and the pending signals, `send.py` generation and masks, `stop.py`
job control, `delivery.py` what happens on the way back to the guest, `frame.py` (with `fpstate.py` and `altstack.py`)
the handler's stack frame, `faults.py` CPU exceptions, `show.py` a signal in a trace, `syscalls.py` the calls.
"""
