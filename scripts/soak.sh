#!/bin/bash
# `make soak HOURS=n`: what `make test` does a part of, for hours, on seeds that no run here has had yet. It goes on where the
# last one stopped and adds its figures to those of all runs, in target/soak. A round: histories of the whole system,
# then the planner's laws on new cases, then the embedded store beside etcd.
set -euo pipefail
HOURS=${HOURS:-1}
DIR=target/soak
mkdir -p "$DIR"
cargo build -q --locked -p simulator
end=$((SECONDS + $(awk "BEGIN { print int($HOURS * 3600) }")))
next=$(cat "$DIR/next" 2>/dev/null || echo 100001)
bad=0
while [ $SECONDS -lt $end ]; do
  count=200
  if ! target/debug/simulate --from "$next" --count $count --jobs "$(nproc)" > "$DIR/last" 2>&1; then
    bad=1
    cat "$DIR/last" >> "$DIR/broken"
    cat "$DIR/last"
  fi
  tail -n 1 "$DIR/last" >> "$DIR/histories"
  next=$((next + count))
  echo "$next" > "$DIR/next"
  if [ $(((next - 100001) / count % 20)) -eq 0 ]; then
    REEVE_CASES=4 cargo test -q -p planner --no-fail-fast > "$DIR/last" 2>&1 || { bad=1; cat "$DIR/last" >> "$DIR/broken"; cat "$DIR/last"; }
    echo "planner's laws, four times the cases" >> "$DIR/laws"
    if command -v etcd > /dev/null; then
      REEVE_DIFFERENTIAL_OPS=200000 REEVE_DIFFERENTIAL_SEED=$next cargo test -q -p runtime --test embedded_differential > "$DIR/last" 2>&1 \
        || { bad=1; cat "$DIR/last" >> "$DIR/broken"; cat "$DIR/last"; }
      echo "200,000 operations on both stores, seed $next" >> "$DIR/stores"
    fi
  fi
  awk '{ h += $1; b += $6; w += $10; v += $12 } END { printf "so far: %d histories, %d broke a law; %d writes, %d virtual hours\n", h, b, w, v }' "$DIR/histories"
done
exit $bad
