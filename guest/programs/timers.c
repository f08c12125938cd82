// build: -Wno-nonnull
// timerfd, alarm, setitimer: expirations, intervals, errors.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static volatile int alarms;

static void on_alarm(int number) { (void)number; alarms++; }

static void say(const char *what, long result) {
    int error = errno;
    printf("%s: %ld %s\n", what, result, result < 0 ? strerror(error) : "");
}

static struct itimerspec after(long ms, long every_ms) {
    return (struct itimerspec){{every_ms / 1000, every_ms % 1000 * 1000000}, {ms / 1000, ms % 1000 * 1000000}};
}

int main(void) {
    uint64_t ticks;
    struct itimerspec spec, old;
    say("bad clock", timerfd_create(99, 0));
    say("bad clock", timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
    say("bad flags", timerfd_create(CLOCK_MONOTONIC, 1));
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    say("create", fd);
    say("disarmed", read(fd, &ticks, 8));
    say("gettime", timerfd_gettime(fd, &spec));
    printf("%ld %ld\n", (long)spec.it_value.tv_sec, spec.it_value.tv_nsec);
    spec = after(20, 0);
    say("settime", timerfd_settime(fd, 0, &spec, &old));
    struct pollfd p = {fd, POLLIN, 0};
    say("poll now", poll(&p, 1, 0));
    say("poll", poll(&p, 1, 5000));
    say("short", read(fd, &ticks, 4));
    say("read", read(fd, &ticks, 8));
    printf("%lu\n", ticks);
    say("read", read(fd, &ticks, 8));
    say("gettime", timerfd_gettime(fd, &spec));
    printf("%ld %ld\n", (long)spec.it_value.tv_sec, spec.it_value.tv_nsec);
    spec = after(100000, 3000);
    say("settime", timerfd_settime(fd, 0, &spec, NULL));
    spec = after(0, 0);
    say("disarm", timerfd_settime(fd, 0, &spec, &old));
    printf("%d %ld\n", old.it_value.tv_sec >= 99 && old.it_value.tv_sec <= 100, (long)old.it_interval.tv_sec);
    spec.it_value.tv_nsec = 1000000000;
    say("bad time", timerfd_settime(fd, 0, &spec, NULL));
    spec.it_value.tv_nsec = -1;
    say("bad time", timerfd_settime(fd, 0, &spec, NULL));
    spec = after(1, 0);
    say("bad flags", timerfd_settime(fd, 8, &spec, NULL));
    say("not a timer", timerfd_settime(1, 0, &spec, NULL));
    say("closed", timerfd_settime(99, 0, &spec, NULL));
    say("bad pointer", timerfd_settime(fd, 0, (void *)8, NULL));
    clock_gettime(CLOCK_MONOTONIC, &spec.it_value);
    say("past", timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL));
    say("poll", poll(&p, 1, 5000));
    fcntl(fd, F_SETFL, 0);
    say("read", read(fd, &ticks, 8));
    spec = after(5, 5);
    timerfd_settime(fd, 0, &spec, NULL);
    usleep(60000);
    say("read", read(fd, &ticks, 8));
    printf("%d\n", ticks >= 8);
    say("blocked read", read(fd, &ticks, 8));
    close(fd);
    fd = timerfd_create(CLOCK_REALTIME, 0);
    clock_gettime(CLOCK_REALTIME, &spec.it_value);
    spec.it_interval = (struct timespec){0, 0};
    spec.it_value.tv_nsec += 20000000;
    if (spec.it_value.tv_nsec >= 1000000000)
        spec.it_value.tv_sec++, spec.it_value.tv_nsec -= 1000000000;
    say("absolute", timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL));
    say("read", read(fd, &ticks, 8));
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%d\n", now.tv_sec > spec.it_value.tv_sec || (now.tv_sec == spec.it_value.tv_sec && now.tv_nsec >= spec.it_value.tv_nsec));

    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    say("alarm", alarm(100));
    say("alarm", alarm(200));
    say("alarm", alarm(0));
    say("alarm", alarm(0));
    struct itimerval value = {{0, 0}, {0, 20000}}, was;
    say("setitimer", setitimer(ITIMER_REAL, &value, NULL));
    say("pause", pause());
    say("alarms", alarms);
    say("getitimer", getitimer(ITIMER_REAL, &was));
    printf("%ld %ld\n", (long)was.it_value.tv_sec, (long)was.it_value.tv_usec);
    value = (struct itimerval){{0, 5000}, {0, 5000}};
    say("setitimer", setitimer(ITIMER_REAL, &value, NULL));
    while (alarms < 5)
        pause();
    value = (struct itimerval){{0, 0}, {0, 0}};
    say("setitimer", setitimer(ITIMER_REAL, &value, &was));
    printf("%ld\n", (long)was.it_interval.tv_usec);
    value.it_value.tv_usec = 1000000;
    say("bad time", setitimer(ITIMER_REAL, &value, NULL));
    say("bad which", syscall(SYS_setitimer, 9, NULL, NULL));
    say("bad pointer", syscall(SYS_setitimer, ITIMER_REAL, 8, NULL));
    struct timespec nap = {5, 0}, rest;
    value = (struct itimerval){{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &value, NULL);
    say("interrupted sleep", nanosleep(&nap, &rest));
    printf("%d\n", rest.tv_sec == 4);
    return 0;
}
