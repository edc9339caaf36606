//! The embedded store against a real etcd: the same random requests to both, every answer compared.
//!
//! `REEVE_DIFFERENTIAL_OPS` sets how many (default 4,000), `REEVE_DIFFERENTIAL_SEED` which. Not
//! compared, because they must differ or etcd leaves them open: ids of cluster and member, the raft
//! term, the seconds a lease has left, the order of a lease's keys.

#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

mod embedded_support;

use embedded_support::{Dice, Raw, RealEtcd, Refused, Served};
use etcd_client::proto::*;

#[derive(Debug, Clone)]
enum Op {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Range(PbRangeResponse),
    Put(PbPutResponse),
    Delete(PbDeleteResponse),
    Txn(PbTxnResponse),
    Compact(PbCompactionResponse),
    Grant(PbLeaseGrantResponse),
    Revoke(PbLeaseRevokeResponse),
    TimeToLive(PbLeaseTimeToLiveResponse),
    Leases(Vec<i64>),
}

/// Few keys, so that requests meet; a long common prefix, a zero byte, bytes that are no text.
const KEYS: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e/1",
    b"e/2",
    b"e/",
    b"f",
    b"\x00",
    b"\xff\xfe",
];
const ENDS: &[&[u8]] = &[b"", b"", b"", b"\x00", b"b", b"e", b"e0", b"g", b"\xff", b"a\x00"];

struct Generator {
    dice: Dice,
    /// The newest revision seen.
    revision: i64,
}

impl Generator {
    fn key(&mut self) -> Vec<u8> {
        match self.dice.one_in(60) {
            true => Vec::new(),
            false => self.dice.pick(KEYS).to_vec(),
        }
    }

    fn end(&mut self) -> Vec<u8> {
        self.dice.pick(ENDS).to_vec()
    }

    fn flag(&mut self, n: u64) -> bool {
        self.dice.one_in(n)
    }

    fn near(&mut self) -> i64 {
        match self.dice.below(8) {
            0 => 0,
            1 => -3 + self.dice.below(5) as i64,
            2 => self.revision + 1 + self.dice.below(3) as i64,
            _ => self.revision - self.dice.below(30) as i64,
        }
    }

    fn sometimes_near(&mut self, n: u64) -> i64 {
        match self.flag(n) {
            true => self.near(),
            false => 0,
        }
    }

    fn lease(&mut self) -> i64 {
        match self.dice.below(6) {
            0 => 1 + self.dice.below(6) as i64,
            1 if self.flag(10) => -7,
            _ => 0,
        }
    }

