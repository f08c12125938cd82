/* Handlers, siginfo_t, masks, nesting, flags, alternate stacks, real-time order, sigqueue, and the errors of the calls.
 * Its output is the same on every kernel that does what the manual pages say. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static volatile int seen, depth, deepest, order[32], values[32];
static siginfo_t last;
static volatile uint64_t mask_inside;
static int pid;

static uint64_t mask(int how, uint64_t set)
{
	uint64_t old = 0;
	syscall(SYS_rt_sigprocmask, how, &set, &old, 8);
	return old;
}

static uint64_t blocked(void)
{
	return mask(SIG_BLOCK, 0);
}

static uint64_t pending(void)
{
	uint64_t set = 0;
	syscall(SYS_rt_sigpending, &set, 8);
	return set;
}

static uint64_t bit(int signo)
{
	return 1ull << (signo - 1);
}

static const char *result(long value)
{
	static char text[64];
	if (value == -1)
		snprintf(text, sizeof text, "-1 %s", strerrorname_np(errno));
	else
		snprintf(text, sizeof text, "%ld", value);
	return text;
}

static void handle(int signo, void (*handler)(int, siginfo_t *, void *), int flags, uint64_t also)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
	memcpy(&action.sa_mask, &also, 8);
	if (sigaction(signo, &action, NULL))
		printf("sigaction(%d): %s\n", signo, strerrorname_np(errno));
}

static void record(int signo, siginfo_t *info, void *context)
{
	(void)context;
	last = *info;
	mask_inside = blocked();
	order[seen] = signo;
	values[seen] = info->si_value.sival_int;
	seen++;
}

static void plain(int signo)
{
	order[seen++] = signo;
}

static void siginfo(void)
{
	signal(SIGUSR1, plain);
	raise(SIGUSR1);
	printf("plain handler: %d signal, number %d\n", seen, order[0]);
	handle(SIGUSR1, record, 0, 0);
	kill(pid, SIGUSR1);
	printf("kill: signo %d code %d errno %d pid %d uid %d\n", last.si_signo, last.si_code, last.si_errno,
	       last.si_pid == pid, last.si_uid == getuid());
	syscall(SYS_tgkill, pid, pid, SIGUSR1);
	printf("tgkill: code %d pid %d\n", last.si_code, last.si_pid == pid);
	syscall(SYS_tkill, pid, SIGUSR1);
	printf("tkill: code %d pid %d\n", last.si_code, last.si_pid == pid);
	sigqueue(pid, SIGUSR1, (union sigval){.sival_ptr = (void *)0x123456789abcdef0});
	printf("sigqueue: code %d pid %d uid %d value %p\n", last.si_code, last.si_pid == pid, last.si_uid == getuid(),
	       last.si_value.sival_ptr);
}

static void masks(void)
{
	seen = 0;
	handle(SIGUSR1, record, 0, bit(SIGUSR2) | bit(SIGKILL) | bit(40));
	mask(SIG_SETMASK, bit(SIGHUP));
	raise(SIGUSR1);
	printf("mask inside %#lx, after %#lx\n", (long)mask_inside, (long)blocked());
	handle(SIGUSR1, record, SA_NODEFER, 0);
	raise(SIGUSR1);
	printf("SA_NODEFER: mask inside %#lx\n", (long)mask_inside);
	mask(SIG_SETMASK, ~0ull);
	printf("all blocked: %#lx\n", (long)blocked());
	mask(SIG_SETMASK, 0);

	mask(SIG_BLOCK, bit(SIGUSR1));
	seen = 0;
	for (int n = 0; n < 3; n++)
		kill(pid, SIGUSR1);
	printf("three times while blocked: pending %#lx, seen %d\n", (long)pending(), seen);
	mask(SIG_UNBLOCK, bit(SIGUSR1));
	printf("unblocked: seen %d, pending %#lx\n", seen, (long)pending());

	mask(SIG_BLOCK, bit(SIGUSR1));
	kill(pid, SIGUSR1);
	signal(SIGUSR1, SIG_IGN);
	handle(SIGUSR1, record, 0, 0);
	mask(SIG_UNBLOCK, bit(SIGUSR1));
	printf("ignored while pending: seen %d\n", seen);
	mask(SIG_BLOCK, bit(SIGCHLD));
	kill(pid, SIGCHLD);
	printf("SIGCHLD by default while blocked: pending %#lx\n", (long)pending());
	handle(SIGCHLD, record, 0, 0);
	mask(SIG_UNBLOCK, bit(SIGCHLD));
	printf("and caught: seen %d\n", seen);
}

static void inner(int signo, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	printf("  inner %d, mask %#lx\n", signo, (long)blocked());
}

static void outer(int signo, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	printf("  outer %d, mask %#lx\n", signo, (long)blocked());
	if (depth++ == 0)
		raise(signo); /* stays pending until this returns */
	raise(SIGUSR2);
	printf("  outer ends, pending %#lx\n", (long)pending());
}

static void recurse(int signo, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	if (++depth > deepest)
		deepest = depth;
	if (depth < 4)
		raise(signo);
	depth--;
}

