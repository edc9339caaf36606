//! What the API says of this node's end of the network: how it stands, what its names' server answers, and whether something
//! listens at a port of an instance of its own. Called by `server`. It changes nothing but the key of the node's links, where a
//! person asks for that.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use planner::network::lookup::{MAX_NAME, Wanted};
use runtime::chain;
use schemas::container::Protocol;
use schemas::names::Namespace;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::ask::{Ended, Knocked, Refusal, Why};
use super::server::{Shared, begun};
use super::wire::{Frame, Kind};
use super::{Act, Caller, Rights, may, session};

/// How long an instance may take to open a connection.
const KNOCK: Duration = Duration::from_secs(1);

/// What is asked.
pub(super) enum Question {
    Here,
    RotateKey,
    Lookup(Wanted),
    Knock {
        namespace: Namespace,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    },
}

pub(super) async fn answer(
    shared: &Shared,
    rights: Rights,
    caller: &Caller,
    question: Question,
    out: &mpsc::Sender<Frame>,
) -> Result<(), Refusal> {
    let about = match &question {
        Question::Here | Question::RotateKey => None,
        Question::Lookup(wanted) => Some(&wanted.from),
        Question::Knock { namespace, .. } => Some(namespace),
    };
    let act = match &question {
        Question::RotateKey => Act::RotateKey,
        Question::Here | Question::Lookup(_) | Question::Knock { .. } => Act::Network,
    };
    may(caller, act, about, rights).map_err(|denied| Refusal::new(Why::Denied, denied.message).help(denied.remedy))?;
    let bytes = match question {
        Question::Here => Frame::json(Kind::Data, &*shared.seen.here().await),
        Question::RotateKey => Frame::json(Kind::Data, &shared.seen.rotate().await?),
        Question::Lookup(wanted) => lookup(shared, wanted).await?,
        Question::Knock {
            namespace,
            address,
            port,
            protocol,
        } => {
            if shared.seen.owner(address) != Some(namespace) {
                let message = format!("no instance of that namespace has the address {address} on this node");
                return Err(
                    Refusal::new(Why::NotHere, message).help("`reeve get instances -A -o wide` shows what is where")
                );
            }
            Frame::json(Kind::Data, &knock(SocketAddr::new(address, port), protocol).await)
        }
    };
    let _ = out.send(begun()).await;
    // In pieces: there may be thousands of other nodes.
    session::send(out, Kind::Data, bytes.payload).await;
    let _ = out.send(Frame::json(Kind::End, &Ended::Done)).await;
    Ok(())
}

async fn lookup(shared: &Shared, wanted: Wanted) -> Result<Frame, Refusal> {
    if wanted.name.len() > MAX_NAME {
        let message = format!("a name has at most {MAX_NAME} bytes, this one {}", wanted.name.len());
        return Err(Refusal::new(Why::NotUnderstood, message));
    }
    if shared.seen.network().is_none() {
        return Err(Refusal::new(Why::NotHere, "this node has no part of a network")
            .help("`reeve network status` shows who has"));
    }
    match network::names::look(shared.seen.names(), wanted).await {
        Ok(Some(found)) => Ok(Frame::json(Kind::Data, &found)),
        Ok(None) => {
            Err(Refusal::new(Why::Busy, "the names' server has not read its copy yet").help("try again in a moment"))
        }
        Err(error) => Err(Refusal::new(Why::Engine, chain(&error)).help("the agent starts it again within seconds")),
    }
}

async fn knock(door: SocketAddr, protocol: Protocol) -> Knocked {
    match protocol {
        Protocol::Udp => Knocked::Unseen,
        Protocol::Tcp => match tokio::time::timeout(KNOCK, TcpStream::connect(door)).await {
            Ok(Ok(_)) => Knocked::Open,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Knocked::Closed,
            Ok(Err(_)) | Err(_) => Knocked::Silent,
        },
    }
}
