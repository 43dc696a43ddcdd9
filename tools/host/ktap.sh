# SPDX-License-Identifier: GPL-2.0-only
# Sourced by what runs selftests, in the emulated host and in the kit: results as KTAP.

# A test that prints TAP becomes a nested KTAP test; the output of others
# becomes diagnostics.
as_ktap() {
	awk '
		/^K?TAP version/ { nested = "  " }
		!/^(K?TAP version|1\.\.[0-9]+|ok [0-9]|not ok [0-9]|#)/ || !nested { $0 = "# " $0 }
		{ print nested $0; fflush() }'
}

skip_reason() { # OUTPUT
	reason=$(sed -n 's/.*# SKIP[ -]*//p; s/,* *skipping test.*//p' "$1" | tail -n 1)
	echo "${reason:-exit status 4}"
}

# The result of a test, from its exit status and a file of its output.
passed=0 failed=0 skipped=0
conclude() { # NUMBER NAME STATUS OUTPUT
	case $3 in
	0)
		passed=$((passed + 1))
		echo "ok $1 $2"
		;;
	4)
		skipped=$((skipped + 1))
		echo "ok $1 $2 # SKIP $(skip_reason "$4")"
		;;
	*)
		failed=$((failed + 1))
		echo "not ok $1 $2 # exit status $3"
		;;
	esac
}
