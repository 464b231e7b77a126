#!/usr/bin/env bash
# Installs what is missing, builds, and runs the demo: a small shop served by the real daemon in network namespaces of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

.ci/install --build
cargo build --release --bins
target=$(cargo metadata --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]+"' | cut -d'"' -f4)
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
exec "${as_root[@]}" "$target/release/pointsman" demo "$@"
