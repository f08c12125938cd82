/*
 * The vDSO's own reading code, on threads of the caller's, against a page that somebody else keeps rewriting.
 *
 * It counts how often a thread read an earlier time than one that any thread had read before: never, if writer and
 * readers keep to the protocol of guest/vdso/vvar.h and the TSCs of the CPUs agree.
 */
#define vvar_page (*vvar_pointer)
#include "../../../../guest/vdso/vdso.c"
#undef vvar_page

#include <stdatomic.h>

const volatile struct vvar *vvar_pointer;

static atomic_int stop;
static _Atomic uint64_t latest[VVAR_CLOCKS];
static atomic_ulong backwards, reads, refused;

static void look(enum vvar_clock clock)
{
	uint64_t before = atomic_load(&latest[clock]), now;
	uint32_t tick;

	if (!read_clock(clock, &now, &tick)) {
		atomic_fetch_add(&refused, 1);
		return;
	}
	atomic_fetch_add(&reads, 1);
	if (now < before)
		atomic_fetch_add(&backwards, 1);
	while (now > before && !atomic_compare_exchange_weak(&latest[clock], &before, now))
		;
}

/* Reads the page until finish() is called. */
void watch(const volatile struct vvar *page)
{
	vvar_pointer = page;
	for (unsigned i = 0; !atomic_load(&stop); i++)
		look(i & 1 ? VVAR_MONOTONIC : VVAR_BOOTTIME);
}

/* Ends watch(); result[]: reads, reads that were sent to the system call, reads that went backwards. */
void finish(unsigned long *result)
{
	atomic_store(&stop, 1);
	result[0] = atomic_load(&reads);
	result[1] = atomic_load(&refused);
	result[2] = atomic_load(&backwards);
}

/* A time that somebody was given otherwise (by the system call): nobody may read an earlier one from now on. */
void told(uint64_t now)
{
	uint64_t before = atomic_load(&latest[VVAR_MONOTONIC]);

	while (now > before && !atomic_compare_exchange_weak(&latest[VVAR_MONOTONIC], &before, now))
		;
}

uint64_t latest_read(void)
{
	return atomic_load(&latest[VVAR_MONOTONIC]);
}
