#!/bin/sh
# Builds the minimal guest kernel from Debian's kernel source: usage
# guest-kernel.sh OUT, a file. What was built of the same inputs before is kept
# in OUT's directory and used again.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
lock=$here/guest/kernel/source.lock
config=$here/guest/kernel/config
out=$1
mkdir -p "$(dirname "$out")"
cache=$(cd "$(dirname "$out")" && pwd)

key=$({ cat "$0" "$lock" "$config"; gcc -dumpfullversion; ld -v; } | sha256sum | cut -c1-16)
kept=$cache/vmlinux-$key
if [ ! -f "$kept" ]; then
	tmp=$(mktemp -d "$cache/build-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	# The format of guest/inputs.lock: package version architecture sha256.
	read -r package version arch sum <<-EOF
		$(grep -v '^#' "$lock")
	EOF
	echo "guest-kernel: fetching $package $version"
	fetch() { (cd "$tmp" && apt-get -q -o APT::Sandbox::User=root download "$package=$version"); }
	fetch || { apt-get -q update && fetch; }
	echo "$sum  $tmp/${package}_${version}_$arch.deb" | sha256sum --check --quiet
	dpkg-deb --extract "$tmp"/*.deb "$tmp/deb"
	mkdir "$tmp/src"
	tar -C "$tmp/src" --strip-components 1 -xf "$tmp/deb/usr/src/$package.tar.xz"

	echo "guest-kernel: building (some minutes)"
	# Nothing of this machine or moment is to be in the kernel.
	export KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=build KBUILD_BUILD_HOST=build
	kernel() { make -C "$tmp/src" -s -j "$(nproc)" "$@"; }
	kernel KCONFIG_ALLCONFIG="$config" allnoconfig
	# An option that is wanted may not be lost to a dependency unnoticed.
	if grep '^CONFIG_' "$config" | grep -v '=n$' | grep -vxFf "$tmp/src/.config"; then
		echo "guest-kernel: the options above are not in the resulting configuration" >&2
		exit 1
	fi
	kernel vmlinux
	strip --strip-all -o "$tmp/vmlinux" "$tmp/src/vmlinux"
	mv "$tmp/vmlinux" "$kept"
fi
cp "$kept" "$out.new"
mv "$out.new" "$out"
