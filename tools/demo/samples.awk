# SPDX-License-Identifier: GPL-2.0-only
# What the samples of "perf script -F event,period" add up to, as measure puts it,
# and the number of those taken by the instructions.

BEGIN {
	# Samples don't mention what hasn't moved.
	n = split("retiring bad-spec fe-bound be-bound heavy-ops br-mispredict fetch-lat mem-bound", names, " ")
	for (i = 1; i <= n; i++)
		sum["topdown-" names[i]] = 0
}

{
	sub(/:.*/, "", $2)
	sum[$2] += $1
	samples += $2 == "instructions"
}

END {
	slots = sum["slots"] ? sum["slots"] : 1
	printf "samples=%d slots=%.0f", samples, sum["slots"]
	for (event in sum) {
		name = event
		if (sub(/^topdown-/, "", name))
			printf " %s=%.2f", name, 100 * sum[event] / slots
	}
	print ""
}
