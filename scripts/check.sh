#!/usr/bin/env bash
# The fast checks: formatting, lints with no warning left, and every test that needs no daemon.
set -euo pipefail
cd "$(dirname "$0")/.."
# Properties draw the same cases in every run, so that a commit is green or it is not; `make soak` draws new ones.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}
cargo fmt --all --check
# Code outside tests has no unwrap and no catch-all arm over our own types; tests may.
cargo clippy --workspace --locked -- -D warnings
cargo clippy --workspace --all-targets --locked -- -D warnings -A clippy::unwrap_used -A clippy::wildcard_enum_match_arm -A clippy::type_complexity
cargo build --locked -p cli
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace --exclude e2e
else
  cargo test --locked --workspace --exclude e2e
fi
