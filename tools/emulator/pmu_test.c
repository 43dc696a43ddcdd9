// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Unit tests of the PMU model.  Expected values come from the documents named
 * in pmu.h and from the activity put in, never from the model's own tables.
 */
#include "pmu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(n)		(1ull << (n))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define WIDTH		48
#define MASK		(BIT(WIDTH) - 1)

#define PERFCTR(i)	(0xc1 + (i))
#define EVTSEL(i)	(0x186 + (i))
#define PMC(i)		(0x4c1 + (i))
#define FIXED(i)	(0x309 + (i))
#define MISC_ENABLE	0x1a0
#define DEBUGCTL	0x1d9
#define METRICS		0x329
#define CAPABILITIES	0x345
#define FIXED_CTRL	0x38d
#define STATUS		0x38e
#define GLOBAL_CTRL	0x38f
#define STATUS_RESET	0x390
#define STATUS_SET	0x391
#define INUSE		0x392

#define USR		BIT(16)
#define OS		BIT(17)
#define EDGE		BIT(18)
#define INT		BIT(20)
#define EN		BIT(22)
#define INV		BIT(23)
#define CMASK(n)	((uint64_t)(n) << 24)
#define EQ		BIT(36)
#define UMASK2(n)	((uint64_t)(n) << 40)

/* EVENT | UMASK << 8, as PERFEVTSEL holds them. */
#define CYCLES		0x003c
#define INSTRUCTIONS	0x00c0
#define REF_CYCLES	0x013c
#define LLC_REFERENCES	0x4f2e
#define LLC_MISSES	0x412e
#define BRANCHES	0x00c4
#define BRANCH_MISSES	0x00c5
#define SLOTS		0x01a4
#define ALL_LOADS	0x81d0
#define ALL_STORES	0x82d0
#define ALL_ACCESSES	0x83d0
#define RETIRING	0x02c2
#define FRONTEND_BOUND	0x019c
#define BACKEND_BOUND	0x02a4
#define BAD_SPECULATION	0x04a4
#define MISPREDICTS	0x08a4
#define MEMORY_BOUND	0x10a4

static const char *const names[] = { "spr", "icl", "rpl", "skx", "srf", "cwf" };

/* What is documented of each. */
static const struct expectation {
	unsigned int version, fixed_mask, contiguous, metrics, caps;
	bool anythread, save;
	unsigned int signature;		/* if the model's own is Sapphire Rapids' */
	/* bits of OFFCORE_RSP 0 and 1, PEBS_LD_LAT, PEBS_FRONTEND, SNOOP_RSP 0 and 1 */
	uint64_t extra[6];
} expected[] = {
	{ 5, 0x0f, 4, 8, 0xb000, false, true, 0x806f8,
	  { 0x3fffffffff, 0x3fffffffff, 0xffff, 0x7fff1f } },
	{ 5, 0x0f, 4, 4, 0xb000, false, false, 0x806f8,
	  { 0x3fffffbfff, 0x3fffffbfff, 0xffff, 0x7fff17 } },
	{ 5, 0x0f, 4, 8, 0x2000, false, true, 0xb0671,
	  { 0x3fffffffff, 0x3fffffffff, 0xffff, 0x7fff1f } },
	{ 4, 0x07, 3, 0, 0x3000, true, false, 0x806f8,
	  { 0x3fffff8fff, 0x3fffff8fff, 0xffff, 0x7fff17 } },
	{ 6, 0x07, 3, 0, 0x3000, false, true, 0xa06f3,
	  { 0x800ff3ffffffffff, 0xff3ffffffffff, 0xffff, 0, UINT64_MAX, UINT64_MAX } },
	{ 6, 0x77, 3, 0, 0x3000, false, true, 0xd06d0,
	  { 0x800ff3ffffffffff, 0xff3ffffffffff, 0xffff, 0, UINT64_MAX, UINT64_MAX } },
};

#define NR_VARIANTS	ARRAY_SIZE(names)

static struct pmu pmu;
static struct pmu_activity act;
static unsigned int tests, failures, checks_failed;

