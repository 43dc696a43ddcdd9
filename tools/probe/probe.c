// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asks the CPU what the documents leave open about fixed counter 3 (TOPDOWN.SLOTS) and
 * PERF_METRICS: the questions H1 to H14 of Documentation/real-hardware.rst. The names of
 * the answers are those of the readings in tools/emulator/README, where there is one.
 *
 * It writes both registers through /dev/cpu/N/msr, behind the back of perf, for some
 * milliseconds. A child asks; its parent has saved what it changes and restores it,
 * whatever becomes of the child. Of registers that others use, too, only the bits of
 * fixed counter 3 and PERF_METRICS are changed, and if somebody else changes those, the
 * question is asked again.
 *
 * Names of registers and bits: Intel SDM, volume 3 "Performance Monitoring", volume 4.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define BIT(n)			(1ull << (n))
#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))

#define MSR_FIXED_CTR3		0x30c
#define MSR_PERF_METRICS	0x329
#define MSR_PERF_CAPABILITIES	0x345
#define MSR_FIXED_CTR_CTRL	0x38d
#define MSR_GLOBAL_STATUS	0x38e
#define MSR_GLOBAL_CTRL		0x38f
#define MSR_GLOBAL_STATUS_RESET	0x390
#define MSR_GLOBAL_STATUS_SET	0x391

/* Of GLOBAL_CTRL and GLOBAL_STATUS. */
#define SLOTS			BIT(35)
#define METRICS			BIT(48)
#define BOTH			(SLOTS | METRICS)

/* The four bits of fixed counter 3 in FIXED_CTR_CTRL. */
#define FIXED3_SHIFT		12
#define FIXED3_RINGS		0x3ull
#define FIXED3_CLEAR		0x4ull	/* RDPMC clears metrics, with CAP_RDPMC_CLEARS */
#define FIXED3_PMI		0x8ull
#define FIXED3_ALL		0xfull

#define CAP_PERF_METRICS	BIT(15)
#define CAP_RDPMC_CLEARS	BIT(19)

#define RDPMC_METRICS		(1u << 29)

#define NR_LEVEL1		4
#define LEVEL1			0xffffffffull

/* Level 1 sums to 255, level 2 is a part of it. */
#define PATTERN8		0x1c1826142d3c4650ull
#define PATTERN			(PATTERN8 & all_ones())
#define SOME_SLOTS		0x100000ull

/* Iterations of work(), a tenth of a millisecond. */
#define WORK			20000

enum status { ANSWERED, TROUBLE, NO_METRICS, IN_VM, IN_USE, NO_ACCESS };

static const char help[] =
"Asks an Intel CPU what the documents leave open about PERF_METRICS.\n"
"\n"
"Usage: probe [--cpu N] [--json] [--overflow] [--vm]\n"
"  --cpu N      the CPU to ask, else CPU 0; on a hybrid CPU one of\n"
"               /sys/devices/cpu_core/cpus\n"
"  --json       prints JSON\n"
"  --overflow   asks H6, too. It causes PMIs, for which an event of perf's is kept open,\n"
"               so that perf takes them for its own. Not on a machine that an NMI of\n"
"               unknown reason would bring down.\n"
"  --vm         goes on in a VM, whose answers are those of the hypervisor\n"
"\n"
"Takes fixed counter 3 and PERF_METRICS of that CPU for some milliseconds, and puts back\n"
"what was there, also if it is interrupted, unless SIGKILL ends both of its processes.\n"
"Not beside VMs that use these, whose counts KVM leaves in the registers. Needs root and\n"
"the module msr. The kernel notes that MSRs were written: it is tainted (S) until it\n"
"boots again.\n"
"\n"
"Exit status:\n"
"  0  the questions were asked\n"
"  1  something else went wrong\n"
"  2  the CPU has no PERF_METRICS: before Ice Lake, an E-core, not Intel's\n"
"  3  in a VM\n"
"  4  perf, a VM or somebody else uses fixed counter 3 or PERF_METRICS\n"
"  5  no access to /dev/cpu/N/msr\n";

enum id { H1, H2, H3, H4, H5, H6, H7, H8, H9, H10, H11, H12, H13, H14, NR_QUESTIONS };

struct answer {
	char name[32];
	char values[400];
};

/* What the child tells its parent. What isn't answered has no name. */
struct shared {
	struct answer answers[NR_QUESTIONS];
	bool wants_pmi;
	char errors[1024];
};

static struct shared *shared;
static int msr_fd = -1;
static int guard = -1;		/* an event of perf's that counts nothing */
static int cpu;
static uint64_t capabilities;
static uint64_t slots_max;
static unsigned int nr_metrics = NR_LEVEL1;	/* at least */
static bool may_overflow, lost;

/* What the child has set last, to notice others. */
static uint64_t global_set, fixed3_set;
static bool disturbed;

/* Whose answer a fault is. */
static struct answer *current;
static jmp_buf faulted;

__attribute__((format(printf, 2, 3), noreturn))
static void die(enum status status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "error: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	_exit(status);
}

/* #GP shows as EIO. */
static bool rdmsr(uint32_t msr, uint64_t *val)
{
	return pread(msr_fd, val, sizeof(*val), msr) == sizeof(*val);
}

static bool wrmsr(uint32_t msr, uint64_t val)
{
	return pwrite(msr_fd, &val, sizeof(val), msr) == sizeof(val);
}

#define J(x)	((uintmax_t)(x))

__attribute__((format(printf, 3, 4)))
static void reply(struct answer *a, const char *name, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	snprintf(a->name, sizeof(a->name), "%s", name);
	vsnprintf(a->values, sizeof(a->values), format, args);
	va_end(args);
}

