/* What a handler finds on its stack and what it may change there: registers, flags, the red zone, the x87, SSE and AVX
 * state, the mask. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* swap(): set all registers, raise a signal by a system call, store what has become of them. */
uint64_t out[18], thread_id, process_id, vectors_in[16][4], vectors_out[16][4], have_avx;
unsigned mxcsr_in = 0x3f80, mxcsr_out;
unsigned short control_in = 0xf7f, control_out;
double x87_in = 1.5, x87_out;
void swap(void);
asm(".text\n"
    "swap: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $256, %rsp\n"
    "  movq $11, -8(%rsp); movq $22, -128(%rsp)\n"
    "  fninit; fldl x87_in(%rip); fldcw control_in(%rip); ldmxcsr mxcsr_in(%rip)\n"
    "  lea vectors_in(%rip), %rax; cmpl $0, have_avx(%rip); jne 1f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15; movups 32*\\n(%rax), %xmm\\n; .endr\n"
    "  jmp 2f\n"
    "1: .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15; vmovups 32*\\n(%rax), %ymm\\n; .endr\n"
    "2: mov process_id(%rip), %rdi; mov thread_id(%rip), %rsi; mov $10, %edx\n"
    "  mov $0xb1, %ebx; mov $0xb2, %ebp; mov $0x81, %r8d; mov $0x82, %r9d; mov $0xa1, %r10d; mov $0xc1, %r12d\n"
    "  mov $0xd1, %r13d; mov $0xe1, %r14d; mov $0xf1, %r15d\n"
    "  xor %eax, %eax; mov $234, %eax; std; stc; syscall\n"
    "  mov %rax, out(%rip); mov %rbx, out+8(%rip); mov %rdx, out+16(%rip); mov %rdi, out+24(%rip)\n"
    "  mov %rsi, out+32(%rip); mov %rbp, out+40(%rip); mov %r8, out+48(%rip); mov %r9, out+56(%rip)\n"
    "  mov %r10, out+64(%rip)\n"
    "  mov %r12, out+72(%rip); mov %r13, out+80(%rip); mov %r14, out+88(%rip); mov %r15, out+96(%rip)\n"
    "  mov -8(%rsp), %rax; mov %rax, out+104(%rip); mov -128(%rsp), %rax; mov %rax, out+112(%rip)\n"
    "  pushfq; popq out+120(%rip); cld\n"
    "  stmxcsr mxcsr_out(%rip); fnstcw control_out(%rip); fstpl x87_out(%rip); fninit\n"
    "  lea vectors_out(%rip), %rax; cmpl $0, have_avx(%rip); jne 3f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15; movups %xmm\\n, 32*\\n(%rax); .endr\n"
    "  jmp 4f\n"
    "3: .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15; vmovups %ymm\\n, 32*\\n(%rax); .endr; vzeroupper\n"
    "4: pushq $0x1f80; ldmxcsr (%rsp); pop %rax\n"
    "  add $256, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");

static int change;
static struct {
	unsigned mxcsr, magic1, magic2, size_right;
	unsigned short control, tags;
	uint64_t flags, xfeatures, xstate_bv, rcx_is_rip, r11_is_flags, cs_ss, aligned, mask, saved_mask;
	long link;
} found;

static void spoil(void)
{
	unsigned mxcsr = 0x1f80 | 0x6000;
	unsigned short control = 0x33f;
	asm volatile("pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm7, %%xmm7; pcmpeqd %%xmm15, %%xmm15; ldmxcsr %0\n"
		     "fninit; fldpi; fldpi; fldcw %1" : : "m"(mxcsr), "m"(control) : "xmm0", "xmm7", "xmm15");
	if (have_avx)
		asm volatile("vmovups %%ymm0, %%ymm1; vxorps %%ymm2, %%ymm2, %%ymm2; vmovaps %%ymm0, %%ymm14"
			     : : : "xmm1", "xmm2", "xmm14");
}

