// build: -Wno-nonnull -Wno-unused-result -Wno-stringop-overflow
// epoll, poll, select and eventfd: levels, edges, one shots, nests, errors; with pipes and event counters.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, long result) {
    int error = errno;
    printf("%s: %ld %s\n", what, result, result < 0 ? strerror(error) : "");
}

static void wait_all(const char *what, int ep, int timeout) {
    struct epoll_event events[10];
    int n = epoll_wait(ep, events, 10, timeout);
    printf("%s: %d%s", what, n, n < 0 ? strerror(errno) : "");
    for (int i = 0; i < n; i++)
        printf(" [%x %llu]", events[i].events, (unsigned long long)events[i].data.u64);
    puts("");
}

static int control(int ep, int op, int fd, unsigned flags, unsigned long data) {
    struct epoll_event event = {.events = flags, .data.u64 = data};
    return epoll_ctl(ep, op, fd, &event);
}

static void *ring(void *argument) {
    usleep(20000);
    uint64_t one = 1;
    if (write(*(int *)argument, &one, 8) != 8)
        perror("ring");
    return NULL;
}

static void *waiter(void *argument) {
    struct epoll_event event;
    return (void *)(intptr_t)epoll_wait(*(int *)argument, &event, 1, 5000);
}

static void on_signal(int number) { (void)number; }

static void *shoot(void *argument) {
    usleep(20000);
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    return NULL;
}

static void eventfds(void) {
    uint64_t value;
    say("eventfd bad flags", eventfd(0, 0x40));
    int fd = eventfd(3, EFD_NONBLOCK);
    say("read", read(fd, &value, 8));
    printf("%lu\n", value);
    say("read zero", read(fd, &value, 8));
    say("short read", read(fd, &value, 7));
    value = 5;
    say("write", write(fd, &value, 8));
    say("write", write(fd, &value, 8));
    say("short write", write(fd, &value, 4));
    say("read", read(fd, &value, 8));
    printf("%lu\n", value);
    value = UINT64_MAX;
    say("write max", write(fd, &value, 8));
    value = UINT64_MAX - 1;
    say("write max-1", write(fd, &value, 8));
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    say("poll", poll(&p, 1, 0));
    printf("%x\n", p.revents);
    value = 1;
    say("write over", write(fd, &value, 8));
    close(fd);
    fd = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    for (int i = 0; i < 3; i++)
        say("semaphore", read(fd, &value, 8));
    close(fd);
    fd = eventfd(0, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, ring, &fd);
    say("blocked read", read(fd, &value, 8));
    pthread_join(thread, NULL);
    close(fd);
}

static void polls(void) {
    int fd[2], e = eventfd(0, 0);
    pipe(fd);
    struct pollfd p[5] = {{fd[0], POLLIN, 7}, {fd[1], POLLOUT | POLLIN, 7}, {-1, POLLIN, 7}, {99, POLLIN, 7}, {e, POLLIN, 7}};
    say("poll", poll(p, 5, 100));
    printf("%x %x %x %x %x\n", p[0].revents, p[1].revents, p[2].revents, p[3].revents, p[4].revents);
    say("poll time-out", poll(p, 1, 10));
    say("poll nothing", poll(NULL, 0, 10));
    say("poll too many", poll(p, 100000, 0));
    say("poll bad pointer", poll((void *)8, 1, 0));
    pthread_t thread;
    pthread_create(&thread, NULL, ring, &e);
    say("poll blocked", poll(p + 4, 1, 5000));
    pthread_join(thread, NULL);
    struct timespec none = {0, 0}, bad = {0, 1000000000};
    say("ppoll", ppoll(p, 2, &none, NULL));
    say("ppoll bad time", ppoll(p, 2, &bad, NULL));
    say("ppoll bad mask", syscall(SYS_ppoll, p, 2, &none, p, 4));
    fd_set in, out, except;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&except);
    FD_SET(fd[0], &in);
    FD_SET(e, &in);
    FD_SET(fd[1], &out);
    FD_SET(e, &except);
    say("select", select(20, &in, &out, &except, NULL));
    printf("%d %d %d %d\n", FD_ISSET(fd[0], &in), FD_ISSET(e, &in), FD_ISSET(fd[1], &out), FD_ISSET(e, &except));
    struct timeval now = {0, 0}, negative = {-1, 0}, later = {0, 20000};
    FD_SET(fd[0], &in);
    FD_CLR(e, &in);
    say("select", select(20, &in, NULL, NULL, &now));
    FD_SET(fd[0], &in);
    say("select waits", select(20, &in, NULL, NULL, &later));
    printf("left %ld %ld\n", (long)later.tv_sec, (long)later.tv_usec);
    say("select negative", select(-1, NULL, NULL, NULL, &now));
    say("select negative time", select(0, NULL, NULL, NULL, &negative));
    FD_SET(19, &in);
    say("select closed", select(20, &in, NULL, NULL, &now));
    pthread_t self = pthread_self();
    pthread_create(&thread, NULL, shoot, &self);
    p[0].revents = 0;
    say("poll interrupted", poll(p, 1, 5000));
    pthread_join(thread, NULL);
    sigset_t mask;
    sigemptyset(&mask), sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    raise(SIGUSR1);
    sigset_t empty;
    sigemptyset(&empty);
    struct timespec second = {5, 0};
    say("ppoll unblocks", ppoll(p, 1, &second, &empty));
    sigset_t after;
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    say("mask is back", sigismember(&after, SIGUSR1));
    pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
    close(fd[0]), close(fd[1]), close(e);
}

