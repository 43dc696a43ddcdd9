// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that spins with interrupts off for a second or two. External interrupts, such
 * as those of the host's timer, and PMIs of a mediated vPMU, end its turns nevertheless.
 *
 * Usage: spin timer	signals of a timer that arrived while it was spinning, of how many
 *	  spin pmi	turns of the loop until a PMI that is due after 10000
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

#define TURNS		60000000
#define TURNS_TO_PMI	10000
#define PERIOD_US	10000

#define LOOP		0x1000
#define NMI_HANDLER	0x1100
#define STACK		0x2000
#define MEMORY		0x4000
#define END_OF_LOOP	0x80		/* ports that say what has happened */
#define NMI_ARRIVED	0x81

#define MSR_FIXED_CTR0		0x309
#define MSR_FIXED_CTR_CTRL	0x38d
#define MSR_GLOBAL_CTRL		0x38f
#define APIC_SPURIOUS		0xf0
#define APIC_LVTPC		0x340

/* Real mode: 1: dec %ecx; jnz 1b; out %al, $END_OF_LOOP */
static const uint8_t loop[] = { 0x66, 0x49, 0x75, 0xfc, 0xe6, END_OF_LOOP };
static const uint8_t nmi_handler[] = { 0xe6, NMI_ARRIVED };	/* out %al, $NMI_ARRIVED */
static const uint16_t nmi_vector[] = { NMI_HANDLER, 0 };

static int vm, vcpu;
static struct kvm_run *run;

static int do_ioctl(int fd, unsigned long request, const char *name, void *arg)
{
	int ret = ioctl(fd, request, arg);

	if (ret < 0)
		err(1, "%s", name);
	return ret;
}
#define IOCTL(fd, request, arg)	do_ioctl(fd, request, #request, (void *)(arg))

/* With what KVM supports, a vPMU among it. */
static void set_cpuid(int kvm)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));

	if (!cpuid)
		err(1, "calloc");
	cpuid->nent = 256;
	IOCTL(kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	IOCTL(vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
}

static void create_guest(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	struct kvm_regs regs = { .rip = LOOP, .rsp = STACK, .rflags = 2, .rcx = TURNS };
	int kvm = open("/dev/kvm", O_RDWR);
	struct kvm_sregs sregs;
	uint8_t *memory;

	if (kvm < 0)
		err(1, "/dev/kvm");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memcpy(memory + LOOP, loop, sizeof(loop));
	memcpy(memory + NMI_HANDLER, nmi_handler, sizeof(nmi_handler));
	memcpy(memory + 2 * 4, nmi_vector, sizeof(nmi_vector));

	vm = IOCTL(kvm, KVM_CREATE_VM, 0);
	region.userspace_addr = (uintptr_t)memory;
	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &region);
	IOCTL(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	IOCTL(vm, KVM_CREATE_IRQCHIP, 0);
	vcpu = IOCTL(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		   MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap");
	set_cpuid(kvm);
	IOCTL(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	IOCTL(vcpu, KVM_SET_SREGS, &sregs);
	IOCTL(vcpu, KVM_SET_REGS, &regs);
}

/* Instructions count, two to a turn, and a PMI is an NMI. */
static void start_counter(void)
{
	const struct kvm_msr_entry entries[] = {
		{ .index = MSR_FIXED_CTR_CTRL, .data = 0xb },
		{ .index = MSR_FIXED_CTR0, .data = (1ull << 48) - 2 * TURNS_TO_PMI },
		{ .index = MSR_GLOBAL_CTRL, .data = 1ull << 32 },
	};
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(entries));
	struct kvm_lapic_state lapic;

	if (!msrs)
		err(1, "calloc");
	msrs->nmsrs = sizeof(entries) / sizeof(entries[0]);
	memcpy(msrs->entries, entries, sizeof(entries));
	if (IOCTL(vcpu, KVM_SET_MSRS, msrs) != (int)msrs->nmsrs)
		errx(1, "KVM_SET_MSRS: the vPMU lacks a register");
	free(msrs);

	IOCTL(vcpu, KVM_GET_LAPIC, &lapic);
	*(uint32_t *)(lapic.regs + APIC_SPURIOUS) = 0x1ff;
	*(uint32_t *)(lapic.regs + APIC_LVTPC) = 0x400;
	IOCTL(vcpu, KVM_SET_LAPIC, &lapic);
}

/* Until the guest says something; returns how many signals have ended a turn. */
static unsigned int run_guest(void)
{
	unsigned int signals = 0;

	while (ioctl(vcpu, KVM_RUN, 0)) {
		if (errno != EINTR)
			err(1, "KVM_RUN");
		signals++;
	}
	if (run->exit_reason != KVM_EXIT_IO)
		errx(1, "the guest ends with exit reason %u", run->exit_reason);
	return signals;
}

static void ignore(int signal)
{
	(void)signal;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char *argv[])
{
	const struct itimerval timer = { { 0, PERIOD_US }, { 0, PERIOD_US } };
	const char *what = argc == 2 ? argv[1] : "";
	struct sigaction action = { .sa_handler = ignore };
	struct kvm_regs regs;
	unsigned int signals;
	double start;

	create_guest();
	if (!strcmp(what, "timer")) {
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &timer, NULL);
		start = now();
		signals = run_guest();
		printf("%u of %.0f\n", signals, (now() - start) / PERIOD_US);
		if (run->io.port != END_OF_LOOP)
			errx(1, "the guest did not spin to the end");
	} else if (!strcmp(what, "pmi")) {
		start_counter();
		run_guest();
		IOCTL(vcpu, KVM_GET_REGS, &regs);
		printf("%llu\n", TURNS - regs.rcx);
		if (run->io.port != NMI_ARRIVED)
			errx(1, "no PMI arrived while the guest was spinning");
	} else {
		errx(1, "say timer or pmi");
	}
	return 0;
}