static void handler(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	char *fp = (char *)uc->uc_mcontext.fpregs;
	uint32_t size, words[4];
	(void)signo, (void)info;
	asm volatile("stmxcsr %0; fnstcw %1; pushfq; pop %2" : "=m"(found.mxcsr), "=m"(found.control), "=r"(found.flags));
	memcpy(words, fp + 464, sizeof words);
	memcpy(&size, fp + 464 + 16, 4);
	memcpy(&found.xfeatures, fp + 464 + 8, 8);
	memcpy(&found.xstate_bv, fp + 512, 8);
	memcpy(&found.magic2, fp + size, 4);
	memcpy(&found.tags, fp + 4, 1);
	found.magic1 = words[0];
	found.size_right = words[1] == size + 4;
	found.rcx_is_rip = regs[REG_RCX] == regs[REG_RIP];
	found.r11_is_flags = (regs[REG_R11] & 0xcd5) == (regs[REG_EFL] & 0xcd5);
	found.cs_ss = (uint64_t)regs[REG_CSGSFS];
	found.aligned = (uint64_t)fp % 64 == 0;
	found.link = (long)uc->uc_link;
	memcpy(&found.saved_mask, &uc->uc_sigmask, 8);
	if (change) {
		uint64_t value = 0xabcdef;
		regs[REG_RBX] = 0x1234;
		regs[REG_R15] = 0x5678;
		regs[REG_EFL] = (regs[REG_EFL] & ~1) | 0x40;
		regs[REG_RAX] = 99;
		sigaddset(&uc->uc_sigmask, SIGUSR2);
		memcpy(fp + 160 + 16 * 3, &value, 8);
		uc->uc_mcontext.fpregs->mxcsr = 0x5f80;
	}
	spoil();
}

static void show(const char *title)
{
	int wide = have_avx ? 32 : 16, good = 0;
	uint64_t mask = 0;
	swap();
	printf("%s:\n  registers", title);
	for (int n = 0; n < 15; n++)
		printf(" %lx", n == 3 ? (long)(out[n] == process_id) : n == 4 ? (long)(out[n] == thread_id) : (long)out[n]);
	printf("\n  flags %lx, rcx %d r11 %d\n", (long)(out[15] & 0x4d5), (int)found.rcx_is_rip, (int)found.r11_is_flags);
	for (int n = 0; n < 16; n++)
		good += !memcmp(vectors_in[n], vectors_out[n], wide);
	printf("  vectors kept %d, xmm3 %lx, mxcsr %x, fcw %x, st0 %g\n", good, (long)vectors_out[3][0], mxcsr_out,
	       control_out, x87_out);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8L);
	printf("  blocked %lx\n", (long)mask);
}

int main(void)
{
	unsigned a, b, c, d;
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	__cpuid(1, a, b, c, d);
	have_avx = (c >> 28 & 1) && (c >> 27 & 1);
	process_id = (uint64_t)getpid();
	thread_id = (uint64_t)syscall(SYS_gettid);
	for (int n = 0; n < 16; n++)
		for (int m = 0; m < 4; m++)
			vectors_in[n][m] = 0x0101010101010101ull * (uint64_t)(n * 4 + m + 1);
	sigaction(SIGUSR1, &action, NULL);
	show("left alone");
	printf("the handler saw:\n  flags %lx mxcsr %x fcw %x, cs/ss %lx, link %ld, mask %lx\n", (long)(found.flags & 0x501),
	       found.mxcsr, found.control, (long)(found.cs_ss & 0xffff00000000ffff), found.link, (long)found.saved_mask);
	printf("  fpstate: aligned %d, magic %x %x, size %d, x87 and sse %d %d, tags %x\n", (int)found.aligned, found.magic1,
	       found.magic2, found.size_right, (int)(found.xfeatures & 3), (int)(found.xstate_bv & 3), found.tags);
	change = 1;
	show("changed");
	return 0;
}
