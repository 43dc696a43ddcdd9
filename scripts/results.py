#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Reads what the lab leaves behind, judges it, and prints it.

Usage: scripts/results.py COMMAND ARGUMENT...
  gates GATE [WORD...]                that gate on each reading of the documents, on each kind
                                      of CPU with PERF_METRICS; "probe" on the others, too
  gates cells                         every cell of the lab
  cpu NAME[,READING...]               how Bochs emulates one, for bash
  summary DIRECTORY TESTS WHAT        what a boot with so many tests has come to
  plan CELL-WORD...                   how to boot a cell of the lab, for bash
  judge DIRECTORY CELL-WORD...        whether that cell is as it has to be, or which
                                      tests have to be run on the base kernel to know
  compare DIRECTORY CELL-WORD...      the same, once it was booted on the base kernel, too
  table LOGS CELL...                  how the tests in cells ended
  junit FILE.tap...                   JUnit XML
  demo LOGS                           tables of what make demo has measured
  probe DIRECTORY CPU[,READING...]    whether the probe has named what that CPU does
  costs LOGS                          tables of what checks/costs has counted, and
                                      what is dearer than it may be

Exit status: 0 if all is well, 1 if tests failed, 2 if the lab didn't work.
"""

import csv
import json
import math
import random
import re
import sys
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

REPO = Path(__file__).resolve().parent.parent
PASSED, FAILED, KNOWN, SKIPPED = 'passed', 'failed', 'known', 'skipped'


class Broken(Exception):
    """The lab, not a test, has failed."""


class Failed(Exception):
    """Tests have failed. The arguments are what is wrong."""


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
            if m := re.match(r' +(not )?ok \d+ (?:\w+\.)?([^#]*[^# ])(?: *# ?(SKIP)?.*)?$', line):
                yield m[2], SKIPPED if m[3] else FAILED if m[1] else PASSED

    def caught(self):
        """What failed in it, in a line."""
        return ' '.join(name for name, status in self.subtests if status == FAILED) or self.said()

    def said(self):
        """How it ended, comparable between kernels: no addresses, no process ids."""
        if self.status == PASSED:
            return PASSED
        if self.status == SKIPPED:
            return f'skipped, {self.reason}'
        parts, telling = [f'failed, {self.reason}'], False
        for line in self.output:
            # Up to what the harness says of it.
            telling = 'Test Assertion Failure' in line or telling and not re.match(r' +(# +(FAIL|RUN) |(not )?ok )', line)
            if (telling or re.match(r' +not ok ', line)) and not re.search(r' pid=\d+ tid=|addr2line: not found', line):
                parts.append(line.lstrip(' #'))
        return '; '.join(parts)


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


def read_ktap(lines):
    """Results of lines of KTAP. Whatever isn't KTAP is output of the next test."""
    results = Results()
    for line in lines:
        if m := re.match(r'(not )?ok \d+ (?:- )?(.*?)(?: # ?(.*))?$', line):
            # E.g. "exit status 1, 2m05s".
            reason, minutes, seconds = re.fullmatch(r'(.*?)(?:(?:, |^)(?:(\d+)m)?(\d+)s)?', m[3] or '').groups()
            time = int(minutes or 0) * 60 + int(seconds) if seconds else None
            status = FAILED if m[1] else PASSED
            if directive := re.match(r'(SKIP|TODO)\b[ -]*(.*)', reason):
                status, reason = SKIPPED if directive[1] == 'SKIP' else KNOWN, directive[2]
            results.tests.append(Test(m[2], status, reason, time, line, results.rest))
            results.rest = []
        elif m := re.match(r'1\.\.(\d+)$', line):
            results.plan = int(m[1])
        elif m := re.match(r'# Totals: (.*)', line):
            results.totals = {k: int(v) for k, v in re.findall(r'(\w+):(\d+)', m[1])}
        elif results.plan is None and (m := re.match(r'# (\S.*?): (.*)', line)):
            results.facts[m[1]] = m[2]
        else:
            results.rest.append(line)
            # What a debug kernel says of itself comes last.
            if m := re.match(r'# (kasan|lockdep): (.*)', line):
                results.facts[m[1]] = m[2]
    return results


def read_results(path):
    """Results of a file; Broken if there is none."""
    try:
        return read_ktap(Path(path).read_text(errors='replace').splitlines())
    except OSError as e:
        raise Broken(f'{path}: {e.strerror}') from e


# --- Kinds of CPU, and cells -------------------------------------------------

def read_cpus():
    """The rows of scripts/cpus by name, each a dict by column."""
    lines = re.findall(r'^(?:# (?=name\ttitle))?(\w.*)', (REPO / 'scripts/cpus').read_text(), re.M)
    return {row['name']: row for row in csv.DictReader(lines, delimiter='\t')}


