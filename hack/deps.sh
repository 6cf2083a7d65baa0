#!/bin/sh
# Installs the Debian packages that the build and the tests need, if any is
# missing: usage deps.sh PACKAGE...
set -eu
missing=
for package; do
	case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
	*' installed') ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

echo "installing:$missing"
install() {
	# shellcheck disable=SC2086 # the list is meant to be split
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing </dev/null
}
# The package lists of a fresh machine are empty or old.
install || { apt-get update -q && install; }
