#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of results.py and page.py on canned logs, a broken and a truncated one among them."""

import json
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import page
from results import (Broken, Cell, Costs, CPUS, Demo, Failed, KNOWN, PASSED, PUTS, SKIPPED, USES, USES_ON_BASE,
                     compare_costs, costs_tables, demo_tables, judge, judge_probe, junit, read_ktap, read_results,
                     summary, table)

FACTS = '''KTAP version 1
# kernel: 7.3.4-series
# cpu: 1 x Intel(R) Xeon(R) w9-3475X
# pmu: Sapphire Rapids events, full-width counters, Intel PMU driver.
# kvm_intel.enable_mediated_pmu: Y
# kvm_intel.nested: Y
# kvm_intel.ept: Y
# kvm_intel.enable_apicv: Y
# VM-Exit saves PERF_GLOBAL_CTRL: 1
# kvm.force_emulation_prefix: 0
'''
TOPDOWN = '''# running perf_metrics_test
# Random seed: 0x5b1dbc2d
# # Metrics read back are off by up to 0, sums by 0 beyond 253 to 257
  TAP version 13
  1..2
  ok 1 global.context_switch
  ok 2 global.virtualization_disabled # SKIP virtualization stays enabled
  # Totals: pass:1 fail:0 xfail:0 xpass:0 skip:1 error:0
ok 1 perf_metrics_test # 26s
'''
QUICK = ['pmu_event_filter_test', 'vmx_pmu_caps_test', 'feature_msrs_test', 'msrs_test', 'state_test',
         'userspace_msr_exit_test']
ASSERTION = '''# ==== Test Assertion Failure ====
#   x86/msrs_test.c:105: val == want
#   pid={pid} tid={pid} errno=4 - Interrupted system call
#   Wanted 0x56789000 from RDMSR(0x175), got 0x123456789000
'''


def brief(failing=None, pid=42):
    """Results of a brief cell, in which one of the quick tests may fail."""
    text = FACTS + '1..7\n' + TOPDOWN
    for number, name in enumerate(QUICK, 2):
        text += f'# running {name}\n'
        if name == failing:
            text += ASSERTION.format(pid=pid) + f'not ok {number} {name} # exit status 254, 1s\n'
        else:
            text += f'ok {number} {name} # 2s\n'
    failed = 1 if failing else 0
    return text + f'# Totals: pass:{7 - failed} fail:{failed} xfail:0 xpass:0 skip:0 error:0\n'


def results(text):
    """Results of a text."""
    return read_ktap(text.splitlines())


