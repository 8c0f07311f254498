#!/usr/bin/env bash
# Installs the Debian packages that the tests need when run as root, else says exactly which are missing.
set -euo pipefail

# The real peers of the tests, as "command Debian-package".
needed=(
  "Orthanc orthanc" "dciodvfy dicom3tools" "dsrdump dcmtk" "storescp dcmtk" "chromium chromium" "nginx nginx-light"
  "strace strace" "systemd-analyze systemd" "pg_ctl postgresql" "npm npm" "runuser util-linux" "curl curl"
)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for entry in "${needed[@]}"; do
  read -r command package <<<"$entry"
  command -v "$command" >/dev/null || ls /usr/lib/postgresql/*/bin/"$command" >/dev/null 2>&1 || missing+=("$package")
done
ls /usr/share/orthanc/plugins/libOrthancDicomWeb.so* >/dev/null 2>&1 || missing+=(orthanc-dicomweb)
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" -ne 0 ]; then
  echo "The tests need these Debian packages; install them and run again:" >&2
  echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 69
fi
echo "Installing ${missing[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
