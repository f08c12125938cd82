/* Scheduling: policies, priorities, niceness, CPUs; runs as root. */
#include "say.h"

#include <linux/capability.h>
#include <sched.h>
#include <sys/resource.h>

struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
	char more[64];
};

static char *bad;
static struct attr attr;

static void policies(void)
{
	static const int known[] = { SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, 6, 4, -1, 100 };
	struct sched_param param = { 0 };
	struct timespec interval;

	for (unsigned i = 0; i < sizeof(known) / sizeof(*known); i++) {
		printf("policy %d: ", known[i]);
		printf("%ld ", syscall(SYS_sched_get_priority_min, known[i]));
		printf("%ld\n", syscall(SYS_sched_get_priority_max, known[i]));
	}
	for (unsigned i = 0; i < 5; i++) {
		static const int priorities[] = { 0, 1, 99, 100, -1 };

		for (unsigned j = 0; j < 5; j++) {
			param.sched_priority = priorities[j];
			errno = 0;
			printf("policy %d priority %d: %ld", known[i], priorities[j],
			       syscall(SYS_sched_setscheduler, 0, known[i], &param));
			printf(" %s", strerrorname_np(errno));
			syscall(SYS_sched_getparam, 0, &param);
			printf(", now %ld %d\n", syscall(SYS_sched_getscheduler, 0), param.sched_priority);
		}
	}
	param.sched_priority = 7;
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_RR | SCHED_RESET_ON_FORK, &param));
	SAY(syscall(SYS_sched_getscheduler, 0));
	SAY(syscall(SYS_sched_rr_get_interval, 0, &interval));
	printf("%ld.%09ld\n", interval.tv_sec, interval.tv_nsec);
	param.sched_priority = 9;
	SAY(syscall(SYS_sched_setparam, 0, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &param));
	SAY(syscall(SYS_sched_rr_get_interval, 0, &interval));
	printf("%ld.%09ld\n", interval.tv_sec, interval.tv_nsec);
	param.sched_priority = 0;
	SAY(syscall(SYS_sched_setparam, 0, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, 4, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, -1, &param));
	SAY(syscall(SYS_sched_setscheduler, -1, SCHED_OTHER, &param));
	SAY(syscall(SYS_sched_setscheduler, 0x3fffffff, SCHED_OTHER, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, NULL));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, bad));
	SAY(syscall(SYS_sched_setparam, 0, NULL));
	SAY(syscall(SYS_sched_getparam, 0, NULL));
	SAY(syscall(SYS_sched_getparam, 0, bad));
	SAY(syscall(SYS_sched_getparam, -1, &param));
	SAY(syscall(SYS_sched_getparam, 0x3fffffff, &param));
	SAY(syscall(SYS_sched_getscheduler, -1));
	SAY(syscall(SYS_sched_getscheduler, 0x3fffffff));
	SAY(syscall(SYS_sched_rr_get_interval, -1, &interval));
	SAY(syscall(SYS_sched_rr_get_interval, 0, bad));
	SAY(syscall(SYS_sched_yield));
}

static void show_attr(unsigned size)
{
	memset(&attr, 0xee, sizeof(attr));
	SAY(syscall(SYS_sched_getattr, 0, &attr, size, 0));
	printf("size %u policy %u flags %lx nice %d priority %u\n", attr.size, attr.policy, attr.flags, attr.nice,
	       attr.priority);
	/* What lies behind a buffer must stay; newer kernels clear what of it they have nothing for. */
	if (size <= 56 && (((char *)&attr)[size] & 0xff) != 0xee)
		printf("written behind %u\n", size);
}

static long set_attr(struct attr wanted)
{
	attr = wanted;
	return syscall(SYS_sched_setattr, 0, &attr, 0);
}

static void attributes(void)
{
	show_attr(48);
	show_attr(56);
	show_attr(100);
	SAY(set_attr((struct attr){ .size = 48, .policy = SCHED_BATCH, .nice = 5 }));
	show_attr(56);
	SAY(set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER, .nice = 50 }));
	show_attr(56);
	SAY(set_attr((struct attr){ .size = 0, .policy = SCHED_OTHER, .nice = -50 }));
	show_attr(56);
	SAY(set_attr((struct attr){ .size = 56, .policy = SCHED_FIFO, .priority = 3, .flags = 1 }));
	show_attr(56);
	SAY(set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER, .nice = 0 }));
	SAY(set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER, .flags = 1 << 20 }));
	SAY(set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER, .priority = 1 }));
	SAY(set_attr((struct attr){ .size = 56, .policy = -1 }));
	SAY(set_attr((struct attr){ .size = 47 }));
	printf("size: %u\n", attr.size);
	SAY(set_attr((struct attr){ .size = 4097 }));
	printf("size: %u\n", attr.size);
	SAY(set_attr((struct attr){ .size = 120, .more = { [10] = 1 } }));
	SAY(set_attr((struct attr){ .size = 120 }));
	SAY(set_attr((struct attr){ .size = 48, .flags = 0x20 }));
	SAY(set_attr((struct attr){ .size = 56, .policy = 6 }));
	SAY(set_attr((struct attr){ .size = 56, .policy = 6, .runtime = 2000000, .deadline = 1000000 }));
	SAY(syscall(SYS_sched_setattr, 0, NULL, 0));
	SAY(syscall(SYS_sched_setattr, 0, bad, 0));
	SAY(syscall(SYS_sched_setattr, 0, &attr, 1));
	SAY(syscall(SYS_sched_setattr, -1, &attr, 0));
	SAY(syscall(SYS_sched_getattr, 0, &attr, 47, 0));
	SAY(syscall(SYS_sched_getattr, 0, &attr, 4097, 0));
	SAY(syscall(SYS_sched_getattr, 0, &attr, 56, 1));
	SAY(syscall(SYS_sched_getattr, 0, bad, 56, 0));
	SAY(syscall(SYS_sched_getattr, 0, NULL, 56, 0));
	SAY(syscall(SYS_sched_getattr, 0x3fffffff, &attr, 56, 0));
}

