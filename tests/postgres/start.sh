#!/usr/bin/env bash
# A PostgreSQL of the tests' own, from Debian's packages: private port and data, loopback only.
# Run twice it finds the first. It prints the URL, and nothing else, on the standard output:
#
#     export CARBS_TEST_POSTGRES=$(tests/postgres/start.sh)
#
# POSTGRES_TEST_ROOT (a folder in the temporary directory) and POSTGRES_TEST_PORT (27432) move it.
set -euo pipefail
root=${POSTGRES_TEST_ROOT:-${TMPDIR:-/tmp}/carbs-postgres}
port=${POSTGRES_TEST_PORT:-27432}
data=$root/data

find_bin() { bin=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1 || true); }
find_bin
if [ -z "$bin" ]; then
  [ "$(id -u)" = 0 ] || { echo "PostgreSQL is missing: apt-get install postgresql, or run as root" >&2; exit 1; }
  policy=/usr/sbin/policy-rc.d # keeps the package from starting a server
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql; } >&2
  find_bin
fi

# The server refuses to run as root.
as_postgres() { if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }

if [ ! -e "$data/PG_VERSION" ]; then
  mkdir -p "$root"
  [ "$(id -u)" != 0 ] || chown postgres "$root"
  as_postgres "$bin/initdb" --pgdata "$data" --username carbs --auth trust --no-sync >&2
fi
if ! as_postgres "$bin/pg_ctl" status --pgdata "$data" >/dev/null; then
  # Restarts in the tests are to be quick; the data need not outlive a power cut.
  options="-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
  as_postgres "$bin/pg_ctl" start --wait --pgdata "$data" --log "$root/log" --options "$options" >&2
fi
echo "postgresql+psycopg://carbs@127.0.0.1:$port/postgres"
