/* What the host's kernel puts on a stack for a signal handler, as bytes on standard output.
 *
 *   struct entry (the handler's registers and where its stack is), then all bytes from the frame up to the stack's end.
 *
 * `alt` as the argument: on an alternate stack, else below the interrupted stack pointer, which is at the end of a stack
 * of its own. Both stacks are zero before. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE 65536

struct entry {
	uint64_t rdi, rsi, rdx, rax, rsp, rflags;
	uint64_t mxcsr, fcw;
	uint64_t stack, size, altstack, altsize;
	uint64_t handler, restorer;
} entry;

struct kernel_sigaction {
	void *handler;
	uint64_t flags;
	void *restorer;
	uint64_t mask;
};

extern char handler[], restorer[], crash[];
uint64_t interrupted_rsp;

/* The registers hold numbers that are easily told apart; the FPU is not in its initial state. */
__asm__(".text\n"
	"crash: mov interrupted_rsp(%rip), %rsp\n"
	"  mov $0xa1, %eax; mov $0xb1, %ebx; mov $0xc1, %ecx; mov $0xd1, %edx; mov $0xe1, %esi; mov $0xf1, %edi\n"
	"  mov $0x51, %ebp; mov $0x81, %r8d; mov $0x91, %r9d; mov $0x101, %r10d; mov $0x111, %r11d; mov $0x121, %r12d\n"
	"  mov $0x131, %r13d; mov $0x141, %r14d; mov $0x151, %r15d\n"
	"  fldpi; movq %rax, %xmm0; movq %r15, %xmm15; pushq $0x3f80; ldmxcsr (%rsp); movw $0xf7f, (%rsp); fldcw (%rsp)\n"
	"  movl $0, (%rsp); pop %r14; mov $0x141, %r14d\n"
	"  stc; std; ud2\n"
	"handler:\n"
	"  mov %rdi, entry(%rip); mov %rsi, entry+8(%rip); mov %rdx, entry+16(%rip); mov %rax, entry+24(%rip)\n"
	"  mov %rsp, entry+32(%rip); stmxcsr entry+48(%rip); fnstcw entry+56(%rip)\n"
	"  lea -8192(%rsp), %rsp; pushfq; popq entry+40(%rip); and $-16, %rsp; cld; call dump\n"
	"restorer: mov $15, %eax; syscall\n");

void dump(void)
{
	entry.handler = (uint64_t)handler;
	entry.restorer = (uint64_t)restorer;
	size_t rest = entry.stack + entry.size - entry.rsp;
	if (write(1, &entry, sizeof entry) != sizeof entry || write(1, (void *)entry.rsp, rest) != (ssize_t)rest)
		_exit(1);
	_exit(0);
}

int main(int argc, char **argv)
{
	int alt = argc > 1 && strcmp(argv[1], "alt") == 0;
	char *stack = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *below = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED || below == MAP_FAILED)
		return 1;
	stack_t ss = {.ss_sp = stack, .ss_size = SIZE};
	uint64_t blocked = 1ull << (SIGUSR1 - 1) | 1ull << 40;
	struct kernel_sigaction action = {handler, SA_SIGINFO | 0x4000000 | (alt ? SA_ONSTACK : 0), restorer, 0};
	if (sigaltstack(&ss, 0) || syscall(SYS_rt_sigprocmask, SIG_SETMASK, &blocked, 0, 8) ||
	    syscall(SYS_rt_sigaction, SIGILL, &action, 0, 8))
		return 1;
	interrupted_rsp = (uint64_t)below + SIZE - 24;
	entry.altstack = (uint64_t)stack;
	entry.altsize = SIZE;
	entry.stack = (uint64_t)(alt ? stack : below);
	entry.size = SIZE;
	((void (*)(void))crash)();
	return 1;
}
