// build: -Wno-unused-result -Wno-nonnull
// execve and execveat: arguments, what is kept and what is not, threads, errors, the auxiliary vector.
#include "say.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

extern char **environ;
static const char *self;
static char *none[] = {NULL};

static int status_of(pid_t child)
{
	int status = -1;
	waitpid(child, &status, 0);
	return status;
}

#define CHILD(what, ...)                                          \
	do {                                                       \
		printf("%s\n", what);                              \
		fflush(stdout);                                    \
		pid_t child_ = fork();                             \
		if (!child_) {                                     \
			__VA_ARGS__;                                      \
			fflush(stdout);                            \
			_exit(77);                                 \
		}                                                  \
		printf("%s: %x\n", what, status_of(child_));       \
		fflush(stdout);                                    \
	} while (0)

static void handler(int number)
{
	(void)number;
}

/* What the new program sees. */
static int shows(int argc, char **argv)
{
	if (!strcmp(argv[1], "arguments")) {
		long total = 0;
		for (int i = 0; i < argc; i++)
			total += strlen(argv[i]);
		printf("argc %d, %ld bytes, last %.20s\n", argc, total, argv[argc - 1]);
		for (char **e = environ; *e; e++)
			printf("env %.40s\n", *e);
	} else if (!strcmp(argv[1], "state")) {
		sigset_t set, pending;
		struct sigaction action;
		stack_t stack;
		char name[17] = "";
		sigprocmask(SIG_BLOCK, NULL, &set);
		sigpending(&pending);
		printf("blocked %d pending %d\n", sigismember(&set, SIGUSR2), sigismember(&pending, SIGUSR2));
		sigaction(SIGUSR1, NULL, &action);
		printf("handled %d flags %x\n", action.sa_handler != SIG_DFL, action.sa_flags);
		sigaction(SIGHUP, NULL, &action);
		printf("ignored %d\n", action.sa_handler == SIG_IGN);
		sigaltstack(NULL, &stack);
		printf("altstack %d\n", stack.ss_flags);
		printf("alarm %d\n", alarm(0) > 0);
		prctl(PR_GET_NAME, name);
		printf("name %s\n", name);
		printf("descriptors %d %d\n", fcntl(atoi(argv[2]), F_GETFD), fcntl(atoi(argv[3]), F_GETFD));
		printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
		printf("parent is the same %d\n", getppid() == atoi(argv[4]));
		struct rlimit limit;
		getrlimit(RLIMIT_CORE, &limit);
		printf("limit %ld\n", (long)limit.rlim_cur);
		printf("secure %ld, page %ld, uid %ld\n", getauxval(AT_SECURE), getauxval(AT_PAGESZ), getauxval(AT_UID));
		void *head;
		size_t size;
		syscall(SYS_get_robust_list, 0, &head, &size);
		printf("threads %d\n", gettid() == getpid());
	} else if (!strcmp(argv[1], "leader")) {
		printf("leader %d %d\n", gettid() == getpid(), getpid() == atoi(argv[2]));
	} else if (!strcmp(argv[1], "fp")) {
		unsigned control = 0, mxcsr = 0;
		__asm__ volatile("fnstcw %0" : "=m"(control));
		__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
		printf("fp %x %x\n", control & 0xffff, mxcsr);
	} else if (!strcmp(argv[1], "execfn")) {
		const char *name = (const char *)getauxval(AT_EXECFN);
		printf("execfn %.9s\n", name);
	}
	return 9;
}

static void *execs(void *argument)
{
	(void)argument;
	char pid[16];
	snprintf(pid, sizeof pid, "%d", getpid());
	execl(self, self, "leader", pid, NULL);
	return NULL;
}

static void *sleeps(void *argument)
{
	(void)argument;
	for (;;)
		pause();
	return NULL;
}

static void *spins(void *argument)
{
	(void)argument;
	for (;;)
		__asm__ volatile("pause");
	return NULL;
}