static uint64_t get(uint32_t msr)
{
	uint64_t val;

	if (rdmsr(msr, &val))
		return val;
	if (!current || errno != EIO)
		die(TROUBLE, "CPU %d: RDMSR of %#x: %s", cpu, msr, strerror(errno));
	reply(current, "faults", "RDMSR of %#x", msr);
	longjmp(faulted, 1);
}

static void set(uint32_t msr, uint64_t val)
{
	if (wrmsr(msr, val))
		return;
	if (!current || errno != EIO)
		die(TROUBLE, "CPU %d: WRMSR of %#jx to %#x: %s", cpu, J(val), msr, strerror(errno));
	reply(current, "faults", "WRMSR of %#jx to %#x", J(val), msr);
	longjmp(faulted, 1);
}

/* Leaves what belongs to other counters as it is. */
static void set_bits(uint32_t msr, uint64_t mask, uint64_t val)
{
	uint64_t now = get(msr);

	if ((now & mask) != val)
		set(msr, (now & ~mask) | val);
}

static uint64_t fixed3_of(uint64_t fixed_ctr_ctrl)
{
	return fixed_ctr_ctrl >> FIXED3_SHIFT & FIXED3_ALL;
}

__attribute__((noreturn))
static void die_in_use(void)
{
	die(IN_USE, "somebody uses fixed counter 3 of CPU %d: stop profilers, or name another by --cpu",
	    cpu);
}

/*
 * perf sets GLOBAL_CTRL as it likes at each PMI, e.g. of the NMI watchdog, and all of it
 * when an event comes or goes. That matters while SLOTS is started by its own bits. An
 * event that uses SLOTS sets those. Returns FIXED_CTR_CTRL.
 */
static uint64_t look_for_others(void)
{
	uint64_t ctrl, now;

	/* What is offline, or not allowed to this task any more, it has left. */
	disturbed |= sched_getcpu() != cpu ||
		     (fixed3_set && (get(MSR_GLOBAL_CTRL) & BOTH) != global_set);
	ctrl = get(MSR_FIXED_CTR_CTRL);
	now = fixed3_of(ctrl);
	if (now != fixed3_set && now & FIXED3_RINGS)
		die_in_use();
	disturbed |= now != fixed3_set;
	return ctrl;
}

/* Right after having looked, as there is no way to set these bits alone. */
static void set_fixed3(uint64_t bits)
{
	uint64_t ctrl = look_for_others();

	if (fixed3_of(ctrl) != bits)
		set(MSR_FIXED_CTR_CTRL, (ctrl & ~(FIXED3_ALL << FIXED3_SHIFT)) | bits << FIXED3_SHIFT);
	fixed3_set = bits;
}

/* GLOBAL_CTRL starts and stops SLOTS and metrics, by one write. */
static void enable(uint64_t global, uint64_t bits)
{
	set_fixed3(bits);
	global_set = global;
	set_bits(MSR_GLOBAL_CTRL, BOTH, global);
}

static void disable(void)
{
	look_for_others();
	global_set = 0;
	set_bits(MSR_GLOBAL_CTRL, BOTH, 0);
	set_fixed3(0);
	shared->wants_pmi = false;
}

/* What perf has done so far doesn't matter, unless it uses SLOTS. */
static void begin(void)
{
	disable();
	disturbed = false;
}

/* 255 in each metric. */
static uint64_t all_ones(void)
{
	return nr_metrics > NR_LEVEL1 ? ~0ull : LEVEL1;
}

/* In that order, as software has to. */
static void load(uint64_t slots, uint64_t metrics)
{
	look_for_others();
	set(MSR_FIXED_CTR3, slots);
	set(MSR_PERF_METRICS, metrics & all_ones());
}

/* Something of all metrics. The buffer is volatile for the branches to be ones. */
__attribute__((noinline))
static void work(unsigned int iterations)
{
	static volatile uint32_t buffer[4096];
	static uint32_t x = 1;

	while (iterations--) {
		x = x * 1664525 + 1013904223;
		if (x & BIT(16))
			buffer[x >> 20] = x;
		else
			x += buffer[x >> 20];
	}
}

static void count(uint64_t global, unsigned int iterations)
{
	enable(global, FIXED3_RINGS);
	work(iterations);
	disable();
}

static unsigned int metric(uint64_t val, unsigned int m)
{
	return val >> 8 * m & 0xff;
}

/* The mean of four reads, as two may differ (H9). */
static uint64_t read_metrics(void)
{
	unsigned int sum[8] = { 0 };
	uint64_t val = 0;

	for (unsigned int i = 0; i < 4; i++) {
		uint64_t read = get(MSR_PERF_METRICS);

		for (unsigned int m = 0; m < 8; m++)
			sum[m] += metric(read, m);
	}
	for (unsigned int m = 0; m < 8; m++)
		val |= (uint64_t)((sum[m] + 2) / 4) << 8 * m;
	return val;
}

static bool near(uint64_t a, uint64_t b, int most)
{
	for (unsigned int m = 0; m < nr_metrics; m++)
		if (abs((int)metric(a, m) - (int)metric(b, m)) > most)
			return false;
	return true;
}

/* Each metric times a fraction. */
static uint64_t scaled(uint64_t val, uint64_t by, uint64_t of)
{
	uint64_t ret = 0;

	for (unsigned int m = 0; m < nr_metrics; m++)
		ret |= (uint64_t)((double)metric(val, m) * by / of + 0.5) << 8 * m;
	return ret;
}

static unsigned int level1_sum(uint64_t val)
{
	unsigned int sum = 0;

	for (unsigned int m = 0; m < NR_LEVEL1; m++)
		sum += metric(val, m);
	return sum;
}

static bool sums_up(uint64_t val)
{
	return abs((int)level1_sum(val) - 255) <= 8;
}

