"""Files as system calls see them: descriptor tables, open file descriptions, and the calls that work on them.

`files.py` holds the model (fs/file.c, fs/read_write.c), `syscalls.py` the calls. What is behind a descriptor is a
subclass of `OpenFile` in devices/fs/. Paths: today one file has a name, the ELF file that was booted (`boot_path.py`);
every other path does not exist.
"""
