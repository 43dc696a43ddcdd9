// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test virtualization of Intel's hardware topdown, i.e. of fixed counter 3
 * (TOPDOWN.SLOTS) and PERF_METRICS.
 */
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#include <x86intrin.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "apic.h"
#include "pmu.h"
#include "vmx.h"

#define SLOTS_IDX		3
#define MSR_SLOTS		(MSR_CORE_PERF_FIXED_CTR0 + SLOTS_IDX)
#define RDPMC_SLOTS		(INTEL_RDPMC_FIXED | SLOTS_IDX)
#define SLOTS_ENABLE		FIXED_PMC_GLOBAL_CTRL_ENABLE(SLOTS_IDX)
#define SLOTS_OS		FIXED_PMC_CTRL(SLOTS_IDX, FIXED_PMC_KERNEL)
#define SLOTS_USR		FIXED_PMC_CTRL(SLOTS_IDX, FIXED_PMC_USER)

#define PERF_METRICS_BIT	BIT_ULL(48)
#define PMU_CAP_PERF_METRICS	BIT_ULL(15)

enum topdown_metric {
	RETIRING,
	BAD_SPECULATION,
	FRONTEND_BOUND,
	BACKEND_BOUND,
	NR_LEVEL1_METRICS,
	/* Level 2 metrics, each a part of the above. */
	HEAVY_OPS = NR_LEVEL1_METRICS,
	BRANCH_MISPREDICT,
	FETCH_LATENCY,
	MEMORY_BOUND,
	NR_METRICS,
};

#define LEVEL1_MASK		GENMASK_ULL(31, 0)

/*
 * Arbitrary values, level 1 sums up to 255.  Use a number of slots that fits in
 * the low half of a counter, and is big enough for fractions to not get lost.
 */
#define SLOTS_A			0x12345678ull
#define METRICS_A		0x20405010603c5a09ull
#define SLOTS_B			0x0fedcba9ull
#define METRICS_B		0x0102030410c81611ull

/*
 * Hardware tracks metrics as counts, i.e. is allowed to be off by one when
 * converting a fraction to a count and back again.
 */
#define METRIC_TOLERANCE	1

/* The bits of PERF_METRICS that exist according to KVM, in the host and guests. */
static u64 metrics_mask = LEVEL1_MASK;

static int metric(u64 metrics, enum topdown_metric i)
{
	return (metrics >> (i * 8)) & 0xff;
}

static bool metrics_are_equal(u64 a, u64 b)
{
	int i;

	for (i = 0; i < NR_METRICS; i++) {
		if (abs(metric(a, i) - metric(b, i)) > METRIC_TOLERANCE)
			return false;
	}
	return true;
}

#define GUEST_ASSERT_METRICS(actual, expected)				\
do {									\
	u64 __actual = (actual), __expected = (expected);		\
									\
	__GUEST_ASSERT(metrics_are_equal(__actual, __expected),	\
		       "Wanted PERF_METRICS 0x%lx, got 0x%lx",		\
		       __expected, __actual);				\
} while (0)

#define TEST_ASSERT_METRICS(actual, expected)				\
do {									\
	u64 __actual = (actual), __expected = (expected);		\
									\
	TEST_ASSERT(metrics_are_equal(__actual, __expected),		\
		    "Wanted PERF_METRICS 0x%lx, got 0x%lx",		\
		    __expected, __actual);				\
} while (0)

#define GUEST_ASSERT_GP(insn, expect_gp)				\
do {									\
	u8 __expected = (expect_gp) ? GP_VECTOR : 0;			\
	u8 __vector = (insn);						\
									\
	__GUEST_ASSERT(__vector == __expected,				\
		       "Wanted %s on '" #insn "', got %s",		\
		       ex_str(__expected), ex_str(__vector));		\
} while (0)

/* Runs the vCPU until it syncs, and returns the value it synced, or is done. */
static u64 run_vcpu(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	sync_global_to_guest(vcpu->vm, metrics_mask);

	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		return uc.args[1];
	case UCALL_DONE:
		return 0;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall: %lu", uc.cmd);
	}
	return 0;
}

static u64 supported_perf_caps(void)
{
	return kvm_get_feature_msr(MSR_IA32_PERF_CAPABILITIES);
}

static void hide_perf_metrics(struct kvm_vcpu *vcpu)
{
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES,
		     supported_perf_caps() & ~PMU_CAP_PERF_METRICS);
}

/* Write SLOTS first, PERF_METRICS is relative to it. */
static void write_topdown(u64 slots, u64 metrics)
{
	wrmsr(MSR_SLOTS, slots);
	wrmsr(MSR_PERF_METRICS, metrics & metrics_mask);
}