#define check(cond, ...)							\
do {										\
	if (!(cond) && checks_failed++ < 10) {					\
		printf("# line %d: %s", __LINE__, #cond);			\
		printf(" " __VA_ARGS__);					\
		printf("\n");							\
	}									\
} while (0)

#define check_eq(a, b)								\
do {										\
	uint64_t va = (a), vb = (b);						\
										\
	if (va != vb && checks_failed++ < 10)					\
		printf("# line %d: %s is %#llx, expected %#llx\n", __LINE__,	\
		       #a, (unsigned long long)va, (unsigned long long)vb);	\
} while (0)

/* A metric, of which one of level 1 may be rounded to the other side. */
#define check_near(a, b)							\
do {										\
	double va = (a), vb = (b);						\
										\
	if ((va <= vb - 1 || va >= vb + 1) && checks_failed++ < 10)		\
		printf("# line %d: %s is %g, expected %g\n", __LINE__, #a, va, vb);	\
} while (0)

static void power_up(const char *name)
{
	memset(&act, 0, sizeof(act));
	pmu_init(&pmu, pmu_variant_by_name(name), 0);
}

static uint64_t rd(uint32_t msr)
{
	uint64_t val = 0x5a5a;

	check(pmu_rdmsr(&pmu, msr, &val) == PMU_OK, "MSR %#x", msr);
	return val;
}

static void wr(uint32_t msr, uint64_t val)
{
	check(pmu_wrmsr(&pmu, msr, val) == PMU_OK, "MSR %#x = %#llx", msr,
	      (unsigned long long)val);
}

static bool rd_faults(uint32_t msr)
{
	uint64_t val;

	return pmu_rdmsr(&pmu, msr, &val) == PMU_GP;
}

/* #GP must leave everything alone. */
static bool wr_faults(uint32_t msr, uint64_t val)
{
	static struct pmu before;
	enum pmu_result ret;

	memcpy(&before, &pmu, sizeof(pmu));
	ret = pmu_wrmsr(&pmu, msr, val);
	if (ret == PMU_GP)
		check(!memcmp(&before, &pmu, sizeof(pmu)), "MSR %#x changed by #GP", msr);
	return ret == PMU_GP;
}

static uint64_t rdpmc(uint32_t ecx)
{
	uint64_t val = 0x5a5a;

	check(pmu_rdpmc(&pmu, ecx, &val) == PMU_OK, "ECX %#x", ecx);
	return val;
}

static bool rdpmc_faults(uint32_t ecx)
{
	uint64_t val;

	return pmu_rdpmc(&pmu, ecx, &val) == PMU_GP;
}

/* @n instructions, each of which does one @what (PMU_STEP: nothing else). */
static void run(enum pmu_act what, unsigned int n)
{
	act.n[PMU_STEP] += n;
	if (what != PMU_STEP)
		act.n[what] += n;
	pmu_report(&pmu, &act);
}

static void ring(unsigned int cpl)
{
	pmu_set_ring(&pmu, &act, cpl);
}

/* Count @event in GP counter 0 and nothing else. */
static void count_event(uint64_t event)
{
	wr(GLOBAL_CTRL, 0);
	wr(PMC(0), 0);
	wr(EVTSEL(0), event);
	wr(GLOBAL_CTRL, BIT(0));
}

static uint64_t counted(uint64_t sel, enum pmu_act what, unsigned int n)
{
	count_event(sel | OS | EN);
	run(what, n);
	return rd(PMC(0));
}

/* SLOTS and PERF_METRICS from zero, in both rings. */
static void start_topdown(void)
{
	wr(GLOBAL_CTRL, 0);
	wr(FIXED(3), 0);
	wr(METRICS, 0);
	wr(FIXED_CTRL, 0x3000);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
}

static unsigned int byte(uint64_t val, unsigned int i)
{
	return val >> 8 * i & 0xff;
}

/* Which bits of @msr may be written as 1, found one by one. */
static uint64_t writable_bits(uint32_t msr)
{
	uint64_t bits = 0;

	for (unsigned int i = 0; i < 64; i++)
		if (!wr_faults(msr, BIT(i)))
			bits |= BIT(i);
	return bits;
}

static uint64_t counter_bits(const struct expectation *e)
{
	return 0xff | (uint64_t)e->fixed_mask << 32 | (e->metrics ? BIT(48) : 0);
}

static void test_variants(void)
{
	for (unsigned int v = 0; v < NR_VARIANTS; v++)
		check(pmu_variant_by_name(names[v]), "%s", names[v]);
	check(!pmu_variant_by_name("none"));
	check(pmu_variant_by_model("sapphire_rapids") == pmu_variant_by_name("spr"));
	check(pmu_variant_by_model("corei7_icelake_u") == pmu_variant_by_name("icl"));
	check(pmu_variant_by_model("corei7_skylake_x") == pmu_variant_by_name("skx"));
	check(!pmu_variant_by_model("ryzen"));
	check(!pmu_variant_by_model(""));
}

static void test_reset(const struct expectation *e)
{
	for (unsigned int pass = 0; pass < 2; pass++) {
		check_eq(rd(GLOBAL_CTRL), 0xff);
		check_eq(rd(FIXED_CTRL), 0);
		check_eq(rd(STATUS), 0);
		check_eq(rd(DEBUGCTL), 0);
		for (unsigned int i = 0; i < 8; i++) {
			check_eq(rd(EVTSEL(i)), 0);
			check_eq(rd(PMC(i)), 0);
		}
		for (unsigned int i = 0; i < 7; i++)
			if (e->fixed_mask & BIT(i))
				check_eq(rd(FIXED(i)), 0);
		if (e->metrics)
			check_eq(rd(METRICS), 0);

		wr(STATUS_SET, 0x3);
		wr(DEBUGCTL, BIT(12));
		wr(EVTSEL(3), OS | EN | INSTRUCTIONS);
		wr(PMC(3), 0x123456);
		wr(FIXED(1), 77);
		wr(FIXED_CTRL, 0x3);
		wr(GLOBAL_CTRL, BIT(32));
		pmu_reset(&pmu);
	}
}

static void test_cpuid(const struct expectation *e)
{
	struct pmu_cpuid r = { .ecx = 0xffffffff, .edx = 0xffffffff };

	r.eax = 0x806f8;
	pmu_cpuid(&pmu, 1, 0, &r);
	check_eq(r.eax, e->signature);
	check_eq(r.ecx, 0xffffffff & ~(BIT(2) | BIT(4)));
	check_eq(r.edx, 0xffffffff & ~BIT(21));
	r.ecx = 0;
	pmu_cpuid(&pmu, 1, 0, &r);
	check_eq(r.ecx, BIT(15));

	memset(&r, 0xff, sizeof(r));
	pmu_cpuid(&pmu, 0xa, 0, &r);
	check_eq(r.eax & 0xff, e->version);
	check_eq(r.eax >> 8 & 0xff, 8);
	check_eq(r.eax >> 16 & 0xff, WIDTH);
	check_eq(r.eax >> 24, e->contiguous == 4 ? 8 : 7);	/* 8th: topdown slots */
	check_eq(r.ebx, 0);
	check_eq(r.ecx, e->version >= 5 ? e->fixed_mask : 0);
	check_eq(r.edx & 0x1f, e->contiguous);
	check_eq(r.edx >> 5 & 0xff, WIDTH);
	check_eq(r.edx >> 13, e->anythread ? 0 : 4);		/* bit 15 */

	check_eq(pmu.var->vmexit_save_global_ctrl, e->save);
}

/* The leaf that came with version 6, what announces it, and that it changes no other. */
static void test_cpuid_perfmon_ext(const struct expectation *e)
{
	const struct { uint32_t leaf, subleaf; struct pmu_cpuid own, right; } leaves[] = {
		{ 0, 0, { 0x20, 2, 3, 4 }, { 0x23, 2, 3, 4 } },
		{ 0, 0, { 0x24, 2, 3, 4 }, { 0x24, 2, 3, 4 } },
		{ 7, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 7, 1, { 1, 2, 3, 4 }, { 0x101, 2, 3, 4 } },
		{ 7, 2, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 0x22, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 0x23, 0, { 1, 2, 3, 4 }, { 0xb, 3, 6, 0 } },
		{ 0x23, 1, { 1, 2, 3, 4 }, { 0xff, e->fixed_mask, 0, 0 } },
		{ 0x23, 2, { 1, 2, 3, 4 }, { 0, 0, 0, 0 } },
		{ 0x23, 3, { 1, 2, 3, 4 }, { 0x7f, 0, 0, 0 } },
		{ 0x23, 4, { 1, 2, 3, 4 }, { 0, 0, 0, 0 } },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(leaves); i++) {
		struct pmu_cpuid r = leaves[i].own;

		pmu_cpuid(&pmu, leaves[i].leaf, leaves[i].subleaf, &r);
		check(!memcmp(&r, e->version >= 6 ? &leaves[i].right : &leaves[i].own, sizeof(r)),
		      "leaf %#x.%u", leaves[i].leaf, leaves[i].subleaf);
	}
}

static void test_evtsel(const struct expectation *e)
{
	uint64_t legal = 0xffffffff & ~(e->anythread ? 0 : BIT(21));

	if (e->version >= 6)
		legal |= EQ | UMASK2(0xff);
	for (unsigned int i = 0; i < 8; i++) {
		check_eq(writable_bits(EVTSEL(i)), legal);
		wr(EVTSEL(i), legal);
		check_eq(rd(EVTSEL(i)), legal);
		wr(EVTSEL(i), i);
	}
	for (unsigned int i = 0; i < 8; i++)
		check_eq(rd(EVTSEL(i)), i);
}

static void test_legacy_counters(const struct expectation *e)
{
	(void)e;
	for (unsigned int i = 0; i < 8; i++) {
		wr(PERFCTR(i), 0x7fffffff);
		check_eq(rd(PERFCTR(i)), 0x7fffffff);
		wr(PERFCTR(i), 0x80000000);
		check_eq(rd(PERFCTR(i)), 0xffff80000000);
		check_eq(rd(PMC(i)), 0xffff80000000);
		wr(PERFCTR(i), 0xabcd0000ffffffff);	/* EDX does not matter */
		check_eq(rd(PERFCTR(i)), 0xffffffffffff);
		wr(PERFCTR(i), 0xffffffff00000001);
		check_eq(rd(PERFCTR(i)), 1);
	}
}

static void test_full_width_counters(const struct expectation *e)
{
	(void)e;
	for (unsigned int i = 0; i < 8; i++) {
		check_eq(writable_bits(PMC(i)), MASK);
		wr(PMC(i), 0x876543210000 + i);
	}
	for (unsigned int i = 0; i < 8; i++) {
		check_eq(rd(PMC(i)), 0x876543210000 + i);
		check_eq(rd(PERFCTR(i)), 0x876543210000 + i);
	}
}

static void test_fixed_counters(const struct expectation *e)
{
	for (unsigned int i = 0; i < 7; i++) {
		if (!(e->fixed_mask & BIT(i))) {
			check(rd_faults(FIXED(i)));
			check(wr_faults(FIXED(i), 0));
			continue;
		}
		check_eq(writable_bits(FIXED(i)), MASK);
		wr(FIXED(i), MASK - i);
	}
	for (unsigned int i = 0; i < 7; i++)
		if (e->fixed_mask & BIT(i))
			check_eq(rd(FIXED(i)), MASK - i);
}

/* Version 6 gives the same registers other numbers, four apart. */
static void test_version6_numbers(const struct expectation *e)
{
	uint64_t val;

	if (e->version < 6) {
		check(pmu_rdmsr(&pmu, 0x1900, &val) == PMU_FOREIGN);
		check(pmu_wrmsr(&pmu, 0x1980, 0) == PMU_FOREIGN);
		return;
	}
	for (unsigned int i = 0; i < 8; i++) {
		check_eq(writable_bits(0x1900 + 4 * i), MASK);
		wr(0x1900 + 4 * i, MASK - i);
		check_eq(rd(PMC(i)), MASK - i);
		wr(0x1901 + 4 * i, INSTRUCTIONS + i);
		check_eq(rd(EVTSEL(i)), INSTRUCTIONS + i);
		wr(EVTSEL(i), 0);
		check_eq(rd(0x1901 + 4 * i), 0);
		check(rd_faults(0x1902 + 4 * i) && wr_faults(0x1903 + 4 * i, 0));
	}
	for (unsigned int i = 0; i < 7; i++) {
		if (e->fixed_mask & BIT(i)) {
			wr(0x1980 + 4 * i, MASK - i);
			check_eq(rd(FIXED(i)), MASK - i);
		} else {
			check(rd_faults(0x1980 + 4 * i));
		}
		check(rd_faults(0x1982 + 4 * i) && wr_faults(0x1981 + 4 * i, 0));
	}
}

static void test_fixed_ctrl(const struct expectation *e)
{
	uint64_t legal = 0;

	for (unsigned int i = 0; i < 16; i++)
		if (e->fixed_mask & BIT(i))
			legal |= (e->anythread ? 0xfull : 0xbull) << 4 * i;
	check_eq(writable_bits(FIXED_CTRL), legal);
	wr(FIXED_CTRL, legal);
	check_eq(rd(FIXED_CTRL), legal);
}

static void test_global_ctrl(const struct expectation *e)
{
	check_eq(writable_bits(GLOBAL_CTRL), counter_bits(e));
	wr(GLOBAL_CTRL, counter_bits(e));
	check_eq(rd(GLOBAL_CTRL), counter_bits(e));
}

static void test_global_status(const struct expectation *e)
{
	uint64_t reset = counter_bits(e) | BIT(58) | BIT(59) | BIT(61) | BIT(62) | BIT(63);
	uint64_t set = reset & ~BIT(63);

	check_eq(writable_bits(STATUS), 0);
	check(wr_faults(STATUS, 0));
	check_eq(writable_bits(STATUS_RESET), reset);
	check_eq(writable_bits(STATUS_SET), set);
	check_eq(rd(STATUS), set);
	check_eq(rd(STATUS_RESET), 0);
	check_eq(rd(STATUS_SET), 0);
	check(!pmu_take_pmi(&pmu));	/* setting by hand is no overflow */

	for (unsigned int i = 0; i < 64; i++) {
		if (!(set & BIT(i)))
			continue;
		wr(STATUS_RESET, BIT(i));
		check_eq(rd(STATUS), set & ~BIT(i));
		wr(STATUS_SET, BIT(i));
		check_eq(rd(STATUS), set);
	}
	wr(STATUS_RESET, reset);
	check_eq(rd(STATUS), 0);
}

static void test_inuse(const struct expectation *e)
{
	check_eq(writable_bits(INUSE), 0);
	check(wr_faults(INUSE, 0));
	check_eq(rd(INUSE), 0);
	for (unsigned int i = 0; i < 8; i++) {
		wr(EVTSEL(i), INSTRUCTIONS);
		check_eq(rd(INUSE), BIT(i));
		wr(EVTSEL(i), 0xff00 | OS | USR | EN);	/* event 0 */
		check_eq(rd(INUSE), 0);
		wr(EVTSEL(i), INT);
		check_eq(rd(INUSE), BIT(63));
		wr(EVTSEL(i), 0);
	}
	for (unsigned int i = 0; i < 7; i++) {
		if (!(e->fixed_mask & BIT(i)))
			continue;
		for (unsigned int bit = 0; bit < 2; bit++) {
			wr(FIXED_CTRL, BIT(4 * i + bit));
			check_eq(rd(INUSE), BIT(32 + i));
		}
		wr(FIXED_CTRL, BIT(4 * i + 3));
		check_eq(rd(INUSE), BIT(63));
	}
}

static void test_capabilities(const struct expectation *e)
{
	check_eq(rd(CAPABILITIES), e->caps);
	check(wr_faults(CAPABILITIES, e->caps));
	check_eq(writable_bits(CAPABILITIES), 0);
}

static void test_other_registers(const struct expectation *e)
{
	static const uint32_t foreign[] = {
		0x10, 0xc0, 0xc9, 0x185, 0x18e, 0x19f, 0x1a1, 0x1d8, 0x308, 0x310,
		0x328, 0x32a, 0x344, 0x346, 0x38c, 0x393, 0x4c0, 0x4c9, 0xc0000080,
	};
	uint64_t val, debugctl;

	for (unsigned int i = 0; i < ARRAY_SIZE(foreign); i++) {
		check(pmu_rdmsr(&pmu, foreign[i], &val) == PMU_FOREIGN, "%#x", foreign[i]);
		check(pmu_wrmsr(&pmu, foreign[i], 0) == PMU_FOREIGN, "%#x", foreign[i]);
	}
	check(rd_faults(0x3f1) && wr_faults(0x3f1, 0));	/* no PEBS */

	/* freeze on PMI; LBR, BTF and freeze LBRs, but no BTS without DS */
	debugctl = BIT(0) | BIT(1) | BIT(11) | BIT(12);
	if (e->caps & BIT(12))			/* freeze in SMM */
		debugctl |= BIT(14);
	check_eq(writable_bits(DEBUGCTL), debugctl);
	for (unsigned int i = 0; i < 64; i++)
		check_eq(pmu_debugctl_valid(&pmu, BIT(i)), debugctl >> i & 1);

	/* fast strings, PMU there; neither BTS nor PEBS, read-only */
	check_eq(rd(MISC_ENABLE), BIT(0) | BIT(7) | BIT(11) | BIT(12));
	check_eq(writable_bits(MISC_ENABLE),
		 BIT(0) | BIT(3) | BIT(7) | BIT(11) | BIT(12) | BIT(16));
	wr(MISC_ENABLE, 0);
	check_eq(rd(MISC_ENABLE), BIT(7) | BIT(11) | BIT(12));

	if (!e->metrics)
		check(rd_faults(METRICS) && wr_faults(METRICS, 0));
}

/* Each keeps what is written; those of other CPUs are none of the PMU's. */
static void test_extra_registers(const struct expectation *e)
{
	static const uint32_t msrs[] = { 0x1a6, 0x1a7, 0x3f6, 0x3f7, 0x1328, 0x1329 };
	uint64_t val;

	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++) {
		if (!e->extra[i]) {
			check(pmu_rdmsr(&pmu, msrs[i], &val) == PMU_FOREIGN, "%#x", msrs[i]);
			check(pmu_wrmsr(&pmu, msrs[i], 0) == PMU_FOREIGN, "%#x", msrs[i]);
			continue;
		}
		check_eq(writable_bits(msrs[i]), e->extra[i]);
		wr(msrs[i], e->extra[i] & ~BIT(i));
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++)
		if (e->extra[i])
			check_eq(rd(msrs[i]), e->extra[i] & ~BIT(i));
	check(pmu_rdmsr(&pmu, 0, &val) == PMU_FOREIGN);
	pmu_reset(&pmu);
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++)
		if (e->extra[i])
			check_eq(rd(msrs[i]), 0);
}

static void test_rdpmc(const struct expectation *e)
{
	for (unsigned int i = 0; i < 8; i++)
		wr(PMC(i), 0xffff00000000 + i);
	for (unsigned int i = 0; i < 7; i++)
		if (e->fixed_mask & BIT(i))
			wr(FIXED(i), 0xeeee00000000 + i);

	for (uint32_t type = 0; type <= 0xffff; type++) {
		for (unsigned int i = 0; i <= 16; i++) {
			uint32_t ecx = type << 16 | i;

			if (type == 0 && i < 8)
				check_eq(rdpmc(ecx), 0xffff00000000 + i);
			else if (type == 0x4000 && e->fixed_mask & BIT(i))
				check_eq(rdpmc(ecx), 0xeeee00000000 + i);
			else if (type == 0x2000 && i == 0 && e->metrics)
				check_eq(rdpmc(ecx), rd(METRICS));
			else
				check(rdpmc_faults(ecx), "ECX %#x", ecx);
		}
		for (unsigned int bit = 8; bit < 16; bit++)
			check(rdpmc_faults(type << 16 | 1 << bit));
	}
}

static void test_vmx_fields(const struct expectation *e)
{
	for (unsigned int i = 0; i < 64; i++)
		check_eq(pmu_global_ctrl_valid(&pmu, BIT(i)), counter_bits(e) >> i & 1);
	check(pmu_global_ctrl_valid(&pmu, 0));
	check_eq(pmu_global_ctrl_valid(&pmu, BIT(48)), !!e->metrics);

	/* VM-Entry starts, VM-Exit stops a counter at that very point. */
	wr(EVTSEL(0), OS | EN | INSTRUCTIONS);
	wr(GLOBAL_CTRL, 0);
	run(PMU_STEP, 5);
	pmu_load(&pmu, MSR_PERF_GLOBAL_CTRL, BIT(0));
	check_eq(rd(GLOBAL_CTRL), BIT(0));
	run(PMU_STEP, 7);
	pmu_load(&pmu, MSR_PERF_GLOBAL_CTRL, 0);
	run(PMU_STEP, 11);
	check_eq(rd(PMC(0)), 7);
	pmu_load(&pmu, MSR_DEBUGCTL, BIT(12));
	check_eq(rd(DEBUGCTL), BIT(12));
}

static void test_retired(void)
{
	count_event(OS | EN | INSTRUCTIONS);
	run(PMU_STEP, 100);
	check_eq(rd(PMC(0)), 100);

	/* An attempt taken back retires nothing. */
	run(PMU_ABORTED, 3);
	check_eq(rd(PMC(0)), 100);

	/* REP with four iterations is one instruction. */
	act.n[PMU_STEP] += 4;
	act.n[PMU_REP] += 4;
	act.n[PMU_CONTINUED] += 3;
	pmu_report(&pmu, &act);
	check_eq(rd(PMC(0)), 101);

	/* All of that is time, though. */
	count_event(OS | EN | REF_CYCLES);
	run(PMU_ABORTED, 3);
	run(PMU_CONTINUED, 2);
	run(PMU_STEP, 1);
	check_eq(rd(PMC(0)), 6);
}

static void test_events(void)
{
	static const enum pmu_act kinds[] = {
		PMU_STEP, PMU_BRANCH_TAKEN, PMU_BRANCH_NOT_TAKEN, PMU_LOAD, PMU_STORE, PMU_FLUSH
	};
	/* what a run of ten with one kind of activity each makes of an event */
	static const struct {
		uint64_t event;
		unsigned int count[ARRAY_SIZE(kinds)];
	} table[] = {
		{ INSTRUCTIONS,	   { 10, 10, 10, 10, 10, 10 } },
		{ REF_CYCLES,	   { 10, 10, 10, 10, 10, 10 } },
		{ BRANCHES,	   { 0, 10, 10, 0, 0, 0 } },
		{ BRANCH_MISSES,   { 0, 0, 10, 0, 0, 0 } },
		{ ALL_LOADS,	   { 0, 0, 0, 10, 0, 0 } },
		{ ALL_STORES,	   { 0, 0, 0, 0, 10, 0 } },
		{ ALL_ACCESSES,	   { 0, 0, 0, 10, 10, 0 } },
		{ LLC_REFERENCES,  { 0, 0, 0, 0, 0, 10 } },
		{ LLC_MISSES,	   { 0, 0, 0, 0, 0, 10 } },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(table); i++) {
		for (unsigned int k = 0; k < ARRAY_SIZE(kinds); k++) {
			count_event(table[i].event | OS | EN);
			run(kinds[k], 10);
			check_eq(rd(PMC(0)), table[i].count[k]);
		}
	}
}

/* The events that count what PERF_METRICS has fractions of. */
static void test_topdown_events(void)
{
	static const struct {
		uint64_t event;
		unsigned int metric;
	} raw[] = {
		{ RETIRING, 0 }, { BAD_SPECULATION, 1 }, { FRONTEND_BOUND, 2 }, { BACKEND_BOUND, 3 },
		{ MISPREDICTS, 5 }, { MEMORY_BOUND, 7 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(raw); i++) {
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++) {
			uint64_t slots, product;

			start_topdown();
			wr(PMC(0), 0);
			wr(EVTSEL(0), raw[i].event | OS | USR | EN);
			wr(GLOBAL_CTRL, BIT(0) | BIT(35) | BIT(48));
			run(a, 255);
			/* The fraction is rounded. */
			slots = rd(FIXED(3));
			product = slots * (rd(METRICS) >> 8 * raw[i].metric & 0xff);
			check(product + slots / 2 >= rd(PMC(0)) * 255);
			check(product <= rd(PMC(0)) * 255 + slots / 2);
		}
		/* How slots spread over cycles isn't modelled. */
		check_eq(counted(raw[i].event | CMASK(1), PMU_STEP, 10), 0);
		check_eq(counted(raw[i].event | EDGE, PMU_STEP, 10), 0);
	}
}

/* CPUs without PERF_METRICS lack them, those with level 1 alone have no others. */
static void test_topdown_events_of_others(void)
{
	for (unsigned int v = 1; v < NR_VARIANTS; v++) {
		memset(&act, 0, sizeof(act));
		pmu_init(&pmu, pmu_variant_by_name(names[v]), 0);
		check_eq(!!counted(RETIRING, PMU_STEP, 10), expected[v].metrics >= 4);
		check_eq(!!counted(FRONTEND_BOUND, PMU_STEP, 10), expected[v].metrics >= 4);
		check_eq(!!counted(BACKEND_BOUND, PMU_STEP, 10), expected[v].metrics >= 4);
		check_eq(!!counted(BAD_SPECULATION, PMU_ABORTED, 10), expected[v].metrics == 8);
		check_eq(!!counted(MISPREDICTS, PMU_BRANCH_NOT_TAKEN, 10), expected[v].metrics == 8);
		check_eq(!!counted(MEMORY_BOUND, PMU_LOAD, 10), expected[v].metrics == 8);
	}
}

static void test_unknown_events(void)
{
	for (unsigned int event = 0; event < 0x10000; event++) {
		switch (event) {
		case CYCLES: case INSTRUCTIONS: case REF_CYCLES: case LLC_REFERENCES:
		case LLC_MISSES: case BRANCHES: case BRANCH_MISSES: case SLOTS:
		case ALL_LOADS: case ALL_STORES: case ALL_ACCESSES: case RETIRING:
		case FRONTEND_BOUND: case BACKEND_BOUND: case BAD_SPECULATION:
		case MISPREDICTS: case MEMORY_BOUND:
			continue;
		}
		wr(EVTSEL(0), event | OS | EN);
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			run(a, 3);
	}
	check_eq(rd(PMC(0)), 0);
}

static void test_fixed_quantities(void)
{
	static const struct {
		unsigned int fixed;
		uint64_t event;
	} same[] = { { 0, INSTRUCTIONS }, { 1, CYCLES }, { 2, REF_CYCLES }, { 3, SLOTS } };

	for (unsigned int i = 0; i < 4; i++)
		wr(EVTSEL(i), same[i].event | OS | EN);
	wr(FIXED_CTRL, 0x1111);
	wr(GLOBAL_CTRL, 0xf0000000full);
	for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
		run(a, 1000 + a);
	for (unsigned int i = 0; i < 4; i++) {
		check_eq(rd(FIXED(i)), rd(PMC(i)));
		check(rd(FIXED(i)), "fixed %u", i);
	}
	check_eq(rd(FIXED(3)), 6 * rd(FIXED(1)));	/* slots per cycle */
}

/* The table in README: slots by metric, and cycles are slots by six. */
static void test_cost(void)
{
	static const struct {
		enum pmu_act what;
		bool retires;
		unsigned int slots[8];
	} table[] = {
		{ PMU_STEP,		true,  { 2, 0, 1, 3, 0, 0, 0, 0 } },
		{ PMU_BRANCH_TAKEN,	true,  { 2, 0, 7, 3, 0, 0, 4, 0 } },
		{ PMU_BRANCH_NOT_TAKEN,	true,  { 2, 12, 1, 3, 0, 12, 0, 0 } },
		{ PMU_LOAD,		true,  { 2, 0, 1, 9, 0, 0, 0, 6 } },
		{ PMU_STORE,		true,  { 2, 0, 1, 9, 0, 0, 0, 4 } },
		{ PMU_FLUSH,		true,  { 2, 0, 1, 63, 0, 0, 0, 60 } },
		{ PMU_REP,		true,  { 6, 0, 2, 4, 4, 0, 0, 0 } },
		{ PMU_REP,		false, { 4, 0, 1, 1, 4, 0, 0, 0 } },
		{ PMU_ABORTED,		false, { 0, 12, 6, 0, 0, 0, 6, 0 } },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(table); i++) {
		const unsigned int *slots = table[i].slots;
		unsigned int sum = slots[0] + slots[1] + slots[2] + slots[3];

		start_topdown();
		wr(PMC(0), 0);
		wr(EVTSEL(0), CYCLES | OS | EN);
		wr(GLOBAL_CTRL, BIT(0) | BIT(35) | BIT(48));
		if (!table[i].retires && table[i].what == PMU_REP)
			act.n[PMU_CONTINUED] += 10;
		run(table[i].what, 10);
		check_eq(rd(PMC(0)), 10 * sum / 6);
		check_eq(rd(FIXED(3)), 10 * sum);
		for (unsigned int m = 0; m < 8; m++)
			check_near(byte(rd(METRICS), m), 255.0 * slots[m] / sum);
	}
}

/* Fixed counters 4 to 6: bad speculation, frontend bound, retiring. */
static void test_efficient_core(void)
{
	power_up("cwf");
	wr(FIXED_CTRL, 0x1110000);
	wr(GLOBAL_CTRL, 0x7000000000ull);
	run(PMU_BRANCH_NOT_TAKEN, 10);
	check_eq(rd(FIXED(4)), 120);
	check_eq(rd(FIXED(5)), 10);
	check_eq(rd(FIXED(6)), 20);
	run(PMU_BRANCH_TAKEN, 10);
	check_eq(rd(FIXED(4)), 120);
	check_eq(rd(FIXED(5)), 80);
	check_eq(rd(FIXED(6)), 40);
}

static void test_efficient_core_overflow(void)
{
	power_up("cwf");
	for (unsigned int i = 4; i < 7; i++) {
		for (unsigned int pmi = 0; pmi < 2; pmi++) {
			wr(FIXED_CTRL, (pmi ? 9ull : 1ull) << 4 * i);
			wr(GLOBAL_CTRL, BIT(32 + i));
			wr(FIXED(i), MASK);
			check_eq(pmu_next_overflow(&pmu), pmi ? 1 : UINT64_MAX);
			run(PMU_BRANCH_NOT_TAKEN, 1);
			check_eq(rd(FIXED(i)), i == 4 ? 11 : i == 5 ? 0 : 1);
			check_eq(rd(STATUS), BIT(32 + i));
			check_eq(pmu_take_pmi(&pmu), pmi);
			wr(STATUS_RESET, BIT(32 + i));
			check_eq(rd(STATUS), 0);
		}
	}
}

/* ANY, where it exists, is the same as without; PC has no effect. */
static void test_any(void)
{
	power_up("skx");
	wr(EVTSEL(0), OS | EN | INSTRUCTIONS | BIT(21));
	wr(EVTSEL(1), USR | EN | INSTRUCTIONS | BIT(21));
	wr(EVTSEL(2), OS | EN | INSTRUCTIONS | BIT(19));
	wr(EVTSEL(3), EN | INSTRUCTIONS | BIT(21));
	wr(FIXED_CTRL, 0x465);			/* 0: OS, 1: USR, 2: neither */
	wr(GLOBAL_CTRL, 0x7000000ffull);
	run(PMU_STEP, 10);
	ring(3);
	run(PMU_STEP, 5);
	check_eq(rd(PMC(0)), 10);
	check_eq(rd(PMC(1)), 5);
	check_eq(rd(PMC(2)), 10);
	check_eq(rd(PMC(3)), 0);
	check_eq(rd(FIXED(0)), 10);
	check_eq(rd(FIXED(1)), 5);
	check_eq(rd(FIXED(2)), 0);
}

/* A running counter goes on from what is written, and so does a reading. */
static void test_write_running(void)
{
	wr(EVTSEL(0), OS | EN | INSTRUCTIONS);
	wr(FIXED_CTRL, 0x1);
	wr(GLOBAL_CTRL, BIT(0) | BIT(32));
	run(PMU_STEP, 10);
	wr(PMC(0), 0x123456789abc);
	wr(FIXED(0), 0xabcdef012345);
	check_eq(rd(PMC(0)), 0x123456789abc);
	check_eq(rdpmc(0), 0x123456789abc);
	check_eq(rdpmc(0x40000000), 0xabcdef012345);
	run(PMU_STEP, 10);
	check_eq(rd(PMC(0)), 0x123456789ac6);
	check_eq(rd(FIXED(0)), 0xabcdef01234f);
	wr(PERFCTR(0), 0xfffffff0);
	run(PMU_STEP, 15);
	check_eq(rd(PMC(0)), MASK);
	check_eq(rd(STATUS), 0);
	run(PMU_STEP, 1);
	check_eq(rd(PMC(0)), 0);
	check_eq(rd(STATUS), BIT(0));

	/* Another event goes on in the same counter. */
	wr(EVTSEL(0), OS | EN | ALL_LOADS);
	run(PMU_LOAD, 7);
	check_eq(rd(PMC(0)), 7);
	wr(EVTSEL(0), OS | ALL_LOADS);
	run(PMU_LOAD, 7);
	check_eq(rd(PMC(0)), 7);
}

/* What the four kinds have in common is not wired in. */
static void test_other_variant(void)
{
	struct pmu_variant var = *pmu_variant_by_name("skx");
	uint64_t val;

	/* version 3: no STATUS_SET, no INUSE, no freeze bits; 32 bits to write */
	var.version = 3;
	var.nr_gp = 4;
	var.width = 40;
	var.perf_capabilities = 0;
	memset(&act, 0, sizeof(act));
	pmu_init(&pmu, &var, 0);
	check_eq(rd(GLOBAL_CTRL), 0xf);
	check_eq(writable_bits(GLOBAL_CTRL), 0x70000000full);
	check_eq(writable_bits(STATUS_RESET), 0x70000000full | BIT(61) | BIT(62) | BIT(63));
	check(rd_faults(STATUS_SET) && wr_faults(STATUS_SET, 0));
	check(rd_faults(INUSE) && wr_faults(INUSE, 0));
	check_eq(rd(CAPABILITIES), 0);
	for (unsigned int i = 0; i < 8; i++) {
		check(rd_faults(PMC(i)) && wr_faults(PMC(i), 0));
		if (i < 4) {
			wr(PERFCTR(i), 0x80000000 + i);
			check_eq(rd(PERFCTR(i)), 0xff80000000 + i);
			check_eq(rdpmc(i), 0xff80000000 + i);
			continue;
		}
		check(rd_faults(PERFCTR(i)) && wr_faults(PERFCTR(i), 0));
		check(rd_faults(EVTSEL(i)) && wr_faults(EVTSEL(i), 0));
		check(rdpmc_faults(i));
	}
	check_eq(writable_bits(FIXED(0)), BIT(40) - 1);

	/* 40 bits overflow after 40 bits; before version 4 status does not freeze */
	wr(DEBUGCTL, BIT(11) | BIT(12));
	wr(GLOBAL_CTRL, BIT(0));
	wr(EVTSEL(0), OS | EN | INT | INSTRUCTIONS);
	wr(PERFCTR(0), 0xffffffff);
	check_eq(rd(PERFCTR(0)), BIT(40) - 1);
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), BIT(0));
	check(pmu_take_pmi(&pmu));
	run(PMU_STEP, 5);
	check_eq(rd(PERFCTR(0)), 5);

	/* the freeze in SMM has a bit if it is announced */
	check(!pmu_debugctl_valid(&pmu, BIT(14)));
	var.perf_capabilities = BIT(12);
	check(pmu_debugctl_valid(&pmu, BIT(14)));
	wr(DEBUGCTL, BIT(14));

	/* full-width writes but fewer counters */
	var.perf_capabilities = BIT(13);
	check_eq(writable_bits(PMC(3)), BIT(40) - 1);
	check(rd_faults(PMC(4)) && wr_faults(PMC(4), 0));
	check(pmu_rdmsr(&pmu, 0x4c9, &val) == PMU_FOREIGN);
}

