// not compared: benchmark
// A CPU-bound loop: additions to one variable in memory, no system calls. bench_loop [MILLISECONDS]

#include "bench.h"

static volatile long sum __attribute__((aligned(64)));

static void additions(void *argument, long count)
{
	(void)argument;
	for (long i = 0; i < count; i++)
		sum += i;
}

int main(int argc, char **argv)
{
	bench_repeat("loop", 1, "ns", bench_budget(argc, argv), additions, NULL);
	return 0;
}
