#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""One HTML page, which needs nothing else, of what make demo and make test have found.

Usage: scripts/page.py [OUTPUT]
  scripts/page.py             make report: report.html in the cache
  DEMO=/path/to/logs GATES=/path/to/others scripts/page.py page.html

Environment: DEMO, GATES: logs of a make demo and of a make test, instead of the newest in the cache

Missing results are left out; the page says which command produces them. Every number
says which run it is from. Tables are those that demo, costs and check print.
"""

import os
import re
import time
from collections import defaultdict
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template

from results import (Broken, CPUS, Demo, FAILED, GP_COUNTERS, LEVEL_1, LEVEL_2, REPO, Results, gate_logs, read_results, run,
                     side_by_side, table, without)

CACHE = Path(os.environ.get('TOPDOWN_CACHE')
             or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'kvm-topdown'))
PART = dict(zip(LEVEL_1, LEVEL_2))


def text(value):
    """Whatever was read from a file, for HTML."""
    return escape(re.sub(r'[^\t\n\x20-\x7e–’…−]', '?', str(value)))


def pre(lines):
    """A table as it is printed, which scrolls on its own."""
    return f'<pre class="scroll" tabindex="0">{text(chr(10).join(lines))}</pre>\n'


def when(seconds):
    """A time since the epoch."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


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

    def bars(self, what, workload):
        """A bar for the host and one for the guest."""
        bars = ''
        for where, values in zip(('host', 'guest'), self.demo.both(what, workload)):
            # Level 1 side by side, each with its part of level 2 at the foot.
            segments = ''
            for metric in LEVEL_1:
                if share := values.get(metric):
                    label = f'<b>{share:.1f}</b>' if share >= 10 else ''
                    part = 100 * min(1, values.get(PART[metric], 0) / share)
                    segments += (f'<span class="{metric}" style="flex-grow:{share:.2f}">{label}'
                                 f'<i style="width:{part:.1f}%"></i></span>')
            bars += f'<span>{where}</span><div class="bar">{segments}</div>\n' if segments else ''
            if 'error' in values:
                bars += f'<span>{where}</span><p class="bad">not measured: {text(values["error"])}</p>\n'
        return bars and (f'<figure>\n<figcaption><h4>{text(workload)}</h4></figcaption>\n'
                         f'<div class="bars">{bars}</div></figure>\n')

    def measurement(self, what, title, words):
        """All workloads, measured in one way."""
        figures = ''.join(self.bars(what, workload) for workload in self.demo.workloads)
        if not figures:
            return ''
        if (worst := self.demo.worst(what)) is not None:
            words += f' Host and guest differ by <strong>{worst:.1f} points</strong> at most.'
        command = self.demo.about.get(('command', 'series', what))
        return (f'<h3>{title}</h3>\n<p>{words}</p>\n' + (f'<pre>{text(command)}</pre>' if command else '')
                + f'<div class="figures">\n{figures}</div>\n{pre(side_by_side(self.demo, what))}')

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
            values['without'] = pre(without(self.demo))
            # version_series_guest_kernel, command_series_qemu and more
            values |= {'_'.join(key).replace('-', '_'): text(words) for key, words in self.demo.about.items()}
        if self.logs:
            values |= {'gates_source': source(self.logs, 'gates.tap'),
                       'results': pre(gate.line for gate in self.gates.tests)}
            path = 'costs/exit-costs.txt'
            if (self.logs / path).exists():
                values |= {'exits_source': source(self.logs, path), 'exits': pre([(self.logs / path).read_text()])}
        if self.cells:
            facts = {name.split()[1]: results.facts for name, results in self.cells.items() if results.facts}
            values |= {'cells': pre(line.removeprefix('# ') for line in table(self.logs, *self.cells)),
                       'full': ' FULL=1' * (sum('all' in name.split() for name in self.cells) > 1),
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
    demo_logs = os.environ.get('DEMO') or newest('demo.txt')
    logs = os.environ.get('GATES') or newest('gates.tap')
    if not demo_logs and not logs:
        raise Broken('there are no results: run make demo first, or make test')
    Path(output).write_text(Page(demo_logs, logs).html())
    print(output)


if __name__ == '__main__':
    run(main, __doc__, 0)