/* Counters never count back, not even events that take more than all cycles. */
static void test_inverted(void)
{
	count_event(REF_CYCLES | CMASK(1) | INV | OS | EN);
	run(PMU_LOAD, 10);		/* 20 cycles, 10 reference cycles */
	check_eq(rd(PMC(0)), 10);
	run(PMU_CONTINUED, 10);		/* 10 reference cycles alone */
	check_eq(rd(PMC(0)), 10);
	check_eq(rd(STATUS), 0);
}

static void test_rings(void)
{
	for (unsigned int select = 0; select < 4; select++) {
		unsigned int os = select & 1, usr = select >> 1;

		wr(GLOBAL_CTRL, 0);
		wr(EVTSEL(0), (os ? OS : 0) | (usr ? USR : 0) | EN | INSTRUCTIONS);
		wr(FIXED_CTRL, select);
		wr(PMC(0), 0);
		wr(FIXED(0), 0);
		wr(GLOBAL_CTRL, BIT(0) | BIT(32));
		for (unsigned int cpl = 0; cpl < 4; cpl++) {
			ring(cpl);
			act.n[PMU_STEP] += 10 << 8 * cpl;	/* reported by ring() only */
		}
		ring(0);
		run(PMU_STEP, 1);
		/* USR is every level but 0. */
		check_eq(rd(PMC(0)), os * 11 + usr * (10ull * (BIT(8) + BIT(16) + BIT(24))));
		check_eq(rd(FIXED(0)), rd(PMC(0)));
	}
}

static void test_enables(void)
{
	for (unsigned int i = 0; i < 8; i++) {
		wr(GLOBAL_CTRL, 0xff);
		wr(EVTSEL(i), OS | INSTRUCTIONS);
		run(PMU_STEP, 10);
		check_eq(rd(PMC(i)), 0);	/* EN clear */
		wr(EVTSEL(i), OS | EN | INSTRUCTIONS);
		wr(GLOBAL_CTRL, 0xff & ~BIT(i));
		run(PMU_STEP, 10);
		check_eq(rd(PMC(i)), 0);	/* GLOBAL_CTRL clear */
		wr(GLOBAL_CTRL, BIT(i));
		run(PMU_STEP, 10);
		check_eq(rd(PMC(i)), 10);
		wr(EVTSEL(i), 0);
	}
	for (unsigned int i = 0; i < 4; i++) {
		wr(FIXED_CTRL, 1 << 4 * i);
		wr(GLOBAL_CTRL, (0xfull << 32 | 0xff) & ~BIT(32 + i));
		run(PMU_STEP, 10);
		check_eq(rd(FIXED(i)), 0);
		wr(FIXED_CTRL, 0);
		wr(GLOBAL_CTRL, BIT(32 + i));
		run(PMU_STEP, 10);
		check_eq(rd(FIXED(i)), 0);
	}
}

