#!/usr/bin/env bash
# Stop what start.sh has started; its data stay. Give "restart" to have it up again at once.
set -euo pipefail
root=${POSTGRES_TEST_ROOT:-${TMPDIR:-/tmp}/carbs-postgres}
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
as_postgres() { if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }
log=()
[ "${1:-stop}" = stop ] || log=(--log "$root/log")
# Its clients are cut off, as by an administrator in a hurry.
as_postgres "$bin/pg_ctl" "${1:-stop}" --wait --mode fast --pgdata "$root/data" "${log[@]}" >&2
