/*
 * vdso_check vdso.so: runs the vDSO in this process and checks what
 * it says against the host's clocks. Prints what is wrong, if anything.
 *
 * The page of clock data is ours to write. One that says 2001 tells where an
 * answer came from: the page (2001), or the real system call (now).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "../../guest/vdso/vvar.h"

#define SEC 1000000000LL
#define YEAR (365 * 86400 * SEC)
#define YEAR_2001 (978307200 * SEC)
#define COARSE 4000000
#define LIFE (60 * SEC) /* of a page: so long that no stall of the test makes it stale */

static volatile struct vvar *page;
static const char *image;
static int failures;

static int (*vdso_clock_gettime)(int, struct timespec *);
static int (*vdso_gettimeofday)(struct timeval *, struct timezone *);
static long (*vdso_time)(long *);
static int (*vdso_clock_getres)(int, struct timespec *);
static long (*vdso_getcpu)(unsigned *, unsigned *, void *);

static const int fine[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI };
static const int coarse[] = { CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE };

static void wrong(const char *format, ...)
{
	va_list arguments;

	failures++;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static long long host_ns(int clock)
{
	struct timespec ts;

	if (clock_gettime(clock, &ts))
		die("clock_gettime");
	return ts.tv_sec * SEC + ts.tv_nsec;
}

static long long vdso_ns(int clock)
{
	struct timespec ts = { -1, -1 };
	int result = vdso_clock_gettime(clock, &ts);

	if (result || ts.tv_nsec < 0 || ts.tv_nsec >= SEC)
		wrong("clock %d: result %d, %lld s %lld ns", clock, result, (long long)ts.tv_sec, (long long)ts.tv_nsec);
	return ts.tv_sec * SEC + ts.tv_nsec;
}

/* A symbol's address by its name, found as a libc would, from the image in memory. */
static void *symbol(const char *name)
{
	const Elf64_Ehdr *header = (const void *)image;
	const Elf64_Phdr *segment = (const void *)(image + header->e_phoff);
	const Elf64_Dyn *dynamic = NULL;
	const Elf64_Sym *symbols = NULL;
	const char *strings = NULL;
	const uint32_t *hash = NULL;

	for (int i = 0; i < header->e_phnum; i++)
		if (segment[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(image + segment[i].p_vaddr);
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const void *)(image + dynamic->d_un.d_ptr);
		if (dynamic->d_tag == DT_STRTAB)
			strings = image + dynamic->d_un.d_ptr;
		if (dynamic->d_tag == DT_HASH)
			hash = (const void *)(image + dynamic->d_un.d_ptr);
	}
	for (uint32_t i = 0; symbols && strings && hash && i < hash[1]; i++)
		if (!strcmp(strings + symbols[i].st_name, name))
			return (void *)(image + symbols[i].st_value);
	printf("no symbol %s\n", name);
	exit(2);
}

static void load(const char *path)
{
	struct stat status;
	char *memory;
	size_t size;
	int file = open(path, O_RDONLY);

	if (file < 0 || fstat(file, &status))
		die(path);
	size = (status.st_size + 4095) & ~4095UL;
	memory = mmap(NULL, VVAR_SIZE + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	if (read(file, memory + VVAR_SIZE, status.st_size) != status.st_size)
		die("read");
	if (mprotect(memory + VVAR_SIZE, size, PROT_READ | PROT_EXEC))
		die("mprotect");
	page = (volatile struct vvar *)memory;
	image = memory + VVAR_SIZE;
	vdso_clock_gettime = symbol("__vdso_clock_gettime");
	vdso_gettimeofday = symbol("__vdso_gettimeofday");
	vdso_time = symbol("__vdso_time");
	vdso_clock_getres = symbol("__vdso_clock_getres");
	vdso_getcpu = symbol("__vdso_getcpu");
}

/* The TSC and a clock of the host at one instant, as near as several tries get. */
static void sample(int clock, uint64_t *tsc, long long *ns)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 50; i++) {
		uint64_t before = rdtsc();
		long long now = host_ns(clock);
		uint64_t took = rdtsc() - before;

		if (took < best) {
			best = took;
			*tsc = before + took / 2;
			*ns = now;
		}
	}
}