    fn range(&mut self) -> PbRangeRequest {
        let sorted = self.flag(3);
        PbRangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: match self.dice.below(4) {
                0 => self.dice.below(5) as i64,
                1 if self.flag(5) => -1,
                _ => 0,
            },
            revision: self.sometimes_near(3),
            sort_order: if sorted { self.dice.below(3) as i32 } else { 0 },
            sort_target: if sorted { self.dice.below(5) as i32 } else { 0 },
            serializable: self.flag(4),
            keys_only: self.flag(6),
            count_only: self.flag(10),
            min_mod_revision: self.sometimes_near(10),
            max_mod_revision: self.sometimes_near(10),
            min_create_revision: self.sometimes_near(10),
            max_create_revision: self.sometimes_near(10),
        }
    }

    fn put(&mut self) -> PbPutRequest {
        let ignore_value = self.flag(12);
        let ignore_lease = self.flag(12);
        let value = vec![b'v'; self.dice.below(4) as usize];
        PbPutRequest {
            key: self.key(),
            value: if ignore_value && !self.flag(5) {
                Vec::new()
            } else {
                value
            },
            lease: if ignore_lease && !self.flag(5) { 0 } else { self.lease() },
            prev_kv: self.flag(3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> PbDeleteRequest {
        PbDeleteRequest {
            key: self.key(),
            range_end: if self.flag(3) { self.end() } else { Vec::new() },
            prev_kv: self.flag(2),
        }
    }

    fn compare(&mut self) -> PbCompare {
        let target = self.dice.below(5) as i32;
        let number = match self.dice.below(3) {
            0 => 0,
            1 => self.near(),
            _ => self.dice.below(5) as i64,
        };
        let union = match if self.flag(20) {
            self.dice.below(5) as i32
        } else {
            target
        } {
            0 => PbTargetUnion::Version(number),
            1 => PbTargetUnion::CreateRevision(number),
            2 => PbTargetUnion::ModRevision(number),
            3 => PbTargetUnion::Value(vec![b'v'; self.dice.below(4) as usize]),
            _ => PbTargetUnion::Lease(number),
        };
        PbCompare {
            result: self.dice.below(4) as i32,
            target,
            key: self.key(),
            range_end: if self.flag(4) { self.end() } else { Vec::new() },
            target_union: if self.flag(30) { None } else { Some(union) },
        }
    }

    fn ops(&mut self, depth: u32) -> Vec<PbTxnRequestOp> {
        let n = match self.flag(80) {
            true => 129,
            false => self.dice.below(4),
        };
        (0..n).map(|_| self.op(depth)).collect()
    }

    fn op(&mut self, depth: u32) -> PbTxnRequestOp {
        let request = match self.dice.below(8) {
            0..=1 => Some(PbTxnOpRequest::RequestRange(self.range())),
            // A deletion from a key on, and a put that needs the key, make etcd 3.4 panic.
            2..=4 => {
                let put = self.put();
                Some(PbTxnOpRequest::RequestPut(PbPutRequest {
                    ignore_value: false,
                    ignore_lease: false,
                    ..put
                }))
            }
            5 => Some(PbTxnOpRequest::RequestDeleteRange(self.delete())),
            6 if depth > 0 => Some(PbTxnOpRequest::RequestTxn(self.txn(depth - 1))),
            7 if self.flag(20) => None,
            _ => Some(PbTxnOpRequest::RequestPut(self.put_plain())),
        };
        PbTxnRequestOp { request }
    }

    fn put_plain(&mut self) -> PbPutRequest {
        PbPutRequest {
            key: self.dice.pick(KEYS).to_vec(),
            value: vec![b'v'; self.dice.below(4) as usize],
            ..Default::default()
        }
    }

    fn txn(&mut self, depth: u32) -> PbTxnRequest {
        PbTxnRequest {
            compare: (0..self.dice.below(3)).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    fn next(&mut self) -> Op {
        match self.dice.below(40) {
            0..=11 => Op::Range(self.range()),
            12..=22 => Op::Put(self.put()),
            23..=26 => Op::Delete(self.delete()),
            27..=34 => Op::Txn(self.txn(2)),
            35 if self.flag(3) => Op::Compact(PbCompactionRequest {
                revision: self.near(),
                physical: self.flag(2),
            }),
            36 => Op::Grant(PbLeaseGrantRequest {
                ttl: self.dice.pick(&[1000, 5000, 9_000_000_000, 9_000_000_001]),
                id: 1 + self.dice.below(6) as i64,
            }),
            37 if self.flag(2) => Op::Revoke(PbLeaseRevokeRequest {
                id: 1 + self.dice.below(7) as i64,
            }),
            38 => Op::TimeToLive(PbLeaseTimeToLiveRequest {
                id: 1 + self.dice.below(7) as i64,
                keys: self.flag(2),
            }),
            39 if self.flag(4) => Op::Leases,
            _ => Op::Put(self.put()),
        }
    }
}

async fn ask(raw: &mut Raw, op: Op) -> Result<Answer, Refused> {
    Ok(match op {
        Op::Range(r) => Answer::Range(plain(raw.range(r).await?)),
        Op::Put(r) => Answer::Put(plain(raw.put(r).await?)),
        Op::Delete(r) => Answer::Delete(plain(raw.delete(r).await?)),
        Op::Txn(r) => Answer::Txn(plain(raw.txn(r).await?)),
        Op::Compact(r) => Answer::Compact(plain(raw.compact(r).await?)),
        Op::Grant(r) => Answer::Grant(plain(raw.grant(r).await?)),
        Op::Revoke(r) => Answer::Revoke(plain(raw.revoke(r).await?)),
        Op::TimeToLive(r) => {
            let mut life = plain(raw.time_to_live(r).await?);
            life.ttl = life.ttl.min(0);
            life.keys.sort();
            Answer::TimeToLive(life)
        }
        Op::Leases => {
            let answer = raw.leases(PbLeaseLeasesRequest {}).await?;
            let mut ids: Vec<i64> = answer.leases.iter().map(|l| l.id).collect();
            ids.sort_unstable();
            Answer::Leases(ids)
        }
    })
}

trait Headed: Sized {
    fn header(&mut self) -> &mut Option<PbResponseHeader>;
}

macro_rules! headed {
    ($($t:ty),*) => { $(impl Headed for $t {
        fn header(&mut self) -> &mut Option<PbResponseHeader> { &mut self.header }
    })* };
}
headed!(
    PbRangeResponse,
    PbPutResponse,
    PbDeleteResponse,
    PbTxnResponse,
    PbCompactionResponse,
    PbLeaseGrantResponse,
    PbLeaseRevokeResponse,
    PbLeaseTimeToLiveResponse
);

/// Without what tells two clusters apart.
fn plain<T: Headed>(mut answer: T) -> T {
    let header = answer.header().as_mut().expect("every answer has a header");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
    *header = PbResponseHeader {
        revision: header.revision,
        ..Default::default()
    };
    answer
}

fn revision_in(answer: &Answer) -> Option<i64> {
    let header = match answer {
        Answer::Range(a) => &a.header,
        Answer::Put(a) => &a.header,
        Answer::Delete(a) => &a.header,
        Answer::Txn(a) => &a.header,
        Answer::Compact(a) => &a.header,
        Answer::Grant(a) => &a.header,
        Answer::Revoke(a) => &a.header,
        Answer::TimeToLive(a) => &a.header,
        Answer::Leases(_) => return None,
    };
    Some(header.as_ref()?.revision)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// All events from `start` to `end` of everything, with what was there before.
async fn history(endpoint: &str, start: i64, end: i64) -> Vec<PbEvent> {
    // A connection of its own: h2 gives one up after a number of streams that were dropped open.
    let mut raw = Raw::connect(endpoint).await;
    let mut request = PbWatchRequest {
        request_union: Some(PbWatchRequestUnion::CreateRequest(Default::default())),
    };
    if let Some(PbWatchRequestUnion::CreateRequest(create)) = &mut request.request_union {
        create.key = vec![0];
        create.range_end = vec![0];
        create.start_revision = start;
        create.prev_kv = true;
    }
    let mut stream = raw.watch(vec![request]).await;
    let mut events: Vec<PbEvent> = Vec::new();
    let newest = |events: &[PbEvent]| {
        let last = events.last().and_then(|e| e.kv.as_ref());
        last.map_or(0, |kv| kv.mod_revision)
    };
    while newest(&events) < end {
        let response = stream.message().await.unwrap().expect("the watch goes on");
        assert!(!response.canceled, "cancelled: {response:?}");
        events.extend(response.events);
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_equals_etcds() {
    let ops = setting("REEVE_DIFFERENTIAL_OPS", 4000);
    let seed = setting("REEVE_DIFFERENTIAL_SEED", 1);
    let real = RealEtcd::start().await;
    let ours = Served::start().await;
    let (mut theirs, mut our) = (real.raw().await, ours.raw().await);
    let mut generator = Generator {
        dice: Dice::new(seed),
        revision: 1,
    };
    let mut compacted = 0;
    let mut refused = 0;
    let mut since = 0;
    for n in 0..ops {
        let op = generator.next();
        let (a, b) = tokio::join!(ask(&mut theirs, op.clone()), ask(&mut our, op.clone()));
        assert!(
            a == b,
            "seed {seed}, operation {n} at revision {}: {op:#?}\netcd says {a:#?}\nwe say {b:#?}",
            generator.revision
        );
        match &a {
            Ok(answer) => {
                if let (Answer::Compact(_), Op::Compact(c)) = (answer, &op) {
                    compacted = c.revision;
                }
                generator.revision = generator.revision.max(revision_in(answer).unwrap_or(0));
            }
            Err(_) => refused += 1,
        }
        since += 1;
        // etcd 3.4 forgets deletions at the compact revision itself, and what was before the next.
        let start = (compacted + 2).max(2);
        if since >= 250 && start <= generator.revision {
            since = 0;
            let end = generator.revision;
            let (a, b) = tokio::join!(history(&real.endpoint, start, end), history(&ours.endpoint, start, end));
            for (theirs, ours) in a.iter().zip(&b) {
                assert_eq!(theirs, ours, "seed {seed}, history from {start} after operation {n}");
            }
            assert_eq!(
                a.len(),
                b.len(),
                "seed {seed}, history from {start} after operation {n}"
            );
        }
    }
    eprintln!("{ops} operations, {refused} of them refused, the same on both");
    assert!(refused > ops / 100, "the generator must make refusals too");
    ours.close().await;
}
