#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Reads what the lab leaves behind, judges it, and prints it.

Usage: scripts/results.py COMMAND ARGUMENT...
  cpus                                the kinds of CPU
  cpu NAME[,READING...]               how Bochs emulates one, for bash
  summary DIRECTORY TESTS             what a boot with so many tests has come to
  plan CELL-WORD...                   how to boot a cell of the lab, for bash
  judge DIRECTORY CELL-WORD...        whether that cell is as it has to be, or which
                                      tests have to be run on the base kernel to know
  compare DIRECTORY CELL-WORD...      the same, once it was booted on the base kernel, too
  whole RESULTS                       whether a file has all results
  caught RESULTS TEST                 what failed in a test, in a line
  table LOGS CELL...                  how the tests in cells ended
  junit FILE.tap...                   JUnit XML
  demo LOGS                           tables of what make demo has measured
  readings                            the names of other readings of the documents
  probe DIRECTORY CPU[,READING...]    whether the probe has named what that CPU does
  costs LOGS                          tables of what checks/costs has counted, and
                                      what is dearer than it may be

Exit status: 0 if all is well, 1 if tests failed, 2 if the lab didn't work.
"""

import json
import os
import random
import re
import sys
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

REPO = Path(__file__).resolve().parent.parent
PASSED, FAILED, KNOWN, SKIPPED = 'passed', 'failed', 'known', 'skipped'


class Broken(Exception):
    """The lab, not a test, has failed."""


# --- KTAP --------------------------------------------------------------------

@dataclass
class Test:
    """A result at the top level, and what was printed before it.

    reason is what follows the '#', without the time; seconds is None if there
    is none; output has the lines since the previous result.
    """
    name: str
    status: str
    reason: str = ''
    seconds: int | None = None
    line: str = ''
    output: list[str] = field(default_factory=list)

    @property
    def subtests(self):
        """(name, status) of the nested results."""
        for line in self.output:
            m = re.match(r' +(not )?ok \d+ (?:\w+\.)?([^#]*[^# ])(?: *# ?(.*))?$', line)
            if m:
                skipped = (m[3] or '').startswith('SKIP')
                yield m[2], SKIPPED if skipped else FAILED if m[1] else PASSED


@dataclass
class Results:
    """A file of KTAP, as the emulated host, scripts/boot and scripts/check write it."""
    facts: dict[str, str] = field(default_factory=dict)
    plan: int | None = None
    tests: list[Test] = field(default_factory=list)
    totals: dict[str, int] | None = None
    rest: list[str] = field(default_factory=list)

    def count(self):
        """How many tests ended in which way."""
        return Counter(test.status for test in self.tests)

    def broken(self):
        """Why the results can't be all, or None."""
        if self.plan is None:
            return 'there is no plan'
        if len(self.tests) != self.plan:
            return f'{len(self.tests)} results of {self.plan}'
        failed = self.count()[FAILED]
        if self.totals is not None and self.totals.get('fail') != failed:
            return f"{failed} tests failed, not {self.totals.get('fail')}"
        return None


def split_time(text):
    """'exit status 1, 2m05s' -> ('exit status 1', 125)"""
    m = re.match(r'(?:(.*?)(?:, |$))??(?:(\d+)m)?(\d+)s$', text)
    if not m:
        return text, None
    return m[1] or '', int(m[2] or 0) * 60 + int(m[3])


def read_ktap(lines):
    """Results of lines of KTAP. Whatever isn't KTAP is output of the next test."""
    results = Results()
    output = []
    for line in lines:
        line = line.rstrip('\n')
        if m := re.match(r'(not )?ok \d+ (?:- )?(.*?)(?: # ?(.*))?$', line):
            reason, seconds = split_time(m[3] or '')
            status = FAILED if m[1] else PASSED
            if directive := re.match(r'(SKIP|TODO)\b[ -]*(.*)', reason):
                status = SKIPPED if directive[1] == 'SKIP' else KNOWN
                reason = directive[2]
            results.tests.append(Test(m[2], status, reason, seconds, line, output))
            output = []
        elif m := re.match(r'1\.\.(\d+)$', line):
            results.plan = int(m[1])
        elif m := re.match(r'# Totals: (.*)', line):
            results.totals = {k: int(v) for k, v in re.findall(r'(\w+):(\d+)', m[1])}
        elif results.plan is None and (m := re.match(r'# (\S.*?): (.*)', line)):
            results.facts[m[1]] = m[2]
        else:
            output.append(line)
            # What a debug kernel says of itself comes last.
            if m := re.match(r'# (kasan|lockdep): (.*)', line):
                results.facts[m[1]] = m[2]
    results.rest = output
    return results


def read_results(path):
    """Results of a file; Broken if there is none."""
    try:
        return read_ktap(Path(path).read_text(errors='replace').splitlines())
    except OSError as e:
        raise Broken(f'{path}: {e.strerror}') from e


def said(test):
    """How a test ended, comparable between kernels: no addresses, no process ids."""
    if test.status == PASSED:
        return PASSED
    if test.status == SKIPPED:
        return f'skipped, {test.reason}'
    parts, telling = [f'failed, {test.reason}'], False
    for line in test.output:
        if re.search(r' pid=\d+ tid=|addr2line: not found', line):
            continue
        telling = telling or 'Test Assertion Failure' in line
        if telling or re.match(r' +not ok ', line):
            parts.append(line.lstrip(' #'))
    return '; '.join(parts)


