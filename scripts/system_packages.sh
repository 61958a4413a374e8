#!/usr/bin/env bash
# Installs what the tests use besides Python packages: Chromium and PostgreSQL's server. Where it cannot, it says how.
set -euo pipefail

missing=()
command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || missing+=(chromium)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || missing+=(postgresql)
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
else
  echo "not installed: ${missing[*]}. Tests that need them are skipped, and fail where CI=true."
  echo "On Debian or Ubuntu: sudo apt-get install ${missing[*]}"
fi
