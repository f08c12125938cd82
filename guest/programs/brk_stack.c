// The heap's end, the stack's growth, and the limits of both.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static uintptr_t set_brk(uintptr_t address)
{
	return (uintptr_t)syscall(SYS_brk, address);
}

static void limit(int resource, rlim_t value)
{
	struct rlimit both;

	getrlimit(resource, &both);
	both.rlim_cur = value;
	if (setrlimit(resource, &both))
		perror("setrlimit");
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

static void heap(void)
{
	uintptr_t start = set_brk(0), page = (start + PAGE - 1) & -PAGE, end;
	char *p;

	printf("asked twice, the same: %d\n", set_brk(0) == start);
	printf("below the heap: %d\n", set_brk(0x10000) == start);
	printf("far too much: %d\n", set_brk(0x7ffffffff000) == start);
	printf("in the kernel's half: %d\n", set_brk(-PAGE) == start);
	printf("by 100 bytes: %d\n", set_brk(start + 100) == start + 100);
	printf("by 1 MiB: %d\n", set_brk(page + MIB) == page + MIB);
	p = (char *)page;
	printf("zeros: %d %d\n", p[0], p[MIB - 1]);
	memset(p, 7, MIB);
	printf("back by half: %d\n", set_brk(page + MIB / 2) == page + MIB / 2);
	if (!sigsetjmp(escape, 1))
		printf("%d\n", *(volatile char *)(p + MIB / 2));
	printf("given back: signal %d code %d\n", fault_signal, fault_code);
	set_brk(page + MIB);
	printf("zeros again: %d, the rest stayed: %d\n", p[MIB / 2], p[MIB / 2 - 1]);

	end = page + MIB;
	p = mmap((void *)(end + PAGE), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	printf("up to a mapping: %d\n", set_brk(end + PAGE) == end);
	munmap(p, PAGE);
	printf("when it is gone: %d\n", set_brk(end + PAGE) == end + PAGE);

	limit(RLIMIT_DATA, 4 * MIB);
	printf("within RLIMIT_DATA: %d\n", set_brk(end + 2 * PAGE) == end + 2 * PAGE);
	printf("beyond RLIMIT_DATA: %d\n", set_brk(end + 16 * MIB) == end + 2 * PAGE);
	p = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("a private mapping beyond it: %s\n", p == MAP_FAILED ? strerrorname_np(errno) : "ok");
	p = mmap(NULL, 16 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("a read-only one: %s\n", p == MAP_FAILED ? strerrorname_np(errno) : "ok");
	printf("made writable: %s\n", mprotect(p, 16 * MIB, PROT_READ | PROT_WRITE) ? strerrorname_np(errno) : "ok");
	munmap(p, 16 * MIB);
	limit(RLIMIT_DATA, RLIM_INFINITY);

	limit(RLIMIT_AS, 256 * MIB);
	p = mmap(NULL, 512 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	printf("a mapping beyond RLIMIT_AS: %s\n", p == MAP_FAILED ? strerrorname_np(errno) : "ok");
	printf("a heap beyond RLIMIT_AS: %d\n", set_brk(end + 512 * MIB) == end + 2 * PAGE);
	limit(RLIMIT_AS, RLIM_INFINITY);
	set_brk(start);
}

static __attribute__((noinline)) long deep(long levels)
{
	volatile char frame[PAGE];

	frame[0] = frame[PAGE - 1] = (char)levels;
	return levels ? deep(levels - 1) + frame[0] - frame[PAGE - 1] + 1 : 0;
}

static char alternate[16 * PAGE];

static void overflow(const char *what)
{
	fault_signal = fault_code = 0;
	if (!sigsetjmp(escape, 1))
		printf("%ld\n", deep(100000));
	printf("%s: signal %d code %d\n", what, fault_signal, fault_code);
}

static void stack(void)
{
	stack_t other = {.ss_sp = alternate, .ss_size = sizeof alternate};
	char here, *wall;
	uintptr_t page = (uintptr_t)&here & -PAGE;

	sigaltstack(&other, NULL);
	printf("2 MiB deep: %ld\n", deep(500));

	// something in the way: the gap below a stack is kept
	wall = mmap((void *)(page - 6 * MIB), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	printf("a mapping 6 MiB below: %d\n", wall != MAP_FAILED);
	overflow("towards it");
	printf("4 MiB deep: %ld\n", deep(1000));
	munmap(wall, PAGE);
	overflow("without end");
	limit(RLIMIT_STACK, 6 * MIB);
	overflow("without end, within 6 MiB");
	printf("still 4 MiB deep: %ld\n", deep(1000));
	limit(RLIMIT_STACK, 8 * MIB);
}

static void own_stack(void)
{
	char *area = mmap(NULL, 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *top = area + 3 * MIB;
	volatile char *p;

	munmap(area, 4 * MIB);
	p = mmap(top - PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	p[0] = 1;
	fault_signal = 0;
	if (!sigsetjmp(escape, 1))
		p[-1] = p[-1000] = 2;
	printf("an area that grows down: signal %d, %d %d\n", fault_signal, p[0], fault_signal ? 0 : p[-1000]);
	printf("protected with all that grew: %d\n",
	       mprotect((char *)top - PAGE, PAGE, PROT_READ | PROT_GROWSDOWN));
	fault_signal = 0;
	if (!sigsetjmp(escape, 1))
		p[-1000] = 3;
	printf("which holds below, too: signal %d\n", fault_signal);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	limit(RLIMIT_STACK, 8 * MIB);
	heap();
	stack();
	own_stack();
	return 0;
}
