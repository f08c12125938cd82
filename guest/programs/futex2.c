/* The futex calls of Linux 6.7, checked by the program itself: on an older kernel there is nothing to compare. */
#include "say.h"

#define NR_futex_wake 454
#define NR_futex_wait 455
#define NR_futex_requeue 456
#define U32 2
#define PRIVATE 128

struct waitv {
	uint64_t value, address;
	uint32_t flags, reserved;
};

static uint32_t word, other;

static long wake(void *at, unsigned long mask, int count, unsigned flags)
{
	return syscall(NR_futex_wake, at, mask, count, flags);
}

static long wait_on(void *at, unsigned long value, unsigned long mask, unsigned flags, void *timeout, int clock)
{
	return syscall(NR_futex_wait, at, value, mask, flags, timeout, clock);
}

#define EXPECT(call, result, number) expect(#call, (errno = 0, (call)), result, number)

static void expect(const char *what, long got, long result, int number)
{
	int error = errno;

	if (got != result || (got == -1 && error != number))
		printf("wrong: %s is %ld (%s)\n", what, got, strerrorname_np(error));
}

static void *waiter(void *mask)
{
	return (void *)(intptr_t)(wait_on(&word, 0, (uintptr_t)mask, U32 | PRIVATE, NULL, 0) ? -errno : 0);
}

static void check(void)
{
	struct timespec none = { 0, 0 }, bad_time = { 0, -1 };
	struct waitv both[2] = { { 0, (uintptr_t)&word, U32 | PRIVATE, 0 }, { 0, (uintptr_t)&other, U32 | PRIVATE, 0 } };
	char *bad = bad_page();
	pthread_t thread;
	long moved;

	EXPECT(wake(&word, 1, 1, U32), 0, 0);
	EXPECT(wake(&word, 0, 1, U32), -1, EINVAL);
	EXPECT(wake(&word, 1UL << 32, 1, U32), -1, EINVAL);
	EXPECT(wake(&word, 1, 1, 0), -1, EINVAL);
	EXPECT(wake(&word, 1, 1, 1), -1, EINVAL);
	EXPECT(wake(&word, 1, 1, 3), -1, EINVAL);
	EXPECT(wake(&word, 1, 1, U32 | 64), -1, EINVAL);
	EXPECT(wake((char *)&word + 1, 1, 1, U32), -1, EINVAL);
	EXPECT(wake(bad, 1, 1, U32), -1, EFAULT);
	EXPECT(wake(bad, 1, 1, U32 | PRIVATE), 0, 0);
	EXPECT(wait_on(&word, 1, 1, U32, NULL, 0), -1, EAGAIN);
	EXPECT(wait_on(&word, 0, 0, U32, NULL, 0), -1, EINVAL);
	EXPECT(wait_on(&word, 1UL << 32, 1, U32, NULL, 0), -1, EINVAL);
	EXPECT(wait_on(&word, 0, 1UL << 32, U32, NULL, 0), -1, EINVAL);
	EXPECT(wait_on(&word, 0, 1, U32, &none, CLOCK_MONOTONIC), -1, ETIMEDOUT);
	EXPECT(wait_on(&word, 0, 1, U32, &none, CLOCK_REALTIME), -1, ETIMEDOUT);
	EXPECT(wait_on(&word, 0, 1, U32, &none, CLOCK_BOOTTIME), -1, EINVAL);
	EXPECT(wait_on(&word, 0, 1, U32, &bad_time, CLOCK_REALTIME), -1, EINVAL);
	EXPECT(wait_on(&word, 0, 1, U32, bad, CLOCK_REALTIME), -1, EFAULT);
	thread = start(waiter, (void *)2);
	while ((moved = syscall(NR_futex_requeue, both, 0, 0, 1)) == 0)
		sched_yield();
	EXPECT(moved, 1, 0);
	EXPECT(wake(&word, 2, 1, U32 | PRIVATE), 0, 0);
	EXPECT(wake(&other, 1, 1, U32 | PRIVATE), 0, 0);
	EXPECT(wake(&other, 2, 0, U32 | PRIVATE), 0, 0);
	EXPECT(wake(&other, 3, 1, U32 | PRIVATE), 1, 0);
	EXPECT(join(thread), 0, 0);
	EXPECT(syscall(NR_futex_requeue, both, 1, 0, 1), -1, EINVAL);
	EXPECT(syscall(NR_futex_requeue, NULL, 0, 0, 1), -1, EINVAL);
	EXPECT(syscall(NR_futex_requeue, bad, 0, 0, 1), -1, EFAULT);
	EXPECT(syscall(NR_futex_requeue, both, 0, -1, 1), -1, EINVAL);
	both[1].flags = U32;
	EXPECT(syscall(NR_futex_requeue, both, 0, 0, 1), -1, EINVAL);
	both[1].flags = U32 | PRIVATE;
	both[0].value = 1;
	EXPECT(syscall(NR_futex_requeue, both, 0, 0, 1), -1, EAGAIN);
	both[0].value = 1UL << 32;
	EXPECT(syscall(NR_futex_requeue, both, 0, 0, 1), -1, EINVAL);
}

int main(void)
{
	if (wake(&word, 1, 1, U32) == 0 || errno != ENOSYS)
		check();
	printf("done\n");
	return 0;
}
