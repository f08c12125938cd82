// A hostile program that wants out of what was mounted for it. escape CASE SECRET PID tries one way; SECRET is the path
// that the secret has on the host, PID a process of the host. What it reads it prints; whether the host changed is for the test to see.
// not compared: each case is a test of its own (tests/guest/test_escape.py)
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#define M "/m"		/* read-write: a directory of the host */
#define R "/r"		/* read-only */
#define O "/o"		/* an overlay of a directory of the host */
#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static const char *secret; /* the path on the host */
static char parent[4096];  /* of its directory */
static long host_pid;  /* a process of the host, with the secret in its environment */

/* Show what can be read, if anything. */
static void show(int fd)
{
	char data[4096];
	ssize_t n;

	if (fd < 0)
		return;
	n = pread(fd, data, sizeof data - 1, 0);
	if (n < 0)
		n = read(fd, data, sizeof data - 1);
	if (n > 0) {
		for (ssize_t i = 0; i < n; i++)
			if (!data[i])
				data[i] = ' ';
		data[n] = 0;
		printf("read: %s\n", data);
	}
}

static void names(int dirfd)
{
	DIR *dir = dirfd < 0 ? NULL : fdopendir(dirfd);

	if (!dir)
		return;
	for (struct dirent *entry; (entry = readdir(dir));)
		printf("name: %s\n", entry->d_name);
	closedir(dir);
}

/* Read, list and damage what is at a path. */
static void attack_at(int dirfd, const char *path)
{
	struct stat st;
	int fd;

	fd = openat(dirfd, path, O_RDONLY | O_NONBLOCK);
	show(fd);
	close(fd);
	names(openat(dirfd, path, O_RDONLY | O_DIRECTORY));
	if (!fstatat(dirfd, path, &st, 0) && S_ISREG(st.st_mode)) {
		fd = openat(dirfd, path, O_WRONLY | O_NONBLOCK);
		if (write(fd, "damaged", 7) == 7)
			printf("wrote: %s\n", path);
		close(fd);
	}
}

static void attack(const char *path) { attack_at(AT_FDCWD, path); }

static void attack_below(const char *directory)
{
	char path[8192];

	snprintf(path, sizeof path, "%s/secret", directory);
	attack(path);
	snprintf(path, sizeof path, "%s%s", directory, secret);
	attack(path);
	snprintf(path, sizeof path, "%s/..%s", directory, secret);
	attack(path);
	names(open(directory, O_RDONLY | O_DIRECTORY));
}

static void make(const char *path, const char *content)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	if (fd < 0 || write(fd, content, strlen(content)) < 0) {
		perror(path);
		exit(1);
	}
	close(fd);
}

static void must(const char *what, long result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}
#define MUST(call) must(#call, (call))

/* Links */

static void absolute_symlink(void)
{
	MUST(symlink(secret, M "/l"));
	attack(M "/l");
	MUST(symlink(parent, M "/ld"));
	attack_below(M "/ld");
}

static void relative_symlink(void)
{
	char up[8192] = "";

	for (int i = 0; i < 40; i++)
		strcat(up, "../");
	strcat(up, secret + 1);
	MUST(symlink(up, M "/l"));
	MUST(symlink("../secret", M "/l2"));
	MUST(symlink("..", M "/up"));
	attack(M "/l");
	attack(M "/l2");
	attack(M "/up/secret");
	attack(M "/up/up/up/secret");
}

static void symlink_chain(void)
{
	char name[64], target[64];

	MUST(symlink("../secret", M "/c0"));
	for (int i = 1; i < 38; i++) {
		snprintf(name, sizeof name, M "/c%d", i);
		snprintf(target, sizeof target, "../m/./c%d", i - 1);
		MUST(symlink(target, name));
	}
	attack(M "/c37");
	MUST(symlink("loop", M "/loop"));
	attack(M "/loop/../../secret");
}

