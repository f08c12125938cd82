// needs Linux 6.12 (what moves along with a mount that is moved)
// Mounting: binds, moves, propagation, flags, unmounting, pivot_root, the new mount calls.
// not compared: on the host it needs a mount namespace of its own (tests/guest/test_vfs_mounts.py gives it one)
#include "files.h"
#include <linux/mount.h>
#include <sys/statfs.h>
#include <sys/wait.h>

/* Of <sys/mount.h>, which does not go with <linux/mount.h>. */
extern int mount(const char *, const char *, const char *, unsigned long, const void *);
extern int umount2(const char *, int);
#define MNT_FORCE 1
#define MNT_DETACH 2
#define MNT_EXPIRE 4
#define UMOUNT_NOFOLLOW 8

/* The mounts below the scratch directory: place, root, options, and whether they spread, with groups numbered as met. */
static void mounts(void)
{
	char line[1024], root[256], place[256], options[128], fields[64], *rest;
	FILE *file = fopen("/proc/self/mountinfo", "r");
	int groups[32], known = 0;

	if (!file)
		abort();
	while (fgets(line, sizeof(line), file)) {
		int at;

		if (sscanf(line, "%*d %*d %*s %255s %255s %127s %n", root, place, options, &at) != 3)
			abort();
		if (strncmp(place, scratch, strlen(scratch)))
			continue;
		printf("  %s: %s %s", place + strlen(scratch), root, options);
		rest = line + at;
		while (sscanf(rest, "%63s %n", fields, &at) == 1 && strcmp(fields, "-")) {
			char *colon = strchr(fields, ':');
			int i = 0, id = colon ? atoi(colon + 1) : 0;

			if (colon) {
				while (i < known && groups[i] != id)
					i++;
				if (i == known)
					groups[known++] = id;
				*colon = 0;
				printf(" %s:%d", fields, i);
			} else {
				printf(" %s", fields);
			}
			rest += at;
		}
		putchar('\n');
	}
	fclose(file);
}

