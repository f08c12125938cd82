// build: -Wno-unused-result
// fork: what a child has of its own and what it shares, orphans, zombies, process ids, limits.
#include "say.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/times.h>
#include <sys/wait.h>

static volatile int private_word = 1;
static volatile int *shared;
static __thread int thread_word = 5;

/* Runs `body` in a child and prints how that ended. */
#define CHILD(what, ...)                                                              \
	do {                                                                          \
		fflush(stdout);                                                       \
		pid_t child_ = fork();                                                \
		if (!child_) {                                                        \
			__VA_ARGS__;                                                  \
			fflush(stdout);                                               \
			_exit(0);                                                     \
		}                                                                     \
		int status_ = -1;                                                     \
		int right_ = waitpid(child_, &status_, 0) == child_;                  \
		printf("%s: %s %x\n", what, right_ ? "ended" : "lost", status_);      \
	} while (0)

static void nothing(int number)
{
	(void)number;
}

static double doubled(double x)
{
	return x * 2;
}

static void memory(void)
{
	char *heap = malloc(300000);
	memset(heap, 'p', 300000);
	CHILD("memory", {
		private_word = 2;
		*shared = 7;
		thread_word = 6;
		heap[200000] = 'c';
		printf("child sees %d %c %c\n", private_word, heap[200000], heap[200001]);
	});
	printf("parent sees %d %d %d %c\n", private_word, *shared, thread_word, heap[200000]);
	free(heap);
	char *wiped = good_page();
	strcpy(wiped, "text");
	SAY(madvise(wiped, 4096, MADV_WIPEONFORK));
	CHILD("wiped", printf("[%s]\n", wiped));
	volatile double before = 1.25;
	double kept = doubled(before);
	CHILD("floating point", printf("%.2f %.2f\n", kept, doubled(kept)));
}

static void files(void)
{
	int fd = memfd_create("file", 0), pair[2], last[2];
	char buffer[10] = "";
	pipe(pair);
	pipe2(last, O_CLOEXEC);
	CHILD("shared offset", write(fd, "child", 5));
	printf("offset %ld\n", (long)lseek(fd, 0, SEEK_CUR));
	CHILD("own table", close(fd); close(pair[0]); close(pair[1]));
	printf("open %d\n", fcntl(fd, F_GETFD) >= 0);
	CHILD("pipe", close(pair[0]); write(pair[1], "hello", 5));
	close(pair[1]);
	printf("read %ld %s\n", (long)read(pair[0], buffer, 9), buffer);
	printf("end %ld\n", (long)read(pair[0], buffer, 9));
	CHILD("close-on-exec is kept", printf("%d\n", fcntl(last[0], F_GETFD)));
	CHILD("directory", chdir("/"));
	umask(027);
	CHILD("umask", printf("%o\n", umask(022)));
	printf("umask %o\n", umask(022));
}

static void signals(void)
{
	sigset_t set, old, pending;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, &old);
	raise(SIGUSR2);
	signal(SIGUSR1, SIG_IGN);
	alarm(1000);
	CHILD("signals", {
		struct sigaction action;
		sigprocmask(SIG_BLOCK, NULL, &set);
		sigpending(&pending);
		sigaction(SIGUSR1, NULL, &action);
		printf("blocked %d pending %d ignored %d alarm %d\n", sigismember(&set, SIGUSR2),
		       sigismember(&pending, SIGUSR2), action.sa_handler == SIG_IGN, alarm(0) != 0);
	});
	printf("alarm left %d\n", alarm(0) > 0);
	signal(SIGUSR2, SIG_IGN);
	sigprocmask(SIG_SETMASK, &old, NULL);
	CHILD("killed", raise(SIGKILL));
	CHILD("terminated", raise(SIGTERM));
	CHILD("fault", *(volatile char *)bad_page() = 1);
	CHILD("child reaps its own", {
		pid_t p = fork();
		if (!p)
			_exit(3);
		int status, right = wait(&status) == p;
		printf("%d %x\n", right, status);
	});
}

