/*
 * Who a program is: ids, groups, capabilities, process groups. Runs as root and tells only what does not depend on how
 * many capabilities root has. Each part runs on a thread of its own, because the calls, made bare, change one thread.
 */
#include "say.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define BIT(capability) (1ULL << (capability))

static char *bad;

struct sets {
	uint64_t effective, permitted, inheritable;
};

static long capget_(struct sets *sets)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	long result = syscall(SYS_capget, &header, data);

	sets->effective = data[0].effective | (uint64_t)data[1].effective << 32;
	sets->permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
	sets->inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
	return result;
}

static long capset_(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {
		{ effective, permitted, inheritable },
		{ effective >> 32, permitted >> 32, inheritable >> 32 },
	};

	return syscall(SYS_capset, &header, data);
}

/* Ids, and of the capabilities only those that every root has. */
static void show(void)
{
	unsigned ruid, euid, suid, rgid, egid, sgid;
	const uint64_t some = BIT(CAP_SETUID) | BIT(CAP_SETGID) | BIT(CAP_CHOWN) | BIT(CAP_KILL) | BIT(CAP_SETPCAP);
	struct sets sets;

	syscall(SYS_getresuid, &ruid, &euid, &suid);
	syscall(SYS_getresgid, &rgid, &egid, &sgid);
	capget_(&sets);
	printf("  uid %d %d %d %ld, gid %d %d %d %ld", ruid, euid, suid, syscall(SYS_setfsuid, -1), rgid, egid, sgid,
	       syscall(SYS_setfsgid, -1));
	printf(", caps %lx %lx %lx\n", sets.effective & some, sets.permitted & some, sets.inheritable & some);
}

#define STEP(call) (SAY(call), show())

static void *user_ids(void *unused)
{
	(void)unused;
	show();
	STEP(syscall(SYS_setresuid, -1, 1000, -1));
	STEP(syscall(SYS_setuid, 1001));
	STEP(syscall(SYS_setuid, 0));
	STEP(syscall(SYS_setreuid, 1000, -1));
	STEP(syscall(SYS_setreuid, -1, 1000));
	STEP(syscall(SYS_setresuid, 1000, 1000, 0));
	STEP(syscall(SYS_setresuid, -1, 0, -1));
	STEP(syscall(SYS_setfsuid, 1000));
	STEP(syscall(SYS_setfsuid, 0));
	STEP(syscall(SYS_setuid, 2000));
	STEP(syscall(SYS_setuid, 0));
	STEP(syscall(SYS_setresuid, 0, 0, 0));
	STEP(syscall(SYS_setreuid, 0, 2000));
	STEP(syscall(SYS_setfsuid, 0));
	STEP(syscall(SYS_setuid, -1));
	STEP(syscall(SYS_setresuid, -1, -1, -1));
	return NULL;
}

static void *group_ids(void *unused)
{
	(void)unused;
	STEP(syscall(SYS_setresgid, -1, 100, -1));
	STEP(syscall(SYS_setregid, 100, -1));
	STEP(syscall(SYS_setregid, -1, 101));
	STEP(syscall(SYS_setgid, 102));
	STEP(syscall(SYS_setfsgid, 5));
	STEP(syscall(SYS_setresuid, 1, 1, 1));
	STEP(syscall(SYS_setgid, 103));
	STEP(syscall(SYS_setresgid, 102, 5, 102));
	STEP(syscall(SYS_setresgid, 102, 102, 102));
	STEP(syscall(SYS_setfsgid, 6));
	STEP(syscall(SYS_setgid, -1));
	return NULL;
}

static void *keeping(void *unused)
{
	struct sets sets;

	(void)unused;
	SAY(prctl(PR_SET_KEEPCAPS, 2, 0, 0, 0));
	SAY(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	SAY(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0));
	STEP(syscall(SYS_setresuid, 1000, 1000, 1000));
	capget_(&sets);
	SAY(capset_(BIT(CAP_SETUID), sets.permitted, 0));
	STEP(syscall(SYS_setresuid, 0, 1000, 1001));
	STEP(syscall(SYS_setresuid, 1000, 1000, 1000));
	return NULL;
}

static void *secure_bits(void *unused)
{
	(void)unused;
	SAY(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
	SAY(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0));
	STEP(syscall(SYS_setresuid, 1000, 1000, 1000));
	STEP(syscall(SYS_setfsuid, 5));
	SAY(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS_LOCKED, 0, 0, 0));
	SAY(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	SAY(prctl(PR_SET_SECUREBITS, 0, 0, 0, 0));
	SAY(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS_LOCKED | SECBIT_NOROOT, 0, 0, 0));
	SAY(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
	STEP(capset_(0, 0, 0));
	SAY(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS_LOCKED, 0, 0, 0));
	return NULL;
}

