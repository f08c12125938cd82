// build: -Wno-unused-result
// wait4 and waitid: options, what is told of whom, SIGCHLD, stops, automatic reaping, rusage.
#include "say.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <sched.h>

static volatile int chlds;
static volatile siginfo_t last;

static void on_chld(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	chlds++;
	last.si_code = info->si_code;
	last.si_pid = info->si_pid;
	last.si_status = info->si_status;
}

static pid_t child_exits(int code)
{
	pid_t child = fork();
	if (!child)
		_exit(code);
	return child;
}

static pid_t child_waits(void)
{
	pid_t child = fork();
	if (!child)
		for (;;)
			pause();
	return child;
}

static void show(const char *what, pid_t child, long result, siginfo_t *info)
{
	printf("%s: %ld %s signo %d code %d status %d pid %d uid %d\n", what, result,
	       result < 0 ? strerrorname_np(errno) : "", info->si_signo, info->si_code, info->si_status,
	       info->si_pid == child, info->si_uid == getuid());
	fflush(stdout);
}

static void catch(int flags)
{
	struct sigaction action = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART | flags};
	sigaction(SIGCHLD, &action, NULL);
	chlds = 0;
}

/* Until so many SIGCHLD have come. */
static void await(int count)
{
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, &old);
	while (chlds < count)
		sigsuspend(&old);
	sigprocmask(SIG_SETMASK, &old, NULL);
	printf("SIGCHLD code %d status %d\n", last.si_code, last.si_status);
}

static void errors(void)
{
	siginfo_t info;
	memset(&info, 0x55, sizeof info);
	SAY(waitpid(-1, NULL, 0));
	SAY(waitpid(1, NULL, WNOHANG));
	SAY(waitpid(-12345, NULL, 0));
	SAY(wait4(-1, NULL, 0x40, NULL));
	SAY(wait4(-1, NULL, WEXITED, NULL));
	SAY(wait4(-1, NULL, WNOWAIT, NULL));
	SAY(wait4((int)0x80000000, NULL, 0, NULL));
	SAY(syscall(SYS_waitid, P_ALL, 0, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, P_ALL, 0, &info, WEXITED, NULL));
	printf("%d %d %d\n", info.si_signo, info.si_code, info.si_pid);
	SAY(syscall(SYS_waitid, P_ALL, 0, NULL, 0, NULL));
	SAY(syscall(SYS_waitid, P_ALL, 0, NULL, WNOHANG, NULL));
	SAY(syscall(SYS_waitid, P_ALL, 0, NULL, WEXITED | 0x40, NULL));
	SAY(syscall(SYS_waitid, 7, 0, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, P_PID, 0, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, P_PID, -5, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, P_PGID, -5, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, P_PGID, 0, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, 3, 1000, NULL, WEXITED, NULL));
	SAY(syscall(SYS_waitid, 3, 1, NULL, WEXITED, NULL));
}

static void exits(void)
{
	siginfo_t info = {0};
	int status;
	struct rusage usage;
	pid_t child = child_exits(200);
	show("peek", child, waitid(P_PID, child, &info, WEXITED | WNOWAIT), &info);
	show("peek again", child, waitid(P_ALL, 0, &info, WEXITED | WNOWAIT), &info);
	SAY(kill(child, 0));
	SAY(kill(child, SIGTERM));
	printf("group of a zombie %d\n", getpgid(child) == getpgrp());
	SAY(waitid(P_PID, child, &info, WSTOPPED | WNOHANG));
	show("take", child, waitid(P_PGID, getpgrp(), &info, WEXITED), &info);
	SAY(waitpid(child, NULL, 0));
	SAY(kill(child, 0));
	child = child_waits();
	memset(&info, 0x55, sizeof info);
	SAY(waitid(P_PID, child, &info, WEXITED | WNOHANG));
	printf("%d %d\n", info.si_signo, info.si_pid);
	SAY(waitpid(child, &status, WNOHANG));
	SAY(waitpid(0, &status, WNOHANG));
	SAY(waitpid(-child, &status, WNOHANG));
	kill(child, SIGKILL);
	show("killed", child, waitid(P_PID, child, &info, WEXITED), &info);
	child = child_exits(1);
	printf("wait4 %d", wait4(child, &status, 0, &usage) == child);
	printf(" %x %d\n", status, usage.ru_maxrss > 0);
	child = child_exits(2);
	errno = 0;
	printf("bad status pointer %d", waitpid(child, bad_page(), 0));
	printf(" %s\n", strerrorname_np(errno));
	SAY(waitpid(child, NULL, WNOHANG));
	getrusage(RUSAGE_CHILDREN, &usage);
	printf("children's memory %d\n", usage.ru_maxrss > 0);
}

