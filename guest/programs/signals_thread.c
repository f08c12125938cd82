/* Signals and threads: whom a signal reaches, what each thread has of its own, what is the process's. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static pthread_barrier_t barrier;
static __thread int me;
static volatile int ran_on[16], ran, code, value;
static int pid, tids[8];
static volatile int stop;
static char altstack[65536];

static uint64_t bit(int signo)
{
	return 1ull << (signo - 1);
}

static uint64_t mask(int how, uint64_t set)
{
	uint64_t old = 0;
	syscall(SYS_rt_sigprocmask, how, &set, &old, 8L);
	return old;
}

static uint64_t pending(void)
{
	uint64_t set = 0;
	syscall(SYS_rt_sigpending, &set, 8L);
	return set;
}

static void handler(int signo, siginfo_t *info, void *context)
{
	(void)signo, (void)context;
	code = info->si_code;
	value = info->si_value.sival_int;
	ran_on[__atomic_fetch_add(&ran, 1, __ATOMIC_SEQ_CST) & 15] = me;
}

static void meet(void)
{
	pthread_barrier_wait(&barrier);
}

/* Wait, without a system call that a signal could end, until the handler has run `n` times. */
static void until_ran(int n)
{
	struct timespec tick = {0, 1000000};
	while (ran < n)
		nanosleep(&tick, NULL);
}

static void *blocker(void *unused)
{
	stack_t ss;
	(void)unused;
	me = 1;
	tids[1] = (int)syscall(SYS_gettid);
	sigaltstack(NULL, &ss);
	printf("new thread: mask %#lx, pending %#lx, alternate stack %d\n", (long)mask(SIG_BLOCK, 0), (long)pending(),
	       ss.ss_flags);
	meet(); /* 1: mask inherited */
	mask(SIG_SETMASK, bit(SIGUSR1));
	meet(); /* 2: blocks SIGUSR1 */
	meet(); /* 3: was sent one of its own, and one that is the process's */
	printf("second thread: pending %#lx\n", (long)pending());
	meet(); /* 4 */
	mask(SIG_UNBLOCK, bit(SIGUSR1));
	printf("unblocked in the second thread: ran %d on %d, code %d\n", ran, ran_on[0], code);
	meet(); /* 5 */
	while (!stop)
		;
	return NULL;
}

static void *waiter(void *argument)
{
	uint64_t set = bit(SIGUSR2) | bit(SIGRTMIN);
	siginfo_t info;
	long got = 0;
	(void)argument;
	meet();
	while (got != SIGRTMIN) {
		got = syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8L);
		printf("waiter: got %s code %d value %d\n", got == SIGUSR2 ? "USR2" : got == SIGRTMIN ? "RTMIN" : "nothing",
		       info.si_code, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
		meet();
	}
	return NULL;
}

static void *receiver(void *argument)
{
	me = (int)(long)argument;
	tids[me] = (int)syscall(SYS_gettid);
	meet();
	struct timespec tick = {0, 1000000};
	while (!stop)
		nanosleep(&tick, NULL);
	return NULL;
}

static void first_part(void)
{
	pthread_t thread;
	stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack};
	sigaltstack(&ss, NULL);
	mask(SIG_SETMASK, bit(SIGUSR2) | bit(SIGHUP));
	raise(SIGUSR2);
	pthread_barrier_init(&barrier, NULL, 2);
	pthread_create(&thread, NULL, blocker, NULL);
	meet(); /* 1 */
	meet(); /* 2 */
	mask(SIG_SETMASK, bit(SIGUSR2) | bit(SIGUSR1));
	syscall(SYS_tgkill, pid, tids[1], SIGUSR1);
	kill(pid, SIGRTMIN);
	until_ran(1);
	printf("sent to the process: ran on %d, code %d\n", ran_on[0], code);
	ran = 0;
	meet(); /* 3 */
	meet(); /* 4 */
	meet(); /* 5: the second thread has spoken */
	printf("first thread: pending %#lx\n", (long)pending());
	ran = 0;
	sigqueue(pid, SIGUSR1, (union sigval){.sival_int = 5}); /* blocked here: the other one spins, and is interrupted */
	until_ran(1);
	printf("a spinning thread takes it: on %d, code %d value %d\n", ran_on[0], code, value);
	stop = 1;
	pthread_join(thread, NULL);
	stop = 0;
}

static void waiting(void)
{
	pthread_t thread;
	mask(SIG_SETMASK, ~0ull);
	signal(SIGUSR2, SIG_IGN); /* discards what is still pending */
	signal(SIGUSR2, SIG_DFL);
	pthread_create(&thread, NULL, waiter, NULL);
	meet();
	kill(pid, SIGUSR2);
	meet();
	sigqueue(pid, SIGRTMIN, (union sigval){.sival_int = 9});
	meet();
	pthread_join(thread, NULL);
	mask(SIG_SETMASK, 0);
	printf("left pending: %#lx\n", (long)pending());
}

static void choice(void)
{
	pthread_t threads[4];
	pthread_barrier_init(&barrier, NULL, 4);
	mask(SIG_SETMASK, 0);
	for (long n = 0; n < 3; n++)
		pthread_create(&threads[n], NULL, receiver, (void *)(n + 1));
	tids[0] = (int)syscall(SYS_gettid);
	meet();
	ran = 0;
	kill(pid, SIGUSR1);
	until_ran(1);
	printf("all could take it: the first thread does, %d\n", ran_on[0]);
	for (int n = 3; n > 0; n--) {
		ran = 0;
		syscall(SYS_tgkill, pid, tids[n], SIGUSR1);
		until_ran(1);
		printf("directed to %d: ran on %d\n", n, ran_on[0]);
	}
	ran = 0;
	mask(SIG_BLOCK, bit(SIGUSR1));
	for (int n = 0; n < 5; n++) {
		kill(pid, SIGUSR1);
		until_ran(n + 1);
	}
	int elsewhere = 0;
	for (int n = 0; n < 5; n++)
		elsewhere += ran_on[n] > 0;
	printf("blocked in the first: %d of 5 ran elsewhere\n", elsewhere);
	long result = syscall(SYS_tgkill, pid, 4000000, SIGUSR1);
	printf("a thread that is not there: %ld %s\n", result, strerrorname_np(errno));
	stop = 1;
	for (int n = 0; n < 3; n++)
		pthread_join(threads[n], NULL);
	ran = 0;
	kill(pid, SIGUSR1);
	printf("alone and blocked: ran %d, pending %#lx\n", ran, (long)pending());
	mask(SIG_UNBLOCK, bit(SIGUSR1));
	printf("unblocked: ran %d on %d\n", ran, ran_on[0]);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigset_t all;
	setvbuf(stdout, NULL, _IONBF, 0);
	sigfillset(&all);
	action.sa_mask = all;
	pid = getpid();
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	mask(SIG_SETMASK, 0);
	first_part();
	waiting();
	choice();
	return 0;
}
