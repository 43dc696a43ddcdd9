// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Intel architectural PMU of one logical processor, see pmu.h.
 */
#include "pmu.h"

#include <string.h>

#define BIT(n)			(1ull << (n))
#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))

#define LVT_MASKED		BIT(16)

#define MSR_PERFCTR0		0x0c1
#define MSR_MPERF		0x0e7
#define MSR_APERF		0x0e8
#define MSR_PERFEVTSEL0		0x186
#define MSR_MISC_ENABLE		0x1a0
#define MSR_OFFCORE_RSP0	0x1a6
#define MSR_OFFCORE_RSP1	0x1a7
#define MSR_FIXED_CTR0		0x309
#define MSR_PERF_METRICS	0x329
#define MSR_PERF_CAPABILITIES	0x345
#define MSR_FIXED_CTR_CTRL	0x38d
#define MSR_GLOBAL_STATUS	0x38e
#define MSR_GLOBAL_STATUS_RESET	0x390
#define MSR_GLOBAL_STATUS_SET	0x391
#define MSR_GLOBAL_INUSE	0x392
#define MSR_PEBS_ENABLE		0x3f1
#define MSR_PEBS_LD_LAT		0x3f6
#define MSR_PEBS_FRONTEND	0x3f7
#define MSR_PMC0		0x4c1
#define MSR_SNOOP_RSP0		0x1328
#define MSR_SNOOP_RSP1		0x1329
#define MSR_V6_GP0		0x1900	/* counter, selector, two more */
#define MSR_V6_FIXED0		0x1980	/* counter, three more */
#define MSR_V6_STEP		4

#define EVTSEL_EVENT		0x000000ffull
#define EVTSEL_UMASK		0x0000ff00ull
#define EVTSEL_USR		BIT(16)
#define EVTSEL_OS		BIT(17)
#define EVTSEL_EDGE		BIT(18)
#define EVTSEL_INT		BIT(20)
#define EVTSEL_ANY		BIT(21)
#define EVTSEL_EN		BIT(22)
#define EVTSEL_INV		BIT(23)
#define EVTSEL_CMASK_SHIFT	24
#define EVTSEL_CMASK		0xff000000ull
#define EVTSEL_ALL		0xffffffffull
#define EVTSEL_EQ		BIT(36)
#define EVTSEL_UMASK2		0xff0000000000ull

#define FIXED_OS		BIT(0)
#define FIXED_USR		BIT(1)
#define FIXED_ANY		BIT(2)
#define FIXED_PMI		BIT(3)
#define FIXED_CLEAR_METRICS	BIT(14)

#define GLOBAL_METRICS		BIT(48)
#define STATUS_LBR_FRZ		BIT(58)
#define STATUS_CTR_FRZ		BIT(59)
#define STATUS_OVF_UNCORE	BIT(61)
#define STATUS_OVF_DS		BIT(62)
#define STATUS_COND_CHGD	BIT(63)
#define INUSE_PMI		BIT(63)

#define CAP_FREEZE_WHILE_SMM	BIT(12)
#define CAP_FW_WRITES		BIT(13)
#define CAP_PERF_METRICS	BIT(15)
#define CAP_RDPMC_CLEARS	BIT(19)

#define DEBUGCTL_LBR		BIT(0)
#define DEBUGCTL_BTF		BIT(1)
#define DEBUGCTL_FREEZE_LBRS	BIT(11)
#define DEBUGCTL_FREEZE_PERFMON	BIT(12)
#define DEBUGCTL_FREEZE_IN_SMM	BIT(14)

#define MISC_FAST_STRINGS	BIT(0)
#define MISC_THERMAL_CONTROL	BIT(3)
#define MISC_PERFMON		BIT(7)
#define MISC_BTS_UNAVAILABLE	BIT(11)
#define MISC_PEBS_UNAVAILABLE	BIT(12)
#define MISC_SPEEDSTEP		BIT(16)
#define MISC_READ_ONLY		(MISC_PERFMON | MISC_BTS_UNAVAILABLE | MISC_PEBS_UNAVAILABLE)
#define MISC_WRITABLE		(MISC_FAST_STRINGS | MISC_THERMAL_CONTROL | MISC_SPEEDSTEP)

#define SLOTS_PER_CYCLE		6
#define SLOTS_COUNTER		3
#define GLOBAL_SLOTS		BIT(32 + SLOTS_COUNTER)

/* Numbers of registers, see enum pmu_maker. */
#define FIXED_REGISTERS		32
#define SLOTS_REGISTER		(FIXED_REGISTERS + SLOTS_COUNTER)
#define METRICS_REGISTER	48

/* Steps after which a late PMI arrives. */
#define PMI_DELAY		300

/* One byte of PERF_METRICS is a fraction of this. */
#define METRIC_ONE		255
#define NR_LEVEL1		4

enum { RING_OS, RING_USER, NR_RINGS };

/* What makes PERF_METRICS defined again. */
enum { DEFINED, UNTIL_METRICS, UNTIL_SLOTS_AND_METRICS };

static const struct {
	const char *name;
	uint32_t readings;
} readings[] = {
	{ "slots-clears",		BIT(PMU_SLOTS_CLEARS) },
	{ "slots-rescales",		BIT(PMU_SLOTS_RESCALES) },
	{ "slots-undefined",		BIT(PMU_SLOTS_UNDEFINED) },
	{ "metrics-kept",		BIT(PMU_METRICS_KEPT) },
	{ "metrics-ones",		BIT(PMU_METRICS_ONES) },
	{ "metrics-undefined",		BIT(PMU_METRICS_UNDEFINED) },
	{ "upper-ignored",		BIT(PMU_UPPER_IGNORED) },
	{ "writes-lower",		BIT(PMU_WRITES_LOWER) },
	{ "sums-loose",			BIT(PMU_SUMS_LOOSE) },
	{ "overflow-pmi",		BIT(PMU_OVERFLOW_PMI) },
	{ "overflow-undefined",		BIT(PMU_OVERFLOW_UNDEFINED) },
	{ "half-counts",		BIT(PMU_HALF_COUNTS) },
	{ "half-undefined",		BIT(PMU_HALF_UNDEFINED) },
	{ "running-undefined",		BIT(PMU_RUNNING_UNDEFINED) },
	{ "reads-differ",		BIT(PMU_READS_DIFFER) },
	{ "rdpmc-clears",		BIT(PMU_RDPMC_CLEARS) },
	{ "pmi-late",			BIT(PMU_PMI_LATE) },
	{ "others",			BIT(PMU_SLOTS_RESCALES) | BIT(PMU_METRICS_ONES) |
					BIT(PMU_UPPER_IGNORED) | BIT(PMU_WRITES_LOWER) |
					BIT(PMU_SUMS_LOOSE) | BIT(PMU_OVERFLOW_PMI) |
					BIT(PMU_HALF_COUNTS) | BIT(PMU_READS_DIFFER) |
					BIT(PMU_RDPMC_CLEARS) | BIT(PMU_PMI_LATE) },
	{ "strict",			BIT(PMU_SLOTS_UNDEFINED) | BIT(PMU_METRICS_UNDEFINED) |
					BIT(PMU_OVERFLOW_UNDEFINED) | BIT(PMU_HALF_UNDEFINED) |
					BIT(PMU_RUNNING_UNDEFINED) },
};

/*
 * Which bits exist is what Linux lets its users set: intel_*_extra_regs[] in
 * arch/x86/events/intel/core.c.
 */
#define EXTRA_CORE(offcore, frontend)						\
	.extra = { { MSR_OFFCORE_RSP0, offcore }, { MSR_OFFCORE_RSP1, offcore },	\
		   { MSR_PEBS_LD_LAT, 0xffff }, { MSR_PEBS_FRONTEND, frontend } }