static void odd_symlinks(void)
{
	static const char *targets[] = {
		"/proc/self/root/../../secret", "/proc/self/cwd/../secret", "/proc/self/fd/3/../secret", "/proc/1/root/secret",
		"//..//../secret", "./.././../secret", "sub/../../secret", "/m/../../secret", "/dev/fd/../../secret",
	};
	char name[64];

	mkdir(M "/sub", 0700);
	open(M "/sub", O_RDONLY | O_DIRECTORY);
	for (unsigned i = 0; i < COUNT(targets); i++) {
		snprintf(name, sizeof name, M "/odd%u", i);
		MUST(symlink(targets[i], name));
		attack(name);
	}
}

static void hard_links(void)
{
	int fd;

	link(secret, M "/h1");
	MUST(symlink(secret, M "/l"));
	linkat(AT_FDCWD, M "/l", AT_FDCWD, M "/h2", AT_SYMLINK_FOLLOW);
	linkat(AT_FDCWD, M "/../secret", AT_FDCWD, M "/h3", 0);
	link(R "/file", M "/h4"); /* from what is read-only to where it could be written */
	fd = open(R "/file", O_PATH);
	linkat(fd, "", AT_FDCWD, M "/h5", AT_EMPTY_PATH);
	linkat(AT_FDCWD, "/proc/self/fd/3", AT_FDCWD, M "/h6", AT_SYMLINK_FOLLOW);
	for (int i = 1; i <= 6; i++) {
		char name[64];

		snprintf(name, sizeof name, M "/h%d", i);
		attack(name);
	}
	MUST(linkat(AT_FDCWD, M "/l", AT_FDCWD, M "/h7", 0)); /* the link itself */
	attack(M "/h7");
}

/* Paths */

static void dotdot(void)
{
	char path[8192] = M;
	int fd = open(M, O_RDONLY | O_DIRECTORY);

	MUST(fd);
	attack(M "/../secret");
	attack(M "/./..//../secret");
	attack_at(fd, "../secret");
	attack_at(fd, "../../../secret");
	for (int i = 0; i < 60; i++) {
		strcat(path, "/..");
		attack_below(path);
	}
	MUST(fchdir(fd));
	for (int i = 0; i < 60; i++) {
		MUST(chdir(".."));
		attack("secret");
	}
}

static void resolve_flags(void)
{
	static const char *paths[] = {"../secret", "/secret", "/../secret", "sub/../../secret", "l", "l2"};
	int fd = open(M, O_RDONLY | O_DIRECTORY);

	mkdir(M "/sub", 0700);
	MUST(symlink(secret, M "/l"));
	MUST(symlink("../secret", M "/l2"));
	for (unsigned long resolve = 0; resolve < 64; resolve++)
		for (unsigned i = 0; i < COUNT(paths); i++) {
			struct open_how how = {.flags = O_RDONLY, .resolve = resolve};

			show(syscall(SYS_openat2, fd, paths[i], &how, sizeof how));
		}
}

static void huge_names(void)
{
	static char name[70000];
	static const int sizes[] = {254, 255, 256, 4095, 4096, 4097, 65535};

	for (unsigned i = 0; i < COUNT(sizes); i++) {
		memset(name, 0, sizeof name);
		strcpy(name, M "/");
		memset(name + 3, 'n', sizes[i]);
		int fd = open(name, O_CREAT | O_RDWR, 0600);
		close(fd);
		mkdir(name, 0700);
		strcat(name, "/../../secret");
		attack(name);
		symlink(name, M "/long");
		attack(M "/long");
		unlink(M "/long");
	}
	strcpy(name, M);
	for (int i = 0; i < 20000; i++)
		strcat(name + i * 3, "/..");
	attack(name);
}

static void odd_names(void)
{
	static const char *odd[] = {
		"\n", "\r", "\xff\xfe", "..\n", "...", ".. ", " ..", "-rf", "*", "\\", "a\\..\\..\\secret", "\t/../..", "\x7f",
		"%s%s%n", "$(cat secret)", "\xe2\x80\xae", "\xc0\xae\xc0\xae",
	};
	char path[256];

	MUST(chdir(M));
	for (unsigned i = 0; i < COUNT(odd); i++) {
		mkdir(odd[i], 0700);
		snprintf(path, sizeof path, "%s/secret", odd[i]);
		attack(path);
		snprintf(path, sizeof path, "%s/../../secret", odd[i]);
		attack(path);
		rmdir(odd[i]);
	}
}

