// mmap, munmap, mprotect, madvise, msync, mincore, mlock: results and errors, one a line, without addresses.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

static void report(const char *what, long result)
{
	if (result == -1)
		printf("%s: %s\n", what, strerrorname_np(errno));
	else
		printf("%s: ok\n", what);
}

static long map(uintptr_t address, size_t length, int prot, int flags, int fd, off_t offset)
{
	return syscall(SYS_mmap, address, length, prot, flags, fd, offset);
}

static char *pages(size_t count)
{
	return mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void mapping_errors(void)
{
	int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;

	report("length 0", map(0, 0, PROT_READ, anonymous, -1, 0));
	report("length 0 of a bad descriptor", map(0, 0, PROT_READ, MAP_PRIVATE, -1, 0));
	report("bad descriptor", map(0, PAGE, PROT_READ, MAP_PRIVATE, -1, 0));
	report("length -1", map(0, -1UL, PROT_READ, anonymous, -1, 0));
	report("length 2^47", map(0, 1UL << 47, PROT_READ, anonymous, -1, 0));
	report("length 2^46, not reserved", map(0, 1UL << 46, PROT_READ, anonymous | MAP_NORESERVE, -1, 0));
	report("offset not aligned", map(0, PAGE, PROT_READ, anonymous, -1, 5));
	report("offset of anonymous memory", map(0, PAGE, PROT_READ, anonymous, -1, PAGE));
	report("neither shared nor private", map(0, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0));
	report("shared and private, anonymous", map(0, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0));
	report("type 4", map(0, PAGE, PROT_READ, 4 | MAP_ANONYMOUS, -1, 0));
	report("shared that grows down", map(0, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
	report("unknown protection bits", map(0, PAGE, 0x70, anonymous, -1, 0));
	report("fixed, not aligned", map(0x10000001, PAGE, PROT_READ, anonymous | MAP_FIXED, -1, 0));
	report("fixed at the top", map(0x7ffffffff000, PAGE, PROT_READ, anonymous | MAP_FIXED, -1, 0));
	report("fixed in the kernel's half", map(0xffffffffff5fe000, PAGE, PROT_READ, anonymous | MAP_FIXED, -1, 0));
	report("fixed, wrapping around", map(0xfffffffffffff000, 2 * PAGE, PROT_READ, anonymous | MAP_FIXED, -1, 0));
	report("hint in the kernel's half", map(0xffffffffff5fe000, PAGE, PROT_READ, anonymous, -1, 0));
	report("hint at 1", map(1, PAGE, PROT_READ, anonymous, -1, 0));
	report("huge pages", map(0, 1UL << 40, PROT_READ, anonymous | MAP_HUGETLB, -1, 0));
	report("huge pages of 1 MiB", map(0, 2 * MIB, PROT_READ, anonymous | MAP_HUGETLB | 20 << 26, -1, 0));
	report("locked", map(0, PAGE, PROT_READ, anonymous | MAP_LOCKED, -1, 0));
	report("populated without access", map(0, PAGE, PROT_NONE, anonymous | MAP_POPULATE, -1, 0));
	report("populated", map(0, 64 * PAGE, PROT_READ | PROT_WRITE, anonymous | MAP_POPULATE, -1, 0));
}

static void placing(void)
{
	char *p = pages(16), *q;

	report("noreplace on a mapping", map((uintptr_t)p + PAGE, PAGE, PROT_READ,
					     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	munmap(p + 4 * PAGE, 4 * PAGE);
	q = (char *)map((uintptr_t)p + 4 * PAGE, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			-1, 0);
	printf("noreplace in a hole: %d\n", q == p + 4 * PAGE);
	munmap(q, 4 * PAGE);
	q = (char *)map((uintptr_t)p + 4 * PAGE + 123, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("a hint that fits, rounded down: %d\n", q == p + 4 * PAGE);
	q = (char *)map((uintptr_t)p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("a hint that does not fit: %d\n", q != p && q != MAP_FAILED);
	p[0] = 7;
	q = (char *)map((uintptr_t)p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	printf("fixed replaces: %d, contents %d\n", q == p, q[0]);
	q = (char *)map(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	printf("below 2 GiB: %d\n", (uintptr_t)q < 1UL << 31);
	report("unmap all of it", munmap(p, 16 * PAGE));
}

static void unmapping(void)
{
	char *p = pages(8);

	report("unmap, not aligned", syscall(SYS_munmap, p + 1, PAGE));
	report("unmap nothing", syscall(SYS_munmap, p, 0));
	report("unmap too much", syscall(SYS_munmap, p, -PAGE));
	report("unmap the kernel's half", syscall(SYS_munmap, 0xffffffff80000000, PAGE));
	report("unmap a hole", syscall(SYS_munmap, 0x10000, PAGE));
	report("unmap less than a page", syscall(SYS_munmap, p, 1));
	report("unmap it again", syscall(SYS_munmap, p, PAGE));
	p[PAGE] = 1;
	report("unmap with a hole", syscall(SYS_munmap, p, 8 * PAGE));
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

static void protecting(void)
{
	char *p = pages(8);

	memset(p, 1, 8 * PAGE);
	report("protect, not aligned", syscall(SYS_mprotect, p + 1, PAGE, PROT_READ));
	report("protect nothing", syscall(SYS_mprotect, p, 0, PROT_READ));
	report("protect nothing, not aligned", syscall(SYS_mprotect, p + 1, 0, PROT_READ));
	report("protect, wrapping around", syscall(SYS_mprotect, p, -PAGE, PROT_READ));
	report("protect, length -1", syscall(SYS_mprotect, p, -1UL, PROT_READ));
	report("protect, unknown bits", syscall(SYS_mprotect, p, PAGE, 0x10));
	report("protect, PROT_SEM", syscall(SYS_mprotect, p, PAGE, PROT_READ | PROT_WRITE | 8));
	report("protect, growing both ways", syscall(SYS_mprotect, p, PAGE, PROT_READ | PROT_GROWSDOWN | PROT_GROWSUP));
	report("protect, growing down", syscall(SYS_mprotect, p, PAGE, PROT_READ | PROT_GROWSDOWN));
	report("protect, growing up", syscall(SYS_mprotect, p, PAGE, PROT_READ | PROT_GROWSUP));
	report("protect a hole", syscall(SYS_mprotect, 0x10000, PAGE, PROT_READ));
	report("protect the kernel's half", syscall(SYS_mprotect, 0xffffffff80000000, PAGE, PROT_READ));
	munmap(p + 3 * PAGE, PAGE);
	report("protect over a hole", mprotect(p, 8 * PAGE, PROT_READ));
	report("the part before the hole is changed", syscall(SYS_pread64, -1, p, 1, 0));
	report("protect from a hole on", mprotect(p + 3 * PAGE, 2 * PAGE, PROT_READ));
	report("write access again", mprotect(p, PAGE, PROT_READ | PROT_WRITE));
	p[0] = 2;
	report("no access", mprotect(p, PAGE, PROT_NONE));
	report("and back", mprotect(p, PAGE, PROT_READ));
	printf("contents stayed: %d %d\n", p[0], p[PAGE]);
	munmap(p, 8 * PAGE);
}

static void shared(void)
{
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), *q;

	p[0] = 1;
	p[3 * PAGE] = 4;
	q = mremap(p, 0, 4 * PAGE, MREMAP_MAYMOVE);
	printf("mapped once more: %d %d\n", q != MAP_FAILED && q != p, q[3 * PAGE]);
	q[PAGE] = 2;
	printf("seen in both: %d\n", p[PAGE]);
	report("drop the pages of one", madvise(p, 4 * PAGE, MADV_DONTNEED));
	printf("contents stay: %d %d %d\n", p[0], p[PAGE], p[3 * PAGE]);
	report("punch a hole", madvise(q, 2 * PAGE, MADV_REMOVE));
	printf("zero in both: %d %d %d\n", p[0], q[PAGE], p[3 * PAGE]);
	munmap(p, 4 * PAGE);
	printf("the other one stays: %d\n", q[3 * PAGE]);
	munmap(q, 4 * PAGE);
}

static void advising(void)
{
	static const struct {
		const char *name;
		int advice;
	} advices[] = {
		{"normal", MADV_NORMAL},         {"random", MADV_RANDOM},         {"sequential", MADV_SEQUENTIAL},
		{"willneed", MADV_WILLNEED},     {"dontneed", MADV_DONTNEED},     {"free", MADV_FREE},
		{"remove", MADV_REMOVE},         {"dontfork", MADV_DONTFORK},     {"dofork", MADV_DOFORK},
		{"hugepage", MADV_HUGEPAGE},     {"nohugepage", MADV_NOHUGEPAGE}, {"dontdump", MADV_DONTDUMP},
		{"dodump", MADV_DODUMP},         {"wipeonfork", MADV_WIPEONFORK}, {"keeponfork", MADV_KEEPONFORK},
		{"cold", MADV_COLD},             {"pageout", MADV_PAGEOUT},       {"populate read", 22},
		{"populate write", 23},          {"unknown 5", 5},                {"unknown 99", 99},
		{"unknown -1", -1},
	};
	char *p = pages(8), *locked = pages(1), *guard = pages(3), *read_only = pages(1);
	char *all = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char text[64];

	mlock(locked, PAGE);
	munmap(guard + PAGE, PAGE);
	mprotect(read_only, PAGE, PROT_READ);
	for (size_t i = 0; i < sizeof advices / sizeof *advices; i++) {
		int advice = advices[i].advice;
		const char *name = advices[i].name;

		snprintf(text, sizeof text, "advise %s", name);
		report(text, madvise(p, 4 * PAGE, advice));
		snprintf(text, sizeof text, "advise %s, locked", name);
		report(text, madvise(locked, PAGE, advice));
		snprintf(text, sizeof text, "advise %s, hole", name);
		report(text, madvise(guard, 3 * PAGE, advice));
		snprintf(text, sizeof text, "advise %s, read-only", name);
		report(text, madvise(read_only, PAGE, advice));
		snprintf(text, sizeof text, "advise %s, shared", name);
		report(text, madvise(all, 2 * PAGE, advice));
		snprintf(text, sizeof text, "advise %s, not aligned", name);
		report(text, madvise(p + 1, PAGE, advice));
		snprintf(text, sizeof text, "advise %s, nothing", name);
		report(text, madvise(p, 0, advice));
		snprintf(text, sizeof text, "advise %s, length -1", name);
		report(text, madvise(p, -1UL, advice));
	}
	memset(p, 5, 8 * PAGE);
	report("drop", madvise(p + PAGE, 2 * PAGE, MADV_DONTNEED));
	printf("zero where it was dropped: %d %d %d %d\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
}

static void looking(void)
{
	unsigned char there[8] = {0};
	char *p = pages(3 * 512);
	char *middle = (char *)(((uintptr_t)p + 2 * MIB - 1) & -(2 * MIB));

	memset(middle, 1, 4 * PAGE);
	report("mincore", mincore(middle, 4 * PAGE, there));
	printf("present: %d %d %d %d\n", there[0] & 1, there[1] & 1, there[2] & 1, there[3] & 1);
	madvise(middle, 4 * PAGE, MADV_DONTNEED);
	mincore(middle, 4 * PAGE, there);
	printf("dropped: %d %d %d %d\n", there[0] & 1, there[1] & 1, there[2] & 1, there[3] & 1);
	report("mincore, not aligned", mincore(p + 1, PAGE, there));
	report("mincore, nothing", mincore(p, 0, there));
	report("mincore, bad vector", mincore(p, PAGE, (unsigned char *)8));
	report("mincore, vector in the kernel's half", mincore(p, PAGE, (unsigned char *)0xffffffff80000000));
	report("mincore of a hole", mincore((void *)0x10000, PAGE, there));
	report("mincore of the kernel's half", mincore((void *)0xffffffff80000000, PAGE, there));
	report("msync", msync(p, 8 * PAGE, MS_SYNC));
	report("msync, nothing", msync(p, 0, MS_SYNC));
	report("msync without flags", msync(p, PAGE, 0));
	report("msync, both flags", msync(p, PAGE, MS_SYNC | MS_ASYNC));
	report("msync, unknown flag", msync(p, PAGE, 8));
	report("msync, not aligned", msync(p + 1, PAGE, MS_SYNC));
	report("msync, length -1", msync(p, -1UL, MS_SYNC));
	report("msync, too long", msync(p, -PAGE, MS_SYNC));
	munmap(p + PAGE, PAGE);
	report("msync with a hole", msync(p, 3 * PAGE, MS_SYNC));
	report("msync of a hole", msync(p + PAGE, PAGE, MS_ASYNC));
}

static void locking(void)
{
	char *p = pages(8);

	report("lock", mlock(p + 10, PAGE));
	report("invalidate what is locked", msync(p, PAGE, MS_INVALIDATE));
	report("lock nothing", mlock(p, 0));
	report("lock a hole", mlock((void *)0x10000, PAGE));
	report("lock, length -1", mlock(p, -1UL));
	report("lock, too long", mlock(p, -2 * PAGE));
	report("lock on fault", mlock2(p, PAGE, MLOCK_ONFAULT));
	report("lock, unknown flag", mlock2(p, PAGE, 2));
	report("unlock", munlock(p, 2 * PAGE));
	report("unlock what is not locked", munlock(p, 8 * PAGE));
	report("unlock a hole", munlock((void *)0x10000, PAGE));
	mprotect(p, PAGE, PROT_NONE);
	report("lock what nobody may access", mlock(p, PAGE));
	report("lock all, no flags", mlockall(0));
	report("lock all, unknown flag", mlockall(8));
	report("lock all, only on fault", mlockall(MCL_ONFAULT));
	report("unlock all", munlockall());
}

static void files(void)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	int path = open("/proc/self/exe", O_PATH);
	char magic[4], *p;

	p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	printf("a file's first bytes: %d %d\n", p[1] == 'E', p[2] == 'L');
	p[1] = 'x';
	printf("a private change: %d, in the file: %d\n", p[1] == 'x', pread(fd, magic, 4, 0) == 4 && magic[1] == 'E');
	report("shared and writable, of a read-only file", map(0, PAGE, PROT_WRITE, MAP_SHARED, fd, 0));
	p = (char *)map(0, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	report("shared, of a read-only file", (long)p);
	report("made writable", mprotect(p, PAGE, PROT_READ | PROT_WRITE));
	report("validated, unknown flag", map(0, PAGE, PROT_READ, MAP_SHARED_VALIDATE | 0x400, fd, 0));
	report("validated", map(0, PAGE, PROT_READ, MAP_SHARED_VALIDATE, fd, 0));
	report("synchronous", map(0, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0));
	report("type 0 of a file", map(0, PAGE, PROT_READ, 0, fd, 0));
	report("growing down, of a file", map(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_GROWSDOWN, fd, 0));
	report("huge pages of a file", map(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_HUGETLB, fd, 0));
	report("offset too large", map(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 0x7ffffffffffff000));
	report("O_PATH", map(0, PAGE, PROT_READ, MAP_PRIVATE, path, 0));
	report("free a file's pages", madvise(p, PAGE, MADV_FREE));
	report("punch a hole into it", madvise(p, PAGE, MADV_REMOVE));
	report("wipe it on fork", madvise(p, PAGE, MADV_WIPEONFORK));
	p = mmap(NULL, 1024 * MIB, PROT_READ, MAP_PRIVATE, fd, 0);
	report("far beyond its end", (long)p);
	report("populate beyond its end", madvise(p + 1000 * MIB, PAGE, 22));
	report("lock beyond its end", mlock(p + 1000 * MIB, PAGE));
	if (!sigsetjmp(escape, 1))
		printf("%d\n", ((volatile char *)p)[1000 * MIB]);
	printf("reading beyond its end: signal %d code %d\n", fault_signal, fault_code);
}

static void faults(void)
{
	static const struct {
		const char *name;
		int prot;
	} kinds[] = {{"none", PROT_NONE}, {"read", PROT_READ}, {"write", PROT_WRITE}, {"exec", PROT_EXEC}};

	static volatile char *p;
	static volatile int i, access;

	for (i = 0; i < 4; i++) {
		p = pages(1);
		p[0] = (char)0xc3; // ret
		mprotect((void *)p, PAGE, kinds[i].prot);
		for (access = 0; access < 3; access++) {
			fault_signal = fault_code = 0;
			if (!sigsetjmp(escape, 1)) {
				if (access == 0)
					(void)p[0];
				else if (access == 1)
					p[0] = (char)0xc3;
				else
					((void (*)(void))(uintptr_t)p)();
			}
			printf("%s page, %s: signal %d code %d\n", kinds[i].name,
			       access == 0 ? "load" : access == 1 ? "store" : "call", fault_signal, fault_code);
		}
	}
	for (i = 0; i < 3; i++) {
		static const uintptr_t wild[] = {0, 0x123456789000, 0xffff800000000000};

		fault_signal = fault_code = 0;
		if (!sigsetjmp(escape, 1))
			*(volatile char *)wild[i] = 1;
		printf("wild address %d: signal %d code %d\n", i, fault_signal, fault_code);
	}
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	mapping_errors();
	placing();
	unmapping();
	protecting();
	shared();
	advising();
	looking();
	locking();
	files();
	faults();
	return 0;
}