static void test_filters(void)
{
	uint64_t cycles = counted(CYCLES, PMU_LOAD, 10);

	/* The convention: one occurrence, a cycle of its own. */
	check_eq(counted(ALL_LOADS | CMASK(1), PMU_LOAD, 10), 10);
	check_eq(counted(ALL_LOADS | CMASK(2), PMU_LOAD, 10), 0);
	check_eq(counted(ALL_LOADS | CMASK(255), PMU_LOAD, 10), 0);
	check_eq(counted(ALL_LOADS | CMASK(1) | INV, PMU_LOAD, 10), cycles - 10);
	check_eq(counted(ALL_LOADS | CMASK(2) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(ALL_LOADS | INV, PMU_LOAD, 10), 10);	/* needs CMASK */
	check_eq(counted(ALL_STORES | INV, PMU_LOAD, 10), 0);
	check_eq(counted(SLOTS | INV, PMU_LOAD, 10), 6 * cycles);
	check_eq(counted(ALL_LOADS | EDGE, PMU_LOAD, 10), 10);
	check_eq(counted(ALL_LOADS | EDGE | CMASK(1), PMU_LOAD, 10), 10);
	check_eq(counted(ALL_LOADS | EDGE | CMASK(2), PMU_LOAD, 10), 0);
	check_eq(counted(ALL_LOADS | EDGE | CMASK(1) | INV, PMU_LOAD, 10), 10);

	/* Six slots in each cycle. */
	check_eq(counted(SLOTS | CMASK(6), PMU_LOAD, 10), cycles);
	check_eq(counted(SLOTS | CMASK(7), PMU_LOAD, 10), 0);
	check_eq(counted(SLOTS | CMASK(7) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(SLOTS | CMASK(6) | INV, PMU_LOAD, 10), 0);

	/* A level has no edges, an event never seen neither. */
	check_eq(counted(CYCLES | EDGE | CMASK(1), PMU_LOAD, 10), 0);
	check_eq(counted(CYCLES | CMASK(1), PMU_LOAD, 10), cycles);
	check_eq(counted(0xff | EDGE | CMASK(1) | INV, PMU_LOAD, 10), 0);
	check_eq(counted(0xff | CMASK(1) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(0xff | CMASK(1), PMU_LOAD, 10), 0);
}

/* EQ: as many as CMASK says and no more, or, inverted, any other number. */
static void test_filters_of_version6(void)
{
	uint64_t cycles;

	power_up("cwf");
	cycles = counted(CYCLES, PMU_LOAD, 10);
	check_eq(counted(ALL_LOADS | EQ, PMU_LOAD, 10), 10);	/* needs CMASK */
	check_eq(counted(ALL_LOADS | EQ | EDGE, PMU_LOAD, 10), 10);
	check_eq(counted(ALL_LOADS | EQ | CMASK(1), PMU_LOAD, 10), 10);
	check_eq(counted(ALL_LOADS | EQ | CMASK(2), PMU_LOAD, 10), 0);
	check_eq(counted(ALL_LOADS | EQ | CMASK(1) | INV, PMU_LOAD, 10), cycles - 10);
	check_eq(counted(ALL_LOADS | EQ | CMASK(2) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(0xff | EQ | CMASK(1) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(0xff | EQ | CMASK(1), PMU_LOAD, 10), 0);

	/* A second unit mask makes another event, none of which is modelled. */
	for (unsigned int bit = 0; bit < 8; bit++)
		check_eq(counted(ALL_LOADS | UMASK2(1 << bit), PMU_LOAD, 10), 0);
	count_event(CYCLES | UMASK2(1) | INV | OS | EN | INT);
	wr(PMC(0), MASK);
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);
}

/* Slots come six in a cycle; no CPU with EQ has that event, so one is made up. */
static void test_slots_equal(void)
{
	struct pmu_variant both = *pmu_variant_by_name("spr");
	uint64_t cycles;

	both.perfmon_ext = true;
	pmu_init(&pmu, &both, 0);
	cycles = counted(CYCLES, PMU_LOAD, 10);
	check_eq(counted(SLOTS | EQ | CMASK(6), PMU_LOAD, 10), cycles);
	check_eq(counted(SLOTS | EQ | CMASK(5), PMU_LOAD, 10), 0);
	check_eq(counted(SLOTS | EQ | CMASK(7), PMU_LOAD, 10), 0);
	check_eq(counted(SLOTS | EQ | CMASK(5) | INV, PMU_LOAD, 10), cycles);
	check_eq(counted(SLOTS | EQ | CMASK(6) | INV, PMU_LOAD, 10), 0);
	check_eq(counted(SLOTS | EQ, PMU_LOAD, 10), 6 * cycles);
}

/* Let @counter, which counts instructions or more, wrap on its last count. */
static void check_overflow(uint32_t counter, uint64_t status, bool pmi)
{
	wr(counter, MASK);
	run(PMU_STEP, 0);
	check_eq(rd(STATUS), 0);
	check(!pmu_take_pmi(&pmu));
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), status);
	check(rd(counter) < 6);			/* SLOTS goes by six */
	check_eq(pmu_take_pmi(&pmu), pmi);
	check(!pmu_take_pmi(&pmu));
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), status);
	check(!pmu_take_pmi(&pmu));

	/* Once more, with the status bit still set. */
	wr(counter, MASK);
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), status);
	check_eq(pmu_take_pmi(&pmu), pmi);
	wr(STATUS_RESET, status);
}

static void test_overflow(void)
{
	for (unsigned int pmi = 0; pmi < 2; pmi++) {
		for (unsigned int i = 0; i < 8; i++) {
			wr(EVTSEL(i), OS | EN | (pmi ? INT : 0) | INSTRUCTIONS);
			wr(GLOBAL_CTRL, BIT(i));
			check_overflow(PMC(i), BIT(i), pmi);

			/* not before the last count */
			wr(PMC(i), MASK - 100);
			run(PMU_STEP, 100);
			check_eq(rd(PMC(i)), MASK);
			check_eq(rd(STATUS), 0);
			wr(PMC(i), 0);
		}
		for (unsigned int i = 0; i < 4; i++) {
			wr(FIXED_CTRL, (pmi ? 9ull : 1ull) << 4 * i);
			wr(GLOBAL_CTRL, BIT(32 + i));
			check_overflow(FIXED(i), BIT(32 + i), pmi);
		}
	}
}

static void test_lvtpc(void)
{
	uint32_t nmi = 0x4ee, lvtpc = nmi;	/* delivery mode NMI, some vector */

	check(pmu_lvtpc_delivers(&lvtpc));
	check_eq(lvtpc, nmi | 1 << 16);
	check(!pmu_lvtpc_delivers(&lvtpc));
	check_eq(lvtpc, nmi | 1 << 16);

	/* Software clears the mask bit. */
	lvtpc = nmi;
	check(pmu_lvtpc_delivers(&lvtpc));
}

static void test_freeze(void)
{
	wr(EVTSEL(0), OS | EN | INT | INSTRUCTIONS);
	wr(EVTSEL(1), OS | EN | INSTRUCTIONS);
	wr(GLOBAL_CTRL, 3);

	/* without DEBUGCTL[12] */
	wr(PMC(0), MASK);
	run(PMU_STEP, 1);
	run(PMU_STEP, 10);
	check_eq(rd(STATUS), BIT(0));
	check_eq(rd(PMC(1)), 11);
	wr(STATUS_RESET, BIT(0));
	pmu_take_pmi(&pmu);

	/* an overflow that asks for no PMI freezes nothing */
	wr(DEBUGCTL, BIT(12));
	wr(PMC(1), MASK);
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), BIT(1));
	run(PMU_STEP, 10);
	check_eq(rd(PMC(1)), 10);
	wr(STATUS_RESET, BIT(1));

	wr(PMC(0), MASK);
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), BIT(0) | BIT(59));
	check(pmu_take_pmi(&pmu));
	check_eq(rd(GLOBAL_CTRL), 3);
	check_eq(rd(PMC(1)), 11);
	run(PMU_STEP, 10);
	ring(3);
	ring(0);
	run(PMU_STEP, 10);
	check_eq(rd(PMC(0)), 0);
	check_eq(rd(PMC(1)), 11);
	wr(GLOBAL_CTRL, 3);
	run(PMU_STEP, 10);
	check_eq(rd(PMC(1)), 11);
	wr(STATUS_RESET, BIT(0));
	run(PMU_STEP, 10);
	check_eq(rd(PMC(1)), 11);
	wr(STATUS_RESET, BIT(59));
	run(PMU_STEP, 10);
	check_eq(rd(PMC(0)), 10);
	check_eq(rd(PMC(1)), 21);

	/* a fixed counter freezes all others as well, and LBRs have a bit */
	wr(DEBUGCTL, BIT(11) | BIT(12));
	wr(GLOBAL_CTRL, 3 | BIT(32));
	wr(FIXED_CTRL, 0x9);
	wr(FIXED(0), MASK);
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), BIT(32) | BIT(58) | BIT(59));
	check(pmu_take_pmi(&pmu));
	run(PMU_STEP, 10);
	check_eq(rd(FIXED(0)), 0);
	check_eq(rd(PMC(1)), 22);
	wr(STATUS_RESET, BIT(32) | BIT(58) | BIT(59));
	wr(FIXED_CTRL, 0);
	wr(PMC(1), 21);

	/* software may freeze, too */
	wr(STATUS_SET, BIT(59));
	run(PMU_STEP, 10);
	check_eq(rd(PMC(1)), 21);
}

/* An overflow found as the ring changes is told, even if it freezes. */
static void test_freeze_at_ring_change(void)
{
	for (unsigned int freeze = 0; freeze < 2; freeze++) {
		wr(DEBUGCTL, freeze ? BIT(12) : 0);
		count_event(OS | USR | EN | INT | INSTRUCTIONS);
		wr(PMC(0), MASK - 4);
		act.n[PMU_STEP] += 5;
		check(pmu_set_ring(&pmu, &act, 3));
		check(pmu_take_pmi(&pmu));
		check_eq(rd(STATUS), BIT(0) | (freeze ? BIT(59) : 0));
		act.n[PMU_STEP] += 5;
		check_eq(pmu_set_ring(&pmu, &act, 0), !freeze);
		check(!pmu_take_pmi(&pmu));
		pmu_report(&pmu, &act);
		check_eq(rd(PMC(0)), freeze ? 0 : 5);
		wr(STATUS_RESET, BIT(0) | BIT(59));
	}

	/* LBRs alone, which stops no counter; the same in version 4 */
	for (unsigned int i = 0; i < 2; i++) {
		power_up(i ? "skx" : "spr");
		wr(DEBUGCTL, BIT(11));
		count_event(OS | EN | INT | INSTRUCTIONS);
		wr(PMC(0), MASK);
		run(PMU_STEP, 1);
		check_eq(rd(STATUS), BIT(0) | BIT(58));
		run(PMU_STEP, 5);
		check_eq(rd(PMC(0)), 5);
	}
	wr(DEBUGCTL, BIT(12));
	wr(PMC(0), MASK);
	run(PMU_STEP, 1);
	run(PMU_STEP, 5);
	check_eq(rd(STATUS), BIT(0) | BIT(58) | BIT(59));
	check_eq(rd(PMC(0)), 0);

	/* RESET forgets what is pending */
	check(pmu_take_pmi(&pmu));
	wr(STATUS_RESET, BIT(59));
	wr(PMC(0), MASK);
	run(PMU_STEP, 1);
	pmu_reset(&pmu);
	check(!pmu_take_pmi(&pmu));
}

static void test_freeze_in_smm(void)
{
	for (unsigned int freeze = 0; freeze < 2; freeze++) {
		uint64_t debugctl = BIT(0) | BIT(1) | BIT(11) | (freeze ? BIT(14) : 0);

		wr(DEBUGCTL, debugctl);
		count_event(OS | EN | INT | INSTRUCTIONS);
		run(PMU_STEP, 5);
		pmu_enter_smm(&pmu);
		check_eq(rd(GLOBAL_CTRL), freeze ? 0 : BIT(0));
		check_eq(rd(DEBUGCTL), freeze ? BIT(11) | BIT(14) : debugctl);
		check_eq(pmu_next_overflow(&pmu) == UINT64_MAX, freeze);
		run(PMU_STEP, 100);
		check_eq(rd(PMC(0)), freeze ? 5 : 105);
		pmu_leave_smm(&pmu);
		check_eq(rd(GLOBAL_CTRL), BIT(0));
		check_eq(rd(DEBUGCTL), debugctl);
		check(pmu_next_overflow(&pmu) != UINT64_MAX);
		run(PMU_STEP, 7);
		check_eq(rd(PMC(0)), freeze ? 12 : 112);
	}

	/* What is left alone isn't put back, and RESET forgets. */
	wr(DEBUGCTL, 0);
	pmu_enter_smm(&pmu);
	wr(GLOBAL_CTRL, BIT(1));
	pmu_leave_smm(&pmu);
	check_eq(rd(GLOBAL_CTRL), BIT(1));
	wr(DEBUGCTL, BIT(14));
	pmu_enter_smm(&pmu);
	pmu_reset(&pmu);
	pmu_leave_smm(&pmu);
	check_eq(rd(GLOBAL_CTRL), 0xff);
}

static void test_next_overflow(void)
{
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);
	count_event(OS | EN | INSTRUCTIONS);
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);	/* asks for no PMI */
	count_event(OS | EN | INT | INSTRUCTIONS);
	wr(PMC(0), MASK - 99);
	check_eq(pmu_next_overflow(&pmu), 100);
	check(pmu_set_ring(&pmu, &act, 3));
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);	/* not in this ring */
	ring(0);
	wr(STATUS_SET, BIT(59));
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);	/* frozen */
	wr(STATUS_RESET, BIT(59));

	/* Asked as told, the PMI of any event comes without delay. */
	for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++) {
		static const uint64_t all[] = { INSTRUCTIONS, CYCLES, SLOTS, BRANCHES, ALL_LOADS };

		for (unsigned int i = 0; i < 5; i++) {
			uint64_t sel = OS | EN | INT | all[i], one;
			bool pmi = false;

			/* How many counts a step is worth; some are late. */
			count_event(sel);
			run(a, 1);
			one = rd(PMC(0));
			if (!one || a == PMU_FLUSH)
				continue;

			wr(PMC(0), BIT(WIDTH) - 5000);
			for (unsigned int asked = 0; asked < 10000 && !pmi; asked++) {
				run(a, pmu_next_overflow(&pmu));
				pmi = pmu_take_pmi(&pmu);
			}
			check(pmi, "activity %u, event %#x", a, (unsigned int)all[i]);
			check(rd(PMC(0)) < one, "activity %u, event %#x", a, (unsigned int)all[i]);
			wr(STATUS_RESET, BIT(0));
		}
	}

	/* INV without CMASK is none: still 24 slots to a step, not 4 cycles. */
	count_event(SLOTS | OS | EN | INT | INV);
	wr(PMC(0), BIT(WIDTH) - 2400);
	check(pmu_next_overflow(&pmu) <= 100);
	count_event(ALL_LOADS | OS | EN | INT | INV | CMASK(1));
	wr(PMC(0), BIT(WIDTH) - 2400);
	check(pmu_next_overflow(&pmu) <= 600);

	/* An event that does not exist happens never, but its absence does. */
	count_event(0xff | OS | EN | INT);
	wr(PMC(0), MASK);
	check_eq(pmu_next_overflow(&pmu), UINT64_MAX);
	count_event(0xff | OS | EN | INT | INV | CMASK(1));
	wr(PMC(0), MASK);
	check_eq(pmu_next_overflow(&pmu), 1);

	/* backend bound: 16 in REP MOVS with one iteration (3 + 1 + 6 + 6) */
	wr(GLOBAL_CTRL, 0);
	wr(FIXED_CTRL, 0x9000);
	wr(FIXED(3), BIT(WIDTH) - 1600);
	wr(METRICS, 0xff000000);
	wr(FIXED(3), 0);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	check(pmu_next_overflow(&pmu) <= 100);

	/* frontend bound: 12 in a branch whose target faults */
	power_up("cwf");
	wr(FIXED_CTRL, 0x900000);
	wr(FIXED(5), BIT(WIDTH) - 1200);
	wr(GLOBAL_CTRL, BIT(37));
	check(pmu_next_overflow(&pmu) <= 100);
}

