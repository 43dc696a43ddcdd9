# SPDX-License-Identifier: GPL-2.0-only
# What the samples of "perf script -F event,period" add up to, as measure puts it,
# and the number of those taken by the instructions; of a single sample the most
# instructions, and how far the metrics of level 1 are from 100 %.

BEGIN {
	# Samples don't mention what hasn't moved.
	n = split("retiring bad-spec fe-bound be-bound heavy-ops br-mispredict fetch-lat mem-bound", names, " ")
	for (i = 1; i <= n; i++)
		sum["topdown-" names[i]] = 0
}

# Of the events of a sample SLOTS comes first.
function end_sample(   off) {
	if (!slots_here)
		return
	off = 100 * level_1 / slots_here - 100
	off = off < 0 ? -off : off
	if (off > worst)
		worst = off
	slots_here = level_1 = 0
}

{
	sub(/:.*/, "", $2)
	sum[$2] += $1
}
$2 == "slots" { end_sample(); slots_here = $1 }
$2 ~ /^topdown-(retiring|bad-spec|fe-bound|be-bound)$/ { level_1 += $1 }
$2 == "instructions" {
	samples++
	if ($1 > longest)
		longest = $1
}

END {
	end_sample()
	slots = sum["slots"] ? sum["slots"] : 1
	printf "samples=%d longest=%d worst=%.2f slots=%.0f", samples, longest, worst, sum["slots"]
	for (event in sum) {
		name = event
		if (sub(/^topdown-/, "", name))
			printf " %s=%.2f", name, 100 * sum[event] / slots
	}
	print ""
}
