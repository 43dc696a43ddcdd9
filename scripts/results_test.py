#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of results.py and page.py on canned logs, a broken and a truncated one among them."""

import json
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import page
from results import (Broken, Cell, Costs, CPUS, KNOWN, PASSED, PUTS, SKIPPED, USES, USES_ON_BASE, compare,
                     compare_costs, costs_tables, demo_of_output, demo_tables, demo_tsv, finish_cell, judge, judge_probe,
                     junit, mark_known, read_demo, read_ktap, said, split_time, summary, table)

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


def brief(failing=None, pid=42, plan=7, totals=True):
    """Results of a brief cell, in which one of the quick tests may fail."""
    text = FACTS + f'1..{plan}\n' + TOPDOWN
    for number, name in enumerate(QUICK, 2):
        text += f'# running {name}\n'
        if name == failing:
            text += ASSERTION.format(pid=pid) + f'not ok {number} {name} # exit status 254, 1s\n'
        else:
            text += f'ok {number} {name} # 2s\n'
    failed = 1 if failing else 0
    if totals:
        text += f'# Totals: pass:{7 - failed} fail:{failed} xfail:0 xpass:0 skip:0 error:0\n'
    return text


def results(text):
    """Results of a text."""
    return read_ktap(text.splitlines())


class ReadTest(unittest.TestCase):
    """read_ktap() and what it is made of."""

    def test_times(self):
        for text, expected in (('26s', ('', 26)), ('2m05s', ('', 125)), ('exit status 1, 5s', ('exit status 1', 5)),
                               ('differs by 0.08 %', ('differs by 0.08 %', None)), ('', ('', None))):
            self.assertEqual(split_time(text), expected)

    def test_a_sound_log(self):
        r = results(brief())
        self.assertIsNone(r.broken())
        self.assertEqual(r.facts['kernel'], '7.3.4-series')
        self.assertEqual([t.name for t in r.tests], ['perf_metrics_test', *QUICK])
        self.assertEqual(r.tests[0].seconds, 26)
        self.assertEqual(list(r.tests[0].subtests),
                         [('context_switch', PASSED), ('virtualization_disabled', SKIPPED)])
        self.assertEqual(r.totals['pass'], 7)

    def test_a_truncated_log(self):
        self.assertIn('6 results of 7', results(brief().rpartition('ok 7')[0]).broken())

    def test_a_log_without_a_plan(self):
        self.assertIn('no plan', results('KTAP version 1\n').broken())

    def test_totals_that_disagree(self):
        text = brief('msrs_test').replace('fail:1', 'fail:0')
        self.assertIn('1 tests failed, not 0', results(text).broken())

    def test_directives(self):
        r = results('1..2\nok 1 a # SKIP no such CPU\nnot ok 2 b # TODO fails on the base kernel too\n')
        self.assertEqual([(t.status, t.reason) for t in r.tests],
                         [(SKIPPED, 'no such CPU'), (KNOWN, 'fails on the base kernel too')])

    def test_what_is_said_is_comparable(self):
        one, other = (said(results(brief('msrs_test', pid)).tests[4]) for pid in (42, 4711))
        self.assertEqual(one, other)
        self.assertIn('Wanted 0x56789000', one)


