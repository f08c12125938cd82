/* Sizes, offsets and constants of the kernel's own headers, a line each: NAME VALUE. */
#include <stddef.h>
#include <stdio.h>

#include <asm/sigcontext.h>
#include <linux/capability.h>
#include <linux/signal.h>

#include <asm/ucontext.h>

#define SHOW(name) printf("%s %lld\n", #name, (long long)(name))
#define OFFSET(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))

int main(void)
{
	SHOW(SIGHUP); SHOW(SIGINT); SHOW(SIGQUIT); SHOW(SIGILL); SHOW(SIGTRAP); SHOW(SIGABRT); SHOW(SIGBUS); SHOW(SIGFPE);
	SHOW(SIGKILL); SHOW(SIGUSR1); SHOW(SIGSEGV); SHOW(SIGUSR2); SHOW(SIGPIPE); SHOW(SIGALRM); SHOW(SIGTERM);
	SHOW(SIGSTKFLT); SHOW(SIGCHLD); SHOW(SIGCONT); SHOW(SIGSTOP); SHOW(SIGTSTP); SHOW(SIGTTIN); SHOW(SIGTTOU);
	SHOW(SIGURG); SHOW(SIGXCPU); SHOW(SIGXFSZ); SHOW(SIGVTALRM); SHOW(SIGPROF); SHOW(SIGWINCH); SHOW(SIGIO);
	SHOW(SIGPWR); SHOW(SIGSYS); SHOW(SIGRTMIN);
	SHOW(SA_NOCLDSTOP); SHOW(SA_NOCLDWAIT); SHOW(SA_SIGINFO); SHOW(SA_ONSTACK); SHOW(SA_RESTART); SHOW(SA_NODEFER);
	SHOW(SA_RESTORER); SHOW(SA_EXPOSE_TAGBITS);
	printf("SA_RESETHAND %lld\n", SA_RESETHAND & 0xffffffffLL);
	SHOW(SIG_BLOCK); SHOW(SIG_UNBLOCK); SHOW(SIG_SETMASK);
	SHOW(SS_ONSTACK); SHOW(SS_DISABLE);
	printf("SS_AUTODISARM %lld\n", SS_AUTODISARM & 0xffffffffLL);
	SHOW(MINSIGSTKSZ);
	SHOW(SI_USER); SHOW(SI_KERNEL); SHOW(SI_QUEUE); SHOW(SI_TIMER); SHOW(SI_MESGQ); SHOW(SI_ASYNCIO); SHOW(SI_SIGIO);
	SHOW(SI_TKILL); SHOW(SI_DETHREAD); SHOW(SI_ASYNCNL);
	SHOW(ILL_ILLOPN); SHOW(FPE_INTDIV); SHOW(FPE_FLTDIV); SHOW(FPE_FLTOVF); SHOW(FPE_FLTUND); SHOW(FPE_FLTRES);
	SHOW(FPE_FLTINV); SHOW(SEGV_MAPERR); SHOW(SEGV_ACCERR); SHOW(BUS_ADRALN); SHOW(BUS_ADRERR); SHOW(TRAP_BRKPT);
	SHOW(TRAP_TRACE);
	SHOW(NSIGILL); SHOW(NSIGFPE); SHOW(NSIGBUS); SHOW(NSIGCHLD); SHOW(NSIGPOLL); SHOW(NSIGSYS);
	SHOW(CAP_KILL);
	SHOW(FP_XSTATE_MAGIC1); SHOW(FP_XSTATE_MAGIC2);
	SHOW(UC_FP_XSTATE); SHOW(UC_SIGCONTEXT_SS); SHOW(UC_STRICT_RESTORE_SS);
	printf("siginfo %zu\nsigaction %zu\nstack %zu\nsigcontext %zu\nsw_bytes %zu\n", sizeof(siginfo_t),
	       sizeof(struct sigaction), sizeof(stack_t), sizeof(struct sigcontext), sizeof(struct _fpx_sw_bytes));
	/* The header's struct ucontext ends in libc's sigset_t, of which the kernel's is the first word. */
	printf("uc_sigmask %zu\n", sizeof(struct { unsigned long flags; void *link; stack_t stack; struct sigcontext context; }));
	OFFSET(sigcontext, r8); OFFSET(sigcontext, rdi); OFFSET(sigcontext, rsi); OFFSET(sigcontext, rbp);
	OFFSET(sigcontext, rbx); OFFSET(sigcontext, rdx); OFFSET(sigcontext, rax); OFFSET(sigcontext, rcx);
	OFFSET(sigcontext, rsp); OFFSET(sigcontext, rip); OFFSET(sigcontext, eflags); OFFSET(sigcontext, cs);
	OFFSET(sigcontext, ss); OFFSET(sigcontext, err); OFFSET(sigcontext, trapno); OFFSET(sigcontext, oldmask);
	OFFSET(sigcontext, cr2); OFFSET(sigcontext, fpstate);
	printf("sw_reserved %zu\nxstate_hdr %zu\nymmh %zu\n", offsetof(struct _fpstate_64, sw_reserved),
	       offsetof(struct _xstate, xstate_hdr), offsetof(struct _xstate, ymmh));
	printf("sa_handler %zu\nsa_flags %zu\nsa_restorer %zu\nsa_mask %zu\n", offsetof(struct sigaction, sa_handler),
	       offsetof(struct sigaction, sa_flags), offsetof(struct sigaction, sa_restorer),
	       offsetof(struct sigaction, sa_mask));
	printf("si_pid %zu\nsi_uid %zu\nsi_value %zu\nsi_addr %zu\n", offsetof(siginfo_t, si_pid), offsetof(siginfo_t, si_uid),
	       offsetof(siginfo_t, si_value), offsetof(siginfo_t, si_addr));
	return 0;
}