def read_model():
    """The tables of the emulated PMU: kinds (metrics, bit 15) and readings (in parts) by name."""
    text = (REPO / 'tools/emulator/pmu.c').read_text()
    kinds, parts, first = {}, {}, {}
    for *names, row in re.findall(r'\.name = "(\w+)", \.model = "(\w*)"(.*?)\n\t\}', text, re.S):
        metrics = re.search(r'\.nr_metrics = (\d+)', row)
        kinds |= dict.fromkeys(names, (int(metrics[1]) if metrics else 0, 'CAP_PERF_METRICS' in row))
    for name, bits in re.findall(r'\{ "([\w-]+)",\s+(BIT\([^{}]*) \}', text):
        # A reading of one bit comes before those that have it as a part.
        parts[name] = [first.setdefault(bit, name) for bit in re.findall(r'BIT\((\w+)\)', bits)]
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


# What perf_metrics_test says when it leaves something out, or compares less exactly.
LEFT_OUT = re.compile(r"^ .*# SKIP|wasn't tested|not compared|aren't counted|Only \d+ turns|"
                      r'causes no PMI|off by up to (?!0, sums by 0 )')


def readings_at_random(seed, there):
    """An answer to each question, by chance, but always the same for a seed."""
    chance, questions = random.Random(seed), {}
    for name in there:
        if name not in ('strict', 'others'):
            questions.setdefault(name.split('-')[0], [None]).append(name)
    return [name for name in map(chance.choice, questions.values()) if name]