# --- Kinds of CPU, and cells -------------------------------------------------

def read_cpus():
    """The rows of scripts/cpus by name, each a dict by column."""
    lines = (REPO / 'scripts/cpus').read_text().splitlines()
    columns = [line for line in lines if line.startswith('# name\ttitle')][0][2:].split('\t')
    rows = [dict(zip(columns, line.split('\t'))) for line in lines if line and line[0] != '#']
    return {row['name']: row for row in rows}


def read_model():
    """The tables of the emulated PMU: kinds (metrics, bit 15) and readings (in parts) by name."""
    text = (REPO / 'tools/emulator/pmu.c').read_text()
    kinds, parts, first = {}, {}, {}
    for row in re.findall(r'\.name = (.*?)\n\t\}', text, re.S):
        metrics = re.search(r'\.nr_metrics = (\d+)', row)
        names = re.match(r'"(\w+)", \.model = "(\w*)"', row)
        for name in filter(None, names.groups()) if names else ():
            kinds[name] = int(metrics[1]) if metrics else 0, 'CAP_PERF_METRICS' in row
    table_ = re.search(r'\n\} readings\[\] = \{(.*?)\n\};', text, re.S)
    for name, bits in re.findall(r'\{ "([\w-]+)",(.*?) \}', table_[1] if table_ else '', re.S):
        bits = re.findall(r'BIT\((\w+)\)', bits)
        if len(bits) == 1:
            first[bits[0]] = name
        parts[name] = [first[bit] for bit in bits]
    if not kinds or not parts:
        raise Broken('the tables of tools/emulator/pmu.c are not as they were')
    return kinds, parts


CPUS = read_cpus()
VPMU_TESTS = ['pmu_counters_test', 'pmu_event_filter_test', 'vmx_pmu_caps_test']
QUICK_TESTS = ['feature_msrs_test', 'msrs_test', 'state_test', 'userspace_msr_exit_test']
# Benchmarks, tests under stress, tests that hold one clock against another (the
# emulated ones run at their own pace) or wait for a signal to arrive between two
# instructions, and others that take long and have nothing to do with the PMU.
SLOW_TESTS = '''access_tracking_perf_test aperfmperf_test apic_bus_clock_test coalesced_io_test
    demand_paging_test dirty_log_page_splitting_test dirty_log_perf_test dirty_log_test
    hardware_disable_test hyperv_clock hyperv_features hyperv_ipi hyperv_tlb_flush irq_test
    irqfd_test kvm_create_max_vcpus kvm_page_table_test memslot_modification_stress_test
    memslot_perf_test mmu_stress_test monitor_mwait_test private_mem_conversions_test
    recalc_apic_map_test rseq_test save_restore_pf_stress_test set_memory_region_test
    sync_regs_test tsc_scaling_sync vmx_exception_with_invalid_guest_state
    vmx_preemption_timer_test xapic_ipi_test xapic_state_test xapic_tpr_test'''.split()


def readings_at_random(seed, there):
    """An answer to each question, by chance, but always the same for a seed."""
    chance, questions = random.Random(seed), {}
    for name in there:
        if name not in ('strict', 'others'):
            questions.setdefault(name.split('-')[0], [None]).append(name)
    return [name for name in map(chance.choice, questions.values()) if name]