static void assert_topdown(u64 slots, u64 metrics)
{
	GUEST_ASSERT_EQ(rdmsr(MSR_SLOTS), slots);
	GUEST_ASSERT_EQ(_rdpmc(RDPMC_SLOTS), slots);
	GUEST_ASSERT_METRICS(rdmsr(MSR_PERF_METRICS), metrics & metrics_mask);
	GUEST_ASSERT_METRICS(_rdpmc(INTEL_RDPMC_METRICS), metrics & metrics_mask);
}

/* Fails unless all means of getting at PERF_METRICS #GP, or none does. */
static void guest_access_perf_metrics(bool expect_gp)
{
	u64 ctrl = 0, ign;

	GUEST_ASSERT_GP(rdmsr_safe(MSR_PERF_METRICS, &ign), expect_gp);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_PERF_METRICS, 0), expect_gp);
	GUEST_ASSERT_GP(rdpmc_safe(INTEL_RDPMC_METRICS, &ign), expect_gp);
	if (is_forced_emulation_enabled) {
		GUEST_ASSERT_GP(rdmsr_safe_fep(MSR_PERF_METRICS, &ign), expect_gp);
		GUEST_ASSERT_GP(rdpmc_safe_fep(INTEL_RDPMC_METRICS, &ign), expect_gp);
	}

	/* There is but one register, all other indices are always bad. */
	GUEST_ASSERT_GP(rdpmc_safe(INTEL_RDPMC_METRICS | 1, &ign), true);
	GUEST_ASSERT_GP(rdpmc_safe(INTEL_RDPMC_METRICS | INTEL_RDPMC_FIXED, &ign), true);

	rdmsr_safe(MSR_CORE_PERF_GLOBAL_CTRL, &ctrl);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_CORE_PERF_GLOBAL_CTRL, ctrl | PERF_METRICS_BIT),
			expect_gp);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_CORE_PERF_GLOBAL_OVF_CTRL, PERF_METRICS_BIT),
			expect_gp);
	if (!expect_gp) {
		GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_CTRL), ctrl | PERF_METRICS_BIT);
		wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, ctrl);
	}
	GUEST_DONE();
}

static void test_perf_metrics_is_hidden(struct kvm_vcpu *vcpu)
{
	u64 ctrl = 0;

	TEST_ASSERT(!_vcpu_set_msr(vcpu, MSR_PERF_METRICS, METRICS_A & LEVEL1_MASK),
		    "Setting PERF_METRICS should fail if it's hidden");
	TEST_ASSERT(!_vcpu_set_msr(vcpu, MSR_CORE_PERF_GLOBAL_CTRL, ctrl | PERF_METRICS_BIT),
		    "Setting PERF_GLOBAL_CTRL[48] should fail without PERF_METRICS");
	TEST_ASSERT(!_vcpu_set_msr(vcpu, MSR_CORE_PERF_GLOBAL_STATUS, PERF_METRICS_BIT),
		    "Setting PERF_GLOBAL_STATUS[48] should fail without PERF_METRICS");

	vcpu_args_set(vcpu, 1, true);
	run_vcpu(vcpu);
}

KVM_ONE_VCPU_TEST_SUITE(perf_metrics);

/*
 * Verify PERF_METRICS comes with fixed counter 3, is in the list of MSRs to save
 * and restore, and is at the discretion of userspace.
 */
KVM_ONE_VCPU_TEST(perf_metrics, enumeration, guest_access_perf_metrics)
{
	u64 perf_caps = supported_perf_caps();

	TEST_ASSERT(kvm_is_mediated_pmu_enabled(),
		    "PERF_METRICS is supported only by a mediated PMU");
	TEST_ASSERT(kvm_cpu_property(X86_PROPERTY_PMU_NR_FIXED_COUNTERS) > SLOTS_IDX,
		    "PERF_METRICS is supported without fixed counter 3");
	TEST_ASSERT(this_pmu_has(X86_PMU_FEATURE_TOPDOWN_SLOTS_FIXED),
		    "PERF_METRICS is supported, but the host doesn't have fixed counter 3");

	TEST_ASSERT(kvm_msr_is_in_save_restore_list(MSR_PERF_METRICS),
		    "PERF_METRICS isn't in KVM_GET_MSR_INDEX_LIST");
	TEST_ASSERT(kvm_msr_is_in_save_restore_list(MSR_SLOTS),
		    "Fixed counter 3 isn't in KVM_GET_MSR_INDEX_LIST");

	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, perf_caps & ~PMU_CAP_PERF_METRICS);
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, perf_caps);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_IA32_PERF_CAPABILITIES), perf_caps);

	vcpu_args_set(vcpu, 1, false);
	run_vcpu(vcpu);
}

