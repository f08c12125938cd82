// Changes of mappings must be seen at once, by the thread that makes them and by one that runs beside it: a monitor that
// forgets to take a translation back shows old contents, lets a store through, or lets old code run.
// memory_stale [SEED [ROUNDS]]
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define SPAN (6 * MIB)
#define COUNT (SPAN / PAGE)

static unsigned state = 12345;

static unsigned draw(unsigned limit)
{
	state = state * 1103515245 + 12345;
	return (state >> 8) % limit;
}

static sigjmp_buf escape;
static volatile int faulted;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)number, (void)info, (void)context;
	faulted = 1;
	siglongjmp(escape, 1);
}

static struct {
	int prot; // -1: not mapped
	unsigned value;
} page[COUNT];
static char *base;
static long wrong, loads, stores;

static void check(unsigned n)
{
	volatile unsigned *at = (unsigned *)(base + n * PAGE + 64);
	volatile unsigned got = 0;
	unsigned new = draw(1 << 30);

	faulted = 0;
	if (!sigsetjmp(escape, 1))
		got = *at;
	loads++;
	if (faulted != (page[n].prot <= 0) || (!faulted && got != page[n].value))
		wrong++;
	faulted = 0;
	if (!sigsetjmp(escape, 1))
		*at = new;
	stores++;
	if (faulted != !(page[n].prot > 0 && page[n].prot & PROT_WRITE))
		wrong++;
	if (!faulted)
		page[n].value = new;
}

static void change(void)
{
	static const int prots[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE};
	unsigned first = draw(4) ? draw(COUNT) : draw(3) * 512, count = draw(3) ? 1 + draw(40) : 512;
	unsigned what = draw(6);
	int prot = prots[draw(4)];
	char *start = base + first * PAGE;

	if (first + count > COUNT)
		count = COUNT - first;
	if (what <= 1)
		mmap(start, count * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	else if (what == 2)
		munmap(start, count * PAGE);
	else if (what == 3)
		madvise(start, count * PAGE, MADV_DONTNEED);
	for (unsigned n = first; n < first + count; n++) {
		if (what <= 1)
			page[n].prot = prot;
		else if (what == 2)
			page[n].prot = -1;
		else if (what >= 4 && page[n].prot >= 0) {
			mprotect(base + n * PAGE, PAGE, prot);
			page[n].prot = prot;
			n += draw(8);
			continue;
		}
		if (what <= 3)
			page[n].value = 0;
	}
}

static void alone(int rounds)
{
	base = mmap(NULL, SPAN + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	base = (char *)(((uintptr_t)base + 2 * MIB - 1) & -(2 * MIB));
	for (unsigned n = 0; n < COUNT; n++)
		page[n].prot = PROT_READ | PROT_WRITE;
	for (unsigned n = 0; n < COUNT; n++)
		check(n);
	for (int i = 0; i < rounds; i++) {
		change();
		for (int j = 0; j < 20; j++)
			check(draw(COUNT));
	}
	for (unsigned n = 0; n < COUNT; n++)
		check(n);
	printf("alone: %ld loads, %ld stores, %ld wrong\n", loads, stores, wrong);
}

static _Atomic unsigned phase; // odd while the mapping is being changed
static volatile unsigned *watched;
static _Atomic long seen, mismatches;

static void *watcher(void *unused)
{
	(void)unused;
	for (;;) {
		unsigned before = atomic_load(&phase), got;

		if (before == ~0u)
			return NULL;
		if (before & 1)
			continue;
		got = *watched;
		if (atomic_load(&phase) != before)
			continue;
		atomic_fetch_add(&seen, 1);
		if (got != before)
			atomic_fetch_add(&mismatches, 1);
	}
}

static void beside(void)
{
	char *area = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	watched = (unsigned *)(area + PAGE);
	pthread_create(&thread, NULL, watcher, NULL);
	for (unsigned i = 2; i <= 200; i += 2) {
		long before;

		atomic_store(&phase, i - 1);
		if (i % 6 == 0)
			madvise(area, 4 * PAGE, MADV_DONTNEED);
		else if (i % 6 == 2)
			mmap(area, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		else {
			char *fresh = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			memset(fresh, 1, 4 * PAGE);
			mremap(fresh, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, area);
		}
		*watched = i;
		before = atomic_load(&seen);
		atomic_store(&phase, i);
		while (atomic_load(&seen) < before + 3)
			;
	}
	atomic_store(&phase, ~0u);
	pthread_join(thread, NULL);
	printf("beside: seen often enough, %ld mismatches\n", (long)mismatches);
}

static void code(void)
{
	unsigned char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static long bad;
	static int i;

	for (i = 0; i < 50; i++) {
		unsigned char text[] = {0xb8, (unsigned char)i, 0, 0, 0, 0xc3}; // mov $i, %eax; ret

		memcpy(p, text, sizeof text);
		mprotect(p, PAGE, PROT_READ | PROT_EXEC);
		bad += ((int (*)(void))(uintptr_t)p)() != i;
		if (i % 3 == 0)
			mprotect(p, PAGE, PROT_READ | PROT_WRITE);
		else
			mmap(p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		faulted = 0;
		if (!sigsetjmp(escape, 1))
			((int (*)(void))(uintptr_t)p)();
		bad += !faulted;
	}
	printf("code: %ld wrong\n", bad);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	if (argc > 1)
		state = (unsigned)atoi(argv[1]);
	alone(argc > 2 ? atoi(argv[2]) : 300);
	beside();
	code();
	return wrong || mismatches;
}
