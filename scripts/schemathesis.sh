#!/bin/sh
# Makes requests up from the coordinator's own OpenAPI description, good ones and bad ones, sends them to a coordinator on
# a log of its own, and holds every answer against that description. It must find nothing.
#
# `SEED=n` makes up others; `EXAMPLES=n` makes more for each route.
set -eu
cd "$(dirname "$0")/.."

version=4.32.5
target=${CARGO_TARGET_DIR:-target}
venv=$target/schemathesis

if [ "$("$venv/bin/st" --version 2>/dev/null)" != "st, version $version" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
fi
cargo build --quiet -p unanimous --bins

directory=$(mktemp -d)
participants='' coordinator=''
finish() {
    status=$?
    # shellcheck disable=SC2086 # none of them is one word
    kill $coordinator $participants 2>/dev/null || true
    [ $status = 0 ] || tail -n 20 "$directory/coordinator.err" 2>/dev/null || true
    rm -rf "$directory" .schemathesis
    exit $status
}
trap finish EXIT
trap 'exit 1' INT TERM

# Waits until the file's first line is there, and prints it.
first_line() {
    tries=0
    until [ -s "$1" ]; do
        tries=$((tries + 1))
        [ $tries -le 200 ] || { echo "nothing in $1" >&2; return 1; }
        sleep 0.1
    done
    head -n 1 "$1"
}

given=''
for name in east west; do
    "$venv/bin/python" scripts/schemathesis/participant.py "$name" >"$directory/$name" &
    participants="$participants $!"
    given="$given --participant $name=$(first_line "$directory/$name")"
done
# shellcheck disable=SC2086 # words, not one
"$target/debug/unanimous" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 \
    --log "sqlite:$directory/log.sqlite" $given >"$directory/ready" 2>"$directory/coordinator.err" &
coordinator=$!
ready=$(first_line "$directory/ready")
listen=$(echo "$ready" | sed 's/.*listen=\([^ ]*\).*/\1/')
admin=$(echo "$ready" | sed 's/.*admin=\([^ ]*\).*/\1/')

# Left out: positive_data_acceptance. A request may be as described and name a participant that nobody registered, or one
# participant twice, and is refused for that (400): no schema can say so.
# One worker: Python 3.11 loses count of its recursion when several threads parse at once.
check() {
    SCHEMATHESIS_HOOKS=scripts.schemathesis.hooks PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 \
        "$venv/bin/st" run "http://$listen/openapi.json" --url "http://$1" --include-path-regex "$2" \
        --checks all --exclude-checks positive_data_acceptance \
        --max-examples "${EXAMPLES:-25}" --seed "${SEED:-1}" --request-timeout 10 --workers 1 \
        --suppress-health-check all --continue-on-failure
}
check "$listen" '^/(v1/|openapi)'
check "$admin" '^/(admin/|healthz|readyz|metrics)'
kill -0 "$coordinator"