static void epolls(void) {
    int fd[2], e = eventfd(0, EFD_NONBLOCK), ep = epoll_create1(EPOLL_CLOEXEC);
    pipe2(fd, O_NONBLOCK);
    uint64_t value = 1;
    char buffer[100];
    say("create bad", epoll_create1(1));
    say("create bad", epoll_create(0));
    say("cloexec", fcntl(ep, F_GETFD));
    say("add", control(ep, EPOLL_CTL_ADD, fd[0], EPOLLIN, 1));
    say("add again", control(ep, EPOLL_CTL_ADD, fd[0], EPOLLIN, 1));
    say("add itself", control(ep, EPOLL_CTL_ADD, ep, EPOLLIN, 1));
    say("add closed", control(ep, EPOLL_CTL_ADD, 99, EPOLLIN, 1));
    say("add to a pipe", control(fd[0], EPOLL_CTL_ADD, e, EPOLLIN, 1));
    say("mod absent", control(ep, EPOLL_CTL_MOD, e, EPOLLIN, 1));
    say("del absent", control(ep, EPOLL_CTL_DEL, e, EPOLLIN, 1));
    say("bad op", control(ep, 9, e, EPOLLIN, 1));
    say("bad pointer", epoll_ctl(ep, EPOLL_CTL_ADD, e, NULL));
    say("maxevents 0", epoll_wait(ep, (struct epoll_event *)buffer, 0, 0));
    say("bad pointer", epoll_wait(ep, NULL, 1, 0));
    say("not an epoll", epoll_wait(e, (struct epoll_event *)buffer, 1, 0));
    wait_all("nothing", ep, 0);
    wait_all("nothing", ep, 10);
    write(fd[1], "ab", 2);
    wait_all("level", ep, 0);
    wait_all("level", ep, 0);
    read(fd[0], buffer, 1);
    wait_all("level", ep, 0);
    say("mod edge", control(ep, EPOLL_CTL_MOD, fd[0], EPOLLIN | EPOLLET, 2));
    wait_all("edge", ep, 0);
    wait_all("edge", ep, 0);
    write(fd[1], "c", 1);
    wait_all("edge", ep, 0);
    wait_all("edge", ep, 0);
    say("mod one shot", control(ep, EPOLL_CTL_MOD, fd[0], EPOLLIN | EPOLLONESHOT, 3));
    wait_all("one shot", ep, 0);
    write(fd[1], "d", 1);
    wait_all("one shot", ep, 0);
    say("armed", control(ep, EPOLL_CTL_MOD, fd[0], EPOLLIN | EPOLLONESHOT, 4));
    wait_all("one shot", ep, 0);
    say("add out", control(ep, EPOLL_CTL_ADD, fd[1], EPOLLOUT, 5));
    say("add event", control(ep, EPOLL_CTL_ADD, e, EPOLLIN, 6));
    write(e, &value, 8);
    wait_all("two", ep, 0);
    struct epoll_event one;
    for (int i = 0; i < 4; i++) {
        epoll_wait(ep, &one, 1, 0);
        printf("turn %llu\n", (unsigned long long)one.data.u64);
    }
    int copy = dup(e);
    close(e);
    wait_all("closed, but not the file", ep, 0);
    close(copy);
    wait_all("closed", ep, 0);
    say("del", control(ep, EPOLL_CTL_DEL, fd[1], 0, 0));
    wait_all("deleted", ep, 0);
    say("mod", control(ep, EPOLL_CTL_MOD, fd[0], EPOLLIN, 7));
    close(fd[1]);
    wait_all("hung up", ep, 0);
    close(fd[0]);

    int outer = epoll_create1(0);
    e = eventfd(0, 0);
    say("exclusive", control(ep, EPOLL_CTL_ADD, e, EPOLLIN | EPOLLEXCLUSIVE, 8));
    say("exclusive mod", control(ep, EPOLL_CTL_MOD, e, EPOLLIN, 8));
    say("exclusive bad", control(outer, EPOLL_CTL_ADD, e, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 8));
    say("nest", control(outer, EPOLL_CTL_ADD, ep, EPOLLIN, 9));
    say("cycle", control(ep, EPOLL_CTL_ADD, outer, EPOLLIN, 10));
    wait_all("nest", outer, 0);
    write(e, &value, 8);
    wait_all("nest", outer, 0);
    struct pollfd p = {outer, POLLIN, 0};
    say("poll nest", poll(&p, 1, 0));
    read(e, &value, 8);
    wait_all("nest", outer, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, ring, &e);
    wait_all("blocked nest", outer, 5000);
    pthread_join(thread, NULL);
    int chain[7];
    chain[0] = outer;
    for (int i = 1; i < 6; i++) {
        chain[i] = epoll_create1(0);
        say("chain", control(chain[i], EPOLL_CTL_ADD, chain[i - 1], EPOLLIN, i));
    }
    for (int i = 1; i < 6; i++)
        close(chain[i]);
    read(e, &value, 8);
    pthread_t waiters[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&waiters[i], NULL, waiter, &ep);
    usleep(20000);
    long woken = 0;
    value = 1;
    write(e, &value, 8);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(waiters[i], &result);
        woken += (long)(intptr_t)result;
    }
    say("waiters", woken);
    pthread_t self = pthread_self();
    read(e, &value, 8);
    pthread_create(&thread, NULL, shoot, &self);
    wait_all("interrupted", ep, 5000);
    pthread_join(thread, NULL);
    close(ep);
    close(outer);
    close(e);
    int file = open("/proc/self/exe", O_RDONLY);
    ep = epoll_create1(0);
    say("regular file", control(ep, EPOLL_CTL_ADD, file, EPOLLIN, 1));
    close(file);
    close(ep);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    eventfds();
    polls();
    epolls();
    return 0;
}
