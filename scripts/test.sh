#!/usr/bin/env bash
# The tests on real parts: e2e, each with hosts of its own. Four at a time, of which two mostly wait (.config/nextest.toml).
set -euo pipefail
cd "$(dirname "$0")/.."
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace --lib --bins --tests --test-threads 4 -E 'package(e2e)'
else
  cargo build --locked -p cli
  cargo test --locked -p e2e -- --test-threads 1
fi
/usr/bin/python3 e2e/independent_schema.py
