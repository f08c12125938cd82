"""Futexes: sleeping on a word of memory until another task says to wake (man 7 futex, kernel/futex/).

Serves futex with all of its operations, futex_waitv, futex_wake, futex_wait, futex_requeue, set_robust_list and
get_robust_list. `futex.py` holds the queues, `pi.py` the locks that name their owner, `robust.py` what a dying task
leaves behind, `words.py` the accesses to the guest's words.

**Why no wake-up is lost.** A waiter reads the word and enters its queue without letting go of the kernel lock in
between; `Task.sleep` drops the lock only after that. A guest thread that changes the word does so without any lock,
then makes a system call to wake. If its store comes before our read, we see the new value and do not sleep (the
store is visible to us: the call that follows it leaves the guest, which drains the store buffer, and takes the
kernel lock). If the store comes after our read, so does the call, and it gets the kernel lock when the waiter is
already in the queue. A thread that changes the word and does not call wakes nobody on Linux either.

Where calls are served in place (the emulator), a call that turns out to sleep leaves the guest and starts again: it
reads the word anew.
"""
