"""Linux, as the guest sees it: system calls and what stands behind them, in plain Python. Knows no KVM (see vmm/).

table.py lists every system call and where it is served; bus.py says how a call gets there.
"""