class Cell:
    """A cell of the lab by its words, e.g. spr,strict 2-cpus brief. Broken if one is unknown."""

    def __init__(self, *words, runs=20):
        def know(word, there, what):
            if word not in there:
                raise Broken(f"unknown {what} '{word}', there are: {' '.join(there)}")

        name, *readings = words[0].split(',') if words else ['']
        parts, self.readings = read_model()[1], []
        for row in CPUS.values():
            if None in row or None in row.values():
                raise Broken(f"scripts/cpus: columns are separated by tabs, not as in '{row['name']}'")
        know(name, CPUS, 'CPU')
        for reading in readings:
            if re.fullmatch(r'random-\d+', reading):
                self.readings += readings_at_random(reading, parts)
            else:
                know(reading, parts, 'reading')
                self.readings.append(reading)
        # What the CPU does, be it as a part of another reading.
        self.does = {part for reading in self.readings for part in parts[reading]}
        for word in words[1:]:
            know(word, ['2-cpus', 'all', 'base', 'brief', 'debug', 'fep', 'no-apicv', 'no-ept', 'no-mediated',
                        'no-nested', 'restless', 'topdown'], 'word')
        self.words, self.cpu = set(words[1:]), CPUS[name]
        self.cpus = 2 if '2-cpus' in self.words else 1
        self.amd = self.cpu['vendor'] == 'amd'
        # What words switch off.
        parameters = {'no-mediated': 'enable_mediated_pmu', 'no-nested': 'nested', 'no-apicv': 'enable_apicv',
                      'no-ept': 'npt' if self.amd else 'ept'}
        self.parameters = {word: f"kvm_{self.cpu['vendor']}.{name}" for word, name in parameters.items()}
        # Tests that have to pass, beside perf_metrics_test.
        self.required = [] if self.words & {'topdown', 'restless'} else VPMU_TESTS + QUICK_TESTS
        if 'brief' in self.words:
            # It takes half of the time.
            self.required = [test for test in self.required if test != 'pmu_counters_test']
        self.tests = ['perf_metrics_test'] * (runs if 'restless' in self.words else 1) + self.required
        if 'all' in self.words:
            self.tests = ['all', *('-' + test for test in SLOW_TESTS)]
        if self.amd:
            # Bochs' AMD has no PMU, and its MSRs aren't what msrs_test expects.
            self.required = [test for test in self.required if test in ('state_test', 'userspace_msr_exit_test')]

    def plan(self):
        """Assignments for bash: what to boot."""
        parameters = [f'{parameter}=0' for word, parameter in self.parameters.items() if word in self.words]
        if 'fep' in self.words:
            parameters += ['kvm.force_emulation_prefix=1', 'kvm.enable_virt_at_load=0']
        if 'debug' in self.words:
            # Of a test, see tools/host/init: such a kernel takes several times as long.
            parameters.append('limit=600')
        yield f"CPU={','.join([self.cpu['name'], *self.readings])} CPUS={self.cpus}"
        yield f"TESTS='{' '.join(self.tests)}' CMDLINE+=' {' '.join(parameters)}'"
        yield f"KERNEL={'debug' * ('debug' in self.words)} RESTLESS={'1000,200,60' * ('restless' in self.words)}"
        if 'base' in self.words:
            yield 'SERIES=none'
        if 'restless' in self.words:
            # Of the slowest, which exits at every wake-up.
            yield f'TIMEOUT=$((TIMEOUT + {300 * len(self.tests)}))'
        if 'debug' in self.words:
            yield 'TIMEOUT=$((3 * TIMEOUT))'

    def check_host(self, results):
        """Broken if the host isn't the one that the cell is named after."""
        facts = {'cpu': f'{self.cpus} x .*',
                 'pmu': '.*' if self.cpu['driver'] == '-' else f".*{self.cpu['driver']}.*",
                 'VM-Exit saves PERF_GLOBAL_CTRL': self.cpu['saves'],
                 'kvm.force_emulation_prefix': '1' if 'fep' in self.words else '0'}
        facts |= {name: '.*' if self.amd and word == 'no-apicv' else '[N0]' if word in self.words else '[Y1]'
                  for word, name in self.parameters.items()}
        if self.amd:
            facts['kvm_amd.enable_mediated_pmu'] = 'N'
        if 'debug' in self.words:
            facts |= {'kasan': 'initialized .*', 'lockdep': '1'}
        for name, wanted in facts.items():
            if not re.fullmatch(wanted, results.facts.get(name, '')):
                raise Broken(f'not the host that this cell is meant to be: no "{name}: {wanted}"')

    def check_restless(self, results):
        """Broken if the tasks beside the tests didn't wake up as often as they should."""
        for test in results.tests:
            tasks = re.findall(r'restless every (\d+) us: CPU \d+ woke up \d+ times, once in (\d+) us',
                               '\n'.join(test.output))
            if len(tasks) != self.cpus * 3:
                raise Broken(f'{test.name}: {len(tasks)} tasks beside it')
            for period, took in tasks:
                if int(took) > 2 * int(period):
                    raise Broken(f'tasks that sleep for {period} us woke up once in {took} us')

    def topdown(self):
        """How perf_metrics_test has to end."""
        unsupported = "KVM doesn't support PERF_METRICS, "
        reasons = ((self.amd, 'Requirement not met: host_cpu_is_intel'),
                   ('no-mediated' in self.words, unsupported + 'the mediated PMU is off'),
                   (self.cpu['topdown'] == '0', unsupported + "the host doesn't have fixed counter 3"),
                   ('base' in self.words, unsupported + "KVM or the host's PERF_CAPABILITIES lack it"))
        return next((f'skipped, {reason}' for skips, reason in reasons if skips), PASSED)

    def judge(self, results):
        """Problems, and the tests to be compared with the base kernel. Broken if it was another host."""
        self.check_host(results)
        if 'restless' in self.words:
            self.check_restless(results)
        problems, compared = [], {}
        for name, expected in {'perf_metrics_test': self.topdown(), **dict.fromkeys(self.required, PASSED)}.items():
            found = Counter(test.said() for test in results.tests if test.name == name)
            if list(found) != [expected]:
                how = '; '.join(f'{n} x {s}' for s, n in found.items()) or 'no result'
                problems.append(f'{name}: expected {expected}, found {how}')
        # What perf_metrics_test may leave out, or be less exact in.
        excuses = [text for text, fine in (
            ("nested VMX isn't supported", 'no-nested' in self.words),
            ('virtualization stays enabled', 'fep' not in self.words),
            ('Only ', self.words & {'restless', 'debug'}),
            ("PERF_GLOBAL_STATUS[48] wasn't tested", 'writes-lower' in self.does),
            ('Metrics read back', self.does & {'writes-lower', 'sums-loose', 'reads-differ'})) if fine]
        for test in results.tests:
            if test.name != 'perf_metrics_test':
                if self.amd or test.status != PASSED:
                    compared[test.name] = True
            else:
                problems += [f'perf_metrics_test leaves something out: {line.strip()}' for line in test.output
                             if LEFT_OUT.search(line) and not any(excuse in line for excuse in excuses)]
            if test.status == FAILED and re.search(r'exit status (137|143)', test.reason):
                problems.append(f'{test.name} hangs')
        return problems, list(compared)


def gates(which, *words):
    """Gates, a line each: every cell of the lab, or a gate on each reading of the documents."""
    if which == 'cells':
        for cpu, *off in product(CPUS, ['', 'no-mediated'], ['', 'no-nested'], ['', 'no-ept'], ['', '2-cpus']):
            # Bochs has no AMD CPU with a PMU that KVM could mediate.
            if (cpu, off[0]) != ('amd', 'no-mediated'):
                yield ' '.join(filter(None, ['lab', cpu, *off, 'all']))
        return
    if which == 'probe':
        yield from (f'probe {cpu}' for cpu in CPUS)
    for cpu in (name for name, row in CPUS.items() if row['topdown'] == '1'):
        for reading in [*read_model()[1], *(f'random-{n}' for n in range(1, 21))]:
            yield ' '.join([which, f'{cpu},{reading}', *words])


