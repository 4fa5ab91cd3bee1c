#!/bin/sh
# Checks that the programs are there which tests and demo need beside cargo: `tools.sh [postgres]`,
# with an argument only for that one. In CI, and for root on Debian or Ubuntu, it installs what is
# missing; elsewhere it says what to install.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

fail() {
    echo "$*" >&2
    exit 1
}

has_postgres() {
    [ -n "${UNANIMOUS_POSTGRES_BIN:-}" ] && return 0
    have initdb && have postgres && return 0
    for initdb in /usr/lib/postgresql/*/bin/initdb; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    have apt-get && { [ "${CI:-}" = true ] || [ "$(id -u)" = 0 ]; }
}

install_package() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"
}

install_postgres() {
    as_root apt-get update
    install_package postgresql-common
    # Debian starts a server of its own with the package. It would only stand in the way.
    as_root sed -i -E 's/^#? *create_main_cluster.*/create_main_cluster = false/' \
        /etc/postgresql-common/createcluster.conf
    install_package postgresql
}

have setpriv || fail "setpriv is missing: it is part of util-linux; tests and demo need Linux"

if ! has_postgres; then
    if may_install; then
        install_postgres
    else
        fail "the Postgres server programs (initdb, postgres) are missing. Debian, Ubuntu:" \
            "apt-get install postgresql; Fedora: dnf install postgresql-server; elsewhere install" \
            "Postgres 14 or newer and set UNANIMOUS_POSTGRES_BIN to the directory of its programs"
    fi
fi

[ "${1:-}" = postgres ] && exit 0

# A test types what the pages tell a reader to type; another one makes certificates; mutants are patches.
updated=
for wanted in curl:curl psql:postgresql-client sqlite3:sqlite3 openssl:openssl patch:patch; do
    program=${wanted%:*} package=${wanted#*:}
    have "$program" && continue
    if may_install; then
        [ -n "$updated" ] || as_root apt-get update
        updated=yes
        install_package "$package"
    else
        fail "$program is missing, which tests run. Debian, Ubuntu: apt-get install $package;" \
            "elsewhere install the package that has it"
    fi
done

# The participant in Python is checked with the first of these that has what it needs.
has_psycopg() {
    for python in python3 /usr/bin/python3; do
        "$python" -c 'import sys, psycopg; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && return 0
    done
    return 1
}

if ! has_psycopg; then
    if may_install; then
        [ -n "$updated" ] || as_root apt-get update
        install_package python3-psycopg
    fi
    has_psycopg || fail "Python 3.10 or newer with psycopg 3 is missing, which a test runs. Debian, Ubuntu:" \
        "apt-get install python3-psycopg; elsewhere pip install 'psycopg[binary]'"
fi

if ! cargo nextest --version >/dev/null 2>&1; then
    if [ "${CI:-}" = true ]; then
        cargo install cargo-nextest --locked --version 0.9.143
    else
        fail "cargo-nextest is missing: cargo install cargo-nextest --locked"
    fi
fi
