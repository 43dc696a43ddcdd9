// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The PMU in Bochs, see instrument.h.
 */
#include "bochs.h"
#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/apic.h"
#include "pc_system.h"

#define LOG_THIS cpu->

/* Ticks until the next look at a core that does not move, e.g. in HLT. */
#define IDLE_TICKS 1000

static FILE *costs;

/* Since the last mark, by the host on all CPUs, of registers of events. */
static struct {
	Bit64u wrmsr, rdmsr, rdpmc;
} marked;

void bx_pmu_c::init(BX_CPU_C *_cpu)
{
	const char *name;
	const struct pmu_variant *var;
	uint32_t readings = 0;
	char words[256];

	cpu = _cpu;
	cpl = 0;
	memset(&activity, 0, sizeof(activity));
	memset(&pmu, 0, sizeof(pmu));
	memset(&round_trip, 0, sizeof(round_trip));

	name = getenv("BOCHS_COSTS");
	if (name && !costs) {
		costs = fopen(name, "w");
		if (!costs)
			BX_PANIC(("BOCHS_COSTS: cannot write to '%s'", name));
	}

	/* A PMU, and readings. */
	name = getenv("BOCHS_PMU");
	snprintf(words, sizeof(words), "%s", name ? name : "own");
	name = strtok(words, ",");
	if (!name || !strcmp(name, "own"))
		var = pmu_variant_by_model(cpu->cpuid->get_name());
	else
		var = pmu_variant_by_name(name);
	if (name && !var && strcmp(name, "own") && strcmp(name, "none"))
		BX_PANIC(("BOCHS_PMU: no PMU is called '%s'", name));
	while ((name = strtok(NULL, ","))) {
		uint32_t reading = pmu_reading_by_name(name);

		if (!reading)
			BX_PANIC(("BOCHS_PMU: no reading is called '%s'", name));
		readings |= reading;
	}
	if (!var)
		return;

	BX_INFO(("PMU: %s, readings %#x", var->name, readings));
	pmu_init(&pmu, var, readings);
	timer = bx_pc_system.register_timer_ticks(this, timer_handler, 1, 0, 0, "pmu");
	timer_active = false;
}

void bx_pmu_c::reset(unsigned source)
{
	if (!present() || source != BX_RESET_HARDWARE)
		return;
	sync();
	pmu_reset(&pmu);
	arm();
}

void bx_pmu_c::cpuid(Bit32u function, Bit32u subfunction, cpuid_function_t *leaf) const
{
	struct pmu_cpuid r = { leaf->eax, leaf->ebx, leaf->ecx, leaf->edx };

	if (!present())
		return;
	pmu_cpuid(&pmu, function, subfunction, &r);
	leaf->eax = r.eax;
	leaf->ebx = r.ebx;
	leaf->ecx = r.ecx;
	leaf->edx = r.edx;
}

void bx_pmu_c::sync(void)
{
	activity.n[PMU_STEP] = cpu->get_icount();
	pmu_report(&pmu, &activity);
	if (pmu_take_pmi(&pmu))
		deliver();
}

int bx_pmu_c::rdmsr(Bit32u index, Bit64u *val)
{
	uint64_t v = 0;

	if (!present())
		return -1;
	sync();
	switch (pmu_rdmsr(&pmu, index, &v)) {
	case PMU_OK:
		*val = v;
		return 1;
	case PMU_GP:
		return 0;
	default:
		return -1;
	}
}

int bx_pmu_c::wrmsr(Bit32u index, Bit64u val)
{
	if (!present())
		return -1;
	sync();
	switch (pmu_wrmsr(&pmu, index, val)) {
	case PMU_OK:
		arm();
		return 1;
	case PMU_GP:
		return 0;
	default:
		return -1;
	}
}

bool bx_pmu_c::rdpmc(Bit32u ecx, Bit64u *val)
{
	uint64_t v;

	round_trip.rdpmc += !cpu->in_vmx_guest;
	marked.rdpmc += !cpu->in_vmx_guest;
	sync();
	if (pmu_rdpmc(&pmu, ecx, &v) != PMU_OK)
		return false;
	*val = v;
	return true;
}

void bx_pmu_c::enter_ring(unsigned to)
{
	cpl = to;
	if (pmu_set_ring(&pmu, &activity, to)) {
		if (pmu_take_pmi(&pmu))
			deliver();
		arm();
	}
}

void bx_pmu_c::change_cpl(unsigned to)
{
	activity.n[PMU_STEP] = cpu->get_icount();
	if (present())
		enter_ring(to);
	else
		cpl = to;
}