def judge(command, directory, *words):
    """Judges a cell by the logs in a directory.

    Yields the tests that have to be compared with the base kernel, if any and the command
    isn't "compare". Else writes cell.tap and known, the failures that the base kernel has,
    too. Failed if anything else isn't as it has to be, Broken if the lab isn't.
    """
    directory, cell, known = Path(directory), Cell(*words), {}
    results = read_results(directory / 'results.tap')
    problems, names = cell.judge(results)
    if command == 'compare':
        base = read_results(directory / 'base/results.tap')
        cell.check_host(base)
        here, there = ({test.name: test.said() for test in r.tests} for r in (results, base))
        for name in names:
            if name not in there:
                problems.append(f'no result on the base kernel: {name}')
            elif here[name] != there[name]:
                problems.append(f'not as on the base kernel: {name}: {here[name]}; there: {there[name]}')
            elif there[name].startswith('failed, '):
                known[name] = there[name].removeprefix('failed, ')
    elif names and 'base' not in cell.words:
        # They decide whether all is well.
        yield ' '.join(names)
        return
    (directory / 'cell.tap').write_text(re.sub(
        r'^(not ok \d+ (\S+)).*', lambda m: f'{m[1]} # TODO fails on the base kernel too' if m[2] in known else m[0],
        (directory / 'results.tap').read_text(errors='replace'), flags=re.M))
    (directory / 'known').write_text(''.join(f'{name}: also on the base kernel, {how}\n'
                                             for name, how in known.items()))
    problems += [f'{test.name}: {test.said()}' for test in results.tests
                 if test.status == FAILED and test.name not in known]
    if problems:
        raise Failed(*problems)


# --- What the probe says -----------------------------------------------------

QUESTIONS = 14


def judge_probe(cpu, results):
    """Problems of what the probe has said on such a CPU. Broken if it isn't JSON."""
    kinds = read_model()[0]
    cell = Cell(cpu)
    metrics, bit15 = kinds.get(cell.cpu['bochs'] if cell.cpu['pmu'] == 'own' else cell.cpu['pmu'], (0, False))
    chosen = set(cell.does)
    likely = {} if bit15 else {'H10': 'clear'}
    if metrics == 8:
        # There is nothing to ignore.
        likely['H3'] = 'no-question'
        chosen -= {'upper-ignored'}
    if 'slots-rescales' in chosen:
        # Metrics overflow only along with SLOTS, which may make them undefined, too.
        likely['H6'] = 'cannot-tell'
        if 'running-undefined' in chosen:
            chosen -= {'overflow-undefined'}
    if 'writes-lower' in chosen:
        # No value that is written is near enough to an overflow.
        likely['H6'] = 'not-reached'
        chosen -= {'overflow-pmi', 'overflow-undefined'}
    problems = [f'{test.name}: {test.said()}' for test in results.tests if test.status != PASSED]
    if not metrics:
        subtests = [subtest for test in results.tests for subtest in test.subtests]
        if subtests != [('no PERF_METRICS', PASSED)]:
            problems.append(f'the CPU has no PERF_METRICS, but the probe was tested for {subtests}')
        return problems
    # The same as lines and as JSON.
    text = '\n'.join(re.sub('^ *# ?', '', line) for test in results.tests for line in test.output)
    answers = re.findall(r'^(H\d+) +(\S+) +(\S+) ', text, re.M)
    found = re.search(r'^\{\n.*?^\}$', text, re.M | re.S)
    try:
        objects = json.loads(found[0])['answers'] if found else ()
        in_json = [(a['id'], a['answer'], a['default']) for a in objects]
    except (ValueError, KeyError) as e:
        raise Broken(f'no JSON: {e!r}') from e
    asked = [question for question, *_ in answers]
    if asked != [f'H{n}' for n in range(1, 1 + QUESTIONS)]:
        problems.append(f"not {QUESTIONS} answers: {' '.join(asked)}")
    if answers != in_json:
        problems.append(f'other answers as JSON: {sorted(set(answers) ^ set(in_json))}')
    problems += [f'not named: {reading}' for reading in sorted(chosen - {answer for _, answer, _ in answers})]
    problems += [f'{question}: {answer}, which the CPU does not do' for question, answer, default in answers
                 if answer not in chosen | {likely.get(question, default)}]
    return problems


# --- Printing ----------------------------------------------------------------