class Cell:
    """A cell of the lab by its words, e.g. spr,strict 2-cpus brief."""

    def __init__(self, words, runs=20):
        name, *readings = words[0].split(',') if words else ['']
        if name not in CPUS:
            raise Broken(f"unknown CPU '{name}', there are: {' '.join(CPUS)}")
        self.cpu = CPUS[name]
        there = list(read_model()[1])
        self.readings = []
        for reading in readings:
            if reading in there:
                self.readings.append(reading)
            elif re.fullmatch(r'random-\d+', reading):
                self.readings += readings_at_random(reading, there)
            else:
                raise Broken(f"unknown reading '{reading}', there are: {' '.join(there)} random-NUMBER")
        self.words = set(words[1:])
        known = {'no-mediated', 'no-nested', 'no-ept', 'no-apicv', '2-cpus', 'fep', 'debug', 'base',
                 'all', 'brief', 'topdown', 'restless'}
        if unknown := self.words - known:
            raise Broken(f"unknown word '{unknown.pop()}', there are: {' '.join(sorted(known))}")
        self.vendor = self.cpu['vendor']
        self.paging = 'npt' if self.vendor == 'amd' else 'ept'
        self.mediated = self.vendor == 'intel' and 'no-mediated' not in self.words
        self.vpmu_tests, self.quick_tests = list(VPMU_TESTS), list(QUICK_TESTS)
        if 'brief' in self.words:
            # It takes half of the time.
            self.vpmu_tests.remove('pmu_counters_test')
        self.tests = ['perf_metrics_test', *self.vpmu_tests, *self.quick_tests]
        if self.words & {'topdown', 'restless'}:
            self.vpmu_tests, self.quick_tests = [], []
            self.tests = ['perf_metrics_test'] * (runs if 'restless' in self.words else 1)
        if 'all' in self.words:
            self.tests = ['all', *('-' + test for test in SLOW_TESTS)]
        if self.vendor == 'amd':
            # Bochs' AMD has no PMU, and its MSRs aren't what msrs_test expects.
            self.vpmu_tests = []
            self.quick_tests = [t for t in self.quick_tests
                                if t in ('state_test', 'userspace_msr_exit_test')]

    def cmdline(self):
        """Parameters for the kernel."""
        module, words = 'kvm_' + self.vendor, {
            'no-mediated': 'enable_mediated_pmu=0', 'no-nested': 'nested=0',
            'no-ept': self.paging + '=0', 'no-apicv': 'enable_apicv=0'}
        parameters = [f'{module}.{value}' for word, value in words.items() if word in self.words]
        if 'fep' in self.words:
            parameters += ['kvm.force_emulation_prefix=1', 'kvm.enable_virt_at_load=0']
        return ' '.join(parameters)

    def facts(self):
        """What the emulated host has to say of itself, as regular expressions."""
        module = 'kvm_' + self.vendor
        facts = {
            'cpu': ('2' if '2-cpus' in self.words else '1') + ' x .*',
            'pmu': '.*' if self.cpu['driver'] == '-' else f".*{self.cpu['driver']}.*",
            f'{module}.enable_mediated_pmu': 'Y' if self.mediated else 'N',
            f'{module}.nested': '[N0]' if 'no-nested' in self.words else '[Y1]',
            f'{module}.{self.paging}': 'N' if 'no-ept' in self.words else 'Y',
            'VM-Exit saves PERF_GLOBAL_CTRL': self.cpu['saves'],
            'kvm.force_emulation_prefix': '1' if 'fep' in self.words else '0',
        }
        if self.vendor == 'intel':
            facts['kvm_intel.enable_apicv'] = 'N' if 'no-apicv' in self.words else 'Y'
        if 'debug' in self.words:
            facts |= {'kasan': 'initialized .*', 'lockdep': '1'}
        return facts

    def expectations(self):
        """Tests, and how each has to end."""
        unsupported = "skipped, KVM doesn't support PERF_METRICS, "
        if self.vendor == 'amd':
            topdown = 'skipped, Requirement not met: host_cpu_is_intel'
        elif not self.mediated:
            topdown = unsupported + 'the mediated PMU is off'
        elif self.cpu['topdown'] == '0':
            topdown = unsupported + "the host doesn't have fixed counter 3"
        elif 'base' in self.words:
            topdown = unsupported + "KVM or the host's PERF_CAPABILITIES lack it"
        else:
            topdown = PASSED
        expected = {'perf_metrics_test': topdown}
        expected |= dict.fromkeys(self.vpmu_tests + self.quick_tests, PASSED)
        return expected

    def excuses(self):
        """Reasons for which parts of perf_metrics_test may be left out."""
        excuses = []
        if 'no-nested' in self.words:
            excuses.append("nested VMX isn't supported")
        if 'fep' not in self.words:
            excuses.append('virtualization stays enabled')
        return excuses


def check_facts(cell, results):
    """Broken if the host isn't the one that the cell is named after."""
    for name, wanted in cell.facts().items():
        if not re.fullmatch(wanted, results.facts.get(name, '')):
            raise Broken(f'not the host that this cell is meant to be: no "{name}: {wanted}"')


def check_restless(cell, results):
    """Broken if the tasks beside the tests didn't wake up as often as they should."""
    cpus = 2 if '2-cpus' in cell.words else 1
    slowest = Counter()
    for test in results.tests:
        tasks = re.findall(r'restless every (\d+) us: CPU \d+ woke up \d+ times, once in (\d+) us',
                           '\n'.join(test.output))
        if len(tasks) != cpus * 3:
            raise Broken(f'{test.name}: {len(tasks)} tasks beside it')
        for period, took in tasks:
            slowest[int(period)] = max(slowest[int(period)], int(took))
    for period, took in sorted(slowest.items()):
        if took > 2 * period:
            raise Broken(f'tasks that sleep for {period} us woke up once in {took} us')


def judge(cell, results):
    """Problems of a cell, and the tests to be compared with the base kernel."""
    check_facts(cell, results)
    if 'restless' in cell.words:
        check_restless(cell, results)
    problems = []
    for name, expected in cell.expectations().items():
        found = Counter(said(test) for test in results.tests if test.name == name)
        if list(found) != [expected]:
            how = '; '.join(f'{n} x {s}' for s, n in found.items()) or 'no result'
            problems.append(f'{name}: expected {expected}, found {how}')
    for test in results.tests:
        if test.name == 'perf_metrics_test':
            for line in test.output:
                if re.search(r"^ .*(# SKIP|Can't read the host's PERF_METRICS|"
                             r"Can't use RDPMC in the host)", line) and \
                        not any(excuse in line for excuse in cell.excuses()):
                    problems.append(f'perf_metrics_test leaves something out: {line.strip()}')
        if test.status == FAILED and re.search(r'exit status (137|143)', test.reason):
            problems.append(f'{test.name} hangs')
    compare = [test.name for test in results.tests if test.name != 'perf_metrics_test' and
               (cell.vendor == 'amd' or test.status != PASSED)]
    return problems, list(dict.fromkeys(compare))


