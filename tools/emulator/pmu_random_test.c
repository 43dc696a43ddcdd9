// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Random test of the PMU model against a reference which is slow and obvious.
 *
 *	pmu_random_test [SEED [OPERATIONS]]
 *
 * The reference knows the documents named in pmu.h and the cost model and
 * conventions of README.  It does one step at a time, cycle by cycle and slot
 * by slot, and has nothing in common with the model but pmu.h.  All registers
 * are compared after every operation.
 */
#include "pmu.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(n)		(1ull << (n))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define WIDTH		48
#define NR_GP		8
#define NR_FIXED	7
#define NR_METRICS	8

#define PERFCTR(i)	(0xc1 + (i))
#define MPERF		0xe7
#define APERF		0xe8
#define EVTSEL(i)	(0x186 + (i))
#define MISC_ENABLE	0x1a0
#define DEBUGCTL	0x1d9
#define FIXED(i)	(0x309 + (i))
#define METRICS		0x329
#define CAPABILITIES	0x345
#define FIXED_CTRL	0x38d
#define STATUS		0x38e
#define GLOBAL_CTRL	0x38f
#define STATUS_RESET	0x390
#define STATUS_SET	0x391
#define INUSE		0x392
#define PEBS_ENABLE	0x3f1
#define PMC(i)		(0x4c1 + (i))
#define NR_EXTRA	6
#define V6_PMC(i)	(0x1900 + 4 * (i))
#define V6_EVTSEL(i)	(0x1901 + 4 * (i))
#define V6_FIXED(i)	(0x1980 + 4 * (i))

/* ---- the reference ---- */

static const struct kind {
	const char *name;
	unsigned int version;
	bool fixed[NR_FIXED];
	unsigned int metrics;		/* with them come SLOTS and its event */
	bool any;
	uint64_t capabilities;
	uint64_t extra[NR_EXTRA];	/* bits of registers that say more of an event */
} kinds[] = {
	{ "spr",   5, { 1, 1, 1, 1, 0, 0, 0 }, 8, false, BIT(12) | BIT(13) | BIT(15),
	  { 0x3fffffffff, 0x3fffffffff, 0xffff, 0x7fff1f } },
	{ "icl",   5, { 1, 1, 1, 1, 0, 0, 0 }, 4, false, BIT(12) | BIT(13) | BIT(15),
	  { 0x3fffffbfff, 0x3fffffbfff, 0xffff, 0x7fff17 } },
	{ "rpl",   5, { 1, 1, 1, 1, 0, 0, 0 }, 8, false, BIT(13),
	  { 0x3fffffffff, 0x3fffffffff, 0xffff, 0x7fff1f } },
	{ "skx",   4, { 1, 1, 1, 0, 0, 0, 0 }, 0, true,	 BIT(12) | BIT(13),
	  { 0x3fffff8fff, 0x3fffff8fff, 0xffff, 0x7fff17 } },
	{ "srf",   6, { 1, 1, 1, 0, 0, 0, 0 }, 0, false, BIT(12) | BIT(13),
	  { 0x800ff3ffffffffff, 0xff3ffffffffff, 0xffff, 0, UINT64_MAX, UINT64_MAX } },
	{ "cwf",   6, { 1, 1, 1, 0, 1, 1, 1 }, 0, false, BIT(12) | BIT(13),
	  { 0x800ff3ffffffffff, 0xff3ffffffffff, 0xffff, 0, UINT64_MAX, UINT64_MAX } },
};

static const uint32_t extra_msr[NR_EXTRA] = { 0x1a6, 0x1a7, 0x3f6, 0x3f7, 0x1328, 0x1329 };

struct reference {
	const struct kind *kind;
	uint64_t evtsel[NR_GP], gp[NR_GP], fixed[NR_FIXED];
	uint64_t metric[NR_METRICS];	/* 255ths of slots */
	uint64_t fixed_ctrl, global_ctrl, status, debugctl, misc_enable, extra[NR_EXTRA];
	uint64_t mperf, aperf;
	bool user, pmi;
	unsigned int pmis;		/* raised so far */
	bool smm_froze;
	uint64_t smm_global_ctrl, smm_debugctl;	/* then, what they were before */

	/* within a step */
	bool stopped;			/* frozen when it began */
	bool tick;			/* of the reference clock, not yet placed */
};

enum { RETIRED, CONTINUED, ABORTED, VM_ENTRY };

struct step {
	unsigned int end;
	unsigned int taken, not_taken, load, store, rep, flush;
};

/* What happens once in a cycle. */
#define INSTRUCTION	0x01
#define BRANCH		0x02
#define MISS		0x04
#define LOAD		0x08
#define STORE		0x10
#define LLC		0x20

static struct reference ref;

static bool bit(uint64_t val, unsigned int n)
{
	return val >> n & 1;
}

static void ref_reset(void)
{
	const struct kind *kind = ref.kind;

	memset(&ref, 0, sizeof(ref));
	ref.kind = kind;
	ref.global_ctrl = 0xff;
	ref.misc_enable = BIT(0) | BIT(7) | BIT(11) | BIT(12);
}

static bool gp_enabled(unsigned int i)
{
	return bit(ref.evtsel[i], 22) && bit(ref.global_ctrl, i);
}

static bool gp_counts(unsigned int i)
{
	return gp_enabled(i) && bit(ref.evtsel[i], ref.user ? 16 : 17);
}

static bool fixed_counts(unsigned int i)
{
	return ref.kind->fixed[i] && bit(ref.global_ctrl, 32 + i) &&
	       bit(ref.fixed_ctrl, 4 * i + ref.user);
}