#define NR_ACCESSES	1000

static void guest_direct_access(void)
{
	int i;

	write_topdown(SLOTS_A, METRICS_A);
	assert_topdown(SLOTS_A, METRICS_A);

	if (is_forced_emulation_enabled) {
		u64 val;

		GUEST_ASSERT_GP(rdmsr_safe_fep(MSR_PERF_METRICS, &val), false);
		GUEST_ASSERT_METRICS(val, METRICS_A & metrics_mask);
		GUEST_ASSERT_GP(rdpmc_safe_fep(INTEL_RDPMC_METRICS, &val), false);
		GUEST_ASSERT_METRICS(val, METRICS_A & metrics_mask);
	}

	/* Hardware, and not KVM, is to decide which metrics exist. */
	GUEST_ASSERT_GP(wrmsr_safe(MSR_PERF_METRICS, METRICS_A & ~LEVEL1_MASK),
			metrics_mask == LEVEL1_MASK);

	write_topdown(SLOTS_B, METRICS_B);
	GUEST_SYNC(0);

	for (i = 0; i < NR_ACCESSES; i++) {
		wrmsr(MSR_PERF_METRICS, METRICS_B & metrics_mask);
		rdmsr(MSR_PERF_METRICS);
		_rdpmc(INTEL_RDPMC_METRICS);
	}
	assert_topdown(SLOTS_B, METRICS_B);
	GUEST_DONE();
}

/*
 * Verify the guest reads what it wrote, by RDMSR and by RDPMC, and that the
 * accesses don't exit.  Be generous with regard to the number of exits, the host
 * may receive any number of interrupts in the meantime.
 */
KVM_ONE_VCPU_TEST(perf_metrics, direct_access, guest_direct_access)
{
	u64 nr_exits;

	run_vcpu(vcpu);

	nr_exits = vcpu_get_stat(vcpu, exits);
	run_vcpu(vcpu);
	nr_exits = vcpu_get_stat(vcpu, exits) - nr_exits;

	TEST_ASSERT(nr_exits < NR_ACCESSES / 2,
		    "%lu exits for %u accesses of each kind", nr_exits, NR_ACCESSES);
}

#define NR_LOOPS	10000

/*
 * Branches whose direction depends on the bits of a pseudo-random number, which
 * makes for mispredicted branches.
 */
static void branch_workload(void)
{
	u64 x = 88172645463325252ull;
	int i;

	for (i = 0; i < NR_LOOPS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		asm volatile("test $1, %b0\n\t"
			     "jz 1f\n\t"
			     "nop\n\t"
			     "1: test $2, %b0\n\t"
			     "jz 2f\n\t"
			     "nop\n\t"
			     "2: test $4, %b0\n\t"
			     "jz 3f\n\t"
			     "nop\n\t"
			     "3:" :: "r"(x) : "cc");
	}
}

/* Loads, each of which depends on the previous load and misses the caches. */
static void load_workload(void)
{
	static void *self;
	void **p = &self;
	int i;

	self = &self;
	for (i = 0; i < NR_LOOPS; i += 10) {
		asm volatile("clflush %0" : "+m"(self));
		asm volatile(".rept 16\n\t"
			     "mov (%0), %0\n\t"
			     ".endr" : "+r"(p) :: "memory");
	}
}

/* Counts from zero, and returns PERF_METRICS. */
static u64 guest_count(void (*workload)(void), u64 fixed_ctr_ctrl, u64 global_ctrl)
{
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, 0);
	write_topdown(0, 0);

	wrmsr(MSR_CORE_PERF_FIXED_CTR_CTRL, fixed_ctr_ctrl);
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, global_ctrl);
	workload();
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, 0);

	return rdmsr(MSR_PERF_METRICS);
}

static void guest_assert_plausible_metrics(u64 metrics)
{
	int i, sum = 0;

	for (i = 0; i < NR_LEVEL1_METRICS; i++)
		sum += metric(metrics, i);

	/*
	 * Each of the metrics is rounded by at most 0.5, and once more if the
	 * host interrupts the workload and thus saves and restores the fractions.
	 */
	__GUEST_ASSERT(abs(sum - 255) <= 4,
		       "Level 1 of 0x%lx sums up to %d, not to 255", metrics, sum);

	for (i = 0; i < NR_LEVEL1_METRICS; i++)
		__GUEST_ASSERT(metric(metrics, i + NR_LEVEL1_METRICS) <= metric(metrics, i),
			       "Level 2 metric %d of 0x%lx exceeds its parent", i, metrics);

	GUEST_ASSERT_EQ(metrics & ~metrics_mask, 0);
}

