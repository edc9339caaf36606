//! A watch over its life, as the stream of inputs that the machine takes. Dropping it ends it at the store: the client's
//! stream is reset with it.

use etcd_client::WatchOptions;
use etcd_client::proto::{PbEvent, PbWatchResponse};
use tokio::time::timeout;

use super::classify::{Failure, classify};
use super::{EtcdStore, key_value};
use crate::store::{Prefix, WatchEvent, WatchInput};

/// A watch over its life.
pub(super) enum Watching {
    Begin {
        store: EtcdStore,
        prefix: Prefix,
        from: i64,
    },
    Open {
        store: EtcdStore,
        prefix: Prefix,
        member: usize,
        stream: Box<etcd_client::WatchStream>,
    },
    Over,
}

impl Watching {
    pub(super) async fn next(self) -> Option<(WatchInput, Self)> {
        match self {
            Self::Over => None,
            Self::Begin { store, prefix, from } => {
                let (index, mut member) = store.inner.preferred();
                let options = WatchOptions::new()
                    .with_range(prefix.range_end())
                    .with_start_revision(from)
                    .with_progress_notify()
                    .with_fragment();
                let open = async {
                    let mut stream = member.watch.watch(prefix.as_str(), Some(options)).await?;
                    let first = stream.message().await?;
                    Ok::<_, etcd_client::Error>((stream, first))
                };
                match timeout(store.inner.deadline, open).await {
                    Ok(Ok((stream, first))) => {
                        let stream = Box::new(stream);
                        Self::Open {
                            store,
                            prefix,
                            member: index,
                            stream,
                        }
                        .heard(first.map(|r| r.0))
                    }
                    Ok(Err(error)) => Self::broken(&store, &prefix, index, classify(error)),
                    Err(_) => Self::broken(&store, &prefix, index, Failure::timeout()),
                }
            }
            Self::Open {
                store,
                prefix,
                member,
                mut stream,
            } => match stream.message().await {
                Ok(message) => Self::Open {
                    store,
                    prefix,
                    member,
                    stream,
                }
                .heard(message.map(|r| r.0)),
                Err(error) => Self::broken(&store, &prefix, member, classify(error)),
            },
        }
    }

    fn heard(self, message: Option<PbWatchResponse>) -> Option<(WatchInput, Self)> {
        let Self::Open {
            store,
            prefix,
            member,
            stream,
        } = self
        else {
            return None;
        };
        let Some(response) = message else {
            let ended = Failure::ended();
            return Self::broken(&store, &prefix, member, ended);
        };
        store.inner.health.answered();
        let header = response.header.unwrap_or_default();
        if response.canceled {
            let canceled = WatchInput::Canceled {
                compact_revision: response.compact_revision,
                reason: response.cancel_reason,
            };
            return Some((canceled, Self::Over));
        }
        let input = if response.created {
            WatchInput::Opened {
                cluster_id: header.cluster_id,
                revision: header.revision,
            }
        } else {
            WatchInput::Response {
                cluster_id: header.cluster_id,
                revision: header.revision,
                events: response.events.into_iter().filter_map(watch_event).collect(),
                fragment: response.fragment,
            }
        };
        Some((
            input,
            Self::Open {
                store,
                prefix,
                member,
                stream,
            },
        ))
    }

    fn broken(store: &EtcdStore, prefix: &Prefix, member: usize, failure: Failure) -> Option<(WatchInput, Self)> {
        store.inner.pass_over(member);
        let error = failure.told("watch", prefix.as_str().to_owned());
        Some((WatchInput::Disconnected(error), Self::Over))
    }
}

fn watch_event(event: PbEvent) -> Option<WatchEvent> {
    let kv = event.kv?;
    Some(match event.r#type {
        0 => WatchEvent::Put(key_value(kv)),
        _ => WatchEvent::Delete {
            key: kv.key,
            revision: kv.mod_revision,
        },
    })
}
