//! A node leaves: it asks a seed, with its own certificate, to be retired, and the leader then sends elsewhere what it ran.
//! No right to write the store is needed for it, and nobody can ask it for another.

use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use runtime::{Guard, Outcome, Store, chain, person};
use schemas::keys::Key;
use schemas::names::NodeName;
use schemas::records::{Cordon, CordonMode, Record as _, SchemaVersion};
use serde::{Deserialize, Serialize};
use trust::identity::{Role, Who};

use crate::believed::Believed;
use crate::call::{CallError, call, to_seeds};
use crate::join::JoinError;
use crate::keep::Keep;
use crate::port::{Caller, Failure, Seat, formed, later, refuse};
use crate::seeds::Seeds;
use crate::{SEED_PORT, now, record};

/// `POST /v1/leave`: who shows a node's certificate asks to be retired.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaveQuestion {
    /// Why, for those who ask later.
    pub note: String,
}

/// It is retired.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaveAnswer {
    pub node: String,
}

/// The seed's end of it.
pub(crate) async fn answer(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<LeaveQuestion>,
) -> Result<Json<LeaveAnswer>, Failure> {
    let Some(shown) = caller.certificate else {
        return Err(refuse("who shows no certificate is no node"));
    };
    seat.believed()
        .trust()
        .recheck(&shown, now())
        .map_err(|error| refuse(chain(&error)))?;
    let Who::Node(name) = &shown.identity().who else {
        return Err(refuse(
            "only a node leaves; a seed goes out of the store's members itself",
        ));
    };
    let node: NodeName = name.as_str().parse().map_err(refuse)?;
    let (store, _) = formed(&seat)?;
    let cordon = Cordon {
        schema_version: SchemaVersion::default(),
        lost: false,
        mode: CordonMode::Retire,
        by: format!("node/{node}"),
        note: Some(question.note.chars().filter(|c| !c.is_control()).take(200).collect()),
    };
    // Whatever was asked of it before: leaving goes further.
    let txn = person::txn().put(seat.root.key(&Key::Cordon(node.clone())), cordon.encode(), Guard::Any);
    match store.commit(txn).await.map_err(|error| later(chain(&error)))? {
        Outcome::Committed { revision: _ } => {}
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => return Err(later("ask again")),
    }
    tracing::info!(%node, "leaves the cluster");
    let objects = vec![format!("node/{node}"), format!("from {}", caller.address.ip())];
    record::tell(&seat, &store, &shown.identity().who.subject(), "leave", objects).await;
    Ok(Json(LeaveAnswer { node: node.to_string() }))
}

/// Asks one seed after the other to retire this node.
///
/// # Errors
/// When this host has not joined, or no seed does it: the last one's words.
pub async fn leave(keep: &Keep, seeds: &Seeds, note: &str) -> Result<(), LeaveError> {
    let believed = Believed::on_disk(keep)
        .map_err(JoinError::from)?
        .ok_or(JoinError::NotJoined)?;
    let held = keep
        .held(&Role::Node.to_string())
        .map_err(JoinError::from)?
        .ok_or(JoinError::NotJoined)?;
    let door = believed.door(&held).map_err(JoinError::Show)?;
    let tls = to_seeds(&door).map_err(JoinError::Tls)?;
    let question = LeaveQuestion { note: note.to_owned() };
    let mut last = None;
    for host in seeds.iter() {
        match call::<_, LeaveAnswer>(host, SEED_PORT, &tls, "/v1/leave", Some(&question)).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    // There always is a seed.
    last.map_or(Ok(()), |error| Err(LeaveError::Call(error)))
}

/// Why a node cannot leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("no seed retires this node")]
    Call(#[source] CallError),
}
