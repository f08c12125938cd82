// needs Linux 6.7 (what is new: MFD_NOEXEC_SEAL, MFD_EXEC)
// build: -Wno-unused-result
// memfd_create: contents, holes, allocation, truncation, seals, and what the file's mappings have to do with them.
#include "say.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#define MFD_EXEC 16
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 16
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 32
#endif
#define PAGE 4096

static char buffer[8 * PAGE];

static int make(unsigned flags)
{
	return (int)syscall(SYS_memfd_create, "test", flags);
}

static void show(const char *what, int fd)
{
	struct stat st;

	fstat(fd, &st);
	printf("%s: mode %o links %ld size %ld blocks %ld\n", what, st.st_mode, (long)st.st_nlink, (long)st.st_size,
	       (long)st.st_blocks);
}

static void contents(void)
{
	int fd = make(0);
	struct statfs fs;
	struct stat before, after;

	show("new", fd);
	SAY(fcntl(fd, F_GETFL) == (O_RDWR | 0100000));
	SAY(fcntl(fd, F_GETFD));
	SAY(fcntl(fd, F_GET_SEALS));
	SAY(fstatfs(fd, &fs));
	SAY(fs.f_type == 0x01021994);
	SAY(write(fd, "hello", 5));
	SAY(pwrite(fd, "far", 3, 10 * PAGE));
	show("sparse", fd);
	SAY(lseek(fd, 0, SEEK_DATA));
	SAY(lseek(fd, 0, SEEK_HOLE));
	SAY(lseek(fd, PAGE + 5, SEEK_DATA));
	SAY(lseek(fd, 10 * PAGE + 1, SEEK_HOLE));
	SAY(lseek(fd, 20 * PAGE, SEEK_DATA));
	SAY(lseek(fd, -1, SEEK_HOLE));
	memset(buffer, 1, sizeof buffer);
	SAY(pread(fd, buffer, 8, 2));
	SAY(memcmp(buffer, "llo\0\0\0\0\0", 8));
	SAY(pread(fd, buffer, 100, 10 * PAGE));
	SAY(pread(fd, buffer, 100, 11 * PAGE));
	SAY(fallocate(fd, 0, PAGE, 3 * PAGE));
	show("allocated", fd);
	SAY(lseek(fd, PAGE, SEEK_DATA));
	SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 100 * PAGE, PAGE));
	show("allocated behind the end", fd);
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 2 * PAGE));
	show("punched", fd);
	SAY(pread(fd, buffer, 5, 0));
	SAY(memcmp(buffer, "he\0\0\0", 5));
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1));
	SAY(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 1));
	SAY(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE));
	SAY(fallocate(fd, 0, 0, 0));
	SAY(fallocate(fd, 0, -1, 1));
	SAY(ftruncate(fd, 3));
	show("truncated", fd);
	SAY(ftruncate(fd, 6));
	SAY(pread(fd, buffer, 10, 0));
	SAY(memcmp(buffer, "he\0\0\0\0", 6));
	SAY(ftruncate(fd, -1));
	fstat(fd, &before);
	usleep(20000);
	SAY(ftruncate(fd, 6));
	fstat(fd, &after);
	SAY(before.st_mtim.tv_nsec != after.st_mtim.tv_nsec || before.st_mtim.tv_sec != after.st_mtim.tv_sec);
	SAY(pwrite(fd, (char *)bad_page(), 10, 0));
	SAY(pread(fd, (char *)bad_page(), 6, 0));
	SAY(pread(fd, (char *)bad_page(), 6, 100));
	char *page = good_page();
	mprotect(page, PAGE, PROT_READ | PROT_WRITE);
	munmap((char *)mmap(page + PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), PAGE);
	SAY(pwrite(fd, page + PAGE - 4, 10, 0));
	SAY(pread(fd, page + PAGE - 4, 6, 0));
	close(fd);
}

static void flags(void)
{
	char name[300];

	memset(name, 'x', sizeof name);
	name[299] = 0;
	SAY(syscall(SYS_memfd_create, name, 0));
	name[250] = 0;
	SAY(syscall(SYS_memfd_create, name, 0));
	name[249] = 0;
	SAY(close((int)syscall(SYS_memfd_create, name, 0)));
	SAY(syscall(SYS_memfd_create, bad_page(), 0));
	SAY(make(0x20));
	SAY(make(MFD_EXEC | MFD_NOEXEC_SEAL));
	int fd = make(MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	show("noexec", fd);
	SAY(fcntl(fd, F_GETFD));
	SAY(fcntl(fd, F_GET_SEALS));
	SAY(fchmod(fd, 0600));
	SAY(fchmod(fd, 0700));
	close(fd);
	fd = make(MFD_ALLOW_SEALING);
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_EXEC));
	SAY(fcntl(fd, F_GET_SEALS));
	close(fd);
}

static void seals(void)
{
	int fd = make(0);

	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	close(fd);
	fd = make(MFD_ALLOW_SEALING);
	SAY(fcntl(fd, F_GET_SEALS));
	SAY(fcntl(fd, F_ADD_SEALS, 0x40));
	SAY(ftruncate(fd, 2 * PAGE + 100));
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
	SAY(ftruncate(fd, 3 * PAGE));
	SAY(pwrite(fd, buffer, 50, 2 * PAGE + 60));
	SAY(pwrite(fd, buffer, 3 * PAGE, PAGE));
	SAY(pwrite(fd, buffer, 10, 2 * PAGE + 90));
	SAY(fallocate(fd, 0, 0, 4 * PAGE));
	SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE));
	SAY(ftruncate(fd, 2 * PAGE));
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	SAY(ftruncate(fd, PAGE));
	char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	map[0] = 'm';
	SAY(pwrite(fd, buffer, 1, 0));
	SAY(pread(fd, buffer, 1, 0) == 1 && buffer[0] == 'm');
	SAY(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	SAY(errno == EPERM);
	munmap(map, PAGE);
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
	map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	SAY(map != MAP_FAILED);
	SAY(mprotect(map, PAGE, PROT_READ | PROT_WRITE));
	SAY(map[0]);
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	SAY(map != MAP_FAILED);
	map[0] = 'p';
	SAY(pread(fd, buffer, 1, 0) == 1 && buffer[0] == 'm');
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
	SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
	SAY(fcntl(fd, F_GET_SEALS));
	close(fd);
}

int main(void)
{
	contents();
	flags();
	seals();
	return 0;
}
