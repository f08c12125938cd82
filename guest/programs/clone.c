// build: -Wno-unused-result
// clone and clone3 without CLONE_THREAD: what is shared by each flag, ids, errors.
#include "say.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char stack[65536];
static volatile int word = 1, cleared = 1, child_tid;
static int fd = -1;

static void handler(int number)
{
	(void)number;
}

static int writes(void *argument)
{
	word = (int)(intptr_t)argument;
	return 0;
}

static int closes(void *argument)
{
	(void)argument;
	close(fd);
	return 0;
}

static int masks(void *argument)
{
	(void)argument;
	umask(0);
	return 0;
}

static int handles(void *argument)
{
	(void)argument;
	signal(SIGUSR2, handler);
	return 0;
}

static int parents(void *argument)
{
	return getppid() == (int)(intptr_t)argument;
}

static int tids(void *argument)
{
	(void)argument;
	return child_tid == gettid() ? 21 : 22;
}

static int status_of(pid_t child)
{
	int status = -1;
	if (waitpid(child, &status, __WALL) != child)
		return -1;
	return status;
}

static int run(int (*body)(void *), int flags, long argument)
{
	pid_t tid = 0;
	pid_t child = clone(body, stack + sizeof stack, flags | SIGCHLD, (void *)argument, &tid, NULL, &child_tid);
	return child < 0 ? child : status_of(child);
}

static long clone3(struct clone_args *args)
{
	return syscall(SYS_clone3, args, sizeof *args);
}

static void shares(void)
{
	struct sigaction action;
	printf("own memory %x", run(writes, 0, 2));
	printf(" %d\n", word);
	printf("shared memory %x", run(writes, CLONE_VM, 3));
	printf(" %d\n", word);
	fd = open("/", O_RDONLY);
	printf("own files %x", run(closes, 0, 0));
	printf(" %d\n", fcntl(fd, F_GETFD));
	printf("shared files %x", run(closes, CLONE_FILES, 0));
	printf(" %d\n", fcntl(fd, F_GETFD));
	umask(077);
	printf("own umask %x", run(masks, 0, 0));
	printf(" %o\n", umask(077));
	printf("shared umask %x", run(masks, CLONE_FS, 0));
	printf(" %o\n", umask(022));
	printf("own handlers %x", run(handles, CLONE_VM, 0));
	sigaction(SIGUSR2, NULL, &action);
	printf(" %d\n", action.sa_handler == handler);
	printf("shared handlers %x", run(handles, CLONE_VM | CLONE_SIGHAND, 0));
	sigaction(SIGUSR2, NULL, &action);
	printf(" %d\n", action.sa_handler == handler);
}

static void ids(void)
{
	int tid = 0;
	pid_t child;
	printf("child %x\n", run(parents, 0, getpid()));
	printf("CLONE_CHILD_SETTID %x\n", run(tids, CLONE_CHILD_SETTID, 0));
	child = clone(parents, stack + sizeof stack, CLONE_PARENT_SETTID | SIGCHLD, NULL, &tid);
	printf("CLONE_PARENT_SETTID %d", tid == child);
	printf(" %x\n", status_of(child));
	child = clone(writes, stack + sizeof stack, CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, (void *)5, NULL, NULL,
		      &cleared);
	while (cleared)
		syscall(SYS_futex, &cleared, FUTEX_WAIT, 1, NULL, NULL, 0);
	printf("CLONE_CHILD_CLEARTID %d %x\n", cleared, status_of(child));
	child = fork();
	if (!child) {
		/* A sibling, not a child: its end is told to our parent. */
		pid_t sibling = clone(parents, stack + sizeof stack, CLONE_PARENT | SIGCHLD, (void *)(long)getppid());
		_exit(sibling > 0 && waitpid(sibling, NULL, __WALL) == -1 ? 31 : 32);
	}
	printf("CLONE_PARENT %x", status_of(child));
	printf(" %x\n", status_of(-1) < 0 ? -1 : 0);
	while (wait(NULL) > 0)
		;
}

static void errors(void)
{
	struct clone_args args = {0};
	SAY(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0));
	SAY(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0));
	SAY(syscall(SYS_clone, CLONE_SIGHAND | CLONE_THREAD, 0, 0, 0, 0));
	SAY(syscall(SYS_clone, CLONE_FS | CLONE_NEWNS, 0, 0, 0, 0));
	SAY(syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT_SETTID, 0, 0, 0, 0));
	SAY(syscall(SYS_clone, CLONE_SETTLS | SIGCHLD, 0, 0, 0, 0x800000000000));
	SAY(syscall(SYS_clone3, &args, 32));
	SAY(syscall(SYS_clone3, &args, 5000));
	SAY(syscall(SYS_clone3, bad_page(), 64));
	args.exit_signal = 65;
	SAY(clone3(&args));
	args.exit_signal = SIGCHLD;
	args.flags = SIGCHLD;
	SAY(clone3(&args));
	args.flags = CLONE_DETACHED;
	SAY(clone3(&args));
	args.flags = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
	SAY(clone3(&args));
	args.flags = CLONE_SIGHAND | CLONE_VM | CLONE_CLEAR_SIGHAND;
	SAY(clone3(&args));
	args.flags = 1ULL << 40;
	SAY(clone3(&args));
	args.flags = 0;
	args.stack = (uintptr_t)stack;
	SAY(clone3(&args));
	args.stack = 0;
	args.stack_size = 4096;
	SAY(clone3(&args));
}

static void newer(void)
{
	struct sigaction action;
	struct clone_args args = {.flags = CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD};
	signal(SIGUSR1, handler);
	signal(SIGHUP, SIG_IGN);
	long child = clone3(&args);
	if (!child) {
		sigaction(SIGUSR1, NULL, &action);
		int handled = action.sa_handler == SIG_DFL;
		sigaction(SIGHUP, NULL, &action);
		_exit(handled + 2 * (action.sa_handler == SIG_IGN));
	}
	printf("CLONE_CLEAR_SIGHAND %x\n", status_of(child));
	args.flags = CLONE_VFORK | CLONE_VM;
	args.stack = (uintptr_t)stack;
	args.stack_size = sizeof stack;
	struct clone_args plain = {.exit_signal = SIGCHLD, .flags = CLONE_PARENT_SETTID, .parent_tid = (uintptr_t)&child_tid};
	child = clone3(&plain);
	if (!child)
		_exit(41);
	printf("clone3 %d", child_tid == child);
	printf(" %x\n", status_of(child));
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	shares();
	ids();
	errors();
	newer();
	return 0;
}
