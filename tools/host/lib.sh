# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests in the emulated host: guests to give commands to, and KTAP.

export PATH=/bin:/usr/bin
cd /demo || exit

# The guest's initramfs: two archives, one of them of files that are here anyway.
guest_initramfs() {
	[ ! -e /tmp/initramfs ] || return 0
	mkdir -p /tmp/root/bin /tmp/root/dev /tmp/root/proc /tmp/root/sys /tmp/root/tmp
	cp /bin/busybox /tmp/root/bin
	cp guest-init /tmp/root/init
	(cd /tmp/root && find . | cpio -o -H newc) >/tmp/initramfs 2>/dev/null
	(cd / && cpio -o -H newc <demo/guest-files) >>/tmp/initramfs 2>/dev/null
	rm -r /tmp/root
}

fail() {
	echo "# $*"
	exit 1
}

qemu="qemu-system-x86_64 -M q35 -accel kvm -cpu host,migratable=off -m 256 -nodefaults -display none -no-reboot"

# More options for QEMU.
options=

# boot_guest NAME [CPU]: on one CPU of the host if that is said. Ready when
# wait_guest NAME returns, then there are tell, answer, ask and monitor.
boot_guest() {
	guest_initramfs
	mkfifo "/tmp/$1.in" "/tmp/$1.out" "/tmp/$1-monitor.in" "/tmp/$1-monitor.out"
	# shellcheck disable=SC2086 # words
	${2:+taskset -c "$2"} $qemu $options -name "$1,debug-threads=on" -L rom -monitor "pipe:/tmp/$1-monitor" \
		-serial "file:/tmp/$1.console" -serial "pipe:/tmp/$1" -kernel linux -initrd /tmp/initramfs \
		-append "console=ttyS0 quiet" >"/tmp/$1.qemu" 2>&1 &
	echo $! >"/tmp/$1.pid"
}
wait_guest() { # NAME
	answer "$1" || fail "the guest doesn't start: $(
		tail -n 1 "/tmp/$1.qemu"
		tail -n 1 "/tmp/$1.console"
	)"
}
start_guest() { # NAME [CPU]
	boot_guest "$@"
	wait_guest "$1"
}
kill_guest() { # NAME
	kill "$(cat "/tmp/$1.pid")" || {
		cat "/tmp/$1.qemu"
		tap_failed=1
	}
	wait "$(cat "/tmp/$1.pid")"
	[ $tap_failed = 0 ] || tail -n 30 "/tmp/$1.qemu" "/tmp/$1.console" | sed 's/^/# /'
	rm /tmp/"$1".* /tmp/"$1"-monitor.*
}
# The test fails if its kernel has something to complain of.
end_guest() { # NAME
	odd=$(ask "$1" 'dmesg | grep -E "WARNING:|BUG:|Oops|Call Trace|unchecked MSR|unknown reason|Dazed|irq loop|perfevents:"')
	[ -z "$odd" ] || {
		echo "# on the console of the guest: $odd"
		tap_failed=1
	}
	kill_guest "$1"
}

# However a test ends: it fails if something did, a result is missing, or a guest was not
# ended, which would disturb the next test.
planned=0 tap_number=0 tap_failed=0
finish() {
	status=$?
	[ $status = 0 ] || tap_failed=1
	for running in /tmp/*.pid; do
		[ -e "$running" ] || continue
		tap_failed=1
		kill_guest "$(basename "$running" .pid)"
	done
	[ $tap_number = $planned ] || {
		echo "# $tap_number results of $planned"
		tap_failed=1
	}
	exit $((status ? status : tap_failed))
}
trap finish EXIT
trap 'exit 143' TERM

# The guest's vCPU, a thread of QEMU.
vcpu() { # NAME [NUMBER]
	grep -l "^CPU ${2:-0}/KVM$" "/proc/$(cat "/tmp/$1.pid")"/task/*/comm | sed 's,.*/task/,,; s,/.*,,'
}
# How often it had to make way for another task.
preempted() { # NAME [NUMBER]
	sed -n 's/^nonvoluntary_ctxt_switches:\t//p' "/proc/$(cat "/tmp/$1.pid")/task/$(vcpu "$@")/status"
}

