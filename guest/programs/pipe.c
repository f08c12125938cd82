// build: -Wno-unused-result -Wno-stringop-overflow
// Pipes: order, capacity, atomic and packet writes, ends, errors, blocking between threads.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char big[1 << 20];
static int sigpipes;

static void say(const char *what, long result) {
    int error = errno;
    printf("%s: %ld %s\n", what, result, result < 0 ? strerror(error) : "");
}

static void on_sigpipe(int number) { (void)number; sigpipes++; }

static void *feed(void *argument) {
    int fd = *(int *)argument;
    for (int i = 0; i < 300; i++) {
        char line[1000];
        memset(line, 'a' + i % 26, sizeof line);
        if (write(fd, line, sizeof line) != sizeof line)
            perror("feed");
    }
    close(fd);
    return NULL;
}

static void *late_write(void *argument) {
    usleep(20000);
    if (write(*(int *)argument, "late", 4) != 4)
        perror("late");
    return NULL;
}

static void *late_close(void *argument) {
    usleep(20000);
    close(*(int *)argument);
    return NULL;
}

int main(void) {
    int fd[2];
    char buffer[200];
    say("pipe2 bad flags", pipe2(fd, O_APPEND));
    say("pipe2 bad pointer", pipe2((int *)8, 0));
    say("pipe2", pipe2(fd, O_NONBLOCK | O_CLOEXEC));
    say("numbers", fd[0] == 3 && fd[1] == 4);
    say("flags", fcntl(fd[0], F_GETFL) == (O_RDONLY | O_NONBLOCK));
    say("flags", fcntl(fd[1], F_GETFL) == (O_WRONLY | O_NONBLOCK));
    say("cloexec", fcntl(fd[0], F_GETFD));
    struct stat st;
    fstat(fd[0], &st);
    say("fifo", S_ISFIFO(st.st_mode));
    say("read empty", read(fd[0], buffer, 10));
    say("wrong end", read(fd[1], buffer, 10));
    say("wrong end", write(fd[0], buffer, 10));
    say("lseek", lseek(fd[0], 0, SEEK_CUR));
    say("pread", pread(fd[0], buffer, 1, 0));
    say("write", write(fd[1], "hello", 5));
    say("write", write(fd[1], " world", 6));
    int waiting = 0;
    say("FIONREAD", ioctl(fd[0], FIONREAD, &waiting));
    say("waiting", waiting);
    say("read bad pointer", read(fd[0], (void *)8, 5));
    say("read", read(fd[0], buffer, 7));
    printf("%.7s\n", buffer);
    say("read", read(fd[0], buffer, 100));
    printf("%.4s\n", buffer);
    say("zero", write(fd[1], buffer, 0));
    say("size", fcntl(fd[0], F_GETPIPE_SZ));
    say("fill", write(fd[1], big, sizeof big));
    say("full", write(fd[1], "x", 1));
    struct pollfd p[2] = {{fd[0], POLLIN, 0}, {fd[1], POLLOUT, 0}};
    say("poll", poll(p, 2, 0));
    printf("%x %x\n", p[0].revents, p[1].revents);
    say("drain", read(fd[0], big, 4096));
    say("poll", poll(p, 2, 0));
    printf("%x %x\n", p[0].revents, p[1].revents);
    say("atomic does not fit", write(fd[1], big, 4096) == 4096 ? 4096 : -1);
    say("drain", read(fd[0], big, sizeof big));
    say("empty again", read(fd[0], big, sizeof big));
    say("bigger", fcntl(fd[1], F_SETPIPE_SZ, 200000));
    say("fill", write(fd[1], big, sizeof big));
    say("smaller", fcntl(fd[1], F_SETPIPE_SZ, 4096));
    say("zero size", fcntl(fd[1], F_SETPIPE_SZ, 0));
    say("drain", read(fd[0], big, sizeof big));
    say("smaller", fcntl(fd[1], F_SETPIPE_SZ, 1));
    say("fill", write(fd[1], big, 5000));
    say("drain", read(fd[0], big, sizeof big));
    struct iovec out[] = {{"ab", 2}, {"", 0}, {"cde", 3}}, in[] = {{buffer, 1}, {buffer + 10, 100}};
    say("writev", writev(fd[1], out, 3));
    say("readv", readv(fd[0], in, 2));
    printf("%.1s %.4s\n", buffer, buffer + 10);
    signal(SIGPIPE, on_sigpipe);
    write(fd[1], "left", 4);
    close(fd[1]);
    say("poll hup", poll(p, 1, 0));
    printf("%x\n", p[0].revents);
    say("read rest", read(fd[0], buffer, 100));
    say("eof", read(fd[0], buffer, 100));
    say("poll hup", poll(p, 1, 0));
    printf("%x\n", p[0].revents);
    close(fd[0]);
    pipe(fd);
    close(fd[0]);
    p[0].fd = fd[1];
    p[0].events = POLLOUT;
    say("poll err", poll(p, 1, 0));
    printf("%x\n", p[0].revents);
    say("broken", write(fd[1], "x", 1));
    say("sigpipes", sigpipes);
    close(fd[1]);

    pipe2(fd, O_DIRECT | O_NONBLOCK);
    write(fd[1], "first packet", 12);
    write(fd[1], "second", 6);
    say("packet", read(fd[0], buffer, 5));
    say("packet", read(fd[0], buffer, 100));
    say("packet", read(fd[0], buffer, 100));
    say("big packets", write(fd[1], big, 10000));
    say("packet", read(fd[0], big, sizeof big));
    say("packet", read(fd[0], big, sizeof big));
    say("packet", read(fd[0], big, sizeof big));
    close(fd[0]);
    close(fd[1]);

    pthread_t thread;
    pipe(fd);
    pthread_create(&thread, NULL, feed, &fd[1]);
    long total = 0, sum = 0, n;
    while ((n = read(fd[0], big, sizeof big)) > 0) {
        for (long i = 0; i < n; i++)
            sum += big[i];
        total += n;
    }
    pthread_join(thread, NULL);
    printf("%ld bytes, sum %ld\n", total, sum);
    close(fd[0]);
    pipe(fd);
    pthread_create(&thread, NULL, late_write, &fd[1]);
    say("blocked read", read(fd[0], buffer, 100));
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, late_close, &fd[1]);
    say("blocked read, closed", read(fd[0], buffer, 100));
    pthread_join(thread, NULL);
    close(fd[0]);
    pipe(fd);
    pthread_create(&thread, NULL, late_close, &fd[0]);
    say("blocked write, closed", write(fd[1], big, sizeof big) == 65536 ? 65536 : -1);
    pthread_join(thread, NULL);
    say("sigpipes", sigpipes);
    return 0;
}
