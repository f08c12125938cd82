// needs Linux 6.12 (the order of entries and their offsets in a tmpfs)
// boot: host
// build: -Wno-unused-result
// Names in a tmpfs: link counts and sizes of directories, order of entries, rename with flags, attributes, times.
#include "say.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static char value[70000];

static void show(const char *path)
{
	struct stat st;

	if (lstat(path, &st))
		printf("  %s: %s\n", path, strerrorname_np(errno));
	else
		printf("  %s: mode %o links %ld size %ld blocks %ld\n", path, st.st_mode, (long)st.st_nlink, (long)st.st_size,
		       (long)st.st_blocks);
}

static void list(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	printf("  %s:", path);
	while ((entry = readdir(dir)))
		printf(" %s/%d", entry->d_name, entry->d_type);
	printf("\n");
	closedir(dir);
}

static int touch(const char *path)
{
	return close(open(path, O_CREAT | O_RDWR, 0644));
}

static long long stamp(struct timespec t)
{
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Which times of a file an action changes.
#define CHANGES(path, action)                                                                              \
	do {                                                                                               \
		struct stat before, after;                                                                 \
		lstat(path, &before);                                                                      \
		usleep(15000);                                                                             \
		action;                                                                                    \
		lstat(path, &after);                                                                       \
		printf("  %s: %s%s%s\n", #action, stamp(before.st_atim) != stamp(after.st_atim) ? "a" : "", \
		       stamp(before.st_mtim) != stamp(after.st_mtim) ? "m" : "",                           \
		       stamp(before.st_ctim) != stamp(after.st_ctim) ? "c" : "");                          \
	} while (0)

static void names(void)
{
	touch("a");
	touch("b");
	SAY(mkdir("d", 0755));
	SAY(mkdir("d/e", 0755));
	show(".");
	show("d");
	list(".");
	SAY(link("a", "d/a"));
	SAY(symlink("somewhere", "s"));
	char text[4200];
	memset(text, 'x', sizeof text);
	text[200] = 0;
	SAY(symlink(text, "long"));
	text[200] = 'x';
	text[4095] = 0;
	SAY(symlink(text, "longest"));
	text[4095] = 'x';
	text[4096] = 0;
	SAY(symlink(text, "too long"));
	show("s");
	show("long");
	SAY(mknod("f", S_IFIFO | 0600, 0));
	SAY(rmdir("d"));
	SAY(rename("a", "d/b"));
	SAY(rename("d/a", "d/b"));
	show("d/b");
	show("d");
	SAY(renameat2(AT_FDCWD, "b", AT_FDCWD, "d/b", RENAME_NOREPLACE));
	SAY(renameat2(AT_FDCWD, "b", AT_FDCWD, "d", RENAME_EXCHANGE));
	show("b");
	show("d");
	show(".");
	SAY(renameat2(AT_FDCWD, "b/e", AT_FDCWD, "d", RENAME_EXCHANGE));
	show(".");
	show("b");
	SAY(renameat2(AT_FDCWD, "b", AT_FDCWD, "c", RENAME_EXCHANGE));
	SAY(renameat2(AT_FDCWD, "d", AT_FDCWD, "c", RENAME_NOREPLACE | RENAME_EXCHANGE));
	SAY(rename("b", "b/x"));
	SAY(rename("s", "b"));
	SAY(rename("b", "s"));
	mkdir("c", 0700);
	SAY(rename("b", "c"));
	SAY(rename("d", "c"));
	show("c");
	list(".");
	list("c");
	show(".");
}

static void times(void)
{
	int fd = open("t", O_CREAT | O_RDWR, 0644);
	char buffer[10];

	CHANGES("t", write(fd, "hello", 5));
	CHANGES("t", pread(fd, buffer, 5, 0));
	CHANGES("t", pread(fd, buffer, 5, 0));
	CHANGES("t", ftruncate(fd, 3));
	CHANGES("t", ftruncate(fd, 3));
	CHANGES("t", truncate("t", 3));
	CHANGES("t", truncate("t", 5));
	CHANGES("t", close(open("t", O_WRONLY | O_TRUNC)));
	CHANGES("t", chmod("t", 0600));
	CHANGES("t", link("t", "t2"));
	CHANGES("t", unlink("t2"));
	CHANGES("t", rename("t", "t"));
	CHANGES("t", setxattr("t", "user.a", "b", 1, 0));
	CHANGES("t", fallocate(fd, 0, 0, 10));
	CHANGES("t", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 10));
	CHANGES(".", touch("new"));
	CHANGES(".", rename("new", "newer"));
	CHANGES("newer", rename("newer", "newest"));
	CHANGES(".", unlink("newest"));
	CHANGES(".", mkdir("new", 0700));
	CHANGES(".", rmdir("new"));
	CHANGES(".", list("."));
	close(fd);
}

