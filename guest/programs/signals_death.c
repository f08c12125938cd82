// not compared: each case is a test of its own (tests/guest/test_signals.py)
/* Ways to die of a signal: signals_death CASE does one of them, without an argument it lists them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int sink;

static void handle(int signo, void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	sigaction(signo, &action, NULL);
}

static void block(int signo)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signo);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void null_pointer(void)
{
	asm volatile("movl $1, (%0)" : : "r"(8L) : "memory");
}

static void faults_again(int signo)
{
	(void)signo;
	null_pointer();
}

static void harmless(int signo)
{
	(void)signo;
}

static int deep(int n)
{
	volatile char page[4096];
	page[0] = (char)n;
	return n < 0 ? 0 : deep(n + 1) + page[0];
}

static void recurses(int signo)
{
	volatile char much[1024];
	much[0] = 1;
	raise(signo);
	sink = much[0];
}

static void *waits(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void *spins(void *unused)
{
	for (;;)
		sink++;
	return unused;
}

static void *writes_to_null(void *unused)
{
	null_pointer();
	return unused;
}

static void *terminates(void *unused)
{
	kill(getpid(), SIGTERM);
	waits(NULL);
	return unused;
}

static void wait_with(void *(*thread)(void *))
{
	pthread_t threads[4];
	pthread_create(&threads[0], NULL, waits, NULL);
	pthread_create(&threads[1], NULL, spins, NULL);
	pthread_create(&threads[2], NULL, thread, NULL);
	waits(NULL);
}

static void by_null_pointer(void) { null_pointer(); }
static void by_abort(void) { abort(); }
static void by_sigterm(void) { raise(SIGTERM); }
static void by_sigkill(void) { kill(getpid(), SIGKILL); }
static void by_sigquit(void) { raise(SIGQUIT); }
static void by_sigusr1(void) { raise(SIGUSR1); }
static void by_real_time_signal(void) { raise(SIGRTMIN + 3); }
static void by_sigsys(void) { raise(SIGSYS); }
static void by_blocked_fault(void) { block(SIGSEGV); handle(SIGSEGV, harmless, 0); null_pointer(); }
static void by_ignored_fault(void) { signal(SIGSEGV, SIG_IGN); null_pointer(); }
static void by_ignored_division(void) { signal(SIGFPE, SIG_IGN); asm volatile("div %%ecx" : : "a"(1), "d"(0), "c"(0)); }
static void by_fault_in_the_handler(void) { handle(SIGSEGV, faults_again, 0); null_pointer(); }
static void by_signal_when_unblocked(void)
{
	sigset_t set;
	block(SIGTERM);
	raise(SIGTERM);
	sigemptyset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
}
static void by_second_signal(void) { handle(SIGUSR1, harmless, (int)SA_RESETHAND); raise(SIGUSR1); raise(SIGUSR1); }
static void by_full_stack(void) { handle(SIGSEGV, harmless, 0); sink = deep(0); }
static void by_full_alternate_stack(void)
{
	/* With a guard page: a handler that runs off the stack is not on it any more and would begin at its top again. */
	char *pages = mmap(NULL, 20480, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t ss = {.ss_sp = pages + 4096, .ss_size = 16384};
	mprotect(pages, 4096, PROT_NONE);
	sigaltstack(&ss, NULL);
	handle(SIGUSR1, recurses, SA_ONSTACK | SA_NODEFER);
	raise(SIGUSR1);
}
static void by_no_stack(void)
{
	handle(SIGUSR1, harmless, 0);
	asm volatile("mov %0, %%edi; mov %1, %%esi; mov $62, %%eax; xor %%esp, %%esp; syscall"
		     : : "r"(getpid()), "i"(SIGUSR1) : "rax", "rdi", "rsi");
}
static void by_missing_restorer(void)
{
	uint64_t action[4] = {(uint64_t)harmless, 0, 0, 0};
	syscall(SYS_rt_sigaction, SIGUSR1, action, NULL, 8L);
	raise(SIGUSR1);
}
static void by_handler_nowhere(void) { handle(SIGUSR1, (void (*)(int))0x1000, 0); raise(SIGUSR1); }
static void by_handler_not_canonical(void)
{
	handle(SIGUSR1, (void (*)(int))0x8000000000000000, 0);
	handle(SIGSEGV, (void (*)(int))0x4000000000000000, SA_NODEFER);
	raise(SIGUSR1);
}
static void by_return_without_a_frame(void) { asm volatile("xor %%esp, %%esp; mov $15, %%eax; syscall" : : : "rax"); }
static void by_return_from_the_stack(void)
{
	static uint64_t zero[256];
	asm volatile("lea 8(%0), %%rsp; mov $15, %%eax; syscall" : : "r"(zero) : "rax", "memory");
}
static void by_thread_fault(void) { wait_with(writes_to_null); }
static void by_signal_from_a_thread(void) { wait_with(terminates); }
static void by_icebp(void) { asm volatile(".byte 0xf1"); }

#define CASE(name) {#name, by_##name}
static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	CASE(null_pointer), CASE(abort), CASE(sigterm), CASE(sigkill), CASE(sigquit), CASE(sigusr1), CASE(real_time_signal),
	CASE(sigsys), CASE(blocked_fault), CASE(ignored_fault), CASE(ignored_division), CASE(fault_in_the_handler),
	CASE(signal_when_unblocked), CASE(second_signal), CASE(full_stack), CASE(full_alternate_stack), CASE(no_stack),
	CASE(missing_restorer), CASE(handler_nowhere), CASE(handler_not_canonical), CASE(return_without_a_frame),
	CASE(return_from_the_stack), CASE(thread_fault), CASE(signal_from_a_thread), CASE(icebp),
};

int main(int argc, char **argv)
{
	for (unsigned n = 0; n < sizeof cases / sizeof *cases; n++) {
		if (argc == 1) {
			puts(cases[n].name);
		} else if (!strcmp(argv[1], cases[n].name)) {
			cases[n].run();
			return 99; /* it should have died */
		}
	}
	return argc != 1;
}
