#!/bin/sh
# collect.sh WHAT COUNT [LOGS]: the last COUNT lines of this machine's kernel, system or packages log, whichever source
# works here; on standard error, where they are from. LOGS is the folder of log files, if not /var/log.
# Nothing readable is no error: then there are no lines. Where no log at all can be read, the system's lines are a
# sample, and are said to be.
what=$1
count=${2:-25}
logs=${3:-/var/log}

# The command's last lines, if it prints any; then there is no more to do.
try() {
  source=$1
  shift
  lines=$("$@" 2>/dev/null | grep -v '^-- ' | tail -n "$count") && [ -n "$lines" ] || return 1
  printf '%s\n' "$lines"
  printf '%s\n' "$source" >&2
  exit 0
}

try_file() {
  if [ -f "$1" ] && [ -r "$1" ]; then try "$1" tail -n "$count" "$1"; fi
}

case $what in
kernel)
  try dmesg dmesg
  try "journalctl -k" journalctl -k --no-pager -n "$count"
  try_file "$logs"/kern.log
  ;;
system)
  try journalctl journalctl --no-pager -n "$count"
  try_file "$logs"/syslog
  try_file "$logs"/messages
  try_file "$logs"/system.log
  case $(uname) in Darwin) try "log show" log show --last 2m --style syslog ;; esac
  try_file "$logs"/alternatives.log
  if [ -z "$(sh "$0" kernel 1 "$logs" 2>/dev/null; sh "$0" packages 1 "$logs" 2>/dev/null)" ]; then
    try "a sample that comes with Hermes: no log of this machine can be read" cat "$(dirname "$0")/sample.log"
  fi
  ;;
packages)
  for log in dpkg.log apt/history.log dnf.rpm.log dnf.log yum.log pacman.log zypp/history apk.log install.log; do
    try_file "$logs/$log"
  done
  ;;
*)
  echo "collect.sh: $what is none of kernel, system, packages" >&2
  exit 2
  ;;
esac
echo "nothing that can be read" >&2
