// not compared: benchmark
// How the times of single calls of getppid() spread, by the time stamp counter, while THREADS other threads
// call it all the time. bench_percentiles [CALLS [THREADS]]

#include "bench.h"

#include <pthread.h>
#include <x86intrin.h>

#define WARM_UP 50

static volatile int ending;

static void *calling(void *argument)
{
	while (!ending)
		bench_call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
	return argument;
}

int main(int argc, char **argv)
{
	long calls = argc > 1 ? atol(argv[1]) : 2000;
	int threads = argc > 2 ? atoi(argv[2]) : 0;
	pthread_t others[16];
	double *samples, start, ticks;
	unsigned long long first;

	if (calls < 1 || calls > 10000000 || threads < 0 || threads > 16)
		return 2;
	samples = calloc((size_t)calls, sizeof *samples);
	if (!samples)
		bench_fail("calloc");
	for (long i = 0; i < calls; i++)
		samples[i] = 1; // so that no page fault falls into the measurement
	for (int i = 0; i < threads; i++) {
		if (pthread_create(&others[i], NULL, calling, NULL))
			bench_fail("pthread_create");
	}
	for (int i = 0; i < WARM_UP; i++)
		bench_call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
	start = bench_now();
	first = __rdtsc();
	for (long i = 0; i < calls; i++) {
		unsigned long long before = __rdtsc();

		bench_call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
		samples[i] = (double)(__rdtsc() - before);
	}
	ticks = (double)(__rdtsc() - first) / (bench_now() - start);
	ending = 1;
	for (int i = 0; i < threads; i++)
		pthread_join(others[i], NULL);
	qsort(samples, (size_t)calls, sizeof *samples, bench_compare);
	bench_report("p50", samples[calls / 2] / ticks / 1e3, "us");
	bench_report("p99", samples[calls * 99 / 100] / ticks / 1e3, "us");
	return 0;
}