class JudgeTest(unittest.TestCase):
    """Cells of the lab."""

    words = ['spr', 'brief']

    def problems(self, text, words=None):
        return judge(Cell(words or self.words), results(text))

    def test_a_sound_cell(self):
        self.assertEqual(self.problems(brief()), ([], []))

    def test_a_test_that_fails(self):
        problems, names = self.problems(brief('msrs_test'))
        self.assertIn('msrs_test: expected passed, found 1 x failed', problems[0])
        self.assertEqual(names, ['msrs_test'])

    def test_a_test_that_is_missing(self):
        self.assertIn('state_test: expected passed, found no result',
                      self.problems(brief().replace('state_test', 'other_test'))[0][0])

    def test_a_test_that_skips(self):
        text = brief().replace('ok 1 perf_metrics_test # 26s', 'ok 1 perf_metrics_test # SKIP nothing to do')
        self.assertIn('expected passed, found 1 x skipped', self.problems(text)[0][0])

    def test_a_part_that_is_left_out(self):
        text = brief().replace('virtualization stays enabled', "can't open host events")
        self.assertIn('leaves something out', self.problems(text)[0][0])

    def test_a_test_that_hangs(self):
        text = brief('msrs_test').replace('exit status 254', 'exit status 143')
        self.assertIn('msrs_test hangs', self.problems(text)[0])

    def test_another_host(self):
        for words in (['icl', 'brief'], ['spr', 'brief', '2-cpus'], ['spr', 'brief', 'fep'],
                      ['spr', 'brief', 'no-mediated'], ['spr', 'brief', 'no-ept'], ['spr', 'brief', 'no-apicv'],
                      ['spr', 'brief', 'debug']):
            with self.assertRaisesRegex(Broken, 'not the host'):
                self.problems(brief(), words)

    def test_unknown_words(self):
        for words in ([], ['spr', 'breif'], ['z80'], ['spr,odd']):
            with self.assertRaisesRegex(Broken, 'unknown'):
                Cell(words)

    def test_readings(self):
        self.assertEqual(Cell(['spr,strict,pmi-late', 'brief']).readings, ['strict', 'pmi-late'])
        several = [Cell([f'icl,random-{n}']).readings for n in range(20)]
        self.assertEqual(Cell(['spr,random-7']).readings, several[7])
        self.assertGreater(len({tuple(chosen) for chosen in several}), 15)
        for chosen in several:
            self.assertFalse({'strict', 'others'} & set(chosen))
            questions = [name.split('-')[0] for name in chosen]
            self.assertEqual(len(questions), len(set(questions)))

    def test_where_perf_metrics_test_skips(self):
        for words, reason in ((['skx'], 'fixed counter 3'), (['amd'], 'host_cpu_is_intel'),
                              (['spr', 'no-mediated'], 'mediated PMU is off'), (['icl', 'base'], 'lack it')):
            self.assertIn(reason, Cell(words).expectations()['perf_metrics_test'])
        for cpu in CPUS:
            passes = Cell([cpu]).expectations()['perf_metrics_test'] == PASSED
            self.assertEqual(passes, CPUS[cpu]['topdown'] == '1')

    def test_restless_tasks(self):
        cell = Cell(['spr', 'restless'], runs=1)
        tasks = ''.join(f'# restless every {p} us: CPU 0 woke up 99 times, once in {p + 9} us\n' for p in (1000, 200, 60))
        text = FACTS + '1..1\n' + TOPDOWN.replace('ok 1 perf', tasks + 'ok 1 perf')
        self.assertEqual(judge(cell, results(text))[0], [])
        with self.assertRaisesRegex(Broken, '2 tasks beside it'):
            judge(cell, results(text.replace('# restless every 60', '# every 60')))
        with self.assertRaisesRegex(Broken, 'once in 6900 us'):
            judge(cell, results(text.replace('once in 69 us', 'once in 6900 us')))

    def test_the_base_kernel_decides(self):
        here = results(brief('msrs_test'))
        problems, known = compare(here, results(brief('msrs_test', 4711)), ['msrs_test'])
        self.assertEqual((problems, list(known)), ([], ['msrs_test']))
        self.assertIn('not as on the base kernel', compare(here, results(brief()), ['msrs_test'])[0][0])
        self.assertIn('not as on the base kernel',
                      compare(results(brief()), results(brief('msrs_test')), ['msrs_test'])[0][0])
        self.assertIn('no result on the base kernel', compare(here, results(FACTS), ['msrs_test'])[0][0])
        marked = results('\n'.join(mark_known(brief('msrs_test').splitlines(), known)))
        self.assertEqual(marked.count(), {PASSED: 6, KNOWN: 1})