static void moved_working_directory(void)
{
	char cwd[8192];

	MUST(chdir(M));
	for (int i = 0; i < 100; i++) {
		MUST(mkdir("d", 0700));
		MUST(chdir("d"));
	}
	MUST(rename(M "/d/d/d", M "/moved"));
	MUST(rmdir(M "/d/d"));
	if (getcwd(cwd, sizeof cwd))
		printf("cwd: %zu\n", strlen(cwd));
	for (int i = 0; i < 300; i++) {
		attack("secret");
		attack("../secret");
		if (chdir("..") < 0)
			break;
	}
}

static void names_outside(void)
{
	char path[8192];

	make(M "/f", "x");
	rename(M "/f", secret);
	rename(secret, M "/stolen");
	rename(M "/../secret", M "/stolen");
	attack(M "/stolen");
	truncate(secret, 0);
	unlink(secret);
	chmod(secret, 0777);
	lchown(secret, 1, 1);
	utimensat(AT_FDCWD, secret, NULL, 0);
	setxattr(secret, "user.a", "v", 1, 0);
	snprintf(path, sizeof path, "%s/new", parent);
	mkdir(path, 0700);
	mknod(path, S_IFREG | 0600, 0);
	rmdir(parent);
	attack(secret);
}

/* /proc */

static void proc_root(void)
{
	static const char *roots[] = {
		"/proc/self/root", "/proc/1/root", "/proc/thread-self/root", "/proc/self/cwd", "/proc/1/cwd",
		"/proc/self/task/1/root", "/proc/self/root/proc/self/root", "/proc/self/exe/..",
	};

	for (unsigned i = 0; i < COUNT(roots); i++)
		attack_below(roots[i]);
}

static void proc_fd(void)
{
	char path[256], target[4096];

	open(M, O_RDONLY | O_DIRECTORY);
	open(M, O_PATH);
	for (int fd = 0; fd < 64; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof target - 1);

		if (n > 0) {
			target[n] = 0;
			printf("link: %s\n", target);
		}
		if (fd > 2) {
			snprintf(path, sizeof path, "/proc/self/fd/%d/../secret", fd);
			attack(path);
			snprintf(path, sizeof path, "/proc/self/fd/%d/../..%s", fd, secret);
			attack(path);
			snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
			attack_below(path);
		}
	}
}

static void proc_of_the_host(void)
{
	static const char *files[] = {"environ", "cmdline", "maps", "root/secret", "cwd/secret", "mem", "fd/3", "auxv"};
	char path[256];

	for (unsigned i = 0; i < COUNT(files); i++) {
		for (long pid = 1; pid < 40; pid++) {
			snprintf(path, sizeof path, "/proc/%ld/%s", pid, files[i]);
			if (pid != getpid())
				attack(path);
		}
		snprintf(path, sizeof path, "/proc/%ld/%s", host_pid, files[i]);
		attack(path);
	}
	for (int i = 0; i < 2; i++) {
		static const char *kernel[] = {"/proc/kcore", "/proc/kmsg"};

		show(open(kernel[i], O_RDONLY | O_NONBLOCK));
	}
}

static void processes_of_the_host(void)
{
	static char data[4096];
	struct iovec local = {data, sizeof data}, remote = {(void *)0x400000, sizeof data};
	int fd;

	if (process_vm_readv(host_pid, &local, 1, &remote, 1, 0) > 0)
		printf("memory of a host process\n");
	ptrace(PTRACE_ATTACH, (pid_t)host_pid, 0, 0);
	kill((pid_t)host_pid, SIGKILL);
	fd = syscall(SYS_pidfd_open, host_pid, 0);
	for (int i = 0; i < 64 && fd >= 0; i++)
		show(syscall(SYS_pidfd_getfd, fd, i, 0));
}

static void numbers_of_descriptors(void)
{
	int out = open(M "/out", O_CREAT | O_RDWR, 0600);

	for (int fd = 3; fd < 1100; fd++) {
		if (fd == out)
			continue;
		show(fd);
		if (!fchdir(fd))
			attack("secret");
		attack_at(fd, "secret");
		attack_at(fd, "../secret");
		sendfile(out, fd, NULL, 4096);
		if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED)
			printf("mapped %d\n", fd);
	}
	show(out);
}

