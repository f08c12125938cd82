// needs Linux 6.6 (extended attributes of users in a tmpfs)
// Attributes and contents: stat, statx, times, extended attributes, sizes and holes, positions, the flags of pwritev2.
// boot: host
#include "files.h"
#include <linux/falloc.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <signal.h>
#include <utime.h>

static void times(const char *path)
{
	struct stat st;

	if (lstat(path, &st))
		abort();
	printf("  %s: a %ld.%09ld m %ld.%09ld\n", path, (long)st.st_atim.tv_sec, st.st_atim.tv_nsec,
	       (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

static void stats(void)
{
	struct statx stx;
	struct stat st;
	struct statfs fs;

	SAY(syscall(SYS_statx, AT_FDCWD, "f", 0, STATX_BASIC_STATS | STATX_BTIME, &stx));
	SAY(stat("f", &st));
	printf("  %o links %u size %llu, as stat: %d, born: %d, mask %x\n", stx.stx_mode, stx.stx_nlink,
	       (unsigned long long)stx.stx_size, stx.stx_ino == st.st_ino && stx.stx_mtime.tv_sec == st.st_mtim.tv_sec,
	       stx.stx_btime.tv_sec > 1600000000, stx.stx_mask & 0xFFF);
	SAY(syscall(SYS_statx, AT_FDCWD, "f", 0, 1u << 31, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "f", 0x6000, 0, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "f", 1, 0, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "none", 0, 0, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "", 0, 0, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "", AT_EMPTY_PATH, 0, &stx));
	SAY(syscall(SYS_statx, AT_FDCWD, "f", 0, 0, bad_page()));
	SAY(symlink("f", "link"));
	SAY(syscall(SYS_statx, AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &stx));
	printf("  %o\n", stx.stx_mode & S_IFMT);
	SAY(statfs("f", &fs));
	printf("  name length %ld, valid flags %d, room %d\n", (long)fs.f_namelen, !!(fs.f_flags & 0x20),
	       fs.f_bavail > 0 && fs.f_bavail <= fs.f_blocks);
	SAY(statfs("none", &fs));
	SAY(fstatfs(99, &fs));
}

static void time_calls(void)
{
	struct timespec both[2] = {{1, 2}, {3, 4}};
	int fd = open("f", O_RDONLY);

	SAY(utimensat(AT_FDCWD, "f", both, 0));
	times("f");
	both[0].tv_nsec = UTIME_OMIT, both[1].tv_sec = 1000;
	SAY(utimensat(AT_FDCWD, "f", both, 0));
	times("f");
	SAY(futimens(fd, (struct timespec[]){{5, 999999999}, {-1, 0}}));
	times("f");
	SAY(utimensat(AT_FDCWD, "f", (struct timespec[]){{0, 1000000000}, {0, 0}}, 0));
	SAY(utimensat(AT_FDCWD, "f", (struct timespec[]){{0, -1}, {0, 0}}, 0));
	SAY(utimensat(AT_FDCWD, "none", (struct timespec[]){{0, UTIME_OMIT}, {0, UTIME_OMIT}}, 0));
	SAY(utimensat(AT_FDCWD, "link", both, AT_SYMLINK_NOFOLLOW));
	SAY(utimensat(AT_FDCWD, "f", both, 1));
	SAY(syscall(SYS_utimensat, fd, NULL, both, AT_SYMLINK_NOFOLLOW));
	SAY(syscall(SYS_utimensat, AT_FDCWD, NULL, both, 0));
	SAY(utime("f", &(struct utimbuf){7, 8}));
	times("f");
	SAY(utimes("f", (struct timeval[]){{9, 10}, {11, 999999}}));
	times("f");
	SAY(utimes("f", (struct timeval[]){{9, 1000000}, {11, 0}}));
	SAY(syscall(SYS_futimesat, AT_FDCWD, "f", (struct timeval[]){{1, 1}, {2, 2}}));
	times("f");
	SAY(utime("f", NULL));
	struct stat st;
	stat("f", &st);
	printf("  now: %d\n", labs((long)st.st_mtim.tv_sec - (long)time(NULL)) < 5);
	/* relatime: the first read after a change counts, the next does not */
	SAY(utimensat(AT_FDCWD, "f", (struct timespec[]){{100, 0}, {200, 0}}, 0));
	char byte;
	SAY(read(fd, &byte, 1));
	stat("f", &st);
	printf("  read: %d\n", st.st_atim.tv_sec > 1000);
	close(fd);
}

static void xattrs(void)
{
	char text[300], name[300];

	SAY(setxattr("f", "user.one", "1", 1, 0));
	SAY(setxattr("f", "user.one", "22", 2, XATTR_CREATE));
	SAY(setxattr("f", "user.one", "22", 2, XATTR_REPLACE));
	SAY(setxattr("f", "user.two", "", 0, XATTR_REPLACE));
	SAY(setxattr("f", "user.two", "", 0, 0));
	SAY(setxattr("f", "user.two", "", 0, 8));
	SAY(setxattr("f", "user.", "x", 1, 0));
	SAY(setxattr("f", "", "x", 1, 0));
	SAY(setxattr("f", "plain", "x", 1, 0));
	SAY(setxattr("f", "trusted.t", "ttt", 3, 0));
	SAY(setxattr("none", "user.one", "x", 1, 0));
	SAY(syscall(SYS_setxattr, "f", "user.big", text, 65537, 0));
	memset(name, 'n', sizeof(name));
	memcpy(name, "user.", 5);
	name[256] = 0;
	SAY(setxattr("f", name, "x", 1, 0));
	name[255] = 0;
	SAY(setxattr("f", name, "x", 1, 0));
	SAY(removexattr("f", name));
	SAY(lsetxattr("link", "user.one", "x", 1, 0));
	SAY(lsetxattr("link", "trusted.one", "x", 1, 0));
	SAY(getxattr("f", "user.one", NULL, 0));
	SAY(getxattr("f", "user.one", text, 1));
	SAY(getxattr("f", "user.one", text, 2));
	printf("  %.2s\n", text);
	SAY(getxattr("f", "user.none", text, 2));
	SAY(getxattr("f", "user.one", bad_page(), 2));
	SAY(lgetxattr("link", "user.one", text, 2));
	SAY(lgetxattr("link", "trusted.one", text, 2));
	long n = SAY(listxattr("f", NULL, 0));
	SAY(listxattr("f", text, 3));
	SAY(listxattr("f", text, sizeof(text)));
	int known = 0;
	for (long at = 0; at < n; at += strlen(text + at) + 1)
		known += !strcmp(text + at, "user.one") + !strcmp(text + at, "user.two") + !strcmp(text + at, "trusted.t");
	printf("  known %d\n", known);
	int fd = open("f", O_RDONLY);
	SAY(fsetxattr(fd, "user.three", "3", 1, 0));
	SAY(fgetxattr(fd, "user.three", text, 5));
	SAY(flistxattr(fd, NULL, 0));
	SAY(fremovexattr(fd, "user.three"));
	SAY(fremovexattr(fd, "user.three"));
	close(fd);
	syscall(SYS_setresuid, -1, 1000, -1);
	SAY(getxattr("f", "trusted.t", text, 5));
	SAY(setxattr("f", "trusted.t", text, 5, 0));
	SAY(getxattr("f", "user.one", text, 5));
	SAY(setxattr("f", "user.one", text, 5, 0));
	SAY(setxattr("f", "security.s", text, 5, 0));
	SAY(listxattr("f", NULL, 0));
	syscall(SYS_setresuid, -1, 0, -1);
	SAY(removexattr("f", "user.one"));
	SAY(removexattr("f", "user.two"));
	SAY(removexattr("f", "trusted.t"));
}

static void sizes(void)
{
	struct stat st;
	int fd = open("sparse", O_CREAT | O_RDWR, 0644), ro = open("f", O_RDONLY);

	SAY(ftruncate(fd, 1 << 20));
	SAY(pwrite(fd, "data", 4, 512 << 10));
	SAY(fstat(fd, &st));
	printf("  size %ld, few blocks: %d\n", (long)st.st_size, st.st_blocks < 100);
	SAY(lseek(fd, 0, SEEK_DATA));
	SAY(lseek(fd, 0, SEEK_HOLE));
	SAY(lseek(fd, 512 << 10, SEEK_HOLE));
	SAY(lseek(fd, 600 << 10, SEEK_DATA));
	SAY(lseek(fd, 1 << 20, SEEK_DATA));
	SAY(lseek(fd, -1, SEEK_HOLE));
	SAY(lseek(fd, 10, SEEK_SET));
	SAY(lseek(fd, -11, SEEK_CUR));
	SAY(lseek(fd, 5, SEEK_CUR));
	SAY(lseek(fd, 5, SEEK_END));
	SAY(lseek(fd, 0, 9));
	SAY(lseek(0x7fff, 0, SEEK_SET));
	SAY(fallocate(fd, 0, 1 << 20, 4096));
	SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 2 << 20, 4096));
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096));
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 512 << 10, 4096));
	SAY(fallocate(fd, 0, -1, 1));
	SAY(fallocate(fd, 0, 0, 0));
	SAY(fallocate(fd, 1 << 20, 0, 1));
	SAY(fallocate(ro, 0, 0, 1));
	SAY(ftruncate(ro, 0));
	SAY(ftruncate(fd, -1));
	SAY(truncate("sparse", 100));
	SAY(truncate("none", 100));
	SAY(truncate(".", 100));
	SAY(truncate("link", 2));
	show("f");
	show("sparse");
	SAY(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
	SAY(posix_fadvise(fd, 0, 0, 77));
	SAY(readahead(fd, 0, 100));
	SAY(fsync(fd));
	SAY(fdatasync(fd));
	SAY(fsync(0x7fff));
	SAY(syncfs(fd));
	SAY(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
	SAY(sync_file_range(fd, -1, 0, 0));
	SAY(sync_file_range(fd, 0, 0, 8));
	/* Nothing is printed while the limit holds: standard output may be a file too. */
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, RLIM_INFINITY});
	long written = pwrite(fd, "0123456789", 10, 995);
	long beyond = pwrite(fd, "0123456789", 10, 1000), e1 = errno;
	long longer = ftruncate(fd, 1001), e2 = errno;
	long room = fallocate(fd, 0, 0, 1001), e3 = errno;
	setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
	printf("limited: %ld, %ld %s, %ld %s, %ld %s\n", written, beyond, strerrorname_np(e1), longer,
	       strerrorname_np(e2), room, strerrorname_np(e3));
	close(fd);
	close(ro);
}

