// What a hostile or broken program does to its CPU. hostile CASE does one thing; how it ends is the test.
// build: -Wno-infinite-recursion
// not compared: each case is a test of its own (tests/guest/test_hostile.py)
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STUB 0xFFFFFFFFFF5FE000ul
#define DOORBELL 0xFFFFFFFFFF5FD000ul
#define IDT 0xFFFF808000000000ul

static void jump(uint64_t to) {
    // RCX and R11 are what SYSCALL would have left: a return address of 0 and ordinary flags
    __asm__ volatile("xor %%ecx, %%ecx; mov $0x202, %%r11d; mov $39, %%eax; jmp *%0" ::"r"(to) : "rax", "rcx", "r11", "memory");
}

static volatile int sink;

static int deep(int n) {
    volatile char page[4096];
    page[0] = (char)n;
    return deep(n + 1) + page[0];
}

static void *spin(void *argument) {
    for (;;) sink++;
    return argument;
}

static void *sleeper(void *argument) {
    for (;;) pause();
    return argument;
}

static void wild_read(void) { sink = *(volatile int *)0x12345000; }
static void wild_write(void) { *(volatile int *)0x12345000 = 1; }
static void null_call(void) { ((void (*)(void))(uintptr_t)sink)(); }
static void noncanonical(void) { sink = *(volatile int *)0x8000000000000000ul; }
static void kernel_read(void) { sink = *(volatile int *)0xFFFFFFFF80000000ul; }
static void code_write(void) { *(volatile char *)(uintptr_t)code_write = 1; }
static void data_exec(void) { static char data[16] = {(char)0xC3}; ((void (*)(void))(uintptr_t)data)(); }
static void hlt(void) { __asm__ volatile("hlt"); }
static void int3(void) { __asm__ volatile("int3"); }
static void ud2(void) { __asm__ volatile("ud2"); }
static void icebp(void) { __asm__ volatile(".byte 0xf1"); }
static void in_port(void) { __asm__ volatile("in $0x40, %%al" ::: "rax"); }
static void out_port(void) { __asm__ volatile("out %al, $0x40"); }
static void cli_(void) { __asm__ volatile("cli"); }
static void read_cr3(void) { __asm__ volatile("mov %%cr3, %%rax" ::: "rax"); }
static void wrmsr_(void) { __asm__ volatile("wrmsr" ::"a"(0), "c"(0xC0000082), "d"(0)); }
static void lgdt_(void) { static char table[10]; __asm__ volatile("lgdt %0" ::"m"(table)); }
static void int_80(void) { __asm__ volatile("int $0x81"); }
static void int_40(void) { __asm__ volatile("int $14"); }
static void sysret_(void) { __asm__ volatile("sysretq"); }
static void iret_ring0(void) {
    __asm__ volatile("mov %%rsp, %%rax; push $0x18; push %%rax; pushfq; push $0x10; lea 1f(%%rip), %%rcx; push %%rcx; iretq; 1:" ::: "rax", "rcx", "memory");
}
static void far_jump_32(void) {
    __asm__ volatile("push $0x23; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:" ::: "rax", "memory");
    _exit(42);
}
static void divide(void) { __asm__ volatile("div %%ecx" ::"a"(1), "d"(0), "c"(0)); }
static void divide_overflow(void) { __asm__ volatile("div %%ecx" ::"a"(1), "d"(7), "c"(2)); }
static void sse_exception(void) {
    unsigned csr = 0x1F80 & ~0x200;  // division by zero unmasked
    __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; mov $1, %%eax; cvtsi2ss %%eax, %%xmm1; divss %%xmm0, %%xmm1" ::"m"(csr) : "eax", "xmm0", "xmm1");
}
static void trap_flag(void) { __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop" ::: "memory", "cc"); }
static void trap_flag_syscall(void) {
    __asm__ volatile("mov $39, %%eax; pushfq; orl $0x100, (%%rsp); popfq; syscall; nop" ::: "memory", "cc", "rax", "rcx", "r11");
}
static void alignment_check(void) {
    static char data[16];
    __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq; movl %%eax, 1(%0); pushfq; andl $~0x40000, (%%rsp); popfq" ::"r"(data) : "memory", "cc", "rax");
}
static void bad_segment(void) { __asm__ volatile("mov %0, %%ds" ::"r"(0x10)); }
static void bad_stack_segment(void) { __asm__ volatile("mov %0, %%ss" ::"r"(0)); }
static void odd_segment(void) { __asm__ volatile("mov %0, %%fs" ::"r"(0xFFF7)); }
static void overflow(void) { sink = deep(0); }
static void jump_stub(void) { jump(STUB); }
static void jump_inside_stub(void) { jump(STUB + 3); }
static void jump_behind_stub(void) { jump(STUB + 0x800); }
static void jump_doorbell(void) { jump(DOORBELL); }
static void jump_idt(void) { jump(IDT); }
static void jump_exceptions(void) { jump(IDT + 0x1000); }
static void read_doorbell(void) { sink = *(volatile int *)DOORBELL; }
static void write_doorbell(void) { __asm__ volatile("mov %%eax, (%0)" ::"r"(DOORBELL), "a"(39) : "memory"); }
static void write_stub(void) { *(volatile int *)STUB = 0; }
static void read_idt(void) { sink = *(volatile int *)IDT; }
static void write_idt(void) { *(volatile int *)IDT = 0; }
static void wrong_number(void) {
    long numbers[] = {1L << 31, (1L << 31) + 39, 0x40000000L + 39, 100000, -1L, 0x7FFFFFFFL};
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        printf("%ld\n", syscall(numbers[i]) == -1 ? errno : 0L);
    printf("%d\n", syscall((1L << 32) + SYS_getpid) == getpid());
    exit(0);
}
static void spin_for_ever(void) { spin(NULL); }
static void spin_in_syscalls(void) { for (;;) syscall(SYS_getppid); }
static void sleep_for_ever(void) { sleeper(NULL); }
static void many_spinners(void) {
    pthread_t thread;
    for (int i = 0; i < 8; i++) pthread_create(&thread, NULL, i % 2 ? spin : sleeper, NULL);
    spin(NULL);
}
static void threads_without_end(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_t thread;
    for (long n = 0;; n++) {
        int error = pthread_create(&thread, &attributes, sleeper, NULL);
        if (error) {
            printf("%s\n", error == EAGAIN && n >= 50 ? "EAGAIN" : strerror(error));
            exit(0);
        }
        if (n == 100000) exit(1);
    }
}
static void eat_memory(void) {
    for (;;) {
        char *block = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block == MAP_FAILED) {
            printf("%s\n", errno == ENOMEM ? "ENOMEM" : strerror(errno));
            exit(0);
        }
        memset(block, 1, 16 << 20);
    }
}
static void huge_mapping(void) {
    void *block = mmap(NULL, 1L << 46, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", block == MAP_FAILED ? strerror(errno) : "mapped");
    exit(0);
}

#define CASE(name) {#name, name}
static const struct { const char *name; void (*run)(void); } cases[] = {
    CASE(wild_read), CASE(wild_write), CASE(null_call), CASE(noncanonical), CASE(kernel_read), CASE(code_write), CASE(data_exec),
    CASE(hlt), CASE(int3), CASE(ud2), CASE(icebp), CASE(in_port), CASE(out_port), CASE(cli_), CASE(read_cr3), CASE(wrmsr_),
    CASE(lgdt_), CASE(int_80), CASE(int_40), CASE(sysret_), CASE(iret_ring0), CASE(far_jump_32), CASE(divide), CASE(divide_overflow),
    CASE(sse_exception), CASE(trap_flag), CASE(trap_flag_syscall), CASE(alignment_check), CASE(bad_segment), CASE(bad_stack_segment),
    CASE(odd_segment), CASE(overflow), CASE(jump_stub), CASE(jump_inside_stub), CASE(jump_behind_stub), CASE(jump_doorbell),
    CASE(jump_idt), CASE(jump_exceptions), CASE(read_doorbell), CASE(write_doorbell), CASE(write_stub), CASE(read_idt), CASE(write_idt),
    CASE(wrong_number), CASE(spin_for_ever), CASE(spin_in_syscalls), CASE(sleep_for_ever), CASE(many_spinners),
    CASE(threads_without_end), CASE(eat_memory), CASE(huge_mapping),
};

int main(int argc, char **argv) {
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc == 2 ? !strcmp(argv[1], cases[i].name) : argc == 1) {
            if (argc == 1) { puts(cases[i].name); continue; }
            setvbuf(stdout, NULL, _IONBF, 0);
            cases[i].run();
            return 99;  // it should not have come back
        }
    return argc == 1 ? 0 : 2;
}
