/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Intel architectural PMU of one logical processor, for use in a CPU emulator.
 *
 * The emulator reports what its core does (struct pmu_activity, plain counters
 * it increments) and when the core changes ring; it forwards RDMSR, WRMSR,
 * RDPMC, CPUID and the VMX checks and loads of PMU state.  Everything a
 * counter shows is a function of the activity reported, never of the moment
 * the model is asked.
 *
 * Facts are taken from the Intel SDM
 * (volume 3 "Performance Monitoring", "Virtual Machine Control Structures";
 * volume 4 "Model-Specific Registers"; volume 2 "CPUID", "RDPMC"); each
 * function names its source.
 */
#ifndef PMU_H
#define PMU_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PMU_MAX_GP	8
#define PMU_MAX_FIXED	7	/* highest counter known: 6, on E-cores */
#define PMU_NR_METRICS	8
#define PMU_MAX_EXTRA	5

/*
 * What the core reports, counted from power-up on.
 *
 * A step is one turn of the core: an instruction, one more iteration of a REP
 * instruction, or an attempt that a fault or VM-Exit took back.  It is also
 * one tick of the time-stamp counter while the core is not halted.  Hence
 *
 *	retired instructions = STEP - CONTINUED - ABORTED
 */
enum pmu_act {
	PMU_STEP,
	PMU_CONTINUED,		/* steps after which the instruction goes on */
	PMU_ABORTED,		/* steps which ended in a fault or VM-Exit */
	PMU_BRANCH_TAKEN,
	PMU_BRANCH_NOT_TAKEN,
	PMU_LOAD,		/* data accesses by linear address */
	PMU_STORE,
	PMU_REP,		/* iterations of REP instructions */
	PMU_FLUSH,		/* lines of CLFLUSH, CLFLUSHOPT, CLWB */
	PMU_NR_ACTS
};

struct pmu_activity {
	uint64_t n[PMU_NR_ACTS];
};

/* What can be counted; derived from the activity by the cost model. */
enum pmu_quantity {
	PMU_Q_METRIC0,		/* slots per metric, in the order of the bytes
				 * of PERF_METRICS
				 */
	PMU_Q_RETIRING = PMU_Q_METRIC0,
	PMU_Q_BAD_SPECULATION,
	PMU_Q_FRONTEND_BOUND,
	PMU_Q_BACKEND_BOUND,
	PMU_Q_HEAVY_OPS,
	PMU_Q_BRANCH_MISPREDICT,
	PMU_Q_FETCH_LATENCY,
	PMU_Q_MEMORY_BOUND,
	PMU_Q_SLOTS,
	PMU_Q_CYCLES,
	PMU_Q_REF_CYCLES,
	PMU_Q_INSTRUCTIONS,
	PMU_Q_BRANCHES,
	PMU_Q_BRANCH_MISSES,
	PMU_Q_LLC_REFERENCES,
	PMU_Q_LLC_MISSES,
	PMU_Q_LOADS,
	PMU_Q_STORES,
	PMU_Q_LOADS_STORES,
	PMU_NR_QUANTITIES,
	PMU_Q_NONE		/* an event this CPU does not have: stays 0 */
};

/* A kind of CPU. */
struct pmu_variant {
	const char *name;
	const char *model;		/* of the emulator, which has this PMU */
	uint32_t signature;		/* CPUID.1:EAX, 0: the model's own */
	uint8_t version;		/* architectural PMU version */
	uint8_t nr_gp;
	uint8_t fixed_mask;		/* bitmap of fixed counters */
	uint8_t width;			/* of every counter, in bits */
	uint8_t nr_arch_events;		/* CPUID.0xA:EAX[31:24] */
	uint8_t nr_metrics;		/* of PERF_METRICS; 0: no such MSR */
	bool anythread;			/* ANY bits exist */
	bool perfmon_ext;		/* CPUID leaf 0x23, EQ and UMASK2 exist */
	bool vmexit_save_global_ctrl;	/* VM-Exit control 30 */
	uint64_t perf_capabilities;
	/* Registers that say more of an event, e.g. which misses it is to count. */
	struct {
		uint32_t msr;
		uint64_t bits;		/* that may be written */
	} extra[PMU_MAX_EXTRA];
};

