# SPDX-License-Identifier: GPL-2.0-only
# For gates that compile some directories of a kernel, without a vmlinux that modules
# could be linked for.

# Where the series changes C files.
directories=(arch/x86/kvm/ arch/x86/events/ virt/kvm/)

# Modules get these in ways of their own, not by EXPORT_SYMBOL(name).
generated='__this_module|param_(ops|get|set)_.*|__SCT__.*|atomic64_.*'

# Fails if the series changes C files that are not built here.
check_directories() {
	local other
	other=$(series_files -- '*.c' '*.S' "${directories[@]/#/:!}" ':!tools' ':!samples')
	[ -z "$other" ] || die "not built by this gate: ${other//$'\n'/ }"
}

# The lab's configuration, and these options.
# shellcheck disable=SC2154 # $tree and $out are the gate's
configure_gate() { # MAKE OPTION=VALUE...
	mkdir -p "$out"
	printf 'CONFIG_%s\n' "${@:2}" >"$out/wanted.config"
	configure "$tree" "$out" "$1" "$repo/arch/x86/configs/kvm_topdown_lab.config" "$out/wanted.config"
}

# What the kernel exports, according to its source, and what was built here does.
exported() { # TREE BUILD [PATHSPEC...]
	{
		git -C "$1" grep -hF EXPORT_ -- '*.[chS]' ':!arch/' "${directories[@]/#/:!}" "${@:3}"
		git -C "$1" grep -hF EXPORT_ -- 'arch/x86/*.[chS]' "${directories[@]/#/:!}"
	} | grep -oE '\bEXPORT_[A-Z_]*\([a-zA-Z0-9_]+' | cut -d'(' -f2
	find "${directories[@]/#/$2/}" -name '*.o' -exec nm {} + 2>/dev/null | sed -n 's/.* __export_symbol_//p'
}

# What a module needs, but isn't among that. Prints it in one line.
not_exported() { # BUILD
	comm -23 "$1/needed" "$1/exported" | grep -vxE "$generated" | tr '\n' ' '
}

# Fails unless KVM's modules were built, with nothing in them that no one exports.
# Symbols that vmlinux lacks go unnoticed.
check_modules() { # NAME TREE BUILD
	local module missing
	# All drivers take long to search, and of them KVM needs cpufreq. If anything is
	# missing after that, search all.
	exported "$2" "$3" ':!drivers/[!c]*' ':!sound' | sort -u >"$3/exported"
	for module in KVM:kvm KVM_INTEL:kvm-intel KVM_AMD:kvm-amd; do
		grep -q "^CONFIG_${module%:*}=m" "$3/.config" || continue
		module=${module#*:}
		[ -s "$3/arch/x86/kvm/$module.o" ] || die "$1: $module was not built"
		nm -u "$3/arch/x86/kvm/$module.o" | sed 's/.* //' | sort -u >"$3/needed"
		missing=$(not_exported "$3") || true
		if [ -n "$missing" ]; then
			exported "$2" "$3" | sort -u >"$3/exported"
			missing=$(not_exported "$3") || true
		fi
		[ -z "$missing" ] || die "$1: $module needs what no one exports: $missing"
	done
}