static void test_metrics_exact(const struct expectation *e)
{
	static const uint64_t slots[] = {
		1, 2, 3, 254, 255, 256, 1000003, BIT(31), BIT(40) + 7, MASK
	};

	for (unsigned int i = 0; e->metrics && i < ARRAY_SIZE(slots); i++) {
		wr(FIXED(3), slots[i]);
		for (unsigned int b = 0; b < 256; b++) {
			uint64_t val = 0;

			for (unsigned int m = 0; m < e->metrics; m++)
				val |= (uint64_t)(uint8_t)(b + 37 * m) << 8 * m;
			wr(METRICS, val);
			check_eq(rd(METRICS), val);
			check_eq(rdpmc(0x20000000), val);
			check_eq(rd(FIXED(3)), slots[i]);
		}
	}
}

static void test_metrics_reserved(const struct expectation *e)
{
	if (e->metrics)
		check_eq(writable_bits(METRICS), e->metrics == 8 ? UINT64_MAX : 0xffffffff);
	else
		check_eq(writable_bits(METRICS), 0);
}

static void test_metrics_order(void)
{
	/* right: SLOTS, then PERF_METRICS */
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	check_eq(rd(METRICS), 0x40);

	/* A write to SLOTS alone keeps the internal counts: 64 / 255 of 1000
	 * slots are 32 / 255 of 2000 and all of 250.
	 */
	wr(FIXED(3), 2000);
	check_eq(rd(METRICS), 0x20);
	wr(FIXED(3), 500);
	check_eq(rd(METRICS), 0x80);
	wr(FIXED(3), 100);
	check_eq(rd(METRICS), 0xff);	/* never above */

	/* wrong: PERF_METRICS against the old SLOTS, then the new SLOTS */
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	wr(FIXED(3), 4000);
	check_eq(rd(METRICS), 0x10);

	/* Nothing is a fraction of nothing. */
	wr(FIXED(3), 0);
	check_eq(rd(METRICS), 0);
	wr(METRICS, UINT64_MAX);
	wr(FIXED(3), 1000);
	check_eq(rd(METRICS), 0);
}

/* round(255 * count / SLOTS), where the count is given by the old SLOTS */
static void test_metrics_rounding(const struct expectation *e)
{
	static const struct {
		uint64_t old, now;
		unsigned int fraction, expected;
	} table[] = {
		{ 2, 4, 1, 1 },			/* 0.5 */
		{ 2, 5, 1, 0 },			/* 0.4 */
		{ 2, 3, 1, 1 },			/* 0.67 */
		{ 10, 20, 3, 2 },		/* 1.5 */
		{ 100, 201, 3, 1 },		/* 1.49 */
		{ 100, 199, 3, 2 },		/* 1.51 */
		{ 509, 510, 255, 255 },		/* 254.5 */
		{ 508, 510, 255, 254 },		/* 254 */
		{ 1, BIT(47), 255, 0 },
		{ BIT(46), BIT(47), 255, 128 },	/* 127.5 */
		{ MASK, BIT(47), 127, 254 },
		{ BIT(47), MASK, 127, 64 },	/* 63.5 and a trace */
		{ 1000, 999, 255, 255 },
		{ MASK, 1, 255, 255 },
		{ MASK, 0, 255, 0 },
	};

	for (unsigned int i = 0; e->metrics && i < ARRAY_SIZE(table); i++) {
		for (unsigned int m = 0; m < e->metrics; m++) {
			wr(FIXED(3), table[i].old);
			wr(METRICS, (uint64_t)table[i].fraction << 8 * m);
			wr(FIXED(3), table[i].now);
			check_eq(rd(METRICS), (uint64_t)table[i].expected << 8 * m);
			check_eq(rdpmc(0x20000000), rd(METRICS));
		}
	}
	if (!e->metrics)
		check(rdpmc_faults(0x20000000));
}

/* The second level exists from Sapphire Rapids on. */
static void test_metrics_second_level(const struct expectation *e)
{
	if (!e->metrics)
		return;
	start_topdown();
	for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
		run(a, 100);
	for (unsigned int m = 0; m < 8; m++)
		check_eq(!!byte(rd(METRICS), m), m < e->metrics);

	/* and so does the overflow of its internal counts */
	wr(GLOBAL_CTRL, 0);
	wr(FIXED(3), MASK);
	if (e->metrics == 8)
		wr(METRICS, 0xffull << 56);
	wr(FIXED(3), 0);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_LOAD, 1);
	check_eq(rd(STATUS), e->metrics == 8 ? BIT(48) : 0);

	/* where nobody could have reset them, they must not overflow either */
	for (unsigned int i = 0; e->metrics == 4 && i < 4; i++) {
		wr(METRICS, 0);
		act.n[PMU_LOAD] += BIT(44);
		run(PMU_STEP, 0);
		check_eq(rd(STATUS) & BIT(48), 0);
	}
}

static void test_metrics_continue(void)
{
	uint64_t slots;

	/* 1000 restored slots of retiring, then as many of something else */
	wr(GLOBAL_CTRL, 0);
	wr(FIXED_CTRL, 0x1000);
	wr(FIXED(3), 1000);
	wr(METRICS, 0xff);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_ABORTED, 1000);
	slots = rd(FIXED(3));
	check(slots > 1000);
	check_eq(byte(rd(METRICS), 0), (255 * 1000 + slots / 2) / slots);
}

static void test_metrics_enables(void)
{
	static const struct {
		uint64_t global, fixed;
		unsigned int cpl;
		bool slots, metrics;
	} table[] = {
		{ BIT(35) | BIT(48), 0x1000, 0, true, true },
		{ BIT(35) | BIT(48), 0x1000, 3, false, false },
		{ BIT(35) | BIT(48), 0x2000, 0, false, false },
		{ BIT(35) | BIT(48), 0x2000, 3, true, true },
		{ BIT(35) | BIT(48), 0x0000, 0, false, false },
		{ BIT(35), 0x3000, 0, true, false },
		{ BIT(48), 0x3000, 0, false, false },
		{ 0, 0x3000, 0, false, false },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(table); i++) {
		wr(GLOBAL_CTRL, 0);
		wr(FIXED_CTRL, table[i].fixed);
		wr(FIXED(3), 0);
		wr(METRICS, 0);
		wr(GLOBAL_CTRL, table[i].global);
		ring(table[i].cpl);
		run(PMU_LOAD, 100);
		ring(0);
		wr(GLOBAL_CTRL, 0);
		check_eq(!!rd(FIXED(3)), table[i].slots);
		wr(FIXED(3), 100);
		check_eq(!!rd(METRICS), table[i].metrics);
	}
}

static void check_levels(void)
{
	uint64_t val = rd(METRICS);
	unsigned int sum = 0;

	for (unsigned int m = 0; m < 4; m++)
		sum += byte(val, m);
	check(sum >= 253 && sum <= 257, "level 1 sums to %u", sum);
	for (unsigned int m = 0; m < 4; m++)
		check(byte(val, 4 + m) <= byte(val, m), "metric %u above its parent", 4 + m);
}

static void test_metrics_levels(void)
{
	srand(1);
	for (unsigned int i = 0; i < 2000; i++) {
		start_topdown();
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			if (a != PMU_CONTINUED && rand() & 1)
				run(a, rand() % 1000);
		if (rd(FIXED(3)))
			check_levels();
	}

	/* Each kind of activity alone adds up to whole cycles. */
	for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++) {
		start_topdown();
		run(a, 1);
		check_eq(rd(FIXED(3)) % 6, 0);
	}
}

static void test_loops_differ(void)
{
	uint64_t branches, loads;

	start_topdown();
	run(PMU_BRANCH_TAKEN, 10000);
	branches = rd(METRICS);
	start_topdown();
	run(PMU_LOAD, 10000);
	loads = rd(METRICS);
	check(byte(branches, 2) > byte(loads, 2) + 50);	/* frontend bound */
	check(byte(loads, 3) > byte(branches, 3) + 50);	/* backend bound */
	check(byte(loads, 7) > byte(branches, 7) + 50);	/* memory bound */
}

static void test_metrics_overflow(void)
{
	for (unsigned int pmi = 0; pmi < 2; pmi++) {
		uint64_t status;

		wr(GLOBAL_CTRL, 0);
		wr(FIXED_CTRL, pmi ? 0x9000 : 0x1000);
		wr(FIXED(3), MASK);
		wr(METRICS, 0xff);		/* retiring: one short of the end */
		wr(FIXED(3), 0);		/* SLOTS itself is far from it */
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		if (pmi)
			check(pmu_next_overflow(&pmu) < 10);
		check_eq(rd(STATUS), 0);
		run(PMU_STEP, 10);
		status = rd(STATUS);
		check_eq(status, BIT(48));
		check_eq(pmu_take_pmi(&pmu), pmi);
		wr(STATUS_RESET, BIT(48));
		check_eq(rd(STATUS), 0);
		run(PMU_STEP, 10);
		check_eq(rd(STATUS), 0);
		check(byte(rd(METRICS), 0) < 0xff);
	}

	/* each of them, at the very last slot and not before */
	for (unsigned int m = 0; m < 8; m++) {
		static const struct { enum pmu_act what; unsigned int slots; } each[] = {
			{ PMU_STEP, 2 }, { PMU_ABORTED, 12 }, { PMU_STEP, 1 }, { PMU_STEP, 3 },
			{ PMU_REP, 4 }, { PMU_BRANCH_NOT_TAKEN, 12 }, { PMU_BRANCH_TAKEN, 4 },
			{ PMU_STORE, 4 },
		};

		wr(GLOBAL_CTRL, 0);
		wr(FIXED_CTRL, 0x9000);
		wr(FIXED(3), MASK - 10 * each[m].slots);
		wr(METRICS, 0xffull << 8 * m);
		wr(FIXED(3), 0);
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		run(each[m].what, 10);
		check_eq(rd(STATUS), 0);
		check(!pmu_take_pmi(&pmu));
		run(each[m].what, 1);
		check_eq(rd(STATUS), BIT(48));
		check(pmu_take_pmi(&pmu));
		wr(STATUS_RESET, BIT(48));
	}

	/* with freeze on PMI */
	wr(GLOBAL_CTRL, 0);
	wr(DEBUGCTL, BIT(12));
	wr(FIXED(3), MASK);
	wr(METRICS, 0xff00);
	wr(FIXED(3), 0);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_ABORTED, 1);
	check_eq(rd(STATUS), BIT(48) | BIT(59));
}

/* The same activity gives the same counts, however often somebody looks. */
static void test_not_when_asked(void)
{
	uint64_t result[2][16];

	for (unsigned int often = 0; often < 2; often++) {
		static const uint64_t sel[] = {
			OS | EN | INSTRUCTIONS, USR | EN | INSTRUCTIONS, OS | USR | EN | CYCLES,
			USR | EN | BRANCHES, OS | EN | ALL_LOADS, OS | USR | EN | LLC_MISSES,
			OS | EN | SLOTS | CMASK(4), USR | EN | BRANCH_MISSES | CMASK(1) | INV,
		};
		unsigned int seed = 42;

		power_up("spr");
		for (unsigned int i = 0; i < 8; i++)
			wr(EVTSEL(i), sel[i]);
		wr(FIXED_CTRL, 0x3213);
		wr(GLOBAL_CTRL, 0xff | BIT(48) | 0xfull << 32);
		for (unsigned int i = 0; i < 20000; i++) {
			seed = seed * 1103515245 + 12345;
			act.n[PMU_STEP]++;
			if ((seed >> 16 & 7) != PMU_STEP)
				act.n[seed >> 16 & 7]++;
			if (!(seed >> 20 & 15))
				ring(seed >> 24 & 3);
			if (often)
				pmu_report(&pmu, &act);
		}
		pmu_report(&pmu, &act);
		for (unsigned int i = 0; i < 8; i++)
			result[often][i] = rd(PMC(i));
		for (unsigned int i = 0; i < 4; i++)
			result[often][8 + i] = rd(FIXED(i));
		result[often][12] = rd(METRICS);
	}
	for (unsigned int i = 0; i < 13; i++)
		check_eq(result[1][i], result[0][i]);
}

static void test_late_start(void)
{
	for (unsigned int a = 0; a < PMU_NR_ACTS; a++)
		act.n[a] = BIT(40) + a;
	pmu_report(&pmu, &act);
	count_event(OS | EN | INSTRUCTIONS);
	run(PMU_STEP, 100);
	check_eq(rd(PMC(0)), 100);
}

/* MPERF and APERF: reference and core cycles, whatever is enabled. */
static void test_unhalted_cycles(void)
{
	static const uint64_t event[2] = { REF_CYCLES, CYCLES };

	for (unsigned int i = 0; i < 2; i++) {
		uint64_t before;

		check_eq(writable_bits(0xe7 + i), UINT64_MAX);
		wr(0xe7 + i, 0);
		before = rd(0xe7 + i);
		check_eq(before, 0);
		count_event(OS | USR | EN | event[i]);
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			run(a, 10);
		check_eq(rd(0xe7 + i), rd(PMC(0)));
		check(rd(0xe7 + i) > 0);
		wr(GLOBAL_CTRL, 0);
		before = rd(0xe7 + i);
		run(PMU_STEP, 10);
		check(rd(0xe7 + i) > before);
		wr(0xe7 + i, 0x123456789abcdef0);
		check_eq(rd(0xe7 + i), 0x123456789abcdef0);
		pmu_reset(&pmu);
		check_eq(rd(0xe7 + i), 0);
	}
}