static void identity(void)
{
	pid_t self = getpid();
	int fd[2];
	char byte;
	CHILD("ids", printf("%d %d %d %d\n", getppid() == self, getpid() == gettid(), getpgrp() == getpgid(self),
			    getsid(0) == getsid(self)));
	prctl(PR_SET_NAME, "renamed");
	CHILD("name", {
		char name[17] = "";
		prctl(PR_GET_NAME, name);
		printf("%s\n", name);
	});
	pipe(fd);
	SAY(prctl(PR_SET_CHILD_SUBREAPER, 1));
	CHILD("orphan", {
		if (!fork()) {
			while (getppid() != self)
				usleep(1000);
			write(fd[1], "s", 1);
			_exit(9);
		}
	});
	printf("read %ld ", (long)read(fd[0], &byte, 1));
	printf("%c\n", byte);
	int status;
	int adopted = wait(&status) > 0;
	printf("adopted %d %x\n", adopted, status);
	SAY(prctl(PR_SET_CHILD_SUBREAPER, 0));
	signal(SIGUSR1, nothing);
	CHILD("death signal", {
		int sync[2];
		pipe(sync);
		pid_t middle = fork();
		if (!middle) {
			if (!fork()) {
				sigset_t set;
				sigemptyset(&set);
				sigaddset(&set, SIGUSR1);
				sigprocmask(SIG_BLOCK, &set, NULL);
				siginfo_t info;
				prctl(PR_SET_PDEATHSIG, SIGUSR1);
				write(sync[1], "x", 1);
				int got = sigwaitinfo(&set, &info);
				printf("%d %d %d\n", got == SIGUSR1, info.si_code, info.si_pid == getppid());
				fflush(stdout);
				write(sync[1], "y", 1);
				_exit(0);
			}
			pause();
		}
		read(sync[0], &byte, 1);
		kill(middle, SIGKILL);
		waitpid(middle, NULL, 0);
		read(sync[0], &byte, 1);
		printf("%c\n", byte);
	});
}

static void limits(void)
{
	struct rlimit limit = {10, 20}, got;
	setrlimit(RLIMIT_CORE, &limit);
	CHILD("limits are inherited", {
		getrlimit(RLIMIT_CORE, &got);
		printf("%ld %ld\n", (long)got.rlim_cur, (long)got.rlim_max);
		limit.rlim_cur = 1;
		setrlimit(RLIMIT_CORE, &limit);
	});
	getrlimit(RLIMIT_CORE, &got);
	printf("%ld\n", (long)got.rlim_cur);
	CHILD("no more processes", {
		struct rlimit none = {0, 0};
		setrlimit(RLIMIT_NPROC, &none);
		if (setresuid(54321, 54321, 54321))
			printf("setresuid\n");
		SAY(fork());
	});
}

static void many(void)
{
	int sum = 0;
	pid_t children[20];
	for (int i = 0; i < 20; i++) {
		children[i] = fork();
		if (!children[i])
			_exit(i);
	}
	for (int i = 19; i >= 0; i--) {
		int status;
		waitpid(children[i], &status, 0);
		sum += WEXITSTATUS(status);
	}
	printf("sum %d\n", sum);
	SAY(wait(NULL));
	sum = 0;
	for (int i = 0; i < 100; i++) {
		int status;
		pid_t child = fork();
		if (!child)
			_exit(i % 7);
		waitpid(child, &status, 0);
		sum += WEXITSTATUS(status);
	}
	printf("sum %d\n", sum);
}

static int tree(int depth)
{
	int sum = 0;
	for (int i = 0; i < 2; i++)
		if (!fork())
			_exit(depth ? tree(depth - 1) : 1);
	for (int i = 0; i < 2; i++) {
		int status;
		wait(&status);
		sum += WEXITSTATUS(status);
	}
	return sum;
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memory();
	files();
	signals();
	identity();
	limits();
	many();
	CHILD("tree", _exit(tree(3)));
	return 0;
}
