#!/usr/bin/env bash
# Stops what start.sh started, by the process ids it wrote down. --purge also deletes its folder.
set -uo pipefail
ROOT=${CARBS_SLURM_ROOT:-${TMPDIR:-/tmp}/carbs-slurm}
export SLURM_CONF=$ROOT/etc/slurm.conf PATH=/usr/sbin:/sbin:$PATH

if timeout 5 scontrol ping >/dev/null 2>&1; then
  timeout 10 scancel --user="$(id -un)" 2>/dev/null
  for _ in $(seq 100); do
    [ -z "$(timeout 5 squeue -h -o %i 2>/dev/null)" ] && break
    sleep 0.2
  done
fi

up() { [ -r "/proc/$1/status" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }
stop() { # pid file, name
  [ -s "$1" ] || return 0
  local pid
  pid=$(cat "$1")
  if up "$pid" && grep -qa "$2" "/proc/$pid/cmdline"; then
    kill "$pid"
    for _ in $(seq 100); do
      up "$pid" || break
      sleep 0.1
    done
    ! up "$pid" || kill -9 "$pid"
  fi
  rm -f "$1"
}
stop "$ROOT/run/slurmctld.pid" slurmctld
for file in "$ROOT"/run/slurmd-*.pid; do stop "$file" slurmd; done
stop "$ROOT/run/slurmdbd.pid" slurmdbd
stop "$ROOT/run/mariadb.pid" mariadbd
stop "$ROOT/run/munged.pid" munged
[ "${1:-}" != --purge ] || rm -rf "$ROOT"
