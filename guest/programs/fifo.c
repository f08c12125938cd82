// boot: host
// build: -Wno-unused-result
// FIFOs in a tmpfs: opens that wait for the other side, O_NONBLOCK, O_RDWR, hang-ups, what the last close loses.
#include "say.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>

static char path[64];

static int ready(int fd, short events)
{
	struct pollfd poller = {.fd = fd, .events = events};

	poll(&poller, 1, 0);
	return poller.revents;
}

static void *writer(void *argument)
{
	usleep(20000);
	int fd = open(path, O_WRONLY);

	write(fd, argument, 5);
	usleep(20000);
	close(fd);
	return NULL;
}

static void *reader(void *argument)
{
	char text[10];

	(void)argument;
	usleep(20000);
	int fd = open(path, O_RDONLY);
	long count = read(fd, text, sizeof text);

	close(fd);
	return (void *)(intptr_t)count;
}

static void *wait_for_writer(void *argument)
{
	(void)argument;
	return (void *)(intptr_t)open(path, O_RDONLY);
}

static void on_signal(int number) { (void)number; }

int main(void)
{
	char directory[] = "/dev/shm/fifo-XXXXXX", text[16];
	struct stat st;

	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(directory))
		return 1;
	snprintf(path, sizeof path, "%s/fifo", directory);
	SAY(mkfifo(path, 0644));
	SAY(mkfifo(path, 0644));
	stat(path, &st);
	SAY(st.st_mode);
	SAY(open(path, O_WRONLY | O_NONBLOCK));
	int r = open(path, O_RDONLY | O_NONBLOCK);
	SAY(r >= 0);
	SAY(read(r, text, 10));
	SAY(ready(r, POLLIN));
	int w = open(path, O_WRONLY | O_NONBLOCK);
	SAY(w >= 0);
	SAY(read(r, text, 10));
	SAY(write(w, "hello", 5));
	SAY(ready(r, POLLIN));
	fstat(r, &st);
	SAY(S_ISFIFO(st.st_mode) && st.st_size == 0);
	close(w);
	SAY(ready(r, POLLIN));
	SAY(read(r, text, 10));
	SAY(read(r, text, 10));
	SAY(ready(r, POLLIN));
	w = open(path, O_WRONLY);
	SAY(ready(r, POLLIN));
	write(w, "lost", 4);
	close(r);
	SAY(write(w, "x", 1));
	SAY(ready(w, POLLOUT));
	close(w);
	int both = open(path, O_RDWR | O_NONBLOCK);
	SAY(read(both, text, 10));
	SAY(write(both, "both", 4));
	SAY(read(both, text, 10));
	SAY(lseek(both, 0, SEEK_CUR));
	SAY(fcntl(both, F_GETPIPE_SZ));
	close(both);
	// opens that wait
	pthread_t thread = start(writer, "12345");
	r = open(path, O_RDONLY);
	SAY(read(r, text, 10));
	SAY(read(r, text, 10));
	join(thread);
	close(r);
	thread = start(reader, NULL);
	w = open(path, O_WRONLY);
	SAY(write(w, "abc", 3));
	SAY(join(thread));
	close(w);
	// the other side may be gone again when the open returns
	thread = start(wait_for_writer, NULL);
	do
		w = open(path, O_WRONLY | O_NONBLOCK);
	while (w < 0);
	close(w);
	r = (int)join(thread);
	SAY(r >= 0);
	SAY(read(r, text, 10));
	close(r);
	// a signal ends the wait
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGALRM, &action, NULL);
	ualarm(20000, 0);
	SAY(open(path, O_RDONLY));
	SAY(open(path, O_WRONLY | O_NONBLOCK));
	SAY(unlink(path));
	SAY(rmdir(directory));
	return 0;
}