static void test_two_cpus(void)
{
	struct pmu other;
	uint64_t val;

	pmu_init(&other, pmu_variant_by_name("spr"), 0);
	count_event(OS | EN | INSTRUCTIONS);
	run(PMU_STEP, 10);
	check(pmu_rdmsr(&other, PMC(0), &val) == PMU_OK && val == 0);
	check(pmu_rdmsr(&other, EVTSEL(0), &val) == PMU_OK && val == 0);
}

/* --- Readings other than the default, see enum pmu_reading --- */

#define POISONED	0xa5a5a5a5a5a5a5a5ull

static void power_up_as(const char *name, const char *reading)
{
	uint32_t readings = pmu_reading_by_name(reading);

	check(readings, "%s", reading);
	memset(&act, 0, sizeof(act));
	pmu_init(&pmu, pmu_variant_by_name(name), readings);
}

/* Neither register alone makes PERF_METRICS defined again, nor both the wrong way round. */
static void check_poisoned(void)
{
	uint64_t global = rd(GLOBAL_CTRL);

	wr(GLOBAL_CTRL, 0);
	check_eq(rd(METRICS), POISONED);
	check_eq(rdpmc(0x20000000), POISONED);
	wr(METRICS, 0x12);
	check_eq(rd(METRICS), POISONED);
	wr(FIXED(3), 1000);
	check_eq(rd(METRICS), POISONED);
	wr(METRICS, 0x1234);
	check_eq(rd(METRICS), 0x1234);
	check_eq(rd(FIXED(3)), 1000);
	wr(GLOBAL_CTRL, global);
}

static void test_reading_names(void)
{
	check_eq(pmu_reading_by_name(""), 0);
	check_eq(pmu_reading_by_name("slots"), 0);
	check_eq(pmu_reading_by_name("slots-clears"), BIT(PMU_SLOTS_CLEARS));
	check_eq(pmu_reading_by_name("pmi-late"), BIT(PMU_PMI_LATE));
	check_eq(pmu_reading_by_name("strict"),
		 BIT(PMU_SLOTS_UNDEFINED) | BIT(PMU_METRICS_UNDEFINED) |
		 BIT(PMU_OVERFLOW_UNDEFINED) | BIT(PMU_HALF_UNDEFINED) | BIT(PMU_RUNNING_UNDEFINED));
	check_eq(pmu_reading_by_name("others") & pmu_reading_by_name("strict"), 0);
	check_eq(__builtin_popcount(pmu_reading_by_name("others")), 10);

	/* They belong to the CPU, not to its state. */
	power_up_as("spr", "metrics-ones");
	pmu_reset(&pmu);
	check_eq(rd(METRICS), UINT64_MAX);
}

static void test_slots_alone(void)
{
	power_up_as("spr", "slots-clears");
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	wr(FIXED(3), 2000);
	check_eq(rd(METRICS), 0x20);
	wr(FIXED(3), 0);
	wr(FIXED(3), 2000);
	check_eq(rd(METRICS), 0);

	power_up_as("spr", "slots-rescales");
	wr(FIXED(3), 1000);
	wr(METRICS, 0xff00000000000040);
	wr(FIXED(3), MASK);
	check_eq(rd(METRICS), 0xff00000000000040);
	wr(FIXED(3), 255);
	check_eq(rd(METRICS), 0xff00000000000040);

	/* ... however few slots there are, and whatever has been counted. */
	srand(1);
	for (unsigned int i = 0; i < 2000; i++) {
		uint64_t val;

		power_up_as("spr", i & 1 ? "slots-rescales" : "others");
		start_topdown();
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			if (a != PMU_CONTINUED)
				run(a, 1 + rand() % 1000);
		val = rd(METRICS);
		wr(FIXED(3), 1 + rand() % 10);
		check_eq(rd(METRICS), val);
	}

	/* The fractions have become more than all, but nothing overflows of itself. */
	power_up_as("spr", "slots-rescales");
	wr(FIXED(3), MASK);
	wr(METRICS, 0x555555);
	wr(FIXED_CTRL, 0x9000);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_STEP, 2);
	check_eq(rd(FIXED(3)), 11);
	check(pmu_take_pmi(&pmu));
	wr(FIXED(3), MASK);
	check_eq(rd(METRICS) & 0xffffff, 0xffffff);
	wr(STATUS_RESET, BIT(35) | BIT(48));
	for (unsigned int i = 0; i < 10; i++)
		run(PMU_STEP, 0);
	check_eq(rd(STATUS), 0);
	check(!pmu_take_pmi(&pmu));

	power_up_as("spr", "slots-undefined");
	wr(FIXED(3), 1000);
	check_eq(rd(METRICS), POISONED);
	wr(METRICS, 0x40);
	check_eq(rd(METRICS), 0x40);
	wr(FIXED(3), 1000);
	check_eq(rd(METRICS), POISONED);
	check_eq(rd(FIXED(3)), 1000);
	power_up_as("icl", "slots-undefined");
	wr(FIXED(3), 1000);
	check_eq(rd(METRICS), POISONED >> 32);
}

static void test_no_slots(void)
{
	power_up_as("spr", "metrics-kept");
	check_eq(rd(METRICS), 0);
	wr(METRICS, 0x77);
	check_eq(rd(METRICS), 0x77);
	wr(FIXED(3), 2000);
	wr(METRICS, 0x40);
	wr(FIXED(3), 4000);
	check_eq(rd(METRICS), 0x20);
	wr(FIXED(3), 0);
	check_eq(rd(METRICS), 0x20);

	power_up_as("icl", "metrics-ones");
	check_eq(rd(METRICS), 0xffffffff);
	wr(METRICS, 0);
	check_eq(rd(METRICS), 0xffffffff);
	wr(FIXED(3), 1);
	check_eq(rd(METRICS), 0);

	power_up_as("spr", "metrics-undefined");
	check_eq(rdpmc(0x20000000), POISONED);
	wr(METRICS, 0);
	check_eq(rd(METRICS), POISONED);
	wr(FIXED(3), 1);
	check_eq(rd(METRICS), 0);
}

static void test_upper_half(void)
{
	power_up_as("icl", "upper-ignored");
	wr(FIXED(3), 1000);
	wr(METRICS, 0xdeadbeef12345678);
	check_eq(rd(METRICS), 0x12345678);
	memset(&act, 0, sizeof(act));
	pmu_init(&pmu, pmu_variant_by_name("icl"),
		 pmu_reading_by_name("metrics-kept") | pmu_reading_by_name("upper-ignored"));
	wr(METRICS, 0xdeadbeef12345678);
	check_eq(rd(METRICS), 0x12345678);
	power_up_as("skx", "upper-ignored");
	check(wr_faults(METRICS, 0));
}

static void test_writes_lower(void)
{
	unsigned int lower = 0;

	power_up_as("spr", "writes-lower");
	wr(FIXED(3), 1000003);
	for (unsigned int b = 0; b < 256; b++) {
		uint64_t val;

		wr(METRICS, b);
		val = rd(METRICS);
		check(val == b || val == b - 1, "%#x", b);
		lower += val != b;
		/* It doesn't go on. */
		wr(METRICS, val);
		check_eq(rd(METRICS), val);
	}
	check(lower > 16 && lower < 128, "%u", lower);
}

/* Sums up level 1, and returns by how much level 2 exceeds it at most. */
static int most_above(uint64_t val, unsigned int *sum)
{
	int above = -255;

	*sum = 0;
	for (unsigned int m = 0; m < 4; m++) {
		int by = (int)byte(val, 4 + m) - (int)byte(val, m);

		*sum += byte(val, m);
		if (by > above)
			above = by;
	}
	return above;
}

static void test_sums_loose(void)
{
	unsigned int sums[512] = { 0 }, sum;
	int above = 0, by;

	power_up_as("spr", "sums-loose");
	srand(1);
	for (unsigned int i = 0; i < 2000; i++) {
		uint64_t val, slots;

		start_topdown();
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			if (a != PMU_CONTINUED)
				run(a, 1 + rand() % 1000);
		wr(GLOBAL_CTRL, 0);
		val = rd(METRICS);
		by = most_above(val, &sum);
		if (by > above)
			above = by;
		sums[sum]++;

		/* What was saved is what is restored. */
		slots = rd(FIXED(3));
		wr(FIXED(3), slots);
		wr(METRICS, val);
		check_eq(rd(METRICS), val);

		/* It goes on from there, and is as close. */
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		run(PMU_LOAD, 1 + rand() % 10);
		by = most_above(rd(METRICS), &sum);
		check(by <= 2, "%d", by);
		check(sum >= 253 && sum <= 257, "%u", sum);
	}
	check_eq(above, 2);
	for (sum = 253; sum <= 257; sum++)
		check(sums[sum], "no sum of %u", sum);
	check_eq(sums[253] + sums[254] + sums[255] + sums[256] + sums[257], 2000);

	/* From what was seen on hardware, too. */
	for (unsigned int i = 0; i < 2000; i++) {
		wr(GLOBAL_CTRL, 0);
		wr(FIXED(3), 8431908 + 7 * i);
		wr(METRICS, 0x2c3925075555272f);
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		run(PMU_STEP, 1);
		by = most_above(rd(METRICS), &sum);
		check(by <= 2, "%d", by);
		check(sum >= 253 && sum <= 257, "%u", sum);
	}

	/* What is no fraction of slots is nobody's but software's, and stays. */
	wr(GLOBAL_CTRL, 0);
	wr(FIXED(3), 10000000);
	wr(METRICS, 0xf000000000000010);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_STEP, 1);
	check_eq(rd(METRICS), 0xf000000000000010);
}

/* An internal count of retiring slots that overflows after some steps. */
static void overflow_retiring(unsigned int fixed_ctrl)
{
	wr(FIXED_CTRL, fixed_ctrl);
	wr(FIXED(3), MASK);
	wr(METRICS, 0xff);
	wr(FIXED(3), 0);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	run(PMU_STEP, 10);
	check_eq(rd(STATUS), BIT(48));
}

static void test_overflow_readings(void)
{
	power_up_as("spr", "overflow-pmi");
	wr(FIXED_CTRL, 0x1000);
	wr(FIXED(3), MASK);
	wr(METRICS, 0xff);
	wr(FIXED(3), 0);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	check(pmu_next_overflow(&pmu) < 10);
	wr(GLOBAL_CTRL, 0);
	overflow_retiring(0x1000);
	check(pmu_take_pmi(&pmu));

	power_up_as("spr", "overflow-undefined");
	overflow_retiring(0x1000);
	check(!pmu_take_pmi(&pmu));
	check_poisoned();
}

static void test_half_enabled(void)
{
	static const uint64_t half[] = { BIT(35), BIT(48) };

	for (unsigned int i = 0; i < 2; i++) {
		power_up_as("spr", "half-counts");
		start_topdown();
		wr(GLOBAL_CTRL, half[i]);
		run(PMU_LOAD, 100);
		wr(GLOBAL_CTRL, 0);
		check_eq(!!rd(FIXED(3)), half[i] == BIT(35));
		wr(FIXED(3), 1000);
		check(rd(METRICS));

		/* FIXED_CTR_CTRL stops both. */
		wr(FIXED(3), 0);
		wr(METRICS, 0);
		wr(FIXED_CTRL, 0);
		wr(GLOBAL_CTRL, half[i]);
		run(PMU_LOAD, 100);
		wr(FIXED(3), 1000);
		check_eq(rd(METRICS), 0);

		power_up_as("spr", "half-undefined");
		start_topdown();
		run(PMU_LOAD, 100);
		wr(GLOBAL_CTRL, half[i]);
		check(rd(METRICS) != POISONED);
		run(PMU_LOAD, 1);
		check_poisoned();
	}
}

static void test_running(void)
{
	for (unsigned int i = 0; i < 6; i++) {
		power_up_as("spr", "running-undefined");
		start_topdown();
		run(PMU_LOAD, 100);
		check(rdpmc(0x20000000) != POISONED);
		switch (i) {
		case 0:
			wr(FIXED(3), 1000);
			break;
		case 1:
			wr(METRICS, 0x40);
			break;
		case 2:
			check_eq(rd(METRICS), POISONED);
			break;
		case 3:
			wr(GLOBAL_CTRL, 0);
			wr(FIXED(3), MASK - 5);
			wr(METRICS, 0x40);
			wr(GLOBAL_CTRL, BIT(35) | BIT(48));
			run(PMU_LOAD, 1);
			check(rd(FIXED(3)) < 100);
			break;
		case 4:
			/* Where it doesn't count all of that is fine. */
			wr(FIXED_CTRL, 0);
			wr(FIXED(3), 1000);
			wr(METRICS, 0x40);
			check_eq(rd(METRICS), 0x40);
			continue;
		case 5:
			/* ... and while it is frozen. */
			wr(STATUS_SET, BIT(59));
			wr(FIXED(3), 1000);
			wr(METRICS, 0x40);
			check_eq(rd(METRICS), 0x40);
			continue;
		}
		check_poisoned();
	}

	/* SLOTS overflows behind its greatest value, not at it. */
	for (unsigned int left = 11; left <= 12; left++) {
		power_up_as("spr", "running-undefined");
		wr(FIXED_CTRL, 0x3000);
		wr(FIXED(3), MASK - left);
		wr(METRICS, 0x40);
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		run(PMU_STEP, 2);
		wr(GLOBAL_CTRL, 0);
		check_eq(rd(FIXED(3)), left == 11 ? 0 : MASK);
		check_eq(rdpmc(0x20000000) == POISONED, left == 11);
	}
}