static void flags(void)
{
	struct statfs fs;

	SAY(mount("none", "a", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, NULL));
	SAY(mkdir("a/d", 0755));
	make("a/f", 0755, "#!/bin/sh\n");
	SAY(statfs("a", &fs));
	printf("  %lx %lx\n", (long)fs.f_type, (long)fs.f_flags);
	SAY(access("a/f", X_OK));
	SAY(mknod("a/null", S_IFCHR | 0666, 0x103));
	SAY(can(open("a/null", O_RDONLY)));
	SAY(mount(NULL, "a", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	SAY(can(open("a/new", O_CREAT | O_RDWR, 0600)));
	SAY(mkdir("a/new", 0700));
	mounts();
	SAY(mount(NULL, "a", NULL, MS_REMOUNT, NULL));
	int fd = open("a/new", O_CREAT | O_RDWR, 0600);
	SAY(mount(NULL, "a", NULL, MS_REMOUNT | MS_RDONLY, NULL));
	SAY(mount(NULL, "a", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	SAY(umount2("a", 0));
	close(fd);
	SAY(mount(NULL, "a", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSYMFOLLOW, NULL));
	mounts();
	SAY(mount(NULL, "a/d", NULL, MS_REMOUNT, NULL));
	SAY(umount2("a/d", 0));
	SAY(umount2("a", 16));
	SAY(umount2("a", MNT_EXPIRE | MNT_DETACH));
	SAY(umount2("a", MNT_EXPIRE));
	SAY(umount2("a", MNT_EXPIRE));
	SAY(umount2("a", 0));
	SAY(mount("none", "a", "nofs", 0, NULL));
	SAY(mount("none", "a", NULL, 0, NULL));
	SAY(mount("none", "none", "tmpfs", 0, NULL));
	SAY(mount("none", "f", "tmpfs", 0, NULL));
}

static void binds(void)
{
	SAY(mount("none", "a", "tmpfs", 0, NULL));
	SAY(mkdir("a/d", 0755));
	make("a/f", 0644, "a file");
	SAY(mount("none", "a/d", "tmpfs", 0, NULL));
	SAY(mount("a", "b", NULL, MS_BIND, NULL));
	SAY(mount("a", "c", NULL, MS_BIND | MS_REC, NULL));
	SAY(mount("a/f", "f", NULL, MS_BIND, NULL));
	SAY(mount("a/f", "b", NULL, MS_BIND, NULL));
	SAY(mount("a", "f", NULL, MS_BIND, NULL));
	SAY(mount("none", "b", NULL, MS_BIND, NULL));
	SAY(mount(NULL, "b", NULL, MS_BIND, NULL));
	mounts();
	show("f");
	SAY(unlink("f"));
	SAY(rmdir("b"));
	SAY(rename("b", "x"));
	SAY(link("a/f", "b/g"));
	SAY(rename("a/f", "b/g"));
	SAY(umount2("f", 0));
	SAY(mount("c", "a/d", NULL, MS_MOVE, NULL));
	SAY(mount("a", "a/d", NULL, MS_MOVE, NULL));
	SAY(mount("a/d/d", "c", NULL, MS_MOVE, NULL));
	mounts();
	SAY(umount2("a", 0));
	SAY(umount2("a", MNT_DETACH));
	SAY(umount2("b", 0));
	SAY(umount2("c", 0));
	SAY(umount2("c", 0));
}

static void sharing(void)
{
	SAY(mount("none", "a", "tmpfs", 0, NULL));
	SAY(mount(NULL, "a", NULL, MS_SHARED, NULL));
	SAY(mkdir("a/d", 0755));
	SAY(mkdir("a/e", 0755));
	SAY(mount("a", "b", NULL, MS_BIND, NULL));
	SAY(mount("a", "c", NULL, MS_BIND, NULL));
	SAY(mount(NULL, "c", NULL, MS_SLAVE, NULL));
	SAY(mount("none", "a/d", "tmpfs", 0, NULL));
	SAY(mount("none", "c/e", "tmpfs", 0, NULL));
	mounts();
	SAY(mount(NULL, "c", NULL, MS_SHARED | MS_REC, NULL));
	SAY(mount(NULL, "a", NULL, MS_SHARED | MS_SLAVE, NULL));
	SAY(mount(NULL, "a/e", NULL, MS_SHARED, NULL));
	mounts();
	SAY(umount2("b/d", 0));
	SAY(mount("a", "c/e", NULL, MS_MOVE, NULL));
	SAY(mount("c/e", "c/d", NULL, MS_MOVE, NULL));
	SAY(mount(NULL, "c", NULL, MS_UNBINDABLE, NULL));
	SAY(mount("c", "a/d", NULL, MS_BIND, NULL));
	mounts();
	SAY(umount2("c/e", 0));
	SAY(umount2("c", 0));
	SAY(umount2("b", 0));
	SAY(umount2("a", 0));
}

static void new_calls(void)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME, .attr_clr = MOUNT_ATTR__ATIME};
	int fs, tree, copy;

	fs = SAY(syscall(SYS_fsopen, "tmpfs", 0));
	SAY(syscall(SYS_fsopen, "nofs", 0));
	SAY(syscall(SYS_fsmount, fs, 0, 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", "mine", 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", "again", 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "rw", NULL, 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "rw", "x", 0));
	SAY(syscall(SYS_fsconfig, fs, 99, NULL, NULL, 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	SAY(syscall(SYS_fsconfig, 0, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	tree = SAY(syscall(SYS_fsmount, fs, 0, MOUNT_ATTR_NOSUID));
	SAY(syscall(SYS_fsmount, fs, 0, 0));
	SAY(mkdirat(tree, "inside", 0755));
	SAY(syscall(SYS_move_mount, tree, "", AT_FDCWD, "a", MOVE_MOUNT_F_EMPTY_PATH));
	SAY(syscall(SYS_move_mount, tree, "", AT_FDCWD, "f", MOVE_MOUNT_F_EMPTY_PATH));
	SAY(syscall(SYS_move_mount, AT_FDCWD, "a", AT_FDCWD, "b", 0));
	show("b/inside");
	copy = SAY(syscall(SYS_open_tree, AT_FDCWD, "b", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	SAY(syscall(SYS_open_tree, AT_FDCWD, "b", AT_RECURSIVE));
	SAY(syscall(SYS_mount_setattr, copy, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
	SAY(syscall(SYS_move_mount, copy, "", AT_FDCWD, "c", MOVE_MOUNT_F_EMPTY_PATH));
	mounts();
	SAY(mkdir("c/x", 0755));
	attr = (struct mount_attr){.attr_set = MOUNT_ATTR_NOATIME};
	SAY(syscall(SYS_mount_setattr, AT_FDCWD, "c", 0, &attr, sizeof(attr)));
	attr = (struct mount_attr){.propagation = MS_SHARED, .attr_clr = MOUNT_ATTR_RDONLY};
	SAY(syscall(SYS_mount_setattr, AT_FDCWD, "c", 0, &attr, sizeof(attr)));
	SAY(syscall(SYS_mount_setattr, AT_FDCWD, "c/x", 0, &attr, sizeof(attr)));
	SAY(syscall(SYS_mount_setattr, AT_FDCWD, "c", 0, &attr, 16));
	mounts();
	close(fs), close(tree), close(copy);
	fs = SAY(syscall(SYS_fspick, AT_FDCWD, "c", 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "ro", NULL, 0));
	SAY(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0));
	SAY(mkdir("b/y", 0755));
	close(fs);
	SAY(umount2("b", 0));
	SAY(umount2("c", 0));
}

static void pivot(void)
{
	SAY(mount("none", "a", "tmpfs", 0, NULL));
	SAY(mkdir("a/old", 0755));
	SAY(mkdir("a/proc", 0755));
	SAY(syscall(SYS_pivot_root, "a", "b"));
	SAY(syscall(SYS_pivot_root, "b", "b"));
	SAY(syscall(SYS_pivot_root, "/", "a/old"));
	SAY(chdir("a"));
	SAY(syscall(SYS_pivot_root, ".", "old"));
	show("/old/proc");
	SAY(umount2("/old", 0));
	SAY(umount2("/old", MNT_DETACH));
	show("/old/proc");
	SAY(rmdir("/old"));
	SAY(chroot("/proc"));
	SAY(chdir("/.."));
	char text[64];
	SAY(getcwd(text, sizeof(text)) ? 0 : -1);
	printf("  %s\n", text);
}

int main(void)
{
	if (getuid()) {
		printf("needs root\n");
		return 0;
	}
	scratch_enter(0755);
	SAY(mkdir("a", 0755));
	SAY(mkdir("b", 0755));
	SAY(mkdir("c", 0755));
	make("f", 0644, "a mount point");
	SAY(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
	flags();
	binds();
	sharing();
	new_calls();
	fflush(stdout);
	pid_t child = fork();
	if (!child) {
		pivot();
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	return 0; /* the root is another one now, for all */
}
