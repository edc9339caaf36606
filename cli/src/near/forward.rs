//! `reeve port-forward`: ports of this machine, on loopback only, that lead to ports of an instance's container through its
//! agent, until Ctrl-C.

use std::net::{Ipv4Addr, SocketAddr};

use agent::api::Client;
use agent::api::ask::{Ask, Asked, Named};
use agent::api::wire::{Frame, Kind, PIECE};
use bytes::{Bytes, BytesMut};
use schemas::names::{InstanceName, NodeName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Target, failed, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::ForwardArgs;
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::output::{self, complain, print};

/// Connections at once, of one port.
const CONNECTIONS: usize = 64;

pub async fn forward(common: &Common, args: &ForwardArgs) -> Verdict {
    let target = Target::parse(common, &args.what)?;
    let (_, view, ways) = prepare(common).await?;
    let instance = target.one(&view)?;
    let client = ways.to(&view, instance.node)?;
    let mut serving = JoinSet::new();
    for (local, remote) in &args.ports {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, *local));
        let bound = TcpListener::bind(wanted).await;
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot listen on {wanted}"))
                .because(&error)
                .help("choose another LOCAL port; `:80` takes any that is free")
        };
        let listener = bound.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let way = Through {
            client: client.clone(),
            name: instance.name.clone(),
            node: instance.node.clone(),
            port: *remote,
        };
        way.try_once().await?;
        print(&format!(
            "{address} leads to port {remote} of {} on {}\n",
            instance.name, instance.node
        ));
        serving.spawn(serve(listener, way));
    }
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
        _ = serving.join_next() => Ok(Exit::Failed),
    }
}

/// Where connections lead to.
#[derive(Clone)]
struct Through {
    client: Client,
    name: InstanceName,
    node: NodeName,
    port: u16,
}

impl Through {
    async fn open(&self) -> Result<agent::api::Talk, Failure> {
        let asked = Asked {
            by: person(),
            ask: Ask::Forward {
                instance: Named::from(&self.name),
                port: self.port,
            },
        };
        let what = format!("connect to port {} of {}", self.port, self.name);
        let talk = self.client.ask(&self.node, &asked).await;
        talk.map_err(|error| failed(&what, &self.node, &error))
    }

    /// Says at once what would fail later.
    async fn try_once(&self) -> Result<(), Failure> {
        self.open().await.map(drop)
    }
}

async fn serve(listener: TcpListener, way: Through) {
    let mut guests = JoinSet::new();
    loop {
        while guests.len() >= CONNECTIONS {
            guests.join_next().await;
        }
        while guests.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let way = way.clone();
        guests.spawn(async move {
            if let Err(failure) = pass(stream, &way).await {
                complain(&failure.render(output::look()));
            }
        });
    }
}

async fn pass(stream: TcpStream, way: &Through) -> Result<(), Failure> {
    let mut talk = way.open().await?;
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let out = talk.out.clone();
    let forth = tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            while !buffer.is_empty() {
                let piece = buffer.split_to(buffer.len().min(PIECE)).freeze();
                if out.send(Frame::new(Kind::Data, piece)).await.is_err() {
                    return;
                }
            }
        }
        let _ = out.send(Frame::new(Kind::DataEnd, Bytes::new())).await;
    });
    while let Ok(Some(frame)) = talk.next().await {
        let passed = match frame.kind {
            Kind::Data => write.write_all(&frame.payload).await,
            Kind::DataEnd => write.shutdown().await,
            Kind::Ask
            | Kind::Answer
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Line
            | Kind::Container
            | Kind::Resize
            | Kind::End
            | Kind::Ping => break,
        };
        if passed.is_err() {
            break;
        }
    }
    forth.abort();
    Ok(())
}