#define EXTRA_SKYLAKE		EXTRA_CORE(0x3fffff8fff, 0x7fff17)
#define EXTRA_SUNNY_COVE	EXTRA_CORE(0x3fffffbfff, 0x7fff17)
#define EXTRA_GOLDEN_COVE	EXTRA_CORE(0x3fffffffff, 0x7fff1f)
#define EXTRA_CRESTMONT								\
	.extra = { { MSR_OFFCORE_RSP0, 0x800ff3ffffffffff },			\
		   { MSR_OFFCORE_RSP1, 0xff3ffffffffff }, { MSR_PEBS_LD_LAT, 0xffff },	\
		   { MSR_SNOOP_RSP0, UINT64_MAX }, { MSR_SNOOP_RSP1, UINT64_MAX } }

static const struct pmu_variant variants[] = {
	{
		.name = "spr", .model = "sapphire_rapids",
		.version = 5, .nr_gp = 8, .fixed_mask = 0x0f, .width = 48,
		.nr_arch_events = 8, .nr_metrics = 8,
		.vmexit_save_global_ctrl = true,
		.perf_capabilities = CAP_FREEZE_WHILE_SMM | CAP_FW_WRITES |
				     CAP_PERF_METRICS,
		EXTRA_GOLDEN_COVE,
	}, {
		.name = "icl", .model = "corei7_icelake_u",
		.version = 5, .nr_gp = 8, .fixed_mask = 0x0f, .width = 48,
		.nr_arch_events = 8, .nr_metrics = 4,
		.perf_capabilities = CAP_FREEZE_WHILE_SMM | CAP_FW_WRITES |
				     CAP_PERF_METRICS,
		EXTRA_SUNNY_COVE,
	}, {
		/* Raptor Lake; those without a model are named by hand, on any. */
		.name = "rpl", .model = "", .signature = 0x000b0671,
		.version = 5, .nr_gp = 8, .fixed_mask = 0x0f, .width = 48,
		.nr_arch_events = 8, .nr_metrics = 8,
		.vmexit_save_global_ctrl = true,
		.perf_capabilities = CAP_FW_WRITES,	/* erratum RPL018 */
		EXTRA_GOLDEN_COVE,
	}, {
		.name = "skx", .model = "corei7_skylake_x",
		.version = 4, .nr_gp = 8, .fixed_mask = 0x07, .width = 48,
		.nr_arch_events = 7, .anythread = true,
		.perf_capabilities = CAP_FREEZE_WHILE_SMM | CAP_FW_WRITES,
		EXTRA_SKYLAKE,
	}, {
		/* Sierra Forest */
		.name = "srf", .model = "", .signature = 0x000a06f3,
		.version = 6, .nr_gp = 8, .fixed_mask = 0x07, .width = 48,
		.nr_arch_events = 7, .perfmon_ext = true,
		.vmexit_save_global_ctrl = true,
		.perf_capabilities = CAP_FREEZE_WHILE_SMM | CAP_FW_WRITES,
		EXTRA_CRESTMONT,
	}, {
		/* Clearwater Forest */
		.name = "cwf", .model = "", .signature = 0x000d06d0,
		.version = 6, .nr_gp = 8, .fixed_mask = 0x77, .width = 48,
		.nr_arch_events = 7, .perfmon_ext = true,
		.vmexit_save_global_ctrl = true,
		.perf_capabilities = CAP_FREEZE_WHILE_SMM | CAP_FW_WRITES,
		EXTRA_CRESTMONT,
	},
};

/*
 * The cost model: slots that one piece of activity takes, split by metric.
 * The first four sum to whole cycles, so every event has a cycle of its own;
 * the last four are parts of them.  Retirement pays for the instruction
 * itself.  Branches are predicted taken, so one that is not is mispredicted.
 * The figures make loops of different kinds differ; they describe no real
 * core.
 */
static const uint8_t cost[PMU_NR_ACTS][PMU_NR_METRICS] = {
	/*			   ret bad  fe  be  heavy misp lat mem */
	[PMU_STEP]		= { 2,  0,  1,  3,   0,   0,  0,  0 },	/* retired */
	[PMU_ABORTED]		= { 0, 12,  6,  0,   0,   0,  6,  0 },
	[PMU_BRANCH_TAKEN]	= { 0,  0,  6,  0,   0,   0,  4,  0 },
	[PMU_BRANCH_NOT_TAKEN]	= { 0, 12,  0,  0,   0,  12,  0,  0 },
	[PMU_LOAD]		= { 0,  0,  0,  6,   0,   0,  0,  6 },
	[PMU_STORE]		= { 0,  0,  0,  6,   0,   0,  0,  4 },
	[PMU_REP]		= { 4,  0,  1,  1,   4,   0,  0,  0 },
	[PMU_FLUSH]		= { 0,  0,  0, 60,   0,   0,  0, 60 },
};

/*
 * Events.  They exist if CPUID.0xA enumerates the index of an architectural one, or
 * on CPU models with at least so many metrics as the event came with.
 */
#define NOT_ARCHITECTURAL	UINT8_MAX
#define ARCHITECTURAL		UINT8_MAX
#define ANY_MODEL		0

static const struct {
	uint8_t event, umask;
	uint8_t index, nr_metrics;
	uint8_t quantity;
} events[] = {
	{ 0x3c, 0x00,  0, ARCHITECTURAL, PMU_Q_CYCLES },
	{ 0xc0, 0x00,  1, ARCHITECTURAL, PMU_Q_INSTRUCTIONS },
	{ 0x3c, 0x01,  2, ARCHITECTURAL, PMU_Q_REF_CYCLES },
	{ 0x2e, 0x4f,  3, ARCHITECTURAL, PMU_Q_LLC_REFERENCES },
	{ 0x2e, 0x41,  4, ARCHITECTURAL, PMU_Q_LLC_MISSES },
	{ 0xc4, 0x00,  5, ARCHITECTURAL, PMU_Q_BRANCHES },
	{ 0xc5, 0x00,  6, ARCHITECTURAL, PMU_Q_BRANCH_MISSES },
	{ 0xa4, 0x01,  7, ARCHITECTURAL, PMU_Q_SLOTS },
	{ 0xa4, 0x02,  8, 4, PMU_Q_BACKEND_BOUND },
	{ 0x73, 0x00,  9, ARCHITECTURAL, PMU_Q_BAD_SPECULATION },
	{ 0x9c, 0x01, 10, 4, PMU_Q_FRONTEND_BOUND },
	{ 0xc2, 0x02, 11, 4, PMU_Q_RETIRING },
	{ 0xa4, 0x04, NOT_ARCHITECTURAL, 8, PMU_Q_BAD_SPECULATION },
	{ 0xa4, 0x08, NOT_ARCHITECTURAL, 8, PMU_Q_BRANCH_MISPREDICT },
	{ 0xa4, 0x10, NOT_ARCHITECTURAL, 8, PMU_Q_MEMORY_BOUND },
	{ 0xd0, 0x81, NOT_ARCHITECTURAL, ANY_MODEL, PMU_Q_LOADS },
	{ 0xd0, 0x82, NOT_ARCHITECTURAL, ANY_MODEL, PMU_Q_STORES },
	{ 0xd0, 0x83, NOT_ARCHITECTURAL, ANY_MODEL, PMU_Q_LOADS_STORES },
};

static const uint8_t fixed_quantity[PMU_MAX_FIXED] = {
	PMU_Q_INSTRUCTIONS, PMU_Q_CYCLES, PMU_Q_REF_CYCLES, PMU_Q_SLOTS,
	PMU_Q_BAD_SPECULATION, PMU_Q_FRONTEND_BOUND, PMU_Q_RETIRING,
};

/*
 * How often an ordinary step, see pmu_next_overflow(), makes a quantity occur
 * at most; a step that does more makes its PMI late, no worse.
 */
static const uint8_t max_per_step[PMU_NR_QUANTITIES] = {
	[PMU_Q_RETIRING]	= 6,	[PMU_Q_BAD_SPECULATION]	= 12,
	[PMU_Q_FRONTEND_BOUND]	= 12,	[PMU_Q_BACKEND_BOUND]	= 16,
	[PMU_Q_HEAVY_OPS]	= 4,	[PMU_Q_BRANCH_MISPREDICT] = 12,
	[PMU_Q_FETCH_LATENCY]	= 10,	[PMU_Q_MEMORY_BOUND]	= 10,
	[PMU_Q_SLOTS]		= 24,	[PMU_Q_CYCLES]		= 4,
	[PMU_Q_REF_CYCLES]	= 1,	[PMU_Q_INSTRUCTIONS]	= 1,
	[PMU_Q_BRANCHES]	= 1,	[PMU_Q_BRANCH_MISSES]	= 1,
	[PMU_Q_LLC_REFERENCES]	= 1,	[PMU_Q_LLC_MISSES]	= 1,
	[PMU_Q_LOADS]		= 1,	[PMU_Q_STORES]		= 1,
	[PMU_Q_LOADS_STORES]	= 2,
};