class CostsTest(unittest.TestCase):
    """What exits cost."""

    def costs(self, kernel, change=lambda use, n, cost: cost, wrmsrs=400):
        """Costs of a kernel on which ten exits of each kind cost the same, unless changed."""
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / kernel
            directory.mkdir()
            noted = 'mark 1 1 1 1\n' f'mark 9999 {wrmsrs} 5 6\n'
            for use in USES[:USES_ON_BASE] if kernel == 'base' else USES:
                noted += '18 9 9 9 9\n'
                for n in range(40):
                    noted += '30 {} {} {} {}\n'.format(*change(use, n, (6000, 20, 4, 22)))
                    noted += '10 {} {} {} {}\n'.format(*change(use, PUTS, (2000, 18, 3, 22)))
                noted += '18 9 9 9 9\n'
            (directory / 'noted').write_text(noted)
            (directory / 'results.tap').write_text('1..1\n# @ perf record -e slots: 100\nok 1 host_costs_test\n')
            return Costs(Path(scratch), kernel)

    def dearer(self, change, **more):
        """What is dearer than on a base where all exits cost the same."""
        return list(compare_costs(self.costs('series', change, **more), self.costs('base')))

    def test_the_same(self):
        self.assertEqual(self.dearer(lambda use, n, cost: cost), [])
        lines = list(costs_tables(self.costs('series'), self.costs('base')))
        self.assertRegex(lines[0], 'slots +4.000 +4.000')
        self.assertIn('6000   6000         20     20', [line for line in lines if line.startswith('nothing   ')][1])

    def test_dearer_exits(self):
        for column, delta, uses in ((0, 21, 'after topdown'), (1, 1, 'nothing *'), (2, 1, 'counters'), (3, 3, 'topdown')):
            said = self.dearer(lambda use, n, cost, c=column, d=delta, u=uses:
                               tuple(v + d * (i == c and use == u) for i, v in enumerate(cost)))
            self.assertEqual(len([s for s in said if s.startswith(uses + ', ')]), 2, said)

    def test_what_may_be(self):
        self.assertEqual(self.dearer(lambda use, n, cost: (cost[0] + 20, *cost[1:3], cost[3] + 2 * (use == 'topdown'))), [])

    def test_an_end_that_comes_late(self):
        def late(puts):
            return self.dearer(lambda use, n, cost: (*cost[:3], cost[3] + 2 * (use == 'after topdown' and n < puts)))
        self.assertEqual(late(PUTS), [])
        self.assertIn('24 RDPMCs still after', '; '.join(late(PUTS + 1)))

    def test_a_dearer_host(self):
        self.assertEqual(self.dearer(lambda use, n, cost: cost, wrmsrs=401), [])
        self.assertIn('4.020 WRMSRs', self.dearer(lambda use, n, cost: cost, wrmsrs=402)[0])

    def test_exits_that_differ(self):
        with self.assertRaisesRegex(Broken, 'not alike'):
            self.costs('series', lambda use, n, cost: (cost[0] + n, *cost[1:]))


PROBED = {'H1': 'kept', 'H2': 'zero', 'H3': 'faults', 'H4': 'same', 'H5': 'exact', 'H6': 'if-asked',
          'H7': 'stops', 'H8': 'works', 'H9': 'same', 'H10': 'set', 'H11': 'absent', 'H12': 'prompt'}


def probed(ending='ok 1 probe_test # 5s', in_json=None, **answers):
    """Results of probe_test, with other answers than the likely ones, and with others as JSON."""
    lines = ['1..1', '# running probe_test', '  TAP version 13', '  1..1']
    answers = PROBED | answers
    lines += [f'  # {id_:4}{answer:20}{PROBED[id_]:10}question: values' for id_, answer in answers.items()]
    said_ = [{'id': id_, 'answer': answer, 'default': PROBED[id_]} for id_, answer in (answers | (in_json or {})).items()]
    lines += ['  # ' + line for line in json.dumps({'answers': said_}, indent=1).splitlines()]
    return results('\n'.join([*lines, '  ok 1 answers # exit status 0', ending]))


class ProbeTest(unittest.TestCase):
    """What the probe says, held against what was chosen."""

    def test_the_chosen_one(self):
        self.assertEqual(judge_probe('icl', probed()), [])
        self.assertEqual(judge_probe('icl,slots-clears', probed(H1='slots-clears')), [])
        self.assertEqual(judge_probe('spr,upper-ignored', probed(H3='no-question')), [])

    def test_another_one(self):
        self.assertEqual(judge_probe('icl', probed(H1='slots-clears')), ['H1: slots-clears, which the CPU does not do'])
        self.assertEqual(judge_probe('icl', probed(H4='writes-differ')), ['H4: writes-differ, which the CPU does not do'])
        self.assertEqual(judge_probe('spr', probed()), ['H3: faults, which the CPU does not do'])

    def test_not_the_chosen_one(self):
        self.assertEqual(judge_probe('icl,slots-clears', probed()), ['not named: slots-clears'])

    def test_strict_is_all_that_is_undefined(self):
        problems = judge_probe('icl,strict', probed(H1='slots-undefined', H8='running-undefined'))
        self.assertEqual(problems, [f'not named: {what}-undefined' for what in ('half', 'metrics', 'overflow')])

    def test_json(self):
        self.assertIn('other answers as JSON', judge_probe('icl', probed(in_json={'H5': 'sums-loose'}))[0])

    def test_a_test_that_fails(self):
        self.assertIn('probe_test: failed', judge_probe('icl', probed('not ok 1 probe_test # exit status 1, 5s'))[0])

    def test_without_perf_metrics(self):
        refused = results('1..1\n  TAP version 13\n  1..1\n  ok 1 no PERF_METRICS # exit status 2\nok 1 probe_test # 1s')
        for cpu in ('skx', 'amd'):
            self.assertEqual(judge_probe(cpu, refused), [])
            self.assertIn('has no PERF_METRICS', judge_probe(cpu, probed())[0])
        self.assertIn('not twelve answers', judge_probe('icl', refused)[0])


