// mremap: results, errors, and what becomes of contents and neighbours.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static char *pages(size_t count)
{
	return mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static char *remap(void *address, size_t old, size_t new, int flags, void *target)
{
	return (char *)syscall(SYS_mremap, address, old, new, flags, target);
}

static void report(const char *what, const char *result)
{
	if (result == MAP_FAILED)
		printf("%s: %s\n", what, strerrorname_np(errno));
	else
		printf("%s: ok\n", what);
}

static int mapped(const char *address)
{
	unsigned char there;

	return mincore((void *)address, PAGE, &there) == 0;
}

static sigjmp_buf escape;
static volatile int fault_signal, fault_code;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	fault_signal = number;
	fault_code = info->si_code;
	siglongjmp(escape, 1);
}

static void errors(void)
{
	char *p = pages(16), *hole = pages(3);

	munmap(hole + PAGE, PAGE);
	report("unknown flags", remap(p, PAGE, PAGE, 8, 0));
	report("fixed without maymove", remap(p, PAGE, PAGE, MREMAP_FIXED, p + 8 * PAGE));
	report("dontunmap without maymove", remap(p, PAGE, PAGE, MREMAP_DONTUNMAP, 0));
	report("dontunmap that resizes", remap(p, PAGE, 2 * PAGE, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, 0));
	report("not aligned", remap(p + 1, PAGE, PAGE, 0, 0));
	report("new size 0", remap(p, PAGE, 0, 0, 0));
	report("new size -1", remap(p, PAGE, -1UL, MREMAP_MAYMOVE, 0));
	report("nothing there", remap((void *)0x10000, PAGE, PAGE, 0, 0));
	report("old size 0 of private memory", remap(p, 0, PAGE, MREMAP_MAYMOVE, 0));
	report("old size beyond the mapping", remap(hole, 3 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0));
	report("target not aligned", remap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 8 * PAGE + 1));
	report("target beyond the address space",
	       remap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)0x7ffffffff000));
	report("target too low", remap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)-PAGE));
	report("target overlaps", remap(p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 2 * PAGE));
	report("target overlaps where it grows",
	       remap(p + 4 * PAGE, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + PAGE));
	report("same size", remap(p, 4 * PAGE, 4 * PAGE, 0, 0));
	report("no room in place", remap(p, 4 * PAGE, 8 * PAGE, 0, 0));
	munmap(p, 16 * PAGE);
	munmap(hole, 3 * PAGE);
}

static void resizing(void)
{
	char *p = pages(16), *q;

	for (int i = 0; i < 16; i++)
		p[i * PAGE] = (char)(i + 1);
	q = remap(p, 16 * PAGE, 4 * PAGE, 0, 0);
	printf("shrunk in place: %d, rest gone: %d\n", q == p, !mapped(p + 4 * PAGE));
	q = remap(p, 4 * PAGE, 8 * PAGE, 0, 0);
	printf("grown in place: %d, contents %d %d\n", q == p, p[3 * PAGE], p[4 * PAGE]);
	q = remap(p, 7 * PAGE + 1, 8 * PAGE - 5, 0, 0);
	printf("sizes are rounded up: %d\n", q == p);
	q = remap(p, 8 * PAGE, 64 * PAGE, MREMAP_MAYMOVE, 0);
	printf("grown: contents %d %d %d\n", q[0], q[3 * PAGE], q[63 * PAGE]);
	p = remap(q + 2 * PAGE, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0);
	printf("a middle part moves: %d, contents %d %d %d, hole %d, rest stays %d\n", p != q + 2 * PAGE, p[0], p[PAGE],
	       p[2 * PAGE], !mapped(q + 2 * PAGE), mapped(q + 4 * PAGE));
	munmap(p, 4 * PAGE);
	munmap(q, 64 * PAGE);
}