/* Fills the page from the host's clocks: base_ns[] true at one TSC, the scale measured over 100 ms. */
static double fill(void)
{
	uint64_t tsc0, tsc1;
	long long ns0, ns1;
	double cycles_per_ns;

	sample(CLOCK_MONOTONIC_RAW, &tsc0, &ns0);
	do
		sample(CLOCK_MONOTONIC_RAW, &tsc1, &ns1);
	while (ns1 - ns0 < SEC / 10);
	cycles_per_ns = (double)(tsc1 - tsc0) / (ns1 - ns0);
	page->mode = VVAR_TSC;
	page->cycle_limit = cycles_per_ns * LIFE;
	page->shift = 32;
	do /* the bound that vvar.h names */
		page->mult = (1UL << --page->shift) / cycles_per_ns;
	while ((double)page->cycle_limit * page->mult >= 0x1p64);
	page->resolution_ns = 1;
	page->coarse_ns = COARSE;
	for (int i = 0; i < VVAR_CLOCKS; i++) {
		uint64_t tsc;
		long long ns;

		sample(fine[i], &tsc, &ns);
		if (i == 0)
			page->cycle_last = tsc;
		page->base_ns[i] = ns - (long long)((tsc - page->cycle_last) / cycles_per_ns);
	}
	return cycles_per_ns;
}

static int near(long long a, long long b, long long by)
{
	return a - b <= by && b - a <= by;
}

static long long vdso_timeofday(void)
{
	struct timeval tv = { -1, -1 };

	if (vdso_gettimeofday(&tv, NULL) || tv.tv_usec < 0 || tv.tv_usec >= 1000000)
		wrong("gettimeofday: %lld %lld", (long long)tv.tv_sec, (long long)tv.tv_usec);
	return tv.tv_sec * SEC + tv.tv_usec * 1000LL;
}

/* Every clock agrees with the host's and none goes back. */
static void check_clocks(void)
{
	const long long tolerance = SEC / 1000;
	long long last[16] = { 0 };

	for (int round = 0; round < 20000; round++)
		for (int i = 0; i < VVAR_CLOCKS; i++) {
			int clock = fine[i];
			long long before = host_ns(clock), now = vdso_ns(clock), after = host_ns(clock);

			if (now < before - tolerance || now > after + tolerance) {
				wrong("clock %d: %lld is not within %lld and %lld", clock, now, before, after);
				return;
			}
			if (now < last[clock]) {
				wrong("clock %d went back from %lld to %lld", clock, last[clock], now);
				return;
			}
			last[clock] = now;
		}
	for (int round = 0; round < 20000; round++) {
		long long before = vdso_ns(CLOCK_REALTIME), now = vdso_timeofday(), after = vdso_ns(CLOCK_REALTIME);

		if (now <= before - 1000 || now > after) {
			wrong("gettimeofday: %lld is not within %lld and %lld", now, before, after);
			return;
		}
	}
	for (int round = 0; round < 20000; round++)
		for (int i = 0; i < 2; i++) {
			int clock = coarse[i], of = i ? CLOCK_MONOTONIC : CLOCK_REALTIME;
			long long before = vdso_ns(of), now = vdso_ns(clock), after = vdso_ns(of);

			if (now % COARSE || now <= before - COARSE || now > after || now < last[clock]) {
				wrong("coarse clock %d: %lld, fine %lld and %lld", clock, now, before, after);
				return;
			}
			last[clock] = now;
		}
}

/*
 * All ways to ask say what the page does, `later` nanoseconds after it was
 * written (each clock is in a year of its own there), or what the host says.
 */
