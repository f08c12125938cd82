// What the benchmark programs share. Each times itself, so that the start of the process or machine does not count, and
// prints lines `name value unit` (on stderr, because one of them measures writing to stdout).
//
// The clock is CLOCK_MONOTONIC by a raw system call: it works the same everywhere, also where there is no vDSO. It may
// cost 100 us in a guest, so what lies between two readings lasts some milliseconds, and a reading's cost is taken off.

#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BENCH_SAMPLES 4096
#define BENCH_BATCH_NS 5e6

static inline long bench_call6(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

// Nanoseconds of CLOCK_MONOTONIC.
static inline double bench_now(void)
{
	struct timespec now;

	if (bench_call6(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0, 0, 0) != 0) {
		fputs("clock_gettime does not work\n", stderr);
		exit(1);
	}
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static inline void bench_report(const char *name, double value, const char *unit)
{
	fprintf(stderr, "%s %.6g %s\n", name, value, unit);
}

static inline void bench_fail(const char *what)
{
	perror(what);
	exit(1);
}

static inline int bench_compare(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return (a > b) - (a < b);
}

// The time that the program may take, in nanoseconds: milliseconds in its first argument, else 300.
static inline double bench_budget(int argc, char **argv)
{
	return (argc > 1 ? atof(argv[1]) : 300) * 1e6;
}

// What a reading of the clock costs, in nanoseconds: the least of some.
static inline double bench_clock_cost(void)
{
	double least = 0;

	for (int i = 0; i < 20; i++) {
		double start = bench_now(), took = bench_now() - start;

		if (i == 0 || took < least)
			least = took;
	}
	return least;
}

// How long body(argument, count) takes, in nanoseconds.
static inline double bench_time(void (*body)(void *argument, long count), void *argument, long count)
{
	static double cost = -1;
	double start;

	if (cost < 0)
		cost = bench_clock_cost();
	start = bench_now();
	body(argument, count);
	return bench_now() - start - cost;
}

// How many things body() must do to take `least` nanoseconds, also when nothing disturbs it.
static inline long bench_calibrate(void (*body)(void *argument, long count), void *argument, double least)
{
	long count = 1;

	for (int enough = 0; enough < 3; enough++) {
		if (bench_time(body, argument, count) < least) {
			count *= 2;
			enough = -1;
		}
	}
	return count;
}

// Call body(argument, count) in batches of some milliseconds until `budget` nanoseconds are over; print the time of one
// of the `count` things that the body does, the best batch's and the median's, in `unit` of `unit_ns` nanoseconds.
static inline void bench_repeat(const char *name, double unit_ns, const char *unit, double budget,
				void (*body)(void *argument, long count), void *argument)
{
	static double samples[BENCH_SAMPLES];
	double begin = bench_now();
	long count = bench_calibrate(body, argument, BENCH_BATCH_NS);
	char line[64];
	int taken = 0;

	do {
		samples[taken++] = bench_time(body, argument, count) / (double)count / unit_ns;
	} while (taken < BENCH_SAMPLES && (bench_now() - begin < budget || taken < 3));
	qsort(samples, (size_t)taken, sizeof samples[0], bench_compare);
	snprintf(line, sizeof line, "%s.best", name);
	bench_report(line, samples[0], unit);
	snprintf(line, sizeof line, "%s.median", name);
	bench_report(line, samples[taken / 2], unit);
}