const struct pmu_variant *pmu_variant_by_name(const char *name)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(variants); i++)
		if (!strcmp(name, variants[i].name))
			return &variants[i];
	return NULL;
}

const struct pmu_variant *pmu_variant_by_model(const char *model)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(variants); i++)
		if (variants[i].model[0] && !strcmp(model, variants[i].model))
			return &variants[i];
	return NULL;
}

uint32_t pmu_reading_by_name(const char *name)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(readings); i++)
		if (!strcmp(name, readings[i].name))
			return readings[i].readings;
	return 0;
}

static bool reads(const struct pmu *pmu, enum pmu_reading reading)
{
	return pmu->readings & BIT(reading);
}

/* The index of an extra register, PMU_MAX_EXTRA if it is none. */
static unsigned int extra_index(const struct pmu *pmu, uint32_t msr)
{
	unsigned int i;

	for (i = 0; i < PMU_MAX_EXTRA; i++)
		if (msr && msr == pmu->var->extra[i].msr)
			break;
	return i;
}

static uint64_t width_mask(const struct pmu *pmu)
{
	return BIT(pmu->var->width) - 1;
}

static bool has_fixed(const struct pmu *pmu, unsigned int i)
{
	return i < PMU_MAX_FIXED && (pmu->var->fixed_mask & BIT(i));
}

/* Bits of GLOBAL_CTRL, and as overflow bits of GLOBAL_STATUS. */
static uint64_t global_bits(const struct pmu *pmu)
{
	return (BIT(pmu->var->nr_gp) - 1) | (uint64_t)pmu->var->fixed_mask << 32 |
	       (pmu->var->nr_metrics ? GLOBAL_METRICS : 0);
}

static uint64_t status_reset_bits(const struct pmu *pmu)
{
	uint64_t bits = global_bits(pmu) | STATUS_OVF_UNCORE | STATUS_OVF_DS | STATUS_COND_CHGD;

	if (pmu->var->version >= 4)
		bits |= STATUS_LBR_FRZ | STATUS_CTR_FRZ;
	return bits;
}

static uint64_t status_set_bits(const struct pmu *pmu)
{
	return status_reset_bits(pmu) & ~STATUS_COND_CHGD;
}

static uint64_t evtsel_bits(const struct pmu *pmu)
{
	return (EVTSEL_ALL & ~(pmu->var->anythread ? 0 : EVTSEL_ANY)) |
	       (pmu->var->perfmon_ext ? EVTSEL_EQ | EVTSEL_UMASK2 : 0);
}

static uint64_t fixed_ctrl_bits(const struct pmu *pmu)
{
	uint64_t one = FIXED_OS | FIXED_USR | FIXED_PMI | (pmu->var->anythread ? FIXED_ANY : 0);
	uint64_t bits = 0;

	for (unsigned int i = 0; i < PMU_MAX_FIXED; i++)
		if (has_fixed(pmu, i))
			bits |= one << 4 * i;
	if (pmu->var->nr_metrics && reads(pmu, PMU_RDPMC_CLEARS))
		bits |= FIXED_CLEAR_METRICS;
	return bits;
}

static uint64_t debugctl_bits(const struct pmu *pmu)
{
	uint64_t bits = DEBUGCTL_LBR | DEBUGCTL_BTF | DEBUGCTL_FREEZE_LBRS |
			DEBUGCTL_FREEZE_PERFMON;

	if (pmu->var->perf_capabilities & CAP_FREEZE_WHILE_SMM)
		bits |= DEBUGCTL_FREEZE_IN_SMM;
	return bits;
}

static unsigned int fixed_ctrl(const struct pmu *pmu, unsigned int i)
{
	return pmu->fixed_ctrl >> 4 * i & 0xf;
}

/* Rings a counter counts in, as a bitmap; the freeze is up to the caller. */
static unsigned int gp_rings(const struct pmu *pmu, unsigned int i)
{
	uint64_t sel = pmu->evtsel[i];

	if (!(sel & EVTSEL_EN) || !(pmu->global_ctrl & BIT(i)))
		return 0;
	return (sel & EVTSEL_OS ? BIT(RING_OS) : 0) | (sel & EVTSEL_USR ? BIT(RING_USER) : 0);
}

/* Rings a fixed counter counts in if one of these bits of GLOBAL_CTRL is set. */
static unsigned int enabled_rings(const struct pmu *pmu, unsigned int i, uint64_t global)
{
	unsigned int ctrl = fixed_ctrl(pmu, i);

	if (!(pmu->global_ctrl & global))
		return 0;
	return (ctrl & FIXED_OS ? BIT(RING_OS) : 0) | (ctrl & FIXED_USR ? BIT(RING_USER) : 0);
}

static unsigned int fixed_rings(const struct pmu *pmu, unsigned int i)
{
	return enabled_rings(pmu, i, BIT(32 + i));
}

/* Where SLOTS counts, or metrics, or both. */
static unsigned int topdown_rings(const struct pmu *pmu)
{
	if (!pmu->var->nr_metrics)
		return 0;
	return enabled_rings(pmu, SLOTS_COUNTER, GLOBAL_SLOTS | GLOBAL_METRICS);
}

static bool half_enabled(const struct pmu *pmu)
{
	return !(pmu->global_ctrl & GLOBAL_SLOTS) != !(pmu->global_ctrl & GLOBAL_METRICS);
}

static unsigned int metrics_rings(const struct pmu *pmu)
{
	return half_enabled(pmu) && !reads(pmu, PMU_HALF_COUNTS) ? 0 : topdown_rings(pmu);
}

static bool is_frozen(const struct pmu *pmu)
{
	return pmu->global_status & STATUS_CTR_FRZ;
}

/* SLOTS, or metrics, may count now, if only in the other ring. */
static bool topdown_runs(const struct pmu *pmu)
{
	return topdown_rings(pmu) && !is_frozen(pmu);
}

/* Whether the overflow of an internal count causes a PMI. */
static bool metrics_pmi(const struct pmu *pmu)
{
	return fixed_ctrl(pmu, SLOTS_COUNTER) & FIXED_PMI || reads(pmu, PMU_OVERFLOW_PMI);
}

/* To be called after a write to anything that starts or stops counters. */
static void update_live(struct pmu *pmu)
{
	pmu->live = false;
	pmu->sampling = false;
	if (is_frozen(pmu))
		return;

	for (unsigned int i = 0; i < pmu->var->nr_gp; i++) {
		if (!gp_rings(pmu, i))
			continue;
		pmu->live = true;
		pmu->sampling |= !!(pmu->evtsel[i] & EVTSEL_INT);
	}
	for (unsigned int i = 0; i < PMU_MAX_FIXED; i++) {
		if (!fixed_rings(pmu, i))
			continue;
		pmu->live = true;
		pmu->sampling |= !!(fixed_ctrl(pmu, i) & FIXED_PMI);
	}
	if (reads(pmu, PMU_HALF_COUNTS) || reads(pmu, PMU_HALF_UNDEFINED))
		pmu->live |= !!topdown_rings(pmu);
	pmu->sampling |= metrics_rings(pmu) && metrics_pmi(pmu);
}

static unsigned int quantity_of(const struct pmu *pmu, uint64_t sel)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(events); i++) {
		if (events[i].event != (sel & EVTSEL_EVENT) ||
		    events[i].umask != (sel & EVTSEL_UMASK) >> 8 || sel & EVTSEL_UMASK2)
			continue;
		if (events[i].index < pmu->var->nr_arch_events ||
		    events[i].nr_metrics <= pmu->var->nr_metrics)
			return events[i].quantity;
	}
	return PMU_Q_NONE;
}

