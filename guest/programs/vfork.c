// build: -Wno-unused-result
// vfork and posix_spawn: the parent waits, memory is shared, signals wait.
#include "say.h"
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

static volatile int shared = 1, signals;

static void on_signal(int number)
{
	(void)number;
	signals++;
}

static int child_of(const char *self, const char *code)
{
	pid_t child = vfork();
	if (!child) {
		execl(self, self, "exit", code, NULL);
		_exit(99);
	}
	int status = -1;
	waitpid(child, &status, 0);
	return status;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	int status = 0, fd[2];
	char buffer[64] = "";
	const char *self = "/proc/self/exe";

	if (argc == 3 && !strcmp(argv[1], "exit"))
		return atoi(argv[2]);
	if (argc == 3) {
		printf("%s\n", argv[2]);
		return 0;
	}
	pid_t child = vfork();
	if (!child) {
		shared = 2;
		_exit(4);
	}
	printf("shared %d\n", shared);
	printf("ended %d", waitpid(child, &status, 0) == child);
	printf(" %x\n", status);
	printf("exec %x\n", child_of(self, "17"));
	printf("exec fails %x\n", child_of("/nonexistent", "17"));

	/* A signal that comes while the parent waits is delivered afterwards. */
	signal(SIGUSR1, on_signal);
	child = vfork();
	if (!child) {
		kill(getppid(), SIGUSR1);
		shared = signals;
		_exit(0);
	}
	waitpid(child, NULL, 0);
	printf("signals then %d now %d\n", shared, signals);

	/* A child that dies lets the parent go, too. */
	child = vfork();
	if (!child) {
		kill(getpid(), SIGKILL);
		_exit(0);
	}
	waitpid(child, &status, 0);
	printf("killed %x\n", status);

	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	char *words[] = {(char *)self, "say", "spawned", NULL}, *environment[] = {NULL};
	sigset_t set;
	pipe(fd);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fd[1], 1);
	posix_spawn_file_actions_addclose(&actions, fd[0]);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	sigemptyset(&set);
	posix_spawnattr_setsigmask(&attributes, &set);
	posix_spawnattr_setsigdefault(&attributes, &set);
	printf("spawn %d\n", posix_spawn(&child, self, &actions, &attributes, words, environment));
	close(fd[1]);
	printf("own group %d\n", getpgid(child) == child);
	for (ssize_t got; (got = read(fd[0], buffer, sizeof buffer - 1)) > 0;)
		printf("%.*s", (int)got, buffer);
	waitpid(child, &status, 0);
	printf("%x\n", status);
	printf("spawn fails %s\n", strerrorname_np(posix_spawn(&child, "/nonexistent", NULL, NULL, words, environment)));
	fflush(stdout);
	return 0;
}
