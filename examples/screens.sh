#!/usr/bin/env bash
# Makes the pictures of the page in examples/pictures/ anew, light and dark, and prints the screens of every command: of the demo's shop while it is
# served, with somebody who connects all the while.
#
# Needs root, a build (cargo build --bins; BIN=DIRECTORY says where it is), and for the pictures Debian's package chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release}")
pictures=$(realpath "${PICTURES:-examples/pictures}")
work=$(mktemp -d)
demo='' busy=''
end() {
  [ -z "$busy" ] || kill "$busy" 2>/dev/null || true
  [ -z "$demo" ] || { kill -INT "$demo" 2>/dev/null || true; wait "$demo" 2>/dev/null || true; }
  rm -rf "$work"
}
trap end EXIT

# A job in the background ignores SIGINT unless job control is on.
set -m
: >"$work/log"
"$bin/pointsman" demo --keep --seconds 8 >"$work/log" 2>&1 &
demo=$!
until grep -q 'ask the daemon' "$work/log"; do
  kill -0 "$demo" 2>/dev/null || { cat "$work/log"; exit 1; }
  sleep 0.2
done
node=$(sed -n 's/.*the ruleset *ip netns exec \([^ ]*\) .*/\1/p' "$work/log")
client=$(sed -n 's/.*be the client *ip netns exec \([^ ]*\) .*/\1/p' "$work/log")
socket=$(sed -n 's/.*--socket \([^ ]*\) list.*/\1/p' "$work/log")
in_node() { ip netns exec "$node" "$@"; }
in_node sysctl -qw net.netfilter.nf_conntrack_acct=1 net.netfilter.nf_conntrack_timestamp=1

# Somebody who connects to the front page and to carts, and stays for a second.
ip netns exec "$client" bash -c '
  while :; do
    for address in 10.96.0.10 10.96.0.20; do
      (exec 3<>/dev/tcp/$address/80; head -1 <&3 >/dev/null; sleep 1) 2>/dev/null &
      sleep 0.1
    done
  done' &
busy=$!
sleep 2

# The command as somebody would type it, and what it says; $limit ends what goes on for ever.
screen() {
  echo "# pointsman $*"
  in_node timeout -s INT "${limit:-10}" "$bin/pointsman" --socket "$socket" "$@" 2>&1 || true
  echo
}
screen list cart
screen list --stats cart
screen list --rate cart
screen list --connections cart
screen get services
screen get endpoints web
screen explain 10.96.0.10:80 --from 192.168.0.9 --verify
screen explain shop/web:http --probe
screen explain 10.96.0.90:80
screen flows --state established
limit=2 screen flows cart --follow
limit=2 screen flows cart --log -
screen trace 10.96.0.10:80 -c 1
screen drain web-1 --for 30m
screen weight cart-2 3 --for 10m
screen get overrides
screen get endpoints web
screen doctor

if command -v chromium >/dev/null; then
  mkdir -p "$pictures"
  for look in light dark; do
    for view in services service/shop/web changes health; do
      dark=(); [ "$look" = light ] || dark=(--force-dark-mode)
      name=${view%%/*}; [ "$look" = light ] || name=$name-dark
      in_node timeout 60 chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --user-data-dir="$work/chromium" \
        "${dark[@]}" --window-size=1280,860 --virtual-time-budget=20000 --screenshot="$pictures/$name.png" \
        "http://127.0.0.1:10249/ui/#/$view" >"$work/chromium.log" 2>&1 || { cat "$work/chromium.log" >&2; exit 1; }
    done
  done
fi
screen undrain --all
