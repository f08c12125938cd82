"""Clocks: what time it is, and sleeping until it is later (man 7 time, kernel/time/).

Serves clock_gettime, clock_getres, clock_nanosleep, nanosleep, gettimeofday, time, times, and the calls that set
clocks, which fail as for a container without CAP_SYS_TIME. `clock.py` holds the clocks, `vvar.py` the page from
which the vDSO answers without a system call, `sleep.py` the waits that a clock ends. Host time enters at
`clock.HostClocks` alone.
"""