/*
 * Readings of the documents.  Where they leave open what hardware does, the model does
 * what is likely, unless another reading is chosen.  Undefined values show as
 * PMU_POISON in each metric until SLOTS and then PERF_METRICS are written.
 */
enum pmu_reading {
	/* A write of SLOTS keeps the counts behind PERF_METRICS, or */
	PMU_SLOTS_CLEARS,		/* clears them, if it is one of 0 */
	PMU_SLOTS_RESCALES,		/* changes them as it changes SLOTS */
	PMU_SLOTS_UNDEFINED,
	/* While SLOTS is 0, PERF_METRICS reads 0, or */
	PMU_METRICS_KEPT,		/* what was written or read last */
	PMU_METRICS_ONES,		/* 0xff in each metric */
	PMU_METRICS_UNDEFINED,
	/* A bit above four metrics causes #GP, or */
	PMU_UPPER_IGNORED,		/* is ignored */
	/* PERF_METRICS reads as written, or */
	PMU_WRITES_LOWER,		/* some values one lower */
	/* Level 2 is within level 1, which sums to 255 or 256, or */
	PMU_SUMS_LOOSE,			/* 2 more, and 253 to 257 */
	/* The overflow of an internal count causes a PMI if that of SLOTS does, or */
	PMU_OVERFLOW_PMI,		/* always */
	PMU_OVERFLOW_UNDEFINED,		/* and leaves PERF_METRICS undefined */
	/* Metrics count if GLOBAL_CTRL enables both them and SLOTS, or */
	PMU_HALF_COUNTS,		/* one of the two */
	PMU_HALF_UNDEFINED,		/* and are undefined if it is one */
	/* Both may be written, PERF_METRICS be read by RDMSR, SLOTS overflow, or */
	PMU_RUNNING_UNDEFINED,		/* not while SLOTS is enabled */
	/* PERF_METRICS reads the same twice if nothing counts, or */
	PMU_READS_DIFFER,		/* by one */
	/* RDPMC changes nothing, or */
	PMU_RDPMC_CLEARS,		/* PERF_CAPABILITIES says that it can clear */
	/* A PMI comes at once, or */
	PMU_PMI_LATE,			/* some hundred steps later */
	PMU_NR_READINGS
};

#define PMU_POISON	0xa5

/*
 * Who made what a register holds, so that the caller sees it when state of one owner
 * becomes readable to another.  Registers have the numbers of their bits in
 * GLOBAL_CTRL: general-purpose counters from 0 on, fixed ones from 32 on, and 48 for
 * PERF_METRICS with the counts behind it.
 */
enum pmu_maker {
	PMU_NOBODY,		/* RESET, or the host, which wrote 0 */
	PMU_GIVEN,		/* the host, which wrote it for whoever is next to see it */
	PMU_HOST,		/* the host, by counting */
	PMU_SEVERAL,		/* one counted on top of what another had made */
	PMU_GUESTS		/* from here on guests, by numbers of the caller's */
};

#define PMU_NR_REGISTERS	49

/* State of one logical processor.  Private to the model but for var and live. */
struct pmu {
	const struct pmu_variant *var;
	uint32_t readings;		/* bitmap of enum pmu_reading */

	uint64_t evtsel[PMU_MAX_GP];
	uint64_t extra[PMU_MAX_EXTRA];
	uint64_t gp[PMU_MAX_GP];
	uint64_t fixed[PMU_MAX_FIXED];
	uint64_t metric[PMU_NR_METRICS];	/* internal counts, slots * 255 */
	uint64_t fixed_ctrl;
	uint64_t global_ctrl;
	uint64_t global_status;
	uint64_t debugctl;
	uint64_t misc_enable;
	uint64_t smm_global_ctrl;	/* put back when SMM is left, */
	uint64_t smm_debugctl;
	bool smm_froze;			/* if it froze the counters */
	uint64_t unhalted_base[2];	/* what MPERF and APERF count from */