static void check_source(const char *when, int from_page, long long later)
{
	const long long tolerance = LIFE / 6;
	long long want = from_page ? YEAR_2001 + later : host_ns(CLOCK_REALTIME);
	long stored = -1;

	for (int i = 0; i < VVAR_CLOCKS; i++) {
		long long at = from_page ? want + i * YEAR : host_ns(fine[i]);

		if (!near(vdso_ns(fine[i]), at, tolerance))
			wrong("%s: clock %d says %lld, not %lld", when, fine[i], vdso_ns(fine[i]), at);
	}
	for (int i = 0; i < 2; i++) {
		long long at = from_page ? want + i * YEAR : host_ns(coarse[i]);

		if (!near(vdso_ns(coarse[i]), at, tolerance))
			wrong("%s: clock %d says %lld, not %lld", when, coarse[i], vdso_ns(coarse[i]), at);
	}
	if (!near(vdso_timeofday(), want, tolerance))
		wrong("%s: gettimeofday says %lld, not %lld", when, vdso_timeofday(), want);
	if (!near(vdso_time(NULL) * SEC, want, tolerance) || vdso_time(&stored) != stored)
		wrong("%s: time says %ld and stores %ld, not %lld", when, vdso_time(NULL), stored, want / SEC);
}

static void check_getres(const char *when, int from_page)
{
	static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI,
		CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID };

	for (unsigned i = 0; i < sizeof(clocks) / sizeof(*clocks); i++) {
		struct timespec host, ours = { -1, -1 };

		if (clock_getres(clocks[i], &host))
			die("clock_getres");
		if (from_page && i < 7)
			host.tv_nsec = i < VVAR_CLOCKS ? 123 : 456;
		if (vdso_clock_getres(clocks[i], &ours) || ours.tv_sec != host.tv_sec || ours.tv_nsec != host.tv_nsec)
			wrong("%s: resolution of clock %d is %ld, not %ld", when, clocks[i], ours.tv_nsec, host.tv_nsec);
	}
	if (vdso_clock_getres(CLOCK_REALTIME, NULL) != 0 || vdso_clock_getres(99, NULL) != -EINVAL)
		wrong("%s: clock_getres without a result", when);
}

/* Which of page and system call answers. */
static void check_sources(double cycles_per_ns)
{
	for (int i = 0; i < VVAR_CLOCKS; i++)
		page->base_ns[i] = YEAR_2001 + i * YEAR;
	page->resolution_ns = 123;
	page->coarse_ns = 456;
	page->cycle_last = rdtsc();
	check_source("fresh page", 1, 0);
	check_getres("fresh page", 1);

	page->cycle_last = rdtsc() - page->cycle_limit - 1;
	check_source("stale page", 0, 0);
	page->cycle_last = rdtsc() - page->cycle_limit / 2;
	check_source("page at half its life", 1, LIFE / 2);
	page->cycle_last = rdtsc() + (uint64_t)(LIFE * cycles_per_ns);
	check_source("page from the future", 0, 0);
	page->cycle_last = UINT64_MAX / 2 + rdtsc();
	check_source("page from far off", 0, 0);

	page->cycle_last = rdtsc();
	page->seq = 1;
	check_source("page being written", 0, 0);
	page->seq = 2;
	page->mode = VVAR_SYSCALL;
	check_source("page switched off", 0, 0);
	check_getres("page switched off", 0);
	page->mode = VVAR_TSC;
}

/* A TSC a little below cycle_last reads as no time passed. */
static void check_slightly_negative(void)
{
	for (int i = 0; i < 1000; i++) {
		page->cycle_last = rdtsc() + 20000;
		if (vdso_ns(CLOCK_REALTIME) != YEAR_2001)
			continue; /* descheduled in between, or so slow that the TSC has passed it */
		return;
	}
	wrong("a TSC slightly below cycle_last is not taken as it");
}

