/*
 * The page of clock data that the monitor writes and the vDSO reads. It lies
 * VVAR_SIZE bytes before the vDSO's image, read-only to the program.
 * guest/vvar.py mirrors it; a test compares the two layouts.
 *
 * Time is  base_ns[clock] + (((tsc - cycle_last) * mult) >> shift).
 * The product must fit 64 bits: the monitor keeps
 * cycle_limit * mult <= 2^64 - 1. A reader that finds the page older than
 * cycle_limit makes the real system call, and the monitor then writes the
 * page anew.
 *
 * seq is odd while the monitor writes. A reader that sees it odd makes the
 * real system call (the writer is a thread of the monitor and may be
 * descheduled: spinning on it could take long); one that sees it change tries
 * again. x86 keeps the order of stores and of loads, so no fence is needed
 * beside the one before RDTSC.
 */
#ifndef VVAR_H
#define VVAR_H

#include <stdint.h>

#define VVAR_SIZE 4096

/* mode */
#define VVAR_SYSCALL 0 /* always make the real system call */
#define VVAR_TSC     1 /* read the time-stamp counter */

/* base_ns[]: the order is that of struct vvar, not of clockid_t */
enum vvar_clock {
	VVAR_REALTIME,
	VVAR_MONOTONIC,
	VVAR_MONOTONIC_RAW,
	VVAR_BOOTTIME,
	VVAR_TAI,
	VVAR_CLOCKS
};

struct vvar {
	uint32_t seq;
	uint32_t mode;
	uint64_t cycle_last;            /* TSC when base_ns[] was true */
	uint64_t cycle_limit;           /* cycles after which the page is stale */
	uint32_t mult;
	uint32_t shift;                 /* 0..63 */
	uint64_t base_ns[VVAR_CLOCKS];  /* nanoseconds, indexed by enum vvar_clock */
	uint32_t resolution_ns;         /* clock_getres of the fine clocks */
	uint32_t coarse_ns;             /* tick of the *_COARSE clocks, not 0 */
};

#endif
