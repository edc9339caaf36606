//! Requests that no sane client sends: none may make the embedded store panic, hang or go wrong.

#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

mod embedded_support;

use embedded_support::{Dice, Raw, Served};
use etcd_client::proto::*;

const NUMBERS: &[i64] = &[
    0,
    1,
    2,
    5,
    -1,
    -2,
    i64::MIN,
    i64::MIN + 1,
    i64::MAX,
    i64::MAX - 1,
    1 << 31,
    1 << 32,
    1 << 62,
];

fn number(dice: &mut Dice) -> i64 {
    match dice.one_in(3) {
        true => dice.next() as i64,
        false => dice.pick(NUMBERS),
    }
}

fn small(dice: &mut Dice) -> i32 {
    dice.pick(&[0, 1, 2, 3, 4, 5, -1, i32::MIN, i32::MAX, 77])
}

fn bytes(dice: &mut Dice) -> Vec<u8> {
    let len = dice.pick(&[0, 1, 1, 2, 3, 17, 300]);
    (0..len)
        .map(|_| dice.pick(&[0, 0, 1, b'a', b'/', 0x7f, 0xff]))
        .collect()
}

fn range(dice: &mut Dice) -> PbRangeRequest {
    PbRangeRequest {
        key: bytes(dice),
        range_end: bytes(dice),
        limit: number(dice),
        revision: number(dice),
        sort_order: small(dice),
        sort_target: small(dice),
        serializable: dice.one_in(2),
        keys_only: dice.one_in(2),
        count_only: dice.one_in(2),
        min_mod_revision: number(dice),
        max_mod_revision: number(dice),
        min_create_revision: number(dice),
        max_create_revision: number(dice),
    }
}

fn put(dice: &mut Dice) -> PbPutRequest {
    PbPutRequest {
        key: bytes(dice),
        value: bytes(dice),
        lease: if dice.one_in(2) { number(dice) } else { 0 },
        prev_kv: dice.one_in(2),
        ignore_value: dice.one_in(4),
        ignore_lease: dice.one_in(4),
    }
}

fn delete(dice: &mut Dice) -> PbDeleteRequest {
    PbDeleteRequest {
        key: bytes(dice),
        range_end: bytes(dice),
        prev_kv: dice.one_in(2),
    }
}

fn compare(dice: &mut Dice) -> PbCompare {
    PbCompare {
        result: small(dice),
        target: small(dice),
        key: bytes(dice),
        range_end: bytes(dice),
        target_union: match dice.below(6) {
            0 => None,
            1 => Some(PbTargetUnion::Version(number(dice))),
            2 => Some(PbTargetUnion::CreateRevision(number(dice))),
            3 => Some(PbTargetUnion::ModRevision(number(dice))),
            4 => Some(PbTargetUnion::Lease(number(dice))),
            _ => Some(PbTargetUnion::Value(bytes(dice))),
        },
    }
}

fn txn(dice: &mut Dice, depth: u32) -> PbTxnRequest {
    let ops = |dice: &mut Dice| -> Vec<PbTxnRequestOp> {
        (0..dice.below(4))
            .map(|_| PbTxnRequestOp {
                request: match dice.below(8) {
                    0 => None,
                    1 | 2 => Some(PbTxnOpRequest::RequestRange(range(dice))),
                    3 => Some(PbTxnOpRequest::RequestDeleteRange(delete(dice))),
                    4 | 5 if depth > 0 => Some(PbTxnOpRequest::RequestTxn(txn(dice, depth - 1))),
                    _ => Some(PbTxnOpRequest::RequestPut(put(dice))),
                },
            })
            .collect()
    };
    PbTxnRequest {
        compare: (0..dice.below(3)).map(|_| compare(dice)).collect(),
        success: ops(dice),
        failure: ops(dice),
    }
}

