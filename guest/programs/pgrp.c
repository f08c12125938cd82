// build: -Wno-unused-result
// Process groups and sessions: setpgid, setsid, signals to groups, orphaned groups.
#include "say.h"
#include <signal.h>
#include <sys/wait.h>

static int sync_pipe[2];

static void told(void)
{
	char byte;
	if (read(sync_pipe[0], &byte, 1) != 1)
		abort();
}

static void tell(void)
{
	if (write(sync_pipe[1], "x", 1) != 1)
		abort();
}

static pid_t child_waits(void)
{
	pid_t child = fork();
	if (!child) {
		tell();
		for (;;)
			pause();
	}
	told();
	return child;
}

static int end_of(pid_t child)
{
	int status = -1;
	waitpid(child, &status, 0);
	return status;
}

static void rules(void)
{
	pid_t child = child_waits(), other = child_waits();
	SAY(setpgid(child, -1));
	SAY(setpgid(getppid(), 0));
	SAY(setpgid(child, 12345678));
	SAY(setpgid(child, 0));
	printf("leads %d\n", getpgid(child) == child);
	SAY(setpgid(other, child));
	printf("joined %d\n", getpgid(other) == child);
	SAY(setpgid(other, getpgrp()));
	SAY(setpgid(other, child));
	SAY(getpgid(12345678));
	SAY(getsid(12345678));
	SAY(getpgid(-1));
	SAY(kill(-child, 0));
	SAY(kill(-child, SIGTERM));
	printf("%x %x\n", end_of(child), end_of(other));
	SAY(kill(-child, 0));
	SAY(kill(-12345678, SIGTERM));
	SAY(setpgid(child, 0));
}

static void after_exec(const char *self)
{
	pid_t child = fork();
	if (!child) {
		char fd[16];
		snprintf(fd, sizeof fd, "%d", sync_pipe[1]);
		execl(self, self, "wait", fd, NULL);
		_exit(1);
	}
	told();
	SAY(setpgid(child, child));
	kill(child, SIGKILL);
	printf("%x\n", end_of(child));
}

static void sessions(void)
{
	pid_t child = fork();
	if (!child) {
		pid_t first = setsid();
		printf("session %d %d %d\n", first == getpid(), getsid(0) == first, getpgrp() == first);
		SAY(setsid());
		SAY(setpgid(0, 0));
		pid_t grandchild = child_waits();
		printf("inherited %d\n", getsid(grandchild) == first);
		SAY(setpgid(grandchild, getppid()));
		SAY(setpgid(grandchild, grandchild));
		SAY(setpgid(0, grandchild));
		kill(grandchild, SIGKILL);
		printf("%x\n", end_of(grandchild));
		_exit(0);
	}
	printf("%x\n", end_of(child));
	child = fork();
	if (!child) {
		setsid();
		tell();
		for (;;)
			pause();
	}
	told();
	SAY(setpgid(child, child));
	kill(child, SIGKILL);
	end_of(child);
	child = fork();
	if (!child) {
		setpgid(0, 0);
		SAY(setsid());
		_exit(0);
	}
	end_of(child);
}

static void own_group(void)
{
	pid_t leader = fork();
	if (!leader) {
		setpgid(0, 0);
		signal(SIGUSR1, SIG_DFL);
		pid_t members[3];
		for (int i = 0; i < 3; i++)
			members[i] = child_waits();
		signal(SIGUSR1, SIG_IGN);
		SAY(kill(0, SIGUSR1));
		for (int i = 0; i < 3; i++)
			printf("%x\n", end_of(members[i]));
		fflush(stdout);
		_exit(0);
	}
	printf("%x\n", end_of(leader));
}

static volatile int hups, conts;

static void on_hup(int number)
{
	(void)number;
	hups++;
}

static void on_cont(int number)
{
	(void)number;
	conts++;
}

static void orphans(void)
{
	fflush(stdout);
	pid_t middle = fork();
	if (!middle) {
		setpgid(0, 0);
		pid_t stopped = fork();
		if (!stopped) {
			setpgid(0, 0);
			signal(SIGHUP, on_hup);
			signal(SIGCONT, on_cont);
			raise(SIGSTOP);
			while (!hups || !conts)
				usleep(1000);
			tell();
			_exit(0);
		}
		waitpid(stopped, NULL, WUNTRACED);
		_exit(0);
	}
	printf("%x\n", end_of(middle));
	told();
	printf("hung up and continued\n");
	fflush(stdout);
	/* In an orphaned group only SIGSTOP stops. */
	pid_t child = fork();
	if (!child) {
		setsid();
		raise(SIGTSTP);
		raise(SIGTTIN);
		raise(SIGTTOU);
		_exit(5);
	}
	printf("not stopped %x\n", end_of(child));
}

int main(int argc, char **argv)
{
	if (argc == 3) {
		sync_pipe[1] = atoi(argv[2]);
		tell();
		for (;;)
			pause();
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	pipe(sync_pipe);
	setsid();
	rules();
	after_exec("/proc/self/exe");
	sessions();
	own_group();
	orphans();
	return 0;
}
