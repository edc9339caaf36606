//! The store's members as etcd itself tells of them: who there is, who answers, how large and how old each is. `reeve doctor`
//! shows it; `reeve uninstall` takes a seed out of them, where the rest can go on without it.

use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Certificate as EtcdCertificate, Client, ConnectOptions, Error, Identity as EtcdIdentity,
    TlsOptions,
};
use futures::future::join_all;
use runtime::TlsFiles;
use tokio::time::timeout;

const CONNECT: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(5);
/// How often a change of members is asked for again, and how long between two.
const TRIES: u32 = 30;
const AGAIN: Duration = Duration::from_secs(1);

/// Why the members cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    #[error("cannot read {file}")]
    File {
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot {act}")]
    Etcd {
        act: &'static str,
        #[source]
        source: Error,
    },
    #[error("cannot {act} within {} s", CALL.as_secs())]
    Slow { act: &'static str },
}

impl MembersError {
    /// For people: without the layers of a transport, which each say the same in their own words.
    #[must_use]
    pub fn plain(&self) -> String {
        match self {
            Self::Etcd { act, source } => format!("cannot {act}: {}", plain(source)),
            Self::File { .. } | Self::Slow { .. } => runtime::chain(self),
        }
    }
}

/// What etcd, or at last the system, says.
pub(crate) fn plain(error: &Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match (error, last.downcast_ref::<Error>()) {
        (Error::GRpcStatus(status), Some(_)) => status.message().to_owned(),
        _ => last.to_string(),
    }
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// None where only its address is known, and of the embedded store.
    pub id: Option<u64>,
    /// Empty for one that was added and has not begun.
    pub name: String,
    /// Where it is reached; empty for one that has not begun.
    pub url: String,
    /// Where other members reach it; empty where only its address is known, and of the embedded store.
    pub peer: String,
    pub health: Result<Health, String>,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub version: String,
    pub db_size_bytes: i64,
    /// What of it is in use; 0 where it does not say.
    pub db_used_bytes: i64,
    /// The id of the member that leads; 0 when it knows of none.
    pub leader: u64,
    pub learner: bool,
    pub errors: Vec<String>,
}

/// Reads the files, and prepares a client for these endpoints. Nothing is asked yet.
pub(crate) async fn client(endpoints: &[String], tls: Option<&TlsFiles>) -> Result<Client, MembersError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| MembersError::File {
            file: path.display().to_string(),
            source,
        })
    };
    let mut options = ConnectOptions::new().with_connect_timeout(CONNECT).with_timeout(CALL);
    if let Some(files) = tls {
        let mut tls = TlsOptions::new().ca_certificate(EtcdCertificate::from_pem(read(&files.ca)?));
        if let Some((cert, key)) = &files.identity {
            tls = tls.identity(EtcdIdentity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    let act = "connect to the store";
    let connected = Client::connect(endpoints, Some(options)).await;
    connected.map_err(|source| MembersError::Etcd { act, source })
}

async fn within<T>(act: &'static str, call: impl Future<Output = Result<T, Error>>) -> Result<T, MembersError> {
    let done = timeout(CALL, call).await.map_err(|_| MembersError::Slow { act })?;
    done.map_err(|source| MembersError::Etcd { act, source })
}

/// All members, and how each is. The embedded store is told as one, without an id.
///
/// # Errors
/// When the files cannot be read. What does not answer is told as such.
pub async fn look(endpoints: &[String], tls: Option<&TlsFiles>) -> Result<Vec<Seen>, MembersError> {
    // Each is asked by itself: a member may answer while another, or a majority, does not.
    let asked = endpoints.iter().map(async |url| {
        let client = client(std::slice::from_ref(url), tls).await?;
        within("list the store's members", client.cluster_client().member_list()).await
    });
    let mut listed = None;
    for answer in join_all(asked).await {
        match answer {
            Ok(answer) => listed = listed.or(Some(answer)),
            Err(error @ MembersError::File { .. }) => return Err(error),
            Err(_) => {}
        }
    }
    let places: Vec<(Option<u64>, String, String, String)> = match listed {
        Some(listed) if !listed.members().is_empty() => listed
            .members()
            .iter()
            .map(|member| {
                let url = member.client_urls().first().cloned().unwrap_or_default();
                // A member of etcd's has peers' addresses from the moment it is added; the embedded store has none.
                let id = Some(member.id()).filter(|_| !member.peer_urls().is_empty());
                let peer = member.peer_urls().first().cloned().unwrap_or_default();
                (id, member.name().to_owned(), url, peer)
            })
            .collect(),
        Some(_) | None => { endpoints.iter() }
            .map(|url| (None, String::new(), url.clone(), String::new()))
            .collect(),
    };
    let asked = places.into_iter().map(async |(id, name, url, peer)| {
        let health = health(&url, tls).await;
        Seen {
            id,
            name,
            url,
            peer,
            health,
        }
    });
    Ok(join_all(asked).await)
}

async fn health(url: &str, tls: Option<&TlsFiles>) -> Result<Health, String> {
    if url.is_empty() {
        return Err("it has not begun".to_owned());
    }
    let ask = async {
        let mut client = client(&[url.to_owned()], tls).await?;
        within("ask for its status", client.status()).await
    };
    let status = ask.await.map_err(|error| error.plain())?;
    Ok(Health {
        version: status.version().to_owned(),
        db_size_bytes: status.db_size(),
        db_used_bytes: status.raft_used_db_size(),
        leader: status.leader(),
        learner: status.is_learner(),
        errors: status.errors().iter().take(8).cloned().collect(),
    })
}

/// The alarms that are raised: `NOSPACE` means that nothing more can be written.
///
/// # Errors
/// When the store does not answer.
pub async fn alarms(endpoints: &[String], tls: Option<&TlsFiles>) -> Result<Vec<String>, MembersError> {
    let act = "ask for alarms";
    let mut asked = Err(MembersError::Slow { act });
    // One after the other: with several at once, one that is away may be asked.
    for url in endpoints {
        let one = async {
            let mut client = client(std::slice::from_ref(url), tls).await?;
            within(act, client.alarm(AlarmAction::Get, AlarmType::None, None)).await
        };
        asked = one.await;
        if asked.is_ok() {
            break;
        }
    }
    let answer = asked?;
    let names = answer.alarms().iter().map(|alarm| match alarm.alarm() {
        AlarmType::Nospace => "NOSPACE".to_owned(),
        AlarmType::Corrupt => "CORRUPT".to_owned(),
        AlarmType::None => "NONE".to_owned(),
    });
    Ok(names.collect())
}

/// Whether a member may go: the rest must be able to go on, and to do so with what answers now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is none of the members.
    Gone,
    May {
        id: u64,
        /// Where one of the rest answers.
        through: String,
    },
    /// It is the only one: with it the cluster ends.
    Last,
    /// Too few of the rest answer.
    TooFew {
        healthy: usize,
        rest: usize,
        silent: Vec<String>,
    },
}

/// Whether the member at `url` may go.
#[must_use]
pub fn may_leave(members: &[Seen], url: &str) -> Leave {
    let Some(id) = members.iter().find(|one| one.url == url).and_then(|one| one.id) else {
        return Leave::Gone;
    };
    let rest: Vec<&Seen> = members.iter().filter(|one| one.url != url).collect();
    // A learner has no vote.
    let votes = |one: &&&Seen| {
        one.health
            .as_ref()
            .is_ok_and(|health| !health.learner && health.leader != 0)
    };
    let healthy = rest.iter().filter(votes).count();
    let through = rest.iter().find(votes).map(|one| one.url.clone());
    if rest.is_empty() {
        return Leave::Last;
    }
    if healthy > rest.len() / 2
        && let Some(through) = through
    {
        return Leave::May { id, through };
    }
    let silent = rest
        .iter()
        .filter(|one| !votes(one))
        .map(|one| one.url.clone())
        .collect();
    Leave::TooFew {
        healthy,
        rest: rest.len(),
        silent,
    }
}

/// Takes a member out, by way of another. etcd refuses that until all members have been connected for some seconds: it is asked again.
///
/// # Errors
/// When the store does not take it.
pub async fn remove(through: &str, tls: Option<&TlsFiles>, id: u64) -> Result<(), MembersError> {
    let act = "take this seed out of the store's members";
    let client = client(&[through.to_owned()], tls).await?;
    let mut cluster = client.cluster_client();
    let mut tries = 0;
    loop {
        match within(act, cluster.member_remove(id)).await {
            Err(MembersError::Etcd { act: _, source })
                if source.to_string().contains("unhealthy cluster") && tries < TRIES =>
            {
                tries += 1;
            }
            done => return done.map(drop),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, healthy: bool) -> Seen {
        let health = Health {
            leader: 1,
            ..Health::default()
        };
        Seen {
            id: Some(id),
            name: format!("m{id}"),
            url: format!("https://10.0.0.{id}:2379"),
            peer: format!("https://10.0.0.{id}:2380"),
            health: if healthy { Ok(health) } else { Err("silent".to_owned()) },
        }
    }

    #[test]
    fn a_member_goes_only_when_the_rest_has_a_majority_of_its_own() {
        // Every number of seeds, and every number of them that answer beside the one that goes.
        for count in 1..=7u64 {
            for healthy in 0..count {
                let members: Vec<Seen> = (1..=count).map(|id| member(id, id == 1 || id <= healthy + 1)).collect();
                let may = may_leave(&members, "https://10.0.0.1:2379");
                let rest = count - 1;
                match may {
                    Leave::Last => assert_eq!(rest, 0),
                    Leave::May { id, through } => assert!(
                        id == 1 && healthy > rest / 2 && through.contains("10.0.0.2"),
                        "{healthy} of {rest}"
                    ),
                    Leave::TooFew {
                        healthy: found,
                        rest: all,
                        silent,
                    } => {
                        assert!(healthy <= rest / 2 && rest > 0, "{healthy} of {rest}");
                        assert_eq!(
                            (found as u64, all as u64, silent.len() as u64),
                            (healthy, rest, rest - healthy)
                        );
                    }
                    Leave::Gone => panic!("it is one of them"),
                }
            }
        }
        assert_eq!(may_leave(&[member(2, true)], "https://10.0.0.1:2379"), Leave::Gone);
    }

    #[test]
    fn who_has_no_vote_or_knows_no_leader_is_no_part_of_a_majority() {
        let mut members = [member(1, true), member(2, true), member(3, true)];
        members[1].health = Ok(Health {
            learner: true,
            leader: 1,
            ..Health::default()
        });
        assert!(matches!(
            may_leave(&members, "https://10.0.0.1:2379"),
            Leave::TooFew { healthy: 1, .. }
        ));
        members[1].health = Ok(Health::default());
        assert!(matches!(
            may_leave(&members, "https://10.0.0.1:2379"),
            Leave::TooFew { healthy: 1, .. }
        ));
    }
}
