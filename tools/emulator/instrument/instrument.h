/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The PMU in Bochs: Bochs' instrumentation macros report the core's activity
 * to the model in pmu.h, class bx_pmu_c carries out what the core asks.
 */
#ifndef BX_PMU_INSTRUMENT_H
#define BX_PMU_INSTRUMENT_H

#include "pmu.h"

#define BX_SUPPORT_PMU 1

/* A port that nothing else uses, see BOCHS_COSTS. */
#define BX_PMU_MARK 0x8901

class BX_CPU_C;
struct cpuid_function_t;

class bx_pmu_c {
public:
	/* Counted by the macros below; PMU_STEP is the core's icount. */
	struct pmu_activity activity;

	/* Power up, with the PMU that belongs to the CPU model, or with what
	 * BOCHS_PMU in the environment says, see README.
	 */
	void init(BX_CPU_C *cpu);
	void reset(unsigned source);
	bool present() const { return pmu.var != NULL; }
	bool saves_global_ctrl() const { return present() && pmu.var->vmexit_save_global_ctrl; }

	void cpuid(Bit32u function, Bit32u subfunction, cpuid_function_t *leaf) const;

	/* As bx_cpuid_t::rdmsr(): 1 done, 0 #GP, -1 not a register of ours. */
	int rdmsr(Bit32u index, Bit64u *val);
	int wrmsr(Bit32u index, Bit64u val);
	bool rdpmc(Bit32u ecx, Bit64u *val);

	void set_cpl(unsigned now)
	{
		if (now != cpl)
			change_cpl(now);
	}

	/* A far branch retires in the ring it leaves. */
	void far_branch(unsigned from, unsigned to)
	{
		if (from != to && pmu.live)
			leave_ring(from);
		else
			activity.n[PMU_BRANCH_TAKEN]++;
	}

	/* String iterations done at once, the last of which the core reports. */
	void fast_string(Bit32u n, Bit32u loads, Bit32u stores)
	{
		activity.n[PMU_REP] += n - 1;
		activity.n[PMU_LOAD] += loads;
		activity.n[PMU_STORE] += stores;
	}

	bool valid_global_ctrl(Bit64u val) const { return pmu_global_ctrl_valid(&pmu, val); }
	bool valid_debugctl(Bit64u val) const { return !present() || pmu_debugctl_valid(&pmu, val); }

	/* What the host does is written to the file that BOCHS_COSTS names, if
	 * it names one, at each VM-Entry and at each write to port BX_PMU_MARK.
	 * Accesses to MSRs include those of VMX's lists.
	 */
	void count_rdmsr(Bit32u msr, bool in_guest);
	void count_wrmsr(Bit32u msr, bool in_guest);
	void vmexit(Bit32u reason);
	static void mark(Bit32u value);

	/* VM-Entry succeeds: VMLAUNCH or VMRESUME retires in the host.  The
	 * core steps once more behind it, which is then no instruction.
	 */
	void vmenter(Bit64u rip);
	static void vmptrld(Bit64u vmcs);
	static void vmclear(Bit64u vmcs);
	void load_global_ctrl(Bit64u val) { load(MSR_PERF_GLOBAL_CTRL, val); }
	void load_debugctl(Bit64u val) { load(MSR_DEBUGCTL, val); }
	void enter_smm(void) { change_smm(pmu_enter_smm); }
	void leave_smm(void) { change_smm(pmu_leave_smm); }
	Bit64u get_global_ctrl(void) { return get(MSR_PERF_GLOBAL_CTRL); }
	Bit64u get_debugctl(void) { return get(MSR_DEBUGCTL); }

private:
	struct pmu pmu;
	BX_CPU_C *cpu;
	unsigned cpl;
	int timer;
	bool timer_active;
	Bit64u armed_at;
	struct {
		Bit32u reason;
		bool done;
		Bit64u instructions, wrmsr, rdmsr, rdpmc;
	} round_trip;

