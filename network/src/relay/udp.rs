//! Datagrams: a client's first goes to an instance, and those after it to the same one, while it is ready and something is
//! said. Where nobody is at an instance's port, what was sent first goes to the next.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use planner::network::relay::Flows;
use schemas::container::Protocol;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::Instant;

use super::server::{MAX_FLOWS, Post};

/// After so long without a datagram a flow is over.
const IDLE: Duration = Duration::from_secs(60);
const SWEEP: Duration = Duration::from_secs(5);
/// Flows of one port.
const MAX_FLOWS_OF_ONE: usize = 1_024;
/// The largest datagram.
const LARGEST: usize = 65_535;
/// What is kept of a first datagram, to be sent to the next instance.
const KEPT: usize = 2_048;
/// Instances that one datagram is sent to.
const TRIES: usize = 8;

/// One client's way to an instance: closed when it is dropped.
struct Flow {
    socket: Rc<UdpSocket>,
    task: AbortHandle,
    post: Rc<Post>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
        let flows = &self.post.shared.flows;
        flows.set(flows.get().saturating_sub(1));
    }
}

/// What a flow's own task says.
enum Said {
    Answered(SocketAddr),
    /// Nobody is there: what was sent, if nothing has come back yet.
    Nobody(SocketAddr, SocketAddr, Option<(Vec<u8>, usize)>),
}

struct Carrier {
    post: Rc<Post>,
    listener: Rc<UdpSocket>,
    flows: Flows<Flow>,
    begun: Instant,
    said: mpsc::UnboundedSender<Said>,
    /// For answers, one at a time.
    scratch: Rc<RefCell<Vec<u8>>>,
}

/// Carries until it is aborted.
pub async fn carry(post: Rc<Post>, listener: UdpSocket) {
    let listener = Rc::new(listener);
    let (said, mut heard) = mpsc::unbounded_channel();
    let idle = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
    let mut carrier = Carrier {
        post: Rc::clone(&post),
        listener: Rc::clone(&listener),
        flows: Flows::new(MAX_FLOWS_OF_ONE, idle),
        begun: Instant::now(),
        said,
        scratch: Rc::new(RefCell::new(vec![0; LARGEST])),
    };
    let mut bytes = vec![0; LARGEST];
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            met = listener.recv_from(&mut bytes) => match met {
                Ok((length, from)) if post.admits(from.ip()) => {
                    carrier.send(from, bytes.get(..length).unwrap_or_default(), 0).await;
                }
                Ok(_) => post.target().count(|counts| counts.refused += 1),
                // A client's port that is closed is told here.
                Err(_) => tokio::task::yield_now().await,
            },
            Some(said) = heard.recv() => match said {
                Said::Answered(client) => {
                    let now = carrier.now();
                    carrier.flows.touch(&client, now);
                }
                Said::Nobody(client, backend, first) => {
                    post.shared.doubt(backend);
                    carrier.flows.remove(&client);
                    if let Some((first, tried)) = first {
                        carrier.send(client, &first, tried).await;
                    }
                }
            },
            _ = sweep.tick() => {
                let now = carrier.now();
                carrier.flows.sweep(now);
            }
        }
    }
}

impl Carrier {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends a client's datagram where it goes; it was sent to so many before, and nobody was there.
    async fn send(&mut self, client: SocketAddr, bytes: &[u8], tried: usize) {
        let (target, now) = (self.post.target(), self.now());
        let backends = target.backends();
        if let Some(flow) = self.flows.find(&client, now, &backends) {
            // A full queue loses it, as any network would; that nobody is there is heard by the flow's own task.
            let _ = flow.socket.try_send(bytes);
            return;
        }
        let order = self.post.order(&target);
        let left = order.len().min(TRIES).saturating_sub(tried);
        for (at, backend) in order.iter().enumerate().take(left) {
            match self.open(client, *backend, bytes, (now, tried + at + 1)).await {
                Some(true) => {
                    target.count(|counts| {
                        counts.connections += u64::from(tried == 0);
                        counts.failed_over += u64::from(tried + at > 0);
                    });
                    return;
                }
                Some(false) => break,
                None => self.post.shared.doubt(*backend),
            }
        }
        target.count(|counts| counts.refused += 1);
    }

    /// A new flow: false where there is no room for it, None where that instance cannot be reached.
    async fn open(
        &mut self,
        client: SocketAddr,
        backend: SocketAddr,
        bytes: &[u8],
        (now, tried): (u64, usize),
    ) -> Option<bool> {
        let shared = &self.post.shared;
        if shared.flows.get() >= MAX_FLOWS {
            self.flows.sweep(now);
            if self.post.shared.flows.get() >= MAX_FLOWS {
                return Some(false);
            }
        }
        let door = &self.post.shared.door;
        let made = door
            .socket(self.post.inside.as_ref(), Protocol::Udp, backend.is_ipv6())
            .await
            .ok()?;
        rustix::net::connect(&made, &backend).ok()?;
        let socket = Rc::new(UdpSocket::from_std(made.into()).ok()?);
        // That it cannot leave is a failure here.
        socket.writable().await.ok()?;
        socket.try_send(bytes).ok()?;
        let first = Rc::new(RefCell::new(Some(bytes.to_vec()).filter(|bytes| bytes.len() <= KEPT)));
        let answers = Answers {
            client,
            backend,
            socket: Rc::clone(&socket),
            listener: Rc::clone(&self.listener),
            first,
            said: self.said.clone(),
            scratch: Rc::clone(&self.scratch),
            told: Cell::new(Instant::now()),
            tried,
        };
        let task = spawn_local(answers.carry()).abort_handle();
        self.post.shared.flows.set(self.post.shared.flows.get() + 1);
        let flow = Flow {
            socket,
            task,
            post: Rc::clone(&self.post),
        };
        Some(self.flows.put(client, backend, now, flow))
    }
}

struct Answers {
    client: SocketAddr,
    backend: SocketAddr,
    socket: Rc<UdpSocket>,
    listener: Rc<UdpSocket>,
    /// What was sent, until something came back.
    first: Rc<RefCell<Option<Vec<u8>>>>,
    said: mpsc::UnboundedSender<Said>,
    scratch: Rc<RefCell<Vec<u8>>>,
    told: Cell<Instant>,
    tried: usize,
}

impl Answers {
    async fn carry(self) {
        let mut silent = true;
        loop {
            // That nobody is there is an error of the socket, and nothing to read.
            let heard = self.socket.ready(Interest::READABLE | Interest::ERROR).await;
            let received = heard.and_then(|heard| {
                if heard.is_error() {
                    if let Some(error) = self.socket.take_error()? {
                        return Err(error);
                    }
                    let over = || Err(std::io::ErrorKind::WouldBlock.into());
                    let _: std::io::Result<()> = self.socket.try_io(Interest::ERROR, over);
                }
                let mut bytes = self.scratch.borrow_mut();
                let length = self.socket.try_recv(&mut bytes)?;
                // A client that does not take it loses it.
                let _ = self
                    .listener
                    .try_send_to(bytes.get(..length).unwrap_or_default(), self.client);
                Ok(())
            });
            match received {
                Ok(()) => {
                    self.first.borrow_mut().take();
                    let now = Instant::now();
                    if silent || now.duration_since(self.told.get()) > Duration::from_secs(1) {
                        self.told.set(now);
                        let _ = self.said.send(Said::Answered(self.client));
                    }
                    silent = false;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    let first = self.first.borrow_mut().take().map(|first| (first, self.tried));
                    let _ = self.said.send(Said::Nobody(self.client, self.backend, first));
                    return;
                }
            }
        }
    }
}