	struct pmu_activity last;	/* latest report */
	struct pmu_activity total[2];	/* per ring (0: OS, 1: user) */
	uint64_t counted[2][PMU_NR_QUANTITIES];	/* in the counters already */
	uint8_t ring;
	bool live;			/* some counter counts in some ring */
	bool sampling;			/* ... and asks for a PMI */
	bool pmi;			/* not fetched yet */
	uint64_t pmi_due;		/* ... and not before this step */

	/* What readings other than the default need to know. */
	uint8_t undefined;		/* writes until PERF_METRICS is defined */
	bool metrics_counted;		/* since PERF_METRICS was written */
	bool metrics_restored;		/* it was written as something else than 0 */
	uint64_t metrics_seen;		/* latest value written or read */
	unsigned int metrics_reads;	/* since it was written, or has counted */

	/* Whose state this is, enum pmu_maker and bitmaps of registers; see pmu_run(). */
	uint32_t running;		/* PMU_HOST, or a guest */
	uint32_t made_by[PMU_NR_REGISTERS];
	uint64_t readable;		/* by the guest that runs */
	uint64_t host_counts;		/* on behalf of the host while it runs */
	uint64_t unsaved;		/* made by a guest, and not read by the host since */
	uint64_t mixed;			/* counted by the host on top of what a guest made */
};

/* Result of an access: done; #GP(0); or not a register of the PMU. */
enum pmu_result {
	PMU_OK,
	PMU_GP,
	PMU_FOREIGN
};

/* Registers, in the order CPUID returns them. */
struct pmu_cpuid {
	uint32_t eax, ebx, ecx, edx;
};

/**
 * pmu_variant_by_name() - find a variant by its name
 * @name: "spr", "icl", "rpl", "skx", "srf", "cwf"
 *
 * Return: the variant, NULL if there is none of that name ("none", too).
 */
const struct pmu_variant *pmu_variant_by_name(const char *name);

/**
 * pmu_variant_by_model() - find the PMU that belongs to a CPU model
 * @model: the emulator's name of the CPU model, e.g. "sapphire_rapids"
 *
 * Return: the variant, NULL if the model is to have no PMU.
 */
const struct pmu_variant *pmu_variant_by_model(const char *model);

/**
 * pmu_reading_by_name() - find a reading by its name
 * @name: e.g. "slots-clears", see README, or several: "strict", "others"
 *
 * Return: a bitmap of enum pmu_reading, 0 if there is none of that name.
 */
uint32_t pmu_reading_by_name(const char *name);

/**
 * pmu_init() - power up
 * @pmu: state, uninitialised
 * @var: kind of CPU, must outlive @pmu
 * @readings: bitmap of enum pmu_reading; of two readings of the same question the
 *	      first in the enum counts
 */
void pmu_init(struct pmu *pmu, const struct pmu_variant *var, uint32_t readings);

/**
 * pmu_reset() - RESET: all registers get their reset values
 * @pmu: state
 *
 * GLOBAL_CTRL enables the general-purpose counters, all else is 0.  INIT
 * leaves the PMU alone, so there is nothing to call for it.  (SDM volume 3,
 * "Processor State After Reset" and
 * "IA32_PERF_GLOBAL_CTRL".)
 */
void pmu_reset(struct pmu *pmu);

/**
 * pmu_cpuid() - put what the PMU announces into a leaf of CPUID
 * @pmu: state
 * @leaf: EAX as given to CPUID
 * @subleaf: ECX
 * @r: what the CPU model answers; changed in leaves 1 (signature, PDCM on, DS,
 *     DTES64 and DS-CPL off) and 0xA, and if there is leaf 0x23, in that one and in
 *     leaves 0 and 7, which announce it; all others are left alone
 *
 * (SDM volume 2, "CPUID".)
 */
void pmu_cpuid(const struct pmu *pmu, uint32_t leaf, uint32_t subleaf, struct pmu_cpuid *r);

