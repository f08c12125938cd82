"""Tasks and processes: what runs, who it is, how it starts and how it ends.

Serves clone, clone3, exit, exit_group, the identity and scheduling calls and what belongs to a process (limits, names).
`task.py` and `process.py` hold the model, `exec.py` loads an ELF file (fs/binfmt_elf.c), `clone.py` makes threads
(kernel/fork.c). A task is one vCPU on one host thread for its life: there is no scheduler here, the host has one.
"""