/* Turn activity into everything that can be counted. */
static void derive(const struct pmu_activity *act, uint64_t q[PMU_NR_QUANTITIES])
{
	uint64_t work[PMU_NR_ACTS];

	memcpy(work, act->n, sizeof(work));
	work[PMU_STEP] -= work[PMU_CONTINUED] + work[PMU_ABORTED];

	for (unsigned int m = 0; m < PMU_NR_METRICS; m++) {
		q[PMU_Q_METRIC0 + m] = 0;
		for (unsigned int a = 0; a < PMU_NR_ACTS; a++)
			q[PMU_Q_METRIC0 + m] += work[a] * cost[a][m];
	}

	q[PMU_Q_SLOTS] = q[PMU_Q_RETIRING] + q[PMU_Q_BAD_SPECULATION] +
			 q[PMU_Q_FRONTEND_BOUND] + q[PMU_Q_BACKEND_BOUND];
	q[PMU_Q_CYCLES] = q[PMU_Q_SLOTS] / SLOTS_PER_CYCLE;
	q[PMU_Q_REF_CYCLES] = act->n[PMU_STEP];
	q[PMU_Q_INSTRUCTIONS] = work[PMU_STEP];
	q[PMU_Q_BRANCHES] = act->n[PMU_BRANCH_TAKEN] + act->n[PMU_BRANCH_NOT_TAKEN];
	q[PMU_Q_BRANCH_MISSES] = act->n[PMU_BRANCH_NOT_TAKEN];
	q[PMU_Q_LLC_REFERENCES] = act->n[PMU_FLUSH];
	q[PMU_Q_LLC_MISSES] = act->n[PMU_FLUSH];
	q[PMU_Q_LOADS] = act->n[PMU_LOAD];
	q[PMU_Q_STORES] = act->n[PMU_STORE];
	q[PMU_Q_LOADS_STORES] = act->n[PMU_LOAD] + act->n[PMU_STORE];
}

/* All but slots happens once in a cycle. */
static unsigned int per_cycle(unsigned int quantity)
{
	return quantity == PMU_Q_SLOTS ? SLOTS_PER_CYCLE : 1;
}

/* Present in every cycle, so that it has no edges. */
static bool is_level(unsigned int quantity)
{
	return quantity == PMU_Q_SLOTS || quantity == PMU_Q_CYCLES ||
	       quantity == PMU_Q_REF_CYCLES;
}

/*
 * What a general-purpose counter makes of a quantity.  CMASK n counts cycles
 * with at least n occurrences, with EQ just n, INV all others (both only with CMASK, as
 * documented), EDGE the beginnings of such stretches; as no two cycles of the
 * same event are neighbours here, each is one, inverted or not.
 */
static uint64_t filtered(uint64_t sel, unsigned int quantity, const uint64_t *q)
{
	unsigned int cmask = (sel & EVTSEL_CMASK) >> EVTSEL_CMASK_SHIFT;
	uint64_t cycles;

	if (quantity == PMU_Q_NONE)
		return sel & EVTSEL_INV && cmask && !(sel & EVTSEL_EDGE) ? q[PMU_Q_CYCLES] : 0;
	if (!cmask && !(sel & EVTSEL_EDGE))
		return q[quantity];
	if (quantity < PMU_Q_SLOTS)
		return 0;	/* how slots spread over cycles isn't modelled */

	cycles = q[quantity] / per_cycle(quantity);
	if (cmask > per_cycle(quantity) ||
	    (sel & EVTSEL_EQ && cmask && cmask != per_cycle(quantity)))
		cycles = 0;
	if (sel & EVTSEL_EDGE)
		return is_level(quantity) ? 0 : cycles;
	if (sel & EVTSEL_INV)
		return cycles < q[PMU_Q_CYCLES] ? q[PMU_Q_CYCLES] - cycles : 0;
	return cycles;
}

static void overflow(struct pmu *pmu, uint64_t status, bool interrupt)
{
	pmu->global_status |= status;
	if (!interrupt)
		return;

	if (!pmu->pmi)
		pmu->pmi_due = pmu->last.n[PMU_STEP] + (reads(pmu, PMU_PMI_LATE) ? PMI_DELAY : 0);
	pmu->pmi = true;
	if (pmu->var->version < 4)
		return;
	if (pmu->debugctl & DEBUGCTL_FREEZE_PERFMON)
		pmu->global_status |= STATUS_CTR_FRZ;
	if (pmu->debugctl & DEBUGCTL_FREEZE_LBRS)
		pmu->global_status |= STATUS_LBR_FRZ;
}

static void advance(struct pmu *pmu, uint64_t *counter, uint64_t by, uint64_t status,
		    bool interrupt)
{
	uint64_t sum = *counter + by;

	*counter = sum & width_mask(pmu);
	if (sum != *counter)
		overflow(pmu, status, interrupt);
}

/* Whether a quantity has grown in one of these rings since it was counted. */
static bool advances(const struct pmu *pmu, unsigned int rings,
		     uint64_t now[NR_RINGS][PMU_NR_QUANTITIES], unsigned int quantity)
{
	for (unsigned int r = 0; r < NR_RINGS; r++)
		if (rings & BIT(r) && now[r][quantity] != pmu->counted[r][quantity])
			return true;
	return false;
}

static uint64_t counter(const struct pmu *pmu, unsigned int i)
{
	return i < FIXED_REGISTERS ? pmu->gp[i] : pmu->fixed[i - FIXED_REGISTERS];
}

/* Only PERF_METRICS can hide something. */
static bool tells_nothing(const struct pmu *pmu, unsigned int i)
{
	return pmu->made_by[i] == PMU_NOBODY || (i != METRICS_REGISTER && !counter(pmu, i));
}

static bool is_own(const struct pmu *pmu, unsigned int i, uint32_t who)
{
	return pmu->made_by[i] == PMU_GIVEN || pmu->made_by[i] == who || tells_nothing(pmu, i);
}

static void made(struct pmu *pmu, unsigned int i, uint32_t who)
{
	pmu->made_by[i] = who;
	if (who >= PMU_GUESTS)
		pmu->unsaved |= BIT(i) & pmu->readable;
	else
		pmu->unsaved &= ~BIT(i);
}

/* To be called before something is added to a register. */
static void counts(struct pmu *pmu, unsigned int i)
{
	uint32_t who = pmu->host_counts & BIT(i) ? PMU_HOST : pmu->running;

	/* With half-counts, events on guests alone don't stop metrics in the host. */
	if (who == PMU_HOST && pmu->made_by[i] >= PMU_GUESTS && !tells_nothing(pmu, i) &&
	    !(i == METRICS_REGISTER && half_enabled(pmu)))
		pmu->mixed |= BIT(i);
	made(pmu, i, is_own(pmu, i, who) ? who : PMU_SEVERAL);
}

static void written(struct pmu *pmu, unsigned int i, uint64_t val)
{
	uint32_t who = pmu->running;

	pmu->mixed &= ~BIT(i);
	if (who == PMU_HOST)
		who = val ? PMU_GIVEN : PMU_NOBODY;
	if (i == METRICS_REGISTER) {
		/* What is undefined may still be what was there before. */
		if (pmu->undefined)
			return;
		/* Fractions of what somebody else has counted tell of that. */
		if (val && !is_own(pmu, SLOTS_REGISTER, who))
			who = pmu->made_by[SLOTS_REGISTER];
	}
	made(pmu, i, who);
}

