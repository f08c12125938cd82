/* futex(): every operation without owners (futex_pi.c has those), its results and its errors. */
#include "say.h"

#include <limits.h>
#include <linux/futex.h>

#define PRIVATE FUTEX_PRIVATE_FLAG
#define OP(op, oparg, cmp, cmparg) \
	((unsigned)(op) << 28 | (unsigned)(cmp) << 24 | ((oparg)&0xfff) << 12 | ((cmparg)&0xfff))

static uint32_t word, other;

static long futex(void *uaddr, int op, uint32_t val, const void *timeout, void *uaddr2, uint32_t val3)
{
	return syscall(SYS_futex, uaddr, op, val, timeout, uaddr2, val3);
}

/* How many plain waiters a futex has: they are moved to where they are. */
static long waiters(uint32_t *futex_word, int flags)
{
	return futex(futex_word, FUTEX_REQUEUE | flags, 0, (void *)(long)INT_MAX, futex_word, 0);
}

struct wait {
	uint32_t *word;
	int op;
	uint32_t value, bitset;
	pthread_t thread;
};

static void *wait_on(void *argument)
{
	struct wait *wait = argument;
	long result = futex(wait->word, wait->op, wait->value, NULL, NULL, wait->bitset);

	return (void *)(intptr_t)(result ? -errno : 0);
}

/* Starts a thread that waits, and returns when it does. */
static void start_wait(struct wait *wait, uint32_t *at, int op, uint32_t value, uint32_t bitset)
{
	long before = waiters(at, op & PRIVATE);

	wait->word = at;
	wait->op = op;
	wait->value = value;
	wait->bitset = bitset;
	wait->thread = start(wait_on, wait);
	while (waiters(at, op & PRIVATE) != before + 1)
		sched_yield();
}

static void errors(void)
{
	char *bad = bad_page(), *odd = (char *)&word + 1;
	struct timespec negative = { -1, 0 }, big = { 0, 1000000000 }, none = { 0, 0 };

	word = 5;
	SAY(futex(&word, FUTEX_WAIT, 4, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT | PRIVATE, 4, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT_BITSET, 4, NULL, NULL, 1));
	SAY(futex(&word, FUTEX_WAIT_BITSET, 5, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE_BITSET, 5, NULL, NULL, 0));
	SAY(futex(odd, FUTEX_WAIT, 5, NULL, NULL, 0));
	SAY(futex(odd, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_WAIT, 5, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_WAIT | PRIVATE, 5, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_WAKE, 1, NULL, NULL, 0));
	SAY(futex(bad, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex((void *)-4096L, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex((void *)-4095L, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex(NULL, FUTEX_WAKE, 1, NULL, NULL, 0));
	SAY(futex(NULL, FUTEX_WAIT | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_FD, 1, NULL, NULL, 0));
	SAY(futex(&word, 14, 1, NULL, NULL, 0));
	SAY(futex(&word, 127, 1, NULL, NULL, 0));
	SAY(futex(&word, 512, 1, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 4, &none, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 4, NULL, NULL, 1));
	SAY(futex(&word, FUTEX_WAIT, 4, &negative, NULL, 0));
	SAY(futex(odd, FUTEX_WAIT, 4, &big, NULL, 0));
	SAY(futex(odd, FUTEX_WAIT, 4, bad, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE, 4, bad, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT, 5, &none, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT, 4, &none, NULL, 0));
	SAY(futex(&word, FUTEX_WAIT_BITSET, 5, &none, NULL, 1));
	SAY(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 5, &none, NULL, 1));
}

static void time_outs(void)
{
	struct timespec ms = { 0, 3000000 }, at;
	long long before = now_ns(CLOCK_MONOTONIC), late;

	word = 0;
	SAY(futex(&word, FUTEX_WAIT, 0, &ms, NULL, 0));
	printf("not early: %d\n", now_ns(CLOCK_MONOTONIC) - before >= 3000000);
	for (int realtime = 0; realtime < 2; realtime++) {
		int clock = realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC;

		late = now_ns(clock) + 3000000;
		at = (struct timespec){ late / 1000000000, late % 1000000000 };
		SAY(futex(&word, FUTEX_WAIT_BITSET | (realtime ? FUTEX_CLOCK_REALTIME : 0), 0, &at, NULL, 1));
		printf("not early: %d\n", now_ns(clock) >= late);
	}
}

static void wakes(void)
{
	struct wait wait[6];

	for (int i = 0; i < 6; i++)
		start_wait(&wait[i], &word, FUTEX_WAIT | PRIVATE, 0, 0);
	SAY(futex(&word, FUTEX_WAKE, 10, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, 0, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, -1, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, 2, NULL, NULL, 0));
	printf("still there: %ld\n", waiters(&word, PRIVATE));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, INT_MAX, NULL, NULL, 0));
	for (int i = 0; i < 6; i++)
		printf("waiter %d: %ld\n", i, join(wait[i].thread));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	start_wait(&wait[0], &word, FUTEX_WAIT, 0, 0);
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
	SAY(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0));
	printf("waiter: %ld\n", join(wait[0].thread));
}