static void stops(void)
{
	siginfo_t info = {0};
	int status = 0;
	pid_t child;
	catch(0);
	child = child_waits();
	kill(child, SIGSTOP);
	await(1);
	show("stopped, peek", child, waitid(P_PID, child, &info, WSTOPPED | WNOWAIT), &info);
	printf("stopped %d", waitpid(child, &status, WUNTRACED) == child);
	printf(" %x\n", status);
	SAY(waitpid(child, &status, WUNTRACED | WNOHANG));
	kill(child, SIGCONT);
	await(2);
	show("continued", child, waitid(P_PID, child, &info, WCONTINUED), &info);
	SAY(waitpid(child, &status, WCONTINUED | WNOHANG));
	kill(child, SIGSTOP);
	await(3);
	kill(child, SIGCONT);
	await(4);
	SAY(waitpid(child, &status, WUNTRACED | WNOHANG));
	printf("continued %d", waitpid(child, &status, WCONTINUED) == child);
	printf(" %x\n", status);
	catch(SA_NOCLDSTOP);
	kill(child, SIGSTOP);
	printf("no signal, %d", waitpid(child, &status, WUNTRACED) == child);
	printf(" %x %d\n", status, chlds);
	kill(child, SIGKILL);
	await(1);
	printf("killed %d", waitpid(child, &status, 0) == child);
	printf(" %x\n", status);
}

static void reaping(void)
{
	pid_t child;
	catch(SA_NOCLDWAIT);
	child = child_exits(4);
	SAY(waitpid(child, NULL, 0));
	await(1);
	signal(SIGCHLD, SIG_IGN);
	child = child_exits(4);
	SAY(wait(NULL));
	SAY(kill(child, 0));
	signal(SIGCHLD, SIG_DFL);
}

static int child_body(void *argument)
{
	return (int)(intptr_t)argument;
}

static char stack[65536];

static void clones(void)
{
	int status;
	struct sigaction action = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO};
	sigaction(SIGUSR1, &action, NULL);
	chlds = 0;
	pid_t child = clone(child_body, stack + sizeof stack, SIGUSR1, (void *)11);
	SAY(waitpid(child, NULL, 0));
	SAY(waitpid(child, NULL, __WNOTHREAD));
	printf("__WCLONE %d", waitpid(child, &status, __WCLONE) == child);
	printf(" %x, SIGUSR1 %d\n", status, chlds);
	printf("code %d status %d\n", last.si_code, last.si_status);
	child = clone(child_body, stack + sizeof stack, 0, (void *)12);
	printf("__WALL %d", waitpid(child, &status, __WALL) == child);
	printf(" %x\n", status);
	child = child_exits(13);
	SAY(waitpid(child, NULL, __WCLONE));
	printf("__WALL %d\n", waitpid(child, NULL, __WALL) == child);
}

static pid_t childs_pid;

static void *waits_for_it(void *argument)
{
	return (void *)(intptr_t)waitpid(childs_pid, argument, 0);
}

static void *makes_a_child(void *argument)
{
	(void)argument;
	childs_pid = child_waits();
	return NULL;
}

static void threads(void)
{
	int status = 0;
	childs_pid = child_waits();
	pthread_t waiter = start(waits_for_it, &status);
	usleep(5000);
	kill(childs_pid, SIGTERM);
	int right = join(waiter) == childs_pid;
	printf("another thread waits %d %x\n", right, status);
	join(start(makes_a_child, NULL));
	SAY(waitpid(childs_pid, NULL, WNOHANG));
	kill(childs_pid, SIGKILL);
	printf("a thread's child %d\n", waitpid(childs_pid, NULL, 0) == childs_pid);
}

static void interrupted(void)
{
	struct sigaction action = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO};
	pid_t parent = getpid();
	sigaction(SIGUSR1, &action, NULL);
	pid_t child = child_waits();
	pid_t other = fork();
	if (!other) {
		usleep(20000);
		kill(parent, SIGUSR1);
		_exit(0);
	}
	SAY(waitpid(child, NULL, 0));
	waitpid(other, NULL, 0);
	action.sa_flags |= SA_RESTART;
	sigaction(SIGUSR1, &action, NULL);
	other = fork();
	if (!other) {
		usleep(20000);
		kill(parent, SIGUSR1);
		usleep(20000);
		kill(child, SIGTERM);
		_exit(0);
	}
	printf("restarted %d\n", waitpid(child, NULL, 0) == child);
	waitpid(other, NULL, 0);
}

static void times_of_children(void)
{
	struct tms before, after;
	struct rusage usage;
	times(&before);
	pid_t child = fork();
	if (!child) {
		long long end = now_ns(CLOCK_PROCESS_CPUTIME_ID) + 60000000;
		while (now_ns(CLOCK_PROCESS_CPUTIME_ID) < end)
			;
		_exit(0);
	}
	waitpid(child, NULL, 0);
	times(&after);
	getrusage(RUSAGE_CHILDREN, &usage);
	printf("children's time %d %d\n", after.tms_cutime + after.tms_cstime - before.tms_cutime - before.tms_cstime >= 4,
	       usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec >= 50000);
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	errors();
	exits();
	stops();
	reaping();
	clones();
	threads();
	interrupted();
	times_of_children();
	return 0;
}
