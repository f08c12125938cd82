/* CPU exceptions that a handler catches: signal, si_code, si_addr and what the context says; recovered by siglongjmp or
 * by moving RIP on. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static const char *doing;
static char *page;
static volatile int skip; /* bytes to go on behind, 0: siglongjmp */

static const char *address(const void *at, uint64_t rip)
{
	static char text[64];
	if ((uint64_t)at == rip)
		return "rip";
	if (page && (uint64_t)at - (uint64_t)page < 8192)
		snprintf(text, sizeof text, "page+%ld", (long)((char *)at - page));
	else
		snprintf(text, sizeof text, "%#lx", (long)at);
	return text;
}

static void caught(int signo, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	sigset_t now;
	sigprocmask(SIG_BLOCK, NULL, &now);
	printf("%s: %s code %d addr %s", doing, sigabbrev_np(signo), info->si_code,
	       info->si_code > 0 ? address(info->si_addr, (uint64_t)regs[REG_RIP]) : "none");
	printf(" trapno %lld err %#llx blocked %d", regs[REG_TRAPNO], regs[REG_ERR], sigismember(&now, signo));
	if (regs[REG_TRAPNO] == 14)
		printf(" cr2 %d", regs[REG_CR2] == (greg_t)info->si_addr);
	printf("\n");
	if (!skip)
		siglongjmp(back, 1);
	regs[REG_RIP] += skip;
	regs[REG_RAX] = 77;
}

#define TRY(name, statement) \
	do { \
		doing = name; \
		if (!sigsetjmp(back, 1)) { \
			statement; \
			printf("%s: nothing happened\n", name); \
		} \
	} while (0)

/* Two bytes: movb (%rdi), %al */
static int load(const void *at)
{
	int value;
	asm volatile("xor %%eax, %%eax; movb (%%rdi), %%al" : "=a"(value) : "D"(at) : "memory");
	return value;
}

static void store(void *at)
{
	asm volatile("movb $1, (%0)" : : "r"(at) : "memory");
}

static void divide(int by)
{
	asm volatile("xor %%edx, %%edx; mov $1, %%eax; idivl %0" : : "r"(by) : "eax", "edx", "cc");
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
	int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
	for (unsigned n = 0; n < sizeof signals / sizeof *signals; n++)
		sigaction(signals[n], &action, NULL);
	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(page, 0xc3, 8192);
	mprotect(page, 4096, PROT_READ);

	TRY("read nothing", load((void *)0x10));
	TRY("write nothing", store((void *)0x10));
	TRY("run nothing", ((void (*)(void))0x10)());
	TRY("write a read-only page", store(page + 5));
	TRY("run a page without PROT_EXEC", ((void (*)(void))(uintptr_t)(page + 6))());
	mprotect(page, 4096, PROT_NONE);
	TRY("read PROT_NONE", load(page + 7));
	munmap(page + 4096, 4096);
	TRY("read what was unmapped", load(page + 4096));
	TRY("write a kernel address", store((void *)0xffff888000000000));
	TRY("read a non-canonical address", load((void *)0x8000000000000000));
	TRY("divide by zero", divide(0));
	TRY("ud2", asm volatile("ud2"));
	TRY("int3", asm volatile("int3"));
	TRY("hlt", asm volatile("hlt"));
	TRY("in", asm volatile("in $0x80, %%al" : : : "rax"));

	skip = 2;
	doing = "read nothing and go on";
	printf("gone on with %d\n", load((void *)0x20));
	doing = "ud2 and go on";
	int value = 0;
	asm volatile("ud2" : "+a"(value));
	printf("gone on with %d\n", value);
	skip = 0;

	/* A system call's bad pointer is an error and no signal. */
	long got = syscall(SYS_rt_sigprocmask, 0, (void *)0x10, NULL, 8L);
	printf("a bad pointer in a call: %ld %s\n", got, strerrorname_np(errno));
	/* The context of a later signal still tells of the last exception. */
	TRY("sent after all these", raise(SIGILL));
	return 0;
}