/* Bring the counters up to the activity in pmu->total. */
static void count(struct pmu *pmu)
{
	uint64_t now[NR_RINGS][PMU_NR_QUANTITIES];
	uint64_t limit = (width_mask(pmu) + 1) * METRIC_ONE;
	bool slots_wrapped = false;

	for (unsigned int r = 0; r < NR_RINGS; r++)
		derive(&pmu->total[r], now[r]);

	for (unsigned int i = 0; i < pmu->var->nr_gp; i++) {
		uint64_t sel = pmu->evtsel[i], by = 0;
		unsigned int rings = gp_rings(pmu, i);
		unsigned int quantity;

		if (!rings)
			continue;
		quantity = quantity_of(pmu, sel);
		for (unsigned int r = 0; r < NR_RINGS; r++)
			if (rings & BIT(r))
				by += filtered(sel, quantity, now[r]) -
				      filtered(sel, quantity, pmu->counted[r]);
		/* Inverted, what took longer than the cycles would count back. */
		if ((int64_t)by < 0)
			by = 0;
		if (by)
			counts(pmu, i);
		advance(pmu, &pmu->gp[i], by, BIT(i), sel & EVTSEL_INT);
	}

	for (unsigned int i = 0; i < PMU_MAX_FIXED; i++) {
		unsigned int rings = fixed_rings(pmu, i);
		unsigned int quantity = fixed_quantity[i];
		uint64_t by = 0;

		for (unsigned int r = 0; r < NR_RINGS; r++)
			if (rings & BIT(r))
				by += now[r][quantity] - pmu->counted[r][quantity];
		if (by)
			counts(pmu, FIXED_REGISTERS + i);
		slots_wrapped |= i == SLOTS_COUNTER && by > width_mask(pmu) - pmu->fixed[i];
		advance(pmu, &pmu->fixed[i], by, BIT(32 + i), fixed_ctrl(pmu, i) & FIXED_PMI);
	}
	if (slots_wrapped && reads(pmu, PMU_RUNNING_UNDEFINED))
		pmu->undefined = UNTIL_SLOTS_AND_METRICS;
	if (half_enabled(pmu) && reads(pmu, PMU_HALF_UNDEFINED) &&
	    advances(pmu, topdown_rings(pmu), now, PMU_Q_SLOTS))
		pmu->undefined = UNTIL_SLOTS_AND_METRICS;

	for (unsigned int m = 0; m < pmu->var->nr_metrics; m++) {
		unsigned int rings = metrics_rings(pmu);

		for (unsigned int r = 0; r < NR_RINGS; r++)
			if (rings & BIT(r))
				pmu->metric[m] += METRIC_ONE * (now[r][PMU_Q_METRIC0 + m] -
								pmu->counted[r][PMU_Q_METRIC0 + m]);
		if (pmu->metric[m] >= limit) {
			pmu->metric[m] -= limit;
			if (reads(pmu, PMU_OVERFLOW_UNDEFINED))
				pmu->undefined = UNTIL_SLOTS_AND_METRICS;
			overflow(pmu, GLOBAL_METRICS, metrics_pmi(pmu));
		}
	}
	if (advances(pmu, metrics_rings(pmu), now, PMU_Q_SLOTS)) {
		pmu->metrics_counted = true;
		pmu->metrics_reads = 0;
		counts(pmu, METRICS_REGISTER);
	}

	memcpy(pmu->counted, now, sizeof(now));
	if (is_frozen(pmu))
		update_live(pmu);
}

static void accumulate(struct pmu *pmu, const struct pmu_activity *now)
{
	struct pmu_activity *total = &pmu->total[pmu->ring];

	for (unsigned int a = 0; a < PMU_NR_ACTS; a++)
		total->n[a] += now->n[a] - pmu->last.n[a];
	pmu->last = *now;
}

void pmu_init(struct pmu *pmu, const struct pmu_variant *var, uint32_t readings)
{
	memset(pmu, 0, sizeof(*pmu));
	pmu->var = var;
	pmu->readings = readings;
	pmu_reset(pmu);
}

/* MPERF and APERF count cycles all the time, by the TSC and by the core. */
static uint64_t unhalted_cycles(const struct pmu *pmu, uint32_t msr)
{
	uint64_t q[PMU_NR_QUANTITIES];

	derive(&pmu->last, q);
	return q[msr == MSR_MPERF ? PMU_Q_REF_CYCLES : PMU_Q_CYCLES];
}

void pmu_reset(struct pmu *pmu)
{
	const struct pmu_variant *var = pmu->var;
	struct pmu_activity last = pmu->last;
	uint32_t readings = pmu->readings;

	memset(pmu, 0, sizeof(*pmu));
	pmu->var = var;
	pmu->readings = readings;
	pmu->last = last;
	pmu->running = PMU_HOST;
	pmu->unhalted_base[0] = unhalted_cycles(pmu, MSR_MPERF);
	pmu->unhalted_base[1] = unhalted_cycles(pmu, MSR_APERF);
	pmu->global_ctrl = BIT(var->nr_gp) - 1;
	pmu->misc_enable = MISC_FAST_STRINGS | MISC_READ_ONLY;
}

/*
 * Leaf 0x23: sub-leaves, filters and slots in a cycle; counters; events.  What a real
 * CPU says is in Bochs' cpu/cpudb/intel/arrow_lake.txt.
 */
static void cpuid_perfmon_ext(const struct pmu *pmu, uint32_t subleaf, struct pmu_cpuid *r)
{
	memset(r, 0, sizeof(*r));
	switch (subleaf) {
	case 0:
		r->eax = BIT(0) | BIT(1) | BIT(3);
		r->ebx = BIT(0) | BIT(1);		/* UMASK2, EQ */
		r->ecx = SLOTS_PER_CYCLE;
		break;
	case 1:
		r->eax = BIT(pmu->var->nr_gp) - 1;
		r->ebx = pmu->var->fixed_mask;
		break;
	case 3:
		r->eax = BIT(pmu->var->nr_arch_events) - 1;
		break;
	}
}

void pmu_cpuid(const struct pmu *pmu, uint32_t leaf, uint32_t subleaf, struct pmu_cpuid *r)
{
	const struct pmu_variant *var = pmu->var;
	unsigned int contiguous = 0;

	switch (leaf) {
	case 0:
		if (var->perfmon_ext && r->eax < 0x23)
			r->eax = 0x23;
		break;
	case 1:
		if (var->signature)
			r->eax = var->signature;
		r->ecx |= BIT(15);			/* PDCM */
		r->ecx &= ~(BIT(2) | BIT(4));		/* DTES64, DS-CPL */
		r->edx &= ~BIT(21);			/* DS */
		break;
	case 7:
		if (var->perfmon_ext && subleaf == 1)
			r->eax |= BIT(8);		/* ArchPerfmonExt */
		break;
	case 0xa:
		while (has_fixed(pmu, contiguous))
			contiguous++;
		r->eax = var->version | var->nr_gp << 8 | var->width << 16 |
			 (uint32_t)var->nr_arch_events << 24;
		r->ebx = 0;
		r->ecx = var->version >= 5 ? var->fixed_mask : 0;
		r->edx = contiguous | var->width << 5 | !var->anythread << 15;
		break;
	case 0x23:
		if (var->perfmon_ext)
			cpuid_perfmon_ext(pmu, subleaf, r);
		break;
	}
}

void pmu_report(struct pmu *pmu, const struct pmu_activity *now)
{
	if (!pmu->live) {
		pmu->last = *now;
		return;
	}
	accumulate(pmu, now);
	count(pmu);
}

bool pmu_set_ring(struct pmu *pmu, const struct pmu_activity *now, unsigned int cpl)
{
	bool sampling = pmu->sampling;	/* before a PMI freezes the counters */

	if (pmu->live) {
		accumulate(pmu, now);
		if (sampling)
			count(pmu);
	}
	pmu->ring = cpl ? RING_USER : RING_OS;
	return sampling;
}

/* The same in each metric. */
static uint64_t all_metrics(const struct pmu *pmu, uint8_t fraction)
{
	uint64_t val = 0;

	for (unsigned int m = 0; m < pmu->var->nr_metrics; m++)
		val |= (uint64_t)fraction << 8 * m;
	return val;
}

static unsigned int metric_of(uint64_t val, unsigned int m)
{
	return val >> 8 * m & 0xff;
}

/* Adds to a metric, as far as it can hold that. */
static uint64_t add_to_metric(uint64_t val, unsigned int m, int delta)
{
	int fraction = (int)metric_of(val, m) + delta;

	return fraction < 0 || fraction > METRIC_ONE ? val :
	       (val & ~(0xffull << 8 * m)) | (uint64_t)fraction << 8 * m;
}

