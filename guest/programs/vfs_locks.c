// Locks: of whole files, of ranges by processes and by open file descriptions, waited for by threads and processes.
// boot: host
#include "files.h"
#include <sys/file.h>
#include <sys/wait.h>

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#define F_OFD_SETLKW 38
#endif

static long lock(int fd, int command, int kind, long start, long length)
{
	struct flock fl = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

	return fcntl(fd, command, &fl);
}

static void who(int fd, int command, int kind, long start, long length)
{
	struct flock fl = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

	SAY(fcntl(fd, command, &fl));
	printf("  type %d start %ld length %ld holder %s\n", fl.l_type, (long)fl.l_start, (long)fl.l_len,
	       fl.l_type == F_UNLCK ? "none" : fl.l_pid == -1 ? "a description" : fl.l_pid == getppid() ? "parent" : "other");
}

static int other;

static void *wait_ofd(void *argument)
{
	(void)argument;
	return (void *)lock(other, F_OFD_SETLKW, F_WRLCK, 0, 10);
}

static void *wait_flock(void *argument)
{
	(void)argument;
	return (void *)(long)flock(other, LOCK_EX);
}

static void descriptions(void)
{
	int fd = open("f", O_RDWR), copy = dup(fd);

	other = open("f", O_RDWR);
	SAY(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 10));
	SAY(lock(copy, F_OFD_SETLK, F_RDLCK, 5, 10));
	SAY(lock(other, F_OFD_SETLK, F_RDLCK, 5, 10));
	SAY(lock(other, F_OFD_SETLK, F_WRLCK, 14, 1));
	SAY(lock(other, F_OFD_SETLK, F_RDLCK, 0, 1));
	who(other, F_OFD_GETLK, F_WRLCK, 0, 0);
	who(fd, F_OFD_GETLK, F_WRLCK, 0, 0);
	who(other, F_GETLK, F_RDLCK, 0, 0);
	SAY(lock(fd, F_OFD_SETLK, F_UNLCK, 2, 3));
	who(other, F_OFD_GETLK, F_WRLCK, 1, 100);
	SAY(lock(other, F_SETLK, F_WRLCK, 2, 3));
	SAY(lock(fd, F_OFD_SETLK, F_RDLCK, 2, 1));
	SAY(lock(other, F_SETLK, F_UNLCK, 0, 0));
	SAY(lock(other, F_OFD_SETLK, F_UNLCK, 0, 0));
	struct flock pid = {.l_type = F_RDLCK, .l_pid = 1};
	SAY(fcntl(fd, F_OFD_SETLK, &pid));
	close(copy);
	pthread_t thread = start(wait_ofd, NULL);
	usleep(20000);
	SAY(lock(fd, F_OFD_SETLK, F_UNLCK, 0, 0));
	printf("the thread has it: %ld\n", join(thread));
	SAY(lock(fd, F_OFD_SETLK, F_RDLCK, 0, 1));
	close(other);
	SAY(lock(fd, F_OFD_SETLK, F_RDLCK, 0, 1));
	close(fd);
}

static void wholes(void)
{
	int fd = open("f", O_RDWR), copy = dup(fd);

	other = open("f", O_RDONLY);
	SAY(flock(fd, LOCK_SH));
	SAY(flock(other, LOCK_SH | LOCK_NB));
	SAY(flock(other, LOCK_EX | LOCK_NB));
	SAY(flock(other, LOCK_UN));
	SAY(flock(copy, LOCK_EX));
	SAY(flock(other, LOCK_SH | LOCK_NB));
	SAY(flock(fd, LOCK_SH | LOCK_EX));
	SAY(flock(fd, 0));
	SAY(flock(0x7fff, LOCK_EX));
	SAY(lock(other, F_OFD_SETLK, F_RDLCK, 0, 0));
	pthread_t thread = start(wait_flock, NULL);
	usleep(20000);
	close(fd);
	close(copy);
	printf("the thread has the file: %ld\n", join(thread));
	close(other);
}

static void ranges(void)
{
	int fd = open("f", O_RDWR), ro = open("f", O_RDONLY), wo = open("f", O_WRONLY);

	SAY(lock(ro, F_SETLK, F_WRLCK, 0, 0));
	SAY(lock(wo, F_SETLK, F_RDLCK, 0, 0));
	SAY(lock(fd, F_SETLK, 7, 0, 0));
	SAY(lock(fd, F_SETLK, F_RDLCK, -1, 0));
	SAY(lock(fd, F_SETLK, F_RDLCK, 5, -6));
	SAY(lock(fd, F_SETLK, F_RDLCK, 5, -5));
	SAY(lock(fd, F_SETLK, F_RDLCK, INT64_MAX, 0));
	SAY(lock(fd, F_SETLK, F_RDLCK, 2, INT64_MAX));
	struct flock fl = {.l_type = F_RDLCK, .l_whence = 9};
	SAY(fcntl(fd, F_SETLK, &fl));
	fl.l_whence = SEEK_END, fl.l_start = -2, fl.l_type = F_WRLCK;
	SAY(fcntl(fd, F_SETLK, &fl));
	SAY(fcntl(fd, F_GETLK, bad_page()));
	SAY(lock(0x7fff, F_SETLK, F_RDLCK, 0, 0));
	pid_t child = fork();
	if (!child) {
		who(fd, F_GETLK, F_WRLCK, 0, 0);
		who(fd, F_GETLK, F_RDLCK, 0, 0);
		SAY(lock(fd, F_SETLK, F_RDLCK, 0, 3));
		SAY(lock(fd, F_SETLK, F_WRLCK, 4, 1));
		_exit(0);
	}
	waitpid(child, NULL, 0);
	close(ro); /* any descriptor of the file: the process's locks are gone */
	child = fork();
	if (!child) {
		who(fd, F_GETLK, F_WRLCK, 0, 0);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	close(fd);
	close(wo);
}

static void deadlock(void)
{
	int fd = open("f", O_RDWR), ready[2];
	char byte;

	if (pipe(ready))
		abort();
	SAY(lock(fd, F_SETLK, F_WRLCK, 0, 1));
	fflush(stdout);
	pid_t child = fork();
	if (!child) {
		SAY(lock(fd, F_SETLK, F_WRLCK, 1, 1));
		if (write(ready[1], "x", 1) != 1)
			abort();
		SAY(lock(fd, F_SETLKW, F_WRLCK, 0, 1)); /* until the parent gives up */
		_exit(0);
	}
	if (read(ready[0], &byte, 1) != 1)
		abort();
	usleep(50000);
	SAY(lock(fd, F_SETLKW, F_WRLCK, 1, 1));
	long freed = lock(fd, F_SETLK, F_UNLCK, 0, 0);
	waitpid(child, NULL, 0); /* which prints meanwhile */
	printf("freed: %ld\n", freed);
	close(fd);
}

int main(void)
{
	scratch_enter(0755);
	make("f", 0644, "hello");
	descriptions();
	wholes();
	ranges();
	deadlock();
	scratch_leave();
	return 0;
}