static void moving(void)
{
	char *p = pages(8), *target = pages(16), *q;

	for (int i = 0; i < 8; i++)
		p[i * PAGE] = (char)(i + 1);
	memset(target, 99, 16 * PAGE);
	q = remap(p, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + 4 * PAGE);
	printf("moved: %d, contents %d %d, old place free %d, neighbours %d %d\n", q == target + 4 * PAGE, q[0],
	       q[7 * PAGE], !mapped(p), target[3 * PAGE], target[12 * PAGE]);
	p = remap(q, 8 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + 13 * PAGE);
	printf("moved and shrunk: contents %d %d, rest gone %d\n", p[0], p[PAGE], !mapped(q + 7 * PAGE));
	p = remap(p, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	printf("moved and grown: contents %d %d %d\n", p[0], p[PAGE], p[2 * PAGE]);
	munmap(target, 16 * PAGE);

	p = pages(4);
	memset(p, 5, 4 * PAGE);
	q = remap(p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	printf("not unmapped: %d %d, contents %d, old place empty %d\n", q != p, mapped(p), q[3 * PAGE], p[3 * PAGE]);
	p[PAGE] = 6;
	printf("apart: %d %d\n", p[PAGE], q[PAGE]);
	munmap(p, 4 * PAGE);
	munmap(q, 4 * PAGE);
}

static void rights(void)
{
	char *p = pages(4), *q;

	memset(p, 3, 4 * PAGE);
	mprotect(p, 4 * PAGE, PROT_READ);
	q = remap(p, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE, 0);
	printf("read-only memory moves: contents %d %d\n", q[3 * PAGE], q[4 * PAGE]);
	if (!sigsetjmp(escape, 1))
		*(volatile char *)q = 1;
	printf("and stays read-only: signal %d code %d\n", fault_signal, fault_code);
	fault_signal = 0;
	if (!sigsetjmp(escape, 1) && q != p)
		printf("%d\n", *(volatile char *)p);
	printf("nothing at the old place: %d\n", q == p || fault_signal == SIGSEGV);
	munmap(q, 8 * PAGE);
}

static void sharing(void)
{
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *twin = remap(p, 0, 2 * PAGE, MREMAP_MAYMOVE, 0), *q;

	p[PAGE] = 8;
	printf("twin: %d\n", twin[PAGE]);
	q = remap(p, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE, 0);
	printf("grown shared memory: contents %d\n", q[PAGE]);
	fault_signal = 0;
	if (!sigsetjmp(escape, 1))
		*(volatile char *)(q + 5 * PAGE) = 1;
	printf("beyond the object's end: signal %d code %d\n", fault_signal, fault_code);
	munmap(q, 6 * PAGE);
	printf("twin still: %d\n", twin[PAGE]);
	munmap(twin, 2 * PAGE);
}

// Large enough for 2 MiB pages, moved by distances that do and do not fit them.
static void large(void)
{
	size_t size = 8 * MIB;
	char *p = mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q;
	char *from = (char *)(((uintptr_t)p + 2 * MIB - 1) & -(2 * MIB)), *to = from + 16 * MIB;
	long wrong = 0;

	for (size_t i = 0; i < size; i += PAGE)
		*(size_t *)(from + i) = i;
	q = remap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	for (size_t i = 0; i < size; i += PAGE)
		wrong += *(size_t *)(q + i) != i;
	printf("8 MiB moved by 16 MiB: %ld wrong\n", wrong);
	q = remap(q, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, from + 3 * PAGE);
	for (size_t i = 0; i < size; i += PAGE)
		wrong += *(size_t *)(q + i) != i;
	printf("8 MiB moved by a few pages: %ld wrong\n", wrong);
	q = remap(q + PAGE, size - 2 * PAGE, size, MREMAP_MAYMOVE, 0);
	for (size_t i = PAGE; i < size - PAGE; i += PAGE)
		wrong += *(size_t *)(q + i - PAGE) != i;
	printf("part of it moved and grown: %ld wrong\n", wrong);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	errors();
	resizing();
	moving();
	rights();
	sharing();
	large();
	return 0;
}