/* Whether some counter counts, be it in the other ring. */
static bool anything_counts(void)
{
	if (bit(ref.status, 59))
		return false;
	for (unsigned int i = 0; i < NR_GP; i++)
		if (gp_enabled(i) && (bit(ref.evtsel[i], 16) || bit(ref.evtsel[i], 17)))
			return true;
	for (unsigned int i = 0; i < NR_FIXED; i++)
		if (bit(ref.global_ctrl, 32 + i) && ref.fixed_ctrl >> 4 * i & 3)
			return true;
	return false;
}

static void overflow(unsigned int status_bit, bool interrupt)
{
	ref.status |= BIT(status_bit);
	if (!interrupt)
		return;
	ref.pmi = true;
	ref.pmis++;
	if (bit(ref.debugctl, 11))
		ref.status |= BIT(58);
	if (bit(ref.debugctl, 12))
		ref.status |= BIT(59);
}

static void bump(uint64_t *counter, unsigned int times, unsigned int status_bit, bool interrupt)
{
	while (times--) {
		if (++*counter < BIT(WIDTH))
			continue;
		*counter = 0;
		overflow(status_bit, interrupt);
	}
}

/* Slots of a cycle that have one of two letters. */
static unsigned int slots_of(const char *slots, char part, char rest)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < 6; i++)
		n += slots[i] == part || slots[i] == rest;
	return n;
}

/*
 * Whether an event counts the slots of a kind, and how many there are in a cycle.
 * Filters make it count nothing.
 */