/* What rounding has taken off the internal count, in 255ths of slots. */
static int64_t rounded_off(const struct pmu *pmu, uint64_t val, unsigned int m)
{
	return (int64_t)(pmu->metric[m] - metric_of(val, m) * pmu->fixed[SLOTS_COUNTER]);
}

static unsigned int level1_sum(uint64_t val)
{
	unsigned int sum = 0;

	for (unsigned int m = 0; m < NR_LEVEL1; m++)
		sum += metric_of(val, m);
	return sum;
}

/* Whether level 1 may sum to this on hardware.  Software may write all else. */
static bool may_sum_to(const struct pmu *pmu, uint64_t sum)
{
	return reads(pmu, PMU_SUMS_LOOSE) ? sum >= METRIC_ONE - 2 && sum <= METRIC_ONE + 2 :
	       sum == METRIC_ONE || sum == METRIC_ONE + 1;
}

/*
 * Level 1 sums to what its counts sum to, where that is all slots: the metric that was
 * rounded most gives way.  Published readings sum to 255 or 256, never to less.
 */
static uint64_t balanced(const struct pmu *pmu, uint64_t val)
{
	uint64_t slots = pmu->fixed[SLOTS_COUNTER], total = 0;
	unsigned int sum = level1_sum(val);

	for (unsigned int m = 0; m < NR_LEVEL1; m++)
		total += pmu->metric[m];
	total = (total + slots / 2) / slots;
	if (!may_sum_to(pmu, total))
		return val;

	while (sum != total) {
		int up = sum < total ? 1 : -1;
		unsigned int most = NR_LEVEL1;

		for (unsigned int m = 0; m < NR_LEVEL1; m++)
			if (add_to_metric(val, m, up) != val &&
			    (most == NR_LEVEL1 ||
			     up * rounded_off(pmu, val, m) > up * rounded_off(pmu, val, most)))
				most = m;
		if (most == NR_LEVEL1)
			break;
		val = add_to_metric(val, most, up);
		sum += up;
	}
	/* A part is no more than the whole. */
	for (unsigned int m = NR_LEVEL1; m < pmu->var->nr_metrics; m++)
		if (pmu->metric[m] <= pmu->metric[m - NR_LEVEL1] &&
		    metric_of(val, m) > metric_of(val, m - NR_LEVEL1))
			val = add_to_metric(val, m, -1);
	return val;
}

/* PERF_METRICS as the counts say, SLOTS not being 0. */
static uint64_t fractions(const struct pmu *pmu)
{
	uint64_t slots = pmu->fixed[SLOTS_COUNTER], val = 0;

	for (unsigned int m = 0; m < pmu->var->nr_metrics; m++) {
		uint64_t fraction = (pmu->metric[m] + slots / 2) / slots;

		val |= (fraction < METRIC_ONE ? fraction : METRIC_ONE) << 8 * m;
	}
	return balanced(pmu, val);
}

/*
 * What was counted from zero, as it sums up on hardware that isn't exact.  What was
 * restored and counted on isn't loosened again: groups that are switched often, i.e.
 * restored each time, sum to no more than 1.18 of SLOTS in published logs.
 */
static uint64_t loosened(const struct pmu *pmu, uint64_t val)
{
	uint64_t slots = pmu->fixed[SLOTS_COUNTER];
	int delta = (int)(slots / SLOTS_PER_CYCLE % 5) - 2;

	while (delta && !may_sum_to(pmu, level1_sum(val) + delta))
		delta += delta < 0 ? 1 : -1;
	val = add_to_metric(val, slots >> 5 & 3, delta);

	for (unsigned int m = NR_LEVEL1; m < pmu->var->nr_metrics; m++) {
		int room = (int)metric_of(val, m - NR_LEVEL1) + 2 - (int)metric_of(val, m);

		val = add_to_metric(val, m, room < 2 ? room : 2);
	}
	return val;
}

/* PERF_METRICS, defined, and SLOTS not being 0. */
static uint64_t counted_metrics(const struct pmu *pmu)
{
	uint64_t val = fractions(pmu);

	return reads(pmu, PMU_SUMS_LOOSE) && pmu->metrics_counted && !pmu->metrics_restored ?
	       loosened(pmu, val) : val;
}

static uint64_t read_metrics(struct pmu *pmu)
{
	/* Who reads once, as perf and KVM do when they save it, gets what was counted. */
	static const int8_t differ[] = { 0, 1, 0, -1 };
	uint64_t val;

	if (pmu->undefined)
		return all_metrics(pmu, PMU_POISON);
	if (!pmu->fixed[SLOTS_COUNTER]) {
		if (reads(pmu, PMU_METRICS_KEPT))
			return pmu->metrics_seen;
		return all_metrics(pmu, reads(pmu, PMU_METRICS_ONES) ? METRIC_ONE :
				   reads(pmu, PMU_METRICS_UNDEFINED) ? PMU_POISON : 0);
	}

	val = counted_metrics(pmu);
	if (reads(pmu, PMU_READS_DIFFER) && (!metrics_rings(pmu) || is_frozen(pmu)))
		val = add_to_metric(val, 0, differ[pmu->metrics_reads++ % ARRAY_SIZE(differ)]);
	pmu->metrics_seen = val;
	return val;
}

/* Have PERF_METRICS read as this. */
static void set_metrics(struct pmu *pmu, uint64_t val)
{
	for (unsigned int m = 0; m < pmu->var->nr_metrics; m++)
		pmu->metric[m] = metric_of(val, m) * pmu->fixed[SLOTS_COUNTER];
	pmu->metrics_counted = false;
	pmu->metrics_restored = val;
	pmu->metrics_reads = 0;
}

static void write_metrics(struct pmu *pmu, uint64_t val)
{
	pmu->metrics_seen = val;
	for (unsigned int m = 0; m < pmu->var->nr_metrics; m++)
		if (reads(pmu, PMU_WRITES_LOWER) && (metric_of(val, m) & 3) == 3)
			val = add_to_metric(val, m, -1);
	set_metrics(pmu, val);
	if (reads(pmu, PMU_RUNNING_UNDEFINED) && topdown_runs(pmu))
		pmu->undefined = UNTIL_SLOTS_AND_METRICS;
	else if (pmu->undefined == UNTIL_METRICS)
		pmu->undefined = DEFINED;
}

static void write_slots(struct pmu *pmu, uint64_t slots)
{
	bool rescales = reads(pmu, PMU_SLOTS_RESCALES) && pmu->fixed[SLOTS_COUNTER];
	uint64_t val = rescales ? counted_metrics(pmu) : 0;

	pmu->fixed[SLOTS_COUNTER] = slots;
	if (reads(pmu, PMU_RUNNING_UNDEFINED) && topdown_runs(pmu))
		pmu->undefined = UNTIL_SLOTS_AND_METRICS;
	else if (pmu->undefined || reads(pmu, PMU_SLOTS_UNDEFINED))
		pmu->undefined = UNTIL_METRICS;

	if (rescales || (reads(pmu, PMU_SLOTS_CLEARS) && !slots))
		set_metrics(pmu, val);
}

static uint64_t read_inuse(const struct pmu *pmu)
{
	uint64_t val = 0;

	for (unsigned int i = 0; i < pmu->var->nr_gp; i++) {
		if (pmu->evtsel[i] & EVTSEL_EVENT)
			val |= BIT(i);
		if (pmu->evtsel[i] & EVTSEL_INT)
			val |= INUSE_PMI;
	}
	for (unsigned int i = 0; i < PMU_MAX_FIXED; i++) {
		if (fixed_ctrl(pmu, i) & (FIXED_OS | FIXED_USR))
			val |= BIT(32 + i);
		if (fixed_ctrl(pmu, i) & FIXED_PMI)
			val |= INUSE_PMI;
	}
	return val;
}

/* Numbered registers: where @msr lies in an array of @nr from @base on. */
static bool in_range(uint32_t msr, uint32_t base, uint32_t nr, unsigned int *i)
{
	*i = msr - base;
	return *i < nr;
}

/*
 * Version 6 has a second set of numbers for the counters and selectors.  What else it
 * has room for is not announced, so absent: reload of counters, PEBS.
 */