static void bitsets(void)
{
	struct wait wait[3];

	for (int i = 0; i < 3; i++)
		start_wait(&wait[i], &word, FUTEX_WAIT_BITSET | PRIVATE, 0, i + 1);
	SAY(futex(&word, FUTEX_WAKE_BITSET | PRIVATE, 9, NULL, NULL, 4));
	SAY(futex(&word, FUTEX_WAKE_BITSET | PRIVATE, 9, NULL, NULL, 2));
	printf("waiter 1: %ld\nwaiter 2: %ld\n", join(wait[1].thread), join(wait[2].thread));
	SAY(futex(&word, FUTEX_WAKE_BITSET | PRIVATE, 9, NULL, NULL, 2));
	SAY(futex(&word, FUTEX_WAKE | PRIVATE, 9, NULL, NULL, 0));
	printf("waiter 0: %ld\n", join(wait[0].thread));
}

static void requeues(void)
{
	struct wait wait[6];
	char *bad = bad_page();

	word = other = 0;
	for (int i = 0; i < 6; i++)
		start_wait(&wait[i], &word, FUTEX_WAIT | PRIVATE, 0, 0);
	SAY(futex(&word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, &other, 1));
	SAY(futex(&word, FUTEX_CMP_REQUEUE | PRIVATE, -1, (void *)2, &other, 0));
	SAY(futex(&word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)-2L, &other, 0));
	SAY(futex(&word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, (char *)&other + 1, 0));
	SAY(futex(&word, FUTEX_CMP_REQUEUE, 1, (void *)2, bad, 0));
	SAY(futex(&word, FUTEX_CMP_REQUEUE | PRIVATE, 1, (void *)2, &other, 0));
	printf("waiter 0: %ld\n", join(wait[0].thread));
	printf("left and moved: %ld %ld\n", waiters(&word, PRIVATE), waiters(&other, PRIVATE));
	SAY(futex(&word, FUTEX_REQUEUE | PRIVATE, 0, (void *)1, &other, 0));
	printf("left and moved: %ld %ld\n", waiters(&word, PRIVATE), waiters(&other, PRIVATE));
	SAY(futex(&other, FUTEX_WAKE | PRIVATE, 9, NULL, NULL, 0));
	printf("waiters 1 to 3: %ld %ld %ld\n", join(wait[1].thread), join(wait[2].thread), join(wait[3].thread));
	SAY(futex(&word, FUTEX_REQUEUE | PRIVATE, 9, (void *)9, &other, 0));
	printf("waiters 4 and 5: %ld %ld\n", join(wait[4].thread), join(wait[5].thread));
}

static void one_wake_op(int op, int oparg, int cmp, int cmparg, uint32_t before)
{
	struct wait wait;
	long result;

	other = before;
	start_wait(&wait, &other, FUTEX_WAIT | PRIVATE, before, 0);
	errno = 0;
	result = futex(&word, FUTEX_WAKE_OP | PRIVATE, 1, (void *)1, &other, OP(op, oparg, cmp, cmparg));
	printf("op %d %d cmp %d %d on %x: %ld %s, then %x\n", op, oparg, cmp, cmparg, before, result,
	       errno ? strerrorname_np(errno) : "", other);
	futex(&other, FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0);
	join(wait.thread);
}