/* Descriptors */

static void path_descriptors(void)
{
	char path[64];
	int fd;

	MUST(symlink(secret, M "/l"));
	MUST(fd = open(M "/l", O_PATH | O_NOFOLLOW));
	attack_at(fd, "");
	show(openat(fd, "", O_RDONLY));
	fchdir(fd);
	linkat(fd, "", AT_FDCWD, M "/h", AT_EMPTY_PATH);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	attack(path);
	linkat(AT_FDCWD, path, AT_FDCWD, M "/h2", AT_SYMLINK_FOLLOW);
	attack(M "/h");
	attack(M "/h2");
	fchownat(fd, "", 1, 1, AT_EMPTY_PATH);
	chmod(path, 0777);
	truncate(path, 0);
	MUST(fd = open(M, O_PATH | O_DIRECTORY));
	attack_at(fd, "../secret");
	MUST(fchdir(fd));
	attack("../secret");
}

static void handles(void)
{
	static const int types[] = {0, 1, 2, 0x51, 0x61, 0x81, 0xF8, 0xFF};
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + 128];
	} u;
	int fd = open(M, O_RDONLY | O_DIRECTORY), id;

	u.handle.handle_bytes = 128;
	if (!name_to_handle_at(AT_FDCWD, M "/..", &u.handle, &id, 0))
		show(open_by_handle_at(fd, &u.handle, O_RDONLY));
	for (unsigned t = 0; t < COUNT(types); t++)
		for (uint32_t ino = 1; ino < 200; ino++) {
			uint32_t words[8] = {ino, 0};

			u.handle.handle_bytes = 8;
			u.handle.handle_type = types[t];
			memcpy(u.handle.f_handle, words, sizeof words);
			int found = open_by_handle_at(fd, &u.handle, O_RDONLY);

			show(found);
			if (found >= 0) {
				printf("a handle\n");
				names(found);
			}
		}
}

/* Mounts */

static void bind_mounts(void)
{
	mkdir("/b", 0700);
	mkdir("/b2", 0700);
	mount(parent, "/b", NULL, MS_BIND, NULL);
	attack_below("/b");
	mount(M "/..", "/b", NULL, MS_BIND | MS_REC, NULL);
	attack_below("/b");
	MUST(mount(M, "/b2", NULL, MS_BIND, NULL));
	attack_below("/b2");
	attack_below("/b2/..");
	MUST(mkdir(M "/in", 0700));
	MUST(mount(M "/in", "/b", NULL, MS_BIND, NULL));
	attack_below("/b/..");
	MUST(symlink(parent, M "/l"));
	mount(M "/l", "/b", NULL, MS_BIND, NULL);
	attack_below("/b");
}

static void moved_bind_mount(void)
{
	int fd;

	/* a directory of a mount leaves the part that is bound: .. must not go on from there */
	MUST(mkdir(M "/part", 0700));
	MUST(mkdir(M "/part/d", 0700));
	MUST(mkdir("/b", 0700));
	MUST(mount(M "/part", "/b", NULL, MS_BIND, NULL));
	MUST(fd = open("/b/d", O_RDONLY | O_DIRECTORY));
	MUST(rename(M "/part/d", M "/d"));
	attack_at(fd, "../secret");
	attack_at(fd, "../../secret");
	attack_at(fd, "../../../secret");
	if (!fchdir(fd))
		for (int i = 0; i < 20; i++) {
			attack("secret");
			if (chdir("..") < 0)
				break;
		}
}

static void move_mounts(void)
{
	MUST(mkdir("/moved", 0700));
	MUST(mount(M, "/moved", NULL, MS_MOVE, NULL));
	attack_below(M);
	attack_below("/moved");
	attack_below("/moved/..");
	mount("/", "/moved", NULL, MS_MOVE, NULL);
	mount("/moved", "/", NULL, MS_MOVE, NULL);
	attack_below("/");
	attack_below("/..");
}

