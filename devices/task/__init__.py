"""Tasks and processes: what runs, who it is, how it starts and how it ends.

Serves fork, vfork, clone, clone3, execve, execveat, exit, exit_group, wait4, waitid, the identity and scheduling calls
and what belongs to a process (limits, names). `task.py` and `process.py` hold the model. `fork.py` makes tasks and
processes (kernel/fork.c); `binfmt.py` says what a file is that is to be run, `loader.py` maps it, `exec.py` starts the
machine's first program and `execve.py` all others, as whom `privilege.py` decides (fs/exec.c, fs/binfmt_elf.c,
security/commoncap.c). `exit.py`, `parent.py` and `wait.py` are the end and who hears of it (kernel/exit.c). Process 1
is the monitor's. A task is one vCPU on one host thread for its life: there is no scheduler here, the host has one.
"""