static void attributes(void)
{
	char text[100];

	touch("x");
	SAY(setxattr("x", "user.one", "1", 1, XATTR_REPLACE));
	SAY(setxattr("x", "user.one", "1", 1, XATTR_CREATE));
	SAY(setxattr("x", "user.one", "22", 2, XATTR_CREATE));
	SAY(setxattr("x", "user.one", "22", 2, 0));
	SAY(getxattr("x", "user.one", text, 1));
	SAY(getxattr("x", "user.one", text, 0));
	SAY(getxattr("x", "user.one", text, 100));
	SAY(getxattr("x", "user.two", text, 100));
	SAY(setxattr("x", "user.empty", "", 0, 0));
	SAY(getxattr("x", "user.empty", text, 100));
	SAY(setxattr("x", "user.big", value, 65536, 0));
	SAY(setxattr("x", "user.bigger", value, 65537, 0));
	SAY(setxattr("x", "nonsense", "1", 1, 0));
	SAY(setxattr("x", "nonsense.x", "1", 1, 0));
	symlink("x", "xl");
	SAY(lsetxattr("xl", "user.a", "1", 1, 0));
	SAY(listxattr("x", text, 100));
	SAY(listxattr("x", text, 5));
	SAY(removexattr("x", "user.one"));
	SAY(removexattr("x", "user.one"));
	SAY(listxattr("x", text, 0));
}

static void unnamed(void)
{
	int fd = open(".", O_TMPFILE | O_RDWR, 0600);
	char path[64];
	struct stat st;

	SAY(fd >= 0);
	fstat(fd, &st);
	SAY(st.st_nlink);
	SAY(write(fd, "text", 4));
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	SAY(linkat(fd, "", AT_FDCWD, "named", AT_EMPTY_PATH) == 0 || errno == ENOENT);
	close(fd);
	fd = open("gone", O_CREAT | O_RDWR, 0600);
	write(fd, "still", 5);
	SAY(unlink("gone"));
	SAY(pread(fd, value, 10, 0));
	fstat(fd, &st);
	SAY(st.st_nlink);
	SAY(linkat(fd, "", AT_FDCWD, "again", AT_EMPTY_PATH));
	close(fd);
	mkdir("dead", 0700);
	int dir = open("dead", O_DIRECTORY);
	SAY(rmdir("dead"));
	SAY(mkdirat(dir, "child", 0700));
	fstat(dir, &st);
	SAY(st.st_nlink);
	close(dir);
}

int main(void)
{
	char directory[] = "/dev/shm/names-XXXXXX", command[] = ".";

	(void)command;
	umask(022);
	if (!mkdtemp(directory) || chdir(directory))
		return 1;
	names();
	times();
	attributes();
	unnamed();
	list(".");
	static const char *const files[] = {"a", "b", "d", "s", "long", "longest", "f", "c/b", "c/a", "c/e", "c/d", "b/e", "b/a",
					    "b/b", "t", "x", "xl", "named", "again", "d/a", "d/b"};
	static const char *const directories[] = {"b/e", "c/e", "d/e", "b", "c", "d", "e"};
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		unlink(files[i]);
	for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
		rmdir(directories[i]);
	SAY(chdir("/"));
	SAY(rmdir(directory));
	return 0;
}
