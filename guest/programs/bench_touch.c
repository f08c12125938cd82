// not compared: benchmark
// First and second touch of each page of a large anonymous mapping. bench_touch [MEBIBYTES]

#include "bench.h"

#include <sys/mman.h>

#define PAGE 4096

static double touch(volatile char *memory, size_t size)
{
	double start = bench_now();

	for (size_t at = 0; at < size; at += PAGE)
		memory[at] += 1;
	return (bench_now() - start) / ((double)size / PAGE) / 1e3;
}

int main(int argc, char **argv)
{
	size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 256) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		bench_fail("mmap");
	bench_report("first_touch", touch(memory, size), "us");
	bench_report("second_touch", touch(memory, size), "us");
	return 0;
}