def junit(*files):
    """JUnit XML: a file is a suite, each result at its top level a case."""
    def clean(text):
        return re.sub(r'[^\t\n\x20-\x7e]', '?', text)

    root = ElementTree.Element('testsuites')
    for path in map(Path, files):
        name = path.parent.name if path.name == 'cell.tap' else path.stem
        results = read_results(path)
        if why := results.broken():
            results.tests.append(Test('all results', FAILED, why, line=why, output=results.rest))
        count = results.count()
        suite = ElementTree.SubElement(root, 'testsuite', name=name, tests=str(len(results.tests)),
                                       failures=str(count[FAILED]), skipped=str(count[SKIPPED] + count[KNOWN]))
        for test in results.tests:
            case = ElementTree.SubElement(suite, 'testcase', classname=name, name=clean(test.name))
            if test.seconds is not None:
                case.set('time', str(test.seconds))
            if test.status == FAILED:
                failure = ElementTree.SubElement(case, 'failure', message=clean(test.line))
                failure.text = clean('\n'.join(test.output))
            elif test.status != PASSED:
                why = 'known: ' * (test.status == KNOWN) + test.reason
                ElementTree.SubElement(case, 'skipped', message=clean(why))
    ElementTree.indent(root)
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield ElementTree.tostring(root, 'unicode')


def gate_logs(logs, gate):
    """The directory of a gate's logs."""
    return Path(logs) / re.sub('[ /,]', '-', gate)


def table(logs, *cells):
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


def summary(directory, number, what):
    """What a boot of so many tests has come to. Failed if some failed or are missing, Broken if results are."""
    results = read_results(f'{directory}/results.tap')
    if why := results.broken():
        raise Broken(f'results are missing in {directory}/results.tap: {why}')
    n, facts = results.count(), results.facts
    mediated = [f'{k}={v}' for k, v in facts.items() if k.endswith('.enable_mediated_pmu')]
    for test in results.tests:
        if test.status == FAILED:
            yield f'failed: {test.name}: {test.caught()}'
    yield (f"{what}: {facts.get('kernel', '?')}, {facts.get('cpu', '?')}, {' '.join(mediated)}: "
           f'{n[PASSED]} passed, {n[FAILED]} failed, {n[SKIPPED]} skipped; logs: {directory}')
    if n[FAILED] or len(results.tests) != int(number):
        raise Failed


# --- What make demo measures -------------------------------------------------

LEVEL_1 = ['retiring', 'bad-spec', 'fe-bound', 'be-bound']
LEVEL_2 = ['heavy-ops', 'br-mispredict', 'fetch-lat', 'mem-bound']
METRICS = LEVEL_1 + LEVEL_2
# General-purpose counters that a way of measuring asks for, of which there are eight.
GP_COUNTERS = {'raw': 5, 'busy': 6, 'raw-busy': 11}


class Demo:
    """What side_by_side has printed with and without the series, in the logs of scripts/demo.

    about has (kind, side, what) of its lines @version and @command. Broken if nothing was measured.
    """

    def __init__(self, logs):
        self.about, self.measured = {}, {}
        for side in ('series', 'base'):
            text = (Path(logs) / side / 'results.tap').read_text(errors='replace')
            for kind, what, words in re.findall(r'^ *# *@(version|command) (\S+) (.*)', text, re.M):
                self.about[kind, side, what] = words
            for where, what, workload, words in re.findall(r'^ *# *@ (\S+) (\S+) (\S+) (.*)', text, re.M):
                if words.startswith('error:'):
                    values = {'error': words.removeprefix('error:').strip()}
                else:
                    values = {name: float(value) for name, value in re.findall(r'(\S+)=(\S+)', words)}
                    values['gp-counters'] = GP_COUNTERS.get(what, 0)
                self.measured[side, where, what, workload] = values
        self.workloads = list(dict.fromkeys(workload for *_, workload in self.measured))
        if not self.workloads:
            raise Broken(f'{logs}: nothing was measured')

    def get(self, side, where, what, workload):
        """Values by metric."""
        return self.measured.get((side, where, what, workload), {})

    def both(self, what, workload):
        """Values of host and guest, with the series."""
        return self.get('series', 'host', what, workload), self.get('series', 'guest', what, workload)

    def differences(self, what, workload):
        """Guest minus host by metric, and by how many percent the guest's SLOTS are off."""
        host, guest = self.both(what, workload)
        differences = {m: guest[m] - host[m] for m in METRICS if m in host and m in guest}
        if 'slots' in host and 'slots' in guest:
            differences['slots'] = 100 * (guest['slots'] / host['slots'] - 1)
        return differences

    def worst(self, what):
        """The largest difference of a metric in points, or None."""
        return max((abs(d) for w in self.workloads for m, d in self.differences(what, w).items() if m in METRICS),
                   default=None)

    def error_without(self):
        """What perf stat --topdown says in a guest without the series, or ''."""
        return next(filter(None, (self.get('base', 'guest', 'topdown', w).get('error') for w in self.workloads)), '')

    def comparison(self, side, what, workload):
        """How a guest measures, and how far that is off the host: by column, or its error. Empty if it didn't.

        What is unknown is None, as level 1 is if no event said anything, which isn't the same as zero.
        """
        guest = self.get(side, 'guest', what, workload)
        if 'slots' not in guest:
            return guest
        group = self.get('series', 'host', 'group', workload)
        uncounted = not guest.get('retiring') and not guest.get('be-bound')
        row = {
            'level': '1, 2' if 'heavy-ops' in guest else '1',
            'wanted': guest['gp-counters'],
            'running': guest['running'],
            'level 1': None if uncounted else max(abs(guest.get(m, 0) - group.get(m, 0)) for m in LEVEL_1),
        }
        for event, right in (('slots', group), ('branches', self.get('series', 'host', 'busy', workload))):
            if event in guest:
                row[event] = 100 * (guest[event] / right[event] - 1) if event in right else None
        return row


