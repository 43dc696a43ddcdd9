#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""One HTML page, which needs nothing else, of what make demo and make test have found.

Usage: scripts/page.py DEMO-LOGS GATE-LOGS OUTPUT
  scripts/page.py /tmp/demo /tmp/test page.html
  scripts/page.py '' /tmp/test page.html          without measurements

Missing results are left out; the page says which command produces them. Every number
says which run it is from.
"""

import re
import sys
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from results import (Broken, CPUS, FAILED, KNOWN, LEVEL_1, LEVEL_2, METRICS, PASSED, REPO, SKIPPED,
                     gate_logs, read_demo, read_ktap, read_results)

PART = dict(zip(LEVEL_1, LEVEL_2))
TITLE = {
    'retiring': 'Retiring', 'heavy-ops': 'heavy operations',
    'bad-spec': 'Bad speculation', 'br-mispredict': 'mispredicts',
    'fe-bound': 'Frontend bound', 'fetch-lat': 'fetch latency',
    'be-bound': 'Backend bound', 'mem-bound': 'memory bound',
}
MEANING = {
    'retiring': 'did useful work',
    'heavy-ops': 'instructions of several micro-operations',
    'bad-spec': 'were lost to wrong speculation',
    'br-mispredict': 'branches predicted wrongly',
    'fe-bound': 'were empty as the frontend delivered too little',
    'fetch-lat': 'nothing came, e.g. for a cache miss',
    'be-bound': 'were empty as the backend couldn’t take more',
    'mem-bound': 'waiting for loads and stores',
}
# What is special about a cell, the least special word first.
WORDS = ['brief', 'all', 'topdown', '2-cpus', 'no-ept', 'no-apicv', 'no-nested', 'no-mediated', 'fep',
         'debug', 'restless', 'base']


def text(value):
    """Whatever was read from a file, for HTML."""
    return escape(re.sub(r'[^\t\n\x20-\x7e–’…−]', '?', str(value)))


def code(value):
    """The same, as code."""
    return f'<code>{text(value)}</code>'


def tag(name, content, **attributes):
    """An element; class_ stands for class."""
    words = ''.join(f' {k.rstrip("_").replace("_", "-")}="{text(v)}"'
                    for k, v in attributes.items() if v)
    return f'<{name}{words}>{content}</{name}>'


def signed(value, digits):
    """A difference with its sign, unless nothing is left of it."""
    string = f'{value:+.{digits}f}'
    if not float(string):
        return f'{0:.{digits}f}'
    return string.replace('-', '−')


def plural(number, noun):
    """1 gate, 2 gates"""
    return f'{number} {noun}' + ('' if number == 1 else 's')


def when(path):
    """The time of a file."""
    return datetime.fromtimestamp(Path(path).stat().st_mtime, timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


def scroll(label, content, class_='data'):
    """A table that scrolls on its own."""
    return (f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0">\n'
            f'<table class="{class_}">\n{content}</table>\n</div>\n')


def head(*columns):
    """The head of a table."""
    return '<thead><tr>' + ''.join(f'<th scope="col">{c}</th>' for c in columns) + '</tr></thead>\n'


class Page:
    """The results of a run of make demo and one of make test, either of which may be missing."""

    def __init__(self, demo_logs, gate_logs_):
        self.demo_logs = Path(demo_logs).resolve() if demo_logs else None
        self.logs = Path(gate_logs_).resolve() if gate_logs_ else None
        self.demo = read_demo(self.demo_logs / 'demo.tsv') if self.demo_logs else None
        lines = (self.logs / 'gates.tap').read_text(errors='replace').splitlines() if self.logs else []
        self.gates = read_ktap(lines)
        self.cells = [g for g in self.gates.tests if g.name.startswith('lab ')]
        self.results = {}
        for cell in self.cells:
            try:
                self.results[cell.name] = read_results(gate_logs(self.logs, cell.name) / 'cell.tap')
            except Broken:
                self.results[cell.name] = read_ktap([])

    def source(self, path):
        """Which run a number is from."""
        run = self.logs if self.logs and path.is_relative_to(self.logs) else self.demo_logs
        return f'<p class="none">From {code(path.relative_to(run.parent))}, {when(path)}.</p>\n'

    # The verdict.

    def tiles(self):
        """What the rest says, in a few numbers."""
        tiles = []
        if self.gates.tests:
            failed = self.gates.count()[FAILED]
            planned = max(self.gates.plan or 0, len(self.gates.tests))
            words = 'gates passed'
            if failed:
                words += f'; <strong>{failed} FAILED</strong>'
            if planned > len(self.gates.tests):
                words += f'; <strong>{planned - len(self.gates.tests)} without a result</strong>'
            words += f'. {plural(len(self.cells), "cell")} of the lab among them, each KVM selftests on ' \
                     'a kind of emulated host'
            bad = failed or planned > len(self.gates.tests)
            tiles.append((f'{len(self.gates.tests) - failed} of {planned}', words, 'bad' if bad else ''))
        if self.demo:
            worst = {what: self.demo.worst(what) for what in ('group', 'busy', 'topdown')}
            words = 'at most between a metric of the guest and of the host, in user space'
            for what, how in (('busy', 'beside other events'), ('topdown', 'with the kernel counted, too')):
                if worst[what] is not None:
                    words += f'; {worst[what]:.1f} {how}'
            if worst['group'] is not None:
                tiles.append((f"{worst['group']:.1f} points", words, ''))
            counters = [max((n for w in self.demo.workloads if
                             (n := self.demo.get(side, 'guest', what, w, 'gp-counters')) is not None),
                            default=None) for side, what in (('series', 'group'), ('base', 'raw'))]
            if counters[0] is not None:
                words = 'general-purpose counters taken by topdown in a guest'
                if counters[1] is not None:
                    words += f'; without the series, {counters[1]:.0f} by level 1 alone'
                tiles.append((f'{counters[0]:.0f} of 8', words, ''))
        return ''.join(f'<div><dt>{words}</dt><dd class="{class_}">{figure}</dd></div>\n'
                       for figure, words, class_ in tiles)

    def trouble(self):
        """What failed, or came to no result."""
        html = ''
        if self.gates.plan and len(self.gates.tests) < self.gates.plan:
            html += (f'<p class="bad">Only {len(self.gates.tests)} of {self.gates.plan} gates came to '
                     'an end in this run.</p>\n')
        for gate in self.gates.tests:
            if gate.status != FAILED:
                continue
            html += f'<p class="bad"><strong>FAILED: {text(gate.name)}</strong>'
            tests = [t.name for t in self.results[gate.name].tests if t.status == FAILED] \
                if gate.name in self.results else []
            if tests:
                html += ' in ' + text(', '.join(tests))
            said = [line.removeprefix('# ') for line in gate.output]
            error = [line for line in said if line.startswith('error: ')] or said
            if error:
                html += '<br>' + text(error[-1])
            html += '</p>\n'
        return html

    # Topdown on host and guest.

    def bar(self, where, what, workload):
        """Level 1 side by side, each with its part of level 2 at the foot."""
        segments = ''
        for metric in LEVEL_1:
            share = self.demo.get('series', where, what, workload, metric)
            if not share:
                continue
            part = self.demo.get('series', where, what, workload, PART[metric]) or 0
            label = f'<b>{share:.1f}</b>' if share >= 10 else ''
            segments += (f'<span class="{metric}" style="flex-grow:{share:.2f}">{label}'
                         f'<i style="width:{100 * min(1, part / share):.1f}%"></i></span>')
        return f'<span>{where}</span><div class="bar">{segments}</div>' if segments else ''

    def figure(self, what, workload):
        """A workload: bars and numbers of host and guest."""
        get, rows = self.demo.get, ''
        for metric in METRICS:
            host, guest = (get('series', w, what, workload, metric) for w in ('host', 'guest'))
            if host is None and guest is None:
                continue
            difference = self.demo.difference(what, workload, metric)
            swatch = f'<span class="swatch {metric}"></span>' if metric in PART else \
                '<span class="swatch"><i></i></span>'
            cells = ''.join(f'<td>{"–" if v is None else format(v, ".1f")}</td>' for v in (host, guest))
            rows += (f'<tr class="{"whole" if metric in PART else "part"}"><th scope="row">{swatch}{TITLE[metric]}</th>'
                     f'{cells}<td>{"–" if difference is None else signed(difference, 1)}</td></tr>\n')
        host, guest = (get('series', w, what, workload, 'slots') for w in ('host', 'guest'))
        if host and guest:
            rows += (f'<tr class="slots"><th scope="row">SLOTS, millions</th><td>{host / 1e6:.2f}</td>'
                     f'<td>{guest / 1e6:.2f}</td><td>{signed(100 * (guest / host - 1), 3)} %</td></tr>\n')
        errors = ''.join(tag('p', text(f'{w}: not measured: {e}'), class_='bad') for w in ('host', 'guest')
                         if (e := get('series', w, what, workload, 'error')))
        if not rows and not errors:
            return ''
        about = re.search(r'/\* ([^*]*?) \*/\nstatic void ' + re.escape(workload) + r'\(',
                          (REPO / 'tools/guest/workload.c').read_text())
        bars = '\n'.join(filter(None, (self.bar(w, what, workload) for w in ('host', 'guest'))))
        table = (f'<div class="bars" aria-hidden="true">{bars}</div>\n'
                 f'<table aria-label="{text(workload)}, percent of slots">\n'
                 + head('percent of slots', 'host', 'guest', 'difference')
                 + f'<tbody>\n{rows}</tbody>\n</table>\n') if rows else ''
        small = f' <small>{text(about[1])}</small>' if about else ''
        return f'<figure>\n<figcaption><h4>{text(workload)}</h4>{small}</figcaption>\n{table}{errors}</figure>\n'

    def measurement(self, what, title, words):
        """All workloads, measured in one way."""
        figures = ''.join(self.figure(what, workload) for workload in self.demo.workloads)
        if not figures:
            return ''
        worst, command = self.demo.worst(what), self.demo.commands.get(('series', what))
        if worst is not None:
            words += f' Host and guest differ by <strong>{worst:.1f} points</strong> at most.'
        return (f'<h3>{title}</h3>\n<p>{words}</p>\n' + (tag('pre', text(command)) if command else '')
                + f'<div class="figures">\n{figures}</div>\n')

    def topdown(self):
        """Host and guest."""
        if not self.demo:
            return '<p class="none">No results: <code>make demo</code> makes them.</p>'
        legend = ''.join(
            f'<div><dt><span class="swatch {m}"></span>{TITLE[m]}</dt><dd>{MEANING[m]}; of these '
            f'<b>{TITLE[PART[m]]}</b>: {MEANING[PART[m]]}</dd></div>\n' for m in LEVEL_1)
        return (self.source(self.demo_logs / 'demo.tsv') +
                '<p>Each workload spends its slots in another way. It ran under perf on the emulated host, then in a '
                'guest of that host. The four metrics of level 1 add up to 100 %; the thin line at the foot of each '
                'is its part of level 2. A metric is 8 bits wide: nothing below 0.4 points has a meaning, on hosts or '
                f'in guests.</p>\n<h3>Slots that …</h3>\n<dl class="legend">\n{legend}</dl>\n'
                + self.measurement('group', 'User space alone', 'SLOTS and the eight metrics as an explicit group.')
                + self.measurement('topdown', 'User space and kernel', 'What <code>perf stat --topdown</code> prints.'))

    # What a guest can do without the series.

    def off(self, percent):
        """A count's deviation."""
        return '–' if percent is None else f'{signed(percent, 3)} %'

    def without_row(self, title, side, what, workload):
        """The cells of a row, or None."""
        get = self.demo.get
        row_head = f'<th scope="row" class="text">{title}</th>'
        if error := get(side, 'guest', what, workload, 'error'):
            return row_head + f'<td colspan="6" class="text bad">{text("not measured: " + error)}</td>'
        if get(side, 'guest', what, workload, 'slots') is None:
            return None
        counters, running = (get(side, 'guest', what, workload, m) for m in ('gp-counters', 'running'))
        time = '–' if running is None else f'{running:.1f} %' if running >= 100 else \
            f'<b>{running:.1f} %, multiplexed</b>'
        wanted = f'<b>{counters:.0f} of 8</b>' if counters > 8 else f'{counters:.0f} of 8'
        level_1 = '<b>uncounted</b>' if self.demo.uncounted(side, what, workload) else \
            f'{self.demo.off(side, what, workload):.1f} points'
        level_2 = get(side, 'guest', what, workload, 'heavy-ops') is not None
        branches = self.off(self.demo.count_off(side, what, workload, 'busy', 'branches')) if 'busy' in what else ''
        return row_head + ''.join(f'<td>{c}</td>' for c in (
            '1, 2' if level_2 else '1', wanted, time, level_1,
            self.off(self.demo.count_off(side, what, workload, 'group', 'slots')), branches))

    def without(self):
        """With and without."""
        if not self.demo:
            return '<p class="none">No results: <code>make demo</code> makes them.</p>'
        bodies = ''
        for title, series, base in (('Topdown alone', 'group', 'raw'),
                                    ('Topdown and six more events on general-purpose counters', 'busy', 'raw-busy')):
            body = ''
            for workload in self.demo.workloads:
                rows = [r for r in (self.without_row('with the series: metrics', 'series', series, workload),
                                    self.without_row('base kernel: raw events', 'base', base, workload)) if r]
                first = f'<th scope="rowgroup" rowspan="{len(rows)}">{text(workload)}</th>'
                for row in rows:
                    body += f'<tr>{first}{row}</tr>\n'
                    first = ''
            if body:
                bodies += (f'<tbody><tr><th scope="colgroup" colspan="8" class="group">{title}</th></tr>\n'
                           f'{body}</tbody>\n')
        errors = [e for w in self.demo.workloads if (e := self.demo.get('base', 'guest', 'topdown', w, 'error'))]
        said = '<p>What <code>perf stat --topdown</code> says there:</p>' + tag('pre', text(errors[0])) if errors else ''
        uncounted = '<p><b>Uncounted</b>: the emulated CPU has no events for these metrics, other than ' \
                    'PERF_METRICS.</p>' if 'uncounted' in bodies else ''
        return (self.source(self.demo_logs / 'demo.tsv') +
                '<p>On the base kernel a guest has neither SLOTS nor PERF_METRICS, but eight general-purpose counters. '
                'Raw events for SLOTS and level 1 want five of them; level 2 was not tried that way. If there are '
                'fewer counters than events, perf lets the events take turns and extrapolates. The numbers are a '
                f'guest’s, compared with what the host of the series counts.</p>\n{said}'
                + scroll('With and without the series', head(
                    'workload', 'kernel and events', 'level', 'general-purpose counters wanted', 'time counted',
                    'level 1 off by', 'SLOTS off by', 'branches off by') + bodies) + uncounted)

    # What a VM-Exit costs.

    def exits(self):
        """What the gate costs has counted."""
        path = self.logs / 'costs/exit-costs.tsv' if self.logs else None
        if not path or not path.exists():
            return '<p class="none">No results: the gate <code>costs</code> of <code>make test</code> makes them.</p>'
        costs, uses = {}, []
        for line in path.read_text().splitlines():
            kernel, use, kind, *numbers = line.split('\t')
            costs[kernel, use, kind] = numbers
            if use not in uses:
                uses.append(use)
        rows = ''
        for use in uses:
            for kind in ('CPUID', 'port'):
                cells = zip(*(costs.get((k, use, kind), ['–'] * 4) for k in ('base', 'series')))
                rows += (f'<tr><th scope="row">{text(use)}</th><td>{text(kind)}</td>'
                         + ''.join(f'<td>{text(b)}</td><td>{text(s)}</td>' for b, s in cells) + '</tr>\n')
        columns = [f'{what}, {kernel}' for what in ('instructions', 'WRMSRs', 'RDMSRs', 'RDPMCs')
                   for kernel in ('base', 'series')]
        return (self.source(path) +
                '<p>What the host executes from a VM-Exit to the next VM-Entry, as the emulated CPU counts it: for an '
                'exit that KVM handles (CPUID) and one for which the VMM has to (a read of a port). '
                'The star stands for <code>perf stat -a -e slots:H</code> on the host.</p>\n'
                + scroll('Exit costs', head('guest uses', 'exit', *columns) + f'<tbody>\n{rows}</tbody>\n'))

    # What was tested.

    def matrix(self):
        """Cells by kind of CPU."""
        at, columns = {}, set()
        for cell in self.cells:
            _, cpu, *words = cell.name.split()
            cpu, *readings = cpu.split(',')
            words = readings + words
            at[cpu, ' '.join(words)] = cell
            columns.add(' '.join(words))
        columns = sorted(columns, key=lambda c: (sum(1 << WORDS.index(w) for w in c.split() if w in WORDS), c))
        html = ''
        for i in range(0, len(columns), 8):
            some = columns[i:i + 8]
            rows = ''
            for cpu, kind in CPUS.items():
                if any((cpu, c) in at for c in some):
                    cells = ''.join(self.cell(at.get((cpu, c))) for c in some)
                    rows += f'<tr><th scope="row">{code(cpu)}<br><small>{text(kind["title"])}</small></th>{cells}</tr>\n'
            titles = ['<br>'.join(([] if set(c.split()) - {'all', 'brief', 'topdown'} else ['default']) + c.split())
                      for c in some]
            html += scroll('Selftests by kind of CPU', head('CPU', *titles) + f'<tbody>\n{rows}</tbody>\n', 'data matrix')
        return html

    def cell(self, cell):
        """One cell of the matrix."""
        if cell is None:
            return '<td><small>not run</small></td>'
        count = self.results[cell.name].count()
        words = '<br>'.join(f'<strong>{count[s]} {s}</strong>' if s == PASSED else f'{count[s]} {s}'
                            for s in (PASSED, FAILED, KNOWN, SKIPPED) if count[s]) or 'no result'
        if cell.status == FAILED:
            return f'<td class="failed"><strong>FAILED</strong><br>{words}</td>'
        return f'<td>{words}</td>'

    def known(self):
        """Failures that the base kernel has, too."""
        where = {}
        for cell in self.cells:
            path = gate_logs(self.logs, cell.name) / 'known'
            for line in path.read_text().splitlines() if path.exists() else []:
                where.setdefault(line, []).append(cell.name.removeprefix('lab '))
        items = ''.join(f'<li>{text(line)} <small>({text(", ".join(cells[:4]) + (" …" if len(cells) > 4 else ""))})'
                        '</small></li>\n' for line, cells in sorted(where.items()))
        return '<h4>Known failures: the base kernel, booted as the same cell, fails in the same way</h4>\n' \
               f'<ul>{items}</ul>\n' if items else ''

    def tested(self):
        """Cells and other gates."""
        if not self.logs:
            return '<p class="none">No results: <code>make test</code> makes them.</p>'
        html = self.source(self.logs / 'gates.tap')
        if self.cells:
            html += ('<h3>KVM selftests by kind of CPU</h3>\n<p>A cell is one boot of the kernel as a host, and says '
                     'how the tests in it ended. <code>perf_metrics_test</code> has to pass where the CPU has '
                     'PERF_METRICS and KVM a mediated vPMU, and to skip elsewhere. <b>default</b> is with the mediated '
                     'vPMU (none on AMD), nested virtualization, EPT or NPT, and one CPU; <code>fep</code> takes KVM’s '
                     'emulator, too; <code>no-apicv</code> has it emulate the local APIC; <code>debug</code> is a kernel '
                     'that looks for mistakes as it runs (KASAN, lockdep and others); <code>base</code> is the kernel '
                     'without the series; <code>restless</code> has tasks beside the tests that preempt them all the '
                     'time; <code>brief</code> leaves out '
                     '<code>pmu_counters_test</code>, <code>topdown</code> runs nothing but '
                     '<code>perf_metrics_test</code>, <code>all</code> every selftest but slow ones.</p>\n'
                     + self.matrix() + self.known())
        rows = ''
        for gate in self.gates.tests:
            if gate in self.cells:
                continue
            result = '<td class="failed"><strong>FAILED</strong></td>' if gate.status == FAILED else \
                '<td><strong>passed</strong></td>'
            seconds = gate.seconds or 0
            rows += (f'<tr><th scope="row">{code(gate.name)}<small>{text(about(gate.name))}</small></th>{result}'
                     f'<td>{seconds // 60}:{seconds % 60:02}</td></tr>\n')
        if rows:
            html += '<h3>Gates of the series, the emulated CPU and the scripts</h3>\n' + scroll(
                'Gates', head('gate, and what it asserts', 'result', 'time') + f'<tbody>\n{rows}</tbody>\n', 'data gates')
        return html

    # Versions.

    def facts(self):
        """What it was measured and tested with."""
        version = self.demo.versions if self.demo else {}
        kernels, models = set(), {}
        for name, results in self.results.items():
            kernels.add(results.facts.get('kernel', ''))
            if ' x ' in results.facts.get('cpu', ''):
                models[name.split()[1]] = results.facts['cpu'].split(' x ', 1)[1]
        facts = (
            ('Kernel, host', version.get(('series', 'kernel'))),
            ('Kernel, guest', version.get(('series', 'guest-kernel'))),
            ('Kernel, without the series', version.get(('base', 'kernel'))),
            ('Kernels under test', ', '.join(sorted(filter(None, kernels)))),
            ('CPUs tested on', '; '.join(f'{cpu}: {models[cpu]}' for cpu in CPUS if cpu in models)),
            ('PMU as the guest sees it', version.get(('series', 'guest-pmu'))),
            ('QEMU', version.get(('series', 'qemu'))),
            ('perf', version.get(('series', 'perf'))),
            ('QEMU was run as', self.demo.commands.get(('series', 'qemu')) if self.demo else None),
        )
        items = ''.join(f'<div><dt>{k}</dt><dd>{text(v)}</dd></div>\n' for k, v in facts if v)
        full = sum('all' in c.name.split() for c in self.cells) > 1
        subjects = [re.search(r'^Subject: (?:\[.*?\] )?(.*(?:\n .*)*)', p.read_text(), re.M)[1].replace('\n', '')
                    for p in sorted((REPO / 'patches').glob('*.patch'))]
        return (f'<dl class="facts">\n{items}</dl>\n<h3>To get the same</h3>\n<pre>make demo\nmake test'
                f'{" FULL=1" if full else ""}\nmake report</pre>\n<h3>The series</h3>\n<ol>'
                + ''.join(f'<li>{text(s)}</li>\n' for s in subjects) + '</ol>\n')

    def html(self):
        """The page."""
        now = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
        sections = (('topdown', 'Host and guest', 'Topdown on host and guest', self.topdown()),
                    ('without', 'Without the series', 'What a guest can do without the series', self.without()),
                    ('exits', 'Exit costs', 'What a VM-Exit costs', self.exits()),
                    ('tested', 'What was tested', 'What was tested', self.tested()),
                    ('facts', 'Versions', 'Versions, commands, dates', self.facts()))
        nav = ' '.join(f'<a href="#{i}">{short}</a>' for i, short, _, _ in sections)
        body = ''.join(f'<section id="{i}">\n<h2>{title}</h2>\n{content}</section>\n' for i, _, title, content in sections)
        return f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Hardware topdown for KVM guests: what the lab says</title>