static void guest_counting(void)
{
	const u64 enable = SLOTS_ENABLE | PERF_METRICS_BIT;
	u64 branches, loads, slots;

	branches = guest_count(branch_workload, SLOTS_OS, enable);
	slots = rdmsr(MSR_SLOTS);
	__GUEST_ASSERT(slots > NR_LOOPS, "Only %lu slots for %u loops", slots, NR_LOOPS);
	guest_assert_plausible_metrics(branches);

	loads = guest_count(load_workload, SLOTS_OS, enable);
	GUEST_ASSERT_NE(rdmsr(MSR_SLOTS), 0);
	guest_assert_plausible_metrics(loads);

	__GUEST_ASSERT(metric(loads, BACKEND_BOUND) > metric(branches, BACKEND_BOUND),
		       "Loads (0x%lx) should stall the backend, branches (0x%lx) shouldn't",
		       loads, branches);
	__GUEST_ASSERT(metric(branches, BAD_SPECULATION) > metric(loads, BAD_SPECULATION),
		       "Branches (0x%lx) should be mispredicted, loads (0x%lx) can't be",
		       branches, loads);

	/* Fixed counter 3 doesn't need PERF_METRICS... */
	GUEST_ASSERT_EQ(guest_count(branch_workload, SLOTS_OS, SLOTS_ENABLE), 0);
	GUEST_ASSERT_NE(rdmsr(MSR_SLOTS), 0);

	/* ... but not vice versa. */
	GUEST_ASSERT_EQ(guest_count(branch_workload, SLOTS_OS, PERF_METRICS_BIT), 0);
	GUEST_ASSERT_EQ(rdmsr(MSR_SLOTS), 0);
	GUEST_ASSERT_EQ(guest_count(branch_workload, 0, enable), 0);
	GUEST_ASSERT_EQ(rdmsr(MSR_SLOTS), 0);
	GUEST_ASSERT_EQ(guest_count(branch_workload, SLOTS_USR, enable), 0);
	GUEST_ASSERT_EQ(rdmsr(MSR_SLOTS), 0);

	GUEST_DONE();
}

/* Verify the metrics make sense, and count if and only if they are enabled. */
KVM_ONE_VCPU_TEST(perf_metrics, counting, guest_counting)
{
	run_vcpu(vcpu);
}

/* Keep the counters running while the host looks at them. */
static void guest_global_ctrl(void)
{
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, PERF_METRICS_BIT);
	GUEST_SYNC(0);

	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_CTRL), 0);
	GUEST_SYNC(1);

	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_CTRL), PERF_METRICS_BIT);
	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_STATUS), PERF_METRICS_BIT);
	GUEST_SYNC(2);

	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_STATUS), PERF_METRICS_BIT);
	wrmsr(MSR_CORE_PERF_GLOBAL_OVF_CTRL, PERF_METRICS_BIT);
	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_GLOBAL_STATUS), 0);
	GUEST_DONE();
}

/* Verify bit 48 of PERF_GLOBAL_{CTRL,STATUS} makes it to the guest and back. */
KVM_ONE_VCPU_TEST(perf_metrics, global_ctrl_and_status, guest_global_ctrl)
{
	run_vcpu(vcpu);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_CORE_PERF_GLOBAL_CTRL), PERF_METRICS_BIT);
	vcpu_set_msr(vcpu, MSR_CORE_PERF_GLOBAL_CTRL, 0);

	run_vcpu(vcpu);
	vcpu_set_msr(vcpu, MSR_CORE_PERF_GLOBAL_CTRL, PERF_METRICS_BIT);
	vcpu_set_msr(vcpu, MSR_CORE_PERF_GLOBAL_STATUS, PERF_METRICS_BIT);

	run_vcpu(vcpu);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_CORE_PERF_GLOBAL_STATUS), PERF_METRICS_BIT);

	run_vcpu(vcpu);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_CORE_PERF_GLOBAL_STATUS), 0);
}

/*
 * Verify nothing of PERF_METRICS is left if userspace clears bit 15, even though
 * the guest has all of the host's counters.
 */
KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_perf_capabilities, guest_access_perf_metrics)
{
	hide_perf_metrics(vcpu);
	test_perf_metrics_is_hidden(vcpu);
}

KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_missing_pdcm, guest_access_perf_metrics)
{
	vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_PDCM);
	test_perf_metrics_is_hidden(vcpu);
}

/*
 * Verify bit 15 doesn't give access to PERF_METRICS if the vCPU doesn't have
 * fixed counter 3 or doesn't have a PMU, no matter which comes first.
 */
KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_fixed_counters, guest_access_perf_metrics)
{
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, supported_perf_caps());
	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_PMU_NR_FIXED_COUNTERS, SLOTS_IDX);
	test_perf_metrics_is_hidden(vcpu);
}

KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_fixed_counters_first, guest_access_perf_metrics)
{
	hide_perf_metrics(vcpu);
	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_PMU_NR_FIXED_COUNTERS, SLOTS_IDX);
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, supported_perf_caps());
	test_perf_metrics_is_hidden(vcpu);
}

KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_pmu_version, guest_access_perf_metrics)
{
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, supported_perf_caps());
	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_PMU_VERSION, 0);
	test_perf_metrics_is_hidden(vcpu);
}

KVM_ONE_VCPU_TEST(perf_metrics, hidden_by_pmu_version_first, guest_access_perf_metrics)
{
	hide_perf_metrics(vcpu);
	vcpu_clear_cpuid_entry(vcpu, X86_PROPERTY_PMU_VERSION.function);
	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, supported_perf_caps());
	test_perf_metrics_is_hidden(vcpu);
}

TEST(hidden_by_pmu_cap_disable)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	vm = vm_create(1);
	vm_enable_cap(vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE);
	vcpu = vm_vcpu_add(vm, 0, guest_access_perf_metrics);

	vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES, supported_perf_caps());
	test_perf_metrics_is_hidden(vcpu);

	kvm_vm_free(vm);
}

static void guest_fewer_counters(void)
{
	u64 val;

	GUEST_ASSERT_GP(rdpmc_safe(this_cpu_property(X86_PROPERTY_PMU_NR_GP_COUNTERS), &val), true);

	write_topdown(SLOTS_A, METRICS_A);
	assert_topdown(SLOTS_A, METRICS_A);

	guest_assert_plausible_metrics(guest_count(branch_workload, SLOTS_OS,
						   SLOTS_ENABLE | PERF_METRICS_BIT));
	GUEST_DONE();
}

/*
 * Verify PERF_METRICS works if RDPMC and accesses to PERF_GLOBAL_CTRL have to be
 * intercepted because the guest has fewer counters than the host.
 */
KVM_ONE_VCPU_TEST(perf_metrics, fewer_counters, guest_fewer_counters)
{
	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_PMU_NR_GP_COUNTERS, 1);
	run_vcpu(vcpu);
}

/* Verify KVM refuses values that hardware wouldn't accept, and takes all others. */
static void guest_host_access(void)
{
	GUEST_SYNC(0);
	assert_topdown(SLOTS_A, METRICS_A);
	write_topdown(SLOTS_B, METRICS_B);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(perf_metrics, host_access, guest_host_access)
{
	int i;

	for (i = 0; i < 64; i++) {
		bool legal = metrics_mask & BIT_ULL(i);

		TEST_ASSERT(_vcpu_set_msr(vcpu, MSR_PERF_METRICS, BIT_ULL(i)) == legal,
			    "Setting bit %d should %s", i, legal ? "work" : "fail");
		TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_PERF_METRICS),
			       legal ? BIT_ULL(i) : BIT_ULL(31));
	}

	/* What userspace writes must survive until the next VM-Entry... */
	run_vcpu(vcpu);
	vcpu_set_msr(vcpu, MSR_PERF_METRICS, METRICS_A & metrics_mask);
	vcpu_set_msr(vcpu, MSR_SLOTS, SLOTS_A);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_PERF_METRICS), METRICS_A & metrics_mask);

	/* ... and userspace must see what the guest wrote. */
	run_vcpu(vcpu);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_SLOTS), SLOTS_B);
	TEST_ASSERT_METRICS(vcpu_get_msr(vcpu, MSR_PERF_METRICS), METRICS_B & metrics_mask);
}

static void guest_save_restore(void)
{
	u64 metrics, slots;

	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, 0);
	write_topdown(SLOTS_A, METRICS_A);
	wrmsr(MSR_CORE_PERF_FIXED_CTR_CTRL, SLOTS_OS);
	GUEST_SYNC(0);

	/* In the new VM. */
	assert_topdown(SLOTS_A, METRICS_A);
	GUEST_ASSERT_EQ(rdmsr(MSR_CORE_PERF_FIXED_CTR_CTRL), SLOTS_OS);

	/*
	 * The workload is a drop in the bucket of SLOTS_A, i.e. counting goes on
	 * from the restored state if and only if the metrics barely change.
	 */
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, SLOTS_ENABLE | PERF_METRICS_BIT);
	asm volatile("loop ." : "+c"((int){100}));
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, 0);

	slots = rdmsr(MSR_SLOTS);
	metrics = rdmsr(MSR_PERF_METRICS);
	__GUEST_ASSERT(slots > SLOTS_A, "SLOTS didn't count: 0x%lx", slots);
	GUEST_ASSERT_METRICS(metrics, METRICS_A & metrics_mask);
	GUEST_DONE();
}