static uint32_t first_name(const struct pmu *pmu, uint32_t msr)
{
	unsigned int i;

	if (pmu->var->version < 6)
		return msr;
	if (in_range(msr, MSR_V6_GP0, MSR_V6_STEP * PMU_MAX_GP, &i)) {
		if (i % MSR_V6_STEP == 0)
			return MSR_PMC0 + i / MSR_V6_STEP;
		if (i % MSR_V6_STEP == 1)
			return MSR_PERFEVTSEL0 + i / MSR_V6_STEP;
		return MSR_PEBS_ENABLE;
	}
	if (in_range(msr, MSR_V6_FIXED0, MSR_V6_STEP * PMU_MAX_FIXED, &i))
		return i % MSR_V6_STEP ? MSR_PEBS_ENABLE : MSR_FIXED_CTR0 + i / MSR_V6_STEP;
	return msr;
}

uint64_t pmu_registers(const struct pmu *pmu)
{
	return global_bits(pmu);
}

uint64_t pmu_register_of_msr(const struct pmu *pmu, uint32_t msr)
{
	uint64_t reg = 0;
	unsigned int i;

	msr = first_name(pmu, msr);
	if (in_range(msr, MSR_PERFCTR0, PMU_MAX_GP, &i) || in_range(msr, MSR_PMC0, PMU_MAX_GP, &i))
		reg = BIT(i);
	else if (in_range(msr, MSR_FIXED_CTR0, PMU_MAX_FIXED, &i))
		reg = BIT(FIXED_REGISTERS + i);
	else if (msr == MSR_PERF_METRICS)
		reg = BIT(METRICS_REGISTER);
	return reg & global_bits(pmu);
}

uint64_t pmu_register_of_rdpmc(const struct pmu *pmu, uint32_t ecx)
{
	unsigned int index = ecx & 0xffff;
	uint64_t reg = 0;

	switch (ecx >> 16) {
	case 0x0000:
		reg = index < PMU_MAX_GP ? BIT(index) : 0;
		break;
	case 0x4000:
		reg = index < PMU_MAX_FIXED ? BIT(FIXED_REGISTERS + index) : 0;
		break;
	case 0x2000:
		reg = index ? 0 : BIT(METRICS_REGISTER);
		break;
	}
	return reg & global_bits(pmu);
}

void pmu_run(struct pmu *pmu, uint32_t who, uint64_t readable, uint64_t host_counts)
{
	pmu->running = who;
	pmu->readable = readable;
	pmu->host_counts = host_counts;
	for (unsigned int i = 0; i < PMU_NR_REGISTERS; i++)
		if (readable & BIT(i) && pmu->made_by[i] == PMU_GIVEN)
			pmu->made_by[i] = who;
}

uint64_t pmu_foreign(const struct pmu *pmu, uint64_t registers)
{
	uint64_t foreign = 0;

	if (registers & GLOBAL_METRICS)
		registers |= GLOBAL_SLOTS;
	for (unsigned int i = 0; i < PMU_NR_REGISTERS; i++)
		if (registers & BIT(i) && !is_own(pmu, i, pmu->running))
			foreign |= BIT(i);
	return foreign;
}

uint64_t pmu_not_to_read(const struct pmu *pmu, uint64_t registers)
{
	return pmu->running == PMU_HOST ? registers & pmu->mixed : pmu_foreign(pmu, registers);
}

uint64_t pmu_lost(const struct pmu *pmu, uint32_t msr)
{
	uint64_t reg = pmu_register_of_msr(pmu, msr);

	if (reg == GLOBAL_SLOTS)
		reg |= GLOBAL_METRICS;
	return pmu->running == PMU_HOST ? reg & pmu->unsaved : 0;
}

/* What the host has read it can give back. */
static enum pmu_result saved(struct pmu *pmu, uint64_t reg, enum pmu_result ret)
{
	if (ret == PMU_OK && pmu->running == PMU_HOST)
		pmu->unsaved &= ~reg;
	return ret;
}

static enum pmu_result read_reg(struct pmu *pmu, uint32_t msr, uint64_t *val)
{
	const struct pmu_variant *var = pmu->var;
	unsigned int i;

	msr = first_name(pmu, msr);
	if (in_range(msr, MSR_PERFEVTSEL0, PMU_MAX_GP, &i)) {
		*val = pmu->evtsel[i];
		return i < var->nr_gp ? PMU_OK : PMU_GP;
	}
	if (in_range(msr, MSR_PERFCTR0, PMU_MAX_GP, &i)) {
		*val = pmu->gp[i];
		return i < var->nr_gp ? PMU_OK : PMU_GP;
	}
	if (in_range(msr, MSR_PMC0, PMU_MAX_GP, &i)) {
		*val = pmu->gp[i];
		return i < var->nr_gp && var->perf_capabilities & CAP_FW_WRITES ? PMU_OK : PMU_GP;
	}
	if (in_range(msr, MSR_FIXED_CTR0, PMU_MAX_FIXED, &i)) {
		*val = pmu->fixed[i];
		return has_fixed(pmu, i) ? PMU_OK : PMU_GP;
	}
	i = extra_index(pmu, msr);
	if (i < PMU_MAX_EXTRA) {
		*val = pmu->extra[i];
		return PMU_OK;
	}

	switch (msr) {
	case MSR_MPERF:
	case MSR_APERF:
		*val = unhalted_cycles(pmu, msr) - pmu->unhalted_base[msr - MSR_MPERF];
		return PMU_OK;
	case MSR_MISC_ENABLE:
		*val = pmu->misc_enable;
		return PMU_OK;
	case MSR_DEBUGCTL:
		*val = pmu->debugctl;
		return PMU_OK;
	case MSR_PERF_METRICS:
		/* By RDPMC software may read it at any time. */
		if (reads(pmu, PMU_RUNNING_UNDEFINED) && topdown_runs(pmu))
			pmu->undefined = UNTIL_SLOTS_AND_METRICS;
		*val = read_metrics(pmu);
		return var->nr_metrics ? PMU_OK : PMU_GP;
	case MSR_PERF_CAPABILITIES:
		*val = var->perf_capabilities;
		if (var->nr_metrics && reads(pmu, PMU_RDPMC_CLEARS))
			*val |= CAP_RDPMC_CLEARS;
		return PMU_OK;
	case MSR_FIXED_CTR_CTRL:
		*val = pmu->fixed_ctrl;
		return PMU_OK;
	case MSR_GLOBAL_STATUS:
		*val = pmu->global_status;
		return PMU_OK;
	case MSR_PERF_GLOBAL_CTRL:
		*val = pmu->global_ctrl;
		return PMU_OK;
	case MSR_GLOBAL_STATUS_RESET:
		*val = 0;
		return PMU_OK;
	case MSR_GLOBAL_STATUS_SET:
		*val = 0;
		return var->version >= 4 ? PMU_OK : PMU_GP;
	case MSR_GLOBAL_INUSE:
		*val = read_inuse(pmu);
		return var->version >= 4 ? PMU_OK : PMU_GP;
	case MSR_PEBS_ENABLE:
		return PMU_GP;
	default:
		return PMU_FOREIGN;
	}
}

enum pmu_result pmu_rdmsr(struct pmu *pmu, uint32_t msr, uint64_t *val)
{
	return saved(pmu, pmu_register_of_msr(pmu, msr), read_reg(pmu, msr, val));
}

/* A plain register: #GP on a bit that is not legal, else store. */
static enum pmu_result store(uint64_t *reg, uint64_t val, uint64_t legal)
{
	if (val & ~legal)
		return PMU_GP;
	*reg = val;
	return PMU_OK;
}

static enum pmu_result write_reg(struct pmu *pmu, uint32_t msr, uint64_t val)
{
	const struct pmu_variant *var = pmu->var;
	unsigned int i;