static void test_reads_differ(void)
{
	unsigned int different = 0;
	uint64_t val;

	power_up_as("spr", "reads-differ");
	wr(FIXED(3), 1000003);
	wr(METRICS, 0x1122334455667788);
	check_eq(rd(METRICS), 0x1122334455667788);
	for (unsigned int i = 0; i < 1000; i++) {
		val = rd(METRICS);
		check_eq(val >> 8, 0x11223344556677);
		check(byte(val, 0) >= 0x87 && byte(val, 0) <= 0x89, "%#x", byte(val, 0));
		different += byte(val, 0) != 0x88;
	}
	check(different);

	wr(FIXED_CTRL, 0x3000);
	wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	val = rd(METRICS);
	for (unsigned int i = 0; i < 8; i++)
		check_eq(rd(METRICS), val);

	/* Nothing counts while it is frozen, or if what counts is another counter. */
	for (unsigned int frozen = 0; frozen < 2; frozen++) {
		if (frozen) {
			wr(STATUS_SET, BIT(59));
		} else {
			wr(EVTSEL(0), OS | EN | INSTRUCTIONS);
			wr(FIXED_CTRL, 0x3003);
			wr(GLOBAL_CTRL, BIT(0) | BIT(32));
		}
		different = 0;
		val = rd(METRICS);
		for (unsigned int i = 0; i < 8; i++)
			different += rd(METRICS) != val;
		check(different);
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
	}
}

static void test_rdpmc_clears(void)
{
	check(!(rd(CAPABILITIES) & BIT(19)));
	power_up_as("skx", "rdpmc-clears");
	check(!(rd(CAPABILITIES) & BIT(19)));

	power_up_as("spr", "rdpmc-clears");
	check(rd(CAPABILITIES) & BIT(19));
	for (unsigned int clear = 0; clear < 2; clear++) {
		wr(FIXED(3), 1000);
		wr(METRICS, 0x40);
		wr(FIXED_CTRL, clear ? BIT(14) : 0);
		check_eq(rd(METRICS), 0x40);
		check_eq(rdpmc(0x40000003), 1000);
		check_eq(rdpmc(0x20000000), 0x40);
		check_eq(rd(FIXED(3)), clear ? 0 : 1000);
		wr(FIXED(3), 1000);
		check_eq(rd(METRICS), clear ? 0 : 0x40);
	}

	/* Nothing of it is kept. */
	memset(&act, 0, sizeof(act));
	pmu_init(&pmu, pmu_variant_by_name("spr"),
		 pmu_reading_by_name("metrics-kept") | pmu_reading_by_name("rdpmc-clears"));
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	wr(FIXED_CTRL, BIT(14));
	check_eq(rdpmc(0x20000000), 0x40);
	check_eq(rd(METRICS), 0);
}

static void test_late_pmi(void)
{
	unsigned int steps = 0;

	power_up_as("spr", "pmi-late");
	wr(FIXED_CTRL, 0x9);
	wr(FIXED(0), MASK);
	wr(GLOBAL_CTRL, BIT(32));
	run(PMU_STEP, 1);
	check_eq(rd(STATUS), BIT(32));
	wr(GLOBAL_CTRL, 0);
	while (!pmu_take_pmi(&pmu) && steps < 10000) {
		uint64_t next = pmu_next_overflow(&pmu);

		check(next >= 1 && next <= 1000);
		run(PMU_STEP, next);
		steps += next;
	}
	check(steps >= 100 && steps < 1000, "%u", steps);
	check(!pmu_take_pmi(&pmu));

	/* Further overflows don't put it off. */
	wr(EVTSEL(0), OS | EN | INT | INSTRUCTIONS);
	wr(GLOBAL_CTRL, BIT(0));
	for (unsigned int i = 0; i < steps; i++) {
		check(!pmu_take_pmi(&pmu), "%u", i);
		wr(PMC(0), MASK);
		run(PMU_STEP, 1);
	}
	check(!pmu_take_pmi(&pmu));
	run(PMU_STEP, 1);
	check(pmu_take_pmi(&pmu));
}

/* Guests that can read all registers themselves. */
#define GUEST_A		PMU_GUESTS
#define GUEST_B		(PMU_GUESTS + 8)
#define SLOTS_REG	BIT(35)
#define METRICS_REG	BIT(48)

static void enter(uint32_t who)
{
	pmu_run(&pmu, who, pmu_registers(&pmu), 0);
}

static void leave(void)
{
	pmu_run(&pmu, PMU_HOST, 0, 0);
}

static uint64_t foreign(void)
{
	return pmu_foreign(&pmu, pmu_registers(&pmu));
}

static uint64_t foreign_to(uint32_t who)
{
	uint64_t registers;

	enter(who);
	registers = foreign();
	leave();
	return registers;
}

static void test_register_numbers(const struct expectation *e)
{
	check_eq(pmu_registers(&pmu), counter_bits(e));
	for (unsigned int i = 0; i < 9; i++) {
		uint64_t gp = i < 8 ? BIT(i) : 0;
		uint64_t fixed = e->fixed_mask & BIT(i) ? BIT(32 + i) : 0;

		check_eq(pmu_register_of_msr(&pmu, PERFCTR(i)), gp);
		check_eq(pmu_register_of_msr(&pmu, PMC(i)), gp);
		check_eq(pmu_register_of_msr(&pmu, FIXED(i)), fixed);
		check_eq(pmu_register_of_msr(&pmu, 0x1900 + 4 * i), e->version == 6 ? gp : 0);
		check_eq(pmu_register_of_msr(&pmu, 0x1980 + 4 * i), e->version == 6 ? fixed : 0);
		check_eq(pmu_register_of_rdpmc(&pmu, i), gp);
		check_eq(pmu_register_of_rdpmc(&pmu, 0x40000000 + i), fixed);
		check_eq(pmu_register_of_rdpmc(&pmu, 0x20000000 + i), e->metrics && !i ? METRICS_REG : 0);
		check_eq(pmu_register_of_rdpmc(&pmu, 0x10000000 + i), 0);
	}
	/* What is no index is no register, wherever an MSR of that distance were. */
	for (unsigned int i = 10; i < 0x10000; i++)
		check(!pmu_register_of_rdpmc(&pmu, i) && !pmu_register_of_rdpmc(&pmu, 0x40000000 + i) &&
		      !pmu_register_of_rdpmc(&pmu, 0x20000000 + i), "%#x", i);
	check_eq(pmu_register_of_msr(&pmu, METRICS), e->metrics ? METRICS_REG : 0);
	check_eq(pmu_register_of_msr(&pmu, EVTSEL(0)), 0);
	check_eq(pmu_register_of_msr(&pmu, GLOBAL_CTRL), 0);
}

static void test_owners_of_counters(void)
{
	static const uint32_t msrs[] = { PMC(5), FIXED(1), FIXED(3) };
	static const uint64_t registers[] = { BIT(5), BIT(33), SLOTS_REG };

	wr(EVTSEL(5), OS | EN | INSTRUCTIONS);
	wr(FIXED_CTRL, 0x1010);
	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++) {
		check_eq(foreign_to(GUEST_A), 0);

		/* A guest counts or writes ... */
		for (unsigned int writes = 0; writes < 2; writes++) {
			enter(GUEST_A);
			if (writes) {
				wr(msrs[i], 3);
			} else {
				wr(GLOBAL_CTRL, registers[i]);
				run(PMU_STEP, 1);
				wr(GLOBAL_CTRL, 0);
			}
			check_eq(foreign(), 0);
			leave();
			check_eq(foreign(), registers[i]);
			check_eq(foreign_to(GUEST_A), 0);
			check_eq(foreign_to(GUEST_B), registers[i]);
			/* ... and the host clears that. */
			wr(msrs[i], 0);
			check_eq(foreign() | foreign_to(GUEST_B), 0);
		}

		/* 0 is 0, whoever wrote it, or counted that far. */
		enter(GUEST_A);
		wr(msrs[i], 0);
		check_eq(foreign_to(GUEST_B), 0);
		enter(GUEST_A);
		wr(msrs[i], MASK - (registers[i] == SLOTS_REG ? 5 : 0));
		wr(GLOBAL_CTRL, registers[i]);
		run(PMU_STEP, 1);
		check_eq(rd(msrs[i]), 0);
		check_eq(foreign_to(GUEST_B), 0);
		leave();

		/* The host counts. */
		run(PMU_STEP, 1);
		wr(GLOBAL_CTRL, 0);
		check_eq(foreign(), 0);
		check_eq(foreign_to(GUEST_A), registers[i]);

		/* The host gives: to the first who sees it. */
		wr(msrs[i], 5);
		check_eq(foreign(), 0);
		check_eq(foreign_to(GUEST_A), 0);
		check_eq(foreign_to(GUEST_B), registers[i]);
		check_eq(foreign(), registers[i]);

		/* One counts on top of what another has made. */
		enter(GUEST_B);
		wr(GLOBAL_CTRL, registers[i]);
		run(PMU_STEP, 1);
		wr(GLOBAL_CTRL, 0);
		check_eq(foreign(), registers[i]);
		check_eq(foreign_to(GUEST_A), registers[i]);
		leave();
		check_eq(foreign(), registers[i]);
		wr(msrs[i], 0);
	}

	/* What is enabled and counts nothing stays whose it is. */
	wr(EVTSEL(5), OS | EN);
	wr(PMC(5), 5);
	wr(GLOBAL_CTRL, BIT(5));
	run(PMU_STEP, 1);
	wr(GLOBAL_CTRL, 0);
	check_eq(foreign_to(GUEST_B), 0);

	pmu_reset(&pmu);
	check_eq(foreign() | foreign_to(GUEST_A), 0);
}

/* Only what a guest can read is given to it, and is asked for. */
static void test_owners_readable(void)
{
	wr(PMC(0), 1);
	pmu_run(&pmu, GUEST_A, BIT(1), 0);
	leave();
	check_eq(foreign_to(GUEST_B), 0);
	check_eq(foreign_to(GUEST_A), BIT(0));
	enter(GUEST_A);
	check_eq(pmu_foreign(&pmu, BIT(1)), 0);
	leave();

	/* A counter that doesn't stop at VM-Exit is the host's. */
	wr(FIXED_CTRL, 0x33);
	wr(FIXED(0), 0);
	wr(FIXED(1), 0);
	wr(GLOBAL_CTRL, BIT(32) | BIT(33));
	pmu_run(&pmu, GUEST_A, 0, BIT(32));
	run(PMU_STEP, 1);
	leave();
	check_eq(pmu_foreign(&pmu, BIT(32) | BIT(33)), BIT(33));
}

static void test_owners_of_metrics(void)
{
	/* Nothing shows, but there may be something behind it. */
	enter(GUEST_A);
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	wr(FIXED(3), 0);
	check_eq(rd(METRICS), 0);
	check_eq(foreign(), 0);
	check_eq(foreign_to(GUEST_B), METRICS_REG);
	check_eq(foreign(), METRICS_REG);
	wr(FIXED(3), 0);
	check_eq(foreign(), METRICS_REG);
	wr(METRICS, 0);
	check_eq(foreign() | foreign_to(GUEST_B) | foreign_to(GUEST_A), 0);

	/* Written before SLOTS, metrics are fractions of what was there. */
	enter(GUEST_A);
	wr(FIXED(3), 1000);
	leave();
	wr(METRICS, 0x40);
	wr(FIXED(3), 2000);
	check_eq(foreign_to(GUEST_B), METRICS_REG);

	wr(METRICS, 0);
	check_eq(foreign_to(GUEST_B), 0);

	/* ... be it the host that has counted that. */
	start_topdown();
	wr(GLOBAL_CTRL, BIT(35));
	run(PMU_STEP, 100);
	wr(GLOBAL_CTRL, 0);
	wr(METRICS, 0x40);
	check_eq(foreign(), 0);
	wr(FIXED(3), 2000);
	check_eq(foreign_to(GUEST_B), METRICS_REG);

	/* Of 0, all fractions are 0. */
	enter(GUEST_A);
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	leave();
	wr(METRICS, 0);
	check_eq(foreign(), SLOTS_REG);
	wr(FIXED(3), 0);
	check_eq(foreign() | foreign_to(GUEST_B), 0);

	/* Who sees metrics sees something of SLOTS. */
	enter(GUEST_A);
	wr(FIXED(3), 1000);
	enter(GUEST_B);
	check_eq(pmu_foreign(&pmu, METRICS_REG), SLOTS_REG);
	check_eq(pmu_foreign(&pmu, ~(SLOTS_REG | METRICS_REG)), 0);
	leave();

	/* Counted, by the host and by a guest. */
	start_topdown();
	run(PMU_STEP, 1);
	check_eq(foreign(), 0);
	check_eq(foreign_to(GUEST_A), SLOTS_REG | METRICS_REG);
	start_topdown();
	enter(GUEST_A);
	run(PMU_STEP, 1);
	check_eq(foreign(), 0);
	leave();
	wr(GLOBAL_CTRL, 0);
	check_eq(foreign(), SLOTS_REG | METRICS_REG);
	wr(FIXED(3), 0);
	check_eq(foreign(), METRICS_REG);

	/* Given. */
	wr(METRICS, 0x40);
	wr(FIXED(3), 1);
	check_eq(foreign_to(GUEST_A), 0);
	wr(FIXED(3), 0);
	check_eq(foreign_to(GUEST_B), METRICS_REG);

	/* RDPMC clears both. */
	power_up_as("spr", "rdpmc-clears");
	wr(FIXED_CTRL, BIT(14));
	enter(GUEST_A);
	wr(FIXED(3), 1000);
	wr(METRICS, 0x40);
	leave();
	check_eq(rdpmc(0x20000000), 0x40);
	check_eq(foreign(), 0);
}

/* The host saves what guests make, but mustn't count on top of it. */
static void test_owners_of_mixed(void)
{
	const uint64_t topdown = SLOTS_REG | METRICS_REG;

	for (unsigned int clears = 0; clears < 3; clears++) {
		start_topdown();
		enter(GUEST_A);
		run(PMU_STEP, 100);
		check_eq(pmu_not_to_read(&pmu, topdown), 0);
		wr(GLOBAL_CTRL, 0);
		leave();
		check_eq(pmu_not_to_read(&pmu, topdown), 0);

		/* Another guest does, under one event of the host. */
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		enter(GUEST_B);
		check_eq(pmu_not_to_read(&pmu, topdown), topdown);
		run(PMU_STEP, 100);
		leave();
		check_eq(pmu_not_to_read(&pmu, topdown), 0);

		/* What the host clears in between it may count in. */
		wr(GLOBAL_CTRL, 0);
		wr(FIXED(3), 0);
		wr(METRICS, 0);
		enter(GUEST_A);
		wr(FIXED(3), 1000);
		wr(METRICS, 0x40);
		leave();
		if (clears > 0)
			wr(FIXED(3), 0);
		if (clears > 1)
			wr(METRICS, 0);
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		run(PMU_STEP, 100);
		wr(GLOBAL_CTRL, 0);
		check_eq(pmu_not_to_read(&pmu, topdown), clears == 0 ? topdown :
			 clears == 1 ? METRICS_REG : 0);
		check_eq(pmu_not_to_read(&pmu, ~topdown), 0);
		wr(FIXED(3), 5);
		check_eq(pmu_not_to_read(&pmu, topdown), clears < 2 ? METRICS_REG : 0);
		wr(METRICS, 5);
		check_eq(pmu_not_to_read(&pmu, topdown), 0);
	}

	/* A counter of 0 tells nothing. */
	wr(FIXED_CTRL, 0x3);
	enter(GUEST_A);
	wr(FIXED(0), 0);
	leave();
	wr(GLOBAL_CTRL, BIT(32));
	run(PMU_STEP, 1);
	check_eq(pmu_not_to_read(&pmu, BIT(32)), 0);

	/* The host's metrics count on after an event on guests alone, in this reading. */
	power_up_as("spr", "half-counts");
	start_topdown();
	enter(GUEST_A);
	run(PMU_STEP, 100);
	leave();
	wr(GLOBAL_CTRL, BIT(48));
	run(PMU_STEP, 100);
	check_eq(pmu_not_to_read(&pmu, topdown), 0);
}