/* Verify a vCPU can be migrated by saving and restoring KVM's list of MSRs. */
TEST(save_restore)
{
	struct kvm_x86_state *state;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 metrics;

	vm = vm_create_with_one_vcpu(&vcpu, guest_save_restore);
	run_vcpu(vcpu);

	state = vcpu_save_state(vcpu);
	metrics = vcpu_get_msr(vcpu, MSR_PERF_METRICS);
	TEST_ASSERT_METRICS(metrics, METRICS_A & metrics_mask);
	kvm_vm_release(vm);

	vcpu = vm_recreate_with_one_vcpu(vm);
	vcpu_load_state(vcpu, state);
	kvm_x86_state_cleanup(state);

	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_PERF_METRICS), metrics);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpu, MSR_SLOTS), SLOTS_A);
	run_vcpu(vcpu);

	kvm_vm_free(vm);
}

#define NR_SWITCHES	20

static void guest_context_switch(u64 slots, u64 metrics)
{
	int i;

	write_topdown(slots, metrics);

	for (i = 0; i < NR_SWITCHES; i++) {
		GUEST_SYNC(i);
		assert_topdown(slots, metrics);
	}
	GUEST_DONE();
}

/*
 * If all internal counts are '0', then PERF_METRICS is '0' irrespective of the
 * value of SLOTS.  PERF_METRICS being '0' while SLOTS is '0' says nothing.
 */
static void guest_bystander(void)
{
	int i;

	for (i = 0; i < NR_SWITCHES; i++) {
		assert_topdown(0, 0);
		wrmsr(MSR_SLOTS, SLOTS_A);
		assert_topdown(SLOTS_A, 0);
		GUEST_SYNC(i);

		assert_topdown(SLOTS_A, 0);
		wrmsr(MSR_SLOTS, 0);
		GUEST_SYNC(i);
	}
	GUEST_DONE();
}

/* Returns the host's PERF_METRICS, '0' if it can't be read. */
static u64 read_host_perf_metrics(int cpu)
{
	u64 metrics = 0;
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/cpu/%d/msr", cpu);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;

	if (pread(fd, &metrics, sizeof(metrics), MSR_PERF_METRICS) != sizeof(metrics))
		metrics = 0;
	close(fd);
	return metrics;
}

/*
 * Verify vCPUs that take turns on a CPU, with PERF_METRICS of different values,
 * unused or hidden, don't get to see each other's value, and that nothing is left
 * behind in hardware.  Then do the same with the vCPUs hopping from CPU to CPU.
 */
TEST(context_switch)
{
	struct kvm_vcpu *a, *b, *bystander;
	struct kvm_vm *vms[3];
	cpu_set_t cpus;
	int i, cpu;

	vms[0] = vm_create_with_one_vcpu(&a, guest_context_switch);
	vms[1] = vm_create_with_one_vcpu(&b, guest_context_switch);
	vms[2] = vm_create_with_one_vcpu(&bystander, guest_bystander);
	vcpu_args_set(a, 2, SLOTS_A, METRICS_A);
	vcpu_args_set(b, 2, SLOTS_B, METRICS_B);

	TEST_ASSERT(!sched_getaffinity(0, sizeof(cpus), &cpus), "sched_getaffinity() failed");
	cpu = pin_self_to_any_cpu();

	for (i = 0; i < NR_SWITCHES; i++) {
		run_vcpu(a);
		TEST_ASSERT_EQ(read_host_perf_metrics(cpu), 0);
		run_vcpu(bystander);
		run_vcpu(b);
		TEST_ASSERT_EQ(read_host_perf_metrics(cpu), 0);
		run_vcpu(bystander);

		if (i < NR_SWITCHES / 2)
			continue;

		do {
			cpu = (cpu + 1) % CPU_SETSIZE;
		} while (!CPU_ISSET(cpu, &cpus));
		pin_self_to_cpu(cpu);
	}

	run_vcpu(a);
	run_vcpu(b);
	for (i = 0; i < ARRAY_SIZE(vms); i++)
		kvm_vm_free(vms[i]);
}

static void guest_send_init(void)
{
	x2apic_enable();
	x2apic_write_reg(APIC_ICR, APIC_INT_ASSERT | APIC_DM_INIT | (1ull << 32));
	GUEST_DONE();
}