void bx_pmu_c::leave_ring(unsigned from)
{
	unsigned to = cpl;

	/* Selectors say nothing about rings in real and virtual-8086 mode. */
	if (!cpu->protected_mode() && !cpu->long_mode()) {
		activity.n[PMU_BRANCH_TAKEN]++;
		return;
	}

	change_cpl(from);
	activity.n[PMU_BRANCH_TAKEN]++;
	activity.n[PMU_STEP]++;
	enter_ring(to);
}

Bit64u bx_pmu_c::retired(void) const
{
	return cpu->get_icount() - activity.n[PMU_CONTINUED] - activity.n[PMU_ABORTED];
}

/* Registers that events are counted with, and none that the rest of Linux uses. */
static bool is_for_events(Bit32u msr)
{
	return (msr >= 0xc1 && msr <= 0xc8) ||		/* PMCi */
	       (msr >= 0x186 && msr <= 0x18d) ||	/* PERFEVTSELi */
	       (msr >= 0x309 && msr <= 0x30f) ||	/* FIXED_CTRi */
	       msr == 0x329 ||				/* PERF_METRICS */
	       (msr >= 0x38d && msr <= 0x391) ||	/* FIXED_CTR_CTRL, GLOBAL_* */
	       (msr >= 0x4c1 && msr <= 0x4c8);		/* A_PMCi */
}

void bx_pmu_c::count_rdmsr(Bit32u msr, bool in_guest)
{
	round_trip.rdmsr += !in_guest;
	marked.rdmsr += !in_guest && is_for_events(msr);
}

void bx_pmu_c::count_wrmsr(Bit32u msr, bool in_guest)
{
	round_trip.wrmsr += !in_guest;
	marked.wrmsr += !in_guest && is_for_events(msr);
}

void bx_pmu_c::mark(Bit32u value)
{
	if (costs)
		fprintf(costs, "mark %u %llu %llu %llu\n", value,
			(unsigned long long)marked.wrmsr,
			(unsigned long long)marked.rdmsr,
			(unsigned long long)marked.rdpmc);
	memset(&marked, 0, sizeof(marked));
}

/* The list of MSRs that VM-Entry loads comes after vmenter(). */
void bx_pmu_c::vmexit(Bit32u reason)
{
	if (costs && round_trip.done)
		fprintf(costs, "%u %llu %llu %llu %llu\n", round_trip.reason,
			(unsigned long long)round_trip.instructions,
			(unsigned long long)round_trip.wrmsr,
			(unsigned long long)round_trip.rdmsr,
			(unsigned long long)round_trip.rdpmc);
	memset(&round_trip, 0, sizeof(round_trip));
	round_trip.reason = reason & 0xffff;
	round_trip.instructions = retired();
}

void bx_pmu_c::vmenter(void)
{
	activity.n[PMU_CONTINUED]--;
	round_trip.instructions = retired() - round_trip.instructions;
	round_trip.done = true;
	if (present())
		sync();
}

void bx_pmu_c::load(Bit32u msr, Bit64u val)
{
	if (!present())
		return;
	sync();
	pmu_load(&pmu, msr, val);
	arm();
}

void bx_pmu_c::change_smm(void (*change)(struct pmu *pmu))
{
	if (!present())
		return;
	sync();
	change(&pmu);
	arm();
}

Bit64u bx_pmu_c::get(Bit32u msr)
{
	uint64_t val = 0;

	if (present())
		pmu_rdmsr(&pmu, msr, &val);
	return val;
}

void bx_pmu_c::arm(Bit64u at_least)
{
	Bit64u steps = pmu_next_overflow(&pmu);
	Bit64u ticks = steps / BX_SMP_PROCESSORS; /* as slow as time can pass */

	if (steps == UINT64_MAX) {
		if (timer_active)
			bx_pc_system.deactivate_timer(timer);
		timer_active = false;
		return;
	}
	if (ticks < at_least)
		ticks = at_least;
	armed_at = cpu->get_icount();
	timer_active = true;
	bx_pc_system.activate_timer_ticks(timer, ticks, 0);
}

void bx_pmu_c::timer_handler(void *self)
{
	bx_pmu_c *pmu = (bx_pmu_c *)self;

	pmu->timer_active = false;
	pmu->sync();
	pmu->arm(pmu->cpu->get_icount() == pmu->armed_at ? IDLE_TICKS : 1);
}

void bx_pmu_c::deliver(void)
{
	Bit32u lvtpc = cpu->lapic->read_aligned(BX_LAPIC_LVT_PERFMON);

	if (!pmu_lvtpc_delivers(&lvtpc))
		return;
	cpu->lapic->set_lvt_entry(BX_LAPIC_LVT_PERFMON, lvtpc);
	cpu->lapic->deliver(lvtpc & 0xff, lvtpc >> 8 & 7, APIC_EDGE_TRIGGERED);
}
