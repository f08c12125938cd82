// Who may do what: modes, owners, sticky directories, capabilities, access by real and effective ids.
// boot: host
#include "files.h"
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/wait.h>
#include <utime.h>

/* Run `body` as another user with no capabilities, in a process of its own where that can be had. */
static void as(uid_t user, gid_t group, void (*body)(void))
{
	printf("as %u:%u\n", user, group);
	fflush(stdout);
	if (syscall(SYS_setfsgid, group) < 0 || syscall(SYS_setfsuid, user) < 0)
		abort();
	body();
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	fflush(stdout);
}

static void try_files(void)
{
	static const char *names[] = {"r", "w", "x", "own", "group", "all", "none"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
		long read = can(open(names[i], O_RDONLY)), r = errno;
		long write = can(open(names[i], O_WRONLY)), w = errno;

		printf("  %s: read %s write %s\n", names[i], read ? strerrorname_np(r) : "yes",
		       write ? strerrorname_np(w) : "yes");
	}
	SAY(can(open("dir/in", O_RDONLY)));
	SAY(can(open("dir", O_RDONLY)));
	SAY(can(open("search/in", O_RDONLY)));
	SAY(can(open("search", O_RDONLY)));
	SAY(can(open("list/in", O_RDONLY)));
	SAY(can(open("list", O_RDONLY)));
	SAY(can(open("search/new", O_CREAT | O_WRONLY, 0644)));
	SAY(can(open("all", O_RDONLY | O_NOATIME)));
}

static void try_changes(void)
{
	SAY(chmod("all", 0777));
	SAY(chmod("own", 0600));
	SAY(chown("all", 1000, 1000));
	SAY(chown("own", 1000, -1));
	SAY(chown("own", -1, 1000));
	SAY(chown("own", -1, 77));
	SAY(chown("own", 1001, -1));
	SAY(utime("all", NULL));
	SAY(utime("r", NULL));
	SAY(utime("all", &(struct utimbuf){1, 2}));
	SAY(utime("own", &(struct utimbuf){1, 2}));
	SAY(truncate("r", 0));
	SAY(truncate("all", 3));
	SAY(mknod("node", S_IFCHR | 0600, 0x103));
	SAY(mknod("sticky/fifo", S_IFIFO | 0600, 0));
	SAY(unlink("sticky/fifo"));
	SAY(unlink("sticky/other"));
	SAY(rename("sticky/other", "sticky/mine"));
	SAY(unlink("sticky/mine"));
	SAY(rename("sticky/mine2", "sticky/other"));
	SAY(unlink("open/other"));
	SAY(link("r", "open/link"));
	SAY(link("all", "open/link"));
	SAY(link("own", "open/link2"));
	SAY(rmdir("dir"));
	SAY(mkdir("open/dir", 0777));
	show("open/dir");
}

static void setup(void)
{
	make("r", 0444, "r");
	make("w", 0222, "w");
	make("x", 0111, "x");
	make("own", 0600, "own");
	make("group", 0060, "group");
	make("all", 0666, "all");
	make("none", 0, "none");
	SAY(chmod("all", 0666));
	SAY(chown("own", 1000, 1000));
	SAY(chown("group", 0, 1000));
	SAY(mkdir("dir", 0700));
	make("dir/in", 0666, "in");
	SAY(mkdir("search", 0711));
	make("search/in", 0644, "in");
	SAY(mkdir("list", 0744));
	make("list/in", 0644, "in");
	SAY(mkdir("sticky", 0755));
	SAY(chmod("sticky", 01777));
	make("sticky/other", 0666, "other");
	make("sticky/mine", 0666, "mine");
	make("sticky/mine2", 0666, "mine");
	SAY(chown("sticky/mine", 1000, 1000));
	SAY(chown("sticky/mine2", 1000, 1000));
	SAY(mkdir("open", 0755));
	SAY(chmod("open", 0777));
	make("open/other", 0666, "other");
}

static void set_id(void)
{
	make("suid", 0755, "suid");
	SAY(chmod("suid", 06755));
	SAY(chown("suid", 1000, 1000));
	show("suid");
	SAY(chmod("suid", 06755));
	int fd = open("suid", O_WRONLY);
	SAY(write(fd, "x", 1));
	show("suid");
	syscall(SYS_setfsuid, 1000);
	SAY(write(fd, "x", 1));
	syscall(SYS_setfsuid, 0);
	show("suid");
	SAY(chmod("suid", 06745));
	SAY(chown("suid", -1, -1));
	show("suid");
	close(fd);
	SAY(mkdir("shared", 0755));
	SAY(chown("shared", 0, 77));
	SAY(chmod("shared", 02777));
	syscall(SYS_setfsgid, 1000);
	syscall(SYS_setfsuid, 1000);
	SAY(mkdir("shared/dir", 0755));
	make("shared/file", 0644, "");
	SAY(can(open("shared/setgid", O_CREAT | O_WRONLY, 02755)));
	SAY(chmod("shared/file", 02755));
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	show("shared/dir");
	show("shared/file");
	show("shared/setgid");
}

static void accesses(void)
{
	/* The effective ids become another's, the real ones stay: access(2) asks for the real. */
	SAY(access("none", R_OK | W_OK));
	SAY(access("none", X_OK));
	SAY(access("x", X_OK));
	SAY(access("dir", X_OK));
	SAY(access("r", 8));
	SAY(access("nothing", F_OK));
	SAY(syscall(SYS_setresuid, -1, 1000, -1));
	SAY(access("dir/in", R_OK));
	SAY(faccessat(AT_FDCWD, "dir/in", R_OK, AT_EACCESS));
	SAY(syscall(SYS_faccessat2, AT_FDCWD, "r", W_OK, AT_EACCESS));
	SAY(syscall(SYS_faccessat2, AT_FDCWD, "r", R_OK, AT_EACCESS));
	SAY(syscall(SYS_faccessat2, AT_FDCWD, "r", R_OK, 1));
	SAY(can(open("dir/in", O_RDONLY)));
	SAY(syscall(SYS_setresuid, -1, 0, -1));
}

static void masks(void)
{
	for (mode_t mask = 0; mask <= 0777; mask = mask * 8 + 7) {
		umask(mask);
		can(open("masked", O_CREAT | O_WRONLY, 0777));
		mkdir("masked-dir", 0777);
		mkfifo("masked-fifo", 0666);
		show("masked");
		show("masked-dir");
		show("masked-fifo");
		unlink("masked");
		rmdir("masked-dir");
		unlink("masked-fifo");
		if (mask == 0777)
			break;
	}
	SAY(umask(022));
}

int main(void)
{
	if (getuid()) {
		printf("needs root\n");
		return 0;
	}
	scratch_enter(0755);
	SAY(setgroups(0, NULL));
	setup();
	as(0, 0, try_files);
	as(1000, 1000, try_files);
	as(1001, 1000, try_files);
	as(1001, 1001, try_files);
	as(1000, 1000, try_changes);
	set_id();
	accesses();
	masks();
	scratch_leave();
	return 0;
}
