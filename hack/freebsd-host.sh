#!/bin/sh
# The part of test-freebsd.sh that runs on the FreeBSD host, in the directory that
# was pushed: freebsd-host.sh unit | integration [FLAG...]
set -eu
cd "$(dirname "$0")"

prepare() {
	for module in vmm nullfs if_tuntap pf dummynet; do
		# What is built into the kernel answers "already loaded or in kernel".
		kldload -n $module 2>/dev/null || kldstat -q -m $module ||
			echo "note: no module $module" >&2
	done
	# The rules of a host that has some are its own business.
	if [ -z "$(pfctl -s rules 2>/dev/null)" ]; then
		# It complains of a host without /etc/pf.os, and loads them all the same.
		pfctl -q -f - <<-'RULES' || :
			set state-policy if-bound
			ether block in quick on cubetap
			ether anchor "cube/*" on cubeguest
			nat-anchor "cube/*"
			rdr-anchor "cube/*"
			pass in quick on bhyvelink inet6 proto tcp all flags A/A no state
			pass in quick on bhyvelink inet6 proto tcp all flags R/R no state
			block drop in quick on bhyvelink all
			pass out quick on bhyvelink all no state
			anchor "cube/*"
			block drop quick on cubeguest all
		RULES
	fi
	pfctl -s info | grep -q 'Status: Enabled' || pfctl -q -e
}

unit() {
	# Not /tmp: tmpfs(5) does not open files that have no name any more.
	TMPDIR=$PWD/tmp
	export TMPDIR
	mkdir -p "$TMPDIR"
	export BHYVE_GUEST_DIR="$PWD/.cache/guest"
	failed=
	for test in $(find unit -name '*.test' | sort); do
		echo "$test"
		(cd "$(dirname "$test")" && "./$(basename "$test")" -test.timeout=30m) || failed="$failed $test"
	done
	[ -z "$failed" ] || { echo "failed:$failed" >&2 && return 1; }
}

integration() {
	code=0
	# A pool of this name is there to be tested in: zpool create csb-test DISK
	if zpool list -H -o name csb-test >/dev/null 2>&1; then
		export BHYVE_TEST_ZPOOL=csb-test
	fi
	(cd integration && PATH=$PATH:/sbin:/usr/sbin ./integration.test -test.v -test.timeout=$((60 * ${BHYVE_LAB_SLOW:-1}))m "$@") || code=$?
	# The tests look for themselves; this is in case they were ended.
	left=$(ls /dev/vmm 2>/dev/null || :; ifconfig -g bhyvelink || :; pgrep -fl 'containerd-shim-bhyve|bhyve: csb-' || :)
	[ -z "$left" ] || { echo "left behind: $left" >&2 && return 1; }
	return $code
}

step=$1
shift
prepare
$step "$@"
