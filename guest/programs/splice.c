// build: -Wno-unused-result
// sendfile, copy_file_range, splice, tee and vmsplice between memfds and pipes: what moves, offsets, errors, waiting.
#include "say.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#define PAGE 4096

static char data[200000], back[200000];

static int file(const char *contents, size_t length)
{
	int fd = (int)syscall(SYS_memfd_create, "file", 0);

	if (length)
		pwrite(fd, contents, length, 0);
	return fd;
}

static int waiting(int fd)
{
	int count = -1;

	ioctl(fd, FIONREAD, &count);
	return count;
}

static void files(void)
{
	int a = file(data, sizeof data), b = file("", 0), p[2];
	off_t at = 1000, to = 10;

	SAY(sendfile(b, a, NULL, 100));
	SAY(lseek(a, 0, SEEK_CUR) == 100 && lseek(b, 0, SEEK_CUR) == 100);
	SAY(sendfile(b, a, &at, 1 << 20));
	SAY(at == sizeof data && lseek(a, 0, SEEK_CUR) == 100);
	SAY(lseek(b, 0, SEEK_CUR));
	SAY(pread(b, back, sizeof back, 100));
	SAY(memcmp(back, data + 1000, sizeof data - 1000));
	SAY(sendfile(b, a, &at, 10));
	at = -1;
	SAY(sendfile(b, a, &at, 10));
	SAY(sendfile(b, a, bad_page(), 10));
	SAY(sendfile(b, 99, NULL, 10));
	SAY(sendfile(99, a, NULL, 10));
	fcntl(b, F_SETFL, O_APPEND);
	SAY(sendfile(b, a, NULL, 10));
	fcntl(b, F_SETFL, 0);
	pipe(p);
	SAY(sendfile(p[1], a, NULL, sizeof data));
	SAY(waiting(p[0]));
	SAY(sendfile(b, p[0], NULL, 10));
	at = 0;
	SAY(sendfile(b, p[0], &at, 10));
	SAY(sendfile(p[0], a, NULL, 10));
	SAY(sendfile(a, p[1], NULL, 10));
	close(p[0]);
	close(p[1]);

	ftruncate(b, 0);
	lseek(a, 0, SEEK_SET);
	at = 5;
	SAY(copy_file_range(a, &at, b, &to, 100000, 0));
	SAY(at == 100005 && to == 100010);
	SAY(copy_file_range(a, NULL, b, NULL, 7, 0));
	SAY(lseek(a, 0, SEEK_CUR));
	SAY(copy_file_range(a, NULL, b, NULL, 7, 1));
	SAY(copy_file_range(a, NULL, a, NULL, 7, 0));
	at = 0, to = 3;
	SAY(copy_file_range(a, &at, a, &to, 10, 0));
	to = 100;
	SAY(copy_file_range(a, &at, a, &to, 10, 0));
	at = sizeof data;
	SAY(copy_file_range(a, &at, b, &to, 10, 0));
	at = -1;
	SAY(copy_file_range(a, &at, b, &to, 10, 0));
	pipe(p);
	SAY(copy_file_range(p[0], NULL, b, NULL, 10, 0));
	fcntl(b, F_SETFL, O_APPEND);
	SAY(copy_file_range(a, NULL, b, NULL, 10, 0));
	close(p[0]);
	close(p[1]);
	close(a);
	close(b);
}

static void *late(void *argument)
{
	usleep(20000);
	write((int)(intptr_t)argument, "late", 4);
	return NULL;
}

static void *drain(void *argument)
{
	usleep(20000);
	return (void *)(intptr_t)syscall(SYS_read, (int)(intptr_t)argument, back, 1 << 20);
}

