// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Test of the emulated CPU that runs without an operating system: what no Linux does.
 * The script bare_test boots it and passes on what it prints.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define BIT(n)			(1ull << (n))

#define MSR_APIC_BASE		0x1b
#define MSR_DEBUGCTL		0x1d9
#define MSR_FIXED_CTR0		0x309
#define MSR_FIXED_CTR_CTRL	0x38d
#define MSR_GLOBAL_CTRL		0x38f

#define APIC_ENABLED		BIT(11)
#define APIC_VERSION		0x030
#define APIC_TPR		0x080
#define APIC_SPURIOUS		0x0f0
#define APIC_IRR		0x200
#define APIC_ICR		0x300
#define APIC_LVTPC		0x340

/* The BIOS has loaded this at 0x7c00, in real mode. */
asm(".section .start, \"ax\"\n"
	"	.code16\n"
	"	.globl start\n"
	"start:	cli\n"
	"	xor	%ax, %ax\n"
	"	mov	%ax, %ds\n"
	"	lgdtl	gdtr\n"
	"	mov	%cr0, %eax\n"
	"	or	$1, %al\n"
	"	mov	%eax, %cr0\n"
	"	ljmpl	$8, $flat\n"
	"	.code32\n"
	"flat:	mov	$16, %ax\n"
	"	mov	%ax, %ds\n"
	"	mov	%ax, %es\n"
	"	mov	%ax, %ss\n"
	"	mov	$0x7c00, %esp\n"
	"	jmp	test\n"
	"gdt:	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
	"gdtr:	.word	23\n"
	"	.long	gdt\n"
	"	.text\n");

static void outb(unsigned short port, u8 val)
{
	asm volatile("outb %0, %1" : : "a"(val), "Nd"(port));
}

static u64 rdmsr(u32 msr)
{
	u64 val;

	asm volatile("rdmsr" : "=A"(val) : "c"(msr));
	return val;
}

static void wrmsr(u32 msr, u64 val)
{
	asm volatile("wrmsr" : : "A"(val), "c"(msr) : "memory");
}

static void cpuid(u32 leaf, u32 subleaf, u32 r[4])
{
	asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
		     : "a"(leaf), "c"(subleaf));
}

static u32 apic_read(u32 reg)
{
	return *(volatile u32 *)(0xfee00000 + reg);
}

static void apic_write(u32 reg, u32 val)
{
	*(volatile u32 *)(0xfee00000 + reg) = val;
}

static void print(const char *text)
{
	while (*text)
		outb(0xe9, *text++);
}

static void result(int passed, const char *what)
{
	static char number = '1';
	char text[] = "ok N ";

	text[3] = number++;
	print(passed ? "" : "not ");
	print(text);
	print(what);
	print("\n");
}

/* What CPUID announces. */
static int apic_announced(void)
{
	u32 r[4];

	cpuid(1, 0, r);
	return r[3] >> 9 & 1;
}

static void test_apic(void)
{
	u64 base = rdmsr(MSR_APIC_BASE);

	apic_write(APIC_SPURIOUS, 0x1ff);
	apic_write(APIC_TPR, 0x20);
	apic_write(APIC_LVTPC, 0x400);
	wrmsr(MSR_APIC_BASE, base & ~APIC_ENABLED);
	result(!apic_announced() && rdmsr(MSR_APIC_BASE) == (base & ~APIC_ENABLED),
	       "a local APIC is disabled");
	wrmsr(MSR_APIC_BASE, base);
	result(apic_announced() && rdmsr(MSR_APIC_BASE) == base &&
	       (apic_read(APIC_VERSION) & 0xff) == 0x14, "... and enabled again");
	result(apic_read(APIC_SPURIOUS) == 0xff && !apic_read(APIC_TPR) &&
	       apic_read(APIC_LVTPC) == 0x10000, "... and is as after power-up");
	apic_write(APIC_SPURIOUS, 0x1ff);
	apic_write(APIC_ICR, 0x40000 | 0x65);	/* to itself */
	result(apic_read(APIC_IRR + 0x30) == BIT(5), "... and takes interrupts");
}

/* Instructions from one MSR to the other, with a write to a port between them. */
static u32 instructions(unsigned short port)
{
	wrmsr(MSR_FIXED_CTR0, 0);
	wrmsr(MSR_GLOBAL_CTRL, BIT(32));
	outb(port, 0);
	wrmsr(MSR_GLOBAL_CTRL, 0);
	return rdmsr(MSR_FIXED_CTR0);
}

/* A write to port 0xb2 is an SMI, which the BIOS handles; one to 0x80 does nothing. */
static void test_smm(void)
{
	u32 none, counted;

	wrmsr(MSR_FIXED_CTR_CTRL, 3);
	none = instructions(0x80);
	counted = instructions(0xb2);
	result(counted > none + 3, "what is done in SMM counts");
	wrmsr(MSR_DEBUGCTL, BIT(14));
	counted = instructions(0xb2);
	/* RSM starts the counter again, so it is its first instruction. */
	result(counted == none || counted == none + 1, "... but with DEBUGCTL.FREEZE_WHILE_SMM");
	wrmsr(MSR_DEBUGCTL, 0);
}

/*
 * Version 6 brings it. It says again which counters there are. Whether this CPU is to have
 * it is known to who reads the result.
 */
static void test_perfmon_ext(void)
{
	u32 max[4], old[4], announced[4], counters[4];
	u32 there, fixed;

	cpuid(0, 0, max);
	cpuid(0xa, 0, old);
	cpuid(7, 1, announced);
	cpuid(0x23, 1, counters);
	there = (old[0] & 0xff) >= 6;
	fixed = there ? 0x77 : 0x0f;
	result((max[0] >= 0x23) == there && (announced[0] >> 8 & 1) == there &&
	       old[2] == fixed && counters[0] == (there ? 0xff : 0) &&
	       counters[1] == (there ? fixed : 0),
	       there ? "CPUID has leaf 0x23" : "CPUID has no leaf 0x23");
}

void test(void)
{
	print("TAP version 13\n1..7\n");
	test_apic();
	test_smm();
	test_perfmon_ext();
	for (const char *word = "Shutdown"; *word; word++)
		outb(0x8900, *word);
	while (1)
		asm volatile("hlt");
}
