/* What threaded programs are made of: mutexes, conditions, barriers, read-write locks, once, TLS, semaphores, joins. */
#include "say.h"

#include <semaphore.h>

#define THREADS 8
#define ROUNDS 2000

static pthread_mutex_t normal = PTHREAD_MUTEX_INITIALIZER, recursive, inherit, adaptive, shared;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static sem_t semaphore;
static __thread long mine = 7;
static __thread char big[100000];
static pthread_key_t key;
static long counters[5], onces, destroyed, readers_saw_odd, pair[2];

static void count_once(void)
{
	onces++;
}

static void destroy(void *value)
{
	__atomic_fetch_add(&destroyed, (long)(intptr_t)value, __ATOMIC_SEQ_CST);
}

static void *work(void *argument)
{
	long number = (intptr_t)argument, sum = 0;

	pthread_once(&once, count_once);
	pthread_setspecific(key, (void *)(intptr_t)(number + 1));
	mine += number;
	memset(big, (int)number, sizeof(big));
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&normal);
		counters[0]++;
		pthread_mutex_unlock(&normal);
		pthread_mutex_lock(&recursive);
		pthread_mutex_lock(&recursive);
		counters[1]++;
		pthread_mutex_unlock(&recursive);
		pthread_mutex_unlock(&recursive);
		if (i % 8 == 0) {
			pthread_mutex_lock(&inherit);
			counters[2]++;
			pthread_mutex_unlock(&inherit);
		}
		pthread_mutex_lock(&adaptive);
		counters[3]++;
		pthread_mutex_unlock(&adaptive);
		if (i % 4 == 0) {
			pthread_mutex_lock(&shared);
			counters[4]++;
			pthread_mutex_unlock(&shared);
		}
		if (number % 4 == 0 && i % 4 == 0) {
			pthread_rwlock_wrlock(&rwlock);
			pair[0]++;
			pair[1]--;
			pthread_rwlock_unlock(&rwlock);
		} else {
			pthread_rwlock_rdlock(&rwlock);
			if (pair[0] + pair[1])
				__atomic_fetch_add(&readers_saw_odd, 1, __ATOMIC_SEQ_CST);
			pthread_rwlock_unlock(&rwlock);
		}
		sem_post(&semaphore);
		sem_wait(&semaphore);
	}
	pthread_barrier_wait(&barrier);
	for (unsigned i = 0; i < sizeof(big); i += 999)
		sum += big[i] == (char)number;
	return (void *)(intptr_t)(mine * 1000 + sum);
}

static void locks(void)
{
	pthread_mutexattr_t attributes;
	pthread_t thread[THREADS];

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&recursive, &attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&adaptive, &attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_NORMAL);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&shared, &attributes);
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&inherit, &attributes);
	pthread_barrier_init(&barrier, NULL, THREADS);
	pthread_key_create(&key, destroy);
	sem_init(&semaphore, 0, 2);
	for (long i = 0; i < THREADS; i++)
		thread[i] = start(work, (void *)i);
	for (int i = 0; i < THREADS; i++)
		printf("thread %d: %ld\n", i, join(thread[i]));
	for (int i = 0; i < 5; i++)
		printf("counter %d: %ld\n", i, counters[i]);
	printf("once %ld, destroyed %ld, odd %ld, pair %ld %ld\n", onces, destroyed, readers_saw_odd, pair[0], pair[1]);
}

/* A bounded queue between producers and consumers. */
#define ITEMS 6000
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static int queue[16], filled, taken, given;

static void *produce(void *unused)
{
	(void)unused;
	for (;;) {
		pthread_mutex_lock(&normal);
		while (filled == 16 && given < ITEMS)
			pthread_cond_wait(&not_full, &normal);
		if (given >= ITEMS)
			break;
		queue[filled++] = given++;
		pthread_cond_signal(&not_empty);
		pthread_mutex_unlock(&normal);
	}
	pthread_cond_broadcast(&not_full);
	pthread_cond_broadcast(&not_empty);
	pthread_mutex_unlock(&normal);
	return NULL;
}

static void *consume(void *unused)
{
	long sum = 0;

	(void)unused;
	for (;;) {
		pthread_mutex_lock(&normal);
		while (!filled && given < ITEMS)
			pthread_cond_wait(&not_empty, &normal);
		if (!filled)
			break;
		sum += queue[--filled];
		taken++;
		pthread_cond_signal(&not_full);
		pthread_mutex_unlock(&normal);
	}
	pthread_mutex_unlock(&normal);
	return (void *)(intptr_t)sum;
}

static void conditions(void)
{
	struct timespec past = { 1, 0 }, soon;
	pthread_t producer[4], consumer[4];
	long sum = 0;

	for (int i = 0; i < 4; i++) {
		producer[i] = start(produce, NULL);
		consumer[i] = start(consume, NULL);
	}
	for (int i = 0; i < 4; i++)
		join(producer[i]);
	for (int i = 0; i < 4; i++)
		sum += join(consumer[i]);
	printf("given %d, taken %d, sum %ld\n", given, taken, sum);
	pthread_mutex_lock(&normal);
	printf("timed wait: %s\n", strerrorname_np(pthread_cond_timedwait(&not_full, &normal, &past)));
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_nsec += 2000000;
	soon.tv_sec += soon.tv_nsec / 1000000000;
	soon.tv_nsec %= 1000000000;
	printf("timed wait: %s\n", strerrorname_np(pthread_cond_timedwait(&not_full, &normal, &soon)));
	pthread_mutex_unlock(&normal);
	printf("timed lock: %d\n", pthread_mutex_timedlock(&normal, &past));
	printf("timed lock: %s\n", strerrorname_np(pthread_mutex_timedlock(&normal, &past)));
	printf("try lock: %s\n", strerrorname_np(pthread_mutex_trylock(&normal)));
	pthread_mutex_unlock(&normal);
	printf("timed semaphore: %d\n", sem_timedwait(&semaphore, &past));
	printf("timed semaphore: %d\n", sem_timedwait(&semaphore, &past));
	errno = 0;
	printf("timed semaphore: %d", sem_timedwait(&semaphore, &past));
	printf(" %s\n", strerrorname_np(errno));
}

static void *one_of_many(void *argument)
{
	return argument;
}

static void joins(void)
{
	long sum = 0;

	for (long round = 0; round < 20; round++) {
		pthread_t thread[10];

		for (long i = 0; i < 10; i++)
			thread[i] = start(one_of_many, (void *)(round * 10 + i));
		for (int i = 0; i < 10; i++)
			sum += join(thread[i]);
	}
	printf("joined: %ld\n", sum);
	printf("mine: %ld\n", mine);
}

int main(void)
{
	locks();
	conditions();
	joins();
	return 0;
}