def compare(results, base, names):
    """Problems of tests that have to end as on the base kernel, and known failures."""
    problems, known = [], {}
    here = {test.name: test for test in results.tests}
    there = {test.name: test for test in base.tests}
    for name in names:
        if name not in there:
            problems.append(f'no result on the base kernel: {name}')
            continue
        test = there[name]
        if said(here[test.name]) != said(test):
            problems.append(f'not as on the base kernel: {test.name}: {said(here[test.name])}; '
                            f'there: {said(test)}')
        elif test.status == FAILED:
            known[test.name] = said(test)
    return problems, known


def mark_known(lines, known):
    """Lines of KTAP with known failures as TODO."""
    for line in lines:
        m = re.match(r'(not ok \d+ (\S+))', line)
        yield f'{m[1]} # TODO fails on the base kernel too' if m and m[2] in known else line


# --- What the probe says -----------------------------------------------------

def answers_of(results):
    """What the probe has printed, as lines and as JSON: ((question, answer, default), ...)."""
    text = '\n'.join(re.sub('^ *# ?', '', line) for test in results.tests for line in test.output)
    lines = tuple(re.findall(r'^(H\d+) +(\S+) +(\S+) ', text, re.M))
    found = re.search(r'^\{\n.*?^\}$', text, re.M | re.S)
    try:
        answers = json.loads(found[0])['answers'] if found else ()
        return lines, tuple((a['id'], a['answer'], a['default']) for a in answers)
    except (ValueError, KeyError) as e:
        raise Broken(f'no JSON: {e!r}') from e


def judge_probe(cpu, results):
    """Problems of what the probe has said on such a CPU."""
    kinds, parts = read_model()
    cell = Cell([cpu])
    pmu = cell.cpu['bochs'] if cell.cpu['pmu'] == 'own' else cell.cpu['pmu']
    metrics, bit15 = kinds.get(pmu, (0, False))
    chosen = {part for word in cell.readings for part in parts[word]}
    likely = {}
    if not bit15:
        likely['H10'] = 'clear'
    if metrics == 8:
        # There is nothing to ignore.
        likely['H3'] = 'no-question'
        chosen -= {'upper-ignored'}
    if 'writes-lower' in chosen:
        # No value that is written is near enough to an overflow.
        likely['H6'] = 'not-reached'
        chosen -= {'overflow-pmi', 'overflow-undefined'}
    problems = [f'{test.name}: {said(test)}' for test in results.tests if test.status != PASSED]
    if not metrics:
        subtests = [subtest for test in results.tests for subtest in test.subtests]
        if subtests != [('no PERF_METRICS', PASSED)]:
            problems.append(f'the CPU has no PERF_METRICS, but the probe was tested for {subtests}')
        return problems
    lines, answers = answers_of(results)
    if [line[0] for line in lines] != [f'H{n}' for n in range(1, 13)]:
        problems.append(f"not twelve answers: {' '.join(line[0] for line in lines)}")
    if lines != answers:
        problems.append(f'other answers as JSON: {set(answers) ^ set(lines)}')
    named = {answer for _, answer, _ in lines if answer in parts}
    problems += [f'not named: {reading}' for reading in sorted(chosen - named)]
    for question, answer, default in lines:
        if answer not in chosen | {likely.get(question, default)}:
            problems.append(f'{question}: {answer}, which the CPU does not do')
    return problems


# --- Printing ----------------------------------------------------------------

def xml_text(text):
    """Text that XML can hold."""
    return re.sub(r'[^\t\n\x20-\x7e]', '?', text)


def junit(files):
    """JUnit XML: a file is a suite, each result at its top level a case."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>'
    for path in map(Path, files):
        suite = path.parent.name if path.name == 'cell.tap' else path.stem
        results = read_results(path)
        tests = list(results.tests)
        if why := results.broken():
            tests.append(Test('all results', FAILED, why, line=why, output=results.rest))
        count = Counter(test.status for test in tests)
        yield (f'  <testsuite name={quoteattr(suite)} tests="{len(tests)}" '
               f'failures="{count[FAILED]}" skipped="{count[SKIPPED] + count[KNOWN]}">')
        for test in tests:
            time = '' if test.seconds is None else f' time="{test.seconds}"'
            text = ''
            if test.status in (SKIPPED, KNOWN):
                why = test.reason if test.status == SKIPPED else 'known: ' + test.reason
                text = f'<skipped message={quoteattr(xml_text(why))}/>'
            elif test.status == FAILED:
                output = escape(xml_text('\n'.join(test.output)))
                text = f'<failure message={quoteattr(xml_text(test.line))}>{output}</failure>'
            yield (f'    <testcase classname={quoteattr(suite)} '
                   f'name={quoteattr(xml_text(test.name))}{time}>{text}</testcase>')
        yield '  </testsuite>'
    yield '</testsuites>'


def gate_logs(logs, gate):
    """The directory of a gate's logs."""
    return Path(logs) / re.sub('[ /,]', '-', gate)


