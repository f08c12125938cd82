// boot: host
/* The device files of /dev: null, zero, full, random, urandom, and the links to the standard streams. */
#include "say.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <linux/random.h>

static unsigned char buffer[1 << 16];

static void node(const char *path)
{
	struct stat status;

	if (stat(path, &status)) {
		printf("%s: %s\n", path, strerrorname_np(errno));
		return;
	}
	printf("%s: %s %u:%u\n", path, S_ISCHR(status.st_mode) ? "char" : "not char", major(status.st_rdev),
	       minor(status.st_rdev));
}

static int all(int value, long size)
{
	for (long i = 0; i < size; i++)
		if (buffer[i] != value)
			return 0;
	return 1;
}

static void use(const char *path)
{
	int fd = open(path, O_RDWR);
	struct pollfd ready = {fd, POLLIN | POLLOUT, 0};
	struct iovec parts[3] = {{buffer, 10}, {buffer + 10, 0}, {buffer + 20, 10}};

	printf("%s opened: %d\n", path, fd >= 0);
	memset(buffer, 0xAA, sizeof buffer);
	SAY(read(fd, buffer, 5000));
	printf("zeros: %d\n", all(0, 5000));
	SAY(read(fd, buffer, 0));
	SAY(readv(fd, parts, 3));
	SAY(pread(fd, buffer, 10, 1L << 40));
	SAY(read(fd, bad_page(), 10));
	SAY(write(fd, "hello", 5));
	SAY(pwrite(fd, "hello", 5, 1 << 20));
	SAY(writev(fd, parts, 3));
	SAY(lseek(fd, 100, SEEK_SET));
	SAY(lseek(fd, 0, SEEK_END));
	SAY(ftruncate(fd, 0));
	SAY(fsync(fd));
	SAY(ioctl(fd, 0x12345678, 0));
	poll(&ready, 1, 0);
	printf("ready for reading %d, writing %d\n", !!(ready.revents & POLLIN), !!(ready.revents & POLLOUT));
	SAY(fcntl(fd, F_GETFL) & O_ACCMODE);
	close(fd);
}

static void random_bytes(const char *path)
{
	static unsigned char other[sizeof buffer];
	int fd = open(path, O_RDWR), bits = 0, counts[256] = {0}, used = 0;

	SAY(read(fd, buffer, sizeof buffer));
	SAY(pread(fd, other, sizeof other, 7));
	printf("differ: %d\n", memcmp(buffer, other, sizeof buffer) != 0);
	for (unsigned i = 0; i < sizeof buffer; i++)
		used += !counts[buffer[i]]++;
	printf("byte values: %d\n", used);
	SAY(write(fd, "seed", 4));
	SAY(write(fd, bad_page(), 4));
	SAY(read(fd, bad_page(), 4));
	SAY(ioctl(fd, RNDGETENTCNT, &bits));
	printf("bits: %d\n", bits);
	SAY(ioctl(fd, 0x12345678, 0));
	close(fd);
}

static void mapping(void)
{
	int fd = open("/dev/zero", O_RDWR), null = open("/dev/null", O_RDWR);
	char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096);
	char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	printf("mapped: %d %d\n", private != MAP_FAILED, shared != MAP_FAILED);
	printf("zeros: %d %d\n", private[0] | private[8191], shared[0] | shared[8191]);
	strcpy(private + 4090, "across pages");
	strcpy(shared + 4090, "across pages");
	printf("%s, %s\n", private + 4090, shared + 4090);
	SAY(munmap(private, 8192));
	SAY(munmap(shared, 8192));
	SAY((long)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, null, 0));
	close(null);
}

static void links(void)
{
	char target[100];
	const char *names[] = {"/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"};
	int ends[2], fd;

	for (int i = 0; i < 4; i++) {
		memset(target, 0, sizeof target);
		SAY(readlink(names[i], target, sizeof target - 1));
		printf("%s -> %s\n", names[i], target);
	}
	if (pipe(ends))
		abort();
	dup2(ends[0], 0);
	if (write(ends[1], "through a pipe", 14) != 14)
		abort();
	fd = open("/dev/stdin", O_RDONLY);
	SAY(read(fd, target, 100));
	close(fd);
	fd = open("/dev/fd/0", O_WRONLY);
	SAY(write(fd, "back", 4));
	SAY(read(0, target, 100));
	close(fd);
	close(ends[0]);
	close(ends[1]);
	close(0);
	SAY(open("/dev/stdin", O_RDONLY));
}

int main(void)
{
	const char *nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
	char path[40];

	for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		snprintf(path, sizeof path, "/dev/%s", nodes[i]);
		node(path);
	}
	use("/dev/null");
	use("/dev/zero");
	use("/dev/full");
	random_bytes("/dev/random");
	random_bytes("/dev/urandom");
	mapping();
	SAY(open("/dev/nothing", O_RDONLY));
	SAY(open("/dev/null/x", O_RDONLY));
	SAY(open("/dev/null", O_RDONLY | O_DIRECTORY));
	SAY(open("/dev/null", O_RDWR | O_TRUNC | O_CREAT, 0600) >= 0);
	links();
	return 0;
}
