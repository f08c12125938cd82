// not compared: benchmark
// One CPU-bound thread against two at once, by turns: the best time of each. bench_pair [MILLISECONDS [ONE'S MILLISECONDS]]
//
// Rounds are short and many so that some of them find both CPUs of a busy host free.

#include "bench.h"

#include <pthread.h>

static struct {
	volatile long sum;
	long count;
} __attribute__((aligned(128))) work[2]; // the two share no cache line

static void *additions(void *argument)
{
	__typeof__(work[0]) *mine = argument;

	for (long i = 0; i < mine->count; i++)
		mine->sum += i;
	return NULL;
}

static void run(void *argument, long count)
{
	int threads = *(const int *)argument;
	pthread_t started[2];

	for (int i = 0; i < threads; i++) {
		work[i].count = count;
		if (pthread_create(&started[i], NULL, additions, &work[i]))
			bench_fail("pthread_create");
	}
	for (int i = 0; i < threads; i++)
		pthread_join(started[i], NULL);
}

int main(int argc, char **argv)
{
	double end = bench_now() + bench_budget(argc, argv);
	double wanted = (argc > 2 ? atof(argv[2]) : 60) * 1e6;
	double one = 1e18, two = 1e18;
	int single = 1, pair = 2;
	long count = bench_calibrate(run, &single, wanted / 2);

	do {
		double alone = bench_time(run, &single, count), both = bench_time(run, &pair, count);

		one = alone < one ? alone : one;
		two = both < two ? both : two;
	} while (bench_now() < end);
	bench_report("one_thread", one / 1e6, "ms");
	bench_report("two_threads", two / 1e6, "ms");
	return 0;
}
