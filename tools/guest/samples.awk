# SPDX-License-Identifier: GPL-2.0-only
# What the samples of "perf script -F event,period" add up to, as measure puts it,
# and the number of those taken by the instructions; of a single sample the most
# instructions, and how far the metrics of level 1 are from 100 %.

# Of the events of a sample SLOTS comes first.
function end_sample(   off) {
	if (!slots)
		return
	off = 100 * level_1 / slots - 100
	off = off < 0 ? -off : off
	if (off > worst)
		worst = off
	level_1 = 0
}

{
	sub(/^cpu_core\//, "", $2)
	sub(/[:\/].*/, "", $2)
	sub(/^topdown-/, "", $2)
	sum[$2] += $1
}
$2 == "slots" { end_sample(); slots = $1 }
$2 ~ /^(retiring|bad-spec|fe-bound|be-bound)$/ { level_1 += $1 }
$2 == "instructions" {
	samples++
	if ($1 > longest)
		longest = $1
}

END {
	end_sample()
	printf "samples=%d longest=%d worst=%.2f slots=%.0f", samples, longest, worst, sum["slots"]
	n = split("retiring bad-spec fe-bound be-bound heavy-ops br-mispredict fetch-lat mem-bound", names, " ")
	for (i = 1; i <= n; i++)
		printf " %s=%.2f", names[i], 100 * sum[names[i]] / (sum["slots"] ? sum["slots"] : 1)
	print ""
}
