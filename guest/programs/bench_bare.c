// not compared: benchmark
// Calls for tests/bench/bare.py: 64 times getppid(), then getpgrp(), over and over until that returns something else
// than 0. (On Linux it does so at once.)

#include "bench.h"

#define CALLS 64

int main(void)
{
	do {
		for (int i = 0; i < CALLS; i++)
			bench_call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
	} while (bench_call6(SYS_getpgrp, 0, 0, 0, 0, 0, 0) == 0);
	return 0;
}
