# SPDX-License-Identifier: GPL-2.0-only
# Shared by all scripts: where things are, errors, the cache and its lock, stages.
#
# Environment read here:
#   TOPDOWN_CACHE   downloads, trees, builds and logs
#                   (default ${XDG_CACHE_HOME:-$HOME/.cache}/kvm-topdown)
#   KDIR            a kernel git tree to use instead of Debian's Linux source
#   SERIES          directory of patches (default: patches/), or "none"
#   KERNEL          "debug": with KASAN, lockdep and other checks, where a WARN is a panic
#   LOGS            directory for the logs of this run (default: a new one in the cache)

# shellcheck disable=SC2034 # used by the scripts that source this file

# Asked for help, a script prints the comment at its top.
case ${1:-} in
-h | --help)
	sed -n '3,/^[^#]/{/^#/!q;s/^# \{0,1\}//p}' "$0"
	exit
	;;
esac

unset CDPATH
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TOPDOWN_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/kvm-topdown}
downloads=$cache/downloads

# The base tree: Debian's linux-source, by version and checksum.
linux_version=7.3.4
linux_series=7.3
linux_deb=linux-source-7.3_7.3.4-1~bpo13+1_all.deb
linux_pool=pool/main/l/linux/$linux_deb
linux_sha256=703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3

bochs_tar=bochs_3.0+dfsg.orig.tar.xz
bochs_pool=pool/main/b/bochs/$bochs_tar
bochs_sha256=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b

# Kbuild demands a sparse that knows __typeof_unqual__, which releases of Debian
# up to 13 lack.
sparse_tar=sparse_0.6.5~rc1.orig.tar.gz
sparse_pool=pool/main/s/sparse/$sparse_tar
sparse_sha256=3ac8855ec7f3ab92f325be0f64347ccc2b10f8b4d7c2906783ee8e2bdab3f0de

# A caller inside a git hook must not redirect git to its own repository, and
# messages are parsed, so they must be in English.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY
export LC_ALL=C

# Nor may flags of make, or what a kernel developer exports, change what is built.
unset MAKEFLAGS MFLAGS GNUMAKEFLAGS MAKELEVEL ARCH CROSS_COMPILE LLVM LLVM_IAS KCFLAGS KAFLAGS KBUILD_OUTPUT KBUILD_VERBOSE
unset CC CXX CFLAGS CXXFLAGS CPPFLAGS LDFLAGS HOSTCC HOSTCFLAGS SHELLCHECK_OPTS

# What a gate or a cell sets for itself must not come from outside.
for_boots=(CPU CPUS TESTS EMULATOR KERNEL RESTLESS BOCHS_OWNERS BOCHS_COSTS KIT)

# git must not tidy up a repository of the user's behind our back, nor colour what is read.
for setting in gc.auto=0 maintenance.auto=false color.ui=false; do
	export "GIT_CONFIG_KEY_${GIT_CONFIG_COUNT:=0}=${setting%=*}" "GIT_CONFIG_VALUE_$GIT_CONFIG_COUNT=${setting#*=}"
	export GIT_CONFIG_COUNT=$((GIT_CONFIG_COUNT + 1))
done

# Exit status 1 is left to tests that fail.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 2
}

# Dies of arguments that a script doesn't know: all together they must match.
know_arguments() { # REGEX [ARGUMENT...]
	local regex=$1
	shift
	[[ "$*" =~ ^($regex)$ ]] || die "'$*' is not what $0 takes, see its --help"
}