# tell GUEST COMMAND, and its output: answer GUEST. Both: ask GUEST COMMAND
# None of them waits for a QEMU that is no longer there to open its end.
tell() { echo "$2" 1<>"/tmp/$1.in"; }
answer() {
	# shellcheck disable=SC3045 # busybox has it
	while read -r -t 60 line; do
		case $line in
		'@done '*) return "${line#@done }" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done <>"/tmp/$1.out"
	echo "no answer from $1 within 60 s"
	return 1
}
ask() {
	tell "$1" "$2"
	answer "$1"
}

# Whether a workload runs that was told to say so: ALONE=/dev/ttyS0.
runs() { # NAME
	[ "$(grep -c '^started' "/tmp/$1.console")" -gt "$(grep -c '^ended' "/tmp/$1.console")" ]
}
wait_run() { # NAME
	tries=0
	until runs "$1"; do
		tries=$((tries + 1))
		[ $tries -lt 5000 ] || fail "no workload runs in $1: $(answer "$1")"
		usleep 1000
	done
}

# A register of the host's first CPU, in hex.
read_msr() { # NUMBER
	dd if=/dev/cpu/0/msr bs=8 count=1 skip=$(($1)) iflag=skip_bytes 2>/dev/null | od -A n -t x8 | tr -d ' '
}

# A command for QEMU. Its prompt and echo are not of interest, but have to be read.
monitor() { # NAME COMMAND
	echo "$2" 1<>"/tmp/$1-monitor.in"
}

# KTAP
plan() {
	echo 'TAP version 13'
	echo "1..$1"
	planned=$1
}
result() { # STATUS NAME DETAIL
	tap_number=$((tap_number + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tap_number $2 # $3"
	else
		echo "not ok $tap_number $2 # $3"
		tap_failed=1
	fi
}

# agree RIGHT FOUND POINTS [PERCENT]: lines of measure. Both have to make sense: level
# 1 adds up to 100 %, level 2 is part of it, and nothing was multiplexed. Says how much
# they differ; true if no metric does by more than so many percentage points, and
# SLOTS, unless they are of no interest, not by more than so many percent. A CPU that
# rounds coarsely may be off by more, which the kernel's command line says.
agree() {
	case $(./measure events) in
	*heavy-ops*) number=8 ;;
	*) number=4 ;;
	esac
	printf '%s\n%s\n' "$1" "$2" | awk -v points="$3" -v loose="${loose:-0}" -v percent="${4:-0}" -v n=$number '
		BEGIN { points += loose }
		{
			lines = lines " " $0
			for (i = 1; i <= NF; i++) {
				split($i, a, "=")
				of[NR > 1, a[1]] = a[2]
			}
		}
		function sensible(side,   sum, i) {
			for (i = 1; i <= 4; i++) {
				sum += of[side, metrics[i]]
				if (n == 8 && of[side, metrics[i + 4]] > of[side, metrics[i]] + points / 2)
					return 0
			}
			return sum > 100 - 2 * points && sum < 100 + 2 * points && (!((side, "running") in of) || of[side, "running"] == 100)
		}
		END {
			split("retiring bad-spec fe-bound be-bound heavy-ops br-mispredict fetch-lat mem-bound", metrics, " ")
			for (i = 1; i <= n; i++) {
				m = metrics[i]
				if (!((0, m) in of) || !((1, m) in of)) {
					print m " is missing"
					exit 1
				}
				d = of[1, m] - of[0, m]
				d = d < 0 ? -d : d
				if (d >= worst) {
					worst = d
					name = m
				}
			}
			if (percent && !of[0, "slots"] || !sensible(0) || !sensible(1)) {
				print "makes no sense:", lines
				exit 1
			}
			slots = percent ? 100 * (of[1, "slots"] / of[0, "slots"] - 1) : 0
			printf "%s differs by %.2f points, the others by less", name, worst
			print percent ? sprintf("; SLOTS by %.4f %%", slots) : ""
			exit worst > points || slots > percent || slots < -percent
		}'
}

# The result of agree, of that name.
compare() { # NAME RIGHT FOUND POINTS [PERCENT]
	name=$1
	shift
	said=$(agree "$@")
	result $? "$name" "$said"
}
