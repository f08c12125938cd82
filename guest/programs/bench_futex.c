// not compared: benchmark
// Two threads wake each other by turns through two futexes: the time of a round trip. bench_futex [MILLISECONDS]

#include "bench.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>

static atomic_int ping, pong, ending;

static void hand_over(atomic_int *word)
{
	atomic_store(word, 1);
	bench_call6(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}

static void await(atomic_int *word)
{
	while (atomic_load(word) == 0)
		bench_call6(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
	atomic_store(word, 0);
}

static void *partner(void *argument)
{
	for (;;) {
		await(&ping);
		if (atomic_load(&ending))
			return argument;
		hand_over(&pong);
	}
}

static void round_trips(void *argument, long count)
{
	(void)argument;
	for (long i = 0; i < count; i++) {
		hand_over(&ping);
		await(&pong);
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, partner, NULL))
		bench_fail("pthread_create");
	bench_repeat("futex", 1e3, "us", bench_budget(argc, argv), round_trips, NULL);
	atomic_store(&ending, 1);
	hand_over(&ping);
	pthread_join(thread, NULL);
	return 0;
}