static void tree_descriptors(void)
{
	static const char *places[] = {M "/..", "/", M, M "/l", R "/.."};

	MUST(symlink(parent, M "/l"));
	mkdir("/t", 0700);
	for (unsigned i = 0; i < COUNT(places); i++) {
		int fd = syscall(SYS_open_tree, AT_FDCWD, places[i], 1 | 0x8000 | O_CLOEXEC);

		attack_at(fd, "secret");
		attack_at(fd, "../secret");
		syscall(SYS_move_mount, fd, "", AT_FDCWD, "/t", 4);
		attack_below("/t");
		attack_below("/t/..");
		umount2("/t", MNT_DETACH);
	}
}

static void pivot(void)
{
	MUST(mkdir(M "/old", 0700));
	if (syscall(SYS_pivot_root, M, M "/old") < 0)
		perror("pivot_root");
	chdir("/");
	for (int i = 0; i < 20; i++) {
		attack("secret");
		chdir("..");
	}
	attack_below("/");
	attack_below("/..");
	umount2("/old", MNT_DETACH);
	attack_below("/old");
	attack_below("/old/..");
}

static void chroot_breakout(void)
{
	int fd;

	MUST(mkdir(M "/jail", 0700));
	MUST(fd = open("/", O_RDONLY | O_DIRECTORY));
	MUST(chroot(M "/jail"));
	MUST(fchdir(fd));
	for (int i = 0; i < 200; i++)
		MUST(chdir(".."));
	MUST(chroot("."));
	attack_below("/");
	attack_below("/..");
	attack(secret);
}

static void mount_points(void)
{
	rmdir(M);
	rename(M, "/elsewhere");
	unlink(M);
	umount2(M, MNT_DETACH);
	attack_below(M);
	attack_below(M "/..");
	umount2(R, MNT_DETACH);
	umount2("/proc", MNT_DETACH);
	attack_below("/proc");
	attack("/proc/self/environ");
	umount2("/dev", MNT_DETACH);
	attack_below("/dev");
	umount2("/", MNT_DETACH);
	attack_below("/");
}

static void nested_mounts(void)
{
	char path[4096] = M;

	for (int i = 0; i < 30; i++) {
		strcat(path, "/n");
		mkdir(path, 0700); /* the first one is in all of them */
		MUST(mount(M, path, NULL, MS_BIND, NULL));
	}
	for (int i = 0; i < 40; i++) {
		strcat(path, "/..");
		attack_below(path);
	}
}

static void remounts(void)
{
	static const unsigned long flags[] = {MS_REMOUNT, MS_REMOUNT | MS_BIND, MS_REMOUNT | MS_NOATIME, MS_BIND | MS_REC};
	int fd;
	char *page;

	mkdir("/b", 0700);
	for (unsigned i = 0; i < COUNT(flags); i++) {
		mount(R, i == 3 ? "/b" : R, NULL, flags[i], NULL);
		mount("none", R, "hostfs", MS_REMOUNT, "rw");
	}
	for (int i = 0; i < 2; i++) {
		const char *file = i ? "/b/file" : R "/file", *new = i ? "/b/new" : R "/new";

		attack(file);
		truncate(file, 0);
		unlink(file);
		rename(file, new);
		link(file, new);
		mkdir(new, 0700);
		symlink("x", new);
		mknod(new, S_IFIFO | 0600, 0);
		chmod(file, 0777);
		chown(file, 1, 1);
		utimensat(AT_FDCWD, file, NULL, 0);
		setxattr(file, "user.a", "v", 1, 0);
		removexattr(file, "user.k");
		close(open(new, O_CREAT | O_RDWR, 0600));
		close(open(i ? "/b" : R, O_TMPFILE | O_RDWR, 0600));
		fd = open(file, O_RDONLY);
		fchmod(fd, 0777);
		ftruncate(fd, 0);
		write(fd, "damaged", 7);
		fallocate(fd, 3, 0, 4096);
		page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		if (page != MAP_FAILED && !mprotect(page, 4096, PROT_READ | PROT_WRITE))
			page[0] = 'D';
		page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		if (page != MAP_FAILED)
			page[0] = 'D';
		msync(page, 4096, MS_SYNC);
	}
}