static void ask_slots_alone(struct answer *a)
{
	uint64_t zero, before, doubled, after0;
	const char *name;

	load(SOME_SLOTS, 0);
	zero = read_metrics();
	load(SOME_SLOTS, PATTERN);
	before = read_metrics();
	set(MSR_FIXED_CTR3, 2 * SOME_SLOTS);
	doubled = read_metrics();

	load(SOME_SLOTS, PATTERN);
	set(MSR_FIXED_CTR3, 0);
	set(MSR_FIXED_CTR3, SOME_SLOTS);
	after0 = read_metrics();

	if (near(doubled, before, 1))
		name = "slots-rescales";
	else if (near(doubled, zero, 1))
		name = "slots-clear-always";
	else if (!near(doubled, scaled(before, 1, 2), 2))
		name = "slots-undefined";
	else if (near(after0, before, 1))
		name = "kept";
	else if (near(after0, zero, 1))
		name = "slots-clears";
	else
		name = "slots-undefined";
	reply(a, name, "%#jx reads %#jx with twice the slots; %#jx if they were 0 meanwhile; 0 reads %#jx",
	      J(before), J(doubled), J(after0), J(zero));
}

static void ask_no_slots(struct answer *a)
{
	bool undefined = !strcmp(shared->answers[H1].name, "slots-undefined");
	uint64_t none, written, kept;
	const char *name;

	load(0, 0);
	none = read_metrics();
	load(0, PATTERN);
	written = read_metrics();
	load(SOME_SLOTS, PATTERN);
	read_metrics();
	set(MSR_FIXED_CTR3, 0);
	kept = read_metrics();

	/* What was kept tells nothing if a write of SLOTS alone makes it undefined. */
	if (!none && !written)
		name = !kept || undefined ? "zero" : "zero-unless-counted";
	else if (!none && near(written, PATTERN, 1))
		name = near(kept, PATTERN, 1) || undefined ? "metrics-kept" : "kept-unless-counted";
	else if (none == all_ones() && written == all_ones())
		name = kept == all_ones() || undefined ? "metrics-ones" : "ones-unless-counted";
	else
		name = "metrics-undefined";
	reply(a, name, "written 0 reads %#jx; written %#jx reads %#jx, and %#jx if the slots became 0 later",
	      J(none), J(PATTERN), J(written), J(kept));
}

/* Tells how many metrics there are, so it is asked first. */
static void ask_upper_half(struct answer *a)
{
	bool taken, there;

	set(MSR_FIXED_CTR3, SOME_SLOTS);
	taken = wrmsr(MSR_PERF_METRICS, PATTERN8);
	there = taken && read_metrics() & ~LEVEL1;
	nr_metrics = there ? 8 : NR_LEVEL1;
	reply(a, there ? "no-question" : taken ? "upper-ignored" : "faults", "%s",
	      there ? "the CPU has level 2 there" : taken ? "taken, they read 0" : "WRMSR fails");
}

static void ask_written(struct answer *a)
{
	static const uint64_t all_slots[] = { 998790, 327251862534 };
	int least = 0, most = 0, differ = 0, values = 0;

	for (unsigned int s = 0; s < ARRAY_SIZE(all_slots); s++) {
		for (unsigned int v = 0; v < 256; v++) {
			unsigned int third = (255 - v) / 3;
			uint64_t val = v | third << 8 | third << 16 |
				       (uint64_t)(255 - v - 2 * third) << 24, read;

			/* Half of each is level 2. */
			val |= (val >> 1 & 0x7f7f7f7full) << 32;
			load(all_slots[s], val);
			read = read_metrics();
			for (unsigned int m = 0; m < nr_metrics; m++) {
				int by = (int)metric(read, m) - (int)metric(val, m);

				values++;
				differ += by != 0;
				least = by < least ? by : least;
				most = by > most ? by : most;
			}
		}
	}
	reply(a, !differ ? "same" : !most && least == -1 ? "writes-lower" : "writes-differ",
	      "%d of %d values differ, by %d to %d", differ, values, least, most);
}

static void ask_values(struct answer *a)
{
	/* Level 1 sums to 1020, 0, 256, 510, and 0 below level 2. What isn't taken faults. */
	static const uint64_t first[] = {
		~0ull, 0, 0x4040404040404040ull, 0x80807f7f80807f7full, ~LEVEL1,
	};
	unsigned int differ = 0;
	uint64_t val = 0;

	for (unsigned int i = 0; i < 64; i++) {
		val = i < ARRAY_SIZE(first) ? first[i] :
		      val * 6364136223846793005ull + 1442695040888963407ull;
		load(0, val);
		load(SOME_SLOTS, val);
		differ += !near(read_metrics(), val, 1);
	}
	reply(a, "any", "64 taken over 0 and %#jx slots, of which %u read otherwise", J(SOME_SLOTS), differ);
}

static void ask_sums(struct answer *a)
{
	unsigned int least = UINT32_MAX, most = 0;
	int excess = 0;
	uint64_t val = 0;

	for (unsigned int i = 1; i <= 16; i++) {
		unsigned int sum;

		load(0, 0);
		count(BOTH, WORK / 2 + WORK / 32 * i);
		val = read_metrics();
		sum = level1_sum(val);
		least = sum < least ? sum : least;
		most = sum > most ? sum : most;
		for (unsigned int m = NR_LEVEL1; m < nr_metrics; m++) {
			int by = (int)metric(val, m) - (int)metric(val, m - NR_LEVEL1);

			excess = by > excess ? by : excess;
		}
	}
	reply(a, least >= 255 && most <= 256 && !excess ? "exact" : "sums-loose",
	      "level 1 sums to %u to %u, level 2 exceeds it by %d at most; %#jx with %ju slots",
	      least, most, excess, J(val), J(get(MSR_FIXED_CTR3)));
}