/* What is written in vain clears nothing. */
static void test_owners_of_undefined(void)
{
	for (unsigned int host = 0; host < 2; host++) {
		power_up_as("spr", "strict");
		start_topdown();
		if (!host)
			enter(GUEST_A);
		run(PMU_STEP, 100);
		leave();
		wr(FIXED(3), 0);
		wr(METRICS, 0);
		wr(GLOBAL_CTRL, 0);
		check_eq(foreign_to(GUEST_B), METRICS_REG);
		wr(METRICS, 0x40);
		check_eq(foreign_to(GUEST_B), METRICS_REG);

		/* The right way. */
		wr(FIXED(3), 0);
		check_eq(foreign_to(GUEST_B), METRICS_REG);
		wr(METRICS, 0);
		check_eq(foreign_to(GUEST_B), 0);
		wr(FIXED(3), 1000);
		wr(METRICS, 0x40);
		check_eq(foreign_to(GUEST_B), 0);
		check_eq(foreign_to(GUEST_A), SLOTS_REG | METRICS_REG);
	}
}

static void test_unsaved(void)
{
	static struct pmu_variant old;

	/* A guest has counted, or written, what it can read. */
	start_topdown();
	wr(EVTSEL(2), OS | EN | INSTRUCTIONS);
	wr(GLOBAL_CTRL, BIT(2) | BIT(35) | BIT(48));
	pmu_run(&pmu, GUEST_A, ~BIT(2), 0);
	run(PMU_STEP, 1);
	wr(GLOBAL_CTRL, 0);
	wr(PMC(3), 0);
	rd(PMC(3));
	leave();
	check_eq(pmu.unsaved, BIT(3) | SLOTS_REG | METRICS_REG);
	/* The host reads it ... */
	rd(FIXED(3));
	check_eq(pmu.unsaved, BIT(3) | METRICS_REG);
	rdpmc(0x20000000);
	check_eq(pmu.unsaved, BIT(3));
	/* ... or does not. */
	wr(PMC(3), 0);
	check_eq(pmu.unsaved, 0);

	/* A new SLOTS changes what PERF_METRICS reads. */
	start_topdown();
	enter(GUEST_A);
	run(PMU_STEP, 1);
	wr(GLOBAL_CTRL, 0);
	check_eq(pmu_lost(&pmu, FIXED(3)), 0);
	leave();
	check_eq(pmu_lost(&pmu, FIXED(3)), SLOTS_REG | METRICS_REG);
	check_eq(pmu_lost(&pmu, METRICS), METRICS_REG);
	check_eq(pmu_lost(&pmu, FIXED(2)) | pmu_lost(&pmu, GLOBAL_CTRL), 0);
	rd(FIXED(3));
	check_eq(pmu_lost(&pmu, FIXED(3)), METRICS_REG);
	rd(METRICS);
	check_eq(pmu_lost(&pmu, FIXED(3)), 0);

	/* Where there is #GP nothing is read. */
	wr(FIXED(3), 0);
	wr(METRICS, 0);
	enter(GUEST_A);
	wr(PMC(0), 5);
	wr(FIXED(0), 5);
	wr(METRICS, 0);
	leave();
	check(rdpmc_faults(0x00000400) && rdpmc_faults(0x00000248));
	check(rdpmc_faults(0x40000020) && rdpmc_faults(0x20000198));
	check_eq(pmu.unsaved, BIT(0) | BIT(32) | METRICS_REG);
	rd(PMC(0));
	rd(FIXED(0));
	rd(METRICS);
	check_eq(pmu.unsaved, 0);

	/* What was given is with the host. */
	wr(PMC(3), 5);
	enter(GUEST_A);
	leave();
	check_eq(pmu.unsaved, 0);

	/* A number that needs PERF_CAPABILITIES[13] is #GP without. */
	old = *pmu_variant_by_name("spr");
	old.perf_capabilities = 0;
	pmu_init(&pmu, &old, 0);
	enter(GUEST_A);
	wr(PERFCTR(0), 5);
	leave();
	check(rd_faults(PMC(0)));
	check_eq(pmu.unsaved, BIT(0));
}

/*
 * What real CPUs were seen to say: SLOTS and metrics, from published logs of Tiger Lake,
 * Sapphire Rapids and Granite Rapids.
 */
static const struct {
	uint64_t slots;
	uint8_t metrics[8];
} published[] = {
	{ 998790, { 37, 47, 105, 66 } },
	{ 8431908, { 47, 39, 85, 85, 7, 37, 57, 44 } },
	{ 4823232, { 64, 37, 94, 60, 10, 35, 58, 22 } },
	{ 5733490, { 53, 31, 84, 87 } },
	{ 1762535, { 22, 33, 124, 76 } },
	{ 456430632, { 148, 34, 52, 22, 7, 34, 28, 12 } },
	{ 457433665, { 169, 42, 25, 19 } },
	{ 72813380, { 65, 16, 62, 112 } },
	{ 329813157222, { 184, 3, 3, 66, 5, 2, 0, 21 } },
	{ 327251862534, { 185, 1, 3, 67, 5, 0, 0, 22 } },
};

static void test_published(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(published); i++) {
		unsigned int sum = 0;
		uint64_t val = 0;

		for (unsigned int m = 0; m < 8; m++)
			val |= (uint64_t)published[i].metrics[m] << 8 * m;
		for (unsigned int m = 0; m < 4; m++)
			sum += published[i].metrics[m];
		check(sum == 255 || sum == 256, "%u", sum);
		wr(FIXED(3), published[i].slots);
		wr(METRICS, val);
		for (unsigned int n = 0; n < 14; n++) {
			check_eq(rd(METRICS), val);
			wr(FIXED(3), rd(FIXED(3)));
			wr(METRICS, val);
		}
	}
}

/*
 * Perf's way to count metrics of a task that is switched often: at each switch it adds to
 * a metric by how much its part of SLOTS has grown, unless it has shrunk.  In published
 * logs level 1 sums to 1.00 to 1.18 of SLOTS then.
 */
static void switch_often(unsigned int least)
{
	uint64_t sum[4] = { 0 }, before[4] = { 0 }, total = 0, slots, val;

	start_topdown();
	srand(1);
	for (unsigned int n = 0; n < 2000; n++) {
		wr(GLOBAL_CTRL, BIT(35) | BIT(48));
		for (enum pmu_act a = PMU_STEP; a < PMU_NR_ACTS; a++)
			if (a != PMU_CONTINUED)
				run(a, 500 + rand() % 1000);
		wr(GLOBAL_CTRL, 0);
		slots = rd(FIXED(3));
		val = rd(METRICS);
		for (unsigned int m = 0; m < 4; m++) {
			uint64_t part = slots * byte(val, m) / 255;

			if (part > before[m])
				sum[m] += part - before[m];
			before[m] = part;
		}
		/* Somebody else used it. */
		wr(FIXED(3), 12345);
		wr(METRICS, 0xff);
		wr(FIXED(3), slots);
		wr(METRICS, val);
	}
	for (unsigned int m = 0; m < 4; m++)
		total += sum[m];
	check(total >= slots / 1000 * least && total <= slots / 100 * 118, "%f",
	      (double)total / slots);
}

static void test_many_switches(void)
{
	switch_often(998);
	power_up_as("spr", "reads-differ");
	switch_often(998);
	/* A sum of 253 is 0.992. */
	power_up_as("spr", "sums-loose");
	switch_often(992);
}

static void result(const char *what, const char *variant)
{
	tests++;
	if (checks_failed)
		failures++;
	printf("%sok %u - %s%s%s\n", checks_failed ? "not " : "", tests, what,
	       variant ? ", " : "", variant ? variant : "");
	checks_failed = 0;
}

/* on every variant */
static const struct {
	const char *what;
	void (*test)(const struct expectation *e);
} variant_tests[] = {
	{ "reset values", test_reset },
	{ "CPUID", test_cpuid },
	{ "CPUID leaf 0x23", test_cpuid_perfmon_ext },
	{ "PERFEVTSEL bits", test_evtsel },
	{ "legacy counters sign-extend 32 bits", test_legacy_counters },
	{ "full-width counters", test_full_width_counters },
	{ "fixed counters", test_fixed_counters },
	{ "numbers of version 6", test_version6_numbers },
	{ "FIXED_CTR_CTRL bits", test_fixed_ctrl },
	{ "GLOBAL_CTRL bits", test_global_ctrl },
	{ "GLOBAL_STATUS, _RESET and _SET bits", test_global_status },
	{ "GLOBAL_INUSE", test_inuse },
	{ "PERF_CAPABILITIES is read-only", test_capabilities },
	{ "DEBUGCTL, MISC_ENABLE, absent and foreign registers", test_other_registers },
	{ "registers that say more of an event", test_extra_registers },
	{ "RDPMC of all types", test_rdpmc },
	{ "VMX field checks and loads", test_vmx_fields },
	{ "PERF_METRICS reads as written", test_metrics_exact },
	{ "PERF_METRICS bits", test_metrics_reserved },
	{ "PERF_METRICS rounds", test_metrics_rounding },
	{ "second level of PERF_METRICS", test_metrics_second_level },
	{ "numbers of registers", test_register_numbers },
};

/* on spr */
static const struct {
	const char *what;
	void (*test)(void);
} plain_tests[] = {
	{ "variants by name and model", test_variants },
	{ "instructions retired", test_retired },
	{ "events are functions of their activity", test_events },
	{ "topdown events count what PERF_METRICS has fractions of", test_topdown_events },
	{ "other CPUs have fewer topdown events", test_topdown_events_of_others },
	{ "unknown events count nothing", test_unknown_events },
	{ "fixed counters count like their events", test_fixed_quantities },
	{ "cycles and slots are what activity costs", test_cost },
	{ "fixed counters 4 to 6 of E-cores", test_efficient_core },
	{ "... and their overflow", test_efficient_core_overflow },
	{ "ANY and PC change nothing", test_any },
	{ "writes to a running counter", test_write_running },
	{ "version 3, 4 counters of 40 bits, no full-width writes", test_other_variant },
	{ "inverted events do not count back", test_inverted },
	{ "OS and USR", test_rings },
	{ "enable bits", test_enables },
	{ "EDGE, INV and CMASK", test_filters },
	{ "EQ and UMASK2", test_filters_of_version6 },
	{ "EQ with six slots in a cycle", test_slots_equal },
	{ "overflow and PMI at the last count", test_overflow },
	{ "LVTPC's mask bit", test_lvtpc },
	{ "freeze on PMI", test_freeze },
	{ "freeze as the ring changes, of LBRs, in version 4", test_freeze_at_ring_change },
	{ "freeze in SMM", test_freeze_in_smm },
	{ "next overflow", test_next_overflow },
	{ "SLOTS before PERF_METRICS, the order shows", test_metrics_order },
	{ "PERF_METRICS goes on from restored values", test_metrics_continue },
	{ "PERF_METRICS counts only with SLOTS", test_metrics_enables },
	{ "levels of PERF_METRICS", test_metrics_levels },
	{ "a loop of branches differs from one of loads", test_loops_differ },
	{ "overflow of an internal count", test_metrics_overflow },
	{ "counts do not depend on when they are read", test_not_when_asked },
	{ "activity before the counter starts", test_late_start },
	{ "MPERF and APERF", test_unhalted_cycles },
	{ "two CPUs share nothing", test_two_cpus },
	{ "published values are read back, again and again", test_published },
	{ "metrics of a task that is switched often", test_many_switches },
	{ "readings by name", test_reading_names },
	{ "readings of a write of SLOTS alone", test_slots_alone },
	{ "readings of PERF_METRICS while SLOTS is 0", test_no_slots },
	{ "reading: bits above the metrics are ignored", test_upper_half },
	{ "reading: some values read one lower than written", test_writes_lower },
	{ "reading: loose sums", test_sums_loose },
	{ "readings of the overflow of an internal count", test_overflow_readings },
	{ "readings of SLOTS and metrics enabled one without the other", test_half_enabled },
	{ "reading: undefined if used while enabled", test_running },
	{ "reading: two reads differ by one", test_reads_differ },
	{ "reading: RDPMC clears", test_rdpmc_clears },
	{ "reading: late PMI", test_late_pmi },
	{ "whose a counter is", test_owners_of_counters },
	{ "whose a counter is if the guest can't read it", test_owners_readable },
	{ "whose PERF_METRICS is", test_owners_of_metrics },
	{ "what the host counts on top of a guest's", test_owners_of_mixed },
	{ "whose PERF_METRICS is that is undefined", test_owners_of_undefined },
	{ "what the host has not read", test_unsaved },
};

int main(void)
{
	const unsigned int nr_variant = ARRAY_SIZE(variant_tests);
	const unsigned int nr_plain = ARRAY_SIZE(plain_tests);

	printf("TAP version 13\n1..%zu\n", nr_variant * NR_VARIANTS + nr_plain);
	for (unsigned int v = 0; v < NR_VARIANTS; v++) {
		for (unsigned int i = 0; i < nr_variant; i++) {
			power_up(names[v]);
			variant_tests[i].test(&expected[v]);
			result(variant_tests[i].what, names[v]);
		}
	}
	for (unsigned int i = 0; i < nr_plain; i++) {
		power_up("spr");
		plain_tests[i].test();
		result(plain_tests[i].what, NULL);
	}
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
