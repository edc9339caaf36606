#!/usr/bin/env bash
# Prints the speeds the design asks for beside what this machine reaches. Timings are for people: nothing here passes or
# fails. ROUNDS sets how many interleaved rounds the comparisons take (7).
set -euo pipefail
cd "$(dirname "$0")/.."
# `scripts/bench.sh planner binary` takes only these parts.
parts=${*:-planner store fleet controller latency names links containers binary}
has() { [[ " $parts " == *" $1 "* ]]; }
example() { cargo run -q --release --locked -p "$1" --example "$2" -- "${@:3}"; }
cargo build --release --locked -p cli
export REEVE_BIN=target/release/reeve
if has planner; then
  echo "== planner: snapshot in memory to plan, one core (goals at 150,000 instances: cold 25 or 100, quiet 10, lost node 5)"
  example planner plan_bench
fi
if has store; then
  echo "== the embedded store beside etcd: puts of 256 bytes, each on disk before its answer"
  example runtime store_bench
fi
if has fleet; then
  for agents in 1000 5000; do
    echo "== fleet: $agents agents, a real etcd and controller"
    AGENTS=$agents ROUNDS=3 example e2e fleet_bench
  done
  echo "== fleet: 256 agents in a network of 5,000 services, and one more that comes"
  AGENTS=256 SERVICES=5000 ROUNDS=7 example e2e fleet_bench
fi
if has controller; then
  echo "== controller: 5,000 nodes, 150 services of 1,000 (goal: 120 MB)"
  example controller scale_bench
fi
if has latency; then
  echo "== one node: delays, calls, rest"
  example e2e latency_bench
fi
if has names; then
  echo "== names: one node's server, 5,000 services of 30 (goal: p99 2 ms)"
  example network names_bench
fi
if has containers; then
  echo "== containers: from the command to all running"
  example e2e containers_bench
fi
if has links; then
  echo "== links: one stream of TCP between two network namespaces (goals: 80 % of a VXLAN by hand, 90 % of gotatun's own program)"
  # The program of the library that carries packets where the kernel cannot: to compare with, and for nothing else.
  gotatun=${GOTATUN:-target/gotatun/bin/gotatun}
  if [ ! -x "$gotatun" ]; then
    cargo install -q gotatun-cli --version 0.10.2 --locked --root target/gotatun --target-dir target/gotatun/build
  fi
  GOTATUN=$gotatun example network link_bench
fi
has binary || exit 0
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
