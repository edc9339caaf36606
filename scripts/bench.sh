#!/usr/bin/env bash
# Prints the speeds the design asks for beside what this machine reaches. Timings are for people: nothing here passes or
# fails. ROUNDS sets how many interleaved rounds the containers' comparison takes (7).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p cli
echo "== planner (snapshot in memory to plan, one core)"
cargo run -q --release --locked -p planner --example plan_bench
echo "== store (puts of 256 bytes, each on disk before its answer)"
cargo run -q --release --locked -p runtime --example store_bench
echo "== containers"
REEVE_BIN=target/release/reeve cargo run -q --release --locked -p e2e --example containers_bench
echo "== binary"
printf 'size: %s MB (goal 15)\n' "$(( $(stat -c %s target/release/reeve) / 1000000 ))"
python3 - <<'PY'
import statistics, subprocess, time
times = []
for _ in range(21):
    begin = time.perf_counter()
    subprocess.run(["target/release/reeve", "version"], stdout=subprocess.DEVNULL, check=True)
    times.append((time.perf_counter() - begin) * 1000)
print(f"reeve version: {statistics.median(times):.1f} ms, process start included (goal 5)")
PY
