#!/usr/bin/env bash
# Fetches a distribution's kernel for tests/vm/run.sh and prints the directory that it is in: boot/vmlinuz-* and lib/modules/*.
#
#   tests/vm/kernel.sh jammy        5.15, Ubuntu 22.04: the oldest kernel that is supported
#   tests/vm/kernel.sh bookworm     6.1, Debian 12
#   tests/vm/kernel.sh trixie       6.12, Debian 13: tables can be owned and persist
#
# Packages come through apt with lists and keys of its own, and are unpacked, not installed: the machine's package state stays as it is.
# What was fetched is kept in ${XDG_CACHE_HOME:-~/.cache}/pointsman-vm.
set -euo pipefail

name=${1:?which kernel?}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pointsman-vm
to=$cache/$name
debian=http://deb.debian.org/debian
ubuntu=http://archive.ubuntu.com/ubuntu
keys=/usr/share/keyrings/debian-archive-keyring.gpg

case $name in
    jammy) sources=("$ubuntu jammy main" "$ubuntu jammy-updates main") package=linux-image-virtual ;;
    bookworm | trixie) sources=("$debian $name main" "http://deb.debian.org/debian-security $name-security main") package=linux-image-cloud-amd64 ;;
    *) echo "$name: no such kernel; there are jammy, bookworm, trixie" >&2; exit 2 ;;
esac
if [ -e "$to/complete" ]; then
    echo "$to"
    exit
fi

# apt with nothing of the machine's own configuration in it.
mkdir -p "$to"/apt/{state/lists/partial,cache/archives/partial,packages}
: >"$to/apt/status"
private_apt() {
    local program=$1
    shift
    "$program" -qq -o Dir::Etc::sourcelist="$to/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$to/apt/state" -o Dir::State::status="$to/apt/status" -o Dir::Cache="$to/apt/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Architecture=amd64 -o APT::Architectures=amd64 "$@"
}
download() { (cd "$to/apt/packages" && private_apt apt-get download "$@" >&2); }
sources() {
    local key=$1
    shift
    printf "deb [signed-by=$key] %s\n" "$@" >"$to/apt/sources.list"
    private_apt apt-get update >&2
}

if [ "$name" = jammy ]; then
    # Ubuntu's keys, as Debian vouches for them.
    sources "$keys" "$debian trixie main"
    download ubuntu-keyring
    dpkg-deb -x "$to"/apt/packages/ubuntu-keyring_*.deb "$to/apt/keys"
    rm "$to"/apt/packages/*
    keys=$to/apt/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg
fi
sources "$keys" "${sources[@]}"
image=$(private_apt apt-cache depends "$package" | grep -oE 'Depends: linux-image-[0-9][^ ]*' | cut -d' ' -f2)
wanted=("$image")
[ "$name" != jammy ] || wanted+=("${image/linux-image/linux-modules}")
download "${wanted[@]}"
for file in "$to"/apt/packages/*.deb; do dpkg-deb -x "$file" "$to"; done
rm -rf "$to/apt" "$to/usr/share"
touch "$to/complete"
echo "$to"
