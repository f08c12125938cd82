"""Kinds of files. `console.py`: the machine's standard streams; `hostfile.py`: a host file, read-only."""
