/* Printing what a call said, the same on every kernel: `SAY(call)` prints the call's text and its result or error. */
#ifndef SAY_H
#define SAY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SAY(call) (errno = 0, say(#call, (call)))

/* Result or -1 as syscall() gives it; prints it or the error's name, and returns it. */
__attribute__((unused)) static long say(const char *what, long result)
{
	int error = errno;

	if (result == -1 && error)
		printf("%s: %s\n", what, strerrorname_np(error));
	else
		printf("%s: %ld\n", what, result);
	fflush(stdout);
	return result;
}

/* A page that may be used by no one, to have an address that is bad. */
__attribute__((unused)) static void *bad_page(void)
{
	void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		abort();
	return page;
}

__attribute__((unused)) static void *good_page(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		abort();
	return page;
}

__attribute__((unused)) static pthread_t start(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, run, argument))
		abort();
	return thread;
}

__attribute__((unused)) static long join(pthread_t thread)
{
	void *result;

	if (pthread_join(thread, &result))
		abort();
	return (long)(intptr_t)result;
}

__attribute__((unused)) static long long now_ns(int clock)
{
	struct timespec now;

	if (syscall(SYS_clock_gettime, clock, &now))
		abort();
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

#endif
