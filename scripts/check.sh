#!/usr/bin/env bash
# The fast checks: formatting, lints with no warning left, and every test that needs no daemon.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo build --locked -p cli
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace --exclude e2e
else
  cargo test --locked --workspace --exclude e2e
fi