/* Of perf; PMIs that are its own or that it takes for its own. */
static unsigned long count_pmis(void)
{
	char line[16384], *at, *end;
	unsigned long pmis = 0;
	int column = -1;
	FILE *f = fopen("/proc/interrupts", "r");

	if (!f || !fgets(line, sizeof(line), f))
		die(TROUBLE, "/proc/interrupts: %s", strerror(errno));
	/* CPUs that are online have a column each. */
	at = line;
	for (int i = 0; (at = strstr(at, "CPU")); i++) {
		at += strlen("CPU");
		if (atoi(at) == cpu)
			column = i;
	}
	while (column >= 0 && fgets(line, sizeof(line), f)) {
		at = strstr(line, "PMI:");
		if (!at)
			continue;
		at += strlen("PMI:");
		for (int i = 0; i <= column; i++, at = end)
			pmis = strtoul(at, &end, 10);
		fclose(f);
		return pmis;
	}
	die(TROUBLE, "/proc/interrupts has no line PMI for CPU %d", cpu);
}

/* So many that fewer tell that perf has begun again at 0. */
#define MANY_SLOTS		BIT(40)

struct overflow {
	uint64_t status;	/* what was set, and perf didn't reset */
	unsigned long pmis;	/* of all that there were */
	bool pmi;		/* one for what has overflowed */
	uint64_t rewritten;	/* PERF_METRICS, written alone and read */
};

/*
 * Lets SLOTS overflow, or the counts behind PERF_METRICS, or both. At a PMI perf starts
 * what GLOBAL_CTRL has started here, so that is nobody else.
 */
static struct overflow overflow(uint64_t slots, uint64_t metrics, uint64_t slots_alone, uint64_t pmi)
{
	struct overflow found;
	unsigned long before = count_pmis();

	load(slots, metrics);
	if (slots_alone)
		set(MSR_FIXED_CTR3, slots_alone);
	shared->wants_pmi = pmi;
	enable(BOTH, FIXED3_RINGS | pmi);
	work(WORK);
	disable();
	found.status = get(MSR_GLOBAL_STATUS) & BOTH;
	found.pmis = count_pmis() - before;
	found.pmi = found.pmis && !found.status && (!slots_alone || get(MSR_FIXED_CTR3) < slots_alone);
	set(MSR_GLOBAL_STATUS_RESET, found.status);
	set(MSR_PERF_METRICS, PATTERN);
	found.rewritten = read_metrics();
	return found;
}

static const char unknown_to_perf[] = "perf doesn't know this CPU, bit 48 might crash the kernel";

/* If not, it follows a NULL pointer at a PMI with bit 48. */
static bool perf_knows_topdown(void)
{
	return !access("/sys/bus/event_source/devices/cpu/events/topdown-retiring", F_OK) ||
	       !access("/sys/bus/event_source/devices/cpu_core/events/topdown-retiring", F_OK);
}

static void ask_overflow(struct answer *a)
{
	struct overflow slots, unasked, asked = { 0 };
	bool alone, undefined;
	const char *name;

	name = !may_overflow ? "as it causes PMIs: --overflow" :
	       guard < 0 ? "perf gives no event, without which it ignores PMIs" :
	       !perf_knows_topdown() ? unknown_to_perf : NULL;
	if (name) {
		reply(a, "not-asked", "%s", name);
		return;
	}
	/* SLOTS doesn't overflow if it is made less while the counts stay (H1). */
	unasked = overflow(slots_max, ~0ull, MANY_SLOTS, 0);
	alone = unasked.pmi || unasked.status & METRICS;
	slots = overflow(slots_max, 0, 0, 0);
	if (alone)
		asked = overflow(slots_max, ~0ull, MANY_SLOTS, FIXED3_PMI);
	else
		unasked = overflow(slots_max, ~0ull, 0, 0);
	/* Profilers have PMIs, too. */
	disturbed |= overflow(0, 0, 0, 0).pmis;

	/* Undefined until both are written; but SLOTS that overflows may cause that, too (H8). */
	undefined = !near(unasked.rewritten, PATTERN, 1) &&
		    (alone || near(slots.rewritten, PATTERN, 1));
	if (unasked.pmi)
		name = "overflow-pmi";
	else if (!(unasked.status & METRICS))
		name = "not-reached";
	else if (undefined)
		name = "overflow-undefined";
	else if (!alone)
		/* The PMI that SLOTS asks for would be its own. */
		name = "cannot-tell";
	else if (!asked.pmi)
		name = "no-pmi";
	else
		name = "if-asked";
	reply(a, name, "GLOBAL_STATUS %#jx %s (H1 %s, H4 %s), %lu PMIs, with PMI of SLOTS %s%lu; "
	      "%#jx, written alone then, reads %#jx; if SLOTS alone overflows %#jx",
	      J(unasked.status), alone ? "with metrics alone" : "with SLOTS, as metrics alone don't overflow",
	      shared->answers[H1].name, shared->answers[H4].name, unasked.pmis,
	      alone ? "" : "not asked, ", asked.pmis, J(PATTERN), J(unasked.rewritten),
	      J(slots.rewritten));
}

/* As KVM loads the status of a guest. A PMI of another counter may find it, for perf to see. */
static void ask_status_set(struct answer *a)
{
	uint64_t status;

	if (!perf_knows_topdown()) {
		reply(a, "not-asked", "%s", unknown_to_perf);
		return;
	}
	set(MSR_GLOBAL_STATUS_SET, METRICS);
	status = get(MSR_GLOBAL_STATUS) & METRICS;
	set(MSR_GLOBAL_STATUS_RESET, METRICS);
	reply(a, status ? "sets" : "ignored", "GLOBAL_STATUS %#jx, then %#jx", J(status),
	      J(get(MSR_GLOBAL_STATUS) & METRICS));
}