static void new_file_systems(void)
{
	static const char *types[] = {"hostfs", "overlay", "9p", "virtiofs", "ext4", "nfs", "fuse", "bind", "none", "rootfs"};
	char data[8192];

	mkdir("/n", 0700);
	for (unsigned i = 0; i < COUNT(types); i++) {
		snprintf(data, sizeof data, "lowerdir=%s,upperdir=/u,workdir=/w,trans=fd,rfdno=3,wfdno=3", parent);
		mount(parent, "/n", types[i], 0, NULL);
		attack_below("/n");
		mount(parent, "/n", types[i], 0, data);
		attack_below("/n");
		int fd = syscall(SYS_fsopen, types[i], 0);

		syscall(SYS_fsconfig, fd, 1, "source", parent, 0);
		syscall(SYS_fsconfig, fd, 6, NULL, NULL, 0);
		int tree = syscall(SYS_fsmount, fd, 0, 0);

		attack_at(tree, "secret");
	}
}

static void namespaces(void)
{
	static const char *files[] = {"/proc/1/ns/mnt", "/proc/self/ns/mnt", "/proc/1/ns/user", "/proc/1/ns/pid"};

	unshare(CLONE_NEWNS);
	attack_below("/");
	unshare(CLONE_NEWUSER | CLONE_NEWNS);
	attack_below("/");
	for (unsigned i = 0; i < COUNT(files); i++) {
		int fd = open(files[i], O_RDONLY);

		setns(fd, 0);
		attack(secret);
	}
	setns(syscall(SYS_pidfd_open, host_pid, 0), CLONE_NEWNS);
	attack(secret);
}

/* Special files */

static void device_nodes(void)
{
	static const struct {
		mode_t kind;
		int major, minor;
	} devices[] = {
		{S_IFBLK, 254, 0}, {S_IFBLK, 8, 0}, {S_IFBLK, 259, 0}, {S_IFBLK, 7, 0}, {S_IFBLK, 253, 0}, {S_IFCHR, 1, 1},
		{S_IFCHR, 1, 2},   {S_IFCHR, 1, 4}, {S_IFCHR, 1, 11},  {S_IFCHR, 10, 232}, {S_IFCHR, 10, 229}, {S_IFCHR, 10, 200},
	};
	static const char *paths[] = {"/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/fuse"};
	static const char *places[] = {M, R, O, "/"};
	char path[256];

	for (unsigned i = 0; i < COUNT(devices); i++)
		for (unsigned p = 0; p < COUNT(places); p++) {
			snprintf(path, sizeof path, "%s/node%u", places[p], i);
			mknod(path, devices[i].kind | 0600, makedev(devices[i].major, devices[i].minor));
			attack(path);
		}
	for (unsigned i = 0; i < COUNT(paths); i++) {
		int fd = open(paths[i], O_RDWR | O_NONBLOCK);

		if (fd >= 0)
			printf("opened %s\n", paths[i]);
		show(fd);
	}
	attack(M "/host-device");
}

static void fifos(void)
{
	int fd = open(M "/host-fifo", O_RDWR | O_NONBLOCK);

	if (fd < 0 || write(fd, "from the guest", 14) != 14)
		printf("no FIFO\n");
	fd = open(M "/host-fifo", O_WRONLY | O_NONBLOCK);
	write(fd, "from the guest", 14);
}

static void sockets(void)
{
	struct sockaddr_un address = {AF_UNIX, M "/host-socket"};
	int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

	for (int i = 0; i < 3; i++) {
		int fd = socket(AF_UNIX, types[i], 0);

		if (!connect(fd, (struct sockaddr *)&address, sizeof address)) {
			printf("connected\n");
			write(fd, "from the guest", 14);
		}
		sendto(fd, "from the guest", 14, 0, (struct sockaddr *)&address, sizeof address);
	}
	show(open(M "/host-socket", O_RDWR | O_NONBLOCK));
}

static void set_id_files(void)
{
	static const uint32_t capability[] = {0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0};
	int fd;

	umask(0);
	MUST(fd = open(M "/s1", O_CREAT | O_RDWR, 06755));
	fchmod(fd, 04755);
	fchmod(fd, 02755);
	mknod(M "/s2", S_IFREG | 06755, 0);
	chmod(M "/s2", 04777);
	fd = open(M, O_TMPFILE | O_RDWR, 04755);
	linkat(fd, "", AT_FDCWD, M "/s3", AT_EMPTY_PATH);
	fchmod(fd, 06777);
	fsetxattr(fd, "security.capability", capability, sizeof capability, 0);
	setxattr(M "/s1", "security.capability", capability, sizeof capability, 0);
	symlink("s1", M "/s4");
	chmod(M "/s4", 04755);
	syscall(452 /* fchmodat2 */, AT_FDCWD, M "/s4", 04755, AT_SYMLINK_NOFOLLOW);
	fd = open(M "/host-suid", O_WRONLY);
	write(fd, "#!/bin/sh\n", 10); /* it must not stay set-user-id with our contents */
	truncate(M "/host-sgid", 4);
}

