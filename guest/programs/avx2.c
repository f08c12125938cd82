// build: -mavx2
// not compared: the emulator has no AVX (tests/guest/test_languages.py runs it on KVM)
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

// Sums with 256-bit registers that must survive system calls and the other thread's use of them.
static void *work(void *argument) {
    uint32_t seed = (uint32_t)(uintptr_t)argument;
    __m256i sum = _mm256_setzero_si256(), step = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8);
    for (uint32_t i = 0; i < 200000; i++) {
        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(step, _mm256_set1_epi32((int)(seed + i))));
        if (i % 1000 == 0)
            syscall(SYS_getppid);
    }
    uint32_t lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, sum);
    uint64_t total = 0;
    for (int i = 0; i < 8; i++)
        total = total * 31 + lanes[i];
    return (void *)total;
}

int main(void) {
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < 4; i++) {
        void *total;
        pthread_join(threads[i], &total);
        printf("thread %d: %lx\n", i, (unsigned long)(uintptr_t)total);
    }
    return 0;
}