/* What became of PATTERN and slots with one of the two bits set. */
static const char *half(uint64_t global, uint64_t slots, uint64_t *read)
{
	uint64_t now, rewritten;

	load(slots, PATTERN);
	count(global, WORK);
	*read = read_metrics();
	now = get(MSR_FIXED_CTR3);
	set(MSR_PERF_METRICS, PATTERN);
	rewritten = read_metrics();

	if (!near(rewritten, PATTERN, 1))
		return "half-undefined";
	if (near(*read, scaled(PATTERN, slots, now), 2))
		return "stops";
	if (global == SLOTS && near(*read, PATTERN, 1))
		return "latched";
	/* Up to all slots count, or as many as make a quarter, more or less, in work(). */
	if (global == SLOTS ? sums_up(*read) :
	    level1_sum(*read) > 255 + 20 && level1_sum(*read) < 255 + 150)
		return "half-counts";
	return "half-undefined";
}

static void ask_half(struct answer *a)
{
	const char *with_slots, *with_metrics;
	uint64_t slots, read_slots, read_metrics;

	load(0, 0);
	count(BOTH, WORK);
	slots = 4 * get(MSR_FIXED_CTR3);
	with_slots = half(SLOTS, slots / 16, &read_slots);
	with_metrics = half(METRICS, slots, &read_metrics);
	reply(a, with_slots, "%#jx reads %#jx when bit 35 was set (%s), %#jx when bit 48 was (%s)",
	      J(PATTERN), J(read_slots), with_slots, J(read_metrics), with_metrics);
	if (strcmp(with_slots, with_metrics))
		snprintf(a->name, sizeof(a->name), "%s/%s", with_slots, with_metrics);
}

static void ask_running(struct answer *a)
{
	uint64_t running, read, written, wrapped = 0;
	bool wraps = perf_knows_topdown();

	load(0, 0);
	enable(BOTH, FIXED3_RINGS);
	work(WORK);
	running = get(MSR_PERF_METRICS);
	disable();
	read = read_metrics();

	load(0, 0);
	enable(BOTH, FIXED3_RINGS);
	work(WORK);
	load(0, 0);
	/* So much that the two writes and what is between them don't matter. */
	work(5 * WORK);
	disable();
	written = read_metrics();

	/* Nothing asks for a PMI here. */
	if (wraps) {
		load(slots_max - 0xff, 0);
		count(BOTH, WORK);
		wrapped = read_metrics();
		set(MSR_GLOBAL_STATUS_RESET, get(MSR_GLOBAL_STATUS) & BOTH);
	}

	reply(a, sums_up(running) && sums_up(read) && sums_up(written) && (!wraps || sums_up(wrapped)) ?
	      "works" : "running-undefined",
	      "read by RDMSR %#jx, %#jx when stopped; written %#jx; %s %#jx", J(running), J(read),
	      J(written), wraps ? "SLOTS overflowed" : "overflow of SLOTS not tried", J(wrapped));
}

static void ask_reads(struct answer *a)
{
	unsigned int most = 0;
	uint64_t val[16];

	load(0, 0);
	count(BOTH, WORK);
	for (unsigned int i = 0; i < ARRAY_SIZE(val); i++)
		val[i] = get(MSR_PERF_METRICS);
	for (unsigned int i = 1; i < ARRAY_SIZE(val); i++) {
		for (unsigned int m = 0; m < nr_metrics; m++) {
			unsigned int by = abs((int)metric(val[i], m) - (int)metric(val[0], m));

			most = by > most ? by : most;
		}
	}
	reply(a, most ? "reads-differ" : "same", "%zu reads of %#jx differ by %u at most",
	      ARRAY_SIZE(val), J(val[0]), most);
}

static void ask_capability(struct answer *a)
{
	reply(a, capabilities & CAP_PERF_METRICS ? "set" : "clear",
	      "PERF_CAPABILITIES %#jx, and PERF_METRICS can be read", J(capabilities));
}

/* Allowed to a task that has mapped an event of perf's, as the system is set up. */
static bool may_rdpmc(void)
{
	struct perf_event_mmap_page *page;

	if (guard < 0)
		return false;
	page = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED, guard, 0);
	return page != MAP_FAILED && page->cap_user_rdpmc;
}

static void ask_rdpmc(struct answer *a)
{
	uint64_t slots, read;
	uint32_t eax, edx;

	if (!(capabilities & CAP_RDPMC_CLEARS)) {
		reply(a, "absent", "PERF_CAPABILITIES %#jx", J(capabilities));
		return;
	}
	if (!may_rdpmc()) {
		reply(a, "not-asked",
		      "as a task may not use RDPMC: echo 1 >/sys/bus/event_source/devices/cpu*/rdpmc");
		return;
	}
	load(SOME_SLOTS, PATTERN);
	enable(0, FIXED3_CLEAR);
	asm volatile("rdpmc" : "=a"(eax), "=d"(edx) : "c"(RDPMC_METRICS));
	disable();
	read = (uint64_t)edx << 32 | eax;
	slots = get(MSR_FIXED_CTR3);
	/* It may be disabled for user space, where it reads 0 then. */
	reply(a, !slots ? "rdpmc-clears" : near(read, PATTERN, 1) ? "announced" : "cannot-tell",
	      "RDPMC of %#jx reads %#jx, with bit 14 set; then there are %#jx slots, PERF_METRICS reads %#jx",
	      J(PATTERN), J(read), J(slots), J(read_metrics()));
}

