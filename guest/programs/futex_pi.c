/* futex() with owners: taking, giving, circles, death of owners, moving waiters of a condition to a lock. */
#include "say.h"

#include <limits.h>
#include <linux/futex.h>

#define PRIVATE FUTEX_PRIVATE_FLAG

static uint32_t lock, lock2, cond;
static volatile int step;

static long futex(void *uaddr, int op, uint32_t val, const void *timeout, void *uaddr2, uint32_t val3)
{
	return syscall(SYS_futex, uaddr, op | PRIVATE, val, timeout, uaddr2, val3);
}

static uint32_t gettid_(void)
{
	return syscall(SYS_gettid);
}

/* The word, with tids that differ between kernels told by whose they are. */
static void show(const char *what, uint32_t value)
{
	uint32_t tid = value & FUTEX_TID_MASK;

	printf("%s: %s%s%s\n", what, value & FUTEX_WAITERS ? "waiters " : "", value & FUTEX_OWNER_DIED ? "died " : "",
	       !tid ? "free" : tid == gettid_() ? "mine" : "another's");
}

static void until(int wanted)
{
	while (step < wanted)
		sched_yield();
}

/* Until somebody waits for the lock: only then may nobody wake it as a plain futex. */
static void until_waited_for(uint32_t *word)
{
	while (!(futex(word, FUTEX_WAKE, 0, NULL, NULL, 0) == -1 && errno == EINVAL))
		sched_yield();
}

static void errors(void)
{
	char *bad = bad_page(), *odd = (char *)&lock + 2;
	struct timespec none = { 0, 0 }, big = { 0, 1000000000 };

	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	show("lock", lock);
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_LOCK_PI2, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	show("lock", lock);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(odd, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(odd, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(odd, FUTEX_LOCK_PI, 0, &big, NULL, 0));
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, bad, NULL, 0));
	SAY(futex(&lock, FUTEX_LOCK_PI | FUTEX_CLOCK_REALTIME, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_LOCK_PI2 | FUTEX_CLOCK_REALTIME, 0, &none, NULL, 0));
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	lock = 0x3fffffff;
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	printf("lock: %x\n", lock);
	lock = 0x3fffffff;
	SAY(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	printf("lock: %x\n", lock);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	lock = FUTEX_WAITERS | FUTEX_OWNER_DIED;
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	show("a dead owner's lock", lock);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	show("lock", lock);
}