static void vectors(void)
{
	char one[4] = "abc", two[8] = "defgh";
	struct iovec v[2] = {{one, 3}, {two, 5}};
	int fd = open("vec", O_CREAT | O_RDWR, 0644), ap, on = 1;

	SAY(writev(fd, v, 2));
	SAY(pwritev2(fd, v, 2, 4, RWF_DSYNC));
	SAY(pwritev2(fd, v, 1, -1, RWF_SYNC));
	SAY(pwritev2(fd, v, 1, 0, RWF_APPEND));
	SAY(pwritev2(fd, v, 1, 0, 0x4000));
	SAY(lseek(fd, 0, SEEK_CUR));
	SAY(lseek(fd, 0, SEEK_END));
	SAY(pwritev2(fd, v, 1, -2, 0));
	SAY(preadv(fd, v, 2, 1));
	printf("  %.3s %.5s\n", one, two);
	SAY(preadv2(fd, v, 2, 0, RWF_HIPRI));
	SAY(syscall(SYS_preadv, fd, v, 1025, 0, 0));
	SAY(syscall(SYS_readv, fd, v, -1));
	SAY(syscall(SYS_readv, fd, (struct iovec[]){{one, -1}}, 1));
	SAY(pread(fd, one, 3, -1));
	SAY(pread(fd, one, 3, INT64_MAX));
	SAY(pwrite(fd, one, 3, INT64_MAX));
	SAY(pread(fd, bad_page(), 3, 0));
	SAY(write(fd, bad_page(), 3));
	ap = open("vec", O_WRONLY | O_APPEND);
	SAY(pwrite(ap, "zz", 2, 0));
	SAY(lseek(fd, 0, SEEK_END));
	SAY(read(ap, one, 1));
	SAY(ioctl(fd, FIONREAD, &on));
	SAY(lseek(fd, 5, SEEK_SET));
	SAY(ioctl(fd, FIONREAD, &on));
	printf("  %d left\n", on);
	SAY(ioctl(fd, FIOCLEX));
	SAY(fcntl(fd, F_GETFD));
	SAY(ioctl(fd, 0x12345678, 0));
	close(ap);
	close(fd);
}

int main(void)
{
	if (getuid()) {
		printf("needs root\n");
		return 0;
	}
	scratch_enter(0755);
	make("f", 0644, "hello");
	stats();
	time_calls();
	xattrs();
	sizes();
	vectors();
	scratch_leave();
	return 0;
}
