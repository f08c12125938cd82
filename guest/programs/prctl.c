/* prctl: what a task and its process can be told to be; runs as root. Capabilities are in identity.c. */
#include "say.h"

#include <signal.h>
#include <sys/prctl.h>

static char *bad, name[32];

static long call(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	return syscall(SYS_prctl, option, a, b, c, d);
}

static long call_at(int option, const void *at)
{
	return syscall(SYS_prctl, option, at, 0L, 0L, 0L);
}

static void *named(void *expected)
{
	call_at(PR_GET_NAME, name);
	printf("inherited: %d\n", !strcmp(name, expected));
	call_at(PR_SET_NAME, "another");
	return NULL;
}

static void names(void)
{
	char *end = good_page();

	mprotect(end + 4096, 4096, PROT_NONE);
	SAY(call_at(PR_SET_NAME, "short"));
	SAY(call_at(PR_GET_NAME, name));
	printf("%s\n", name);
	join(start(named, "short"));
	SAY(call_at(PR_SET_NAME, "a name that is too long"));
	memset(name, 'x', sizeof(name));
	SAY(call_at(PR_GET_NAME, name));
	printf("%s %c\n", name, name[16]);
	SAY(call_at(PR_SET_NAME, ""));
	SAY(call_at(PR_GET_NAME, name));
	printf("%s.\n", name);
	SAY(call_at(PR_SET_NAME, bad));
	SAY(call_at(PR_GET_NAME, bad));
	SAY(call_at(PR_SET_NAME, NULL));
}

static void numbers(void)
{
	int value = -1;

	SAY(call(PR_GET_DUMPABLE, 0, 0, 0, 0));
	SAY(call(PR_SET_DUMPABLE, 2, 0, 0, 0));
	SAY(call(PR_SET_DUMPABLE, 0, 0, 0, 0));
	SAY(call(PR_GET_DUMPABLE, 0, 0, 0, 0));
	SAY(call(PR_SET_DUMPABLE, 1, 0, 0, 0));
	SAY(call(PR_SET_PDEATHSIG, 65, 0, 0, 0));
	SAY(call(PR_SET_PDEATHSIG, -1UL, 0, 0, 0));
	SAY(call(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
	SAY(call_at(PR_GET_PDEATHSIG, &value));
	printf("%d\n", value);
	SAY(call_at(PR_GET_PDEATHSIG, bad));
	SAY(call(PR_SET_PDEATHSIG, 0, 0, 0, 0));
	SAY(call(PR_GET_TIMERSLACK, 0, 0, 0, 0));
	SAY(call(PR_SET_TIMERSLACK, 123456, 0, 0, 0));
	SAY(call(PR_GET_TIMERSLACK, 0, 0, 0, 0));
	SAY(call(PR_SET_TIMERSLACK, 0, 0, 0, 0));
	SAY(call(PR_GET_TIMERSLACK, 0, 0, 0, 0));
	SAY(call(PR_GET_TIMING, 0, 0, 0, 0));
	SAY(call(PR_SET_TIMING, 0, 0, 0, 0));
	SAY(call(PR_SET_TIMING, 1, 0, 0, 0));
	SAY(call_at(PR_GET_TSC, &value));
	printf("%d\n", value);
	SAY(call_at(PR_GET_TSC, bad));
	SAY(call(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0));
	SAY(call(PR_SET_TSC, 0, 0, 0, 0));
	SAY(call_at(PR_GET_CHILD_SUBREAPER, &value));
	printf("%d\n", value);
	SAY(call(PR_SET_CHILD_SUBREAPER, 7, 0, 0, 0));
	SAY(call_at(PR_GET_CHILD_SUBREAPER, &value));
	printf("%d\n", value);
	SAY(call_at(PR_GET_CHILD_SUBREAPER, bad));
	SAY(call(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0));
	SAY(call(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	SAY(call(PR_GET_THP_DISABLE, 1, 0, 0, 0));
	SAY(call(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	SAY(call(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	SAY(call(PR_SET_THP_DISABLE, 0, 0, 1, 0));
	SAY(call(PR_SET_THP_DISABLE, 0, 0, 0, 0));
	SAY(call(PR_GET_THP_DISABLE, 0, 0, 0, 0));
}

static void *no_new_privileges(void *unused)
{
	(void)unused;
	SAY(call(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	SAY(call(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 1));
	SAY(call(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
	SAY(call(PR_SET_NO_NEW_PRIVS, 2, 0, 0, 0));
	SAY(call(PR_SET_NO_NEW_PRIVS, 1, 1, 0, 0));
	SAY(call(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	SAY(call(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	SAY(call(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
	return NULL;
}

static void *changes_who_it_is(void *unused)
{
	(void)unused;
	call(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0);
	syscall(SYS_setresuid, 1, 1, 1);
	SAY(call(PR_GET_DUMPABLE, 0, 0, 0, 0));
	SAY(call_at(PR_GET_PDEATHSIG, name));
	printf("%d\n", name[0]);
	return NULL;
}

static void unknown(void)
{
	static const int options[] = { 0, -1, 5, 6, 9, 10, 11, 12, 17, 18, 19, 20, 43, 44, 45, 46, 50, 51, 1000, 0x7fffffff };

	for (unsigned i = 0; i < sizeof(options) / sizeof(*options); i++) {
		errno = 0;
		printf("option %d: %ld", options[i], call(options[i], 1, 0, 0, 0));
		printf(" %s\n", strerrorname_np(errno));
	}
}

int main(void)
{
	bad = bad_page();
	names();
	numbers();
	join(start(no_new_privileges, NULL));
	SAY(call(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	join(start(changes_who_it_is, NULL));
	unknown();
	return 0;
}
