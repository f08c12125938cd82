// not compared: only on KVM, for Unicorn raises few of these exceptions (tests/guest/test_signals.py)
/* Unmasked x87 and SSE exceptions: SIGFPE with the si_code of what was raised.
 * And a stack pointer that is not canonical, which is a stack fault. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

static sigjmp_buf back;
static const char *doing;

static void caught(int signo, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	unsigned mxcsr;
	unsigned short control;
	asm volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(control));
	printf("%s: %s code %d at rip %d trapno %lld, in the handler mxcsr %#x fcw %#x\n", doing, sigabbrev_np(signo),
	       info->si_code, info->si_addr == (void *)regs[REG_RIP], regs[REG_TRAPNO], mxcsr, control);
	siglongjmp(back, 1);
}

static void x87(const char *name, unsigned unmask, double a, double b)
{
	unsigned short control = (unsigned short)(0x37f & ~unmask);
	doing = name;
	if (!sigsetjmp(back, 1)) {
		asm volatile("fninit; fldcw %0; fldl %1; fldl %2; fdivrp; fstps -4(%%rsp); fwait"
			     : : "m"(control), "m"(a), "m"(b) : "memory");
		printf("%s: nothing happened\n", name);
	}
	asm volatile("fninit");
}

static void sse(const char *name, unsigned unmask, float a, float b)
{
	unsigned mxcsr = 0x1f80 & ~(unmask << 7), normal = 0x1f80;
	doing = name;
	if (!sigsetjmp(back, 1)) {
		asm volatile("ldmxcsr %0; movss %1, %%xmm0; divss %2, %%xmm0" : : "m"(mxcsr), "m"(a), "m"(b) : "xmm0");
		printf("%s: nothing happened\n", name);
	}
	asm volatile("ldmxcsr %0" : : "m"(normal));
}

static void wild_stack(void)
{
	doing = "push to a non-canonical stack";
	if (!sigsetjmp(back, 1)) {
		asm volatile("mov %%rsp, %%rbx; movabs $0x8000000000000000, %%rax; mov %%rax, %%rsp; push %%rax; mov %%rbx, %%rsp"
			     : : : "rax", "rbx", "memory");
		printf("%s: nothing happened\n", doing);
	}
}

int main(void)
{
	static char stack[65536];
	stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaltstack(&ss, NULL);
	sigaction(SIGFPE, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	wild_stack();
	x87("x87 invalid", 1, 0, 0);
	x87("x87 divide", 4, 1, 0);
	x87("x87 overflow", 8, 1e300, 1e-300);
	x87("x87 underflow", 16, 1e-300, 1e300);
	x87("x87 precision", 32, 1, 3);
	x87("x87 masked", 0, 1, 0);
	sse("sse invalid", 1, 0, 0);
	sse("sse divide", 4, 1, 0);
	sse("sse overflow", 8, 1e38f, 1e-38f);
	sse("sse underflow", 16, 1e-38f, 1e38f);
	sse("sse precision", 32, 1, 3);
	sse("sse masked", 0, 1, 0);
	return 0;
}