class LogsTest(unittest.TestCase):
    """A test with a directory of logs."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.logs = Path(scratch.name)

    def write(self, path, text):
        """A file of the logs."""
        (self.logs / path).parent.mkdir(parents=True, exist_ok=True)
        (self.logs / path).write_text(text)


class ReadTest(unittest.TestCase):
    """read_ktap() and what it is made of."""

    def test_times(self):
        for text, expected in (('26s', ('', 26)), ('2m05s', ('', 125)), ('exit status 1, 5s', ('exit status 1', 5)),
                               ('differs by 0.08 %', ('differs by 0.08 %', None)), ('', ('', None))):
            test = results(f'ok 1 a # {text}').tests[0]
            self.assertEqual((test.name, test.reason, test.seconds), ('a', *expected))

    def test_a_sound_log(self):
        r = results(brief())
        self.assertIsNone(r.broken())
        self.assertEqual(r.facts['kernel'], '7.3.4-series')
        self.assertEqual([t.name for t in r.tests], ['perf_metrics_test', *QUICK])
        self.assertEqual(r.tests[0].seconds, 26)
        self.assertEqual(list(r.tests[0].subtests),
                         [('context_switch', PASSED), ('virtualization_disabled', SKIPPED)])
        self.assertEqual(r.totals['pass'], 7)

    def test_broken_logs(self):
        for text, why in ((brief().rpartition('ok 7')[0], '6 results of 7'), ('KTAP version 1\n', 'no plan'),
                          (brief('msrs_test').replace('fail:1', 'fail:0'), '1 tests failed, not 0')):
            self.assertIn(why, results(text).broken())

    def test_directives(self):
        r = results('1..2\nok 1 a # SKIP no such CPU\nnot ok 2 b # TODO fails on the base kernel too\n')
        self.assertEqual([(t.status, t.reason) for t in r.tests],
                         [(SKIPPED, 'no such CPU'), (KNOWN, 'fails on the base kernel too')])

    def test_what_is_said_is_comparable(self):
        one, other = (results(brief('msrs_test', pid)).tests[4].said() for pid in (42, 4711))
        self.assertEqual(one, other)
        self.assertIn('Wanted 0x56789000', one)
        lines = (ASSERTION.format(pid=42) + '#       FAIL  global.a\nnot ok 1 global.a\n#  RUN  global.b').split('\n')
        test = results('\n'.join(['1..1', *('  ' + line for line in lines), 'not ok 1 c'])).tests[0]
        self.assertTrue(test.said().endswith('got 0x123456789000; not ok 1 global.a'), test.said())


class JudgeTest(LogsTest):
    """Cells of the lab."""

    def test_a_sound_cell(self):
        self.assertEqual(Cell('spr', 'brief').judge(results(brief())), ([], []))

    def test_problems(self):
        for text, problem in (
                (brief('msrs_test'), 'msrs_test: expected passed, found 1 x failed'),
                (brief('msrs_test').replace('exit status 254', 'exit status 143'), 'msrs_test hangs'),
                (brief().replace('state_test', 'other_test'), 'state_test: expected passed, found no result'),
                (brief().replace('1 perf_metrics_test # 26s', '1 perf_metrics_test # SKIP nothing to do'),
                 'expected passed, found 1 x skipped'),
                (brief().replace('virtualization stays enabled', "can't open host events"), 'leaves something out'),
                (brief().replace('by up to 0,', 'by up to 1,'), 'leaves something out: # # Metrics read back are off'),
                (brief().replace('  TAP', '# # Nothing: 0x1 or 0x0, not compared\n  TAP', 1), 'leaves something out')):
            problems, names = Cell('spr', 'brief').judge(results(text))
            self.assertIn(problem, '; '.join(problems))
            self.assertEqual(names, ['msrs_test'] if 'not ok' in text else [])

    def test_another_host(self):
        for words in ('icl', 'spr 2-cpus', 'spr fep', 'spr no-mediated', 'spr no-ept', 'spr no-apicv', 'spr debug'):
            with self.assertRaisesRegex(Broken, 'not the host'):
                Cell(*words.split(), 'brief').judge(results(brief()))

    def test_unknown_words(self):
        for words in ([], ['spr', 'breif'], ['z80'], ['spr,odd']):
            with self.assertRaisesRegex(Broken, 'unknown'):
                Cell(*words)

    def test_readings(self):
        self.assertEqual(Cell('spr,strict,pmi-late', 'brief').readings, ['strict', 'pmi-late'])
        several = [Cell(f'icl,random-{n}').readings for n in range(20)]
        self.assertEqual(Cell('spr,random-7').readings, several[7])
        self.assertGreater(len({tuple(chosen) for chosen in several}), 15)
        for chosen in several:
            self.assertFalse({'strict', 'others'} & set(chosen))
            questions = [name.split('-')[0] for name in chosen]
            self.assertEqual(len(questions), len(set(questions)))

    def test_where_perf_metrics_test_skips(self):
        for words, reason in ((['skx'], 'fixed counter 3'), (['amd'], 'host_cpu_is_intel'),
                              (['spr', 'no-mediated'], 'mediated PMU is off'), (['icl', 'base'], 'lack it')):
            self.assertIn(reason, Cell(*words).topdown())
        for cpu in CPUS:
            self.assertEqual(Cell(cpu).topdown() == PASSED, CPUS[cpu]['topdown'] == '1')

    def test_restless_tasks(self):
        cell = Cell('spr', 'restless', runs=1)
        tasks = ''.join(f'# restless every {p} us: CPU 0 woke up 99 times, once in {p + 9} us\n'
                        for p in (1000, 200, 60))
        text = FACTS + '1..1\n' + TOPDOWN.replace('ok 1 perf', tasks + 'ok 1 perf')
        self.assertEqual(cell.judge(results(text))[0], [])
        with self.assertRaisesRegex(Broken, '2 tasks beside it'):
            cell.judge(results(text.replace('# restless every 60', '# every 60')))
        with self.assertRaisesRegex(Broken, 'once in 6900 us'):
            cell.judge(results(text.replace('once in 69 us', 'once in 6900 us')))

    def test_the_base_kernel_decides(self):
        cell = 'spr', 'topdown'
        self.write('results.tap', brief('msrs_test'))
        self.assertEqual(list(judge('judge', self.logs, *cell)), ['msrs_test'])
        self.write('base/results.tap', brief('msrs_test', 4711))
        self.assertEqual(list(judge('compare', self.logs, *cell)), [])
        self.assertEqual(read_results(self.logs / 'cell.tap').count(), {PASSED: 6, KNOWN: 1})
        self.assertIn('msrs_test: also on the base kernel, exit status 254', (self.logs / 'known').read_text())
        for here, there, problem in ((brief('msrs_test'), brief(), 'not as on the base kernel: msrs_test: failed'),
                                     (brief('msrs_test').replace(' # exit', ' # SKIP exit').replace('not ok', 'ok'),
                                      brief('msrs_test'), 'not as on the base kernel: msrs_test: skipped'),
                                     (brief('msrs_test'), FACTS, 'no result on the base kernel')):
            self.write('results.tap', here)
            self.write('base/results.tap', there)
            with self.assertRaisesRegex(Failed, problem):
                list(judge('compare', self.logs, *cell))
            self.assertFalse(read_results(self.logs / 'cell.tap').count()[KNOWN])


class CostsTest(LogsTest):
    """What exits cost."""

    def costs(self, kernel, change=lambda use, n, cost: cost, host=(400, 200, 600), reads=40):
        """Costs of a kernel on which all exits of a kind cost the same, unless changed."""
        noted = 'mark 1 1 1 1\nmark 9999 {} {} {}\n'.format(*host)
        for use in USES[:USES_ON_BASE] if kernel == 'base' else USES:
            noted += '18 9 9 9 9\n'
            for n in range(40):
                noted += '30 {} {} {} {}\n'.format(*change(use, n, (6000, 20, 4, 22)))
                noted += '10 {} {} {} {}\n'.format(*change(use, PUTS, (2000, 18, 3, 22)))
            noted += '18 9 9 9 9\n'
        noted += '15 7 7 7 7\n' * reads
        self.write(f'{kernel}/noted', noted)
        self.write(f'{kernel}/results.tap', '1..1\n# @ perf record -e slots: 100\nok 1 host_costs_test\n')
        return Costs(self.logs, kernel)

    def dearer(self, change=lambda use, n, cost: cost, **more):
        """What is dearer than on a base where all exits cost the same."""
        return list(compare_costs(self.costs('series', change, **more), self.costs('base')))

    def test_the_same(self):
        self.assertEqual(self.dearer(), [])
        lines = list(costs_tables(self.logs))
        self.assertRegex(lines[2], 'slots +4.000 +4.000 +2.000 +2.000 +6.000 +6.000$')
        self.assertIn('6000   6000         20     20', [line for line in lines if line.startswith('nothing   ')][1])
        self.assertEqual((self.logs / 'exit-costs.txt').read_text().splitlines(), lines)

    def test_dearer_exits(self):
        for column, delta, use in ((0, 21, 'after topdown'), (1, 1, 'nothing *'), (2, 1, 'counters'),
                                   (3, 3, 'topdown')):
            said = self.dearer(lambda u, n, cost, column=column, delta=delta, use=use:
                               tuple(v + delta * (i == column and u == use) for i, v in enumerate(cost)))
            self.assertEqual(len([s for s in said if s.startswith(use + ', ')]), 2, said)
            with self.assertRaisesRegex(Failed, 'dearer than on the base'):
                list(costs_tables(self.logs))

    def test_what_may_be(self):
        self.assertEqual(self.dearer(lambda use, n, cost: (
            cost[0] + 20, *cost[1:3], cost[3] + 2 * (use == 'topdown'))), [])

    def test_an_end_that_comes_late(self):
        def late(puts):
            return self.dearer(lambda use, n, cost: (*cost[:3], cost[3] + 2 * (use == 'after topdown' and n < puts)))
        self.assertEqual(late(PUTS), [])
        self.assertIn('24 RDPMCs still after', '; '.join(late(PUTS + 1)))

    def test_a_dearer_host(self):
        self.assertEqual(self.dearer(host=(405, 205, 605)), [])
        for host, dearer in (((406, 200, 600), '4.060 WRMSRs'), ((400, 300, 600), '3.000 RDMSRs'),
                             ((400, 200, 700), '7.000 RDPMCs')):
            self.assertIn(dearer, '; '.join(self.dearer(host=host)))

    def test_more_reads_that_exit(self):
        self.assertEqual(self.dearer(reads=39), [])
        self.assertEqual(self.dearer(reads=41), ['41 RDPMCs exited instead of 40'])
        with self.assertRaisesRegex(Broken, 'not been read'):
            self.costs('base', reads=39)

    def test_exits_that_differ(self):
        with self.assertRaisesRegex(Broken, 'not alike'):
            self.costs('series', lambda use, n, cost: (cost[0] + n, *cost[1:]))


PROBED = {'H1': 'kept', 'H2': 'zero', 'H3': 'faults', 'H4': 'same', 'H5': 'exact', 'H6': 'if-asked',
          'H7': 'stops', 'H8': 'works', 'H9': 'same', 'H10': 'set', 'H11': 'absent', 'H12': 'prompt',
          'H13': 'any', 'H14': 'sets'}
REFUSED = '1..1\n  TAP version 13\n  1..1\n  ok 1 no PERF_METRICS # exit status 2\nok 1 probe_test # 1s'


def probed(ending='ok 1 probe_test # 5s', in_json=None, **answers):
    """Results of probe_test, with other answers than the likely ones, and with others as JSON."""
    answers = PROBED | answers
    objects = [{'id': id_, 'answer': answer, 'default': PROBED[id_]}
               for id_, answer in (answers | (in_json or {})).items()]
    lines = [f'{id_:4}{answer:20}{PROBED[id_]:10}question: values' for id_, answer in answers.items()]
    lines += json.dumps({'answers': objects}, indent=1).splitlines()
    return results('\n'.join(['1..1', *('  # ' + line for line in lines), '  ok 1 answers # exit status 0', ending]))


class ProbeTest(unittest.TestCase):
    """What the probe says, held against what was chosen."""

    def test_the_chosen_one(self):
        for cpu, answers in (('icl', {}), ('icl,slots-clears', {'H1': 'slots-clears'}),
                             ('spr,upper-ignored', {'H3': 'no-question'}),
                             ('icl,slots-rescales', {'H1': 'slots-rescales', 'H6': 'cannot-tell'}),
                             ('icl,slots-rescales,overflow-undefined,running-undefined',
                              {'H1': 'slots-rescales', 'H6': 'cannot-tell', 'H8': 'running-undefined'})):
            self.assertEqual(judge_probe(cpu, probed(**answers)), [])
        for cpu in ('skx', 'amd'):
            self.assertEqual(judge_probe(cpu, results(REFUSED)), [])

    def test_problems(self):
        for cpu, said, problem in (
                ('icl', probed(H1='slots-clears'), 'H1: slots-clears, which the CPU does not do'),
                ('icl', probed(H4='writes-differ'), 'H4: writes-differ, which the CPU does not do'),
                ('icl', probed(H13='faults'), 'H13: faults, which the CPU does not do'),
                ('spr', probed(), 'H3: faults, which the CPU does not do'),
                ('icl,slots-clears', probed(), 'not named: slots-clears'),
                # All that is undefined.
                ('icl,strict', probed(H1='slots-undefined', H8='running-undefined'),
                 'not named: half-undefined; not named: metrics-undefined; not named: overflow-undefined'),
                ('icl', probed(in_json={'H5': 'sums-loose'}),
                 "other answers as JSON: [('H5', 'exact', 'exact'), ('H5', 'sums-loose', 'exact')]"),
                ('icl', probed('not ok 1 probe_test # exit status 1, 5s'), 'probe_test: failed, exit status 1')):
            self.assertEqual('; '.join(judge_probe(cpu, said)), problem)

        for cpu, said, problem in (('skx', probed(), 'has no PERF_METRICS'), ('amd', probed(), 'has no PERF_METRICS'),
                                   ('icl', results(REFUSED), 'not 14 answers')):
            self.assertIn(problem, judge_probe(cpu, said)[0])


class PrintTest(LogsTest):
    """Tables, JUnit and the page."""

    def setUp(self):
        super().setUp()
        for cell, failing in (('spr', None), ('icl', 'msrs_test')):
            self.write(f'lab-{cell}-brief/results.tap', brief(failing))
            self.write(f'lab-{cell}-brief/cell.tap', brief(failing))
        self.write('gates.tap', 'KTAP version 1\n1..4\nok 1 checkpatch # 1m05s\n# error: <msrs_test> & co\n'
                                'not ok 2 lab icl brief # 70s\nok 3 lab spr brief # 60s\n')
        # A guest may differ in the last digit of one metric.
        self.write('series/results.tap', '# @version kernel 7.3.4-series\n' + ''.join(
            f'  # @ {where} group memory retiring={retiring} bad-spec=9.50 fe-bound=20.00 be-bound=50.00 '
            'heavy-ops=1.00 br-mispredict=9.00 fetch-lat=10.00 mem-bound=40.00 slots=1000000 running=100.0\n'
            for where, retiring in (('host', 20.5), ('guest', 20.9))))
        self.write('base/results.tap', '# @version kernel 7.3.4-base\n'
                                       '# @ guest topdown memory error: topdown is not there\n'
                                       '# @ guest raw memory retiring=0 be-bound=0 slots=1000500 running=100.0\n')
        self.write('costs/exit-costs.txt', 'nothing         CPUID        2425   2435\n')

    def test_summary(self):
        self.assertIn(': 7 passed, 0 failed, 0 skipped', next(summary(self.logs / 'lab-spr-brief', 7, 'series')))
        for cell, number in (('icl', 7), ('spr', 8)):
            said = summary(self.logs / f'lab-{cell}-brief', number, 'series')
            if cell == 'icl':
                self.assertIn('failed: msrs_test: failed, exit status 254; ', next(said))
            with self.assertRaises(Failed):
                list(said)

    def test_table(self):
        lines = list(table(self.logs, 'lab spr brief', 'lab icl brief', 'lab amd'))
        for line, expected in zip(lines[1:], (r'spr brief +7 +0 +0 +0', r'icl brief +6 +1 +0 +0', 'amd +no result')):
            self.assertRegex(line, f'^# {expected}$')

    def test_junit(self):
        root = ElementTree.fromstring('\n'.join(junit(self.logs / 'gates.tap', self.logs / 'lab-icl-brief/cell.tap')))
        gates, cell = root
        # The fourth gate is missing, which is a failure, too.
        self.assertEqual((gates.get('tests'), gates.get('failures')), ('4', '2'))
        self.assertEqual(gates[1].find('failure').text, '# error: <msrs_test> & co')
        self.assertEqual((cell.get('name'), cell.get('failures')), ('lab-icl-brief', '1'))
        self.assertEqual(cell[0].get('time'), '26')

    def test_demo(self):
        demo = Demo(self.logs)
        self.assertAlmostEqual(demo.differences('group', 'memory')['retiring'], 0.4)
        self.assertAlmostEqual(demo.comparison('base', 'raw', 'memory')['slots'], 0.05)
        text = '\n'.join(demo_tables(self.logs))
        for part in ('SLOTS +0.000%', 'topdown is not there', 'uncounted', '5 of 8', 'by 0.4 in user space alone'):
            self.assertIn(part, text)
        for side in ('series', 'base'):
            self.write(f'{side}/results.tap', 'KTAP version 1\n')
        with self.assertRaisesRegex(Broken, 'nothing was measured'):
            Demo(self.logs)

    def test_page(self):
        text = page.Page(self.logs, self.logs).html()
        for part in ('2 of 4', '1 FAILED', '1 without a result', '&lt;msrs_test&gt; &amp; co', '0.4 points',
                     '2425   2435', 'FAILED: lab icl brief</strong> in msrs_test', 'costs/exit-costs.txt',
                     'topdown is not there'):
            self.assertIn(part, text)
        self.assertNotIn('<msrs_test>', text)
        # The verdict comes first.
        self.assertLess(text.index('2 of 4'), text.index('class="bar"'))

    def test_page_without_measurements(self):
        text = page.Page('', self.logs).html()
        self.assertIn('<code>make demo</code> makes them', text)
        self.assertNotIn('class="bar"', text)


if __name__ == '__main__':
    unittest.main()
