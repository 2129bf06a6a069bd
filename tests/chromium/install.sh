#!/usr/bin/env bash
# Chromium and its driver from Debian's packages, for the tests that open pages. Installs them where
# they are missing and this is root. Nothing is started here: the tests start their own.
set -euo pipefail
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "Chromium is missing: apt-get install chromium chromium-driver, or run as root" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >&2
fi
