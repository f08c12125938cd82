/*
 * The vDSO: reading a clock without leaving the VM. Names, versions and
 * behaviour are those of Linux (man 7 vdso, lib/vdso/gettimeofday.c); the data
 * is described in vvar.h.
 *
 * Whatever this code cannot answer (CPU clocks, dynamic clocks, null pointers,
 * a stale page) goes to the real system call, which is always right.
 *
 * The *_COARSE clocks are the fine ones rounded down to a tick, as the
 * monitor's clock_gettime() computes them too, so that neither of the two
 * ways to read them ever goes back behind the other.
 */
#include <stdint.h>
#include <linux/time.h>
#include <asm/unistd.h>

#include "vvar.h"

#define NSEC_PER_SEC  1000000000UL
#define NSEC_PER_USEC 1000UL

/*
 * TSCs of two CPUs may differ a little, so a reader on another CPU than the
 * writer's can see one slightly below cycle_last: no time has passed then.
 */
#define TSC_SLACK (1L << 16)

#define EXPORT __attribute__((visibility("default")))
#define ALIAS(of) __attribute__((visibility("default"), weak, alias(#of)))

/* Defined by vdso.lds, VVAR_SIZE before the first byte of the image. */
extern const volatile struct vvar vvar_page __attribute__((visibility("hidden")));

static inline long syscall3(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

/* LFENCE: neither earlier loads nor the counter are read out of order. */
static inline uint64_t rdtsc_ordered(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/*
 * The time in nanoseconds of base_ns[index], and the coarse clocks' tick.
 * Returns 0 when only the system call can tell.
 */
static inline int read_clock(enum vvar_clock index, uint64_t *ns, uint32_t *tick)
{
	const volatile struct vvar *page = &vvar_page;
	uint32_t seq;

	do {
		uint64_t base, limit, mult;
		uint32_t shift;
		int64_t delta;

		seq = page->seq;
		if ((seq & 1) || page->mode != VVAR_TSC)
			return 0;
		base = page->base_ns[index];
		limit = page->cycle_limit;
		mult = page->mult;
		shift = page->shift & 63;
		*tick = page->coarse_ns;
		delta = (int64_t)(rdtsc_ordered() - page->cycle_last);
		if (delta < 0) {
			if (delta < -TSC_SLACK)
				return 0;
			delta = 0;
		}
		if ((uint64_t)delta > limit)
			return 0;
		*ns = base + (((uint64_t)delta * mult) >> shift);
	} while (page->seq != seq);
	return 1;
}

/* Which of base_ns[] serves the clock, or -1; and whether it is a coarse one. */
static inline int clock_index(int clock, int *coarse)
{
	*coarse = clock == CLOCK_REALTIME_COARSE || clock == CLOCK_MONOTONIC_COARSE;
	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_COARSE:
		return VVAR_REALTIME;
	case CLOCK_MONOTONIC:
	case CLOCK_MONOTONIC_COARSE:
		return VVAR_MONOTONIC;
	case CLOCK_MONOTONIC_RAW:
		return VVAR_MONOTONIC_RAW;
	case CLOCK_BOOTTIME:
		return VVAR_BOOTTIME;
	case CLOCK_TAI:
		return VVAR_TAI;
	default:
		return -1;
	}
}

EXPORT int __vdso_clock_gettime(int clock, struct timespec *ts)
{
	int coarse, index = clock_index(clock, &coarse);
	uint64_t ns;
	uint32_t tick;

	if (index < 0 || !ts || !read_clock(index, &ns, &tick))
		return syscall3(__NR_clock_gettime, clock, (long)ts, 0);
	if (coarse)
		ns -= ns % tick;
	ts->tv_sec = ns / NSEC_PER_SEC;
	ts->tv_nsec = ns % NSEC_PER_SEC;
	return 0;
}

EXPORT int __vdso_gettimeofday(struct timeval *tv, struct timezone *tz)
{
	uint64_t ns;
	uint32_t tick;

	/* The time zone is the kernel's, and hardly anybody asks for it. */
	if (!tv || tz || !read_clock(VVAR_REALTIME, &ns, &tick))
		return syscall3(__NR_gettimeofday, (long)tv, (long)tz, 0);
	tv->tv_sec = ns / NSEC_PER_SEC;
	tv->tv_usec = ns % NSEC_PER_SEC / NSEC_PER_USEC;
	return 0;
}

EXPORT long __vdso_time(long *seconds)
{
	uint64_t ns;
	uint32_t tick;
	long now;

	if (!read_clock(VVAR_REALTIME, &ns, &tick))
		return syscall3(__NR_time, (long)seconds, 0, 0);
	now = ns / NSEC_PER_SEC;
	if (seconds)
		*seconds = now;
	return now;
}

EXPORT int __vdso_clock_getres(int clock, struct timespec *res)
{
	const volatile struct vvar *page = &vvar_page;
	int coarse, index = clock_index(clock, &coarse);

	if (index < 0 || !res || page->mode != VVAR_TSC)
		return syscall3(__NR_clock_getres, clock, (long)res, 0);
	/* Both are constant for the machine's life: no need of seq. */
	res->tv_sec = 0;
	res->tv_nsec = coarse ? page->coarse_ns : page->resolution_ns;
	return 0;
}

/* No register that ring 3 can read holds the CPU's number here. */
EXPORT long __vdso_getcpu(unsigned *cpu, unsigned *node, void *unused)
{
	return syscall3(__NR_getcpu, (long)cpu, (long)node, (long)unused);
}

int clock_gettime(int clock, struct timespec *ts) ALIAS(__vdso_clock_gettime);
int gettimeofday(struct timeval *tv, struct timezone *tz) ALIAS(__vdso_gettimeofday);
long time(long *seconds) ALIAS(__vdso_time);
int clock_getres(int clock, struct timespec *res) ALIAS(__vdso_clock_getres);
long getcpu(unsigned *cpu, unsigned *node, void *unused) ALIAS(__vdso_getcpu);
