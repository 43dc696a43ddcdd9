// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tasks on each CPU that wake every so many microseconds, which preempts what runs
 * there, and go to sleep again. They use no counter. Ended by SIGTERM, says how often
 * each of the tasks woke up.
 *
 * Usage: restless MICROSECONDS...
 */
#define _GNU_SOURCE
#include <err.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void be_restless(int cpu, useconds_t period, volatile unsigned long *wakeups)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "CPU %d", cpu);
	/* Ends with its parent. Timers may not be late to be merged with others. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	while (true) {
		usleep(period);
		++*wakeups;
	}
}

int main(int argc, char *argv[])
{
	int cpus = sysconf(_SC_NPROCESSORS_ONLN), periods = argc - 1, signal;
	volatile unsigned long *wakeups;
	double start = now();
	sigset_t set;

	if (periods < 1)
		errx(1, "say every how many microseconds");
	wakeups = mmap(NULL, cpus * periods * sizeof(*wakeups), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (wakeups == MAP_FAILED)
		err(1, "mmap");
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < cpus * periods; i++) {
		useconds_t period = strtoul(argv[1 + i % periods], NULL, 0);
		pid_t child = fork();

		if (child < 0)
			err(1, "fork");
		if (!period)
			errx(1, "'%s' are no microseconds", argv[1 + i % periods]);
		if (!child)
			be_restless(i / periods, period, &wakeups[i]);
	}
	sigwait(&set, &signal);
	for (int i = 0; i < cpus * periods; i++)
		printf("restless every %s us: CPU %d woke up %lu times, once in %.0f us\n",
		       argv[1 + i % periods], i / periods, wakeups[i],
		       (now() - start) / (wakeups[i] ? wakeups[i] : 1));
	return 0;
}