	msr = first_name(pmu, msr);
	if (in_range(msr, MSR_PERFEVTSEL0, PMU_MAX_GP, &i))
		return i < var->nr_gp ? store(&pmu->evtsel[i], val, evtsel_bits(pmu)) : PMU_GP;
	if (in_range(msr, MSR_PERFCTR0, PMU_MAX_GP, &i)) {
		if (i >= var->nr_gp)
			return PMU_GP;
		pmu->gp[i] = (uint64_t)(int32_t)val & width_mask(pmu);
		return PMU_OK;
	}
	if (in_range(msr, MSR_PMC0, PMU_MAX_GP, &i)) {
		if (i >= var->nr_gp || !(var->perf_capabilities & CAP_FW_WRITES))
			return PMU_GP;
		return store(&pmu->gp[i], val, width_mask(pmu));
	}
	if (in_range(msr, MSR_FIXED_CTR0, PMU_MAX_FIXED, &i)) {
		if (!has_fixed(pmu, i) || val & ~width_mask(pmu))
			return PMU_GP;
		if (i == SLOTS_COUNTER)
			write_slots(pmu, val);
		else
			pmu->fixed[i] = val;
		return PMU_OK;
	}
	i = extra_index(pmu, msr);
	if (i < PMU_MAX_EXTRA)
		return store(&pmu->extra[i], val, var->extra[i].bits);

	switch (msr) {
	case MSR_MPERF:
	case MSR_APERF:
		pmu->unhalted_base[msr - MSR_MPERF] = unhalted_cycles(pmu, msr) - val;
		return PMU_OK;
	case MSR_MISC_ENABLE:
		if (val & ~(MISC_WRITABLE | MISC_READ_ONLY))
			return PMU_GP;
		pmu->misc_enable = MISC_READ_ONLY | (val & MISC_WRITABLE);
		return PMU_OK;
	case MSR_DEBUGCTL:
		return store(&pmu->debugctl, val, debugctl_bits(pmu));
	case MSR_PERF_METRICS:
		if (!var->nr_metrics)
			return PMU_GP;
		if (val & ~all_metrics(pmu, METRIC_ONE) && !reads(pmu, PMU_UPPER_IGNORED))
			return PMU_GP;
		write_metrics(pmu, val & all_metrics(pmu, METRIC_ONE));
		return PMU_OK;
	case MSR_FIXED_CTR_CTRL:
		return store(&pmu->fixed_ctrl, val, fixed_ctrl_bits(pmu));
	case MSR_PERF_GLOBAL_CTRL:
		return store(&pmu->global_ctrl, val, global_bits(pmu));
	case MSR_GLOBAL_STATUS_RESET:
		if (val & ~status_reset_bits(pmu))
			return PMU_GP;
		pmu->global_status &= ~val;
		return PMU_OK;
	case MSR_GLOBAL_STATUS_SET:
		if (var->version < 4 || val & ~status_set_bits(pmu))
			return PMU_GP;
		pmu->global_status |= val;
		return PMU_OK;
	case MSR_PERF_CAPABILITIES:
	case MSR_GLOBAL_STATUS:
	case MSR_GLOBAL_INUSE:
	case MSR_PEBS_ENABLE:
		return PMU_GP;
	default:
		return PMU_FOREIGN;
	}
}

enum pmu_result pmu_wrmsr(struct pmu *pmu, uint32_t msr, uint64_t val)
{
	enum pmu_result ret = write_reg(pmu, msr, val);
	uint64_t reg = pmu_register_of_msr(pmu, msr);

	if (ret != PMU_OK)
		return ret;
	if (reg)
		written(pmu, __builtin_ctzll(reg), val);
	update_live(pmu);
	return PMU_OK;
}

static enum pmu_result read_pmc(struct pmu *pmu, uint32_t ecx, uint64_t *val)
{
	unsigned int index = ecx & 0xffff;

	switch (ecx >> 16) {
	case 0x0000:
		if (index >= pmu->var->nr_gp)
			return PMU_GP;
		*val = pmu->gp[index];
		return PMU_OK;
	case 0x4000:
		if (!has_fixed(pmu, index))
			return PMU_GP;
		*val = pmu->fixed[index];
		return PMU_OK;
	case 0x2000:
		if (index || !pmu->var->nr_metrics)
			return PMU_GP;
		*val = read_metrics(pmu);
		if (pmu->fixed_ctrl & FIXED_CLEAR_METRICS && reads(pmu, PMU_RDPMC_CLEARS)) {
			pmu->fixed[SLOTS_COUNTER] = 0;
			memset(pmu->metric, 0, sizeof(pmu->metric));
			pmu->metrics_seen = 0;
			written(pmu, METRICS_REGISTER, 0);
		}
		return PMU_OK;
	default:
		return PMU_GP;
	}
}

enum pmu_result pmu_rdpmc(struct pmu *pmu, uint32_t ecx, uint64_t *val)
{
	return saved(pmu, pmu_register_of_rdpmc(pmu, ecx), read_pmc(pmu, ecx, val));
}

bool pmu_global_ctrl_valid(const struct pmu *pmu, uint64_t val)
{
	return !(val & ~global_bits(pmu));
}

bool pmu_debugctl_valid(const struct pmu *pmu, uint64_t val)
{
	return !(val & ~debugctl_bits(pmu));
}

void pmu_load(struct pmu *pmu, uint32_t msr, uint64_t val)
{
	(void)pmu_wrmsr(pmu, msr, val);
}

void pmu_enter_smm(struct pmu *pmu)
{
	pmu->smm_froze = pmu->debugctl & DEBUGCTL_FREEZE_IN_SMM;
	if (!pmu->smm_froze)
		return;
	pmu->smm_global_ctrl = pmu->global_ctrl;
	pmu->smm_debugctl = pmu->debugctl;
	pmu->global_ctrl = 0;
	pmu->debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF);
	update_live(pmu);
}

void pmu_leave_smm(struct pmu *pmu)
{
	if (!pmu->smm_froze)
		return;
	pmu->smm_froze = false;
	pmu->global_ctrl = pmu->smm_global_ctrl;
	pmu->debugctl = pmu->smm_debugctl;
	update_live(pmu);
}

/* Steps it takes at least to make @left of a quantity. */
static uint64_t steps_until(uint64_t left, unsigned int quantity)
{
	uint64_t steps = left / max_per_step[quantity];

	return steps ? steps : 1;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

uint64_t pmu_next_overflow(const struct pmu *pmu)
{
	uint64_t size = width_mask(pmu) + 1, next = UINT64_MAX;
	unsigned int here = BIT(pmu->ring);

	if (pmu->pmi && pmu->last.n[PMU_STEP] < pmu->pmi_due)
		return pmu->pmi_due - pmu->last.n[PMU_STEP];
	if (!pmu->sampling)
		return UINT64_MAX;

	for (unsigned int i = 0; i < pmu->var->nr_gp; i++) {
		unsigned int quantity = quantity_of(pmu, pmu->evtsel[i]);

		if (!(gp_rings(pmu, i) & here) || !(pmu->evtsel[i] & EVTSEL_INT))
			continue;
		if (pmu->evtsel[i] & EVTSEL_INV && pmu->evtsel[i] & EVTSEL_CMASK)
			quantity = PMU_Q_CYCLES;
		if (quantity != PMU_Q_NONE)
			next = min_u64(next, steps_until(size - pmu->gp[i], quantity));
	}
	for (unsigned int i = 0; i < PMU_MAX_FIXED; i++)
		if (fixed_rings(pmu, i) & here && fixed_ctrl(pmu, i) & FIXED_PMI)
			next = min_u64(next, steps_until(size - pmu->fixed[i], fixed_quantity[i]));
	if (metrics_rings(pmu) & here && metrics_pmi(pmu))
		for (unsigned int m = 0; m < pmu->var->nr_metrics; m++)
			next = min_u64(next, steps_until(size - pmu->metric[m] / METRIC_ONE,
							 PMU_Q_METRIC0 + m));
	return next;
}

bool pmu_take_pmi(struct pmu *pmu)
{
	if (!pmu->pmi || pmu->last.n[PMU_STEP] < pmu->pmi_due)
		return false;
	pmu->pmi = false;
	return true;
}

bool pmu_lvtpc_delivers(uint32_t *lvtpc)
{
	if (*lvtpc & LVT_MASKED)
		return false;
	*lvtpc |= LVT_MASKED;
	return true;
}