class PrintTest(unittest.TestCase):
    """Tables, JUnit and the page."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.logs = Path(self.scratch.name)
        for name, text in (('lab-spr-brief', brief()), ('lab-icl-brief', brief('msrs_test'))):
            (self.logs / name).mkdir()
            (self.logs / name / 'results.tap').write_text(text)
            finish_cell(self.logs / name, Cell(['spr']), results(text), {})
        (self.logs / 'gates.tap').write_text(
            'KTAP version 1\n1..4\nok 1 checkpatch # 1m05s\n# error: <msrs_test> & co\n'
            'not ok 2 lab icl brief # 70s\nok 3 lab spr brief # 60s\n')
        for side in ('series', 'base'):
            (self.logs / side).mkdir()
            lines = ['# @version kernel 7.3.4-' + side, '# @command topdown perf stat --topdown']
            for where in ('host', 'guest'):
                if side == 'series':
                    # A guest may differ in the last digit of one metric.
                    lines.append(f'  # @ {where} group memory retiring={20.5 if where == "host" else 20.9} bad-spec=9.50 '
                                 'fe-bound=20.00 be-bound=50.00 heavy-ops=1.00 br-mispredict=9.00 fetch-lat=10.00 '
                                 'mem-bound=40.00 slots=1000000 running=100.0')
            if side == 'base':
                lines += ['# @ guest topdown memory error: topdown is not there',
                          '# @ guest raw memory retiring=0 be-bound=0 slots=1000500 running=100.0']
            (self.logs / side / 'results.tap').write_text('\n'.join(lines) + '\n')
        (self.logs / 'costs').mkdir()
        (self.logs / 'costs/exit-costs.tsv').write_text('base\tnothing\tCPUID\t2425\t18\t3\t22\n'
                                                        'series\tnothing\tCPUID\t2435\t18\t3\t22\n')

    def test_summary(self):
        line, fine = summary(self.logs / 'lab-spr-brief', 7)
        self.assertTrue(fine)
        self.assertIn(': 7 passed, 0 failed, 0 skipped', line)
        self.assertFalse(summary(self.logs / 'lab-icl-brief', 7)[1])
        self.assertFalse(summary(self.logs / 'lab-spr-brief', 8)[1])

    def test_table(self):
        lines = list(table(self.logs, ['lab spr brief', 'lab icl brief', 'lab amd']))
        self.assertRegex(lines[1], r'# spr brief +7 +0 +0 +0$')
        self.assertRegex(lines[2], r'# icl brief +6 +1 +0 +0$')
        self.assertRegex(lines[3], r'# amd +no result$')

    def test_junit(self):
        root = ElementTree.fromstring('\n'.join(junit([self.logs / 'gates.tap', self.logs / 'lab-icl-brief/cell.tap'])))
        gates, cell = root
        # The fourth gate is missing, which is a failure, too.
        self.assertEqual((gates.get('tests'), gates.get('failures')), ('4', '2'))
        self.assertEqual(gates[1].find('failure').text, '# error: <msrs_test> & co')
        self.assertEqual((cell.get('name'), cell.get('failures')), ('lab-icl-brief', '1'))
        self.assertEqual(cell[0].get('time'), '26')

    def test_demo(self):
        demo = demo_of_output(self.logs)
        self.assertAlmostEqual(demo.difference('group', 'memory', 'retiring'), 0.4)
        self.assertAlmostEqual(demo.count_off('base', 'raw', 'memory', 'group', 'slots'), 0.05)
        text = '\n'.join(demo_tables(demo))
        for part in ('SLOTS +0.000%', 'topdown is not there', 'uncounted', '5 of 8', 'by 0.4 in user space alone'):
            self.assertIn(part, text)
        (self.logs / 'demo.tsv').write_text('\n'.join(demo_tsv(demo)) + '\n')
        self.assertEqual(read_demo(self.logs / 'demo.tsv').values, demo.values)

    def test_nothing_measured(self):
        for side in ('series', 'base'):
            (self.logs / side / 'results.tap').write_text('KTAP version 1\n')
        with self.assertRaisesRegex(Broken, 'nothing was measured'):
            demo_of_output(self.logs)

    def test_page(self):
        (self.logs / 'demo.tsv').write_text('\n'.join(demo_tsv(demo_of_output(self.logs))) + '\n')
        text = page.Page(self.logs, self.logs).html()
        for part in ('2 of 4', '1 FAILED', '1 without a result', '&lt;msrs_test&gt; &amp; co', '0.4 points', '<td>2435</td>',
                     'FAILED: lab icl brief</strong> in msrs_test', 'costs/exit-costs.tsv', 'topdown is not there'):
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
