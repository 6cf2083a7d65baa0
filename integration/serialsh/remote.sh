# What runs on the other side: it takes one request a line from the terminal,
#
#	SEQ VERB ARGS...=SEQ VERB ARGS...
#
# twice in it, so that one that a noisy line has changed is not carried out, and
# answers with a frame. Each may be asked for again: an answer can get lost.
# Only what is in every FreeBSD is used. Its directory is $1; $2 is what it says
# that it is up with.
cd "$1" || exit
dec() { if command -v b64decode >/dev/null; then b64decode -r; else base64 -d; fi; }
enc() { if command -v b64encode >/dev/null; then b64encode -r -; else base64; fi; }
bare() { printf '\001%s %s\002\n' "$1" "$2"; }
# The checksum is gzip's own.
frame() { printf '\001%s .' "$1"; gzip -1c | enc; printf '\002\n'; }

mkfifo stdin
exec 9<>stdin
: >out
: >err
taken=0 job='' feeder=''

# apart runs a function in the background, in a group of its own, by which it is
# ended with all that it has started; as it is where the terminal is not the
# session's, and there are no groups.
apart() {
	set -m 2>/dev/null
	"$@" &
	set +m 2>/dev/null
}
signal() { kill "-$1" "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null; }

begin() {
	# Its end of input is that of whoever else could write to it.
	exec <stdin 9>&-
	# It outlives what is for the command: caught, not ignored, which would be
	# inherited. What it says of the command's death is nobody's.
	trap : HUP INT TERM
	{ sh in.0 >out 2>err; echo $? >code.new; } 2>/dev/null
	mv code.new code
}

feed() {
	cat "$1" >&9
	rm "$1"
}

# put SEQ N: piece N follows, up to a dot. The first is the command, the others are
# its input, each when the one before has been read.
put() {
	if [ "$2" -lt "$taken" ]; then
		bare "$1" done
		return
	fi
	if [ "$2" -gt 1 ] && [ -e "in.$(($2 - 1))" ]; then
		bare "$1" busy
		return
	fi
	bare "$1" ready
	# A terminal gives a line at a time, so none after the dot is read.
	if ! sed -n '/^[.]/q;p' | dec 2>/dev/null | gzip -dc >new 2>/dev/null; then
		bare "$1" damaged
		return
	fi
	mv new "in.$2"
	taken=$(($2 + 1))
	if [ "$2" = 0 ]; then
		apart begin
		job=$!
	else
		apart feed "in.$2"
		feeder=$!
	fi
	bare "$1" done
}

# get SEQ OUT ERR MOST: the code, if it has ended, and what there is of its output
# from these offsets on.
get() {
	code=-
	[ ! -e code ] || read -r code <code
	tail -c "+$(($2 + 1))" out | head -c "$4" >some.out
	tail -c "+$(($3 + 1))" err | head -c "$4" >some.err
	{
		echo "$code $(($(wc -c <some.out))) $(($(wc -c <some.err)))"
		cat some.out some.err
	} | frame "$1"
}

bare "$2" up
while IFS= read -r line; do
	[ -n "$line" ] && [ "${line%%=*}" = "${line#*=}" ] || continue
	# shellcheck disable=SC2086 # words are what it is made of
	set -- ${line%%=*}
	[ $# -ge 2 ] || continue
	seq=$1 verb=$2
	shift 2
	case $verb in
	put) put "$seq" "$1" ;;
	get) get "$seq" "$@" ;;
	eof)
		if [ "$taken" -gt 1 ] && [ -e "in.$((taken - 1))" ]; then
			bare "$seq" busy
		else
			exec 9>&-
			bare "$seq" done
		fi
		;;
	kill)
		[ -z "$job" ] || signal "$1" "$job"
		[ "$1" != KILL ] || echo 137 >code
		bare "$seq" done
		;;
	end)
		[ -z "$feeder" ] || signal KILL "$feeder"
		# Only where the other side has given up.
		[ -z "$job" ] || [ -e code ] || signal KILL "$job"
		bare "$seq" done
		break
		;;
	esac
done
