#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""One HTML page, which needs nothing else, of what make demo and make test have found.

Usage: scripts/page.py [OUTPUT]
  scripts/page.py             make report: report.html in the cache
  DEMO=/path/to/logs GATES=/path/to/others scripts/page.py page.html

Environment: DEMO, GATES: logs of a make demo and of a make test, instead of the newest in the cache

Missing results are left out; the page says which command produces them. Every number
says which run it is from.
"""

import os
import re
import time
from collections import defaultdict
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template

from results import (Broken, CPUS, Demo, FAILED, GP_COUNTERS, KNOWN, LEVEL_1, LEVEL_2, METRICS, PASSED, REPO, Results,
                     SKIPPED, gate_logs, read_results, run)

CACHE = Path(os.environ.get('TOPDOWN_CACHE')
             or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'kvm-topdown'))
PART = dict(zip(LEVEL_1, LEVEL_2))
TITLES = {
    'retiring': 'Retiring', 'heavy-ops': 'heavy operations',
    'bad-spec': 'Bad speculation', 'br-mispredict': 'mispredicts',
    'fe-bound': 'Frontend bound', 'fetch-lat': 'fetch latency',
    'be-bound': 'Backend bound', 'mem-bound': 'memory bound',
}
FAILED_CELL = '<td class="failed"><strong>FAILED</strong>'


def text(value):
    """Whatever was read from a file, for HTML."""
    return escape(re.sub(r'[^\t\n\x20-\x7e–’…−]', '?', str(value)))


def number(value, form):
    """A number, a dash if there is none; of a difference the sign, unless nothing is left of it."""
    if value is None:
        return '–'
    string = format(value, form)
    return string.replace('-', '−') if float(string) else string.lstrip('+-')


def when(seconds):
    """A time since the epoch."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


def row(*cells):
    """A row of a table: the first cell is its head, one that isn't an element becomes one."""
    elements = [c if c.startswith(('<td', '<th')) else f'<td>{c}</td>' if i else f'<th scope="row">{c}</th>'
                for i, c in enumerate(cells)]
    return f"<tr>{''.join(elements)}</tr>\n"


def head(*columns):
    """The head of a table."""
    return '<thead><tr>' + ''.join(f'<th scope="col">{c}</th>' for c in columns) + '</tr></thead>\n'


def scroll(label, columns, rows, class_='data'):
    """A table that scrolls on its own. The rows may be in tbody elements."""
    body = rows if rows.startswith('<tbody') else f'<tbody>\n{rows}</tbody>\n'
    return (f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n'
            f'<table class="{class_}">\n{head(*columns)}{body}</table>\n</div>\n')


def source(run, path):
    """Which run a number is from."""
    return f'<p class="none">From <code>{text(Path(run.name, path))}</code>, {when((run / path).stat().st_mtime)}.</p>'


def missing(command):
    """What stands for results that aren't there. The stylesheet hides what is beside it."""
    return f'<p class="none missing">No results: {command} makes them.</p>'