static void nesting(void)
{
	printf("nested:\n");
	handle(SIGUSR2, inner, 0, 0);
	handle(SIGUSR1, outer, 0, 0);
	raise(SIGUSR1);
	printf("two at once, the lower number is entered first and so runs last:\n");
	handle(SIGUSR1, inner, 0, 0);
	mask(SIG_BLOCK, bit(SIGUSR1) | bit(SIGUSR2));
	kill(pid, SIGUSR2);
	kill(pid, SIGUSR1);
	mask(SIG_UNBLOCK, bit(SIGUSR1) | bit(SIGUSR2));
	printf("the same with sa_mask:\n");
	handle(SIGUSR1, inner, 0, bit(SIGUSR2));
	mask(SIG_BLOCK, bit(SIGUSR1) | bit(SIGUSR2));
	kill(pid, SIGUSR2);
	kill(pid, SIGUSR1);
	mask(SIG_UNBLOCK, bit(SIGUSR1) | bit(SIGUSR2));
}

static void flags(void)
{
	depth = 0;
	handle(SIGUSR2, recurse, SA_NODEFER, 0);
	raise(SIGUSR2);
	printf("SA_NODEFER: %d deep\n", deepest);
	handle(SIGUSR2, record, SA_RESETHAND, 0);
	raise(SIGUSR2);
	struct sigaction action;
	sigaction(SIGUSR2, NULL, &action);
	printf("SA_RESETHAND: %s, flags %#x\n", action.sa_handler == SIG_DFL ? "SIG_DFL" : "a handler",
	       (unsigned)action.sa_flags & ~0x4000000u);
	struct {
		uint64_t handler, flags, restorer, mask;
	} all = {1, ~0ull, 0x1234, ~0ull}, old;
	syscall(SYS_rt_sigaction, SIGUSR2, &all, NULL, 8L);
	syscall(SYS_rt_sigaction, SIGUSR2, NULL, &old, 8L);
	printf("all flags: kept %#lx, restorer %#lx, mask %#lx\n", (long)old.flags, (long)old.restorer, (long)old.mask);
}

static char altstack[65536] __attribute__((aligned(16)));
static volatile uintptr_t where;
static volatile int flags_inside, change;

static void on_stack(int signo, siginfo_t *info, void *context)
{
	(void)signo, (void)info;
	stack_t ss, off = {.ss_flags = SS_DISABLE};
	ucontext_t *uc = context;
	where = (uintptr_t)__builtin_frame_address(0);
	sigaltstack(NULL, &ss);
	flags_inside = ss.ss_flags;
	change = sigaltstack(&off, NULL) ? errno : 0;
	printf("  uc_stack: sp %d size %zu flags %#x\n", uc->uc_stack.ss_sp == altstack, uc->uc_stack.ss_size,
	       (unsigned)uc->uc_stack.ss_flags);
}

static void show_stack(const char *title)
{
	stack_t after;
	raise(SIGUSR2);
	sigaltstack(NULL, &after);
	printf("%s: on it %d, aligned %d, flags inside %d, disabling it %s, flags after %#x\n", title,
	       where - (uintptr_t)altstack < sizeof altstack, where % 16 == 0, flags_inside,
	       change ? strerrorname_np(change) : "works", (unsigned)after.ss_flags);
}

static void alternate(void)
{
	stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack}, old;
	sigaltstack(NULL, &old);
	printf("no alternate stack: flags %d\n", old.ss_flags);
	sigaltstack(&ss, NULL);
	handle(SIGUSR2, on_stack, SA_ONSTACK, 0);
	show_stack("SA_ONSTACK");
	handle(SIGUSR2, on_stack, 0, 0);
	show_stack("without");
	ss.ss_flags = (int)SS_AUTODISARM;
	sigaltstack(&ss, NULL);
	handle(SIGUSR2, on_stack, SA_ONSTACK, 0);
	show_stack("SS_AUTODISARM");
	ss.ss_flags = 0;
	ss.ss_size = 2047;
	printf("too small: %s\n", result(sigaltstack(&ss, NULL)));
	ss.ss_size = sizeof altstack;
	ss.ss_flags = 5;
	printf("bad flags: %s\n", result(sigaltstack(&ss, NULL)));
	printf("bad pointer: %s\n", result(syscall(SYS_sigaltstack, 16L, NULL)));
	ss.ss_flags = SS_DISABLE;
	printf("disable: %s\n", result(sigaltstack(&ss, NULL)));
}

static void real_time(void)
{
	int first = SIGRTMIN;
	uint64_t set = bit(first) | bit(first + 1) | bit(first + 2) | bit(SIGUSR1);
	for (int n = 0; n < 3; n++)
		handle(first + n, record, 0, set);
	handle(SIGUSR1, record, 0, set);
	mask(SIG_BLOCK, set);
	seen = 0;
	for (int n = 0; n < 9; n++)
		sigqueue(pid, first + 2 - n % 3, (union sigval){.sival_int = n});
	sigqueue(pid, SIGUSR1, (union sigval){.sival_int = 100});
	sigqueue(pid, SIGUSR1, (union sigval){.sival_int = 101});
	mask(SIG_UNBLOCK, set);
	printf("real-time order:");
	for (int n = 0; n < seen; n++)
		printf(" %d:%d", order[n] == SIGUSR1 ? -1 : order[n] - first, values[n]);
	printf("\n");
}

