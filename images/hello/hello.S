/* The smallest image: a static program without a libc that greets and exits. */
#include <asm/unistd.h>

	.section .rodata
greeting:
	.ascii	"Hello from pyvmm!\n"
	.set	greeting_length, . - greeting

	.text
	.globl	_start
_start:
	lea	greeting(%rip), %rsi
	mov	$greeting_length, %edx
write_more:
	mov	$__NR_write, %eax
	mov	$1, %edi
	syscall
	test	%rax, %rax
	jle	failed
	add	%rax, %rsi
	sub	%rax, %rdx
	jnz	write_more
	xor	%edi, %edi
exit:
	mov	$__NR_exit_group, %eax
	syscall
failed:
	mov	$1, %edi
	jmp	exit

	.section .note.GNU-stack, "", @progbits
