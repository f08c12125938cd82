/* Clocks and sleeping: results, errors, and that nothing ends early. */
#include "say.h"

#include <sys/time.h>
#include <sys/times.h>
#include <sys/timex.h>

#define MS 1000000LL
#define BURN (200 * MS) /* much more than the start and end of a thread costs on the slowest machine */

static struct timespec out, in;
static char *bad;

static long gettime(int clock, void *at)
{
	return syscall(SYS_clock_gettime, clock, at);
}

static long getres(int clock, void *at)
{
	return syscall(SYS_clock_getres, clock, at);
}

static long sleeps(int clock, int flags, const void *request, void *remain)
{
	return syscall(SYS_clock_nanosleep, clock, flags, request, remain);
}

static int cpu_clock(int pid, int thread, int which)
{
	return (~(unsigned)pid << 3) | (thread ? 4 : 0) | which;
}

static void reading(void)
{
	static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID,
		CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI };
	static const int none[] = { 10, 12, 15, 24, 100, -1, -3, -5, -9, 0x7fffffff };

	for (unsigned i = 0; i < sizeof(clocks) / sizeof(*clocks); i++) {
		long long before = now_ns(clocks[i]);

		printf("clock %d: %ld %ld %ld", clocks[i], gettime(clocks[i], bad), getres(clocks[i], &out), getres(clocks[i], NULL));
		printf(", %ld.%09ld, goes on: %d\n", out.tv_sec, out.tv_nsec, now_ns(clocks[i]) >= before);
	}
	for (unsigned i = 0; i < sizeof(none) / sizeof(*none); i++) {
		SAY(gettime(none[i], &out));
		SAY(getres(none[i], &out));
		SAY(getres(none[i], NULL));
		SAY(sleeps(none[i], 0, &in, NULL));
	}
	SAY(gettime(CLOCK_REALTIME, NULL));
	SAY(getres(CLOCK_REALTIME, bad));
	printf("coarse behind fine: %d\n", now_ns(CLOCK_MONOTONIC_COARSE) <= now_ns(CLOCK_MONOTONIC));
	printf("boot before monotonic: %d\n", now_ns(CLOCK_MONOTONIC) <= now_ns(CLOCK_BOOTTIME));
	printf("TAI in whole seconds: %d\n",
	       llabs((now_ns(CLOCK_TAI) - now_ns(CLOCK_REALTIME) + 50 * MS) % (1000 * MS)) < 100 * MS);
}

static void *burns(void *unused)
{
	long long until = now_ns(CLOCK_THREAD_CPUTIME_ID) + BURN;

	(void)unused;
	while (now_ns(CLOCK_THREAD_CPUTIME_ID) < until)
		;
	return (void *)(intptr_t)(now_ns(CLOCK_THREAD_CPUTIME_ID) >= BURN);
}

static void cpu_time(void)
{
	long long process = now_ns(CLOCK_PROCESS_CPUTIME_ID), thread = now_ns(CLOCK_THREAD_CPUTIME_ID);
	int pid = getpid(), tid = syscall(SYS_gettid);

	printf("burnt: %ld\n", join(start(burns, NULL)));
	printf("the process's clock: %d\n", now_ns(CLOCK_PROCESS_CPUTIME_ID) - process >= BURN);
	printf("not the thread's: %d\n", now_ns(CLOCK_THREAD_CPUTIME_ID) - thread < BURN);
	for (int which = 0; which < 3; which++) {
		SAY(gettime(cpu_clock(0, 0, which), &out));
		SAY(gettime(cpu_clock(0, 1, which), &out));
		SAY(gettime(cpu_clock(pid, 0, which), &out));
		SAY(gettime(cpu_clock(tid, 1, which), &out));
		SAY(getres(cpu_clock(pid, 0, which), &out));
		printf("resolution: %ld\n", out.tv_nsec);
	}
	SAY(gettime(cpu_clock(0x1ffffff, 0, 2), &out));
	SAY(gettime(cpu_clock(0x1ffffff, 1, 2), &out));
	SAY(getres(cpu_clock(0x1ffffff, 0, 2), NULL));
	SAY(sleeps(cpu_clock(0, 1, 2), TIMER_ABSTIME, &in, NULL));
	SAY(sleeps(cpu_clock(tid, 1, 2), TIMER_ABSTIME, &in, NULL));
	SAY(sleeps(cpu_clock(0x1ffffff, 0, 2), TIMER_ABSTIME, &in, NULL));
	SAY(sleeps(cpu_clock(pid, 0, 2), TIMER_ABSTIME, &in, NULL));
	SAY(sleeps(CLOCK_PROCESS_CPUTIME_ID, TIMER_ABSTIME, &in, NULL));
}

static volatile int slept;

static void *until_cpu_time(void *unused)
{
	long long at = now_ns(CLOCK_PROCESS_CPUTIME_ID) + 15 * MS;
	struct timespec until = { at / 1000000000, at % 1000000000 };
	long result = sleeps(CLOCK_PROCESS_CPUTIME_ID, TIMER_ABSTIME, &until, NULL);

	(void)unused;
	slept = 1;
	return (void *)(intptr_t)(result ? -errno : now_ns(CLOCK_PROCESS_CPUTIME_ID) >= at);
}

