/* A handler that spoils the frame it returns to: what rt_sigreturn refuses, and with which SIGSEGV; what it masks. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf back;
static const char *doing;
static void (*spoil)(ucontext_t *);
static uint64_t good_rip;
static char copy[8192] __attribute__((aligned(4096)));

static void caught(int signo, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	unsigned mxcsr;
	asm volatile("stmxcsr %0" : "=m"(mxcsr));
	printf("%s: %s code %d addr %#lx trapno %lld, rip %s, mxcsr %#x\n", doing, sigabbrev_np(signo), info->si_code,
	       info->si_code == 1 ? (long)info->si_addr : 0, regs[REG_TRAPNO],
	       (uint64_t)regs[REG_RIP] == good_rip ? "as it was" : "the bad one", mxcsr);
	siglongjmp(back, 1);
}

static void handler(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	(void)signo, (void)info;
	good_rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
	spoil(uc);
}

static void try(const char *name, void (*how)(ucontext_t *))
{
	unsigned mxcsr = 0x1f80, after;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	doing = name;
	spoil = how;
	if (!sigsetjmp(back, 1)) {
		uint64_t flags;
		sigset_t now;
		raise(SIGUSR1);
		asm volatile("pushfq; pop %0; stmxcsr %1" : "=r"(flags), "=m"(after));
		sigprocmask(SIG_BLOCK, NULL, &now);
		printf("%s: returned, iopl and nt and vm %lx, mxcsr %#x, KILL and STOP blocked %d\n", name,
		       (long)(flags & 0x27000), after, sigismember(&now, SIGKILL) + sigismember(&now, SIGSTOP));
	}
	signal(SIGHUP, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

#define REG(context, number) ((context)->uc_mcontext.gregs[number])
#define FPU(context) ((char *)(context)->uc_mcontext.fpregs)

static void put(char *at, uint64_t value, int size)
{
	memcpy(at, &value, (size_t)size);
}

static void rip_high(ucontext_t *c) { REG(c, REG_RIP) = (greg_t)0x8000000000000000; }
static void rip_just(ucontext_t *c) { REG(c, REG_RIP) = (greg_t)0x800000000000; }
static void rip_kernel(ucontext_t *c) { REG(c, REG_RIP) = (greg_t)0xffffffff81000000; }
static void rip_top(ucontext_t *c) { REG(c, REG_RIP) = (greg_t)0x7fffffffffff; }
static void rip_null(ucontext_t *c) { REG(c, REG_RIP) = 0x10; }
static void flags(ucontext_t *c) { REG(c, REG_EFL) |= 0x27000; }
static void cs_ring0(ucontext_t *c) { REG(c, REG_CSGSFS) = (REG(c, REG_CSGSFS) & ~0xffffll) | 0x10; }
static void cs_null(ucontext_t *c) { REG(c, REG_CSGSFS) &= ~0xffffll; }
static void cs_wild(ucontext_t *c) { REG(c, REG_CSGSFS) = (REG(c, REG_CSGSFS) & ~0xffffll) | 0xfff8; }
static void ss_wild(ucontext_t *c) { REG(c, REG_CSGSFS) = (REG(c, REG_CSGSFS) & 0xffffffffffff) | 0x1234ll << 48; }
static void ss_forgiven(ucontext_t *c) { ss_wild(c); c->uc_flags &= ~4ul; }
static void fp_null(ucontext_t *c) { c->uc_mcontext.fpregs = NULL; }
static void fp_wild(ucontext_t *c) { c->uc_mcontext.fpregs = (void *)0x40; }
static void fp_kernel(ucontext_t *c) { c->uc_mcontext.fpregs = (void *)0xffff888000000000; }
static void fp_noncanonical(ucontext_t *c) { c->uc_mcontext.fpregs = (void *)0x8000000000000000; }
static void fp_misaligned(ucontext_t *c)
{
	uint32_t size;
	memcpy(&size, FPU(c) + 480, 4);
	memcpy(copy + 8, FPU(c), size + 4);
	c->uc_mcontext.fpregs = (void *)(copy + 8);
}
static void mxcsr_reserved(ucontext_t *c) { put(FPU(c) + 24, 0xffffffff, 4); }
static void mxcsr_rounding(ucontext_t *c) { put(FPU(c) + 24, 0x7f80, 4); }
static void header_unknown(ucontext_t *c) { put(FPU(c) + 512, 1ull << 62 | 3, 8); }
static void header_compact(ucontext_t *c) { put(FPU(c) + 520, 1ull << 63, 8); }
static void header_reserved(ucontext_t *c) { put(FPU(c) + 560, 1, 8); }
static void no_magic1(ucontext_t *c) { put(FPU(c) + 464, 0, 4); put(FPU(c) + 24, 0x3f80, 4); }
static void no_features(ucontext_t *c) { put(FPU(c) + 472, 0, 8); put(FPU(c) + 24, 0x3f80, 4); }
static void mask(ucontext_t *c) { memset(&c->uc_sigmask, 0xff, 8); }

int main(void)
{
	static char stack[65536];
	stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaltstack(&ss, NULL);
	sigaction(SIGSEGV, &action, NULL);
	action.sa_sigaction = handler;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGUSR1, &action, NULL);

	try("rip 1 << 63", rip_high);
	try("rip 1 << 47", rip_just);
	try("rip in the kernel", rip_kernel);
	try("rip at the very top", rip_top);
	try("rip nowhere", rip_null);
	try("privileged flags", flags);
	try("cs of ring 0", cs_ring0);
	try("cs 0", cs_null);
	try("cs beyond the table", cs_wild);
	try("ss beyond the table", ss_wild);
	try("the same without UC_STRICT_RESTORE_SS", ss_forgiven);
	try("no fpstate", fp_null);
	try("fpstate nowhere", fp_wild);
	try("fpstate in the kernel", fp_kernel);
	try("fpstate not canonical", fp_noncanonical);
	try("fpstate not aligned", fp_misaligned);
	try("mxcsr reserved bits", mxcsr_reserved);
	try("mxcsr rounding", mxcsr_rounding);
	try("xstate_bv unknown", header_unknown);
	try("xcomp_bv", header_compact);
	try("xsave header reserved", header_reserved);
	try("no magic", no_magic1);
	try("no features", no_features);
	try("mask all", mask);
	return 0;
}