def table(logs, cells):
    """How the tests in cells ended, and which failures are known."""
    yield f"# {'cell':44} {'passed':>6} {'failed':>6} {'known':>6} {'skipped':>7}"
    known = Counter()
    for cell in cells:
        name, directory = cell.removeprefix('lab '), gate_logs(logs, cell)
        try:
            n = read_results(directory / 'cell.tap').count()
            yield f'# {name:44} {n[PASSED]:6} {n[FAILED]:6} {n[KNOWN]:6} {n[SKIPPED]:7}'
        except Broken:
            yield f'# {name:44} no result'
        if (directory / 'known').exists():
            known.update((directory / 'known').read_text().splitlines())
    for line, n in sorted(known.items()):
        yield f'# known, in {n} of them: {line}'


def summary(directory, number):
    """(line, all is well) of a boot that has come to its end."""
    results = read_results(Path(directory) / 'results.tap')
    n, facts = results.count(), results.facts
    mediated = [f'{k}={v}' for k, v in facts.items() if k.endswith('.enable_mediated_pmu')]
    text = (f"{facts.get('kernel', '?')}, {facts.get('cpu', '?')}, {' '.join(mediated)}: "
            f'{n[PASSED]} passed, {n[FAILED]} failed, {n[SKIPPED]} skipped; logs: {directory}')
    if why := results.broken():
        raise Broken(f'results are missing in {directory}/results.tap: {why}')
    return text, not n[FAILED] and len(results.tests) == number


# --- What make demo measures -------------------------------------------------

LEVEL_1 = ['retiring', 'bad-spec', 'fe-bound', 'be-bound']
LEVEL_2 = ['heavy-ops', 'br-mispredict', 'fetch-lat', 'mem-bound']
METRICS = LEVEL_1 + LEVEL_2
# General-purpose counters that a way of measuring asks for, of which there are eight.
GP_COUNTERS = {'raw': 5, 'busy': 6, 'raw-busy': 11}


class Demo:
    """Measurements: values by (side, where, what, workload, metric), see scripts/demo."""

    def __init__(self):
        self.values, self.workloads = {}, []
        self.versions, self.commands = {}, {}

    def get(self, *key):
        """A value, or None."""
        return self.values.get(key)

    def add(self, side, where, what, workload, metric, value):
        """A value, a float unless it is an error."""
        if workload not in self.workloads:
            self.workloads.append(workload)
        self.values[side, where, what, workload, metric] = \
            value if metric == 'error' else float(value)

    def difference(self, what, workload, metric):
        """Guest minus host, or None."""
        guest, host = (self.get('series', w, what, workload, metric) for w in ('guest', 'host'))
        return None if guest is None or host is None else guest - host

    def worst(self, what):
        """The largest difference of a metric in points, or None."""
        differences = (self.difference(what, w, m) for w in self.workloads for m in METRICS)
        return max((abs(d) for d in differences if d is not None), default=None)

    def off(self, side, what, workload):
        """By how many points a guest's level 1 is off the host's at worst."""
        return max(abs((self.get(side, 'guest', what, workload, m) or 0) -
                       (self.get('series', 'host', 'group', workload, m) or 0)) for m in LEVEL_1)

    def count_off(self, side, what, workload, right_as, event):
        """By how many percent a guest's count is off the host's, or None."""
        right = self.get('series', 'host', right_as, workload, event)
        if not right:
            return None
        return 100 * ((self.get(side, 'guest', what, workload, event) or 0) / right - 1)

    def uncounted(self, side, what, workload):
        """Whether no event said anything, which isn't the same as saying zero."""
        return not any(self.get(side, 'guest', what, workload, m) for m in ('retiring', 'be-bound'))


def demo_of_output(logs):
    """Demo of what side_by_side has printed with and without the series."""
    demo = Demo()
    for side in ('series', 'base'):
        text = (Path(logs) / side / 'results.tap').read_text(errors='replace')
        for line in re.findall(r'^ *# *(@.*)', text, re.M):
            kind, *words = line.split()
            if kind in ('@version', '@command'):
                into = demo.versions if kind == '@version' else demo.commands
                into[side, words[0]] = line.split(None, 2)[2]
            elif kind == '@' and words[3].startswith('error:'):
                demo.add(side, *words[:3], 'error', line.split(None, 4)[4].removeprefix('error:').strip())
            elif kind == '@':
                for pair in words[3:]:
                    demo.add(side, *words[:3], *pair.split('=', 1))
                demo.add(side, *words[:3], 'gp-counters', GP_COUNTERS.get(words[1], 0))
    if not demo.workloads:
        raise Broken(f'{logs}: nothing was measured')
    return demo


def demo_tsv(demo):
    """Lines of demo.tsv."""
    for kind, table_ in (('version', demo.versions), ('command', demo.commands)):
        for (side, what), text in table_.items():
            yield '\t'.join((kind, side, what, text))
    for (side, where, what, workload, metric), value in demo.values.items():
        level = '1' if metric in LEVEL_1 else '2' if metric in LEVEL_2 else '-'
        text = value if metric == 'error' else f'{value:.12g}'
        yield '\t'.join(('value', side, where, what, workload, metric, level, text))