static void pipes(void)
{
	int a = file(data, sizeof data), b = file("", 0), p[2], q[2];
	off_t at = 0, to = 5;

	pipe(p);
	pipe(q);
	SAY(splice(a, &at, p[1], NULL, 10, 0));
	SAY(at);
	SAY(splice(a, NULL, p[1], NULL, 5, 0));
	SAY(lseek(a, 0, SEEK_CUR));
	SAY(waiting(p[0]));
	SAY(tee(p[0], q[1], 12, 0));
	SAY(waiting(p[0]) == 15 && waiting(q[0]) == 12);
	SAY(splice(p[0], NULL, b, &to, 100, 0));
	SAY(to);
	SAY(pread(b, back, 20, 5) == 15 && !memcmp(back, data, 10) && !memcmp(back + 10, data, 5));
	SAY(splice(q[0], NULL, p[1], NULL, 4, 0));
	SAY(splice(q[0], NULL, p[1], NULL, 100, SPLICE_F_MOVE));
	SAY(read(p[0], back, 100));
	SAY(memcmp(back, data, 10));
	SAY(splice(p[0], NULL, b, NULL, 5, SPLICE_F_NONBLOCK));
	SAY(tee(p[0], q[1], 5, SPLICE_F_NONBLOCK));
	SAY(splice(p[0], NULL, q[1], NULL, 5, SPLICE_F_NONBLOCK));
	SAY(splice(p[0], NULL, p[1], NULL, 5, 0));
	SAY(tee(p[0], p[1], 5, 0));
	SAY(tee(a, p[1], 5, 0));
	SAY(splice(a, NULL, b, NULL, 5, 0));
	SAY(splice(a, NULL, p[0], NULL, 5, 0));
	SAY(splice(p[1], NULL, b, NULL, 5, 0));
	SAY(splice(a, NULL, p[1], &to, 5, 0));
	SAY(splice(p[0], &to, b, NULL, 5, 0));
	SAY(splice(a, NULL, p[1], NULL, 5, 16));
	SAY(splice(99, NULL, p[1], NULL, 5, 0));
	SAY(splice(99, NULL, 98, NULL, 0, 0));
	at = sizeof data;
	SAY(splice(a, &at, p[1], NULL, 5, 0));
	at = -1;
	SAY(splice(a, &at, p[1], NULL, 5, 0));
	// buffers are full before bytes are
	at = 0;
	for (int i = 0; i < 16; i++)
		splice(a, &at, p[1], NULL, 1, 0);
	SAY(waiting(p[0]));
	SAY(splice(a, &at, p[1], NULL, 1, SPLICE_F_NONBLOCK));
	struct pollfd poller = {.fd = p[1], .events = POLLOUT};
	SAY(poll(&poller, 1, 0));
	SAY(read(p[0], back, 100));
	// a large file through a pipe
	SAY(splice(a, NULL, p[1], NULL, sizeof data, 0));
	SAY(splice(a, NULL, p[1], NULL, 1, SPLICE_F_NONBLOCK));
	ftruncate(b, 0);
	lseek(b, 0, SEEK_SET);
	SAY(splice(p[0], NULL, b, NULL, 1 << 20, 0));
	SAY(lseek(b, 0, SEEK_CUR));
	SAY(pread(b, back, sizeof back, 0));
	SAY(memcmp(back, data + 5, 65536));
	// waiting
	pthread_t thread = start(late, (void *)(intptr_t)p[1]);
	SAY(splice(p[0], NULL, b, NULL, 100, 0));
	join(thread);
	fcntl(p[1], F_SETFL, O_NONBLOCK);
	while (write(p[1], data, PAGE) > 0)
		;
	fcntl(p[1], F_SETFL, 0);
	thread = start(drain, (void *)(intptr_t)p[0]);
	SAY(splice(a, NULL, p[1], NULL, 1000, 0));
	SAY(join(thread) > 0);
	close(p[1]);
	while (read(p[0], back, sizeof back) > 0)
		;
	SAY(splice(p[0], NULL, b, NULL, 100, 0));
	SAY(tee(p[0], q[1], 100, 0));
	close(q[0]);
	SAY(splice(a, NULL, q[1], NULL, 100, 0));
}

static void memory(void)
{
	int p[2], a = file("", 0);
	char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec out[2] = {{pages + 10, 20}, {pages + PAGE - 5, 10}}, in[2] = {{back, 3}, {back + 10, 100}};

	memcpy(pages, data, 2 * PAGE);
	pipe(p);
	SAY(vmsplice(p[1], out, 2, 0));
	SAY(waiting(p[0]));
	SAY(vmsplice(p[0], in, 2, 0));
	SAY(memcmp(back, data + 10, 3) || memcmp(back + 10, data + 13, 17) || memcmp(back + 27, data + PAGE - 5, 10));
	SAY(vmsplice(p[0], in, 2, SPLICE_F_NONBLOCK));
	SAY(vmsplice(a, in, 2, 0));
	SAY(vmsplice(p[1], out, 2, 16));
	SAY(vmsplice(p[1], out, 2000, 0));
	SAY(vmsplice(p[1], out, 0, 0));
	struct iovec bad = {bad_page(), 10};
	SAY(vmsplice(p[1], &bad, 1, 0));
	struct iovec big = {data, sizeof data};
	fcntl(p[1], F_SETFL, O_NONBLOCK);
	SAY(vmsplice(p[1], &big, 1, SPLICE_F_NONBLOCK) > 60000);
	SAY(vmsplice(p[1], &big, 1, SPLICE_F_NONBLOCK));
	close(p[0]);
	SAY(vmsplice(p[1], out, 2, 0));
}

int main(void)
{
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (char)(i * 7 + i / 251);
	signal(SIGPIPE, SIG_IGN);
	files();
	pipes();
	memory();
	return 0;
}
