// not compared: benchmark
// pthread_create() and pthread_join() of a thread that does nothing. bench_thread [MILLISECONDS]

#include "bench.h"

#include <pthread.h>

static void *nothing(void *argument)
{
	return argument;
}

static void threads(void *argument, long count)
{
	for (long i = 0; i < count; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, nothing, argument))
			bench_fail("pthread_create");
		pthread_join(thread, NULL);
	}
}

int main(int argc, char **argv)
{
	bench_repeat("thread", 1e3, "us", bench_budget(argc, argv), threads, NULL);
	return 0;
}