/**
 * pmu_report() - count up to now
 * @pmu: state
 * @now: the core's activity since power-up
 *
 * To be called before any other function that takes a non-const @pmu and
 * before a pmu_rdmsr() or pmu_rdpmc(), so that these see the present.  May
 * raise a PMI, see pmu_take_pmi().
 */
void pmu_report(struct pmu *pmu, const struct pmu_activity *now);

/**
 * pmu_set_ring() - the core changes privilege level
 * @pmu: state
 * @now: the core's activity up to the change
 * @cpl: the new level; USR bits mean 1 to 3, OS bits mean 0
 *
 * Cheap unless a counter counts.  (SDM volume 3, IA32_PERFEVTSELx, USR and OS.)
 *
 * Return: whether to ask pmu_next_overflow() again, and pmu_take_pmi().
 */
bool pmu_set_ring(struct pmu *pmu, const struct pmu_activity *now, unsigned int cpl);

/**
 * pmu_rdmsr() - RDMSR
 * @pmu: state, reported up to now; a read changes it in some readings
 * @msr: register
 * @val: gets the value, if there is one
 *
 * Return: PMU_OK, PMU_GP, or PMU_FOREIGN if @msr is none of the PMU's.
 * (SDM volume 4.)
 */
enum pmu_result pmu_rdmsr(struct pmu *pmu, uint32_t msr, uint64_t *val);

/**
 * pmu_wrmsr() - WRMSR
 * @pmu: state, reported up to now
 * @msr: register
 * @val: EDX:EAX
 *
 * Return: PMU_OK, PMU_GP if @val has a reserved bit or @msr is read-only
 * (nothing is changed then), or PMU_FOREIGN.  (SDM volume 4.)
 */
enum pmu_result pmu_wrmsr(struct pmu *pmu, uint32_t msr, uint64_t val);

/**
 * pmu_rdpmc() - RDPMC; CR4.PCE and VM-Exits are the caller's business
 * @pmu: state, reported up to now
 * @ecx: bits 31:16 type (0 GP, 0x4000 fixed, 0x2000 PERF_METRICS), 15:0 index
 * @val: gets the value, if there is one
 *
 * Return: PMU_OK or PMU_GP.  (SDM volume 2, "RDPMC".)
 */
enum pmu_result pmu_rdpmc(struct pmu *pmu, uint32_t ecx, uint64_t *val);

/**
 * pmu_global_ctrl_valid() - check a VMCS field for GLOBAL_CTRL at VM-Entry
 * @pmu: state
 * @val: guest or host field
 *
 * Return: whether @val has no reserved bit.  (SDM volume 3,
 * "Checks on Host Control Registers, MSRs, and SSP", "Checks on Guest Control
 * Registers, Debug Registers, and MSRs".)
 */
bool pmu_global_ctrl_valid(const struct pmu *pmu, uint64_t val);

/**
 * pmu_debugctl_valid() - the same for DEBUGCTL
 * @pmu: state
 * @val: guest field
 *
 * Return: whether @val has no reserved bit.
 */
bool pmu_debugctl_valid(const struct pmu *pmu, uint64_t val);

/**
 * pmu_load() - VM-Entry or VM-Exit loads GLOBAL_CTRL or DEBUGCTL
 * @pmu: state, reported up to now
 * @msr: MSR_PERF_GLOBAL_CTRL or MSR_DEBUGCTL
 * @val: value, which has passed its check
 */
void pmu_load(struct pmu *pmu, uint32_t msr, uint64_t val);

/**
 * pmu_enter_smm() - an SMI is delivered
 * @pmu: state, reported up to now
 *
 * If DEBUGCTL.FREEZE_WHILE_SMM is set, GLOBAL_CTRL is 0, and LBR and BTF of DEBUGCTL
 * are, until pmu_leave_smm().  (SDM volume 3, "IA32_DEBUGCTL MSR".)
 */
void pmu_enter_smm(struct pmu *pmu);

/**
 * pmu_leave_smm() - RSM
 * @pmu: state, reported up to now
 */
void pmu_leave_smm(struct pmu *pmu);