def side_by_side(demo, what):
    """Host, guest and difference of each workload."""
    def row(first, second, cells):
        cells = [f'{cell:>8}' for cell in cells]
        return f"{first:10} {second:10}{''.join(cells[:4])} |{cells[4][2:]}{''.join(cells[5:])}"

    yield ''
    yield row('', '', ('retir-', 'bad', 'front-', 'back-', 'heavy', 'mispre-', 'fetch', 'memory'))
    yield row('workload', '', ('ing', 'spec.', 'end', 'end', 'ops', 'dicts', 'latency', 'bound'))
    for workload in demo.workloads:
        host, guest = demo.both(what, workload)
        differences = demo.differences(what, workload)
        for title, where, values, form in ((workload, 'host', host, '.1f'), ('', 'guest', guest, '.1f'),
                                           ('', 'difference', differences, '+.1f')):
            text = row(title, where, [format(values[m], form) if m in values else '-' for m in METRICS])
            slots = f"  SLOTS {values['slots']:+.3f}%" if values is differences and 'slots' in values else ''
            yield text + slots


def without(demo):
    """What a guest can do with and without the series."""
    yield f"{'general-purpose':>52} {'time':>10} {'level 1':>10} {'SLOTS':>10} {'branches':>10}"
    yield f"{'workload':>29}{'level':>6} {'counters wanted':>16} {'counted':>10}" + f" {'off by':>10}" * 3
    uncounted = False
    for ways in ((('metrics, series', 'series', 'group'), ('raw events, base', 'base', 'raw')),
                 (('and 6 more, series', 'series', 'busy'), ('and 6 more, base', 'base', 'raw-busy'))):
        for workload in demo.workloads:
            for title, side, what in ways:
                row = demo.comparison(side, what, workload)
                if 'error' in row:
                    yield f"{title:20} {workload:9} {row['error'][:70]}"
                elif row:
                    level_1 = 'uncounted' if row['level 1'] is None else f"{row['level 1']:.1f}"
                    uncounted = uncounted or row['level 1'] is None
                    counts = ('-' if row[event] is None else f'{row[event]:.3f} %'
                              for event in ('slots', 'branches') if event in row)
                    yield (f"{title:20} {workload:9}{row['level']:>5} {row['wanted']:11} of 8 {row['running']:8.1f} % "
                           f'{level_1:>10}' + ''.join(f' {count:>10}' for count in counts))
    if uncounted:
        yield 'uncounted: the emulated CPU has no events for these metrics, other than PERF_METRICS'
    if error := demo.error_without():
        yield f'\nperf stat --topdown in a guest without the series:\n  {error}'


def demo_tables(logs):
    """What make demo prints. Broken if nothing was measured."""
    demo = Demo(logs)
    version = defaultdict(lambda: '?', {what: text for (kind, side, what), text in demo.about.items()
                                        if (kind, side) == ('version', 'series')})
    qemu, perf = (re.sub(r'.*?([0-9.]+).*', r'\1', version[what]) for what in ('qemu', 'perf'))
    yield (f"\nhost: Linux {version['kernel']}; guest: Linux {version['guest-kernel']} in QEMU {qemu}; "
           f'perf {perf} in both')
    yield f"guest: {version['guest-pmu']}"
    yield '\nperf stat --topdown, user space and kernel, percent of slots'
    yield from side_by_side(demo, 'topdown')
    yield '\nperf stat -e {slots,topdown-...}:u, user space alone, percent of slots'
    yield from side_by_side(demo, 'group')
    yield '\nWhat a guest can do with and without the series, against the host\n'
    yield from without(demo)
    yield '\nguest and host differ by ' + ', by '.join(
        f'{worst:.1f} {text}' for what, text in (('topdown', 'points at most with --topdown'),
                                                 ('group', 'in user space alone'))
        if (worst := demo.worst(what)) is not None)
    yield '\nThe percentages come from an emulated CPU and say nothing about a real core.'


