/* Many signals between many threads, directed and to the process, caught and waited for, while the threads compute,
 * sleep and wait for each other: none is lost, none comes twice, no thread sleeps through one. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4
#define ROUNDS 150

static volatile int caught, sum, waited, waited_sum, finished, wrong;
static int pid, tids[THREADS], directed, to_process;
static pthread_barrier_t barrier;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int protected;

static void handler(int signo, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_code != SI_QUEUE || info->si_signo != signo || info->si_pid != pid)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&caught, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&sum, info->si_value.sival_int, __ATOMIC_SEQ_CST);
}

static void queue(int tid, int signo, int value)
{
	siginfo_t info = {.si_signo = signo, .si_code = SI_QUEUE};
	struct timespec tick = {0, 1000000};
	info.si_pid = pid;
	info.si_uid = getuid();
	info.si_value.sival_int = value;
	/* The queue may be full for a while. */
	while (tid ? syscall(SYS_rt_tgsigqueueinfo, pid, tid, signo, &info) : syscall(SYS_rt_sigqueueinfo, pid, signo, &info))
		if (errno != EAGAIN) {
			wrong++;
			return;
		} else {
			nanosleep(&tick, NULL);
		}
}

static void *worker(void *argument)
{
	int me = (int)(long)argument;
	struct timespec tick = {0, 100000};
	tids[me] = (int)syscall(SYS_gettid);
	pthread_barrier_wait(&barrier);
	for (int n = 0; n < ROUNDS; n++) {
		queue(tids[(me + 1 + n % (THREADS - 1)) % THREADS], SIGRTMIN + n % 3, 1);
		queue(0, SIGRTMIN + 3, 1);
		if (n % 5 == 0)
			queue(0, SIGRTMIN + 4, 3); /* for the thread that waits */
		if (n % 10 == 0)
			nanosleep(&tick, NULL);
		pthread_mutex_lock(&mutex);
		protected++;
		pthread_mutex_unlock(&mutex);
	}
	__atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
	while (finished < THREADS + 1)
		nanosleep(&tick, NULL);
	return NULL;
}

static void *waiter(void *unused)
{
	sigset_t set;
	(void)unused;
	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 4);
	pthread_barrier_wait(&barrier);
	while (waited < THREADS * (ROUNDS / 5)) {
		siginfo_t info;
		if (sigwaitinfo(&set, &info) == SIGRTMIN + 4) {
			waited++;
			waited_sum += info.si_value.sival_int;
		}
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS], waiting;
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct timespec tick = {0, 1000000};
	sigset_t blocked;
	pid = getpid();
	for (int n = 0; n < 4; n++)
		sigaction(SIGRTMIN + n, &action, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 4);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	pthread_barrier_init(&barrier, NULL, THREADS + 1);
	pthread_create(&waiting, NULL, waiter, NULL);
	for (long n = 0; n < THREADS; n++)
		pthread_create(&threads[n], NULL, worker, (void *)n);
	directed = to_process = THREADS * ROUNDS;
	pthread_join(waiting, NULL);
	while (caught < directed + to_process || finished < THREADS)
		nanosleep(&tick, NULL);
	__atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
	for (int n = 0; n < THREADS; n++)
		pthread_join(threads[n], NULL);
	nanosleep(&tick, NULL);
	printf("caught %d of %d, sum %d\n", caught, directed + to_process, sum);
	printf("waited for %d, sum %d\n", waited, waited_sum);
	printf("wrong %d, mutex %d\n", wrong, protected);
	return 0;
}
