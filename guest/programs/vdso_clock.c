/*
 * The vDSO's clocks against the system call's: neither is ever behind the other, in a thread and between threads.
 * Finds the vDSO as a C library does, through AT_SYSINFO_EHDR.
 */
#include "say.h"

#include <elf.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/time.h>

#define SECOND 1000000000LL

static int (*vdso_gettime)(int, struct timespec *);
static int (*vdso_timeofday)(struct timeval *, struct timezone *);
static int (*vdso_getres)(int, struct timespec *);
static long (*vdso_time)(long *);

static void *find(const char *image, const char *name)
{
	const Elf64_Ehdr *header = (const void *)image;
	const Elf64_Phdr *segment = (const void *)(image + header->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const char *strings = NULL, *base = NULL;
	const Elf64_Dyn *dynamic = NULL;

	for (int i = 0; i < header->e_phnum; i++) {
		if (segment[i].p_type == PT_LOAD && !base)
			base = image + segment[i].p_offset - segment[i].p_vaddr;
		if (segment[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(image + segment[i].p_offset);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_STRTAB)
			strings = base + dynamic->d_un.d_ptr;
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const void *)(base + dynamic->d_un.d_ptr);
	}
	/* Up to the strings, which follow in every vDSO there is. */
	for (const Elf64_Sym *symbol = symbols; symbol && (const char *)(symbol + 1) <= strings; symbol++)
		if (symbol->st_name && !strcmp(strings + symbol->st_name, name))
			return (void *)(base + symbol->st_value);
	printf("no %s\n", name);
	exit(1);
}

static long long vdso_ns(int clock)
{
	struct timespec now = { -1, -1 };
	int result = vdso_gettime(clock, &now);

	if (result || now.tv_nsec < 0 || now.tv_nsec >= SECOND)
		printf("clock %d: %d %ld %ld\n", clock, result, now.tv_sec, now.tv_nsec);
	return now.tv_sec * SECOND + now.tv_nsec;
}

/* By turns: none may say less than the one before. */
static void turns(int clock, const char *name)
{
	long wrong = 0;
	long long last = 0, began = now_ns(CLOCK_MONOTONIC);

	for (int i = 0; now_ns(CLOCK_MONOTONIC) - began < SECOND / 8; i++) {
		long long now = i & 1 ? vdso_ns(clock) : now_ns(clock);

		wrong += now < last;
		last = now;
	}
	printf("%s: %ld behind\n", name, wrong);
}

static _Atomic long long latest;
static atomic_long behind;
static atomic_int stop;

static void look(long long (*read)(int))
{
	long long before = atomic_load(&latest), now = read(CLOCK_MONOTONIC);

	if (now < before)
		atomic_fetch_add(&behind, 1);
	while (now > before && !atomic_compare_exchange_weak(&latest, &before, now))
		;
}

static void *looks(void *unused)
{
	(void)unused;
	while (!atomic_load(&stop))
		look(vdso_ns);
	return NULL;
}

/* Readers of the page, and one that makes the system call, over many pages. */
static void threads(void)
{
	pthread_t thread[4];
	long long began = now_ns(CLOCK_MONOTONIC);

	for (int i = 0; i < 4; i++)
		thread[i] = start(looks, NULL);
	while (now_ns(CLOCK_MONOTONIC) - began < SECOND + SECOND / 2) {
		struct timespec pause = { 0, 2000000 };

		look(now_ns);
		nanosleep(&pause, NULL);
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < 4; i++)
		join(thread[i]);
	printf("threads: %ld behind\n", atomic_load(&behind));
}

/* After sleeps of all lengths: the page is old, and the program must not notice. */
static void sleeps(void)
{
	long wrong = 0, early = 0;

	for (int i = 0; i < 12; i++) {
		long ns = 1000L << i * 2;
		struct timespec pause = { ns / SECOND, ns % SECOND };
		long long before = vdso_ns(CLOCK_MONOTONIC), slept;

		if (ns > SECOND + SECOND / 4)
			break;
		nanosleep(&pause, NULL);
		slept = vdso_ns(CLOCK_MONOTONIC) - before;
		wrong += slept > ns + SECOND;
		early += slept < ns;
	}
	printf("sleeps: %ld too long, %ld too short\n", wrong, early);
}

static void others(void)
{
	static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI,
		CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID };
	struct timespec mine, theirs;
	struct timeval tv;
	struct timezone tz = { -1, -1 };
	long seconds = -1, told;
	long long before = now_ns(CLOCK_REALTIME);
	int same = 0;

	printf("gettimeofday: %d", vdso_timeofday(&tv, &tz));
	printf(" %d %d\n", tv.tv_sec * 1000000LL + tv.tv_usec >= before / 1000, tz.tz_minuteswest);
	told = vdso_time(&seconds);
	printf("time: %d %d\n", told == seconds, told >= before / SECOND - 1 && told <= now_ns(CLOCK_REALTIME) / SECOND);
	for (unsigned i = 0; i < sizeof(clocks) / sizeof(*clocks); i++) {
		vdso_getres(clocks[i], &mine);
		syscall(SYS_clock_getres, clocks[i], &theirs);
		same += mine.tv_sec == theirs.tv_sec && mine.tv_nsec == theirs.tv_nsec;
	}
	printf("resolutions: %d of 9 agree\n", same);
	printf("an unknown clock: %s\n", strerrorname_np(-vdso_gettime(100, &mine)));
	printf("CPU time: %d\n", vdso_ns(CLOCK_THREAD_CPUTIME_ID) <= now_ns(CLOCK_THREAD_CPUTIME_ID));
}

int main(void)
{
	const char *image = (const char *)getauxval(AT_SYSINFO_EHDR);

	printf("there: %d\n", image && !memcmp(image, ELFMAG, SELFMAG));
	vdso_gettime = find(image, "__vdso_clock_gettime");
	vdso_timeofday = find(image, "__vdso_gettimeofday");
	vdso_getres = find(image, "__vdso_clock_getres");
	vdso_time = find(image, "__vdso_time");
	turns(CLOCK_MONOTONIC, "monotonic");
	turns(CLOCK_BOOTTIME, "boottime");
	turns(CLOCK_MONOTONIC_RAW, "raw");
	turns(CLOCK_MONOTONIC_COARSE, "coarse");
	turns(CLOCK_REALTIME, "realtime");
	turns(CLOCK_TAI, "TAI");
	sleeps();
	threads();
	others();
	return 0;
}