/* Returns 1 if it got the lock, marked as waited for, and could give it back; else an error. */
static void *locker(void *word)
{
	long result = futex(word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	int mine = *(volatile uint32_t *)word == (FUTEX_WAITERS | gettid_());

	result |= futex(word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
	return (void *)(intptr_t)(result ? -errno : mine);
}

static void *tries(void *word)
{
	struct timespec past = { 1, 0 };

	SAY(futex(word, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(word, FUTEX_LOCK_PI, 0, &past, NULL, 0));
	SAY(futex(word, FUTEX_LOCK_PI2, 0, &past, NULL, 0));
	SAY(futex(word, FUTEX_LOCK_PI2 | FUTEX_CLOCK_REALTIME, 0, &past, NULL, 0));
	return NULL;
}

static void handing_over(void)
{
	pthread_t thread;

	lock = 0;
	futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	join(start(tries, &lock));
	show("after a try", lock);
	futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
	futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	thread = start(locker, &lock);
	until_waited_for(&lock);
	show("waited for", lock);
	SAY(futex(&lock, FUTEX_WAKE, 1, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_WAIT, lock + 1, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_REQUEUE, 0, (void *)1, &lock2, 0));
	SAY(futex(&lock, FUTEX_CMP_REQUEUE, 0, (void *)1, &lock2, lock));
	SAY(futex(&lock, FUTEX_WAKE_OP, 1, (void *)1, &lock2, 0));
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	printf("locker: %ld\n", join(thread));
	show("lock", lock);
}

static void *plain(void *word)
{
	long result = futex(word, FUTEX_WAIT, 0, NULL, NULL, 0);

	return (void *)(intptr_t)(result ? -errno : 0);
}

/* A lock's futex that somebody waits on as a plain one. */
static void mixing(void)
{
	pthread_t thread;

	lock = 0;
	thread = start(plain, &lock);
	while (futex(&lock, FUTEX_REQUEUE, 0, (void *)1, &lock, 0) != 1)
		sched_yield();
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	lock = gettid_();
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock, FUTEX_WAKE, 1, NULL, NULL, 0));
	printf("plain waiter: %ld\n", join(thread));
}

/* A program that writes nonsense into a lock that others wait for. */
static void nonsense(void)
{
	static const uint32_t words[] = { 0, FUTEX_WAITERS, 0x3ffffff0, 0x3ffffff0 | FUTEX_OWNER_DIED, FUTEX_OWNER_DIED };
	pthread_t thread;
	uint32_t good;

	lock = 0;
	futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	thread = start(locker, &lock);
	until_waited_for(&lock);
	good = lock;
	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++) {
		lock = words[i];
		SAY(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	}
	lock = good;
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	printf("locker: %ld\n", join(thread));
}

static void *takes_both(void *unused)
{
	long result;

	(void)unused;
	futex(&lock2, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	step = 1;
	result = futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
	futex(&lock2, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
	return (void *)(intptr_t)result;
}

static void circle(void)
{
	pthread_t thread;

	lock = lock2 = step = 0;
	futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	thread = start(takes_both, NULL);
	until(1);
	until_waited_for(&lock);
	SAY(futex(&lock2, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	SAY(futex(&lock2, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	show("the other's lock", lock2);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	printf("other: %ld\n", join(thread));
	show("lock", lock);
	show("the other's lock", lock2);
}

static void *takes_and_dies(void *word)
{
	futex(word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	step = 1;
	until(2);
	until_waited_for(word);
	syscall(SYS_exit, 0);
	return NULL;
}

/* The owner dies: the lock goes to who waits, marked. The thread that dies is not the C library's to clean up after. */
static void death(void)
{
	pthread_t thread;

	lock = step = 0;
	thread = start(takes_and_dies, &lock);
	until(1);
	step = 2;
	SAY(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	show("inherited", lock);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	show("lock", lock);
	join(thread);
}

static void *waits_for_signal(void *unused)
{
	long result = futex(&cond, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &lock, 0);

	(void)unused;
	if (result)
		return (void *)(intptr_t)-errno;
	__atomic_fetch_add(&step, 1, __ATOMIC_SEQ_CST);
	if ((lock & FUTEX_TID_MASK) != gettid_())
		return (void *)1;
	return (void *)(intptr_t)(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0) ? -errno : 0);
}

static void requeueing(void)
{
	struct timespec past = { 1, 0 };
	pthread_t thread[3];
	char *bad = bad_page();

	lock = cond = 0;
	SAY(futex(&cond, FUTEX_WAIT_REQUEUE_PI, 1, NULL, &lock, 0));
	SAY(futex(&cond, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &cond, 0));
	SAY(futex(&cond, FUTEX_WAIT_REQUEUE_PI, 0, NULL, (char *)&lock + 1, 0));
	SAY(futex(&cond, FUTEX_WAIT_REQUEUE_PI, 0, &past, &lock, 0));
	SAY(futex(&cond, FUTEX_WAIT_REQUEUE_PI | FUTEX_CLOCK_REALTIME, 0, &past, &lock, 0));
	SAY(futex(bad, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &lock, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 0, (void *)1, &lock, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 2, (void *)1, &lock, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)-1L, &lock, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &cond, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 1));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, bad, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0));

	thread[0] = start(waits_for_signal, NULL);
	until_waited_for(&cond);
	SAY(futex(&cond, FUTEX_WAKE, 1, NULL, NULL, 0));
	SAY(futex(&cond, FUTEX_REQUEUE, 1, (void *)1, &lock2, 0));
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock2, 0));
	lock = 0x3fffffff;
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0));
	lock = 0;
	SAY(futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)0, &lock, 0));
	printf("signalled: %ld\n", join(thread[0]));
	show("lock", lock);

	/* With the lock held the waiters are moved; each gets it in turn. */
	step = 0;
	futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
	for (int i = 0; i < 3; i++)
		thread[i] = start(waits_for_signal, NULL);
	for (int moved = 0; moved < 3; sched_yield()) {
		long result = futex(&cond, FUTEX_CMP_REQUEUE_PI, 1, (void *)(long)INT_MAX, &lock, 0);

		if (result > 0)
			moved += result;
	}
	show("waited for", lock);
	printf("through: %d\n", step);
	SAY(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	for (int i = 0; i < 3; i++)
		printf("waiter: %ld\n", join(thread[i]));
	printf("through: %d\n", step);
	show("lock", lock);
}

#define THREADS 4
#define ROUNDS 200

static uint32_t counter;

static void *counts(void *unused)
{
	uint32_t tid = gettid_(), free = 0;

	(void)unused;
	for (int i = 0; i < ROUNDS; i++) {
		free = 0;
		if (!__atomic_compare_exchange_n(&lock, &free, tid, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) &&
		    futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0))
			return (void *)(intptr_t)errno;
		counter++;
		if (i % 16 == 0)
			sched_yield();
		free = tid;
		if (!__atomic_compare_exchange_n(&lock, &free, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) &&
		    futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0))
			return (void *)(intptr_t)errno;
	}
	return NULL;
}

/* As a C library uses it: the kernel is called only when there is somebody else. */
static void contention(void)
{
	pthread_t thread[THREADS];

	lock = 0;
	for (int i = 0; i < THREADS; i++)
		thread[i] = start(counts, NULL);
	for (int i = 0; i < THREADS; i++)
		printf("counter thread: %ld\n", join(thread[i]));
	printf("counted: %u\n", counter);
	show("lock", lock);
}

int main(void)
{
	errors();
	handing_over();
	mixing();
	nonsense();
	circle();
	death();
	requeueing();
	contention();
	return 0;
}