static bool raw_slots(uint64_t sel, const char *slots, unsigned int *n)
{
	static const struct {
		uint16_t event;
		char part, rest;
		unsigned int metrics;
	} raw[] = {
		{ 0x02c2, 'r', 'R', 4 }, { 0x019c, 'f', 'F', 4 }, { 0x02a4, 'b', 'B', 4 },
		{ 0x04a4, 's', 'S', 8 }, { 0x08a4, 'S', 'S', 8 }, { 0x10a4, 'B', 'B', 8 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(raw); i++) {
		if (raw[i].event != (sel & 0xffff) || ref.kind->metrics < raw[i].metrics)
			continue;
		*n = sel >> 24 & 0xff || bit(sel, 18) ? 0 : slots_of(slots, raw[i].part, raw[i].rest);
		return true;
	}
	return false;
}

/*
 * What a general-purpose counter sees of other events in a cycle; @level: the
 * event is there all the time.
 */
static unsigned int occurrences(uint64_t sel, unsigned int what, bool tick, bool *level)
{
	*level = false;
	if (sel >> 40)			/* UMASK2: another event */
		return 0;
	switch (sel & 0xffff) {
	case 0x00c0:
		return what & INSTRUCTION ? 1 : 0;
	case 0x00c4:
		return what & BRANCH ? 1 : 0;
	case 0x00c5:
		return what & MISS ? 1 : 0;
	case 0x4f2e:
	case 0x412e:
		return what & LLC ? 1 : 0;
	case 0x81d0:
		return what & LOAD ? 1 : 0;
	case 0x82d0:
		return what & STORE ? 1 : 0;
	case 0x83d0:
		return what & (LOAD | STORE) ? 1 : 0;
	case 0x003c:
		*level = true;
		return 1;
	case 0x013c:
		*level = true;
		return tick;
	case 0x01a4:
		*level = true;
		return ref.kind->metrics ? 6 : 0;
	default:
		return 0;
	}
}

static unsigned int gp_count(uint64_t sel, const char *slots, unsigned int what, bool tick)
{
	unsigned int cmask = sel >> 24 & 0xff;
	bool edge = bit(sel, 18), inv = bit(sel, 23), eq = bit(sel, 36), level, met;
	unsigned int n = occurrences(sel, what, tick, &level);

	if (raw_slots(sel, slots, &n))
		return n;
	met = cmask && eq ? n == cmask : n >= cmask;
	if (edge)
		return !level && n && met;
	if (!cmask)
		return n;
	return met != inv;
}

/*
 * One cycle: its six slots are r(etiring), s(peculation), f(rontend), b(ackend)
 * bound, in capitals if of the second level as well.
 */
static void cycle(const char *slots, unsigned int what)
{
	static const char letters[] = "rsfbRSFB";
	bool tick = ref.tick;

	ref.tick = false;
	ref.aperf++;
	ref.mperf += tick;
	if (ref.stopped)
		return;

	for (unsigned int i = 0; i < NR_GP; i++)
		if (gp_counts(i))
			bump(&ref.gp[i], gp_count(ref.evtsel[i], slots, what, tick), i,
			     bit(ref.evtsel[i], 20));

	for (unsigned int i = 0; i < NR_FIXED; i++) {
		const unsigned int n[NR_FIXED] = {
			!!(what & INSTRUCTION), 1, tick, 6,
			slots_of(slots, 's', 'S'), slots_of(slots, 'f', 'F'),
			slots_of(slots, 'r', 'R'),
		};

		if (fixed_counts(i))
			bump(&ref.fixed[i], n[i], 32 + i, bit(ref.fixed_ctrl, 4 * i + 3));
	}

	if (!fixed_counts(3) || !bit(ref.global_ctrl, 48))
		return;
	for (unsigned int m = 0; m < ref.kind->metrics; m++) {
		unsigned int n = slots_of(slots, letters[m], letters[m < 4 ? m + 4 : m]);

		while (n--) {
			ref.metric[m] += 255;
			if (ref.metric[m] < 255 * BIT(WIDTH))
				continue;
			ref.metric[m] -= 255 * BIT(WIDTH);
			overflow(48, bit(ref.fixed_ctrl, 15));
		}
	}
}

/* The cost model.  A freeze stops the counters from the next step on. */
static void ref_step(const struct step *s)
{
	ref.stopped = bit(ref.status, 59);
	ref.tick = true;
	if (s->end == RETIRED || s->end == VM_ENTRY)
		cycle("rrfbbb", INSTRUCTION);
	if (s->end == ABORTED || s->end == VM_ENTRY) {
		cycle("ssssss", 0);
		cycle("ssssss", 0);
		cycle("FFFFFF", 0);
	}
	for (unsigned int i = 0; i < s->rep; i++)
		cycle("RRRRfb", 0);
	for (unsigned int i = 0; i < s->taken; i++)
		cycle("FFFFff", BRANCH);
	for (unsigned int i = 0; i < s->not_taken; i++) {
		cycle("SSSSSS", BRANCH | MISS);
		cycle("SSSSSS", 0);
	}
	for (unsigned int i = 0; i < s->load; i++)
		cycle("BBBBBB", LOAD);
	for (unsigned int i = 0; i < s->store; i++)
		cycle("BBBBbb", STORE);
	for (unsigned int i = 0; i < s->flush; i++) {
		cycle("BBBBBB", LLC);
		for (unsigned int other = 1; other < 10; other++)
			cycle("BBBBBB", 0);
	}
}

/*
 * The greatest fraction that is not above, or the next one if no farther.  Then, if the
 * counts of level 1 sum to 255 or 256 fractions of 255, so do these: one fraction after
 * the other is moved where it errs least.
 */
static uint64_t ref_metrics(void)
{
	uint64_t slots = ref.fixed[3], val = 0, count = 0;
	int64_t fraction[NR_METRICS] = { 0 }, sum = 0;

	if (!slots)
		return 0;
	for (unsigned int m = 0; m < ref.kind->metrics; m++)
		while (fraction[m] < 255 && (2 * fraction[m] + 1) * slots <= 2 * ref.metric[m])
			fraction[m]++;

	for (unsigned int m = 0; m < 4; m++) {
		sum += fraction[m];
		count += ref.metric[m];
	}
	for (int64_t right = 255; right <= 256; right++) {
		if (2 * count < (2 * right - 1) * slots || 2 * count >= (2 * right + 1) * slots)
			continue;
		while (sum != right) {
			int by = sum < right ? 1 : -1;
			__int128 least = 0;
			int best = -1;

			for (int m = 0; m < 4; m++) {
				__int128 error = (__int128)(fraction[m] + by) * slots - ref.metric[m];

				if (fraction[m] + by < 0 || fraction[m] + by > 255)
					continue;
				error *= by;
				if (best < 0 || error < least) {
					least = error;
					best = m;
				}
			}
			if (best < 0)
				break;
			fraction[best] += by;
			sum += by;
		}
		for (unsigned int m = 4; m < ref.kind->metrics; m++)
			if (ref.metric[m] <= ref.metric[m - 4] && fraction[m] > fraction[m - 4])
				fraction[m] = fraction[m - 4];
	}
	for (unsigned int m = 0; m < ref.kind->metrics; m++)
		val |= (uint64_t)fraction[m] << 8 * m;
	return val;
}

static uint64_t ref_inuse(void)
{
	uint64_t val = 0;

	for (unsigned int i = 0; i < NR_GP; i++) {
		for (unsigned int b = 0; b < 8; b++)
			if (bit(ref.evtsel[i], b))
				val |= BIT(i);
		if (bit(ref.evtsel[i], 20))
			val |= BIT(63);
	}
	for (unsigned int i = 0; i < NR_FIXED; i++) {
		if (bit(ref.fixed_ctrl, 4 * i) || bit(ref.fixed_ctrl, 4 * i + 1))
			val |= BIT(32 + i);
		if (bit(ref.fixed_ctrl, 4 * i + 3))
			val |= BIT(63);
	}
	return val;
}

/* The number a register has had before version 6, 0 if it is a new one. */
static uint32_t old_number(uint32_t msr)
{
	if (ref.kind->version < 6)
		return msr;
	for (unsigned int i = 0; i < NR_GP; i++) {
		if (msr == V6_PMC(i))
			return PMC(i);
		if (msr == V6_EVTSEL(i))
			return EVTSEL(i);
		if (msr == V6_PMC(i) + 2 || msr == V6_PMC(i) + 3)
			return 0;
	}
	for (unsigned int i = 0; i < NR_FIXED; i++) {
		if (msr == V6_FIXED(i))
			return FIXED(i);
		if (msr == V6_FIXED(i) + 1 || msr == V6_FIXED(i) + 2 || msr == V6_FIXED(i) + 3)
			return 0;
	}
	return msr;
}

static enum pmu_result ref_rdmsr(uint32_t msr, uint64_t *val)
{
	msr = old_number(msr);
	for (unsigned int i = 0; i < NR_GP; i++) {
		if (msr == EVTSEL(i)) {
			*val = ref.evtsel[i];
			return PMU_OK;
		}
		if (msr == PERFCTR(i) || msr == PMC(i)) {
			*val = ref.gp[i];
			return PMU_OK;
		}
	}
	for (unsigned int i = 0; i < NR_FIXED; i++) {
		if (msr == FIXED(i)) {
			*val = ref.fixed[i];
			return ref.kind->fixed[i] ? PMU_OK : PMU_GP;
		}
	}
	for (unsigned int i = 0; i < NR_EXTRA; i++) {
		if (msr == extra_msr[i]) {
			*val = ref.extra[i];
			return ref.kind->extra[i] ? PMU_OK : PMU_FOREIGN;
		}
	}

	switch (msr) {
	case MPERF:
		*val = ref.mperf;
		return PMU_OK;
	case APERF:
		*val = ref.aperf;
		return PMU_OK;
	case MISC_ENABLE:
		*val = ref.misc_enable;
		return PMU_OK;
	case DEBUGCTL:
		*val = ref.debugctl;
		return PMU_OK;
	case METRICS:
		*val = ref_metrics();
		return ref.kind->metrics ? PMU_OK : PMU_GP;
	case CAPABILITIES:
		*val = ref.kind->capabilities;
		return PMU_OK;
	case FIXED_CTRL:
		*val = ref.fixed_ctrl;
		return PMU_OK;
	case STATUS:
		*val = ref.status;
		return PMU_OK;
	case GLOBAL_CTRL:
		*val = ref.global_ctrl;
		return PMU_OK;
	case STATUS_RESET:
	case STATUS_SET:
		*val = 0;
		return PMU_OK;
	case INUSE:
		*val = ref_inuse();
		return PMU_OK;
	case PEBS_ENABLE:
	case 0:
		return PMU_GP;
	default:
		return PMU_FOREIGN;
	}
}

/* Whether software may write @b of @msr, which it can write, as 1. */
static bool may_set(uint32_t msr, unsigned int b)
{
	for (unsigned int i = 0; i < NR_GP; i++) {
		if (msr == EVTSEL(i) && b >= 32)
			return ref.kind->version >= 6 && (b == 36 || (b >= 40 && b < 48));
		if (msr == EVTSEL(i))
			return b != 21 || ref.kind->any;
		if (msr == PERFCTR(i))
			return true;
		if (msr == PMC(i))
			return b < WIDTH;
	}
	for (unsigned int i = 0; i < NR_FIXED; i++)
		if (msr == FIXED(i))
			return b < WIDTH;
	for (unsigned int i = 0; i < NR_EXTRA; i++)
		if (msr == extra_msr[i])
			return bit(ref.kind->extra[i], b);

	switch (msr) {
	case MISC_ENABLE:
		return b == 0 || b == 3 || b == 16 || b == 7 || b == 11 || b == 12;
	case DEBUGCTL:
		return b == 0 || b == 1 || b == 11 || b == 12 ||
		       (b == 14 && bit(ref.kind->capabilities, 12));
	case METRICS:
		return b < 8 * ref.kind->metrics;
	case FIXED_CTRL:
		return b / 4 < NR_FIXED && ref.kind->fixed[b / 4] && (b % 4 != 2 || ref.kind->any);
	case STATUS_RESET:
		if (b == 63)
			return true;
		/* fall through */
	case STATUS_SET:
		if (b == 58 || b == 59 || b == 61 || b == 62)
			return true;
		/* fall through */
	case GLOBAL_CTRL:
		if (b == 48)
			return ref.kind->metrics;
		return b < NR_GP || (b >= 32 && b < 32 + NR_FIXED && ref.kind->fixed[b - 32]);
	default:
		return true;
	}
}

static bool all_legal(uint32_t msr, uint64_t val)
{
	for (unsigned int b = 0; b < 64; b++)
		if (bit(val, b) && !may_set(msr, b))
			return false;
	return true;
}

static enum pmu_result ref_wrmsr(uint32_t msr, uint64_t val)
{
	uint64_t ignored;
	enum pmu_result ret;

	msr = old_number(msr);
	ret = ref_rdmsr(msr, &ignored);
	if (ret != PMU_OK)
		return ret;
	if (msr == CAPABILITIES || msr == STATUS || msr == INUSE || !all_legal(msr, val))
		return PMU_GP;

	for (unsigned int i = 0; i < NR_GP; i++) {
		if (msr == EVTSEL(i))
			ref.evtsel[i] = val;
		if (msr == PMC(i))
			ref.gp[i] = val;
		if (msr == PERFCTR(i)) {
			ref.gp[i] = 0;
			for (unsigned int b = 0; b < WIDTH; b++)
				if (bit(val, b < 31 ? b : 31))
					ref.gp[i] |= BIT(b);
		}
	}
	for (unsigned int i = 0; i < NR_FIXED; i++)
		if (msr == FIXED(i))
			ref.fixed[i] = val;
	for (unsigned int i = 0; i < NR_EXTRA; i++)
		if (msr == extra_msr[i])
			ref.extra[i] = val;

	switch (msr) {
	case MPERF:
		ref.mperf = val;
		break;
	case APERF:
		ref.aperf = val;
		break;
	case MISC_ENABLE:
		ref.misc_enable = val | BIT(7) | BIT(11) | BIT(12);
		break;
	case DEBUGCTL:
		ref.debugctl = val;
		break;
	case METRICS:
		for (unsigned int m = 0; m < NR_METRICS; m++)
			ref.metric[m] = (val >> 8 * m & 0xff) * ref.fixed[3];
		break;
	case FIXED_CTRL:
		ref.fixed_ctrl = val;
		break;
	case GLOBAL_CTRL:
		ref.global_ctrl = val;
		break;
	case STATUS_RESET:
		ref.status &= ~val;
		break;
	case STATUS_SET:
		ref.status |= val;
		break;
	}
	return PMU_OK;
}

static enum pmu_result ref_rdpmc(uint32_t ecx, uint64_t *val)
{
	for (unsigned int i = 0; i < NR_GP; i++)
		if (ecx == i)
			return ref_rdmsr(PMC(i), val);
	for (unsigned int i = 0; i < NR_FIXED; i++)
		if (ecx == (0x40000000 | i))
			return ref_rdmsr(FIXED(i), val);
	if (ecx == 0x20000000)
		return ref_rdmsr(METRICS, val);
	return PMU_GP;
}

/* ---- the comparison ---- */

static struct pmu pmu;
static struct pmu_activity act;
static uint64_t seed, state;
static uint64_t operation;		/* number of the present one */
static bool failed;

/* Ordinary steps without PMI that pmu_next_overflow() promised; the last may have one. */
static uint64_t promised;

/* The latest operations, for whoever has to find out. */
static struct { const char *what; uint64_t a, b; } history[12];
static unsigned int nr_history;

static void note(const char *what, uint64_t a, uint64_t b)
{
	unsigned int i = nr_history++ % ARRAY_SIZE(history);

	history[i].what = what;
	history[i].a = a;
	history[i].b = b;
}

static void fail(const char *what, uint64_t where, uint64_t expected, uint64_t got)
{
	unsigned int n = nr_history < ARRAY_SIZE(history) ? nr_history : ARRAY_SIZE(history);

	if (failed)
		return;
	failed = true;
	printf("# seed %" PRIu64 ", %s, operation %" PRIu64 ": %s %#" PRIx64
	       ": expected %#" PRIx64 ", got %#" PRIx64 "\n", seed, ref.kind->name,
	       operation, what, where, expected, got);
	for (unsigned int i = nr_history - n; i != nr_history; i++) {
		unsigned int h = i % ARRAY_SIZE(history);

		printf("#   %s %#" PRIx64 " %#" PRIx64 "\n", history[h].what, history[h].a,
		       history[h].b);
	}
}

static void compare(const char *what, uint64_t where, uint64_t expected, uint64_t got)
{
	if (expected != got)
		fail(what, where, expected, got);
}

/* splitmix64 */
static uint64_t random64(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static unsigned int below(unsigned int n)
{
	return random64() % n;
}

static bool one_in(unsigned int n)
{
	return !below(n);
}

static bool pending(const struct pmu *p)
{
	struct pmu copy = *p;

	return pmu_take_pmi(&copy);
}

/* Everything there is, read from a copy that has its report: none is made to the model. */
static void compare_all(void)
{
	static const uint32_t singles[] = {
		MPERF, APERF, MISC_ENABLE, DEBUGCTL, METRICS, FIXED_CTRL, STATUS, GLOBAL_CTRL,
		INUSE, 0x1a6, 0x1a7, 0x3f6, 0x3f7, 0x1328, 0x1329,
	};
	struct pmu copy = pmu;

	pmu_report(&copy, &act);
	compare("PMI", 0, ref.pmi, pending(&copy));
	compare("live", 0, anything_counts(), copy.live);
	for (unsigned int i = 0; i < 2 * NR_GP + NR_FIXED + ARRAY_SIZE(singles); i++) {
		uint32_t msr = i < NR_GP ? PMC(i) : i < 2 * NR_GP ? EVTSEL(i - NR_GP) :
			       i < 2 * NR_GP + NR_FIXED ? FIXED(i - 2 * NR_GP) :
			       singles[i - 2 * NR_GP - NR_FIXED];
		uint64_t expected = 0, got = 0;
		enum pmu_result ret = ref_rdmsr(msr, &expected);

		compare("state: result of RDMSR", msr, ret, pmu_rdmsr(&copy, msr, &got));
		if (ret == PMU_OK)
			compare("state: MSR", msr, expected, got);
	}
}

/* Of the legal bits of @msr those in @val. */
static uint64_t legal(uint32_t msr, uint64_t val)
{
	uint64_t ret = 0;

	for (unsigned int b = 0; b < 64; b++)
		if (bit(val, b) && may_set(old_number(msr), b))
			ret |= BIT(b);
	return ret;
}

static uint32_t random_msr(void)
{
	static const uint32_t others[] = {
		MPERF, APERF, MISC_ENABLE, CAPABILITIES, INUSE, STATUS, PEBS_ENABLE, DEBUGCTL,
	};
	/* each is next to registers of the PMU, or between */
	static const uint32_t neighbours[] = {
		0x0c0, 0x0c9, 0x0e6, 0x0e9, 0x185, 0x18e, 0x19f, 0x1a1, 0x1d8, 0x1da, 0x308,
		0x310, 0x328, 0x32a, 0x344, 0x346, 0x38c, 0x393, 0x3f0, 0x3f2, 0x4c0, 0x4c9,
		0x18ff, 0x1920, 0x197f, 0x199c, 0xc0000080,
	};

	switch (below(20)) {
	case 0: case 1: case 2: case 3:
		return EVTSEL(below(NR_GP));
	case 4: case 5:
		return PMC(below(NR_GP));
	case 6:
		return PERFCTR(below(NR_GP));
	case 7: case 8: case 9:
		return FIXED(below(NR_FIXED));
	case 10: case 11:
		return GLOBAL_CTRL;
	case 12: case 13:
		return FIXED_CTRL;
	case 14:
		return METRICS;
	case 15:
		return STATUS_RESET;
	case 16:
		return one_in(2) ? STATUS_RESET : STATUS_SET;
	case 17:
		return 0x1900 + below(4 * NR_GP);
	case 18:
		return one_in(3) ? 0x1980 + below(4 * NR_FIXED) :
		       one_in(3) ? extra_msr[below(NR_EXTRA)] :
		       one_in(20) ? random64() : neighbours[below(ARRAY_SIZE(neighbours))];
	default:
		return others[below(ARRAY_SIZE(others))];
	}
}

/* One bit, likely one that some register or variant has and another has not. */
static uint64_t random_bit(void)
{
	static const uint8_t rare[] = {
		2, 6, 14, 21, 31, 32, 35, 36, 38, 39, 47, 48, 49, 58, 59, 60, 61, 62, 63,
	};

	return BIT(one_in(2) ? below(64) : rare[below(ARRAY_SIZE(rare))]);
}

/* A value which makes something happen. */
static uint64_t plausible(uint32_t msr)
{
	static const uint16_t events[] = {
		0x003c, 0x00c0, 0x013c, 0x4f2e, 0x412e, 0x00c4, 0x00c5, 0x01a4, 0x81d0, 0x82d0,
		0x83d0, 0x02a4, 0x04a4, 0x08a4, 0x10a4, 0x0073, 0x019c, 0x02c2, 0x0000,
	};
	static const uint8_t cmasks[] = { 0, 0, 0, 0, 1, 1, 2, 6, 7, 255 };
	uint64_t val;

	msr = old_number(msr);
	for (unsigned int i = 0; i < NR_GP; i++) {
		if (msr != EVTSEL(i))
			continue;
		val = events[below(ARRAY_SIZE(events))];
		val |= (uint64_t)below(4) << 16 | (uint64_t)below(2) << 20;
		val |= (uint64_t)!one_in(8) << 22;
		if (one_in(4))
			val |= random64() & (BIT(18) | BIT(19) | BIT(21) | BIT(23));
		if (one_in(2))
			val |= (uint64_t)cmasks[below(ARRAY_SIZE(cmasks))] << 24;
		if (one_in(4))
			val |= random64() & BIT(36);
		if (one_in(8))
			val |= BIT(40 + below(8));
		return legal(msr, val);
	}

	switch (msr) {
	case GLOBAL_CTRL:
	case STATUS_RESET:
		return legal(msr, one_in(3) ? random64() : UINT64_MAX);
	case STATUS_SET:
		return legal(msr, random64() & (one_in(4) ? UINT64_MAX : ~BIT(59)));
	case DEBUGCTL:
		return legal(msr, one_in(2) ? random64() : 0);
	case METRICS:
		val = 0;
		for (unsigned int m = 0; m < NR_METRICS; m++)
			val |= (uint64_t)(one_in(2) ? 0xff : below(256)) << 8 * m;
		return legal(msr, val);
	case FIXED_CTRL:
		return legal(msr, random64());
	default:		/* counters: before the end, at the beginning */
		if (one_in(3))
			return below(1000);
		return BIT(WIDTH) - 1 - (one_in(3) ? below(8) : below(500));
	}
}

static uint64_t random_value(uint32_t msr)
{
	uint64_t val = 0;

	switch (below(18)) {
	case 0:
		return random_bit();
	case 1:
		return UINT64_MAX;
	case 2:
		return 0;
	case 3:
		return legal(msr, UINT64_MAX);
	case 4:
		return legal(msr, random64());
	case 5:
		return legal(msr, random64()) | random_bit();
	case 6:
		return random64();
	case 7:				/* what was just read, or nearly */
		(void)ref_rdmsr(msr, &val);
		return one_in(3) ? val ^ random_bit() : val;
	default:
		return plausible(msr);
	}
}

/* Those which pmu_next_overflow() makes its promise for. */
static bool ordinary(const struct step *s)
{
	static const unsigned int base[] = {
		[RETIRED] = 1, [CONTINUED] = 0, [ABORTED] = 3, [VM_ENTRY] = 4,
	};
	unsigned int cycles = base[s->end] + s->rep + s->taken + 2 * s->not_taken + s->load +
			      s->store + 10 * s->flush;

	return cycles <= 4 && s->load <= 1 && s->store <= 1 && s->rep <= 1 &&
	       s->taken + s->not_taken <= 1;
}

/* A step that is continued has an iteration at least, or its tick had no cycle. */
static struct step random_step(void)
{
	struct step s = { .end = RETIRED };

	switch (below(11)) {
	case 0:
		break;
	case 1:
		s.taken = 1;
		s.load = below(2);
		s.store = below(2);
		break;
	case 2:
		s.not_taken = 1;
		break;
	case 3:
		s.load = 1;
		break;
	case 4:
		s.store = 1;
		break;
	case 5:
		s.load = 1;
		s.store = 1;
		break;
	case 6:			/* REP, more often than not to be continued */
		s.end = one_in(3) ? RETIRED : CONTINUED;
		s.rep = 1;
		s.load = !one_in(4);
		s.store = !one_in(4);
		break;
	case 7:
		s.end = ABORTED;
		s.load = below(2);
		break;
	case 8:
		s.flush = 1;
		break;
	case 9:
		s.end = below(4);
		s.rep = s.end == CONTINUED ? 1 + below(20) : below(4);
		s.taken = below(3);
		s.not_taken = below(3);
		s.load = below(6);
		s.store = below(6);
		s.flush = below(2);
		break;
	case 10:
		s.end = VM_ENTRY;
		break;
	}
	return s;
}

static void take_step(const struct step *s)
{
	unsigned int pmis = ref.pmis;

	act.n[PMU_STEP]++;
	act.n[PMU_CONTINUED] += s->end == CONTINUED;
	act.n[PMU_ABORTED] += s->end == ABORTED;
	if (s->end == VM_ENTRY) {	/* retires, but is taken back like a VM-Exit */
		act.n[PMU_CONTINUED]--;
		act.n[PMU_ABORTED]++;
	}
	act.n[PMU_BRANCH_TAKEN] += s->taken;
	act.n[PMU_BRANCH_NOT_TAKEN] += s->not_taken;
	act.n[PMU_LOAD] += s->load;
	act.n[PMU_STORE] += s->store;
	act.n[PMU_REP] += s->rep;
	act.n[PMU_FLUSH] += s->flush;
	ref_step(s);

	/* No promise is made for other steps, but if there is to be no PMI at all. */
	if (promised != UINT64_MAX && !ordinary(s))
		promised = 0;
	if (ref.pmis != pmis && promised > 1)
		fail("PMI before pmu_next_overflow(), steps too early:", 0, 0, promised - 1);
	if (promised && promised != UINT64_MAX)
		promised--;
}

static void report(void)
{
	pmu_report(&pmu, &act);
}

static void ask(void)
{
	report();
	promised = pmu_next_overflow(&pmu);
	if (!promised)
		fail("pmu_next_overflow()", 0, 1, 0);
	note("next overflow", promised, 0);
}

/*
 * Counts must not depend on when they are reported, but the freeze on PMI does:
 * the model freezes when the overflow is reported, so then each step is.  The
 * last is always left to whatever comes next.
 */
static void run(void)
{
	unsigned int n = 1 + below(one_in(4) ? 60 : 10), often = 1 + below(20);
	bool alike = one_in(3);
	struct step s = random_step();

	if (one_in(2))
		ask();
	note("steps", n, alike);
	for (unsigned int i = 0; i < n; i++) {
		if (bit(ref.debugctl, 12) || one_in(often))
			report();
		take_step(&s);
		if (!alike)
			s = random_step();
	}
}

static void change_ring(void)
{
	unsigned int cpl = one_in(2) ? 0 : below(4);
	bool before = pending(&pmu), again;

	note("CPL", cpl, 0);
	again = pmu_set_ring(&pmu, &act, cpl);
	ref.user = cpl != 0;

	/* If the model says that there is nothing to ask for, there must be nothing. */
	if (!again && pending(&pmu) && !before)
		fail("pmu_set_ring() keeps a PMI secret", cpl, 1, 0);
	promised = again ? 0 : UINT64_MAX;
	if (again && one_in(2))
		ask();
}

static void write_msr(uint32_t msr, uint64_t val)
{
	note("WRMSR", msr, val);
	report();
	compare("result of WRMSR", msr, ref_wrmsr(msr, val), pmu_wrmsr(&pmu, msr, val));
	promised = 0;
}

static void read_msr(uint32_t msr)
{
	uint64_t expected = 0, got = 0;
	enum pmu_result ret = ref_rdmsr(msr, &expected);

	note("RDMSR", msr, 0);
	report();
	compare("result of RDMSR", msr, ret, pmu_rdmsr(&pmu, msr, &got));
	if (ret == PMU_OK)
		compare("RDMSR", msr, expected, got);
}

static void read_pmc(void)
{
	static const uint16_t types[] = { 0, 0x4000, 0x2000 };
	uint32_t ecx = (uint32_t)types[below(ARRAY_SIZE(types))] << 16 | below(10);
	uint64_t expected = 0, got = 0;
	enum pmu_result ret;

	if (ecx >> 16 == 0x2000 && one_in(2))
		ecx &= 0xffff0000;
	if (one_in(8))
		ecx ^= 1u << below(32);
	ret = ref_rdpmc(ecx, &expected);
	note("RDPMC", ecx, 0);
	report();
	compare("result of RDPMC", ecx, ret, pmu_rdpmc(&pmu, ecx, &got));
	if (ret == PMU_OK)
		compare("RDPMC", ecx, expected, got);
}

static void check_and_load(void)
{
	uint32_t msr = one_in(3) ? DEBUGCTL : GLOBAL_CTRL;
	uint64_t val = random_value(msr);
	bool valid = all_legal(msr, val);

	note("check and load", msr, val);
	compare("VMCS field of MSR", msr, valid,
		msr == DEBUGCTL ? pmu_debugctl_valid(&pmu, val) : pmu_global_ctrl_valid(&pmu, val));
	if (!valid)
		return;
	report();
	pmu_load(&pmu, msr, val);
	(void)ref_wrmsr(msr, val);
	promised = 0;
}

/* As perf restores an event group; or with internal counts that are about to overflow. */
static void start_topdown(void)
{
	write_msr(GLOBAL_CTRL, 0);
	write_msr(FIXED(3), one_in(3) ? random64() & (BIT(WIDTH) - 1) : plausible(FIXED(3)));
	write_msr(METRICS, plausible(METRICS));
	if (one_in(2))
		write_msr(FIXED(3), below(1000));
	write_msr(FIXED_CTRL, legal(FIXED_CTRL, random64() | 0x3000));
	write_msr(GLOBAL_CTRL, legal(GLOBAL_CTRL, BIT(35) | BIT(48)));
}

/*
 * One counter or the internal counts, near the end and asking for a PMI, and
 * nothing but the most expensive of ordinary steps.
 */
static void sample(void)
{
	static const struct step expensive[] = {
		{ .end = RETIRED, .taken = 1, .load = 1, .store = 1 },
		{ .end = RETIRED, .rep = 1, .load = 1, .store = 1 },
		{ .end = RETIRED, .not_taken = 1 },
		{ .end = RETIRED, .load = 1, .store = 1 },
		{ .end = ABORTED, .load = 1 },
		{ .end = ABORTED, .taken = 1 },
		{ .end = CONTINUED, .rep = 1, .taken = 1, .load = 1, .store = 1 },
		{ .end = RETIRED },
	};
	const struct step *s = &expensive[below(ARRAY_SIZE(expensive))];
	unsigned int i = below(NR_GP);

	write_msr(GLOBAL_CTRL, 0);
	write_msr(DEBUGCTL, one_in(3) ? BIT(12) : 0);
	write_msr(STATUS_RESET, legal(STATUS_RESET, UINT64_MAX));
	if (one_in(2)) {
		uint64_t sel = plausible(EVTSEL(i));

		if (one_in(4))		/* slots come fastest */
			sel = (sel & ~0xffffull) | 0x01a4;
		write_msr(EVTSEL(i), sel | BIT(16) | BIT(17) | BIT(20) | BIT(22));
		write_msr(PMC(i), BIT(WIDTH) - 1 - below(600));
		write_msr(GLOBAL_CTRL, BIT(i));
	} else {
		i = one_in(2) ? 3 : below(NR_FIXED);
		write_msr(FIXED(i), BIT(WIDTH) - 1 - below(600));
		if (i == 3) {
			write_msr(METRICS, 0xffull << 8 * below(ref.kind->metrics ? : 1));
			write_msr(FIXED(3), below(1000));
		}
		write_msr(FIXED_CTRL, legal(FIXED_CTRL, 0xbull << 4 * i));
		write_msr(GLOBAL_CTRL, legal(GLOBAL_CTRL, BIT(32 + i) | BIT(48)));
	}
	ask();
	note("expensive steps", s - expensive, promised);
	for (uint64_t n = promised; n && n <= 1000; n--) {
		if (bit(ref.debugctl, 12) || one_in(8))
			report();
		take_step(s);
		if (ref.pmi && one_in(2))
			break;
	}
	if (one_in(2))
		change_ring();
}

/* Into SMM or out of it, as may be; what was frozen may change in it. */
static void change_smm(void)
{
	bool leave = ref.smm_froze || one_in(4);

	note(leave ? "RSM" : "SMI", 0, 0);
	report();
	if (leave) {
		pmu_leave_smm(&pmu);
		if (ref.smm_froze) {
			ref.global_ctrl = ref.smm_global_ctrl;
			ref.debugctl = ref.smm_debugctl;
		}
		ref.smm_froze = false;
	} else {
		pmu_enter_smm(&pmu);
		ref.smm_froze = bit(ref.debugctl, 14);
		if (ref.smm_froze) {
			ref.smm_global_ctrl = ref.global_ctrl;
			ref.smm_debugctl = ref.debugctl;
			ref.global_ctrl = 0;
			ref.debugctl &= ~3ull;
		}
	}
	promised = 0;
}

static void take_pmi(void)
{
	note("take PMI", ref.pmi, 0);
	report();
	compare("PMI taken", 0, ref.pmi, pmu_take_pmi(&pmu));
	ref.pmi = false;
}

static void reset(void)
{
	note("RESET", 0, 0);
	report();
	pmu_reset(&pmu);
	ref_reset();
	promised = 0;
}

/* Power up, and perhaps RESET after long activity. */
static void power_up(const struct kind *kind)
{
	pmu_init(&pmu, pmu_variant_by_name(kind->name), 0);
	memset(&act, 0, sizeof(act));
	ref.kind = kind;
	ref_reset();
	promised = 0;
	note("power-up", 0, 0);
	if (one_in(2)) {
		for (unsigned int a = 0; a < PMU_NR_ACTS; a++)
			act.n[a] = random64() >> 30;
		act.n[PMU_STEP] += BIT(40);
		reset();
	}
}

static void operate(void)
{
	switch (below(64)) {
	default:
		run();
		break;
	case 0: case 1: case 2: case 3: case 4: case 5:
		change_ring();
		break;
	case 6: case 7: case 8: case 9: case 10: case 11:
		read_msr(random_msr());
		break;
	case 12: case 13: case 14: case 15: case 16: case 17: case 18: case 19: case 20:
	case 21: case 22: case 23: case 24: case 25: case 26: case 27: case 28: case 29: {
		uint32_t msr = random_msr();

		write_msr(msr, random_value(msr));
		break;
	}
	case 30: case 31:
		read_pmc();
		break;
	case 32: case 33:
		check_and_load();
		break;
	case 34: case 35: case 36:
		take_pmi();
		break;
	case 37:
		start_topdown();
		break;
	case 38:		/* or nothing would go on after a freeze */
		write_msr(STATUS_RESET, legal(STATUS_RESET, UINT64_MAX));
		break;
	case 39:
		if (one_in(8))
			reset();
		break;
	case 40: case 41:
		sample();
		break;
	case 42: case 43:
		change_smm();
		break;
	}
}

int main(int argc, char **argv)
{
	uint64_t operations = 200000, failures = 0;

	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	if (argc > 2)
		operations = strtoull(argv[2], NULL, 0);

	printf("TAP version 13\n1..%zu\n", ARRAY_SIZE(kinds));
	printf("# seed %" PRIu64 ", %" PRIu64 " operations\n", seed, operations);
	state = seed;
	for (unsigned int k = 0; k < ARRAY_SIZE(kinds); k++) {
		failed = false;
		for (operation = 0; operation < operations / ARRAY_SIZE(kinds); operation++) {
			if (operation % 2000 == 0)
				power_up(&kinds[k]);
			operate();
			compare_all();
			if (failed)
				break;
		}
		failures += failed;
		printf("%sok %u - random operations as the reference, %s\n", failed ? "not " : "",
		       k + 1, kinds[k].name);
	}
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
