"""The monitor: x86-64, KVM and its substitutes, guest memory, host threads. Knows no Linux (see devices/)."""
