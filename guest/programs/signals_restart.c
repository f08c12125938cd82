/* Calls that a signal cuts short: which fail with EINTR, which go on, with and without SA_RESTART.
 *
 * A second thread signals the first one again and again until the call is over, or, where the call is to go on, some
 * times and then ends it. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int handled, done, signo = SIGUSR1, times;
static int word, pid, tid;
static struct timespec rest;
static const struct timespec long_time = {1000, 0}, tick = {0, 10000000};

static void handler(int number)
{
	(void)number;
	handled++;
}

/* Signals until the call is over; with `times`, so often, and then wakes the futex. */
static void *signaller(void *unused)
{
	(void)unused;
	for (int n = 0; !done && (!times || n < times); n++) {
		nanosleep(&tick, NULL);
		syscall(SYS_tgkill, pid, tid, signo);
	}
	if (times) {
		nanosleep(&tick, NULL);
		word = 1;
		while (!done) {
			syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
			nanosleep(&tick, NULL);
		}
	}
	return NULL;
}

static long sleeps(void)
{
	return syscall(SYS_nanosleep, &long_time, &rest);
}

static long sleeps_until(void)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 1000;
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static long pauses(void)
{
	return syscall(SYS_pause);
}

static long suspends(void)
{
	uint64_t set = 1ull << 40;
	return syscall(SYS_rt_sigsuspend, &set, 8L);
}

static long waits(void)
{
	uint64_t set = 1ull << (SIGUSR2 - 1);
	return syscall(SYS_rt_sigtimedwait, &set, NULL, &long_time, 8L);
}

static long waits_for_ever(void)
{
	uint64_t set = 1ull << (SIGUSR2 - 1);
	return syscall(SYS_rt_sigtimedwait, &set, NULL, NULL, 8L);
}

static long futex(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
}

static long futex_timed(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time, NULL, 0);
}

static long futex_until(void)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 1000;
	return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &until, NULL, -1);
}

static void try(const char *name, long (*call)(void), int flags, int how_often)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	pthread_t thread;
	handled = done = word = 0;
	times = how_often;
	rest.tv_sec = 0;
	sigaction(SIGUSR1, &action, NULL);
	pthread_create(&thread, NULL, signaller, NULL);
	errno = 0;
	long result = call();
	int error = errno;
	done = 1;
	pthread_join(thread, NULL);
	uint64_t mask = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8L);
	printf("%s%s: %ld %s, handler ran %d, mask %#lx", name, flags & SA_RESTART ? " with SA_RESTART" : "", result,
	       error ? strerrorname_np(error) : "0", handled > 0, (long)mask);
	if (call == sleeps)
		printf(", %d s and more left", rest.tv_sec > 900 ? 900 : 0);
	printf("\n");
}

/* A signal that nobody handles does not even end a short sleep early. */
static void ignored(int number, const char *name)
{
	struct timespec before, after, half = {0, 100000000};
	pthread_t thread;
	signo = number;
	times = 0;
	done = 0;
	pthread_create(&thread, NULL, signaller, NULL);
	clock_gettime(CLOCK_MONOTONIC, &before);
	long result = syscall(SYS_nanosleep, &half, &rest);
	clock_gettime(CLOCK_MONOTONIC, &after);
	done = 1;
	pthread_join(thread, NULL);
	long long ns = (after.tv_sec - before.tv_sec) * 1000000000ll + after.tv_nsec - before.tv_nsec;
	printf("%s while asleep: %ld, slept long enough %d\n", name, result, ns >= 100000000);
	signo = SIGUSR1;
}

int main(void)
{
	pid = getpid();
	tid = (int)syscall(SYS_gettid);
	for (int flags = 0;; flags = SA_RESTART) {
		try("nanosleep", sleeps, flags, 0);
		try("clock_nanosleep", sleeps_until, flags, 0);
		try("pause", pauses, flags, 0);
		try("rt_sigsuspend", suspends, flags, 0);
		try("rt_sigtimedwait", waits, flags, 0);
		try("rt_sigtimedwait without a time", waits_for_ever, flags, 0);
		if (flags)
			break;
		try("futex", futex, flags, 0);
		try("futex with a time", futex_timed, flags, 0);
	}
	try("futex", futex, SA_RESTART, 3);
	try("futex with a time", futex_timed, SA_RESTART, 0);
	try("futex until a time", futex_until, SA_RESTART, 0);
	ignored(SIGCHLD, "SIGCHLD");
	ignored(SIGURG, "SIGURG");
	signal(SIGUSR2, SIG_IGN);
	ignored(SIGUSR2, "SIGUSR2, ignored,");
	ignored(SIGCONT, "SIGCONT");
	return 0;
}
