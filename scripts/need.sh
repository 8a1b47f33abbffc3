#!/usr/bin/env bash
# Installs the Debian package PACKAGE, unless COMMAND succeeds: need.sh COMMAND PACKAGE NAME
# Without apt-get it fails, and the message names what to install.
set -euo pipefail
if bash -c "$1" >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null; then
	echo "error: $3 is missing, and this system has no apt-get to install it; install it yourself and try again" >&2
	exit 1
fi
echo "installing the Debian package $2"
sudo=
if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
$sudo sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $2" >/dev/null
