#!/usr/bin/env bash
# Brings up a real Slurm on this machine: munge, slurmdbd on MariaDB, slurmctld and four emulated nodes
# with fake GPUs. No systemd, no cgroups, loopback only. May be called again. Installs Debian's packages
# where they are missing and this is root. Prints what to export.
#
#   CARBS_SLURM_ROOT   where everything lies (a folder in the temporary directory)
#   CARBS_SLURM_PORT   the first of some twenty ports (28000)
set -euo pipefail
ROOT=${CARBS_SLURM_ROOT:-${TMPDIR:-/tmp}/carbs-slurm}
PORT=${CARBS_SLURM_PORT:-28000}
HOST=$(hostname -s)
ME=$(id -un)
export SLURM_CONF=$ROOT/etc/slurm.conf PATH=/usr/sbin:/sbin:$PATH

if ! command -v slurmctld >/dev/null || ! command -v slurmdbd >/dev/null || ! command -v mariadbd >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "Slurm is not installed, and only root can install it" >&2; exit 1; }
  made_policy=
  if [ ! -e /usr/sbin/policy-rc.d ]; then # keeps the packages from starting their own daemons
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    made_policy=1
  fi
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
      slurmctld slurmd slurm-client slurmdbd slurm-wlm-basic-plugins slurm-wlm-mysql-plugin \
      munge mariadb-server-core mariadb-client-core; } >&2
  [ -z "$made_policy" ] || rm -f /usr/sbin/policy-rc.d
fi

mkdir -p "$ROOT"/{etc,run,log,state,spool,dev,munge}
chmod 700 "$ROOT/munge"

alive() { # pid file, name
  [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null && grep -qa "$2" "/proc/$(cat "$1")/cmdline"
}
wait_for() { # what, command...
  local what=$1
  shift
  for _ in $(seq 300); do
    if timeout 5 "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "$what does not come up: see $ROOT/log" >&2
  exit 1
}

# Two partitions, of which one preempts the other. Without a GPU's device file the node is invalid,
# with a plain file CUDA_VISIBLE_DEVICES stays empty. cred_expire shortens the time until a requeued
# job may start again from two minutes to some seconds.
ln -sfn /dev/null "$ROOT/dev/gpu0"
ln -sfn /dev/null "$ROOT/dev/gpu1"
cat >"$ROOT/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=$PORT
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$ROOT/run/munge.socket
AccountingStorageTRES=gres/gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_min_age_reserve=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MessageTimeout=10
SlurmdTimeout=15
SlurmctldTimeout=15
InactiveLimit=0
OverTimeLimit=0
GresTypes=gpu
DefMemPerCPU=1000
NodeName=n[1-4] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PORT + 11))-$((PORT + 14))] CPUs=4 RealMemory=4000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
CONF
cat >"$ROOT/etc/gres.conf" <<CONF
AutoDetect=off
NodeName=n[1-4] Name=gpu Type=fake File=$ROOT/dev/gpu[0-1]
CONF
(
  umask 077
  cat >"$ROOT/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=$ME
PidFile=$ROOT/run/slurmdbd.pid
LogFile=$ROOT/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
)

[ -s "$ROOT/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$ROOT/munge/key")
if ! alive "$ROOT/run/munged.pid" munged; then
  rm -f "$ROOT"/run/munge.socket*
  munged --key-file="$ROOT/munge/key" --socket="$ROOT/run/munge.socket" \
    --pid-file="$ROOT/run/munged.pid" --seed-file="$ROOT/munge/seed" --log-file="$ROOT/log/munged.log"
fi
wait_for munged bash -c "munge -S $ROOT/run/munge.socket -n | unmunge -S $ROOT/run/munge.socket"

if [ ! -d "$ROOT/mysql/mysql" ]; then
  mkdir -p "$ROOT/mysql"
  mariadb-install-db --no-defaults --user="$ME" --datadir="$ROOT/mysql" --skip-test-db \
    --auth-root-authentication-method=normal >"$ROOT/log/mariadb-install.log" 2>&1
fi
SOCKET=$ROOT/run/mariadb.socket
if ! alive "$ROOT/run/mariadb.pid" mariadbd; then
  setsid nohup mariadbd --no-defaults --user="$ME" --datadir="$ROOT/mysql" --socket="$SOCKET" \
    --bind-address=127.0.0.1 --port=$((PORT + 2)) --pid-file="$ROOT/mysql/pid" --skip-name-resolve \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
    --innodb-log-file-size=32M --skip-log-bin >"$ROOT/log/mariadb.log" 2>&1 </dev/null &
  echo $! >"$ROOT/run/mariadb.pid"
fi
SQL="mariadb --no-defaults -u root -S $SOCKET"
wait_for mariadbd $SQL -e 'select 1'
$SQL -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
         CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
         GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"

alive "$ROOT/run/slurmdbd.pid" slurmdbd || slurmdbd
wait_for slurmdbd sacctmgr -n show cluster
sacctmgr -n -P show cluster format=cluster | grep -qx test || sacctmgr -i add cluster test >/dev/null
alive "$ROOT/run/slurmctld.pid" slurmctld || slurmctld
wait_for slurmctld scontrol ping
for node in n1 n2 n3 n4; do
  alive "$ROOT/run/slurmd-$node.pid" slurmd || slurmd -N "$node"
done
# Nodes that an earlier test has set down come back.
down=$(sinfo -h -N -p main -t down,drain,drained,draining,fail -o %N | sort -u | paste -sd,)
[ -z "$down" ] || scontrol update nodename="$down" state=resume || true
four_are_up() { [ "$(sinfo -h -N -p main -t idle,mix,alloc --responding -o %N | sort -u | wc -l)" = 4 ]; }
export -f four_are_up
wait_for "a node" bash -c four_are_up
echo "export SLURM_CONF=$SLURM_CONF"
