#!/bin/sh
# Runs Go tests, and those that failed a second time: usage
# run-tests.sh GOTESTSUM FORMAT 'PACKAGES' FLAG..., where FORMAT is one of
# gotestsum's. See docs/decisions/0070-second-try.md.
set -eu
gotestsum=$1 format=$2 packages=$3
shift 3
[ -n "$packages" ] || { echo "run-tests: no packages" >&2; exit 2; }
json=$(mktemp)
trap 'rm -f "$json"' EXIT
"$gotestsum" --format "$format" --jsonfile "$json" \
	--rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-abort-on-data-race \
	--packages="$packages" -- "$@"
# A package that failed though none of its tests did (what TestMain looks for, such
# as a leak) is run again without a test, and passes.
if grep -q 'no tests to run' "$json"; then
	echo "run-tests: a package failed, and none of its tests did" >&2
	exit 1
fi
