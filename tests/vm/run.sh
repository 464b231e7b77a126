#!/usr/bin/env bash
# Runs tests on another kernel, in qemu, on an initramfs made of the test binaries, what they call, and the kernel's network modules.
# The machine's own kernel is newer than most nodes'; what is used only when it is there (owned tables, acknowledged batch ends) must
# also work where it is not. And some kernels have what this one lacks: IPVS, the older ip_tables, SCTP.
#
#   tests/vm/run.sh                               the tests that need root, on Debian 12's kernel
#   tests/vm/run.sh kernel e2e                    these test binaries of package pointsman (nft/kernel is crate nft's)
#   tests/vm/run.sh 'e2e flags:: --nocapture'     one of them, with arguments of its own
#   tests/vm/run.sh --kernel jammy services       another kernel; tests/vm/kernel.sh knows which
#   tests/vm/run.sh --program FILE [ARGUMENT]...  anything else; `bench compare --vm` does that
#
# The end of the report names every test that failed; the exit status is 0 if there is none. Environment: VM_TIMEOUT (seconds for all of it,
# default 5400), VM_CPUS (2), VM_MEMORY (MiB, 3072), VM_LOG (a file that keeps all that was printed), VM_FILES (FROM:TO FROM:TO..., more files
# for the VM), VM_RECORD (a file for what is written to /dev/ttyS1 in there), VM_OUT (a directory for what is in the VM's /out at the end; not beside
# VM_RECORD), VM_ICOUNT (1: one CPU whose clock counts instructions).
#
# Needs Debian packages, installed if missing (see below). No KVM is needed, so it is some ten times slower than the machine itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD

# The program first, on a kernel that has loaded no module yet.
default=(e2e nft/kernel kernel conntrack services lab cleanup 'leftovers --ignored' stress)

need=()
for package in qemu-system-x86 busybox-static cpio kmod xz-utils zstd nftables iptables ipset ipvsadm; do
    dpkg -s "$package" >/dev/null 2>&1 || need+=("$package")