# --- What the gate costs counts ----------------------------------------------

# What the guest of guest_exits_test uses, in turn. The base kernel has the first ones.
USES = ['nothing *', 'nothing', 'counters', 'after counters', 'topdown', 'after topdown', 'topdown *']
USES_ON_BASE = 4
# Exit reasons, by number.
REASONS = {'10': 'CPUID', '30': 'port'}
VMCALL, RDPMC = '18', '15'
COSTS = ['instructions', 'WRMSRs', 'RDMSRs', 'RDPMCs']
# What a use is held against on the base, and how much more of each it may cost: some instructions
# while the guest uses no topdown, more once it has executed RDPMC, two RDPMCs while it uses topdown,
# nothing else. Perf's own share of instructions depends on what it finds to do.
LIMITS = {
    'nothing': ('nothing', (20, 0, 0, 0)),
    'counters': ('counters', (60, 0, 0, 0)),
    'after counters': ('after counters', (60, 0, 0, 0)),
    'nothing *': ('nothing *', (math.inf, 0, 0, 0)),
    'topdown': ('counters', (math.inf, 0, 0, 2)),
    'after topdown': ('after counters', (20, 0, 0, 0)),
}
# After so many vcpu_puts, i.e. exits by port, a guest's use of topdown has ended.
PUTS = 10