/* Verify RESET, unlike INIT, zeroes PERF_METRICS. */
TEST(reset_and_init)
{
	u64 perf_caps = supported_perf_caps();
	struct kvm_mp_state mp_state;
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;

	vm = vm_create_with_vcpus(2, guest_send_init, vcpus);

	vcpu_set_msr(vcpus[1], MSR_SLOTS, SLOTS_A);
	vcpu_set_msr(vcpus[1], MSR_PERF_METRICS, METRICS_A & metrics_mask);
	run_vcpu(vcpus[0]);

	vcpu_mp_state_get(vcpus[1], &mp_state);
	TEST_ASSERT_EQ(mp_state.mp_state, KVM_MP_STATE_INIT_RECEIVED);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpus[1], MSR_SLOTS), SLOTS_A);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpus[1], MSR_PERF_METRICS), METRICS_A & metrics_mask);

	/* KVM resets the PMU if userspace changes the PMU's features. */
	hide_perf_metrics(vcpus[1]);
	vcpu_set_msr(vcpus[1], MSR_IA32_PERF_CAPABILITIES, perf_caps);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpus[1], MSR_SLOTS), 0);
	TEST_ASSERT_EQ(vcpu_get_msr(vcpus[1], MSR_PERF_METRICS), 0);

	kvm_vm_free(vm);
}

/* Sync whether SLOTS, and with it PERF_METRICS, counts. */
static void guest_event_filter(void)
{
	u64 slots, metrics;

	wrmsr(MSR_CORE_PERF_FIXED_CTR_CTRL, SLOTS_OS);
	wrmsr(MSR_CORE_PERF_GLOBAL_CTRL, SLOTS_ENABLE | PERF_METRICS_BIT);

	for (;;) {
		write_topdown(0, 0);
		branch_workload();
		slots = rdmsr(MSR_SLOTS);
		metrics = rdmsr(MSR_PERF_METRICS);

		GUEST_ASSERT_EQ(!slots, !metrics);
		GUEST_SYNC(!!slots);
	}
}

/*
 * Verify denying fixed counter 3 stops PERF_METRICS as well, and that changing
 * the filter doesn't need the guest to reprogram anything.
 */
KVM_ONE_VCPU_TEST(perf_metrics, event_filter, guest_event_filter)
{
	struct kvm_pmu_event_filter filter = {
		.action = KVM_PMU_EVENT_DENY,
	};

	TEST_ASSERT_EQ(run_vcpu(vcpu), true);

	filter.fixed_counter_bitmap = BIT(SLOTS_IDX);
	vm_ioctl(vcpu->vm, KVM_SET_PMU_EVENT_FILTER, &filter);
	TEST_ASSERT_EQ(run_vcpu(vcpu), false);
	TEST_ASSERT_EQ(run_vcpu(vcpu), false);

	filter.fixed_counter_bitmap = (u32)~BIT(SLOTS_IDX);
	vm_ioctl(vcpu->vm, KVM_SET_PMU_EVENT_FILTER, &filter);
	TEST_ASSERT_EQ(run_vcpu(vcpu), true);

	filter.action = KVM_PMU_EVENT_ALLOW;
	vm_ioctl(vcpu->vm, KVM_SET_PMU_EVENT_FILTER, &filter);
	TEST_ASSERT_EQ(run_vcpu(vcpu), false);
}

static void l2_guest_code(void)
{
	int i;

	assert_topdown(SLOTS_A, METRICS_A);
	write_topdown(SLOTS_B, METRICS_B);
	GUEST_SYNC(0);

	for (i = 0; i < NR_ACCESSES; i++) {
		wrmsr(MSR_PERF_METRICS, METRICS_B & metrics_mask);
		rdmsr(MSR_PERF_METRICS);
		_rdpmc(INTEL_RDPMC_METRICS);
	}
	GUEST_SYNC(1);
	vmcall();

	/* L1 intercepts both from here on. */
	rdmsr(MSR_PERF_METRICS);
	wrmsr(MSR_PERF_METRICS, 0);
}

static void l1_guest_code(struct vmx_pages *vmx)
{
	void *read_bitmap = vmx->msr, *write_bitmap = vmx->msr + 0x800;
	int i;

	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, l2_guest_code);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL,
		vmreadz(CPU_BASED_VM_EXEC_CONTROL) | CPU_BASED_USE_MSR_BITMAPS);

	write_topdown(SLOTS_A, METRICS_A);
	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
	assert_topdown(SLOTS_B, METRICS_B);

	__set_bit(MSR_PERF_METRICS, read_bitmap);
	__set_bit(MSR_PERF_METRICS, write_bitmap);
	for (i = 0; i < 2; i++) {
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + vmreadz(VM_EXIT_INSTRUCTION_LEN));
		GUEST_ASSERT(!vmresume());
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON),
				i ? EXIT_REASON_MSR_WRITE : EXIT_REASON_MSR_READ);
	}
	assert_topdown(SLOTS_B, METRICS_B);
	GUEST_DONE();
}

