#!/usr/bin/env bash
# The fast checks: formatting, lints with no warning left, and every test that needs no daemon.
set -euo pipefail
cd "$(dirname "$0")/.."
# Properties draw the same cases in every run, so that a commit is green or it is not; `make soak` draws new ones.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
# All of the workspace, that what is built here is what test.sh runs; three at a time, for half of them mostly wait.
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace --lib --bins --tests --test-threads 3 -E 'not package(e2e)'
else
  cargo test --locked --workspace --lib --bins --tests --exclude e2e
fi