	Bit64u retired(void) const;
	Bit32u guest_of_vmcs(void);
	Bit64u readable(void);
	void check_user(void);
	void check(Bit64u registers, const char *what, Bit64u rip);
	void sync(void);
	void change_cpl(unsigned to);
	void enter_ring(unsigned to);
	void leave_ring(unsigned from);
	void load(Bit32u msr, Bit64u val);
	void change_smm(void (*change)(struct pmu *pmu));
	Bit64u get(Bit32u msr);
	void arm(Bit64u at_least = 1);
	void deliver(void);
	static void timer_handler(void *self);
};

#define BX_PMU_COUNT(cpu, what) ((cpu)->pmu.activity.n[what]++)
#define BX_PMU_FAST_STRING(n, loads, stores) \
	BX_CPU_THIS_PTR pmu.fast_string(n, loads, stores)

/* What the core reports. */
#define BX_INSTR_RESET(cpu_id, type)		BX_CPU_THIS_PTR pmu.reset(type)
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu_id, branch_eip, new_eip) \
	BX_PMU_COUNT(BX_CPU_THIS, PMU_BRANCH_TAKEN)
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu_id, branch_eip) \
	BX_PMU_COUNT(BX_CPU_THIS, PMU_BRANCH_NOT_TAKEN)
#define BX_INSTR_UCNEAR_BRANCH(cpu_id, what, branch_eip, new_eip) \
	BX_PMU_COUNT(BX_CPU_THIS, PMU_BRANCH_TAKEN)
#define BX_INSTR_FAR_BRANCH(cpu_id, what, prev_cs, prev_eip, new_cs, new_eip) \
	BX_CPU_THIS_PTR pmu.far_branch((prev_cs) & 3, (new_cs) & 3)
#define BX_INSTR_WRMSR(cpu_id, addr, value)	\
	BX_CPU_THIS_PTR pmu.count_wrmsr(addr, BX_CPU_THIS_PTR in_vmx_guest)
#define BX_INSTR_OUTP(addr, len, val)	\
	do { if ((addr) == BX_PMU_MARK) bx_pmu_c::mark(val); } while (0)
#define BX_INSTR_VMEXIT(cpu_id, reason, qualification) \
	BX_CPU_THIS_PTR pmu.vmexit(reason)
#define BX_INSTR_CLFLUSH(cpu_id, laddr, paddr)	BX_PMU_COUNT(BX_CPU_THIS, PMU_FLUSH)
#define BX_INSTR_REPEAT_ITERATION(cpu_id, i)	BX_PMU_COUNT(BX_CPU_THIS, PMU_REP)
/* A read for a later write is BX_RW here, and the write comes by itself. */
#define BX_INSTR_LIN_ACCESS(cpu_id, lin, phy, len, memtype, rw) \
	BX_PMU_COUNT(BX_CPU_THIS, ((rw) & 3) == BX_WRITE ? PMU_STORE : PMU_LOAD)

/* What does not matter to a PMU. */
#define BX_INSTR_INIT_ENV()
#define BX_INSTR_EXIT_ENV()
#define BX_INSTR_INITIALIZE(cpu_id)
#define BX_INSTR_EXIT(cpu_id)
#define BX_INSTR_HLT(cpu_id)
#define BX_INSTR_MWAIT(cpu_id, addr, len, flags)
#define BX_INSTR_DEBUG_PROMPT()
#define BX_INSTR_DEBUG_CMD(cmd)
#define BX_INSTR_OPCODE(cpu_id, i, opcode, len, is32, is64)
#define BX_INSTR_EXCEPTION(cpu_id, vector, error_code)
#define BX_INSTR_INTERRUPT(cpu_id, vector)
#define BX_INSTR_HWINTERRUPT(cpu_id, vector, cs, eip)
#define BX_INSTR_CACHE_CNTRL(cpu_id, what)
#define BX_INSTR_TLB_CNTRL(cpu_id, what, new_cr3)
#define BX_INSTR_PREFETCH_HINT(cpu_id, what, seg, offset)
#define BX_INSTR_BEFORE_EXECUTION(cpu_id, i)
#define BX_INSTR_AFTER_EXECUTION(cpu_id, i)
#define BX_INSTR_PHY_ACCESS(cpu_id, phy, len, memtype, rw)
#define BX_INSTR_INP(addr, len)
#define BX_INSTR_INP2(addr, len, val)

#endif
