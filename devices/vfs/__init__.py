"""Files as system calls see them: names, mounts, open files, descriptors, and the calls that work on them.

A file system implements `inode.py` (devices/fs/ has them). Above it, each a file or two: dentries and the walk from a
path to a place (`path.py`, `pathname.py` for the way back; fs/namei.c, fs/d_path.c), mounts, their namespaces and how
they spread (`mount.py`, `propagation.py`, `mounting.py`; fs/namespace.c, fs/pnode.c), who may do what
(`permissions.py`), opening (`open.py`, `directory.py`), making and removing names (`names.py`), open file descriptions
and descriptor tables (`files.py`), locks (`locks.py`), and the one place that every event passes (`events.py`).
`state.py` is what a machine keeps for all processes, `fs_struct.py` what a process has. The calls are in the
`*_syscalls.py`.
"""