static void whiteouts(void)
{
	static const char *places[] = {O, M, R, "/"};
	char path[256];

	for (unsigned i = 0; i < COUNT(places); i++) {
		snprintf(path, sizeof path, "%s/file", places[i]);
		mknod(path, S_IFCHR, makedev(0, 0));
		snprintf(path, sizeof path, "%s/white", places[i]);
		if (!mknod(path, S_IFCHR, makedev(0, 0)))
			printf("a whiteout in %s\n", places[i]);
		setxattr(places[i], "trusted.overlay.opaque", "y", 1, 0);
		setxattr(places[i], "trusted.overlay.redirect", "/..", 3, 0);
		setxattr(places[i], "user.overlay.redirect", "/..", 3, 0);
		setxattr(places[i], "trusted.overlay.metacopy", "", 0, 0);
		snprintf(path, sizeof path, "%s/dir", places[i]);
		mkdir(path, 0700);
		setxattr(path, "trusted.overlay.redirect", parent, strlen(parent), 0);
		attack_below(path);
		syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, M "/white2", 4);
		snprintf(path, sizeof path, "%s/.wh.file", places[i]);
		close(open(path, O_CREAT, 0600));
	}
}

static void overlay_writes(void)
{
	make(O "/file", "damaged");
	unlink(O "/sub/file");
	MUST(rename(O "/sub", O "/moved"));
	MUST(chmod(O "/moved", 0700));
	MUST(symlink(secret, O "/l"));
	attack(O "/l");
	attack(O "/../secret");
	int fd = open(O "/second", O_RDWR);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (page != MAP_FAILED)
		page[0] = 'D';
	msync(page, 4096, MS_SYNC);
}

/* Races */

static volatile int stop;

static void *exchange(void *unused)
{
	while (!stop)
		syscall(SYS_renameat2, AT_FDCWD, M "/x", AT_FDCWD, M "/y", 2);
	return unused;
}

static void *move(void *unused)
{
	while (!stop) {
		rename(M "/a/b", M "/b");
		rename(M "/b", M "/a/b");
	}
	return unused;
}

static void race(void *(*other)(void *), const char *const *paths, unsigned count)
{
	pthread_t thread;

	pthread_create(&thread, NULL, other, NULL);
	for (int i = 0; i < 1500; i++)
		for (unsigned p = 0; p < count; p++) {
			show(open(paths[p], O_RDONLY));
			close(3);
		}
	stop = 1;
	pthread_join(thread, NULL);
}

static void symlink_race(void)
{
	static const char *const paths[] = {M "/x/secret", M "/x/../secret", M "/x/../../secret"};

	MUST(mkdir(M "/x", 0700));
	MUST(symlink("..", M "/y"));
	race(exchange, paths, COUNT(paths));
}

static void rename_race(void)
{
	static const char *const paths[] = {M "/a/b/../../secret", M "/a/b/c/../../../secret", M "/b/c/../../../secret"};

	MUST(mkdir(M "/a", 0700));
	MUST(mkdir(M "/a/b", 0700));
	MUST(mkdir(M "/a/b/c", 0700));
	race(move, paths, COUNT(paths));
}

static void *remove_directory(void *unused)
{
	while (!stop) {
		mkdir(M "/x", 0700);
		rmdir(M "/x");
		symlink("..", M "/x");
		unlink(M "/x");
	}
	return unused;
}

static void replace_race(void)
{
	static const char *const paths[] = {M "/x/secret", M "/x/../secret", M "/x"};

	race(remove_directory, paths, COUNT(paths));
}

/* Calls that take a path for the kernel itself */

