// not compared: benchmark
// clock_gettime() as the C library does it: through the vDSO. bench_clock [MILLISECONDS]

#include "bench.h"

static void readings(void *argument, long count)
{
	for (long i = 0; i < count; i++)
		clock_gettime(CLOCK_MONOTONIC, argument);
}

int main(int argc, char **argv)
{
	struct timespec now;

	bench_repeat("clock_gettime", 1, "ns", bench_budget(argc, argv), readings, &now);
	return 0;
}
