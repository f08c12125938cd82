/* What a program asks about its machine and itself. Tells only what is the same everywhere. */
#include "say.h"

#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

static char *bad;

static void names(void)
{
	struct utsname name;
	char host[65], domain[65];

	SAY(syscall(SYS_uname, &name));
	printf("%s %s\n", name.sysname, name.machine);
	strcpy(host, name.nodename);
	strcpy(domain, name.domainname);
	SAY(syscall(SYS_uname, bad));
	SAY(syscall(SYS_sethostname, host, -1));
	SAY(syscall(SYS_sethostname, host, 65));
	SAY(syscall(SYS_sethostname, bad, 5));
	SAY(syscall(SYS_setdomainname, domain, -1));
	SAY(syscall(SYS_setdomainname, domain, 65));
	SAY(syscall(SYS_setdomainname, bad, 5));
	SAY(syscall(SYS_sethostname, host, strlen(host)));
	SAY(syscall(SYS_setdomainname, domain, strlen(domain)));
	syscall(SYS_uname, &name);
	printf("the same: %d %d\n", !strcmp(host, name.nodename), !strcmp(domain, name.domainname));
}

static void *a_users_names(void *unused)
{
	(void)unused;
	syscall(SYS_setresuid, 1, 1, 1);
	SAY(syscall(SYS_sethostname, "x", 1));
	SAY(syscall(SYS_sethostname, "x", -1));
	SAY(syscall(SYS_setdomainname, "x", 1));
	return NULL;
}

static void random_bytes(void)
{
	unsigned char *bytes = good_page(), before[16];
	int seen[256] = { 0 }, never = 0;

	for (unsigned flags = 0; flags < 9; flags++) {
		errno = 0;
		printf("flags %u: %ld", flags, syscall(SYS_getrandom, bytes, 16, flags));
		printf(" %s\n", strerrorname_np(errno));
	}
	SAY(syscall(SYS_getrandom, bytes, 0, 0));
	SAY(syscall(SYS_getrandom, NULL, 0, 0));
	SAY(syscall(SYS_getrandom, bad, 16, 0));
	SAY(syscall(SYS_getrandom, -1L, 16, 0));
	SAY(syscall(SYS_getrandom, bytes, 4096, 0));
	for (int i = 0; i < 4096; i++)
		seen[bytes[i]] = 1;
	for (int i = 0; i < 256; i++)
		never += !seen[i];
	memcpy(before, bytes, 16);
	syscall(SYS_getrandom, bytes, 16, 0);
	printf("most bytes come: %d, the same again: %d\n", never < 4, !memcmp(before, bytes, 16));
}

static void big_random(void)
{
	const long size = 3 << 20;
	unsigned char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long zeros = 0;

	SAY(syscall(SYS_getrandom, bytes, size, 0));
	for (long i = 0; i < size; i++)
		zeros += !bytes[i];
	printf("about one byte of 256 is zero: %d\n", zeros > size / 300 && zeros < size / 220);
	munmap(bytes, size);
}

static void resources(void)
{
	struct rusage usage;
	struct sysinfo info;
	long long user;
	volatile unsigned sum = 0;

	for (unsigned i = 0; i < 30000000; i++)
		sum += i;
	SAY(syscall(SYS_getrusage, RUSAGE_SELF, &usage));
	user = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec;
	user += usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec;
	printf("took time: %d, in range: %d", user > 0, usage.ru_utime.tv_usec < 1000000);
	printf(", has memory: %d\n", usage.ru_maxrss > 0);
	SAY(syscall(SYS_getrusage, RUSAGE_THREAD, &usage));
	SAY(syscall(SYS_getrusage, RUSAGE_CHILDREN, &usage));
	printf("children: %ld %ld %ld\n", usage.ru_utime.tv_sec, usage.ru_utime.tv_usec, usage.ru_maxrss);
	SAY(syscall(SYS_getrusage, 2, &usage));
	SAY(syscall(SYS_getrusage, -2, &usage));
	SAY(syscall(SYS_getrusage, RUSAGE_SELF, bad));
	SAY(syscall(SYS_sysinfo, &info));
	printf("%d %d %d %d\n", info.uptime > 0, info.totalram > info.freeram, info.freeram > 0, info.procs > 0);
	printf("unit %u, high %lu\n", info.mem_unit, info.totalhigh);
	SAY(syscall(SYS_sysinfo, bad));
}

static void *ids_of_a_thread(void *pid)
{
	printf("%d %d %d\n", getpid() == *(int *)pid, syscall(SYS_gettid) != *(int *)pid, getppid() != *(int *)pid);
	return NULL;
}

int main(void)
{
	int pid = getpid();

	bad = bad_page();
	names();
	join(start(a_users_names, NULL));
	random_bytes();
	big_random();
	resources();
	printf("%d\n", pid == syscall(SYS_gettid));
	join(start(ids_of_a_thread, &pid));
	return 0;
}
