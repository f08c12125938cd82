// build: -Wno-unused-result
// Mappings of a file against reads and writes of it: shared and private ones, truncation, holes, mremap, msync.
#include "say.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/stat.h>

#define PAGE 4096

static sigjmp_buf escape;
static volatile int code;
static char *volatile where;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	code = info->si_code;
	where = info->si_addr;
	siglongjmp(escape, number);
}

// The signal that reading, or writing, a byte ends in; 0 for none.
static int touch(volatile char *p, int write)
{
	int number = sigsetjmp(escape, 1);

	if (!number) {
		if (write)
			*p = 1;
		else
			(void)*p;
		return 0;
	}
	return number;
}

static long blocks(int fd)
{
	struct stat st;

	fstat(fd, &st);
	return (long)st.st_blocks;
}

static char text[PAGE];

static void coherent(int fd)
{
	char *one = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *other = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
	char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	pwrite(fd, "written", 7, PAGE);
	SAY(memcmp(one + PAGE, "written", 7));
	SAY(memcmp(other, "written", 7));
	SAY(memcmp(private + PAGE, "written", 7));
	memcpy(one + PAGE + 2, "XYZ", 3);
	pread(fd, text, 7, PAGE);
	SAY(memcmp(text, "wrXYZen", 7));
	SAY(memcmp(other, "wrXYZen", 7));
	SAY(memcmp(private + PAGE, "wrXYZen", 7));
	private[PAGE] = 'p';
	pwrite(fd, "again--", 7, PAGE);
	SAY(memcmp(private + PAGE, "prXYZen", 7));
	SAY(memcmp(other, "again--", 7));
	// what a read or a write moves may lie in a mapping of the same file
	SAY(pread(fd, one + 2 * PAGE, 7, PAGE));
	SAY(memcmp(other + PAGE, "again--", 7));
	SAY(pwrite(fd, one + PAGE, 7, 3 * PAGE));
	SAY(memcmp(one + 3 * PAGE, "again--", 7));
	SAY(msync(one, 4 * PAGE, MS_SYNC));
	SAY(msync(one, PAGE, MS_SYNC | MS_ASYNC));
	SAY(mprotect(other, PAGE, PROT_READ | PROT_WRITE));
	other[0] = 'O';
	SAY(one[PAGE] == 'O');
	munmap(one, 4 * PAGE);
	munmap(other, 2 * PAGE);
	munmap(private, 4 * PAGE);
}

static void ends(int fd)
{
	SAY(ftruncate(fd, 2 * PAGE + 100));
	char *map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	memset(map, 'm', 2 * PAGE + 100);
	private[PAGE] = private[2 * PAGE] = 'p';
	SAY(map[2 * PAGE + 100]);
	SAY(touch(map + 3 * PAGE, 0));
	SAY(code == BUS_ADRERR && where == map + 3 * PAGE);
	SAY(touch(private + 3 * PAGE, 1));
	SAY(ftruncate(fd, PAGE + 10));
	SAY(map[PAGE + 9] == 'm' && map[PAGE + 10] == 0);
	SAY(private[PAGE] == 'p');
	SAY(touch(map + 2 * PAGE, 0));
	SAY(touch(private + 2 * PAGE, 0));
	SAY(ftruncate(fd, 4 * PAGE));
	SAY(touch(map + 2 * PAGE, 0));
	SAY(map[PAGE + 10] == 0 && map[2 * PAGE] == 0 && private[2 * PAGE] == 0);
	SAY(pread(fd, map + 3 * PAGE, 10, 0));
	SAY(read(fd, map + 4 * PAGE, 1) == -1 && errno == EFAULT);
	memset(map, 'n', 4 * PAGE);
	private[0] = 'q';
	SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE + 10));
	SAY(map[0] == 0 && map[PAGE + 9] == 0 && map[PAGE + 10] == 'n');
	SAY(private[0] == 'q');
	SAY(private[3 * PAGE] == 'n');
	SAY(madvise(map + 2 * PAGE, PAGE, MADV_REMOVE));
	SAY(map[2 * PAGE] == 0 && map[3 * PAGE] == 'n');
	pread(fd, text, PAGE, 2 * PAGE);
	SAY(text[0] == 0 && text[PAGE - 1] == 0);
	SAY(madvise(map + 3 * PAGE, PAGE, MADV_DONTNEED));
	SAY(map[3 * PAGE] == 'n');
	SAY(madvise(private, PAGE, MADV_DONTNEED));
	SAY(private[0] == 0);
	// the file lives on in its mappings
	close(fd);
	SAY(map[3 * PAGE] == 'n');
	map = mremap(map, 4 * PAGE, 5 * PAGE, MREMAP_MAYMOVE);
	SAY(map != MAP_FAILED);
	SAY(map[3 * PAGE] == 'n');
	SAY(touch(map + 4 * PAGE, 0));
	munmap(map, 5 * PAGE);
	munmap(private, 4 * PAGE);
}

static void sparse(void)
{
	int fd = (int)syscall(SYS_memfd_create, "sparse", 0);

	ftruncate(fd, 1000 * PAGE);
	char *map = mmap(NULL, 1000 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	SAY(blocks(fd));
	map[500 * PAGE] = 1;
	SAY(blocks(fd));
	SAY(touch(map + 700 * PAGE, 0));
	SAY(blocks(fd));
	SAY(map[500 * PAGE]);
	pwrite(fd, text, 1, 900 * PAGE);
	SAY(blocks(fd));
	for (int i = 0; i < 1000; i++)
		map[i * PAGE] = (char)i;
	SAY(blocks(fd));
	int wrong = 0;
	for (int i = 0; i < 1000; i++) {
		pread(fd, text, 1, (off_t)i * PAGE);
		wrong += text[0] != (char)i;
	}
	SAY(wrong);
	SAY(munmap(map, 1000 * PAGE));
	SAY(ftruncate(fd, 10));
	SAY(blocks(fd));
	close(fd);
}

static void errors(void)
{
	int fd = (int)syscall(SYS_memfd_create, "errors", 0), pipes[2];
	char path[64];

	ftruncate(fd, PAGE);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	pipe(pipes);
	SAY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, pipes[1], 0) == MAP_FAILED && errno == EACCES);
	SAY(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, pipes[0], 0) == MAP_FAILED && errno == ENODEV);
	SAY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1) == MAP_FAILED && errno == EINVAL);
	SAY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, 99, 0) == MAP_FAILED && errno == EBADF);
	SAY(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
	SAY(mmap(NULL, PAGE, PROT_READ, 0, fd, 0) == MAP_FAILED && errno == EINVAL);
	SAY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, (off_t)0x7ffffffffffff000) == MAP_FAILED);
	SAY(touch(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 100 * PAGE), 0));
	char *map = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	SAY(map != MAP_FAILED);
	SAY(touch(map, 1));
	SAY(code == SEGV_ACCERR);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	int fd = (int)syscall(SYS_memfd_create, "file", 0);
	SAY(ftruncate(fd, 4 * PAGE));
	coherent(fd);
	ends(fd);
	sparse();
	errors();
	return 0;
}