async fn ask(raw: &mut Raw, dice: &mut Dice) -> bool {
    match dice.below(12) {
        0 | 1 => raw.range(range(dice)).await.is_ok(),
        2 | 3 => raw.put(put(dice)).await.is_ok(),
        4 => raw.delete(delete(dice)).await.is_ok(),
        5 | 6 => raw.txn(txn(dice, 3)).await.is_ok(),
        7 => {
            let revision = if dice.one_in(2) {
                dice.below(40) as i64
            } else {
                number(dice)
            };
            let physical = dice.one_in(2);
            raw.compact(PbCompactionRequest { revision, physical }).await.is_ok()
        }
        8 => {
            let request = PbLeaseGrantRequest {
                ttl: number(dice),
                id: number(dice),
            };
            raw.grant(request).await.is_ok()
        }
        9 => raw.revoke(PbLeaseRevokeRequest { id: number(dice) }).await.is_ok(),
        10 => {
            let request = PbLeaseTimeToLiveRequest {
                id: number(dice),
                keys: true,
            };
            raw.time_to_live(request).await.is_ok()
        }
        _ => raw.hash_kv(PbHashKvRequest { revision: number(dice) }).await.is_ok(),
    }
}

async fn still_well(served: &Served) {
    let mut client = served.store.client();
    let put = client.put("well", "1", None).await.unwrap();
    let got = client.get("well", None).await.unwrap();
    assert_eq!(got.header().unwrap().revision(), put.header().unwrap().revision());
    assert_eq!(got.kvs()[0].value(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_store() {
    let served = Served::start().await;
    let mut raw = served.raw().await;
    let mut dice = Dice::new(11);
    let mut fine = 0;
    for _ in 0..4000 {
        fine += u64::from(ask(&mut raw, &mut dice).await);
    }
    assert!(
        fine > 400,
        "only {fine} requests were taken: the fuzz does not reach the store"
    );
    still_well(&served).await;
    // And all of it can be read again.
    let dir = served.close().await;
    let options = runtime::embedded::OpenOptions::new(dir.path().join("store"));
    runtime::embedded::Embedded::open(options).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_watch_request_breaks_the_store() {
    let served = Served::start().await;
    let mut client = served.store.client();
    for i in 0..20 {
        client.put(format!("k{}", i % 3), "v", None).await.unwrap();
    }
    client.compact(10, None).await.unwrap();
    let mut dice = Dice::new(12);
    for _ in 0..40 {
        let mut requests = Vec::new();
        for _ in 0..30 {
            let union = match dice.below(8) {
                0 => None,
                1 => {
                    let mut union = PbWatchRequestUnion::CancelRequest(Default::default());
                    if let PbWatchRequestUnion::CancelRequest(cancel) = &mut union {
                        cancel.watch_id = number(&mut dice);
                    }
                    Some(union)
                }
                2 => Some(PbWatchRequestUnion::ProgressRequest(Default::default())),
                _ => {
                    let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
                    if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
                        create.key = bytes(&mut dice);
                        create.range_end = bytes(&mut dice);
                        create.start_revision = number(&mut dice);
                        create.watch_id = number(&mut dice);
                        create.filters = vec![small(&mut dice)];
                        create.prev_kv = dice.one_in(2);
                        create.fragment = dice.one_in(2);
                        create.progress_notify = dice.one_in(2);
                    }
                    Some(union)
                }
            };
            requests.push(PbWatchRequest { request_union: union });
        }
        // Read until the answer to this one, which comes after all others.
        requests.push(PbWatchRequest {
            request_union: Some(PbWatchRequestUnion::ProgressRequest(Default::default())),
        });
        let mut stream = served.raw().await.watch(requests).await;
        let answered = async {
            while let Some(response) = stream.message().await.unwrap() {
                if response.watch_id == -1 && !response.created {
                    return;
                }
            }
            panic!("the stream ended");
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), answered)
            .await
            .expect("an answer within 20 s");
    }
    still_well(&served).await;
    served.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_txn_nested_too_deep_is_refused() {
    let served = Served::start().await;
    let mut raw = served.raw().await;
    let mut txn = PbTxnRequest::default();
    for _ in 0..90 {
        txn = PbTxnRequest {
            success: vec![PbTxnRequestOp {
                request: Some(PbTxnOpRequest::RequestTxn(txn)),
            }],
            ..Default::default()
        };
    }
    raw.txn(txn).await.unwrap_err();
    still_well(&served).await;
    served.close().await;
}