case $repo in
*[[:space:]]*) die "make cannot build in '$repo' (space in the path): move it" ;;
esac
[ -n "${TOPDOWN_CACHE:-}${XDG_CACHE_HOME:-}${HOME:-}" ] || die "HOME is not set: set it or TOPDOWN_CACHE"
case $cache in
/*) ;;
*) die "the cache must be an absolute path, not '$cache': set TOPDOWN_CACHE" ;;
esac
case $cache in
*[!A-Za-z0-9/._+~@-]*) die "kbuild cannot build below '$cache' (space or special character in the path): set TOPDOWN_CACHE" ;;
esac
# A cache has a tag, by which scripts/clean may delete all that is in it, and backups leave it out.
{ mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null || die "cannot write to the cache $cache: set TOPDOWN_CACHE to a directory of yours"
if [ ! -e "$cache/CACHEDIR.TAG" ]; then
	[ -z "$(ls -A "$cache")" ] || die "these scripts did not make $cache: delete it, or set TOPDOWN_CACHE to an empty directory"
	echo 'Signature: 8a477f597d28d172789f06886806bc55' >"$cache/CACHEDIR.TAG"
fi

series=${SERIES:-$repo/patches}
if [ -n "${KDIR:-}" ]; then
	[ -d "$KDIR" ] || die "KDIR=$KDIR is no directory"
	KDIR=$(realpath "$KDIR")
	base_name=$(basename "$KDIR" | tr -c 'A-Za-z0-9._\n-' _)-$(printf %s "$KDIR" | sha256sum | cut -c1-8)
	base_git=$KDIR
else
	base_name=linux-$linux_version
	base_git=$cache/$base_name.git
fi
work=$cache/work/$base_name
case ${KERNEL:-} in
'' | debug) ;;
*) die "KERNEL=$KERNEL: there is only 'debug', or leave it out" ;;
esac

# The tree, build and selftests of one kind of kernel: "base" or "series".
kind=series
[ "$series" != none ] || kind=base
tree_of() { echo "$work/$1/kvm-topdown-$1"; }
build_of() { echo "$work/$1/build${KERNEL:+-$KERNEL}"; }
selftests_of() { echo "$work/$1/selftests"; }

# The selftests run on a base kernel too, so they come from the patched tree,
# unless the base brings the one of the series itself.
topdown_test=tools/testing/selftests/kvm/x86/perf_metrics_test.c
selftests_kind() {
	if [ "$kind" = base ] && [ ! -e "$(tree_of base)/$topdown_test" ] &&
		compgen -G "$repo/patches/*.patch" >/dev/null; then
		echo series
	else
		echo "$kind"
	fi
}

# Whether the selftest of this repository is what runs, and not one of the patches.
own_selftest_runs() {
	[ "$(selftests_kind)" = series ] && [[ $series = none || $series -ef $repo/patches ]]
}

# Whether tests need QEMU and perf, and what is collected for them.
need_guests() { # TEST...
	local test
	for test; do
		[ ! -e "$repo/tools/host/$test" ] || return 0
	done
	return 1
}
# How many CPUs tests say that they need.
needed_cpus() { # TEST...
	local test most=1 cpus
	for test; do
		cpus=$(sed -n 's/^# Needs: \([0-9]*\) CPUs$/\1/p' "$repo/tools/host/$test" 2>/dev/null) || true
		[ "${cpus:-1}" -le "$most" ] || most=$cpus
	done
	echo "$most"
}
guests_of() { echo "$cache/guests/$1${KERNEL:+-$KERNEL}"; } # KIND

# Configures a build by fragments on top of tinyconfig, if it isn't yet. The kernel has to
# take all of the last one, in which CONFIG_X=n is the same as "is not set".
configure() { # TREE BUILD MAKE FRAGMENT...
	local tree=$1 build=$2 make=$3 option id tool
	shift 3
	# Kconfig asks for the versions of these.
	id=$({
		for tool in "${compiler:-gcc}" ld pahole rustc bindgen; do
			"$tool" --version 2>/dev/null || true
		done
		git -C "$tree" ls-files -s '*Kconfig*' '*.config'
		cat "$@"
		declare -f configure
	} | sha256sum)
	! fresh "$build/configured" "$id" || return 0
	rm -f "$build/configured"
	# As make tinyconfig does, which runs Kconfig, and with it some 150 tests of the
	# compiler, once more. Of several values of an option the last one counts.
	KCONFIG_ALLCONFIG=$tree/kernel/configs/tiny-base.config "$make" allnoconfig
	cat "$tree"/{kernel,arch/x86}/configs/tiny.config "$@" >>"$build/.config"
	"$make" olddefconfig
	while read -r option; do
		case $option in
		*=n) ! grep -q "^${option%n}" "$build/.config" ;;
		*) grep -qxF "$option" "$build/.config" ;;
		esac || die "the kernel does not take $option: a dependency is missing or the option is gone"
	done < <(sed -nE 's/^# (CONFIG_\w+) is not set$/\1=n/; /^CONFIG_/p' "${@: -1}")
	stamp "$build/configured" "$id"
}

# The commits of the series as scripts/apply has left them, oldest first.
series_commits() {
	git -C "$(tree_of series)" rev-list --reverse "$(git -C "$base_git" rev-parse HEAD)..HEAD"
}

# Files that the series changes, as far as options and paths of git diff select them.
series_files() { # [OPTION...] [-- PATH...]
	git -C "$(tree_of series)" diff --name-only "$(git -C "$base_git" rev-parse HEAD)" HEAD "$@"
}

# Runs a command that boots the lab, with LOGS=DIRECTORY. Dies unless the boot has
# finished and the console is clean; failed tests are fine.
boot_to_the_end() { # DIRECTORY COMMAND...
	local directory=$1 status=0
	shift
	mkdir -p "$directory"
	rm -f "$directory"/{results.tap,cell.tap,known}
	LOGS=$directory "$@" 2>&1 | tee "$directory/output" || status=${PIPESTATUS[0]}
	[ "$status" -le 1 ] ||
		die "the lab did not finish cleanly, see $directory: $(grep -A 1 -E '^error: |^trouble on the console' "$directory/output" | tail -n 1)"
}

# Boots $TESTS, which all have to pass. One that skips has shown nothing.
boot_and_pass() { # DIRECTORY
	boot_to_the_end "$1" "$repo/scripts/run"
	cp "$1/results.tap" "$1/cell.tap"
	! grep -E '^not ok |^ok .*# SKIP' "$1/cell.tap" || die "not all tests pass, see $1"
}

# What gates of patches begin with: the series, applied.
take_series() { # [PATCHES]
	[ $# -le 1 ] || die "expected one directory of patches, got: $*"
	export SERIES=${1:-${SERIES:-$repo/patches}}
	[ "$SERIES" != none ] || die "this gate is about patches, and SERIES=none has none"
	[ -d "$SERIES" ] || die "$SERIES is no directory of patches"
	SERIES=$(realpath "$SERIES")
	lock_cache
	"$repo/scripts/apply"
}

# The directory for the logs of a run; of those in the cache the older ones go.
new_logs() {
	local logs=${LOGS:-}
	if [ -n "$logs" ]; then
		case $logs in *[[:space:],]*) die "LOGS=$logs: Bochs takes no space or comma in a path" ;; esac
		mkdir -p "$logs" || die "LOGS=$logs: no directory can be made there"
		realpath "$logs"
		return
	fi
	mkdir -p "$cache/logs"
	find "$cache/logs" -mindepth 1 -maxdepth 1 -type d -name '20[0-9]*-[0-9]*-????' -mmin +1440 -print0 |
		sort -z | head -z -n -30 | xargs -0r rm -rf
	logs=$(mktemp -d "$cache/logs/$(date +%Y%m%d-%H%M%S)-XXXX") || die "no directory for logs can be made in $cache/logs"
	ln -sfn "$(basename "$logs")" "$cache/logs/latest"
	echo "$logs"
}

# Files of the series that are kept in this repository too, as they are easier to
# read and change there. The fragments in arch/x86/configs are the lab's.
overlay_files() {
	(cd "$repo" && find arch tools/testing -type f ! -path 'arch/x86/configs/kvm_topdown_*' | sort) 2>/dev/null || true
}

free_space() { echo $(($(df --output=avail -k "$cache" | tail -n 1) / 1024)); } # MiB

# need_space MIB WHAT: fail early rather than in the middle of something.
need_space() {
	local free
	free=$(free_space)
	[ "$free" -ge "$1" ] || die "$2 needs $1 MiB in $cache, which has $free MiB free: free some or set TOPDOWN_CACHE"
}

# Only one run at a time changes the cache. Children of the holder inherit the
# lock and do not ask.
lock_cache() {
	[ -z "${TOPDOWN_LOCKED:-}" ] || return 0
	exec {TOPDOWN_LOCKED}>>"$cache/lock"
	if ! flock -n "$TOPDOWN_LOCKED"; then
		echo "waiting for another run (pid $(cat "$cache/lock")) that uses $cache" >&2
		spawn flock "$TOPDOWN_LOCKED"
		wait "$child"
		child=
	fi
	echo $$ >"$cache/lock"
	export TOPDOWN_LOCKED
}

unlock_cache() {
	exec {TOPDOWN_LOCKED}>&-
	unset TOPDOWN_LOCKED
}

# Stamps say what a product was made from: fresh STAMP ID, after success
# stamp STAMP ID.
fresh() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
stamp() {
	echo "$2" >"$1.part"
	mv "$1.part" "$1"
}

elapsed() { # SECONDS
	if [ "$1" -lt 60 ]; then
		echo "$1s"
	else
		printf '%dm%02ds' $(($1 / 60)) $(($1 % 60))
	fi
}

# A child in its own process group: one signal ends all of it, also when this
# script alone is told to stop.
child=
spawn() {
	set -m
	"$@" &
	child=$!
	set +m
}
end_child() {
	[ -n "$child" ] || return 0
	kill -TERM -- "-$child" 2>/dev/null || true
	wait "$child" 2>/dev/null || true
	child=
}
trap end_child EXIT
trap 'echo " interrupted, run again to go on" >&2; exit 130' INT
trap 'exit 143' TERM HUP

# Sleeps for a while, but without a process: what is looked after needs the processor.
never=
pause() { # SECONDS
	[ -n "$never" ] || exec {never}<> <(:)
	read -r -t "$1" -u "$never" || true
}

# stage TITLE COMMAND...: runs it with a line of progress, output in a log.
# Expects $stages (how many there will be) and $logs (a directory).
stage_no=0
# shellcheck disable=SC2154 # $stages and $logs are the caller's
stage() {
	local title=$1 log start now told line status=0
	shift
	stage_no=$((stage_no + 1))
	log=$logs/$stage_no-${title// /-}.log
	line="[$stage_no/$stages] $title ..."
	start=$SECONDS
	told=$start
	[ -t 1 ] || printf '%s' "$line"
	spawn "$@" >"$log" 2>&1
	while kill -0 "$child" 2>/dev/null; do
		now=$((SECONDS - start))
		if [ -t 1 ]; then
			printf '\r%s %s' "$line" "$(elapsed $now)"
		elif [ $((SECONDS - told)) -ge 60 ]; then
			told=$SECONDS
			printf '\n      still at it (%s, %d lines of log)' "$(elapsed $now)" "$(wc -l <"$log")"
		fi
		pause 0.1
	done
	wait "$child" || status=$?
	child=
	[ -t 1 ] && printf '\r%s' "$line"
	printf ' %s  log: %s\n' "$(elapsed $((SECONDS - start)))" "$log"
	[ "$status" = 0 ] || stage_failed "$title" "$log"
	grep '^note: ' "$log" || true
}

stage_failed() { # TITLE LOG
	local reason
	if grep -q 'No space left on device' "$2" || [ "$(free_space)" -lt 16 ]; then
		tail -n 5 "$2" >&2
		die "$1: the disk that holds $cache is full: free some space or set TOPDOWN_CACHE, then run again"
	fi
	if reason=$(grep '^error: ' "$2" | tail -n 1) && [ -n "$reason" ]; then
		die "${reason#error: }"
	fi
	# With make -j, the first errors may be far above the end.
	grep -E ': (fatal )?error: ' "$2" | grep -v '^collect2: ' | head -n 3 >&2 || tail -n 20 "$2" >&2
	die "$1 failed; the whole log: $2"
}
