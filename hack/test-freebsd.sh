#!/bin/sh
# Builds this tree for FreeBSD 15, pushes it to a FreeBSD host, and runs the unit
# tests and the integration tests there, with real bhyve machines. The host needs
# ssh and a root account, and no network of its own; see docs/freebsd.md.
#
#   HOST=[USER@]HOST[:PORT] hack/test-freebsd.sh [build] [push] [unit] [integration]
#
# Without arguments, all of these in turn. More from the environment:
#   SSH              how to call ssh, by default "ssh"; "serialsh -console PATH" for a
#                    host behind a serial console (integration/cmd/serialsh)
#   FREEBSD_SYSROOT  headers and libraries of FreeBSD 15; by default they are
#                    taken from the host once, into .cache/freebsd/sysroot
#   REMOTE_DIR       where to work on the host, by default /var/tmp/csb-test
#   TESTFLAGS        for the integration tests, such as "-test.run=TestMachine"
#   SLOW             how many times longer than usual things may take there, for a
#                    host that is emulated
set -eu
cd "$(dirname "$0")/.."
: "${HOST:?want HOST=[user@]host[:port]}" "${SSH:=ssh}" "${REMOTE_DIR:=/var/tmp/csb-test}"
: "${TESTFLAGS:=}" "${SLOW:=1}" "${GO:=go}"
work=.cache/freebsd
tree=$work/tree
: "${FREEBSD_SYSROOT:=$PWD/$work/sysroot}"

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

case ${HOST##*@} in
*:*) port=${HOST##*:} ;;
*) port=22 ;;
esac
# shellcheck disable=SC2086 # SSH is a command with arguments
remote() { $SSH -p "$port" "${HOST%":$port"}" "$@"; }

sysroot() {
	[ -e "$FREEBSD_SYSROOT/usr/include/vmmapi.h" ] && return
	say "headers and libraries from $HOST"
	mkdir -p "$FREEBSD_SYSROOT"
	remote "tar -C / -cf - lib usr/include usr/lib" | tar -C "$FREEBSD_SYSROOT" -xf -
}

# go for FreeBSD, with libvmmapi, and none of the compiler's warnings about the
# bridge to it: these are the real headers.
cross() {
	GOOS=freebsd GOARCH=amd64 CGO_ENABLED=1 \
		CC="${CLANG:-clang} --target=x86_64-unknown-freebsd15 --sysroot=$FREEBSD_SYSROOT" \
		CGO_CFLAGS="-O2 -g -Wall -Werror" CGO_LDFLAGS=-fuse-ld=lld "$GO" "$@"
}

build() {
	sysroot
	say "shim, pool daemon and tests for FreeBSD"
	rm -rf $tree
	mkdir -p $tree/bin $tree/.cache/bin $tree/.cache/images $tree/integration
	# What the lab takes for a checkout.
	cp go.mod Makefile $tree/
	cross build -trimpath -tags netgo,osusergo -o $tree/bin/ ./cmd/containerd-shim-bhyve-v2 ./cmd/bhyve-pool
	cross test -c -ldflags=-s -o $tree/integration/ ./integration
	# The guest image is built on Linux only, and foreign suites are judged there.
	GOOS=freebsd $GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./... |
		grep -v -e '/integration ' -e '/integration/conformance ' -e '/guest/build ' | while read -r package dir; do
		to=$tree/unit/${dir#"$PWD/"}
		mkdir -p "$to"
		cross test -c -ldflags=-s -o "$to/" "$package"
		[ ! -d "$dir/testdata" ] || cp -R "$dir/testdata" "$to/"
	done
	say "containerd for FreeBSD"
	GOOS=freebsd GOARCH=amd64 CGO_ENABLED=0 $GO build -C tools -ldflags=-s -o ../$tree/.cache/bin/ \
		github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr
	say "images"
	cp -R .cache/guest $tree/.cache/guest
	# The kernel as Debian has it, for the loader.
	cp .cache/vmlinuz $tree/.cache/guest/
	CGO_ENABLED=0 $GO build -trimpath -o $work/probe ./integration/probe
	$GO run ./integration/cmd/images -out $tree/.cache/images -probe $work/probe
	cp hack/freebsd-host.sh $tree/
}

push() {
	say "push to $HOST:$REMOTE_DIR"
	tar -C $tree -czf - . | remote "rm -rf '$REMOTE_DIR' && mkdir -p '$REMOTE_DIR' && tar -C '$REMOTE_DIR' -xzf -"
}

unit() {
	say "unit tests on $HOST"
	remote "cd '$REMOTE_DIR' && BHYVE_LAB_SLOW=$SLOW sh freebsd-host.sh unit"
}

integration() {
	say "integration tests on $HOST"
	remote "cd '$REMOTE_DIR' && BHYVE_LAB_SLOW=$SLOW sh freebsd-host.sh integration $TESTFLAGS"
}

[ $# -gt 0 ] || set -- build push unit integration
failed=
for step; do
	case $step in
	build | push) $step ;;
	# What fails in the one says nothing of the other.
	unit | integration) $step || failed="$failed $step" ;;
	*) echo "unknown step $step" >&2 && exit 64 ;;
	esac
done
[ -z "$failed" ] || { echo "failed:$failed" >&2 && exit 1; }