done
if [ ${#need[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
PATH=$PATH:/usr/sbin:/sbin

distribution=bookworm
if [ "${1:-}" = --kernel ]; then
    distribution=$2
    shift 2
fi
files=$(tests/vm/kernel.sh "$distribution")
kernel=$(find "$files/boot" -name 'vmlinuz-*' | sort -V | tail -n 1)
release=${kernel#"$files"/boot/vmlinuz-}
modules=$files/lib/modules/$release
[ -d "$modules" ] || modules=$files/usr/lib/modules/$release

root=$(mktemp -d)
log=${VM_LOG:-$root.log}
trap 'rm -rf "$root" "$root.img" "$root.log" "$root.tar"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,usr/sbin,test,lib/modules}

# Copies a program with the libraries it is linked with; debug information stays behind.
take() {
    local from=$1 to=$2
    install -D "$from" "$root$to"
    strip --strip-debug "$root$to" 2>/dev/null || true
    { ldd "$from" 2>/dev/null | grep -aoE '/[^ ]+' || true; } | while read -r library; do
        [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
    done
}

take /bin/busybox /bin/busybox
for name in $(busybox --list | grep -vx busybox); do ln -sf busybox "$root/bin/$name"; done
for name in modprobe insmod; do ln -sf ../bin/busybox "$root/sbin/$name"; done
for name in nft ipset ipvsadm xtables-nft-multi xtables-legacy-multi; do take "$(command -v "$name")" "/usr/sbin/$name"; done
for family in iptables ip6tables; do
    for does in "" -save -restore; do
        for kind in nft legacy; do ln -s "xtables-$kind-multi" "$root/usr/sbin/$family-$kind$does"; done
        ln -s xtables-nft-multi "$root/usr/sbin/$family$does"
    done
done
cp -r --parents /usr/lib/*/xtables "$root"
cp /etc/protocols /etc/services /etc/ethertypes "$root/etc/" 2>/dev/null || true

mkdir -p "$root/lib/modules/$release"
(cd "$modules" && find kernel/net kernel/lib kernel/crypto kernel/arch/x86/crypto kernel/drivers/net -name '*.ko*' 2>/dev/null |
    grep -vE '^kernel/(net/(bluetooth|mac80211|wireless|batman-adv|sunrpc|ceph|nfc|tipc|rxrpc|smc|can|ieee802154|9p)|drivers/net/.*/)' |
    xargs cp --parents -t "$root/lib/modules/$release")
find "$root/lib/modules" -name '*.xz' -exec xz -d {} +
find "$root/lib/modules" -name '*.zst' -exec zstd -q -d --rm {} +
cp "$modules"/modules.{builtin,order} "$root/lib/modules/$release"
depmod -b "$root" "$release"

# A line per binary for the VM: its name, the file, its arguments.
plan=()
if [ "${1:-}" = --program ]; then
    take "$2" /test/program
    plan+=("$(basename "$2") /test/program ${*:3}")
else
    [ $# -gt 0 ] || set -- "${default[@]}"
    # The tests find the program, snapshots (by their sources) and examples where they were when they were built.
    find nft/tests tests examples -type f -exec install -D {} "$root$repository/{}" \;
    for selected in "$@"; do
        read -r name arguments <<<"$selected"
        package=pointsman test=$name
        case $name in */*) package=${name%/*} test=${name#*/} ;; esac
        binary=$(cargo test --no-run -p "$package" --test "$test" --message-format=json-render-diagnostics |
            grep -F "\"name\":\"$test\"" | grep -aoE '"executable":"[^"]+"' | cut -d'"' -f4 | head -n 1)
        [ -n "$binary" ] || { echo "$name: no such test" >&2; exit 2; }
        take "$binary" "/test/$package-$test"
        plan+=("$name /test/$package-$test --test-threads=${VM_CPUS:-2} $arguments")
    done
    for program in kube-proxy pointsman; do take "target/debug/$program" "$repository/target/debug/$program"; done
fi

for file in ${VM_FILES:-}; do take "${file%%:*}" "${file#*:}"; done

{
    printf '#!/bin/busybox sh\n'
    printf 'mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run\n'
    printf 'mkdir -p /dev/pts; mount -t devpts pts /dev/pts; ulimit -n 65536\n'
    printf 'export PATH=/bin:/sbin:/usr/sbin HOME=/root INSTA_UPDATE=no INSTA_WORKSPACE_ROOT=%s RUST_BACKTRACE=0\n' "$repository"
    [ -z "${VM_RECORD:-}${VM_OUT:-}" ] || printf 'stty -F /dev/ttyS1 raw -echo\n'
    printf 'ip link set lo up; cd %s 2>/dev/null; echo "vm kernel $(uname -r)"\n' "$repository"
    for line in "${plan[@]}"; do
        read -r name command <<<"$line"
        printf 'echo "vm begins %s"; %s; echo "vm ended %s $?"\n' "$name" "$command" "$name"
    done
    [ -z "${VM_OUT:-}" ] || printf 'mkdir -p /out; tar -C /out -cf /dev/ttyS1 .\n'
    printf 'poweroff -f\n'
} >"$root/init"
chmod +x "$root/init"

(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$root.img"
if [ -n "${VM_ICOUNT:-}" ]; then
    clock=(-accel tcg,thread=single -icount shift=0,sleep=off -smp 1 -seed 1)
else
    clock=(-accel tcg,thread=multi -smp "${VM_CPUS:-2}")
fi
record=(-serial mon:stdio)
[ -z "${VM_RECORD:-}" ] || record+=(-serial "file:$VM_RECORD")
[ -z "${VM_OUT:-}" ] || record+=(-serial "file:$root.tar")
timeout "${VM_TIMEOUT:-5400}" qemu-system-x86_64 "${clock[@]}" -cpu max -m "${VM_MEMORY:-3072}" -nographic "${record[@]}" \
    -no-reboot -kernel "$kernel" -initrd "$root.img" \
    -append "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on mitigations=off" </dev/null | stdbuf -oL tr -d '\r' | tee "$log" || true

[ -z "${VM_OUT:-}" ] || { mkdir -p "$VM_OUT" && tar -C "$VM_OUT" --no-same-owner -xf "$root.tar"; }

# The report, from what was printed: the serial line is the only way out.
status=0
echo
echo "Kernel: $(sed -n 's/.*vm kernel //p' "$log")"
for line in "${plan[@]}"; do
    name=${line%% *}
    part=$(sed -n "/vm begins ${name//\//\\/}\$/,/vm ended ${name//\//\\/} /p" "$log")
    exit_status=$(grep -aoE "vm ended $name [0-9]+" <<<"$part" | grep -aoE '[0-9]+$' || echo none)
    result=$(grep -aoE 'test result: .*' <<<"$part" | cut -d' ' -f3- || true)
    case $exit_status in
        0) ;;
        none) status=1 result="did not end: the VM stopped, or ran out of time, in it" ;;
        *) status=1 ;;
    esac
    printf '  %-12s %s\n' "$name" "${result:-exit status $exit_status}"
    { grep -aoE '^test .* \.\.\. FAILED' <<<"$part" || true; } | sed -E 's/^test (.*) \.\.\. FAILED/               failed: \1/'
done
exit "$status"
