//! Looking at the seeds from outside: who answers, how far each is, which ports are shut. `reeve install` tells its waiting by
//! it, and `reeve doctor` its findings. It shows nobody anything and decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rustls::time_provider::DefaultTimeProvider;
use tokio::net::TcpStream;
use tokio::time::timeout;
use trust::key::Fingerprint;
use trust::tls::newcomer;

use crate::call::call;
use crate::port::SeedState;
use crate::seeds::{Host, Seeds};
use crate::{CLIENT_PORT, PEER_PORT, SEED_PORT};

const CONNECT: Duration = Duration::from_secs(3);

/// What each seed says of itself to who knows its authority; else why it says nothing.
///
/// # Errors
/// When TLS cannot be prepared.
pub async fn seeds(
    pin: Fingerprint,
    seeds: &Seeds,
) -> Result<BTreeMap<Host, Result<SeedState, String>>, rustls::Error> {
    let tls = Arc::new(newcomer(pin, Arc::new(DefaultTimeProvider))?);
    let asked = seeds.iter().map(async |host| {
        let answer = call::<(), SeedState>(host, SEED_PORT, &tls, "/v1/seed", None).await;
        (
            host.clone(),
            answer.map(|(state, _)| state).map_err(|error| runtime::chain(&error)),
        )
    });
    Ok(join_all(asked).await.into_iter().collect())
}

/// The ports of the store that cannot be reached from here, each with the reason.
pub async fn shut_ports(seeds: &Seeds) -> BTreeMap<String, String> {
    let places = seeds.iter().flat_map(|host| [host.at(CLIENT_PORT), host.at(PEER_PORT)]);
    let tried = places.map(async |place| {
        let why = match timeout(CONNECT, TcpStream::connect(place.as_str())).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "no answer within {} s: does a firewall keep it shut?",
                CONNECT.as_secs()
            )),
        };
        (place, why)
    });
    let tried = join_all(tried).await.into_iter();
    tried.filter_map(|(place, why)| Some((place, why?))).collect()
}
