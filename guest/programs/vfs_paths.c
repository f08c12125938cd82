// Paths: links, dots, slashes, the flags of open, openat2's ways to stay inside.
// boot: host
#include "files.h"
#include <linux/openat2.h>

static long at2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = flags, .mode = flags & O_CREAT ? 0600 : 0, .resolve = resolve};

	return can(syscall(SYS_openat2, dir, path, &how, sizeof(how)));
}

static void links(void)
{
	struct stat st;
	char name[16], text[64];

	SAY(symlink("d/f", "link"));
	SAY(symlink("..", "d/up"));
	SAY(symlink("nowhere", "dangling"));
	SAY(symlink("loop2", "loop1"));
	SAY(symlink("loop1", "loop2"));
	SAY(symlink("d/", "slash"));
	SAY(symlink("", "empty"));
	SAY(stat("link", &st));
	SAY(stat("link/", &st));
	SAY(lstat("slash", &st));
	SAY(lstat("slash/", &st));
	SAY(stat("d/up/d/up/d/f", &st));
	SAY(stat("loop1", &st));
	SAY(lstat("loop1", &st));
	SAY(stat("loop1/x", &st));
	SAY(stat("dangling", &st));
	SAY(can(open("dangling", O_RDONLY)));
	SAY(can(open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0600)));
	SAY(can(open("dangling", O_CREAT | O_NOFOLLOW | O_WRONLY, 0600)));
	SAY(can(open("dangling", O_CREAT | O_WRONLY, 0600)));
	show("nowhere");
	SAY(readlink("link", text, 3));
	printf("  %.3s\n", text);
	SAY(readlink("d", text, sizeof(text)));
	SAY(readlink("link", text, 0));
	SAY(symlink("d/f", "0"));
	for (int i = 0; i < 41; i++) {
		snprintf(text, sizeof(text), "%d", i);
		snprintf(name, sizeof(name), "%d", i + 1);
		if (symlink(text, name))
			abort();
	}
	SAY(stat("39", &st));
	SAY(stat("40", &st));
	SAY(lstat("41", &st));
}

static void dots(void)
{
	struct stat st, root;
	char *big = calloc(1, 9000);

	SAY(stat("", &st));
	SAY(stat(".", &st));
	SAY(stat("d/.", &st));
	SAY(stat("d/f/.", &st));
	SAY(stat("d/f/..", &st));
	SAY(stat("d/none/..", &st));
	SAY(stat("d//f", &st));
	SAY(stat("d/f/", &st));
	SAY(stat("//../../..", &st));
	SAY(stat("/", &root));
	printf("  the same: %d\n", st.st_ino == root.st_ino && st.st_dev == root.st_dev);
	memset(big, 'a', 256);
	SAY(stat(big, &st));
	big[255] = 0;
	SAY(stat(big, &st));
	for (int i = 0; i < 8192; i += 2)
		memcpy(big + i, "./", 2);
	big[4094] = 0;
	SAY(stat(big, &st));
	big[4094] = '.';
	big[4096] = 0;
	SAY(stat(big, &st));
	SAY(stat(bad_page(), &st));
	SAY(stat("d", bad_page()));
	free(big);
}

static void flags(void)
{
	struct stat st;
	int fd;

	SAY(can(open("d", O_RDWR)));
	SAY(can(open("d", O_CREAT, 0600)));
	SAY(can(open("d", O_CREAT | O_DIRECTORY, 0600)));
	SAY(can(open("d/f", O_DIRECTORY)));
	SAY(can(open("link", O_NOFOLLOW)));
	SAY(can(open("link", O_NOFOLLOW | O_PATH)));
	SAY(can(open("d/f", O_CREAT | O_EXCL | O_RDWR, 0600)));
	SAY(can(open("new/", O_CREAT | O_RDWR, 0600)));
	SAY(can(open("none/new", O_CREAT | O_RDWR, 0600)));
	SAY(can(open("d/f/new", O_CREAT | O_RDWR, 0600)));
	SAY(can(open("d", O_TMPFILE | O_RDONLY, 0600)));
	SAY(can(open("d/f", O_TMPFILE | O_RDWR, 0600)));
	fd = open("d", O_TMPFILE | O_RDWR, 0640);
	SAY(fstat(fd, &st));
	printf("  %o links %lu\n", st.st_mode, (unsigned long)st.st_nlink);
	SAY(linkat(fd, "", AT_FDCWD, "linked", AT_EMPTY_PATH));
	show("linked");
	close(fd);
	fd = open("d", O_TMPFILE | O_RDWR | O_EXCL, 0640);
	SAY(linkat(fd, "", AT_FDCWD, "linked2", AT_EMPTY_PATH));
	close(fd);
	fd = open("d/f", O_PATH);
	SAY(read(fd, &st, 1));
	SAY(fchmod(fd, 0600));
	SAY(fcntl(fd, F_GETFL));
	SAY(fcntl(fd, F_SETFL, O_APPEND));
	SAY(fstat(fd, &st));
	SAY(fstatat(fd, "", &st, AT_EMPTY_PATH));
	SAY(fstatat(fd, "", &st, 0));
	SAY(fstatat(fd, "x", &st, 0));
	close(fd);
	fd = open("d/f", O_RDWR | O_APPEND | O_SYNC | O_NONBLOCK | O_CLOEXEC);
	printf("flags %o\n", fcntl(fd, F_GETFL));
	SAY(fcntl(fd, F_SETFL, O_ASYNC | O_RDONLY | O_TRUNC));
	printf("flags %o\n", fcntl(fd, F_GETFL));
	close(fd);
	fd = open("d/f", 3);
	SAY(read(fd, &st, 1));
	SAY(write(fd, &st, 1));
	close(fd);
}

