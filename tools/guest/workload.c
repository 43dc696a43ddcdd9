// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loops to be measured: each spends its slots in another way on the emulated
 * CPU, and takes exactly the same instructions whenever it runs.
 *
 * Usage: workload NAME [MILLIONS]	millions of instructions, default 20
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define PAGE_SIZE	4096
#define BUFFER_SIZE	(1 << 16)

static char buffer[2][BUFFER_SIZE] __attribute__((aligned(PAGE_SIZE)));

/* Arithmetic: 62 additions and the branch of the loop. */
static void retire(unsigned long instructions)
{
	unsigned long rounds = instructions / 64;

	asm volatile("1:\n\t"
		     ".rept 31\n\t"
		     "add $1, %%rax\n\t"
		     "add $3, %%rdx\n\t"
		     ".endr\n\t"
		     "dec %0\n\t"
		     "jnz 1b"
		     : "+r"(rounds) : : "rax", "rdx", "cc");
}

/* Branches that are not taken, which the emulated CPU takes for mispredicted. */
static void branches(unsigned long instructions)
{
	unsigned long rounds = instructions / 64;

	asm volatile("1:\n\t"
		     ".rept 31\n\t"
		     "test %0, %0\n\t"
		     "jz 2f\n\t"
		     ".endr\n\t"
		     "dec %0\n\t"
		     "jnz 1b\n"
		     "2:"
		     : "+r"(rounds) : : "cc");
}

/* Jumps from one to the next. */
static void jumps(unsigned long instructions)
{
	unsigned long rounds = instructions / 64;

	asm volatile("1:\n\t"
		     ".rept 31\n\t"
		     "add $1, %%rax\n\t"
		     "jmp 2f\n"
		     "2:\n\t"
		     ".endr\n\t"
		     "dec %0\n\t"
		     "jnz 1b"
		     : "+r"(rounds) : : "rax", "cc");
}

/* Loads and stores all over a buffer: 7 instructions for each line of it. */
static void memory(unsigned long instructions)
{
	unsigned long lines = instructions / 7;

	asm volatile("xor %%eax, %%eax\n"
		     "1:\n\t"
		     "mov (%1,%%rax), %%rdx\n\t"
		     "mov 8(%1,%%rax), %%rcx\n\t"
		     "mov %%rdx, 16(%1,%%rax)\n\t"
		     "add $64, %%eax\n\t"
		     "and %2, %%eax\n\t"
		     "dec %0\n\t"
		     "jnz 1b"
		     : "+r"(lines) : "r"(buffer[0]), "i"(BUFFER_SIZE - 1)
		     : "rax", "rcx", "rdx", "cc", "memory");
}

/* Lines thrown out of the cache: 5 instructions each. */
static void flush(unsigned long instructions)
{
	unsigned long lines = instructions / 5;

	asm volatile("xor %%eax, %%eax\n"
		     "1:\n\t"
		     "clflush (%1,%%rax)\n\t"
		     "add $64, %%eax\n\t"
		     "and %2, %%eax\n\t"
		     "dec %0\n\t"
		     "jnz 1b"
		     : "+r"(lines) : "r"(buffer[0]), "i"(BUFFER_SIZE - 1)
		     : "rax", "cc", "memory");
}

/* REP MOVSB, every byte of which is taken for an instruction here. */
static void strings(unsigned long instructions)
{
	unsigned long rounds = instructions / 1024;

	while (rounds--) {
		void *to = buffer[0], *from = buffer[1];
		unsigned long n = 1024;

		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	}
}

/* One after the other, so that a part of the run isn't like the whole. */
static void phases(unsigned long instructions)
{
	retire(instructions / 4);
	branches(instructions / 4);
	memory(instructions / 4);
	jumps(instructions / 4);
}

/* The same, but asleep for 100 us after every 50000 instructions. */
static void naps(unsigned long instructions)
{
	static void (* const phase[])(unsigned long) = { retire, branches, memory, jumps };

	for (unsigned int i = 0; i < ARRAY_SIZE(phase); i++) {
		for (unsigned long n = instructions / 4 / 50000; n; n--) {
			phase[i](50000);
			usleep(100);
		}
	}
}

static const struct {
	const char *name;
	void (*run)(unsigned long instructions);
} workloads[] = {
	{ "retire", retire },
	{ "branches", branches },
	{ "jumps", jumps },
	{ "memory", memory },
	{ "flush", flush },
	{ "strings", strings },
	{ "phases", phases },
	{ "naps", naps },
};

int main(int argc, char *argv[])
{
	const struct sched_param first = { .sched_priority = 1 };
	const char *alone = getenv("ALONE");
	FILE *file = NULL;
	unsigned long millions = argc > 2 ? strtoul(argv[2], NULL, 0) : 20;

	/* No other task of this machine takes turns with it then, and others may wait for it. */
	if (alone) {
		file = fopen(alone, "w");
		if (!file || sched_setscheduler(0, SCHED_FIFO, &first) ||
		    fputs("started\n", file) < 0 || fflush(file)) {
			perror("ALONE");
			return 1;
		}
	}
	for (unsigned int i = 0; argc > 1 && i < ARRAY_SIZE(workloads); i++) {
		if (!strcmp(argv[1], workloads[i].name)) {
			/* No page may fault for the first time in a loop. */
			for (unsigned int at = 0; at < sizeof(buffer); at += PAGE_SIZE)
				((volatile char *)buffer)[at] = 1;
			workloads[i].run(millions * 1000000);
			if (alone)
				fputs("ended\n", file);
			return 0;
		}
	}
	fprintf(stderr, "%s: no workload of that name\n", argv[0]);
	return 1;
}
