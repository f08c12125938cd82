// not compared: benchmark
// mmap() of one anonymous page, a write to it, munmap(): two calls and a page fault. bench_map [MILLISECONDS]

#include "bench.h"

#include <sys/mman.h>

#define PAGE 4096

static void mappings(void *argument, long count)
{
	(void)argument;
	for (long i = 0; i < count; i++) {
		char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page == MAP_FAILED)
			bench_fail("mmap");
		*(volatile char *)page = 1;
		if (munmap(page, PAGE))
			bench_fail("munmap");
	}
}

int main(int argc, char **argv)
{
	bench_repeat("map_touch_unmap", 1e3, "us", bench_budget(argc, argv), mappings, NULL);
	return 0;
}
