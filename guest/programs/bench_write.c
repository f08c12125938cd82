// not compared: benchmark
// write() of 4 KiB to the standard output, which should be /dev/null. bench_write [MILLISECONDS]

#include "bench.h"

#define SIZE 4096

static void writes(void *argument, long count)
{
	for (long i = 0; i < count; i++) {
		if (bench_call6(SYS_write, 1, (long)argument, SIZE, 0, 0, 0) != SIZE) {
			fputs("write: not all was written\n", stderr);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	static char data[SIZE] = "x";

	bench_repeat("write", 1e3, "us", bench_budget(argc, argv), writes, data);
	return 0;
}