static void check_system_calls(void)
{
	struct timespec ts = { -1, -1 };
	struct timeval tv;
	struct timezone tz = { -1, -1 };
	unsigned cpu = -1, node = -1;
	cpu_set_t one, before;
	long long cpu_time = host_ns(CLOCK_PROCESS_CPUTIME_ID), ours = vdso_ns(CLOCK_PROCESS_CPUTIME_ID);

	if (ours < cpu_time || ours > host_ns(CLOCK_PROCESS_CPUTIME_ID))
		wrong("CLOCK_PROCESS_CPUTIME_ID: %lld after %lld", ours, cpu_time);
	if (vdso_clock_gettime((~getpid() << 3) | 2, &ts) || ts.tv_sec < 0)
		wrong("a process's clock (dynamic)");
	if (vdso_clock_gettime(99, &ts) != -EINVAL || vdso_clock_gettime(-1, &ts) != -EINVAL)
		wrong("an unknown clock is not EINVAL");
	if (vdso_clock_gettime(CLOCK_MONOTONIC, NULL) != -EFAULT)
		wrong("clock_gettime(CLOCK_MONOTONIC, NULL) is not EFAULT");
	if (vdso_gettimeofday(NULL, NULL) || vdso_gettimeofday(&tv, &tz) || tz.tz_minuteswest == -1)
		wrong("gettimeofday with null pointers or a time zone");
	if (sched_getaffinity(0, sizeof(before), &before))
		die("sched_getaffinity");
	for (unsigned i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &before))
			continue;
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		if (sched_setaffinity(0, sizeof(one), &one))
			die("sched_setaffinity");
		if (vdso_getcpu(&cpu, &node, NULL) || cpu != i || node == -1U)
			wrong("getcpu says %u on CPU %u", cpu, i);
	}
	if (sched_setaffinity(0, sizeof(before), &before))
		die("sched_setaffinity");
	if (vdso_getcpu(NULL, NULL, NULL))
		wrong("getcpu with null pointers");
}

static atomic_int stop;

/*
 * Writes two pages in turn that mean two times a year apart; any mixture of them is off by ten seconds or more.
 * Each lasts a while, so that readers get whole ones too.
 */
static void *writer(void *cycles)
{
	const uint64_t ten_seconds = *(uint64_t *)cycles;

	for (unsigned i = 0; !stop; i++) {
		uint64_t now = rdtsc(), until = now + 2000;

		page->seq++;
		page->cycle_last = i & 1 ? now : now - ten_seconds;
		page->base_ns[VVAR_REALTIME] = i & 1 ? YEAR_2001 : YEAR_2001 + YEAR;
		page->seq++;
		while (rdtsc() < until)
			;
	}
	return NULL;
}

static void check_torn_reads(double cycles_per_ns)
{
	uint64_t ten_seconds = 10 * SEC * cycles_per_ns;
	const long long second = YEAR_2001 + YEAR + 10 * SEC;
	int seen[3] = { 0 };
	pthread_t thread;

	page->seq = 0;
	page->cycle_last = rdtsc();
	page->base_ns[VVAR_REALTIME] = YEAR_2001;
	if (pthread_create(&thread, NULL, writer, &ten_seconds))
		die("pthread_create");
	for (int i = 0; i < 2000000; i++) {
		long long now = vdso_ns(CLOCK_REALTIME);
		int which = near(now, YEAR_2001, 3 * SEC) ? 0 : near(now, second, 3 * SEC) ? 1 : 2;

		seen[which]++;
		if (which == 2 && !near(now, host_ns(CLOCK_REALTIME), SEC)) {
			wrong("a torn read: %lld", now);
			break;
		}
	}
	stop = 1;
	pthread_join(thread, NULL);
	if (!seen[0] || !seen[1])
		wrong("the two pages were not both seen: %d %d, system calls %d", seen[0], seen[1], seen[2]);
}

int main(int argc, char **argv)
{
	double cycles_per_ns;

	if (argc != 2) {
		fprintf(stderr, "usage: vdso_check vdso.so\n");
		return 2;
	}
	load(argv[1]);
	check_getres("empty page", 0);
	cycles_per_ns = fill();
	check_clocks();
	check_sources(cycles_per_ns);
	check_slightly_negative();
	check_system_calls();
	check_torn_reads(cycles_per_ns);
	return failures != 0;
}