class Costs:
    """What exits and perf on the host cost on a kernel, as the emulated CPU has noted it.

    exits has COSTS by (use, exit), reads how many RDPMCs exited; host has COSTS for each
    event, without instructions, by command. Broken if the work wasn't done, or most exits of a kind are not alike.
    """

    def __init__(self, logs, kernel):
        directory, uses = Path(logs) / kernel, USES[:USES_ON_BASE] if kernel == 'base' else USES
        exits, marks, calls, self.reads = defaultdict(list), [], 0, 0
        for line in (directory / 'noted').read_text().splitlines():
            reason, *numbers = line.split()
            cost = tuple(map(int, numbers))
            if reason == VMCALL:
                calls += 1
            elif reason == 'mark':
                marks.append(cost)
            elif reason == RDPMC:
                self.reads += 1
            elif reason in REASONS and calls % 2 and calls // 2 < len(uses):
                exits[uses[calls // 2], REASONS[reason]].append(cost)
        # Each use begins and ends with one.
        if calls != 2 * len(uses):
            raise Broken(f"not the guest's work: {calls} VMCALLs in {directory}/noted, not {2 * len(uses)}")
        # On the base kernel each exits.
        if kernel == 'base' and self.reads < len(exits['counters', 'port']):
            raise Broken(f'the counter has not been read, {self.reads} RDPMCs exited')
        # What the last puts of a use cost. CPUID, which doesn't put, comes after them.
        late = exits['after topdown', 'port'] = exits['after topdown', 'port'][PUTS:]
        self.late_rdpmcs = max((cost[3] for cost in late), default=0)
        self.exits = {}
        for use in uses:
            for kind in REASONS.values():
                # What nearly all exits cost, those that no interrupt got into.
                seen = exits[use, kind]
                cost, times = Counter(seen).most_common(1)[0] if seen else (None, 0)
                if times <= 0.8 * len(seen):
                    raise Broken(f'exits by {kind} ({use}, {kernel}): {len(seen)} seen, but most are not alike')
                self.exits[use, kind] = cost
        # Of several runs of a command, the fewest.
        self.host = {}
        output = '\n'.join(line for test in read_results(directory / 'results.tap').tests for line in test.output)
        commands = re.findall(r'^# @ (.*): ([1-9]\d*)$', output, re.M)
        if len(commands) != len(marks) // 2 or not commands:
            raise Broken(f"not the host's work: {len(commands)} commands, {len(marks) // 2} pairs of marks")
        for (command, events), cost in zip(commands, marks[1::2]):
            per_event = [number / int(events) for number in cost[1:]]
            self.host[command] = tuple(map(min, per_event, self.host.get(command, per_event)))


def compare_costs(series, base):
    """What is dearer with the series than it may be. Broken if not the same was measured on both."""
    for use, (on_base, limits) in LIMITS.items():
        for kind in REASONS.values():
            for name, here, there, more in zip(COSTS, series.exits[use, kind], base.exits[on_base, kind], limits):
                if here > there + more:
                    yield f'{use}, {kind}: {here} {name} instead of {there}'
    # Interrupts take no RDPMC, so this holds for every exit.
    if series.late_rdpmcs > base.exits['after counters', 'port'][3]:
        yield f'after topdown, port: {series.late_rdpmcs} RDPMCs still after {PUTS} vcpu_puts'
    if series.reads > base.reads:
        yield f'{series.reads} RDPMCs exited instead of {base.reads}'
    if series.host.keys() != base.host.keys():
        raise Broken('other commands were measured on the base kernel')
    for command, costs in series.host.items():
        for name, here, there in zip(COSTS[1:], costs, base.host[command]):
            # The number of events isn't quite the same each time.
            if here > there + 0.05:
                yield f'{command}: {here:.3f} {name} per event instead of {there:.3f}'


def costs_tables(logs):
    """What checks/costs prints and writes to exit-costs.txt. Failed if something is dearer than it may be."""
    series, base = (Costs(logs, kernel) for kernel in ('series', 'base'))
    dearer = list(compare_costs(series, base))
    lines = [f"{'per event on a host without VMs':40}" + ''.join(f'{n:>18}' for n in COSTS[1:]),
             f"{'':40}" + f"{'base':>11} {'series':>6}" * len(COSTS[1:])]
    lines += [f'{command:40}' + ''.join(f'{b:11.3f} {s:6.3f}' for b, s in zip(base.host[command], costs))
              for command, costs in series.host.items()]
    lines += ['', f"{'':22}" + ''.join(f'{n:>18}' for n in COSTS),
              f"{'guest uses':15} {'exit':6}" + f"{'base':>11} {'series':>6}" * len(COSTS)]
    for (use, kind), here in series.exits.items():
        there = base.exits.get((use, kind), '-' * len(COSTS))
        lines.append(f'{use:15} {kind:6}' + ''.join(f'{b:>11} {s:>6}' for b, s in zip(there, here)))
    lines += ['*: beside perf stat -a -e slots:H on the host', 'counters: one is read before each exit, '
              f'of which {base.reads} exit, too, on the base, and {series.reads} with the series']
    Path(logs, 'exit-costs.txt').write_text('\n'.join(lines) + '\n')
    yield from lines
    if dearer:
        raise Failed('dearer than on the base: ' + '; '.join(dearer))


# --- Commands ----------------------------------------------------------------

def cpu(*words):
    """How Bochs emulates a kind of CPU, for bash."""
    cell = Cell(*words)
    # What tests with perf have to know: by how many points two runs may differ more than on an
    # exact CPU, 2 units one way and the other; and whether errors add up as perf reads again.
    differ = 'reads-differ' in cell.does
    parameters = 'loose=1.6 ' * (differ or 'sums-loose' in cell.does) + 'reads_differ=1' * differ
    yield (f"model={cell.cpu['bochs']} without={cell.cpu['without']} parameters='{parameters}' "
           f"pmu={','.join([cell.cpu['pmu'], *cell.readings])}")


def probe(directory, name):
    """Failed if the probe hasn't named what that CPU does."""
    if problems := judge_probe(name, read_results(f'{directory}/results.tap')):
        raise Failed(*problems)


def run(command, usage, least=1):
    """Calls a command with the arguments of this process, or prints the usage if they are less. Exits."""
    arguments = sys.argv[1:]
    asked = arguments[:1] in (['-h'], ['--help'])
    if asked or len(arguments) < least:
        print(usage.strip())
        sys.exit(0 if asked else 2)
    try:
        command(*arguments)
    except (Failed, Broken, OSError) as e:
        for problem in e.args if isinstance(e, Failed) else [e]:
            print(f'error: {problem}', file=sys.stderr)
        sys.exit(1 if isinstance(e, Failed) else 2)
    except Exception:  # pylint: disable=broad-except
        # Not 1, which says that tests failed.
        traceback.print_exc()
        print(f"error: {' '.join(sys.argv)} failed", file=sys.stderr)
        sys.exit(2)


def main(command, *arguments):
    """Prints what a command yields."""
    commands = {
        'gates': gates, 'cpu': cpu, 'summary': summary, 'plan': lambda *words: Cell(*words).plan(),
        'judge': lambda *words: judge('judge', *words), 'compare': lambda *words: judge('compare', *words),
        'table': table, 'junit': junit, 'demo': demo_tables,
        'probe': probe, 'costs': costs_tables}
    if command not in commands:
        raise Broken(f"unknown command '{command}', see scripts/results.py --help")
    for line in commands[command](*arguments) or ():
        print(line)


if __name__ == '__main__':
    run(main, __doc__)