static void *niceness_of_a_user(void *unused)
{
	struct sched_param param = { 1 };

	(void)unused;
	syscall(SYS_setresuid, 1234, 1234, 1234);
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, -1));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, 3));
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, 0));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, getpid(), 5));
	SAY(syscall(SYS_getpriority, PRIO_USER, 0));
	SAY(syscall(SYS_setpriority, PRIO_USER, 1234, 4));
	SAY(syscall(SYS_setpriority, PRIO_USER, 4321, 4));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &param));
	param.sched_priority = 0;
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &param));
	SAY(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &param));
	SAY(syscall(SYS_sched_setscheduler, getpid(), SCHED_OTHER, &param));
	return NULL;
}

static void niceness(void)
{
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, 0));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, -7));
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, getpid()));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, 1000));
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, 0));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, -1000));
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, 0));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0, 0));
	SAY(syscall(SYS_getpriority, 3, 0));
	SAY(syscall(SYS_getpriority, -1, 0));
	SAY(syscall(SYS_setpriority, 3, 0, 0));
	SAY(syscall(SYS_getpriority, PRIO_PROCESS, 0x3fffffff));
	SAY(syscall(SYS_setpriority, PRIO_PROCESS, 0x3fffffff, 0));
	SAY(syscall(SYS_getpriority, PRIO_PGRP, 0x3fffffff));
	SAY(syscall(SYS_getpriority, PRIO_USER, 0x3fffffff));
	join(start(niceness_of_a_user, NULL));
}

static void cpus(void)
{
	unsigned long mask[128];
	unsigned cpu = -1, node = -1;
	long size = syscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);

	printf("a mask of whole words: %d\n", size > 0 && size % 8 == 0);
	printf("some CPU: %d\n", mask[0] != 0);
	SAY(syscall(SYS_sched_getaffinity, 0, 0, mask));
	SAY(syscall(SYS_sched_getaffinity, 0, sizeof(mask) + 1, mask));
	SAY(syscall(SYS_sched_getaffinity, 0, 0x20000000, mask));
	SAY(syscall(SYS_sched_getaffinity, 0x3fffffff, sizeof(mask), mask));
	SAY(syscall(SYS_sched_getaffinity, -1, sizeof(mask), mask));
	SAY(syscall(SYS_sched_getaffinity, 0, sizeof(mask), bad));
	SAY(syscall(SYS_sched_setaffinity, 0, sizeof(mask), bad));
	SAY(syscall(SYS_sched_setaffinity, 0, 0, bad));
	SAY(syscall(SYS_sched_setaffinity, 0x3fffffff, sizeof(mask), mask));
	for (int i = 0; i < 64; i++) {
		unsigned long one = 1UL << i;

		if (!(mask[0] & one))
			continue;
		syscall(SYS_sched_setaffinity, 0, sizeof(one), &one);
		syscall(SYS_getcpu, &cpu, &node, NULL);
		if (cpu != (unsigned)i)
			printf("on CPU %u, not %d\n", cpu, i);
		syscall(SYS_sched_getaffinity, 0, size, &mask[64]);
		if (mask[64] != one)
			printf("may use %lx, not %lx\n", mask[64], one);
	}
	SAY(syscall(SYS_sched_setaffinity, 0, size, mask));
	memset(mask, 0, sizeof(mask));
	SAY(syscall(SYS_sched_setaffinity, 0, sizeof(mask), mask));
	SAY(syscall(SYS_getcpu, NULL, NULL, NULL));
	SAY(syscall(SYS_getcpu, bad, NULL, NULL));
	SAY(syscall(SYS_getcpu, NULL, bad, NULL));
}

static void *inherits(void *unused)
{
	(void)unused;
	show_attr(56);
	return NULL;
}

static void inheriting(void)
{
	set_attr((struct attr){ .size = 56, .policy = SCHED_BATCH, .nice = -4 });
	join(start(inherits, NULL));
	set_attr((struct attr){ .size = 56, .policy = SCHED_RR, .priority = 2, .flags = 1 });
	join(start(inherits, NULL));
	set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER, .nice = -4, .flags = 1 });
	join(start(inherits, NULL));
	set_attr((struct attr){ .size = 56, .policy = SCHED_OTHER });
}

int main(void)
{
	bad = bad_page();
	policies();
	attributes();
	niceness();
	cpus();
	inheriting();
	return 0;
}