/**
 * pmu_next_overflow() - when to report next, for PMIs to come in time
 * @pmu: state, reported up to now
 *
 * Return: number of steps before which no counter that asks for a PMI
 * overflows in the present ring, at least 1; UINT64_MAX if none can.  It is an
 * estimate on the early side, so the caller asks again after the next report.
 * Steps of more than four cycles, or of more than one branch, load, store or
 * REP iteration, may make the PMI late.
 */
uint64_t pmu_next_overflow(const struct pmu *pmu);

/**
 * pmu_take_pmi() - fetch a performance-monitoring interrupt
 * @pmu: state
 *
 * Return: whether one has been raised since the last call, and is due.  The caller
 * then asks pmu_lvtpc_delivers().
 */
bool pmu_take_pmi(struct pmu *pmu);

/**
 * pmu_registers() - the registers that tell what was counted
 * @pmu: state
 *
 * Return: a bitmap of all that can be read with RDPMC.
 */
uint64_t pmu_registers(const struct pmu *pmu);

/**
 * pmu_register_of_msr() - which of them an MSR is
 * @pmu: state
 * @msr: register
 *
 * Return: a bitmap of one, or 0.
 */
uint64_t pmu_register_of_msr(const struct pmu *pmu, uint32_t msr);

/**
 * pmu_register_of_rdpmc() - which of them RDPMC reads
 * @pmu: state
 * @ecx: see pmu_rdpmc()
 *
 * Return: a bitmap of one, or 0.
 */
uint64_t pmu_register_of_rdpmc(const struct pmu *pmu, uint32_t ecx);

/**
 * pmu_run() - VM-Entry or VM-Exit
 * @pmu: state, reported up to now
 * @who: PMU_HOST, or the guest that writes and counts from now on
 * @readable: registers that this guest reads without a VM-Exit, 0 for the host
 * @host_counts: registers that count for the host all the same, as they don't stop at
 *		 VM-Exit
 *
 * What the host has written, and the guest can read, is the guest's from then on.
 */
void pmu_run(struct pmu *pmu, uint32_t who, uint64_t readable, uint64_t host_counts);

/**
 * pmu_foreign() - what isn't to be seen by who runs
 * @pmu: state, reported up to now
 * @registers: bitmap of registers
 *
 * A counter of 0 tells nothing, whoever made it so.  That isn't true of PERF_METRICS,
 * which may have counts behind it, and tells of SLOTS, too.
 *
 * Return: a bitmap of those of @registers that somebody else made.
 */
uint64_t pmu_foreign(const struct pmu *pmu, uint64_t registers);

/**
 * pmu_not_to_read() - what a read would tell of others
 * @pmu: state, reported up to now
 * @registers: bitmap of registers, which the host or the guest that runs reads
 *
 * The host saves what guests make, so it may read that, unless it has counted on top.
 *
 * Return: a bitmap of those of @registers that may not be read.
 */
uint64_t pmu_not_to_read(const struct pmu *pmu, uint64_t registers);

/**
 * pmu_lost() - what a write to an MSR destroys
 * @pmu: state, reported up to now
 * @msr: register
 *
 * A write of SLOTS changes what PERF_METRICS reads.
 *
 * Return: a bitmap of what a guest has made and the host, which runs, has not read.
 */
uint64_t pmu_lost(const struct pmu *pmu, uint32_t msr);

/**
 * pmu_lvtpc_delivers() - pass a performance-monitoring interrupt through LVTPC
 * @lvtpc: that register of the local APIC, whose mask bit is set by delivery
 *
 * Return: whether the interrupt is delivered: not if the mask bit was set
 * before; it is lost then.  (SDM volume 3, "Local Vector Table".)
 */
bool pmu_lvtpc_delivers(uint32_t *lvtpc);

/* Registers other than the counters, which the caller may have to name. */
#define MSR_DEBUGCTL		0x1d9
#define MSR_PERF_GLOBAL_CTRL	0x38f

#ifdef __cplusplus
}
#endif

#endif /* PMU_H */
