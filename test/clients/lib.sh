# Words for the scripts beside it: a script ends at the first thing that is not
# as it should be. The test that runs them gives
#
#   DOCKER         the docker client, with its plugins in DOCKER_CONFIG
#   ONGGI          the command line of Onggi
#   DOCKER_HOST    an engine with the image busybox, and ONGGI_HOST the same
#   REGISTRY       a registry that wants REGISTRY_USER and REGISTRY_PASSWORD
#
# and an empty working directory.
set -Eeuo pipefail
trap 'printf "%s: line %s: status %s from: %s\n" "$0" "$LINENO" "$?" "$BASH_COMMAND" >&2' ERR

docker() { "$DOCKER" "$@"; }

wrong() { # what, output
	printf '%s: line %s: %s\n%s\n' "$0" "${BASH_LINENO[1]}" "$1" "${2:-}" >&2
	exit 1
}

same() { # want, got
	[ "$1" = "$2" ] || wrong "want \"$1\"" "got  \"$2\""
}

has() { # words, output
	case $2 in *"$1"*) ;; *) wrong "no \"$1\" in" "$2" ;; esac
}

hasnt() { # words, output
	case $2 in *"$1"*) wrong "\"$1\" in" "$2" ;; esac
}

fails() { # status, words, command...
	local status=$1 words=$2 out got=0
	shift 2
	out=$("$@" 2>&1 </dev/null) || got=$?
	[ "$got" = "$status" ] || wrong "\"$*\" ended with $got, not $status" "$out"
	has "$words" "$out"
}

until_true() { # command...: waits until it works
	local i
	for i in $(seq 300); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	wrong "\"$*\" does not come true"
}

# terminal COMMAND: runs it with a terminal; what is typed comes from stdin
terminal() { script -qec "$1" /dev/null; }