static void kernel_paths(void)
{
	char *argv[] = {"x", NULL};

	make(M "/acct", "");
	syscall(SYS_acct, M "/acct");
	syscall(SYS_acct, secret);
	syscall(SYS_swapon, secret, 0);
	syscall(SYS_quotactl, 0, secret, 0, NULL);
	syscall(SYS_uselib, secret);
	syscall(SYS_finit_module, open(M "/acct", O_RDONLY), "", 0);
	syscall(SYS_kexec_file_load, 3, 3, 0, "", 0);
	syscall(SYS_fanotify_mark, 3, 1, 1, AT_FDCWD, secret);
	syscall(SYS_inotify_add_watch, 3, secret, 1);
	syscall(SYS_statfs, secret, NULL);
	symlink(secret, M "/l");
	execv(secret, argv);
	execv(M "/l", argv);
	execv(M "/../secret", argv);
}

static void everything_listed(void)
{
	/* a walk over all that can be seen: no name of what is outside may turn up */
	static char queue[4000][512];
	unsigned head = 0, tail = 1;

	strcpy(queue[0], "/");
	while (head < tail) {
		const char *place = queue[head++];
		DIR *dir = opendir(place);

		if (!dir)
			continue;
		for (struct dirent *entry; (entry = readdir(dir));) {
			if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
				continue;
			printf("name: %s/%s\n", place, entry->d_name);
			if (entry->d_type == DT_DIR && tail < COUNT(queue) && strncmp(place, "/proc", 5) && strncmp(place, "/sys", 4))
				snprintf(queue[tail++], sizeof queue[0], "%s/%s", place, entry->d_name);
		}
		closedir(dir);
	}
	attack_below(M);
}

/* The host's root as a read-only mount: what the host's kernel shows there is no part of it. */
static void pseudo_file_systems(void)
{
	static const char *paths[] = {
		"/h/proc/self/environ", "/h/proc/1/environ", "/h/proc/version", "/h/sys/kernel", "/h/proc/self/root/secret",
		"/h/dev/pts/0", "/h/sys/fs/cgroup/cgroup.procs", "/h/proc/sys/kernel/hostname",
	};
	char path[256];

	for (unsigned i = 0; i < COUNT(paths); i++)
		if (!access(paths[i], F_OK))
			printf("there: %s\n", paths[i]);
	snprintf(path, sizeof path, "/h/proc/%ld/environ", host_pid);
	attack(path);
	snprintf(path, sizeof path, "/h/proc/%ld/root%s", host_pid, secret);
	attack(path);
	names(open("/h/proc", O_RDONLY | O_DIRECTORY));
	names(open("/h/sys", O_RDONLY | O_DIRECTORY));
}

#define CASE(name) {#name, name}
static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	CASE(absolute_symlink), CASE(relative_symlink), CASE(symlink_chain), CASE(odd_symlinks), CASE(hard_links),
	CASE(dotdot), CASE(resolve_flags), CASE(huge_names), CASE(odd_names), CASE(moved_working_directory),
	CASE(names_outside), CASE(proc_root), CASE(proc_fd), CASE(proc_of_the_host), CASE(processes_of_the_host),
	CASE(numbers_of_descriptors), CASE(path_descriptors), CASE(handles), CASE(bind_mounts), CASE(moved_bind_mount),
	CASE(move_mounts), CASE(tree_descriptors), CASE(pivot), CASE(chroot_breakout), CASE(mount_points),
	CASE(nested_mounts), CASE(remounts), CASE(new_file_systems), CASE(namespaces), CASE(device_nodes), CASE(fifos),
	CASE(sockets), CASE(set_id_files), CASE(whiteouts), CASE(overlay_writes), CASE(symlink_race), CASE(rename_race),
	CASE(replace_race), CASE(kernel_paths), CASE(everything_listed), CASE(pseudo_file_systems),
};

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	secret = argv[2];
	host_pid = atol(argv[3]);
	snprintf(parent, sizeof parent, "%s", secret);
	*strrchr(parent, '/') = 0;
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < COUNT(cases); i++)
		if (!strcmp(cases[i].name, argv[1])) {
			cases[i].run();
			printf("tried %s\n", argv[1]);
			return 0;
		}
	return 2;
}
