#!/usr/bin/env bash
# Installs what is missing and runs every check: formatting, lints, documentation and the three tiers of tests (see README.md here).
# The kernel and end-to-end tiers make network namespaces and need root; as another user they are run through sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

.ci/install
if [ "$(id -u)" -ne 0 ]; then
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
fi
export PATH="$PATH:/usr/sbin" INSTA_UPDATE="${INSTA_UPDATE:-no}"

step() { printf '\n== %s\n' "$*"; "$@"; }
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --document-private-items --locked --quiet
step cargo test --workspace --locked "$@"
