// boot: host
/* /proc/self: what a process reads about itself, as far as it is the same on every kernel. */
#include "say.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

static char text[1 << 16];

static long slurp(const char *path)
{
	int fd = open(path, O_RDONLY);
	long size = 0, got;

	if (fd < 0)
		return -1;
	while (size < (long)sizeof text - 1 && (got = read(fd, text + size, 7000)) > 0)
		size += got;
	text[size] = 0;
	close(fd);
	return size;
}

/* The value of a `Name:` line of what was read. */
static const char *field(const char *name)
{
	static char value[200];
	char *line = text, *end;

	for (; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		if (strncmp(line, name, strlen(name)) || line[strlen(name)] != ':')
			continue;
		line += strlen(name) + 1;
		while (isspace((unsigned char)*line) && *line != '\n')
			line++;
		end = strchr(line, '\n');
		snprintf(value, sizeof value, "%.*s", (int)(end - line), line);
		return value;
	}
	return "(none)";
}

static void show(const char *name)
{
	printf("%s: %s\n", name, field(name));
}

static void status(void)
{
	char pid[20];
	sigset_t set;

	signal(SIGUSR1, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	slurp("/proc/self/status");
	snprintf(pid, sizeof pid, "%d", getpid());
	show("Name");
	show("State");
	printf("Pid is getpid: %d\n", !strcmp(field("Pid"), pid));
	printf("Tgid is getpid: %d\n", !strcmp(field("Tgid"), pid));
	snprintf(pid, sizeof pid, "%d", getppid());
	printf("PPid is getppid: %d\n", !strcmp(field("PPid"), pid));
	show("Threads");
	show("TracerPid");
	show("NoNewPrivs");
	printf("VmRSS in VmSize: %d\n", atol(field("VmRSS")) > 0 && atol(field("VmRSS")) <= atol(field("VmSize")));
	printf("VmRSS ends in kB: %d\n", !!strstr(field("VmRSS"), " kB"));
	/* The rest of these sets is whatever was inherited. */
	printf("SIGUSR1 ignored: %lu\n", strtoul(field("SigIgn"), NULL, 16) >> (SIGUSR1 - 1) & 1);
	printf("SIGUSR2 blocked: %lu\n", strtoul(field("SigBlk"), NULL, 16) >> (SIGUSR2 - 1) & 1);
}

static void *idle(void *argument)
{
	int *ends = argument;
	char byte;

	prctl(PR_SET_NAME, "second");
	if (write(ends[3], "x", 1) != 1)
		abort();
	return (void *)(intptr_t)read(ends[0], &byte, 1);
}

static void threads(void)
{
	int ends[4], count = 0;
	char byte, path[400];
	struct dirent *entry;
	DIR *tasks;
	pthread_t thread;

	if (pipe(ends) || pipe(ends + 2))
		abort();
	thread = start(idle, ends);
	if (read(ends[2], &byte, 1) != 1)
		abort();
	slurp("/proc/self/status");
	show("Threads");
	tasks = opendir("/proc/self/task");
	while ((entry = readdir(tasks))) {
		if (entry->d_name[0] == '.')
			continue;
		count++;
		if (atoi(entry->d_name) == getpid())
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
		slurp(path);
		printf("the other is %s", text);
		snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
		do {
			slurp(path);
		} while (strcmp(field("State"), "S (sleeping)"));
		printf("and is %s\n", field("State"));
	}
	closedir(tasks);
	printf("tasks %d\n", count);
	if (write(ends[1], "y", 1) != 1)
		abort();
	join(thread);
}

static void names(void)
{
	char link[400] = "", comm[] = "new (name\n";
	int fd = open("/proc/self/comm", O_RDWR);

	SAY(write(fd, comm, sizeof comm - 1));
	SAY(pread(fd, text, 100, 0));
	close(fd);
	slurp("/proc/self/stat");
	printf("stat names it: %d\n", !!strstr(text, " (new (name\n) R "));
	char *at = strrchr(text, ')');
	int fields = 0;
	for (at = strtok(at + 1, " "); at; at = strtok(NULL, " "))
		fields++;
	printf("stat has %d fields\n", fields + 2);
	prctl(PR_SET_NAME, "proc_self");
	SAY(readlink("/proc/self/exe", link, sizeof link) > 0);
	printf("exe ends in the program's name: %d\n", !strcmp(strrchr(link, '/'), "/proc_self"));
	long size = slurp("/proc/self/cmdline");
	printf("cmdline has a NUL at its end only: %d\n", size > 0 && strlen(text) == (size_t)size - 1);
	SAY(slurp("/proc/self/nothing"));
	SAY(open("/proc/self/status/x", O_RDONLY));
	SAY(mkdir("/proc/x", 0755));
	SAY(open("/proc/self/x", O_WRONLY | O_CREAT, 0600));
	SAY(symlink("x", "/proc/sys/x"));
	SAY(unlink("/proc/self/comm"));
	SAY(rename("/proc/self/comm", "/proc/self/x"));
	SAY(chmod("/proc/self/comm", 0777));
	SAY(readlink("/proc/self/fd/999", link, sizeof link));
	SAY(open("/proc/99999999", O_RDONLY));
	SAY(open("/proc/01", O_RDONLY));
}

static void maps(void)
{
	char *page = mmap(NULL, 3 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char line[60];
	int lines = 0, good = 0;
	unsigned long from, to, offset, inode;
	unsigned major, minor;
	char flags[5];

	mprotect(page + 4096, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
	slurp("/proc/self/maps");
	snprintf(line, sizeof line, "%lx-%lx rwxp 00000000 00:00 0 \n", (long)page + 4096, (long)page + 8192);
	printf("anonymous page: %d\n", !!strstr(text, line));
	snprintf(line, sizeof line, "%lx-%lx rw-s 00000000 00:01 ", (long)shared, (long)shared + 4096);
	printf("shared page: %d\n", !!strstr(text, line));
	printf("stack %d heap %d vdso %d\n", !!strstr(text, "[stack]\n"), !!strstr(text, "[heap]\n"),
	       !!strstr(text, "[vdso]\n"));
	for (char *at = text; *at; at = strchr(at, '\n') + 1, lines++)
		good += sscanf(at, "%lx-%lx %4s %lx %x:%x %lu", &from, &to, flags, &offset, &major, &minor, &inode) == 7 &&
			from < to;
	printf("all lines have the form: %d\n", lines > 5 && lines == good);
	slurp("/proc/self/smaps_rollup");
	printf("Rss in smaps_rollup: %d\n", atol(field("Rss")) > 0);
	munmap(page, 3 * 4096);
	munmap(shared, 4096);
}

static void limits_and_auxv(void)
{
	struct rlimit limit = {123, 456};
	unsigned long pair[2];
	const unsigned long known[] = {AT_PHDR, AT_PHNUM, AT_PAGESZ, AT_ENTRY, AT_UID, AT_EGID, AT_RANDOM, AT_EXECFN, AT_SECURE};
	int fd = open("/proc/self/auxv", O_RDONLY), same = 0, pairs = 0;

	setrlimit(RLIMIT_NOFILE, &limit);
	slurp("/proc/self/limits");
	char *at = strstr(text, "Max open files");
	printf("%.*s|\n", (int)strcspn(at, "\n"), at);
	at = strstr(text, "Max cpu time");
	printf("%.*s|\n", (int)strcspn(at, "\n"), at);
	at = strstr(text, "Max nice priority");
	printf("%.17s|\n", at);
	while (read(fd, pair, sizeof pair) == sizeof pair && pair[0]) {
		for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
			same += known[i] == pair[0] && getauxval(pair[0]) == pair[1];
		pairs++;
	}
	printf("of auxv as getauxval has it: %d\n", pairs > 10 ? same : -1);
	close(fd);
	slurp("/proc/self/uid_map");
}

static void descriptors(void)
{
	char path[] = "/tmp/proc_self.XXXXXX", link[200], name[60];
	int fd = mkstemp(path), again;
	struct stat status, link_status;
	ssize_t length;

	if (write(fd, "hello", 5) != 5)
		abort();
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	length = readlink(name, link, sizeof link);
	printf("fd is its path: %d\n", length == (ssize_t)strlen(path) && !strncmp(link, path, length));
	lstat(name, &link_status);
	printf("the link: %o size %ld\n", link_status.st_mode, (long)link_status.st_size);
	unlink(path);
	length = readlink(name, link, sizeof link);
	printf("... (deleted): %d\n", length > 10 && !strncmp(link + length - 10, " (deleted)", 10));
	again = open(name, O_RDONLY);
	SAY(read(again, text, 10));
	SAY(write(again, text, 1));
	fstat(again, &status);
	fstat(fd, &link_status);
	printf("the same file: %d\n", status.st_ino == link_status.st_ino);
	SAY(lseek(fd, 0, SEEK_CUR));
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
	slurp(name);
	show("pos");
	show("flags");
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK);
	slurp(name);
	show("flags");
	close(again);
	close(fd);
	SAY(open(name, O_RDONLY));
}

static void machine(void)
{
	char uuid[40], boot[40];

	SAY(slurp("/proc/uptime") > 0);
	SAY(slurp("/proc/sys/kernel/ostype"));
	printf("%s", text);
	SAY(slurp("/proc/sys/kernel/random/uuid"));
	strcpy(uuid, text);
	slurp("/proc/sys/kernel/random/uuid");
	printf("another one: %d\n", strcmp(uuid, text) != 0);
	slurp("/proc/sys/kernel/random/boot_id");
	strcpy(boot, text);
	slurp("/proc/sys/kernel/random/boot_id");
	printf("the same one: %d\n", strcmp(boot, text) == 0);
	SAY(open("/proc/sys/kernel/ostype", O_WRONLY));
	SAY(open("/proc/sys/nothing", O_RDONLY));
	slurp("/proc/meminfo");
	printf("MemFree in MemTotal: %d\n", atol(field("MemFree")) <= atol(field("MemTotal")));
	slurp("/proc/stat");
	printf("stat: %.4s\n", text);
	SAY(slurp("/proc/self/mounts") > 0);
	SAY(slurp("/proc/mounts") > 0);
	SAY(slurp("/proc/cpuinfo") > 0);
	printf("cpuinfo: %.11s\n", text);
}

int main(void)
{
	status();
	threads();
	names();
	maps();
	limits_and_auxv();
	descriptors();
	machine();
	return 0;
}
