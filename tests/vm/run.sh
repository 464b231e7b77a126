#!/usr/bin/env bash
# Runs programs on another kernel: Debian's, in qemu, on an initramfs made of the programs, their libraries and the kernel's network
# modules. The host's kernel is newer than most nodes'; what is used only when it is there (owned tables, acknowledged batch ends) must
# also work where it is not.
#
#   tests/vm/run.sh                          the kernel tier of the tests (crate nft and the data plane)
#   tests/vm/run.sh PROGRAM [ARGUMENTS]...   anything else; its exit status is this script's
#
# Needs Debian packages: qemu-system-x86 linux-image-cloud-amd64 busybox-static cpio kmod (installed if missing). No KVM is needed.
set -euo pipefail
cd "$(dirname "$0")/../.."

need=()
for package in qemu-system-x86 linux-image-cloud-amd64 busybox-static cpio kmod nftables; do
    dpkg -s "$package" >/dev/null 2>&1 || need+=("$package")
done
if [ ${#need[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi

kernel=$(find /boot -name 'vmlinuz-*-cloud-amd64' | sort -V | tail -n 1)
release=${kernel#/boot/vmlinuz-}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,usr/sbin,test}

# Copies a program with the libraries it is linked with; debug information stays behind.
take() {
    local from=$1 to=$2
    install -D "$from" "$root$to"
    strip --strip-debug "$root$to" 2>/dev/null || true
    { ldd "$from" 2>/dev/null | grep -oE '/[^ ]+' || true; } | while read -r library; do
        [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
    done
}

take /bin/busybox /bin/busybox
for name in $(busybox --list | grep -vx busybox); do ln -sf busybox "$root/bin/$name"; done
for name in modprobe insmod; do ln -sf ../bin/busybox "$root/sbin/$name"; done
take "$(command -v nft || echo /usr/sbin/nft)" /usr/sbin/nft

cp /etc/protocols /etc/services "$root/etc/" 2>/dev/null || true

modules=/lib/modules/$release
mkdir -p "$root$modules"
(cd "$modules" && find kernel/net kernel/lib kernel/crypto kernel/arch kernel/drivers/net/veth.ko kernel/drivers/net/dummy.ko -name '*.ko' \
    -exec cp --parents {} "$root$modules" \;)
cp "$modules"/modules.{builtin,order} "$root$modules"
/sbin/depmod -b "$root" "$release"

commands=()
if [ $# -gt 0 ]; then
    take "$1" /test/program
    shift
    commands+=("/test/program $*")
else
    # Snapshots are looked for where they were when the tests were built.
    find nft/tests tests -name '*.snap' -exec install -D {} "$root$PWD/{}" \;
    # `cargo test --no-run` says where the binaries are.
    while read -r binary; do
        name=$(basename "$binary")
        take "$binary" "/test/$name"
        commands+=("/test/$name --test-threads=1")
    done < <(cargo test --no-run -p nft --test kernel --message-format=json 2>/dev/null | grep -oE '"executable":"[^"]+"' | cut -d'"' -f4;
             cargo test --no-run -p pointsman --test kernel --message-format=json 2>/dev/null | grep -oE '"executable":"[^"]+deps/kernel-[^"]+"' | cut -d'"' -f4)
fi

{
    printf '#!/bin/busybox sh\n'
    printf 'mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp\n'
    printf 'export PATH=/bin:/sbin:/usr/sbin HOME=/root INSTA_UPDATE=no INSTA_WORKSPACE_ROOT=%s RUST_BACKTRACE=0\n' "$PWD"
    printf 'ip link set lo up; echo "kernel $(uname -r)"; status=0\n'
    printf '%s || status=$?\n' "${commands[@]}"
    printf 'echo "vm exit status $status"; poweroff -f\n'
} >"$root/init"
chmod +x "$root/init"

(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$root.img"
trap 'rm -rf "$root" "$root.img" "$root.log"' EXIT
timeout "${VM_TIMEOUT:-900}" qemu-system-x86_64 -accel tcg -cpu max -m 2048 -nographic -no-reboot -kernel "$kernel" -initrd "$root.img" \
    -append "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on mitigations=off" </dev/null | tr -d '\r' | tee "$root.log"
status=$(grep -oE '^vm exit status [0-9]+' "$root.log" | grep -oE '[0-9]+$' || echo 1)
exit "$status"