static int perf_event(struct perf_event_attr *attr, pid_t pid, int on)
{
	attr->size = sizeof(*attr);
	attr->disabled = 1;
	attr->exclude_hv = 1;
	attr->exclude_guest = 1;
	return syscall(SYS_perf_event_open, attr, pid, on, -1, PERF_FLAG_FD_CLOEXEC);
}

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* With a counter of perf's: what instructions it has at a PMI, after so many of them. */
static void ask_pmi(struct answer *a)
{
	struct perf_event_attr attr = {
		.config = PERF_COUNT_HW_INSTRUCTIONS,
		.sample_period = WORK,
		.sample_type = PERF_SAMPLE_READ,
		.exclude_kernel = 1,
	};
	size_t page = sysconf(_SC_PAGESIZE);
	struct perf_event_mmap_page *ring;
	struct perf_event_header *header;
	int late[64], n = 0, fd;
	const char *data;

	fd = perf_event(&attr, 0, -1);
	ring = fd < 0 ? MAP_FAILED :
	       mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ring == MAP_FAILED) {
		reply(a, "not-asked", "as perf counts no instructions: %s", strerror(errno));
		return;
	}
	ioctl(fd, PERF_EVENT_IOC_ENABLE);
	work(2 * WORK);
	ioctl(fd, PERF_EVENT_IOC_DISABLE);

	/* It doesn't wrap. */
	data = (char *)ring + page;
	for (uint64_t at = 0; at < ring->data_head; at += header->size) {
		header = (struct perf_event_header *)(data + at);
		if (header->type == PERF_RECORD_SAMPLE && n < (int)ARRAY_SIZE(late))
			late[n++] = *(uint64_t *)(header + 1) % WORK;
	}
	munmap(ring, 2 * page);
	close(fd);
	if (!n) {
		reply(a, "not-asked", "as perf took no samples");
		return;
	}
	qsort(late, n, sizeof(*late), compare);
	reply(a, late[n / 2] > 100 ? "pmi-late" : "prompt",
	      "%d to %d instructions late, the median of %d is %d", late[0], late[n - 1], n,
	      late[n / 2]);
}

static const struct {
	const char *question, *likely;
	void (*ask)(struct answer *a);
} questions[NR_QUESTIONS] = {
	[H1] = { "SLOTS written alone", "kept", ask_slots_alone },
	[H2] = { "PERF_METRICS over 0 slots", "zero", ask_no_slots },
	[H3] = { "bits of level 2 without level 2", "faults", ask_upper_half },
	[H4] = { "PERF_METRICS written, then read", "same", ask_written },
	[H5] = { "sums of what was counted", "exact", ask_sums },
	[H6] = { "overflow of a metric's count", "if-asked", ask_overflow },
	[H7] = { "bits 35 and 48, one without the other", "stops", ask_half },
	[H8] = { "use while enabled", "works", ask_running },
	[H9] = { "PERF_METRICS read again", "same", ask_reads },
	[H10] = { "bit 15", "set", ask_capability },
	[H11] = { "RDPMC that clears", "absent", ask_rdpmc },
	[H12] = { "arrival of a PMI", "prompt", ask_pmi },
	[H13] = { "values of PERF_METRICS", "any", ask_values },
	[H14] = { "bit 48 of GLOBAL_STATUS_SET", "sets", ask_status_set },
};

/* False if somebody disturbed. */
static bool ask_once(enum id id, struct answer *a)
{
	current = a;
	if (!setjmp(faulted)) {
		begin();
		questions[id].ask(a);
		look_for_others();
	}
	current = NULL;
	return !disturbed;
}

/* Until two answers in a row are the same. */
static void ask(enum id id)
{
	struct answer now, before = { 0 };
	unsigned int disturbances = 0;

	for (unsigned int i = 0; i < 6; ) {
		/* Leaves the CPU to others. */
		usleep(1000);
		if (!ask_once(id, &now)) {
			if (++disturbances <= 20)
				continue;
			reply(&shared->answers[id], "cannot-tell", "disturbed by others");
			return;
		}
		if (!strcmp(now.name, before.name)) {
			shared->answers[id] = now;
			return;
		}
		before = now;
		i++;
	}
	reply(&shared->answers[id], "varies", "%s: %s", now.name, now.values);
}

static struct {
	uint64_t slots, metrics, fixed3, global;
} saved;

static void save(void)
{
	saved.slots = get(MSR_FIXED_CTR3);
	saved.metrics = read_metrics();
	saved.fixed3 = fixed3_of(get(MSR_FIXED_CTR_CTRL));
	saved.global = get(MSR_GLOBAL_CTRL) & BOTH;
}

/* perf always asks for PMIs. What it has begun to use it keeps. */
static bool perf_uses(uint64_t fixed3)
{
	return fixed3 & FIXED3_RINGS && fixed3 & FIXED3_PMI && !shared->wants_pmi;
}

/* Says later if that fails. */
static bool put_back(uint32_t msr, uint64_t mask, uint64_t val)
{
	size_t said = strlen(shared->errors);
	uint64_t now = 0;

	if (mask == ~0ull || rdmsr(msr, &now)) {
		if (mask != ~0ull && (now & mask) == val)
			return true;
		if (msr == MSR_FIXED_CTR_CTRL && perf_uses(fixed3_of(now)))
			return true;
		if (wrmsr(msr, (now & ~mask) | val))
			return true;
	}
	snprintf(shared->errors + said, sizeof(shared->errors) - said,
		 "error: CPU %d: %#jx could not be put back to %#x: %s\n", cpu, J(val), msr, strerror(errno));
	lost = true;
	return false;
}

