// not compared: benchmark
// The trivial system call. bench_getppid [MILLISECONDS]

#include "bench.h"

static void calls(void *argument, long count)
{
	(void)argument;
	for (long i = 0; i < count; i++)
		bench_call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
}

int main(int argc, char **argv)
{
	bench_repeat("getppid", 1, "ns", bench_budget(argc, argv), calls, NULL);
	return 0;
}
