/* Resource limits; runs as root, without CAP_SYS_RESOURCE. */
#include "say.h"

#include <linux/capability.h>
#include <sys/resource.h>

static char *bad;

static long set(int resource, unsigned long soft, unsigned long hard)
{
	struct rlimit limit = { soft, hard };

	return syscall(SYS_setrlimit, resource, &limit);
}

static void show(int resource)
{
	struct rlimit limit = { 1, 1 }, again = { 2, 2 };

	SAY(syscall(SYS_getrlimit, resource, &limit));
	SAY(syscall(SYS_prlimit64, 0, resource, NULL, &again));
	printf("%ld %ld, the same: %d\n", (long)limit.rlim_cur, (long)limit.rlim_max, !memcmp(&limit, &again, sizeof(limit)));
}

static void give_up_raising(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	syscall(SYS_capget, &header, data);
	data[0].effective &= ~(1u << CAP_SYS_RESOURCE);
	data[0].permitted &= ~(1u << CAP_SYS_RESOURCE);
	SAY(syscall(SYS_capset, &header, data));
}

static void *another(void *argument)
{
	struct rlimit limit = { 0, 0 };

	SAY(syscall(SYS_prlimit64, *(int *)argument, RLIMIT_NOFILE, NULL, &limit));
	printf("%ld %ld\n", (long)limit.rlim_cur, (long)limit.rlim_max);
	syscall(SYS_setresuid, 1, 1, 1);
	SAY(syscall(SYS_prlimit64, *(int *)argument, RLIMIT_NOFILE, NULL, &limit));
	SAY(syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit));
	return NULL;
}

int main(void)
{
	struct rlimit new = { 40, 64 }, old = { 0, 0 };
	int pid = getpid();

	bad = bad_page();
	give_up_raising();
	SAY(set(RLIMIT_NOFILE, 50, 100));
	show(RLIMIT_NOFILE);
	SAY(set(RLIMIT_NOFILE, 101, 100));
	SAY(set(RLIMIT_NOFILE, 50, 101));
	SAY(set(RLIMIT_NOFILE, 100, 100));
	SAY(set(RLIMIT_NOFILE, RLIM_INFINITY, RLIM_INFINITY));
	SAY(syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, &new, &old));
	printf("%ld %ld\n", (long)old.rlim_cur, (long)old.rlim_max);
	show(RLIMIT_NOFILE);
	join(start(another, &pid));
	SAY(set(RLIMIT_CORE, 0, 0));
	SAY(set(RLIMIT_CORE, 0, 1));
	show(RLIMIT_CORE);
	SAY(set(RLIMIT_FSIZE, 1 << 20, RLIM_INFINITY));
	show(RLIMIT_FSIZE);
	SAY(set(16, 1, 1));
	SAY(set(-1, 1, 1));
	SAY(syscall(SYS_getrlimit, 16, &old));
	SAY(syscall(SYS_getrlimit, RLIMIT_CPU, bad));
	SAY(syscall(SYS_setrlimit, RLIMIT_CPU, bad));
	SAY(syscall(SYS_setrlimit, 16, bad));
	SAY(syscall(SYS_prlimit64, 0, 16, NULL, NULL));
	SAY(syscall(SYS_prlimit64, 0, RLIMIT_CPU, NULL, NULL));
	SAY(syscall(SYS_prlimit64, 0, RLIMIT_CPU, bad, NULL));
	SAY(syscall(SYS_prlimit64, 0, RLIMIT_CPU, NULL, bad));
	SAY(syscall(SYS_prlimit64, 0x3fffffff, RLIMIT_CPU, NULL, &old));
	SAY(syscall(SYS_prlimit64, -1, RLIMIT_CPU, NULL, &old));
	return 0;
}