static void wake_ops(void)
{
	static const uint32_t words[] = { 0, 1, 7, 0x7fffffff, 0x80000000, 0xffffffff };
	struct wait wait[2];
	char *bad = bad_page();

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++) {
		for (int op = 0; op < 5; op++) {
			one_wake_op(op, 5, i % 6, 7, words[i]);
			one_wake_op(op, -3, (i + op) % 6, -1, words[i]);
			one_wake_op(op | FUTEX_OP_OPARG_SHIFT, i * 6, (i + op) % 6, 0, words[i]);
		}
	}
	one_wake_op(5, 1, 0, 0, 3);
	one_wake_op(7, 1, 0, 0, 3);
	one_wake_op(0, 1, 6, 0, 3);
	one_wake_op(0, 1, 15, 0, 3);
	SAY(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, bad, 0));
	SAY(futex(bad, FUTEX_WAKE_OP, 1, (void *)1, &other, 0));
	SAY(futex(&word, FUTEX_WAKE_OP | PRIVATE, 1, (void *)1, bad, 0));
	SAY(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, (char *)&other + 2, 0));
	word = other = 0;
	start_wait(&wait[0], &word, FUTEX_WAIT | PRIVATE, 0, 0);
	start_wait(&wait[1], &other, FUTEX_WAIT | PRIVATE, 0, 0);
	SAY(futex(&word, FUTEX_WAKE_OP | PRIVATE, 1, (void *)1, &other, OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)));
	printf("waiters: %ld %ld\n", join(wait[0].thread), join(wait[1].thread));
}

static struct futex_waitv three[3];

static void *wait_many(void *unused)
{
	(void)unused;
	return (void *)(intptr_t)syscall(SYS_futex_waitv, three, 3, 0, NULL, 0);
}

static void waitv(void)
{
	static uint32_t words[3];
	struct timespec none = { 0, 0 };
	char *bad = bad_page();

	for (int i = 0; i < 3; i++)
		three[i] = (struct futex_waitv){ 0, (uintptr_t)&words[i], FUTEX_32 | FUTEX_PRIVATE_FLAG, 0 };
	for (int i = 0; i < 3; i++) {
		pthread_t thread = start(wait_many, NULL);

		while (waiters(&words[2], PRIVATE) != 1)
			sched_yield();
		printf("woken: %ld\n", futex(&words[i], FUTEX_WAKE | PRIVATE, 1, NULL, NULL, 0));
		printf("index: %ld\n", join(thread));
	}
	SAY(syscall(SYS_futex_waitv, three, 0, 0, NULL, 0));
	SAY(syscall(SYS_futex_waitv, three, 129, 0, NULL, 0));
	SAY(syscall(SYS_futex_waitv, NULL, 1, 0, NULL, 0));
	SAY(syscall(SYS_futex_waitv, bad, 1, 0, NULL, 0));
	SAY(syscall(SYS_futex_waitv, three, 1, 1, NULL, 0));
	SAY(syscall(SYS_futex_waitv, three, 1, 0, &none, CLOCK_BOOTTIME));
	SAY(syscall(SYS_futex_waitv, three, 1, 0, &none, CLOCK_MONOTONIC));
	SAY(syscall(SYS_futex_waitv, three, 1, 0, &none, CLOCK_REALTIME));
	SAY(syscall(SYS_futex_waitv, three, 1, 0, bad, CLOCK_REALTIME));
	words[2] = 1;
	SAY(syscall(SYS_futex_waitv, three, 3, 0, NULL, 0));
	three[1].__reserved = 1;
	SAY(syscall(SYS_futex_waitv, three, 3, 0, NULL, 0));
	three[1].__reserved = 0;
	three[1].flags = 0;
	SAY(syscall(SYS_futex_waitv, three, 3, 0, NULL, 0));
	three[1].flags = FUTEX_32 | 64;
	SAY(syscall(SYS_futex_waitv, three, 3, 0, NULL, 0));
	three[1].flags = FUTEX_32;
	three[1].uaddr++;
	SAY(syscall(SYS_futex_waitv, three, 3, 0, NULL, 0));
}

int main(void)
{
	errors();
	time_outs();
	wakes();
	bitsets();
	requeues();
	wake_ops();
	waitv();
	return 0;
}