static void errors(void)
{
	char name[5000], *two[] = {(char *)self, "arguments", NULL};
	memset(name, 'x', sizeof name - 1);
	name[sizeof name - 1] = 0;
	int fd = open(self, O_PATH), directory = open("/", O_RDONLY);
	SAY(execve("/nonexistent", none, none));
	SAY(execve("", none, none));
	SAY(execve("/", none, none));
	SAY(execve(name, none, none));
	SAY(execve(name + sizeof name - 400, none, none));
	SAY(execve(bad_page(), none, none));
	SAY(execve(self, bad_page(), none));
	SAY(execve(self, two, bad_page()));
	two[1] = bad_page();
	SAY(execve(self, two, none));
	SAY(execve("/proc/self/exe/x", none, none));
	SAY(syscall(SYS_execveat, -1, "x", none, none, 0));
	SAY(syscall(SYS_execveat, fd, "", none, none, 0));
	SAY(syscall(SYS_execveat, fd, "", none, none, 0x40));
	SAY(syscall(SYS_execveat, directory, "", none, none, AT_EMPTY_PATH));
	SAY(syscall(SYS_execveat, 1000, "", none, none, AT_EMPTY_PATH));
	SAY(syscall(SYS_execveat, AT_FDCWD, "/proc/self/exe", none, none, AT_SYMLINK_NOFOLLOW));
	close(fd);
	close(directory);
}

static void sizes(void)
{
	char *big = malloc(131073), **many = calloc(200000, sizeof *many);
	memset(big, 'a', 131072);
	big[131071] = 0;
	CHILD("longest argument", execl(self, self, "arguments", big, NULL));
	big[131071] = 'a';
	big[131072] = 0;
	SAY(execl(self, self, "arguments", big, NULL));
	big[100000] = 0;
	for (int i = 0; i < 80; i++)
		many[i] = big;
	many[0] = (char *)self;
	many[1] = "arguments";
	SAY(execv(self, many));
	many[20] = NULL;
	CHILD("two megabytes", execv(self, many));
	for (int i = 2; i < 150000; i++)
		many[i] = "";
	many[150000] = NULL;
	CHILD("many", execv(self, many));
	struct rlimit limit = {400 << 10, RLIM_INFINITY};
	CHILD("small stack", {
		setrlimit(RLIMIT_STACK, &limit);
		many[10000] = NULL;
		execv(self, many);
		many[2] = big;
		many[3] = big;
		many[4] = NULL;
		SAY(execv(self, many));
	});
	free(many);
	free(big);
}

static void kept(void)
{
	char open_[16], closed[16], parent[16];
	int fd[2];
	pipe(fd);
	fcntl(fd[1], F_SETFD, FD_CLOEXEC);
	snprintf(open_, sizeof open_, "%d", fd[0]);
	snprintf(closed, sizeof closed, "%d", fd[1]);
	snprintf(parent, sizeof parent, "%d", getpid());
	CHILD("state", {
		sigset_t set;
		stack_t stack = {.ss_sp = good_page(), .ss_size = 4096};
		struct rlimit limit = {3, 3};
		struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		raise(SIGUSR2);
		sigaction(SIGUSR1, &action, NULL);
		signal(SIGHUP, SIG_IGN);
		sigaltstack(&stack, NULL);
		alarm(100);
		setrlimit(RLIMIT_CORE, &limit);
		prctl(PR_SET_DUMPABLE, 0);
		prctl(PR_SET_NAME, "old");
		execl(self, self, "state", open_, closed, parent, NULL);
	});
	CHILD("floating point", {
		unsigned mxcsr = 0x9fc0, control = 0x27f;
		__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
		__asm__ volatile("fldcw %0" : : "m"(control));
		execl(self, self, "fp", NULL);
	});
	char last;
	close(fd[1]);
	printf("end of file %ld\n", (long)read(fd[0], &last, 1));
}

int main(int argc, char **argv)
{
	self = "/proc/self/exe";
	if (argc > 1)
		return shows(argc, argv);
	setvbuf(stdout, NULL, _IONBF, 0);
	clearenv();
	errors();
	CHILD("arguments", execle(self, self, "arguments", "b c", "", "d", NULL, (char *[]){"A=1", "B=", NULL}));
	CHILD("by /proc", execl("/proc/self/exe", "other", "arguments", NULL));
	CHILD("by descriptor", {
		int fd = open(self, O_RDONLY | O_CLOEXEC);
		char *words[] = {"x", "execfn", NULL};
		syscall(SYS_execveat, fd, "", words, none, AT_EMPTY_PATH);
	});
	CHILD("fexecve", {
		char *words[] = {"x", "arguments", NULL};
		fexecve(open(self, O_RDONLY), words, none);
	});
	kept();
	CHILD("from a thread", {
		start(sleeps, NULL);
		start(spins, NULL);
		start(execs, NULL);
		pause();
	});
	CHILD("from the leader", {
		start(sleeps, NULL);
		start(spins, NULL);
		usleep(1000);
		execs(NULL);
	});
	CHILD("many threads exec", {
		for (int i = 0; i < 4; i++)
			start(execs, NULL);
		pause();
	});
	sizes();
	return 0;
}