def read_demo(path):
    """Demo of a demo.tsv."""
    demo = Demo()
    for line in Path(path).read_text(errors='replace').splitlines():
        kind, *columns = line.split('\t')
        if kind == 'value':
            demo.add(*columns[:5], columns[6])
        elif kind in ('version', 'command'):
            (demo.versions if kind == 'version' else demo.commands)[columns[0], columns[1]] = columns[2]
    if not demo.workloads:
        raise Broken(f'{path} holds no measurement: run make demo again')
    return demo


def side_by_side(demo, what):
    """Host, guest and difference of each workload."""
    yield ''
    names = (('', '', 'retir-', 'bad', 'front-', 'back-', 'heavy', 'mispre-', 'fetch', 'memory'),
             ('workload', '', 'ing', 'spec.', 'end', 'end', 'ops', 'dicts', 'latency', 'bound'))
    for a, b, *columns in names:
        yield f'{a:10} {b:10}' + ''.join(f'{c:>8}' for c in columns[:4]) + \
            f' |{columns[4]:>6}' + ''.join(f'{c:>8}' for c in columns[5:])
    for workload in demo.workloads:
        for where in ('host', 'guest', 'difference'):
            row = [demo.difference(what, workload, m) if where == 'difference' else
                   demo.get('series', where, what, workload, m) for m in METRICS]
            sign = '+' if where == 'difference' else ''
            text = f"{workload if where == 'host' else '':10} {where:10}"
            for i, value in enumerate(row):
                cell = '-' if value is None else f'{value:{sign}.1f}'
                text += f' |{cell:>6}' if i == 4 else f'{cell:>8}'
            slots = demo.count_off('series', what, workload, what, 'slots')
            if where == 'difference' and slots is not None:
                text += f'  SLOTS {slots:+.3f}%'
            yield text


def demo_tables(demo):
    """What make demo prints."""
    def version(side, what, pattern='.*'):
        m = re.search(pattern, demo.versions.get((side, what), '?'))
        return m[0] if m else '?'

    yield (f"\nhost: Linux {version('series', 'kernel')}; guest: Linux "
           f"{version('series', 'guest-kernel')} in QEMU {version('series', 'qemu', r'[0-9.]+')}; "
           f"perf {version('series', 'perf', r'[0-9.]+')} in both")
    yield f"guest: {version('series', 'guest-pmu')}"
    yield '\nperf stat --topdown, user space and kernel, percent of slots'
    yield from side_by_side(demo, 'topdown')
    yield '\nperf stat -e {slots,topdown-...}:u, user space alone, percent of slots'
    yield from side_by_side(demo, 'group')
    yield '\nWhat a guest can do with and without the series, against the host\n'
    yield f"{'':20} {'':9}{'':>5} {'general-purpose':>16} {'time':>10} {'level 1':>10} {'SLOTS':>10} {'branches':>10}"
    yield f"{'':20} {'workload':9}{'level':>5} {'counters wanted':>16} {'counted':>10} " + \
        ' '.join(f'{"off by":>10}' for _ in range(3))
    uncounted = False
    for rows in ((('metrics, series', 'series', 'group'), ('raw events, base', 'base', 'raw')),
                 (('and 6 more, series', 'series', 'busy'), ('and 6 more, base', 'base', 'raw-busy'))):
        for workload in demo.workloads:
            for title, side, what in rows:
                if error := demo.get(side, 'guest', what, workload, 'error'):
                    yield f'{title:20} {workload:9} {error[:70]}'
                    continue
                if demo.get(side, 'guest', what, workload, 'slots') is None:
                    continue
                level_1 = f'{demo.off(side, what, workload):.1f}'
                if demo.uncounted(side, what, workload):
                    level_1, uncounted = 'uncounted', True
                text = (f"{title:20} {workload:9}{'1' if side == 'base' else '1, 2':>5} "
                        f"{demo.get(side, 'guest', what, workload, 'gp-counters'):11.0f} of 8 "
                        f"{demo.get(side, 'guest', what, workload, 'running'):8.1f} % {level_1:>10} "
                        f"{demo.count_off(side, what, workload, 'group', 'slots') or 0:8.3f} %")
                if 'busy' in what:
                    text += f" {demo.count_off(side, what, workload, 'busy', 'branches') or 0:8.3f} %"
                yield text
    if uncounted:
        yield 'uncounted: the emulated CPU has no events for these metrics, other than PERF_METRICS'
    for workload in demo.workloads:
        if error := demo.get('base', 'guest', 'topdown', workload, 'error'):
            yield f'\nperf stat --topdown in a guest without the series:\n  {error}'
            break
    worst = {what: demo.worst(what) for what in ('topdown', 'group')}
    yield '\nguest and host differ by ' + ', by '.join(
        f'{worst[what]:.1f} {text}' for what, text in
        (('topdown', 'points at most with --topdown'), ('group', 'in user space alone'))
        if worst[what] is not None)


# --- What the gate costs counts ----------------------------------------------