class Page:
    """The results of a run of make demo and one of make test, either of which may be missing ('')."""

    def __init__(self, demo_logs, logs):
        self.demo_logs, self.logs = (Path(path).resolve() if path else None for path in (demo_logs, logs))
        self.demo = Demo(self.demo_logs) if demo_logs else None
        self.gates = read_results(self.logs / 'gates.tap') if logs else Results()
        self.cells = {gate.name: Results() for gate in self.gates.tests if gate.name.startswith('lab ')}
        for name in self.cells:
            try:
                self.cells[name] = read_results(gate_logs(self.logs, name) / 'cell.tap')
            except Broken:
                # It came to no result.
                pass

    # The verdict.

    def tiles(self):
        """What the rest says, in a few numbers."""
        tiles = []
        if done := len(self.gates.tests):
            failed, cells = self.gates.count()[FAILED], len(self.cells)
            missing = max((self.gates.plan or 0) - done, 0)
            words = ''.join(f'; <strong>{n} {what}</strong>'
                            for n, what in ((failed, 'FAILED'), (missing, 'without a result')) if n)
            tiles.append((f'{done - failed} of {done + missing}', 'bad' if words else '',
                          f"gates passed{words}. {cells} cell{'s' * (cells != 1)} of the lab among them, each KVM "
                          'selftests on a kind of emulated host'))
        if self.demo and (worst := self.demo.worst('group')) is not None:
            words = 'at most between a metric of the guest and of the host, in user space'
            for what, how in (('busy', 'beside other events'), ('topdown', 'with the kernel counted, too')):
                if (other := self.demo.worst(what)) is not None:
                    words += f'; {other:.1f} {how}'
            tiles.append((f'{worst:.1f} points', '', words))
        series, base = (self.demo and any('slots' in self.demo.get(side, 'guest', what, w) for w in self.demo.workloads)
                        for side, what in (('series', 'group'), ('base', 'raw')))
        if series:
            words = f"; without the series, {GP_COUNTERS['raw']} by level 1 alone" if base else ''
            tiles.append(('0 of 8', '', f'general-purpose counters taken by topdown in a guest{words}'))
        return ''.join(f'<div><dt>{words}</dt><dd class="{class_}">{figure}</dd></div>\n'
                       for figure, class_, words in tiles)

    def trouble(self):
        """What failed, or came to no result."""
        html, done = '', len(self.gates.tests)
        if self.gates.plan and done < self.gates.plan:
            html = f'<p class="bad">Only {done} of {self.gates.plan} gates came to an end in this run.</p>\n'
        for gate in self.gates.tests:
            if gate.status == FAILED:
                html += f'<p class="bad"><strong>FAILED: {text(gate.name)}</strong>'
                cell = self.cells.get(gate.name, Results())
                if tests := [test.name for test in cell.tests if test.status == FAILED]:
                    html += ' in ' + text(', '.join(tests))
                said = [line.removeprefix('# ') for line in gate.output]
                if error := [line for line in said if line.startswith('error: ')] or said:
                    html += '<br>' + text(error[-1])
                html += '</p>\n'
        return html

    # Topdown on host and guest.

    def figure(self, what, workload):
        """A workload: bars and numbers of host and guest."""
        host, guest = self.demo.both(what, workload)
        differences = self.demo.differences(what, workload)
        bars, rows = [], ''
        for where, values in (('host', host), ('guest', guest)):
            # Level 1 side by side, each with its part of level 2 at the foot.
            segments = ''
            for metric in LEVEL_1:
                if share := values.get(metric):
                    label = f'<b>{share:.1f}</b>' if share >= 10 else ''
                    part = 100 * min(1, values.get(PART[metric], 0) / share)
                    segments += (f'<span class="{metric}" style="flex-grow:{share:.2f}">{label}'
                                 f'<i style="width:{part:.1f}%"></i></span>')
            bars += [f'<span>{where}</span><div class="bar">{segments}</div>'] if segments else []
        for metric in METRICS:
            if metric in host or metric in guest:
                class_, swatch = (f' {metric}', '') if metric in PART else ('', '<i></i>')
                cells = ''.join(f"<td>{number(v.get(metric), form)}</td>"
                                for v, form in ((host, '.1f'), (guest, '.1f'), (differences, '+.1f')))
                rows += (f'<tr class="{"whole" if metric in PART else "part"}"><th scope="row">'
                         f'<span class="swatch{class_}">{swatch}</span>{TITLES[metric]}</th>{cells}</tr>\n')
        if 'slots' in differences:
            rows += (f'<tr class="slots"><th scope="row">SLOTS, millions</th><td>{host["slots"] / 1e6:.2f}</td>'
                     f'<td>{guest["slots"] / 1e6:.2f}</td><td>{number(differences["slots"], "+.3f")} %</td></tr>\n')
        errors = ''.join(f'<p class="bad">{text(where)}: not measured: {text(values["error"])}</p>'
                         for where, values in (('host', host), ('guest', guest)) if 'error' in values)
        if not rows and not errors:
            return ''
        table = '\n'.join((f'<div class="bars" aria-hidden="true">{chr(10).join(bars)}</div>',
                           f'<table aria-label="{text(workload)}, percent of slots">',
                           head('percent of slots', 'host', 'guest', 'difference')
                           + f'<tbody>\n{rows}</tbody>\n</table>\n')) if rows else ''
        return f'<figure>\n<figcaption><h4>{text(workload)}</h4></figcaption>\n{table}{errors}</figure>\n'

    def measurement(self, what, title, words):
        """All workloads, measured in one way."""
        figures = ''.join(self.figure(what, workload) for workload in self.demo.workloads)
        if not figures:
            return ''
        if (worst := self.demo.worst(what)) is not None:
            words += f' Host and guest differ by <strong>{worst:.1f} points</strong> at most.'
        command = self.demo.about.get(('command', 'series', what))
        return (f'<h3>{title}</h3>\n<p>{words}</p>\n' + (f'<pre>{text(command)}</pre>' if command else '')
                + f'<div class="figures">\n{figures}</div>\n')

    # What a guest can do without the series.

    def without(self):
        """With and without."""
        bodies = ''
        for title, series, base in (('Topdown alone', 'group', 'raw'),
                                    ('Topdown and six more events on general-purpose counters', 'busy', 'raw-busy')):
            body = ''
            for workload in self.demo.workloads:
                rows = []
                for kernel, side, what in (('with the series: metrics', 'series', series),
                                           ('base kernel: raw events', 'base', base)):
                    cells = [f'<th scope="row" class="text">{kernel}</th>']
                    found = self.demo.comparison(side, what, workload)
                    if 'error' in found:
                        error = text('not measured: ' + found['error'])
                        rows.append([*cells, f'<td colspan="6" class="text bad">{error}</td>'])
                    elif found:
                        wanted, counted = f"{found['wanted']} of 8", f"{found['running']:.1f} %"
                        level_1 = found['level 1']
                        rows.append([*cells, found['level'], f'<b>{wanted}</b>' if found['wanted'] > 8 else wanted,
                                     counted if found['running'] >= 100 else f'<b>{counted}, multiplexed</b>',
                                     '<b>uncounted</b>' if level_1 is None else f'{level_1:.1f} points',
                                     *(number(found[e], '+.3f') + ' %' * (found[e] is not None) if e in found else ''
                                       for e in ('slots', 'branches'))])
                if rows:
                    rows[0].insert(0, f'<th scope="rowgroup" rowspan="{len(rows)}">{text(workload)}</th>')
                body += ''.join(row(*cells) for cells in rows)
            if body:
                bodies += (f'<tbody><tr><th scope="colgroup" colspan="8" class="group">{title}</th></tr>\n'
                           f'{body}</tbody>\n')
        html = scroll('With and without the series', (
            'workload', 'kernel and events', 'level', 'general-purpose counters wanted', 'time counted',
            'level 1 off by', 'SLOTS off by', 'branches off by'), bodies)
        if error := self.demo.error_without():
            html = f'<p>What <code>perf stat --topdown</code> says there:</p><pre>{text(error)}</pre>{html}'
        if 'uncounted' in bodies:
            html += '<p><b>Uncounted</b>: the emulated CPU has no events for these metrics, other than ' \
                    'PERF_METRICS.</p>'
        return html

    # What a VM-Exit costs.

    @staticmethod
    def exits(path):
        """What the gate costs has counted."""
        costs = {}
        for line in path.read_text().splitlines():
            kernel, use, kind, *numbers = line.split('\t')
            costs.setdefault((use, kind), {})[kernel] = numbers
        rows = ''
        for (use, kind), by_kernel in costs.items():
            pairs = zip(by_kernel.get('base', '––––'), by_kernel.get('series', '––––'))
            rows += row(*(text(cell) for cell in (use, kind, *(cell for pair in pairs for cell in pair))))
        columns = [f'{what}, {kernel}' for what in ('instructions', 'WRMSRs', 'RDMSRs', 'RDPMCs')
                   for kernel in ('base', 'series')]
        return scroll('Exit costs', ('guest uses', 'exit', *columns), rows)

    # What was tested.

    def results(self):
        """How gates ended, and the tests of those that are cells of the lab."""
        rows = ''
        for gate in self.gates.tests:
            count = self.cells.get(gate.name, Results()).count()
            minutes, seconds = divmod(gate.seconds or 0, 60)
            rows += row(f'<code>{text(gate.name)}</code>',
                        f'{FAILED_CELL}</td>' if gate.status == FAILED else '<strong>passed</strong>',
                        f'{minutes}:{seconds:02}', *(str(count[s] or '') for s in (PASSED, FAILED, KNOWN, SKIPPED)))
        return scroll('Gates', ('gate', 'result', 'time', 'tests passed', 'failed', 'known', 'skipped'), rows)

    def known(self):
        """Failures that the base kernel has, too."""
        where = {}
        for name in self.cells:
            path = gate_logs(self.logs, name) / 'known'
            for line in path.read_text().splitlines() if path.exists() else []:
                where.setdefault(line, []).append(name.removeprefix('lab '))
        items = ''.join(f'<li>{text(line)} <small>({text(", ".join(cells[:4]) + " …" * (len(cells) > 4))})'
                        '</small></li>\n' for line, cells in sorted(where.items()))
        return '<h4>Known failures: the base kernel, booted as the same cell, fails in the same way</h4>\n' \
               f'<ul>{items}</ul>\n' if items else ''

    def html(self):
        """The page: page.html, in which what there isn't is empty."""
        values = defaultdict(str, tiles=self.tiles(), trouble=self.trouble(), now=when(time.time()))
        values['demo_source'] = missing('<code>make demo</code>')
        values['exits_source'] = missing('the gate <code>costs</code> of <code>make test</code>')
        values['gates_source'] = missing('<code>make test</code>')
        if self.demo:
            values['demo_source'] = source(self.demo_logs, 'series/results.tap')
            values['group'] = self.measurement('group', 'User space alone',
                                               'SLOTS and the eight metrics as an explicit group.')
            values['topdown'] = self.measurement('topdown', 'User space and kernel',
                                                 'What <code>perf stat --topdown</code> prints.')
            values['without'] = self.without()
            # version_series_guest_kernel, command_series_qemu and more
            values |= {'_'.join(key).replace('-', '_'): text(words) for key, words in self.demo.about.items()}
        if self.logs:
            values |= {'gates_source': source(self.logs, 'gates.tap'), 'results': self.results() + self.known()}
            path = 'costs/exit-costs.tsv'
            if (self.logs / path).exists():
                values |= {'exits_source': source(self.logs, path), 'exits': self.exits(self.logs / path)}
        if self.cells:
            facts = {name.split()[1]: results.facts for name, results in self.cells.items() if results.facts}
            values |= {'full': ' FULL=1' * (sum('all' in name.split() for name in self.cells) > 1),
                       'kernels': text(', '.join(sorted({fact.get('kernel', '?') for fact in facts.values()}))),
                       'models': text('; '.join(f"{cpu}: {facts[cpu].get('cpu', '?').partition(' x ')[2]}"
                                                for cpu in CPUS if cpu in facts))}
        return Template((REPO / 'scripts/page.html').read_text()).substitute(values)


def newest(file):
    """The directory of the newest run in the cache that has left such a file, or ''."""
    found = [path for path in (CACHE / 'logs').glob(f'*/{file}') if path.stat().st_size]
    return max(found, key=lambda path: path.stat().st_mtime).parent.resolve() if found else ''


def main(output=CACHE / 'report.html'):
    """Writes the page."""
    demo_logs = os.environ.get('DEMO') or newest('base.out')
    logs = os.environ.get('GATES') or newest('gates.tap')
    if not demo_logs and not logs:
        raise Broken('there are no results: run make demo first, or make test')
    Path(output).write_text(Page(demo_logs, logs).html())
    print(output)


if __name__ == '__main__':
    run(main, __doc__, 0)
