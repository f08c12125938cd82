/*
 * Host functions that Python has no way to say: atomic read-modify-write on
 * the words of guest memory, which guest threads on other cores change at the
 * same moment, and the time-stamp counter.
 *
 * They run in the monitor, not in the guest. The file becomes a flat,
 * position-independent binary that vmm/memory/atomics.py maps; it begins with
 * the number of functions and the offset of each, in the order of that module.
 *
 * System V calling convention: %rdi is the word's address, %esi and %edx are
 * the operands. Each returns the word's old value. LOCK makes each of them a
 * full barrier.
 */
	.text
table:
	.long	(functions - table) / 4 - 1
	.long	cmpxchg32 - table
	.long	xchg32 - table
	.long	add32 - table
	.long	or32 - table
	.long	and32 - table
	.long	xor32 - table
	.long	rdtsc_ordered - table
functions:

/* uint32_t cmpxchg32(uint32_t *word, uint32_t expected, uint32_t new) */
	.balign	16
cmpxchg32:
	mov	%esi, %eax
	lock cmpxchg %edx, (%rdi)
	ret

/* uint32_t xchg32(uint32_t *word, uint32_t new) */
	.balign	16
xchg32:
	mov	%esi, %eax
	xchg	%eax, (%rdi)
	ret

/* uint32_t add32(uint32_t *word, uint32_t by) */
	.balign	16
add32:
	mov	%esi, %eax
	lock xadd %eax, (%rdi)
	ret

/* uint32_t or32(uint32_t *word, uint32_t with), and the like */
	.macro	bitwise name, instruction
	.balign	16
\name:
	mov	(%rdi), %eax
1:	mov	%eax, %edx
	\instruction %esi, %edx
	lock cmpxchg %edx, (%rdi)
	jne	1b
	ret
	.endm

	bitwise	or32, or
	bitwise	and32, and
	bitwise	xor32, xor

/* uint64_t rdtsc_ordered(void): no earlier load or counter read is overtaken */
	.balign	16
rdtsc_ordered:
	lfence
	rdtsc
	shl	$32, %rdx
	or	%rdx, %rax
	ret

	.section .note.GNU-stack, "", @progbits
