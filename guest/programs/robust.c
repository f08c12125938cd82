/* Robust lists: locks of threads that die, hostile lists, and the mutexes of the C library that are built on them. */
#include "say.h"

#include <linux/futex.h>
#include <stddef.h>

struct entry {
	struct robust_list list;
	uint32_t word;
};

struct dying {
	struct robust_list_head head;
	struct entry entry[8];
	uint32_t tid;
	int count;
	void (*prepare)(struct dying *);
};

static volatile int died;

/* A bare thread: the C library would have a list of its own. It ends by exit alone; the kernel then walks the list. */
static void *dies(void *argument)
{
	struct dying *dying = argument;

	dying->tid = syscall(SYS_gettid);
	dying->head.futex_offset = offsetof(struct entry, word) - offsetof(struct entry, list);
	dying->head.list.next = &dying->head.list;
	for (int i = dying->count - 1; i >= 0; i--) {
		dying->entry[i].list.next = dying->head.list.next;
		dying->head.list.next = &dying->entry[i].list;
		dying->entry[i].word = dying->tid;
	}
	dying->prepare(dying);
	if (syscall(SYS_set_robust_list, &dying->head, sizeof(dying->head)))
		abort();
	died = 1;
	syscall(SYS_exit, 0);
	return NULL;
}

static void show(const char *what, struct dying *dying, int entries)
{
	printf("%s:", what);
	for (int i = 0; i < entries; i++) {
		uint32_t word = dying->entry[i].word, tid = word & FUTEX_TID_MASK;

		printf(" [%s%s%s]", word & FUTEX_WAITERS ? "waiters " : "", word & FUTEX_OWNER_DIED ? "died " : "",
		       !tid ? "free" : tid == dying->tid ? "owned" : "other");
	}
	printf("\n");
}

static void run(const char *what, int count, int shown, void (*prepare)(struct dying *))
{
	struct dying *dying = good_page();

	dying->count = count;
	dying->prepare = prepare;
	join(start(dies, dying));
	show(what, dying, shown);
	munmap(dying, 4096);
}

static void nothing(struct dying *dying)
{
	(void)dying;
}

static void various(struct dying *dying)
{
	dying->entry[1].word |= FUTEX_WAITERS;
	dying->entry[2].word = 0x12345;
	dying->entry[3].word |= FUTEX_OWNER_DIED;
	dying->entry[4].word = 0;
}

static void pending_alone(struct dying *dying)
{
	dying->entry[7].word = dying->tid;
	dying->head.list_op_pending = &dying->entry[7].list;
}

static void pending_in_list(struct dying *dying)
{
	dying->head.list_op_pending = &dying->entry[1].list;
}

static void circle(struct dying *dying)
{
	dying->entry[2].list.next = &dying->entry[0].list;
	pending_alone(dying);
}

static void to_itself(struct dying *dying)
{
	dying->entry[1].list.next = &dying->entry[1].list;
}

static void bad_link(struct dying *dying)
{
	dying->entry[1].list.next = (struct robust_list *)8;
	pending_alone(dying);
}

static void far_link(struct dying *dying)
{
	dying->entry[1].list.next = (struct robust_list *)-8L;
}

static void odd_offset(struct dying *dying)
{
	dying->head.futex_offset++;
}

static void wild_offset(struct dying *dying)
{
	dying->head.futex_offset = 1L << 45;
}

static void pi_entries(struct dying *dying)
{
	dying->head.list.next = (struct robust_list *)((uintptr_t)dying->head.list.next | 1);
	dying->entry[0].word |= FUTEX_WAITERS;
}

static void calls(void)
{
	void *head = NULL, *bad = bad_page();
	size_t length = 0;

	SAY(syscall(SYS_set_robust_list, &head, 23));
	SAY(syscall(SYS_set_robust_list, &head, 0));
	SAY(syscall(SYS_set_robust_list, (void *)0x1234, 24));
	SAY(syscall(SYS_get_robust_list, 0, &head, &length));
	printf("%p %zu\n", head, length);
	SAY(syscall(SYS_get_robust_list, getpid(), &head, &length));
	SAY(syscall(SYS_get_robust_list, 0x3fffffff, &head, &length));
	SAY(syscall(SYS_get_robust_list, -1, &head, &length));
	SAY(syscall(SYS_get_robust_list, 0, bad, &length));
	SAY(syscall(SYS_get_robust_list, 0, &head, bad));
	SAY(syscall(SYS_set_robust_list, NULL, 24));
}

/* A waiter is woken by the death of the owner. */
static struct dying *watched;

static void *waits(void *unused)
{
	uint32_t *word = &watched->entry[0].word;

	(void)unused;
	return (void *)(intptr_t)syscall(SYS_futex, word, FUTEX_WAIT, *word, NULL, NULL, 0);
}

static void with_waiter(struct dying *dying)
{
	dying->entry[0].word |= FUTEX_WAITERS;
	watched = dying;
	start(waits, NULL);
	while (syscall(SYS_futex, &dying->entry[0].word, FUTEX_REQUEUE, 0, 1L, &dying->entry[0].word, 0) != 1)
		sched_yield();
}

static void waking(void)
{
	struct dying *dying = good_page();

	dying->count = 1;
	dying->prepare = with_waiter;
	join(start(dies, dying));
	while (syscall(SYS_futex, &dying->entry[0].word, FUTEX_REQUEUE, 0, 1L, &dying->entry[0].word, 0))
		sched_yield();
	show("waited for", dying, 1);
}

/* The C library's. */
static pthread_mutex_t mutex;

static void *takes_and_dies(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&mutex);
	return NULL;
}

static void mutexes(int protocol)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setprotocol(&attributes, protocol);
	pthread_mutex_init(&mutex, &attributes);
	join(start(takes_and_dies, NULL));
	printf("lock: %s\n", strerrorname_np(pthread_mutex_lock(&mutex)));
	printf("consistent: %d\n", pthread_mutex_consistent(&mutex));
	printf("unlock: %d\n", pthread_mutex_unlock(&mutex));
	printf("lock: %d\n", pthread_mutex_lock(&mutex));
	printf("unlock: %d\n", pthread_mutex_unlock(&mutex));
	join(start(takes_and_dies, NULL));
	printf("lock: %s\n", strerrorname_np(pthread_mutex_lock(&mutex)));
	printf("unlock: %d\n", pthread_mutex_unlock(&mutex));
	printf("lock: %s\n", strerrorname_np(pthread_mutex_lock(&mutex)));
	printf("destroy: %d\n", pthread_mutex_destroy(&mutex));
}

int main(void)
{
	calls();
	run("an empty list", 0, 1, nothing);
	run("locks", 3, 4, nothing);
	run("locks of all kinds", 5, 5, various);
	run("a pending lock", 0, 8, pending_alone);
	run("a pending lock in the list", 3, 3, pending_in_list);
	run("a circle", 3, 8, circle);
	run("a link to itself", 3, 3, to_itself);
	run("a bad link", 3, 8, bad_link);
	run("a far link", 3, 3, far_link);
	run("an odd offset", 3, 3, odd_offset);
	run("a wild offset", 3, 3, wild_offset);
	run("a PI lock", 2, 2, pi_entries);
	waking();
	mutexes(PTHREAD_PRIO_NONE);
	mutexes(PTHREAD_PRIO_INHERIT);
	return 0;
}