static void restore(void)
{
	struct perf_event_attr slots = { .type = PERF_TYPE_RAW, .config = 0x400 };
	uint64_t now = 0, status = 0;
	int fd;

	rdmsr(MSR_FIXED_CTR_CTRL, &now);
	if (perf_uses(fixed3_of(now)))
		return;
	put_back(MSR_GLOBAL_CTRL, BOTH, 0);
	put_back(MSR_FIXED_CTR_CTRL, FIXED3_ALL << FIXED3_SHIFT, 0);
	shared->wants_pmi = false;
	/* There won't be PMIs any more. It makes perf write all of GLOBAL_CTRL. */
	close(guard);
	/*
	 * perf writes all of FIXED_CTR_CTRL as this comes and goes, also what may have got
	 * lost if it wrote that register just between a read and a write here.
	 */
	fd = perf_event(&slots, -1, cpu);
	ioctl(fd, PERF_EVENT_IOC_ENABLE);
	close(fd);
	put_back(MSR_FIXED_CTR3, ~0ull, saved.slots);
	if (!put_back(MSR_PERF_METRICS, ~0ull, saved.metrics))
		put_back(MSR_PERF_METRICS, ~0ull, 0);
	rdmsr(MSR_GLOBAL_STATUS, &status);
	put_back(MSR_GLOBAL_STATUS_RESET, ~0ull, status & BOTH);
	put_back(MSR_FIXED_CTR_CTRL, FIXED3_ALL << FIXED3_SHIFT, saved.fixed3 << FIXED3_SHIFT);
	put_back(MSR_GLOBAL_CTRL, BOTH, saved.global);
}

__attribute__((noreturn))
static void be_child(pid_t parent)
{
	/* It stays in the buffer until the parent prints it, after the answers. */
	setvbuf(stderr, shared->errors, _IOFBF, sizeof(shared->errors) - 1);
	ask(H3);
	for (unsigned int id = 0; id < NR_QUESTIONS; id++)
		if (id != H3)
			ask(id);
	/* What has killed it doesn't let it restore anything. */
	if (getppid() != parent)
		restore();
	_exit(ANSWERED);
}

/* Refuses CPUs that can't be asked. Runs on that CPU. */
static void check_cpu(bool vm_is_fine)
{
	unsigned int eax, ebx, ecx, edx, features;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die(NO_ACCESS, "cannot run on CPU %d: %s", cpu, strerror(errno));

	__cpuid(1, eax, ebx, features, edx);
	if (features & BIT(31) && !vm_is_fine)
		die(IN_VM, "this is a VM, where the hypervisor answers: ask on bare metal (or --vm)");
	if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx & BIT(15)) {
		__cpuid_count(0x1a, 0, eax, ebx, ecx, edx);
		if (eax >> 24 != 0x40)
			die(NO_METRICS, "CPU %d is an E-core, without PERF_METRICS: name one of /sys/devices/cpu_core/cpus by --cpu", cpu);
	}
	/* Also where bit 15 of PERF_CAPABILITIES is clear though PERF_METRICS exists (H10). */
	if (__get_cpuid_max(0, &ebx) < 0xa || ebx != signature_INTEL_ebx)
		die(NO_METRICS, "this is no Intel CPU with a PMU, so there is no PERF_METRICS");
	__cpuid_count(0xa, 0, eax, ebx, ecx, edx);
	if (!((edx & 0x1f) > 3 || ((eax & 0xff) >= 5 && ecx & BIT(3))))
		die(NO_METRICS, "this CPU has no fixed counter 3, so there is no PERF_METRICS");
	slots_max = BIT(edx >> 5 & 0xff) - 1;
	capabilities = features & BIT(15);
}

static char first_of_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char c;

	return read(fd, &c, sizeof(c)) == sizeof(c) ? c : 0;
}

/* The kernel is tainted by a write of an MSR. */
static bool panics_on_taint(void)
{
	char line[4096], *at = NULL;
	FILE *f = fopen("/proc/cmdline", "r");

	if (f && fgets(line, sizeof(line), f))
		at = strstr(line, "panic_on_taint=");
	return at && strtoul(at + strlen("panic_on_taint="), NULL, 16) & BIT(2);
}

static void check_access(void)
{
	char path[32];
	uint64_t val;

	snprintf(path, sizeof(path), "/dev/cpu/%d/msr", cpu);
	msr_fd = open(path, O_RDWR | O_CLOEXEC);
	if (msr_fd < 0)
		die(NO_ACCESS, "%s: %s: %s", path, strerror(errno),
		    errno == ENOENT ? "modprobe msr" : errno == ENXIO ? "there is no such CPU" :
		    "it needs root");
	if (flock(msr_fd, LOCK_EX | LOCK_NB))
		die(IN_USE, "another probe asks CPU %d: wait for it", cpu);
	if (first_of_file("/sys/module/kvm_intel/parameters/enable_mediated_pmu") == 'Y' &&
	    first_of_file("/sys/module/kvm_intel/refcnt") > '0')
		die(IN_USE, "KVM may have counts of a VM in the registers: end all VMs");
	if (capabilities && !rdmsr(MSR_PERF_CAPABILITIES, &capabilities))
		die(NO_ACCESS, "%s cannot be read: %s", path, strerror(errno));
	if (!rdmsr(MSR_PERF_METRICS, &val))
		die(NO_METRICS, "this CPU has fixed counter 3, but no PERF_METRICS");
	if (panics_on_taint())
		die(NO_ACCESS, "the kernel would panic: panic_on_taint has bit 2, and a write of an MSR taints it (S)");
	/* Resets nothing. */
	if (!wrmsr(MSR_GLOBAL_STATUS_RESET, 0))
		die(NO_ACCESS, "%s cannot be written: %s: modprobe msr; echo on >/sys/module/msr/parameters/allow_writes; "
		    "if that is no help, the kernel is locked down: switch off Secure Boot",
		    path, strerror(errno));
	/* perf lets events take turns every few milliseconds. */
	for (unsigned int i = 0; i < 200; i++) {
		if (fixed3_of(get(MSR_FIXED_CTR_CTRL)) & FIXED3_RINGS)
			die_in_use();
		val = get(MSR_GLOBAL_STATUS) & BOTH;
		if (val)
			die(IN_USE, "GLOBAL_STATUS of CPU %d has bit %d set, by whom is unknown: wrmsr -p %d %#x %#jx resets it",
			    cpu, val & SLOTS ? 35 : 48, cpu, MSR_GLOBAL_STATUS_RESET, J(val));
		usleep(1000);
	}
}

