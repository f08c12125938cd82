/*
 * What the guest has instead of a kernel.
 *
 * A flat binary with a header; vmm/kvm/stub.py takes it apart by the header's
 * offsets and puts the parts where they belong:
 *
 *   stub        the user-accessible, read-only page at STUB (vmm/layout.py);
 *               MSR_LSTAR names one of its two entries
 *   exceptions  the supervisor page that the IDT's gates lead to
 *   probe       ring-3 code that is run once, in a VM of its own, to learn how
 *               this host treats the stub (vmm/kvm/probe.py)
 *
 * Code in ring 3 can jump to any byte of the stub page, so nothing in it may
 * do more than any program may do.
 */
#define	SYSCALL_PORT	0x10
#define	EXCEPTION_PORT	0x11
#define	SLOT		64	/* bytes that each entry of the stub has to itself */
#define	EXCEPTIONS	32
#define	EXCEPTION_SIZE	8

	.text
header:
	.ascii	"PVMS"
	.long	stub - header
	.long	stub_end - stub
	.long	exceptions - header
	.long	exceptions_end - exceptions
	.long	EXCEPTION_SIZE
	.long	probe - header
	.long	probe_end - probe
	/* offsets in the stub page */
	.long	doorbell_entry - stub
	.long	doorbell_address - stub
	.long	doorbell_return - stub
	.long	port_entry - stub
	.long	port_return - stub
	.long	SYSCALL_PORT
	.long	EXCEPTION_PORT

/*
 * SYSCALL arrives here with the program's registers; RCX holds its RIP, R11 its
 * RFLAGS. Each entry is a slot of its own at a multiple of SLOT. A way to serve
 * calls through shared memory can so be put in front of the exit: its entry
 * becomes a jump out of the slot, and the exit stays where it is.
 */
	.balign	SLOT, 0xcc
stub:

/*
 * For hosts where SYSCALL leaves the CPU in ring 3. The store goes to a page
 * without memory behind it and ends KVM_RUN with KVM_EXIT_MMIO, RIP behind it.
 * The monitor writes the doorbell's address into the instruction, and returns
 * to the program by setting RIP and RFLAGS; what follows is never executed.
 */
doorbell_entry:
	.byte	0xa3			/* movabs %eax, doorbell */
doorbell_address:
	.quad	0
doorbell_return:
	ud2
	.balign	SLOT, 0xcc

/*
 * For hosts where SYSCALL enters ring 0, as the manuals say. The monitor goes
 * on at port_return, after it has seen to it that RCX is an address of the
 * program's half: SYSRET to a non-canonical address would fault in ring 0.
 */
port_entry:
	out	%al, $SYSCALL_PORT
port_return:
	sysretq
	ud2
	.balign	SLOT, 0xcc
stub_end:

/*
 * An exception's gate leads to the entry of its vector, in ring 0, with the
 * CPU's frame on the stack of the vCPU's system page. RIP tells the vector.
 */
exceptions:
	.rept	EXCEPTIONS
	.balign	EXCEPTION_SIZE, 0xcc
	out	%al, $EXCEPTION_PORT
	hlt
	.endr
	.balign	EXCEPTION_SIZE, 0xcc
exceptions_end:

/* CPUID leaf 1 as a program sees it (ECX in R8), and a system call. */
probe:
	mov	$1, %eax
	xor	%ecx, %ecx
	cpuid
	mov	%ecx, %r8d
	syscall
probe_end:

	.section .note.GNU-stack, "", @progbits
