/* Single steps: TF makes a SIGTRAP after each instruction; the handler runs without, the program goes on with it. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

extern char steps_begin[], steps_end[];
static volatile int count, stop_after = 1000, inside;
static volatile long at[64], codes[64], same[64], traps[64];

static void trapped(int signo, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint64_t flags;
	(void)signo;
	asm volatile("pushfq; pop %0" : "=r"(flags));
	inside |= (int)(flags & 0x100);
	if (count < 64) {
		at[count] = regs[REG_RIP] - (greg_t)steps_begin;
		codes[count] = info->si_code;
		same[count] = info->si_addr == (void *)regs[REG_RIP];
		traps[count] = regs[REG_TRAPNO];
	}
	if (++count == stop_after)
		regs[REG_EFL] &= ~0x100;
}

static void run(const char *name)
{
	count = 0;
	asm volatile("pushfq; orl $0x100, (%%rsp); popfq\n"
		     "steps_begin: nop; mov $5, %%ecx; 1: dec %%ecx; jnz 1b; nop\n"
		     "pushfq; andl $~0x100, (%%rsp); popfq; nop\n"
		     "steps_end:"
		     : : : "rcx", "cc", "memory");
	printf("%s: %d steps, TF inside the handler %d\n", name, count, inside);
	for (int n = 0; n < count && n < 64; n++)
		printf(" +%ld/%ld%s", at[n], codes[n], same[n] && traps[n] == 1 ? "" : "!");
	printf("\n");
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
	sigaction(SIGTRAP, &action, NULL);
	run("all");
	stop_after = 4;
	run("four");
	return 0;
}