static void sleeping(void)
{
	static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI };
	pthread_t thread;

	for (unsigned i = 0; i < 4; i++) {
		long long before = now_ns(clocks[i]), until;

		in = (struct timespec){ 0, 3 * MS };
		printf("clock %d: %ld", clocks[i], sleeps(clocks[i], 0, &in, bad));
		printf(", not early: %d", now_ns(clocks[i]) - before >= 3 * MS);
		until = now_ns(clocks[i]) + 3 * MS;
		in = (struct timespec){ until / 1000000000, until % 1000000000 };
		printf(", %ld", sleeps(clocks[i], TIMER_ABSTIME, &in, bad));
		printf(", not early: %d", now_ns(clocks[i]) >= until);
		in = (struct timespec){ 1, 0 };
		printf(", %ld\n", sleeps(clocks[i], TIMER_ABSTIME, &in, NULL));
	}
	in = (struct timespec){ 0, 0 };
	SAY(sleeps(CLOCK_MONOTONIC, 0, &in, NULL));
	SAY(sleeps(CLOCK_MONOTONIC, 0x7ffe, &in, NULL));
	SAY(sleeps(CLOCK_THREAD_CPUTIME_ID, 0, &in, NULL));
	SAY(sleeps(CLOCK_MONOTONIC_RAW, 0, &in, NULL));
	SAY(sleeps(CLOCK_REALTIME_COARSE, 0, &in, NULL));
	SAY(sleeps(CLOCK_MONOTONIC, 0, bad, NULL));
	SAY(syscall(SYS_nanosleep, &in, bad));
	SAY(syscall(SYS_nanosleep, bad, NULL));
	in.tv_nsec = 1000000000;
	SAY(sleeps(CLOCK_MONOTONIC, 0, &in, NULL));
	SAY(syscall(SYS_nanosleep, &in, NULL));
	in = (struct timespec){ -1, 0 };
	SAY(sleeps(CLOCK_MONOTONIC, TIMER_ABSTIME, &in, NULL));
	SAY(syscall(SYS_nanosleep, &in, NULL));
	thread = start(until_cpu_time, NULL);
	while (!slept)
		; /* somebody has to take CPU time */
	printf("slept by CPU time: %ld\n", join(thread));
}

static void wall_clock(void)
{
	long long before = now_ns(CLOCK_REALTIME);
	struct timeval tv = { -1, -1 };
	struct timezone tz = { -1, -1 };
	struct tms tms = { -1, -1, -1, -1 };
	long seconds = 0, told;

	SAY(syscall(SYS_gettimeofday, &tv, &tz));
	printf("in order: %d", tv.tv_sec * 1000000LL + tv.tv_usec >= before / 1000);
	printf(", zone: %d %d\n", tz.tz_minuteswest, tz.tz_dsttime);
	SAY(syscall(SYS_gettimeofday, NULL, NULL));
	SAY(syscall(SYS_gettimeofday, bad, NULL));
	SAY(syscall(SYS_gettimeofday, NULL, bad));
	told = syscall(SYS_time, &seconds);
	printf("time: %d %d\n", told == seconds, told >= before / 1000000000 - 1);
	SAY(syscall(SYS_time, bad));
	told = syscall(SYS_times, &tms);
	printf("times: %d, children %ld %ld\n", syscall(SYS_times, NULL) >= told, tms.tms_cutime, tms.tms_cstime);
	SAY(syscall(SYS_times, bad));
}

/* Only what fails alike with and without the right to set clocks. */
static void setting(void)
{
	struct timex timex = { 0 };
	struct timeval tv = { 0, 1000000 };

	SAY(syscall(SYS_clock_settime, CLOCK_MONOTONIC, &in));
	SAY(syscall(SYS_clock_settime, CLOCK_BOOTTIME, &in));
	SAY(syscall(SYS_clock_settime, CLOCK_PROCESS_CPUTIME_ID, &in));
	SAY(syscall(SYS_clock_settime, 100, &in));
	SAY(syscall(SYS_clock_settime, CLOCK_REALTIME, bad));
	in = (struct timespec){ 0, -1 };
	SAY(syscall(SYS_clock_settime, CLOCK_REALTIME, &in));
	in = (struct timespec){ -1, 0 };
	SAY(syscall(SYS_clock_settime, CLOCK_REALTIME, &in));
	SAY(syscall(SYS_settimeofday, bad, NULL));
	SAY(syscall(SYS_settimeofday, NULL, bad));
	tv.tv_usec = -1;
	SAY(syscall(SYS_settimeofday, &tv, NULL));
	tv.tv_usec = 1000001;
	SAY(syscall(SYS_settimeofday, &tv, NULL));
	tv = (struct timeval){ -1, 0 };
	SAY(syscall(SYS_settimeofday, &tv, NULL));
	SAY(syscall(SYS_adjtimex, bad));
	printf("adjtimex: %d", syscall(SYS_adjtimex, &timex) >= 0);
	printf(", %d\n", llabs(timex.time.tv_sec - (long long)time(NULL)) < 2);
	printf("clock_adjtime: %d\n", syscall(SYS_clock_adjtime, CLOCK_REALTIME, &timex) >= 0);
	SAY(syscall(SYS_clock_adjtime, CLOCK_MONOTONIC, &timex));
	SAY(syscall(SYS_clock_adjtime, 100, &timex));
	SAY(syscall(SYS_clock_adjtime, 100, bad));
	timex.modes = 0x8000;
	SAY(syscall(SYS_adjtimex, &timex));
}

int main(void)
{
	bad = bad_page();
	reading();
	cpu_time();
	sleeping();
	wall_clock();
	setting();
	return 0;
}