/* Returns the child's status, or the signal that ended the waiting, negative. */
static int wait_for_child(pid_t child)
{
	static const int signals[] = { SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	int signal = 0, status;
	sigset_t set;

	sigemptyset(&set);
	for (unsigned int i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	while (!waitpid(child, &status, WNOHANG)) {
		signal = sigwaitinfo(&set, NULL);
		if (signal > 0 && signal != SIGCHLD) {
			kill(child, SIGKILL);
			waitpid(child, &status, 0);
			return -signal;
		}
	}
	if (WIFSIGNALED(status)) {
		fprintf(stderr, "error: what asks was ended by signal %d\n", WTERMSIG(status));
		return TROUBLE;
	}
	return WEXITSTATUS(status);
}

static const char *brand(void)
{
	static uint32_t text[13];
	char *at = (char *)text;

	for (unsigned int i = 0; i < 3; i++)
		__cpuid(0x80000002 + i, text[4 * i], text[4 * i + 1], text[4 * i + 2], text[4 * i + 3]);
	while (*at == ' ')
		at++;
	for (char *c = at; *c; c++)
		if (*c == '"' || *c == '\\')
			*c = '?';
	return at;
}

static void print(bool json)
{
	unsigned int eax, ebx, ecx, edx, a[4];
	char microcode[32] = "unknown", line[256];
	const char *upper = shared->answers[H3].name, *comma = "";
	FILE *f = fopen("/proc/cpuinfo", "r");
	struct utsname kernel;

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "microcode : %31s", microcode) != 1)
		;
	uname(&kernel);
	__cpuid(1, eax, ebx, ecx, edx);
	__cpuid_count(0xa, 0, a[0], a[1], a[2], a[3]);
	printf(json ? "{\n  \"cpu\": \"%s\",\n  \"signature\": \"%#x\",\n  \"microcode\": \"%s\",\n  \"kernel\": \"%s\",\n"
		      "  \"on\": %d,\n  \"cpuid_0xa\": \"%#x %#x %#x %#x\",\n  \"perf_capabilities\": \"%#jx\",\n"
		      "  \"metrics\": %s,\n  \"answers\": [\n" :
		      "%s, signature %#x, microcode %s, Linux %s, CPU %d\n"
		      "CPUID.0xA %#x %#x %#x %#x, PERF_CAPABILITIES %#jx, %s metrics\n"
		      "    answer              default   question: what was seen\n",
	       brand(), eax, microcode, kernel.release, cpu, a[0], a[1], a[2], a[3], J(capabilities),
	       !strcmp(upper, "no-question") ? "8" :
	       !strcmp(upper, "upper-ignored") || !strcmp(upper, "faults") ? "4" : json ? "null" : "?");
	for (unsigned int id = 0; id < NR_QUESTIONS; id++) {
		const struct answer *answer = &shared->answers[id];

		if (!answer->name[0])
			continue;
		printf(json ? "%6$s    {\"id\": \"H%1$u\", \"question\": \"%2$s\", \"answer\": \"%3$s\", \"default\": \"%4$s\", \"values\": \"%5$s\"}" :
			      "H%1$-3u%3$-19s %4$-9s %2$s: %5$s\n",
		       id + 1, questions[id].question, answer->name, questions[id].likely, answer->values, comma);
		comma = ",\n";
	}
	if (json)
		printf("\n  ]\n}\n");
	fflush(stdout);
}

int main(int argc, char *argv[])
{
	static const struct option options[] = {
		{ "cpu", required_argument, NULL, 'c' },
		{ "json", no_argument, NULL, 'j' },
		{ "overflow", no_argument, NULL, 'o' },
		{ "vm", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct perf_event_attr attr = { .config = PERF_COUNT_HW_CPU_CYCLES };
	struct sched_param first = { .sched_priority = 1 };
	pid_t child, parent = getpid();
	bool json = false, vm = false;
	sigset_t all, before;
	int option, result;
	char *end;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			cpu = strtol(optarg, &end, 10);
			if (*end || end == optarg || cpu < 0 || cpu >= CPU_SETSIZE)
				die(TROUBLE, "--cpu %s is no number of a CPU", optarg);
			break;
		case 'j':
			json = true;
			break;
		case 'o':
			may_overflow = true;
			break;
		case 'v':
			vm = true;
			break;
		case 'h':
			fputs(help, stdout);
			return ANSWERED;
		default:
			die(TROUBLE, "see --help");
		}
	}
	if (optind < argc)
		die(TROUBLE, "what is %s? see --help", argv[optind]);

	check_cpu(vm);
	check_access();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die(TROUBLE, "no memory: %s", strerror(errno));
	/* So that no other task's events come and go meanwhile; else this is noticed. */
	if (sched_setscheduler(0, SCHED_FIFO, &first))
		fprintf(stderr, "note: other tasks may disturb: sched_setscheduler: %s\n", strerror(errno));
	/* Before perf writes all of GLOBAL_CTRL, as it does for an event. */
	save();
	/* perf ignores PMIs if it has no event on any CPU, as those of unknown reason. */
	guard = perf_event(&attr, -1, cpu);

	signal(SIGCHLD, SIG_DFL);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	child = fork();
	if (!child)
		be_child(parent);
	result = child < 0 ? TROUBLE : wait_for_child(child);
	restore();
	sigprocmask(SIG_SETMASK, &before, NULL);

	print(json);
	fputs(shared->errors, stderr);
	if (result < 0) {
		if (!lost)
			fprintf(stderr, "interrupted, what was in the registers is there again\n");
		signal(-result, SIG_DFL);
		raise(-result);
	}
	if (ferror(stdout))
		die(TROUBLE, "what was answered cannot be written, is the disk full?");
	return result == ANSWERED && lost ? TROUBLE : result;
}