/*
 * Verify L1 and L2 share PERF_METRICS, that L2's accesses don't exit if L1 doesn't
 * want to intercept them, and that they do exit to L1 if L1 does.
 */
TEST(nested)
{
	struct kvm_vcpu *vcpu;
	gva_t vmx_pages_gva;
	struct kvm_vm *vm;
	u64 nr_exits;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "nested VMX isn't supported");

	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	vcpu_alloc_vmx(vm, &vmx_pages_gva);
	vcpu_args_set(vcpu, 1, vmx_pages_gva);

	run_vcpu(vcpu);
	nr_exits = vcpu_get_stat(vcpu, exits);
	run_vcpu(vcpu);
	nr_exits = vcpu_get_stat(vcpu, exits) - nr_exits;
	TEST_ASSERT(nr_exits < NR_ACCESSES / 2,
		    "%lu exits for %u accesses of each kind", nr_exits, NR_ACCESSES);

	run_vcpu(vcpu);
	kvm_vm_free(vm);
}

static void guest_unsupported(bool has_slots)
{
	u64 ign;

	GUEST_ASSERT_GP(rdmsr_safe(MSR_SLOTS, &ign), !has_slots);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_SLOTS, 0), !has_slots);
	GUEST_ASSERT_GP(rdpmc_safe(RDPMC_SLOTS, &ign), !has_slots);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_CORE_PERF_FIXED_CTR_CTRL, SLOTS_OS), !has_slots);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_CORE_PERF_GLOBAL_CTRL, SLOTS_ENABLE), !has_slots);
	GUEST_ASSERT_GP(wrmsr_safe(MSR_CORE_PERF_GLOBAL_OVF_CTRL, SLOTS_ENABLE), !has_slots);

	guest_access_perf_metrics(true);
}

/*
 * Verify KVM doesn't support PERF_METRICS by halves, i.e. that it can't be forced
 * upon KVM either, and that SLOTS exists only if it is backed by hardware.
 */
static void test_unsupported(void)
{
	bool has_slots = kvm_cpu_property(X86_PROPERTY_PMU_NR_FIXED_COUNTERS) > SLOTS_IDX;
	u64 perf_caps = supported_perf_caps();
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	TEST_ASSERT(!has_slots || (kvm_is_mediated_pmu_enabled() &&
				   this_pmu_has(X86_PMU_FEATURE_TOPDOWN_SLOTS_FIXED)),
		    "Fixed counter 3 needs a mediated PMU and support by the host");
	TEST_ASSERT(!kvm_msr_is_in_save_restore_list(MSR_PERF_METRICS),
		    "Unsupported PERF_METRICS is in KVM_GET_MSR_INDEX_LIST");
	TEST_ASSERT_EQ(kvm_msr_is_in_save_restore_list(MSR_SLOTS), has_slots);

	vm = vm_create_with_one_vcpu(&vcpu, guest_unsupported);
	TEST_ASSERT(!_vcpu_set_msr(vcpu, MSR_IA32_PERF_CAPABILITIES,
				   perf_caps | PMU_CAP_PERF_METRICS),
		    "Setting PERF_CAPABILITIES[15] should fail");
	vcpu_set_cpuid_property(vcpu, X86_PROPERTY_PMU_NR_FIXED_COUNTERS, SLOTS_IDX + 1);
	vcpu_args_set(vcpu, 1, has_slots);
	run_vcpu(vcpu);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	TEST_REQUIRE(host_cpu_is_intel);
	TEST_REQUIRE(kvm_is_pmu_enabled());
	TEST_REQUIRE(kvm_cpu_has_p(X86_PROPERTY_PMU_VERSION));
	TEST_REQUIRE(kvm_cpu_property(X86_PROPERTY_PMU_VERSION) > 1);
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_PDCM));

	if (!(supported_perf_caps() & PMU_CAP_PERF_METRICS)) {
		test_unsupported();
		ksft_exit_skip("KVM doesn't support PERF_METRICS, %s\n",
			       !kvm_is_mediated_pmu_enabled() ? "the mediated PMU is off" :
			       !this_pmu_has(X86_PMU_FEATURE_TOPDOWN_SLOTS_FIXED) ?
			       "the host doesn't have fixed counter 3" :
			       "neither the host's PERF_CAPABILITIES nor KVM offers it");
	}

	/* Level 2 isn't enumerated, it exists if its bits can be set. */
	vm = vm_create_with_one_vcpu(&vcpu, NULL);
	if (_vcpu_set_msr(vcpu, MSR_PERF_METRICS, ~LEVEL1_MASK))
		metrics_mask = ~0ull;
	kvm_vm_free(vm);

	return test_harness_run(argc, argv);
}