static void waiting(void)
{
	int first = SIGRTMIN;
	uint64_t set = bit(first) | bit(SIGUSR1);
	siginfo_t info;
	struct timespec none = {0, 0}, bad = {0, 1000000000};
	mask(SIG_BLOCK, set);
	sigqueue(pid, first, (union sigval){.sival_int = 7});
	kill(pid, SIGUSR1);
	long got = syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8L);
	printf("sigwaitinfo: %d code %d\n", got == SIGUSR1, info.si_code);
	got = syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8L);
	printf("sigtimedwait: %d value %d\n", got == first, info.si_value.sival_int);
	printf("nothing left: %s\n", result(syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8L)));
	printf("bad time: %s\n", result(syscall(SYS_rt_sigtimedwait, &set, &info, &bad, 8L)));
	printf("bad set: %s\n", result(syscall(SYS_rt_sigtimedwait, 16L, &info, &none, 8L)));
	kill(pid, SIGUSR1);
	handle(SIGUSR1, record, 0, 0);
	seen = 0;
	uint64_t open = bit(SIGHUP);
	long back = syscall(SYS_rt_sigsuspend, &open, 8L);
	printf("sigsuspend: %s, seen %d, mask inside %#lx, after %d\n", result(back), seen, (long)mask_inside,
	       blocked() == set);
	mask(SIG_SETMASK, 0);
}

static void errors(void)
{
	char info[128] = {0};
	uint64_t action[4] = {1, 0, 0, 0};
	printf("kill: no process %s,", result(kill(4000000, 0)));
	printf(" no such signal %s,", result(kill(pid, 65)));
	printf(" neither %s,", result(kill(4000000, 65)));
	printf(" itself 0 %s\n", result(kill(pid, 0)));
	printf("kill: INT_MIN %s,", result(kill(-2147483647 - 1, 0)));
	printf(" no group %s\n", result(kill(-4000000, 0)));
	printf("tgkill: %s,", result(syscall(SYS_tgkill, pid, 4000000, 0)));
	printf(" %s,", result(syscall(SYS_tgkill, pid, 0, 0)));
	printf(" %s,", result(syscall(SYS_tgkill, 0, pid, 0)));
	printf(" %s\n", result(syscall(SYS_tgkill, pid, pid, -1)));
	printf("tkill: %s,", result(syscall(SYS_tkill, -1, 0)));
	printf(" %s\n", result(syscall(SYS_tkill, 4000000, 0)));
	printf("rt_sigqueueinfo: %s,", result(syscall(SYS_rt_sigqueueinfo, 1, 0, info)));
	printf(" %s,", result(syscall(SYS_rt_sigqueueinfo, pid, 0, 16)));
	printf(" itself %s,", result(syscall(SYS_rt_sigqueueinfo, pid, 0, info)));
	info[8] = -100;
	info[9] = info[10] = info[11] = -1;
	info[127] = 1;
	printf(" too much %s\n", result(syscall(SYS_rt_sigqueueinfo, pid, 0, info)));
	printf("rt_sigaction: SIGKILL %s,", result(syscall(SYS_rt_sigaction, SIGKILL, action, NULL, 8L)));
	printf(" 0 %s,", result(syscall(SYS_rt_sigaction, 0, NULL, action, 8L)));
	printf(" 65 %s,", result(syscall(SYS_rt_sigaction, 65, NULL, action, 8L)));
	printf(" size %s,", result(syscall(SYS_rt_sigaction, SIGUSR1, NULL, action, 4L)));
	printf(" pointer %s\n", result(syscall(SYS_rt_sigaction, SIGUSR1, 16L, NULL, 8L)));
	printf("rt_sigprocmask: how %s,", result(syscall(SYS_rt_sigprocmask, 3, action, NULL, 8L)));
	printf(" how without a set %s,", result(syscall(SYS_rt_sigprocmask, 3, NULL, NULL, 8L)));
	printf(" size %s,", result(syscall(SYS_rt_sigprocmask, 0, action, NULL, 16L)));
	printf(" pointer %s\n", result(syscall(SYS_rt_sigprocmask, 0, 16L, NULL, 8L)));
	printf("rt_sigpending: %s,", result(syscall(SYS_rt_sigpending, action, 9L)));
	printf(" short %s,", result(syscall(SYS_rt_sigpending, action, 4L)));
	printf(" pointer %s\n", result(syscall(SYS_rt_sigpending, 16L, 8L)));
	printf("rt_sigsuspend: %s,", result(syscall(SYS_rt_sigsuspend, action, 4L)));
	printf(" pointer %s\n", result(syscall(SYS_rt_sigsuspend, 16L, 8L)));
	printf("restart_syscall: %s\n", result(syscall(SYS_restart_syscall)));
}

int main(void)
{
	pid = getpid();
	siginfo();
	masks();
	nesting();
	flags();
	alternate();
	real_time();
	waiting();
	errors();
	return 0;
}
