// SPDX-License-Identifier: GPL-2.0-only
/*
 * VM-Exits, for scripts/checks/costs, while the guest uses its PMU in one way after the
 * other: between two VMCALLs reads of a port, for which the VMM has to, and CPUIDs,
 * which KVM handles on its own.
 *
 * Usage: exits NUMBER USE...	of exits of each kind
 *   nothing	no counter is enabled
 *   counters	a fixed counter and a general-purpose one count, and Linux reads one of
 *		them before each exit, by RDPMC
 *   topdown	SLOTS and all metrics count
 */
#include <err.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

static int port;
static unsigned long number;

static void vmcall(void)
{
	long nr = -1;	/* no such call */

	asm volatile("vmcall" : "+a"(nr) : : "memory");
}

static void read_event(int fd)
{
	uint64_t count;

	if (read(fd, &count, sizeof(count)) != sizeof(count) || !count)
		errx(1, "nothing was counted");
}

/* Reads an event before each, if there is one. */
static void make_exits(int event)
{
	char byte;

	vmcall();
	for (unsigned long n = number; n; n--) {
		if (event >= 0)
			read_event(event);
		if (pread(port, &byte, 1, 0x80) != 1)
			err(1, "/dev/port");
	}
	for (unsigned long n = number; n; n--) {
		unsigned long a = 0, c = 0;

		if (event >= 0)
			read_event(event);
		asm volatile("cpuid" : "+a"(a), "+c"(c) : : "rbx", "rdx");
	}
	vmcall();
}

/* A group, of user space. */
static void make_exits_with(int nr, const uint64_t *events, bool reads)
{
	int fds[16];

	for (int i = 0; i < nr; i++) {
		struct perf_event_attr attr = {
			.type = PERF_TYPE_RAW,
			.size = sizeof(attr),
			.config = events[i],
			.disabled = !i,
			.exclude_kernel = 1,
		};

		fds[i] = syscall(SYS_perf_event_open, &attr, 0, -1, i ? fds[0] : -1, 0);
		if (fds[i] < 0)
			err(1, "event %#lx", events[i]);
	}

	if (ioctl(fds[0], PERF_EVENT_IOC_ENABLE, PERF_IOC_FLAG_GROUP))
		err(1, "enable");
	make_exits(reads ? fds[0] : -1);
	if (ioctl(fds[0], PERF_EVENT_IOC_DISABLE, PERF_IOC_FLAG_GROUP))
		err(1, "disable");

	read_event(fds[0]);
}

int main(int argc, char *argv[])
{
	static const uint64_t counters[] = { 0xc0, 0xc4 };	/* instructions, branches */
	static const uint64_t topdown[] = {
		0x400, 0x8000, 0x8100, 0x8200, 0x8300, 0x8400, 0x8500, 0x8600, 0x8700,
	};

	if (argc < 3)
		errx(1, "say how many, and with what in use");
	number = strtoul(argv[1], NULL, 0);
	port = open("/dev/port", O_RDONLY);
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "nothing")) {
			make_exits(-1);
		} else if (!strcmp(argv[i], "counters")) {
			make_exits_with(ARRAY_SIZE(counters), counters, true);
		} else if (!strcmp(argv[i], "topdown")) {
			make_exits_with(ARRAY_SIZE(topdown), topdown, false);
		} else {
			errx(1, "%s: no use of that name", argv[i]);
		}
	}
	return 0;
}