<style>
{(REPO / 'scripts/page.css').read_text()}</style>
</head>
<body>
<header>
<h1>Hardware topdown for KVM guests</h1>
<dl class="tiles">
{self.tiles()}</dl>
{self.trouble()}<div class="intro">
<p class="lead">A series for Linux gives KVM guests Intel’s hardware topdown: fixed counter 3 (TOPDOWN.SLOTS) and
PERF_METRICS. This page says what passed and where, compares what perf counts in a guest with what it counts on the host,
and shows what a guest can do without the series.</p>
<p class="note"><strong>The percentages come from an emulated CPU and say nothing about a real core.</strong>
What matters is whether a guest sees what its host sees. Nothing on this page was measured on real hardware.</p>
</div>
<nav aria-label="On this page">{nav}</nav>
</header>
<main>
{body}</main>
<footer>Written by scripts/page.py on {now}.</footer>
</body>
</html>
'''


def about(gate):
    """What a gate is about, in the words at the top of its script."""
    path = REPO / 'scripts/checks' / gate.split()[0]
    m = re.match(r'#!.*\n# SPDX.*\n((?:# .*\n)+)', path.read_text()) if path.exists() else None
    return re.sub(r'^# ', '', m[1], flags=re.M) if m else ''


def main(demo_logs, logs, output):
    """Writes the page."""
    if not demo_logs and not logs:
        raise Broken('there are no results: run make demo first, or make test')
    Path(output).write_text(Page(demo_logs, logs).html())
    print(output)


if __name__ == '__main__':
    if len(sys.argv) != 4:
        print(__doc__.strip())
        sys.exit(0 if sys.argv[1:] and sys.argv[1] in ('-h', '--help') else 2)
    try:
        main(*sys.argv[1:])
    except (Broken, OSError) as e:
        print(f'error: {e}', file=sys.stderr)
        sys.exit(2)