static void *capabilities(void *unused)
{
	struct __user_cap_header_struct header = { 0, 0 };
	struct __user_cap_data_struct data[2];
	uint64_t three = BIT(CAP_SETPCAP) | BIT(CAP_SETUID) | BIT(CAP_KILL);
	struct sets sets;

	(void)unused;
	SAY(syscall(SYS_capget, &header, NULL));
	printf("version %x\n", header.version);
	header.version = 1;
	SAY(syscall(SYS_capget, &header, data));
	header.version = 1;
	SAY(syscall(SYS_capset, &header, data));
	printf("version %x\n", header.version);
	header.version = _LINUX_CAPABILITY_VERSION_1;
	SAY(syscall(SYS_capget, &header, data));
	header.version = _LINUX_CAPABILITY_VERSION_2;
	SAY(syscall(SYS_capget, &header, data));
	header.version = _LINUX_CAPABILITY_VERSION_3;
	header.pid = -1;
	SAY(syscall(SYS_capget, &header, data));
	header.pid = 0x3fffffff;
	SAY(syscall(SYS_capget, &header, data));
	SAY(syscall(SYS_capset, &header, data));
	header.pid = getpid();
	SAY(syscall(SYS_capget, &header, data));
	SAY(syscall(SYS_capset, &header, data));
	header.pid = 0;
	SAY(syscall(SYS_capget, &header, bad));
	SAY(syscall(SYS_capset, &header, bad));
	SAY(syscall(SYS_capget, bad, data));
	SAY(syscall(SYS_capset, bad, data));

	STEP(capset_(three, three, BIT(CAP_KILL)));
	SAY(capset_(three, three & ~BIT(CAP_KILL), BIT(CAP_KILL)));
	SAY(capset_(three | BIT(CAP_CHOWN), three | BIT(CAP_CHOWN), 0));
	STEP(capset_(three, three, BIT(CAP_KILL) | BIT(CAP_CHOWN)));
	SAY(prctl(PR_CAPBSET_READ, CAP_CHOWN, 0, 0, 0));
	SAY(prctl(PR_CAPBSET_DROP, CAP_CHOWN, 0, 0, 0));
	SAY(prctl(PR_CAPBSET_READ, CAP_CHOWN, 0, 0, 0));
	SAY(prctl(PR_CAPBSET_READ, 64, 0, 0, 0));
	SAY(prctl(PR_CAPBSET_DROP, 64, 0, 0, 0));
	STEP(capset_(three, three, BIT(CAP_KILL)));
	SAY(capset_(three, three, BIT(CAP_KILL) | BIT(CAP_CHOWN)));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SETUID, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SETUID, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, 64, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 1, 0));
	SAY(prctl(PR_CAP_AMBIENT, 9, CAP_KILL, 0, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 1, 0, 0));
	STEP(capset_(three, three, 0));
	SAY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0));
	STEP(capset_(0, 0, 0));
	SAY(prctl(PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0));
	capget_(&sets);
	printf("nothing left: %d\n", !(sets.effective | sets.permitted | sets.inheritable));
	return NULL;
}

static void *groups(void *unused)
{
	unsigned list[4] = { 9, 3, 7, 3 }, found[8] = { 0 };

	(void)unused;
	SAY(syscall(SYS_setgroups, 4, list));
	SAY(syscall(SYS_getgroups, 0, NULL));
	SAY(syscall(SYS_getgroups, 3, found));
	SAY(syscall(SYS_getgroups, -1, found));
	SAY(syscall(SYS_getgroups, 4, bad));
	SAY(syscall(SYS_getgroups, 8, found));
	printf("%u %u %u %u\n", found[0], found[1], found[2], found[3]);
	SAY(syscall(SYS_setgroups, 65537, list));
	SAY(syscall(SYS_setgroups, 1, bad));
	SAY(syscall(SYS_setgroups, 0, NULL));
	SAY(syscall(SYS_getgroups, 8, found));
	SAY(syscall(SYS_setresuid, 1, 1, 1));
	SAY(syscall(SYS_setgroups, 0, NULL));
	return NULL;
}

static void *pointers(void *unused)
{
	unsigned id;

	(void)unused;
	SAY(syscall(SYS_getresuid, bad, &id, &id));
	SAY(syscall(SYS_getresuid, &id, &id, bad));
	SAY(syscall(SYS_getresgid, &id, bad, &id));
	return NULL;
}

/* Only what is so for a program started by a shell as well as for the first one of a machine. */
static void process_groups(void)
{
	int pid = getpid();

	printf("%d %d\n", syscall(SYS_getpgid, 0) == syscall(SYS_getpgrp), syscall(SYS_getpgid, pid) == syscall(SYS_getpgrp));
	printf("%d\n", syscall(SYS_getsid, 0) == syscall(SYS_getsid, pid));
	SAY(syscall(SYS_getpgid, 0x3fffffff));
	SAY(syscall(SYS_getsid, 0x3fffffff));
	SAY(syscall(SYS_getpgid, -1));
	SAY(syscall(SYS_setpgid, 0, -1));
	SAY(syscall(SYS_setpgid, 0x3fffffff, 0));
	SAY(syscall(SYS_setpgid, -1, 0));
	SAY(syscall(SYS_setpgid, 0, 0x3fffffff));
	if (syscall(SYS_getpgrp) != pid)
		syscall(SYS_setpgid, 0, 0);
	printf("leads a group: %d\n", syscall(SYS_getpgrp) == pid);
	SAY(syscall(SYS_setsid));
	syscall(SYS_umask, 0777);
	syscall(SYS_umask, 022);
	SAY(syscall(SYS_umask, 01777));
	SAY(syscall(SYS_umask, 0));
}

int main(void)
{
	static void *(*const parts[])(void *) = { user_ids, group_ids, keeping, secure_bits, capabilities, groups, pointers };

	bad = bad_page();
	for (unsigned i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		join(start(parts[i], NULL));
	process_groups();
	show();
	return 0;
}
