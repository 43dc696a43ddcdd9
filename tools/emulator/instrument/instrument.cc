// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The PMU in Bochs, see instrument.h.
 */
#include <set>
#include <string>
#include <vector>

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

/* End the run when state of one owner becomes readable to another, see BOCHS_OWNERS. */
static bool owners = true;

/* The vCPUs that have been entered, on any CPU. */
struct guest {
	Bit64u vmcs, host_cr3;
};
static std::vector<struct guest> guests;

/* VMCSs from VMPTRLD to VMCLEAR, on any CPU. */
static std::set<Bit64u> loaded;

/* Where the number of the vCPU is in a VMCS: Linux zeroes a new one, alloc_vmcs_cpu(),
 * and Bochs has no field there.
 */
#define VMCS_GUEST_NUMBER 0xc

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

	name = getenv("BOCHS_OWNERS");
	if (name && strcmp(name, "off"))
		BX_PANIC(("BOCHS_OWNERS: '%s' is not 'off'", name));
	owners = !name;

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
	check(pmu_not_to_read(&pmu, pmu_register_of_msr(&pmu, index)), "is read by", cpu->prev_rip);
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
	check(pmu_lost(&pmu, index), "is overwritten without having been read by", cpu->prev_rip);
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
	check(pmu_not_to_read(&pmu, pmu_register_of_rdpmc(&pmu, ecx)), "is read by", cpu->prev_rip);
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
	if (to == 3 && present() && pmu.running == PMU_HOST && cpu->cr4.get_PCE())
		check_user();
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
	if (present()) {
		sync();
		pmu_run(&pmu, PMU_HOST, 0, 0);
	}
}

void bx_pmu_c::vmenter(Bit64u rip)
{
	VMCS_CACHE *vm = &cpu->vmcs;
	Bit64u can_read;

	activity.n[PMU_CONTINUED]--;
	round_trip.instructions = retired() - round_trip.instructions;
	round_trip.done = true;
	if (!present())
		return;
	sync();
	can_read = readable();
	pmu_run(&pmu, PMU_GUESTS + guest_of_vmcs(), can_read,
		vm->vmexit_ctrls1.LOAD_PERF_GLOBAL_CTRL_MSR() ?
		vm->host_state.perf_global_ctrl_msr : ~BX_CONST64(0));
	check(pmu_foreign(&pmu, can_read), "can be read at VM-Entry by", rip);
}

void bx_pmu_c::vmptrld(Bit64u vmcs)
{
	loaded.insert(vmcs);
}

void bx_pmu_c::vmclear(Bit64u vmcs)
{
	loaded.erase(vmcs);
}

/*
 * Which vCPU the current VMCS belongs to.  Linux has two VMCSs for a vCPU that runs a
 * hypervisor, and gives both the same list of MSRs to load at VM-Exit.  The second is
 * first entered while the first is loaded.  One that isn't loaded may be another
 * vCPU's that is gone, and whose memory has been reused.  A vCPU that moves to another
 * CPU takes its number along.
 */
Bit32u bx_pmu_c::guest_of_vmcs(void)
{
	unsigned offset = cpu->vmcs_map->vmcs_field_offset(VMCS_64BIT_CONTROL_VMEXIT_MSR_LOAD_ADDR);
	BxMemtype memtype = MEMTYPE(cpu->vmcs_memtype);
	Bit64u list = cpu->read_physical_qword(cpu->vmcsptr + offset, memtype, BX_VMCS_ACCESS);
	Bit32u number = cpu->read_physical_dword(cpu->vmcsptr + VMCS_GUEST_NUMBER, memtype,
						 BX_VMCS_ACCESS);

	if (!number) {
		for (Bit64u vmcs : loaded)
			if (!number && list &&
			    cpu->read_physical_qword(vmcs + offset, memtype, BX_VMCS_ACCESS) == list)
				number = cpu->read_physical_dword(vmcs + VMCS_GUEST_NUMBER,
								  memtype, BX_VMCS_ACCESS);
		if (!number) {
			guests.push_back({ cpu->vmcsptr, 0 });
			number = guests.size();
		}
		cpu->write_physical_dword(cpu->vmcsptr + VMCS_GUEST_NUMBER, number, memtype,
					  BX_VMCS_ACCESS);
	}
	guests[number - 1].host_cr3 = cpu->vmcs.host_state.cr3;
	return number - 1;
}

/* Registers that the guest reads without a VM-Exit. */
Bit64u bx_pmu_c::readable(void)
{
	/* MSRs of counters are among 64 from here on each. */
	static const Bit32u ranges[] = { 0xc0, 0x300, 0x4c0, 0x1900, 0x1980 };
	VMCS_CACHE *vm = &cpu->vmcs;
	Bit64u registers = 0;

	if (!vm->vmexec_ctrls1.RDPMC_VMEXIT())
		return pmu_registers(&pmu);
	if (!vm->vmexec_ctrls1.MSR_BITMAPS())
		return 0;
	for (Bit32u first : ranges) {
		bx_phy_address at = vm->msr_bitmap_addr + first / 8;
		Bit64u exits = cpu->read_physical_qword(at, MEMTYPE(cpu->vmcs_memtype),
							BX_MSR_BITMAP_ACCESS);

		for (unsigned i = 0; i < 64; i++)
			if (!(exits >> i & 1))
				registers |= pmu_register_of_msr(&pmu, first + i);
	}
	return registers;
}

/*
 * A task of the host that may use RDPMC runs.  The VMM may see what its own vCPUs
 * left, as it can ask for all of that.  Linux has several values of CR3 for a task, which
 * differ in the lower 13 bits.
 */
void bx_pmu_c::check_user(void)
{
	Bit64u registers = pmu_foreign(&pmu, pmu_registers(&pmu));

	for (unsigned i = 0; i < PMU_NR_REGISTERS; i++) {
		Bit32u maker = pmu.made_by[i];

		if (maker >= PMU_GUESTS &&
		    !((guests[maker - PMU_GUESTS].host_cr3 ^ cpu->cr3) & BX_CONST64(0x000fffffffffe000)))
			registers &= ~(BX_CONST64(1) << i);
	}
	check(registers, "can be read at CPL 3 by", cpu->prev_rip);
}

static std::string name_of(uint32_t maker)
{
	char name[64];

	if (maker < PMU_GUESTS)
		return maker == PMU_HOST ? "the host" : "several";
	snprintf(name, sizeof(name), "vCPU %u (VMCS %#llx)", maker - PMU_GUESTS,
		 (unsigned long long)guests[maker - PMU_GUESTS].vmcs);
	return name;
}

/* Ends the run if there are registers with which something happens that should not. */
void bx_pmu_c::check(Bit64u registers, const char *what, Bit64u rip)
{
	char name[32] = "PERF_METRICS";
	unsigned i;

	if (!registers || !owners)
		return;
	i = __builtin_ctzll(registers);
	if (i < 48)
		snprintf(name, sizeof(name), "%s counter %u", i < 32 ? "general" : "fixed", i % 32);
	BX_PANIC(("owners: %s, made by %s, %s %s, RIP %#llx", name, name_of(pmu.made_by[i]).c_str(),
		  what, name_of(pmu.running).c_str(), (unsigned long long)rip));
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
