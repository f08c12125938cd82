"""`make bench`: figures of this machine, native and on each accelerator, with the peers that are installed.

    __main__.py     the command line: python -m tests.bench [--json FILE] [--quick] [--only NAME...]
    report.py       rows, limits and verdicts, the table, the JSON file
    ways.py         the ways to run a program: native, kvm, emulator, runsc, qemu-user, qiling
    session.py      runs a program in several ways by turns, within the time that there is
    figures.py      which program gives which rows, and what they should be
    startup.py      start-up time, imports and memory of the monitor
    bare.py         the bare KVM_RUN round trip beside the product's own, on one vCPU by turns
    handover.py     calls served by the vCPU's thread, by an asyncio loop, by an executor
    qiling_run.py   runs a program in Qiling
    bench_*.py      further figures: each has run() -> [(name, text), ...]

The programs are guest/programs/bench_*.c. Each times itself and prints lines `name value unit`. All ways of a figure
run by turns, and again, and the best of each counts: what disturbs a measurement only ever makes it slower.
"""
