#!/usr/bin/env bash
# Serves the OHIF viewer beside an Orthanc with DICOMweb, by an nginx of its own.
#
#   serve.sh --orthanc http://127.0.0.1:8042 --port 8080     in the foreground; ends with Ctrl-C or SIGTERM
#   serve.sh --port 8080 --stop                              ends the one on that port
#   serve.sh --fetch                                         only downloads and unpacks OHIF
#
# Further options: --address ADDRESS to listen on (127.0.0.1; put TLS and a login in front before opening it to others),
# --folder FOLDER for the download and the run files (${XDG_CACHE_HOME:-~/.cache}/veilray-ohif).
# Needs nginx, and npm for the first start; npm's own configuration says where it downloads from.
set -euo pipefail

package=@ohif/app@3.13.2
archive=ohif-app-3.13.2.tgz
# The archive as published; another content is refused.
sha512=5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3dee
sha512+=a3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10

# What fixes.sed looks for, to find the two bundles that hold it.
faults='setTrackingUniqueIdentifiersForElement \*/\.m1|getTextBoxCoordsCanvas\(adaptedCanvasCoordinates\)'

orthanc="" port=8080 address=127.0.0.1 folder="${XDG_CACHE_HOME:-$HOME/.cache}/veilray-ohif" task=serve
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PATH="$PATH:/usr/sbin:/sbin"

fail() {
  echo "$2" >&2
  exit "$1"
}

while [ $# -gt 0 ]; do
  case "$1" in
    --orthanc) orthanc="${2:?--orthanc needs a URL}"; shift 2 ;;
    --port) port="${2:?--port needs a number}"; shift 2 ;;
    --address) address="${2:?--address needs an address}"; shift 2 ;;
    --folder) folder="${2:?--folder needs a path}"; shift 2 ;;
    --stop) task=stop; shift ;;
    --fetch) task=fetch; shift ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail 64 "serve.sh knows no option $1; see serve.sh --help" ;;
  esac
done
[[ "$port" =~ ^[0-9]{1,5}$ ]] || fail 64 "--port is a number"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
run="$folder/run-$port"

fetch() {
  local stamp
  stamp="$folder/unpacked-$(cat "${BASH_SOURCE[0]}" "$here/fixes.sed" | sha256sum | cut -c1-16)"
  [ -f "$stamp" ] && return
  if [ ! -f "$folder/$archive" ]; then
    command -v npm >/dev/null || fail 69 "OHIF is downloaded by npm, which is missing: apt-get install npm"
    echo "Downloading $package" >&2
    npm pack "$package" --silent --pack-destination "$folder" >/dev/null || fail 75 "npm could not download $package"
  fi
  echo "$sha512  $folder/$archive" | sha512sum --check --quiet - ||
    fail 70 "$folder/$archive is not the published $package; delete it and start again"
  rm -rf "$folder/package" "$folder"/unpacked-*
  tar -xzf "$folder/$archive" -C "$folder" package/dist package/LICENSE
  find "$folder/package/dist" -maxdepth 1 -name '*.bundle.*.js' -exec grep -lE "$faults" {} + | xargs sed -i -f "$here/fixes.sed"
  [ "$(grep -lF '/* fixed here */' "$folder"/package/dist/*.js | wc -l)" -eq 2 ] || fail 70 "fixes.sed does not fit $package"
  touch "$stamp"
}

serve() {
  [[ "$orthanc" =~ ^https?://[][A-Za-z0-9._:/-]+$ ]] || fail 64 "--orthanc is Orthanc's URL, e.g. http://127.0.0.1:8042"
  [[ "$address" =~ ^[][A-Za-z0-9.:]+$ ]] || fail 64 "--address is an IP address to listen on"
  command -v nginx >/dev/null || fail 69 "nginx is missing: apt-get install nginx-light"
  mkdir -p "$run/temp"
  sed -e "s|@ORTHANC@|${orthanc%/}|" -e "s|@LISTEN@|$address:$port|" -e "s|@DIST@|$folder/package/dist|" \
    -e "s|@CONFIG@|$here/app-config.js|" "$here/nginx.conf.in" >"$run/nginx.conf"
  echo "OHIF for $orthanc on http://$address:$port/" >&2
  exec nginx -p "$run" -c "$run/nginx.conf" -e stderr
}

case "$task" in
  fetch) fetch ;;
  serve) fetch && serve ;;
  stop) [ -f "$run/nginx.pid" ] && kill -TERM "$(cat "$run/nginx.pid")" || fail 69 "No viewer runs on port $port" ;;
esac
