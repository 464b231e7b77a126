#!/usr/bin/env bash
# Makes the screens in examples/screens/ anew: every command and the page, of the demo's shop while it is served.
#
# Needs root, a build (cargo build --release --bins, or BIN=DIRECTORY names another), and for the page Debian's package chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
out=${OUT:-examples/screens}
mkdir -p "$out"

log=$(mktemp)
"$bin/pointsman" demo --keep --seconds 12 >"$log" 2>&1 &
demo=$!
trap 'kill -INT $demo 2>/dev/null; wait $demo 2>/dev/null || true; rm -f "$log"' EXIT
until grep -q 'ask the daemon' "$log"; do
  kill -0 $demo 2>/dev/null || { cat "$log"; exit 1; }
  sleep 0.2
done
node=$(grep -o 'ip netns exec [^ ]* pointsman' "$log" | cut -d' ' -f4)
client=$(sed -n 's/.*be the client *ip netns exec \([^ ]*\) .*/\1/p' "$log")
socket=$(sed -n 's/.*pointsman --socket \([^ ]*\) .*/\1/p' "$log")

# What the demo's own traffic does is over by now; some connections, so that there is something to count.
for _ in $(seq 40); do
  ip netns exec "$client" bash -c 'exec 3<>/dev/tcp/10.96.0.10/80; head -1 <&3' >/dev/null 2>&1 || true
done

# NAME COMMAND...: the command as somebody would type it, and what it says.
screen() {
  local name=$1; shift
  {
    echo "# pointsman $*"
    ip netns exec "$node" "$bin/pointsman" --socket "$socket" "$@" 2>&1 || true
  } >"$out/$name.txt"
}
screen list list web
screen list-stats list --stats web
screen get-services get services
screen get-endpoints get endpoints web
screen explain explain 10.96.0.10:80 --from 192.168.0.9 --verify
screen explain-dead-end explain 10.96.0.90:80
screen drain drain web-1 shop/web --for 30m
screen weight weight web-2 3 shop/web --for 10m
screen get-overrides get overrides
screen get-endpoints-by-hand get endpoints web
if command -v chromium >/dev/null; then
  for look in light dark; do
    scheme=$([ $look = dark ] && echo 0 || echo 1)
    for view in services service/shop/web changes health; do
      ip netns exec "$node" chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run \
        --user-data-dir="$(mktemp -d)" --window-size=1280,860 --virtual-time-budget=6000 --blink-settings=preferredColorScheme="$scheme" \
        --screenshot="$PWD/$out/page-${view//\//-}-$look.png" "http://127.0.0.1:10249/ui/#/$view" >/dev/null 2>&1
    done
  done
fi
screen undrain undrain --all
screen doctor doctor
ls "$out"