static void resolve(void)
{
	char outer[128];
	int d = open("d", O_PATH | O_DIRECTORY);

	snprintf(outer, sizeof(outer), "%s/d/f", scratch);
	SAY(symlink(outer, "d/absolute"));
	SAY(symlink("f", "d/near"));
	SAY(symlink("/f", "d/rooted"));
	SAY(at2(d, "f", 0, RESOLVE_BENEATH));
	SAY(at2(d, "near", 0, RESOLVE_BENEATH));
	SAY(at2(d, "absolute", 0, RESOLVE_BENEATH));
	SAY(at2(d, "../d/f", 0, RESOLVE_BENEATH));
	SAY(at2(d, "up/d/f", 0, RESOLVE_BENEATH));
	SAY(at2(d, outer, 0, RESOLVE_BENEATH));
	SAY(at2(d, ".", 0, RESOLVE_BENEATH));
	SAY(at2(d, "..", 0, RESOLVE_IN_ROOT));
	SAY(at2(d, "/f", 0, RESOLVE_IN_ROOT));
	SAY(at2(d, "rooted", 0, RESOLVE_IN_ROOT));
	SAY(at2(d, "rooted", 0, 0));
	SAY(at2(d, "absolute", 0, RESOLVE_IN_ROOT));
	SAY(at2(d, "../../../f", 0, RESOLVE_IN_ROOT));
	SAY(at2(d, "near", 0, RESOLVE_NO_SYMLINKS));
	SAY(at2(d, "near", O_PATH | O_NOFOLLOW, RESOLVE_NO_SYMLINKS));
	SAY(at2(d, "f", 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT));
	SAY(at2(d, "f", 0, 1 << 10));
	SAY(at2(d, "f", 1ULL << 40, 0));
	SAY(at2(d, "f", O_CREAT | O_DIRECTORY, 0));
	SAY(at2(d, "f", O_PATH | O_RDWR, 0));
	SAY(at2(d, "f", O_TRUNC | O_RDWR, RESOLVE_CACHED));
	SAY(at2(d, "created", O_CREAT | O_RDWR, RESOLVE_IN_ROOT));
	SAY(at2(AT_FDCWD, "/proc/self/exe", 0, RESOLVE_NO_MAGICLINKS));
	SAY(at2(AT_FDCWD, "/proc/self/exe", 0, 0));
	SAY(at2(AT_FDCWD, "/proc/self/exe", 0, RESOLVE_NO_XDEV));
	SAY(syscall(SYS_openat2, d, "f", &(struct open_how){0}, 16));
	SAY(syscall(SYS_openat2, d, "f", &(struct { struct open_how how; long more; }){.more = 1}, 32));
	SAY(can(syscall(SYS_openat2, d, "f", &(struct { struct open_how how; long more; }){.more = 0}, 32)));
}

static void directories(void)
{
	char text[256];
	int fd = open("d", O_RDONLY);

	SAY(chdir("d/f"));
	SAY(chdir("none"));
	SAY(fchdir(0) == 0 ? 0 : -1);
	SAY(mkdir("gone", 0700));
	SAY(chdir("gone"));
	SAY(rmdir("../gone"));
	SAY(getcwd(text, sizeof(text)) ? 0 : -1);
	SAY(can(open("x", O_CREAT | O_RDWR, 0600)));
	SAY(can(open(".", O_RDONLY)));
	SAY(chdir(".."));
	SAY(getcwd(text, 2) ? 0 : -1);
	SAY(getcwd(text, sizeof(text)) ? 0 : -1);
	printf("  as made: %d\n", !strcmp(text, scratch));
	SAY(fchdir(fd));
	SAY(getcwd(text, sizeof(text)) ? 0 : -1);
	printf("  %s\n", strrchr(text, '/'));
	SAY(chdir(".."));
	close(fd);
	fd = open("d/f", O_RDWR);
	SAY(unlink("d/f"));
	snprintf(text + 128, 64, "/proc/self/fd/%d", fd);
	long n = readlink(text + 128, text, 127);
	text[n < 0 ? 0 : n] = 0;
	printf("  %s\n", strstr(text, "/d/"));
	SAY(can(open(text + 128, O_RDWR)));
	close(fd);
}

int main(void)
{
	scratch_enter(0755);
	SAY(mkdir("d", 0755));
	make("d/f", 0644, "hello");
	links();
	dots();
	flags();
	resolve();
	directories();
	scratch_leave();
	return 0;
}