# What the guest of guest_exits_test uses, in turn. The base kernel has the first ones.
USES = ['nothing *', 'nothing', 'counters', 'after counters', 'topdown', 'after topdown', 'topdown *']
USES_ON_BASE = 4
# Exit reasons, by number.
REASONS = {'10': 'CPUID', '30': 'port'}
VMCALL = '18'
COSTS = ['instructions', 'WRMSRs', 'RDMSRs', 'RDPMCs']
# More than on the base: instructions of an exit while the guest uses no topdown, and
# RDPMCs while it does, against one that counts on the base. Nothing else may be more.
MORE_INSTRUCTIONS = 20
MORE_RDPMCS = 2
# After so many vcpu_puts, i.e. exits by port, a guest's use of topdown has ended.
PUTS = 10


def read_noted(path, uses):
    """Costs of exits by (use, exit), and those between marks, as the emulated CPU notes them."""
    exits, marks, calls = defaultdict(list), [], 0
    for line in Path(path).read_text().splitlines():
        reason, *cost = line.split()
        cost = tuple(map(int, cost))
        if reason == VMCALL:
            calls += 1
        elif reason == 'mark':
            marks.append(cost)
        elif reason in REASONS and calls % 2 and calls // 2 < len(uses):
            exits[uses[calls // 2], REASONS[reason]].append(cost)
    # Each use begins and ends with one.
    if calls != 2 * len(uses):
        raise Broken(f"not the guest's work: {calls} VMCALLs in {path}, not {2 * len(uses)}")
    return exits, marks[1::2]


def typical(costs, what):
    """What nearly all exits cost, those that no interrupt got into."""
    cost, times = Counter(costs).most_common(1)[0] if costs else (None, 0)
    if times <= 0.8 * len(costs):
        raise Broken(f'exits by {what}: {len(costs)} seen, but most are not alike')
    return cost


class Costs:
    """What exits and perf on the host cost on a kernel."""

    def __init__(self, directory, kernel):
        uses = USES[:USES_ON_BASE] if kernel == 'base' else USES
        exits, marks = read_noted(directory / kernel / 'noted', uses)
        # What the last puts of a use cost. CPUID, which doesn't put, comes after them.
        self.late_rdpmcs = max((cost[3] for cost in exits['after topdown', 'port'][PUTS:]), default=0)
        exits['after topdown', 'port'] = exits['after topdown', 'port'][PUTS:]
        self.exits = {(use, kind): typical(exits[use, kind], f'{kind} ({use}, {kernel})')
                      for use in uses for kind in REASONS.values()}
        # WRMSRs for each event, by command; of several runs the one with the fewest.
        self.host = {}
        results = read_results(directory / kernel / 'results.tap')
        commands = [re.match(r'# @ (.*): ([1-9]\d*)$', line) for test in results.tests for line in test.output]
        commands = [(m[1], int(m[2])) for m in commands if m]
        if len(commands) != len(marks) or not marks:
            raise Broken(f"not the host's work: {len(commands)} commands, {len(marks)} pairs of marks")
        for (command, events), cost in zip(commands, marks):
            self.host[command] = min(self.host.get(command, (9e9,)), (cost[1] / events, events, *cost[1:]))


def compare_costs(series, base):
    """What is dearer with the series than it may be."""
    def exits(use, on_base, more):
        for kind in REASONS.values():
            here, there = series.exits[use, kind], base.exits[on_base, kind]
            for column, n in enumerate(COSTS):
                if more[column] is not None and here[column] > there[column] + more[column]:
                    yield f'{use}, {kind}: {here[column]} {n} instead of {there[column]}'

    for use in ('nothing', 'counters', 'after counters'):
        yield from exits(use, use, (MORE_INSTRUCTIONS, 0, 0, 0))
    # Perf's own share of instructions depends on what it finds to do.
    yield from exits('nothing *', 'nothing *', (None, 0, 0, 0))
    yield from exits('topdown', 'counters', (None, 0, 0, MORE_RDPMCS))
    yield from exits('after topdown', 'after counters', (MORE_INSTRUCTIONS, 0, 0, 0))
    # Interrupts take no RDPMC, so this holds for every exit.
    if series.late_rdpmcs > base.exits['after counters', 'port'][3]:
        yield f'after topdown, port: {series.late_rdpmcs} RDPMCs still after {PUTS} vcpu_puts'
    if series.host.keys() != base.host.keys():
        raise Broken('other commands were measured on the base kernel')
    for command, cost in series.host.items():
        # The number of events isn't quite the same each time.
        if cost[0] > base.host[command][0] + 0.01:
            yield f'{command}: {cost[0]:.3f} WRMSRs per event instead of {base.host[command][0]:.3f}'


def costs_tsv(kernels):
    """Lines of exit-costs.tsv."""
    for name, costs in kernels.items():
        for (use, kind), cost in costs.exits.items():
            yield '\t'.join((name, use, kind, *map(str, cost)))


def costs_tables(series, base):
    """What checks/costs prints."""
    for command, cost in series.host.items():
        yield (f'{command:34} {base.host[command][0]:8.3f} {cost[0]:8.3f} WRMSRs per event '
               'on a host without VMs, base and series')
    yield ''
    yield f"{'':22}" + ''.join(f'{n:>18}' for n in COSTS)
    yield f"{'guest uses':15} {'exit':6}" + f"{'base':>11} {'series':>6}" * len(COSTS)
    for (use, kind), here in series.exits.items():
        there = base.exits.get((use, kind), '-' * len(COSTS))
        yield f'{use:15} {kind:6}' + ''.join(f'{b:>11} {s:>6}' for b, s in zip(there, here))
    yield '*: beside perf stat -a -e slots:H on the host'


# --- Commands ----------------------------------------------------------------

def shell_plan(cell):
    """Assignments for bash: what to boot."""
    yield f"CPU={','.join([cell.cpu['name'], *cell.readings])} CPUS={2 if '2-cpus' in cell.words else 1}"
    yield f"TESTS='{' '.join(cell.tests)}' CMDLINE+=' {cell.cmdline()}'"
    yield f"KERNEL={'debug' if 'debug' in cell.words else ''}"
    yield f"RESTLESS={'1000,200,60' if 'restless' in cell.words else ''}"
    if 'base' in cell.words:
        yield 'SERIES=none'
    if 'restless' in cell.words:
        # Of the slowest, which exits at every wake-up.
        yield f'TIMEOUT=$((TIMEOUT + {300 * len(cell.tests)}))'


def finish_cell(directory, cell, results, known):
    """cell.tap, the list of known failures, and whether anything else has failed."""
    lines = (directory / 'results.tap').read_text(errors='replace').splitlines()
    (directory / 'cell.tap').write_text('\n'.join(mark_known(lines, known)) + '\n')
    (directory / 'known').write_text(''.join(
        f'{name}: also on the base kernel, {how.removeprefix("failed, ")}\n'
        for name, how in known.items()))
    return [f'{test.name}: {said(test)}' for test in results.tests
            if test.status == FAILED and test.name not in known]


def main(command, *arguments):
    """Carries out a command, returns the exit status."""
    if command == 'cpus':
        print('\n'.join(CPUS))
    elif command == 'cpu':
        cell = Cell(arguments)
        print(f"model={cell.cpu['bochs']} without={cell.cpu['without']} "
              f"pmu={','.join([cell.cpu['pmu'], *cell.readings])}")
    elif command == 'summary':
        line, fine = summary(arguments[0], int(arguments[1]))
        print(line)
        return 0 if fine else 1
    elif command == 'plan':
        print('\n'.join(shell_plan(Cell(arguments, int(os.environ.get('RUNS', 20))))))
    elif command in ('judge', 'compare'):
        directory, cell = Path(arguments[0]), Cell(arguments[1:])
        results = read_results(directory / 'results.tap')
        problems, names = judge(cell, results)
        known = {}
        if command == 'compare':
            base = read_results(directory / 'base/results.tap')
            check_facts(cell, base)
            more, known = compare(results, base, names)
            problems += more
        elif names and 'base' not in cell.words:
            # They decide whether all is well.
            print(' '.join(names))
            return 0
        problems += finish_cell(directory, cell, results, known)
        for problem in problems:
            print(f'error: {problem}', file=sys.stderr)
        return 1 if problems else 0
    elif command == 'whole':
        if why := read_results(arguments[0]).broken():
            raise Broken(f'results are missing in {arguments[0]}: {why}')
    elif command == 'caught':
        for test in read_results(arguments[0]).tests:
            if test.name == arguments[1] and test.status == FAILED:
                print(' '.join(n for n, s in test.subtests if s == FAILED) or said(test))
    elif command == 'table':
        print('\n'.join(table(arguments[0], arguments[1:])))
    elif command == 'junit':
        print('\n'.join(junit(arguments)))
    elif command == 'costs':
        logs = Path(arguments[0])
        kernels = {name: Costs(logs, name) for name in ('series', 'base')}
        (logs / 'exit-costs.tsv').write_text('\n'.join(costs_tsv(kernels)) + '\n')
        print('\n'.join(costs_tables(**kernels)))
        dearer = list(compare_costs(**kernels))
        if dearer:
            print('error: dearer than on the base: ' + '; '.join(dearer), file=sys.stderr)
            return 1
    elif command == 'readings':
        print('\n'.join(read_model()[1]))
    elif command == 'probe':
        problems = judge_probe(arguments[1], read_results(Path(arguments[0]) / 'results.tap'))
        for problem in problems:
            print(f'error: {problem}', file=sys.stderr)
        return 1 if problems else 0
    elif command == 'demo':
        logs = Path(arguments[0])
        demo = demo_of_output(logs)
        (logs / 'demo.tsv').write_text('\n'.join(demo_tsv(demo)) + '\n')
        print('\n'.join(demo_tables(demo)))
        print(f'as data: {logs}/demo.tsv')
        print('\nThe percentages come from an emulated CPU and say nothing about a real core.')
    else:
        raise Broken(f"unknown command '{command}', see scripts/results.py --help")
    return 0


if __name__ == '__main__':
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(__doc__.strip())
        sys.exit(0 if len(sys.argv) > 1 else 2)
    try:
        sys.exit(main(*sys.argv[1:]))
    except (Broken, OSError) as e:
        print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
    except Exception:  # pylint: disable=broad-except
        # Not 1, which says that tests failed.
        traceback.print_exc()
        print(f"error: scripts/results.py {' '.join(sys.argv[1:])} failed", file=sys.stderr)
        sys.exit(2)
