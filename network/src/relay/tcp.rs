//! Connections: each is led to an instance, the next one where that does not answer, and carried until both sides are done.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use planner::network::relay::proxy_header;
use rustix::net::sockopt;
use schemas::container::Protocol;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_local;

use super::server::Post;

/// How long one instance may take to answer, and all of them together.
const ONE_ANSWER: Duration = Duration::from_secs(3);
const AN_ANSWER: Duration = Duration::from_secs(15);
/// Bytes that wait in each direction of a connection.
const BUFFER: usize = 8 << 10;
/// After a failure that is this process's own: without files, everybody waits.
const REST: Duration = Duration::from_millis(50);

/// Accepts until it is aborted: what was accepted goes on.
pub async fn accept(post: Rc<Post>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(seat) = admit(&post, &stream, from) else {
                    post.target().count(|counts| counts.refused += 1);
                    reset(&stream);
                    continue;
                };
                let post = Rc::clone(&post);
                spawn_local(async move {
                    let _seat = seat;
                    let mut gone = post.gone.clone();
                    tokio::select! {
                        () = carry(&post, stream, from) => {}
                        // Nothing is ever sent: the container is gone.
                        _ = gone.changed() => {}
                    }
                });
            }
            // The one who came has gone, or there are no files left.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

fn admit(post: &Rc<Post>, stream: &TcpStream, from: SocketAddr) -> Option<super::server::Seat> {
    let port = stream.local_addr().ok()?.port();
    let admitted = post.admits(from.ip());
    admitted
        .then(|| post.shared.seat(&post.place, port, from.ip()))
        .flatten()
}

/// Closed so that the other side knows that nobody was there.
fn reset(stream: &TcpStream) {
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

async fn carry(post: &Rc<Post>, mut client: TcpStream, from: SocketAddr) {
    let target = post.target();
    let reached = tokio::time::timeout(AN_ANSWER, reach(post, &client, from)).await;
    let Ok(Some(mut instance)) = reached else {
        target.count(|counts| counts.refused += 1);
        reset(&client);
        return;
    };
    target.count(|counts| counts.connections += 1);
    let done = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut instance, BUFFER, BUFFER).await;
    if done.is_err() {
        // What broke for one side breaks for the other.
        reset(&client);
        reset(&instance);
    }
}

/// A connection to the first instance that answers.
async fn reach(post: &Rc<Post>, client: &TcpStream, from: SocketAddr) -> Option<TcpStream> {
    let target = post.target();
    let ahead = if post.says_who() {
        Some(proxy_header(from, client.local_addr().ok()?))
    } else {
        None
    };
    for (failed, address) in (0..).zip(post.order(&target)) {
        let tried = tokio::time::timeout(ONE_ANSWER, connect(post, address, ahead.as_deref())).await;
        if let Ok(Ok(stream)) = tried {
            post.shared.trust(&address);
            target.count(|counts| counts.failed_over += failed);
            return Some(stream);
        }
        post.shared.doubt(address);
    }
    None
}

async fn connect(post: &Rc<Post>, address: SocketAddr, ahead: Option<&[u8]>) -> io::Result<TcpStream> {
    let door = &post.shared.door;
    let socket = door
        .socket(post.inside.as_ref(), Protocol::Tcp, address.is_ipv6())
        .await?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    if let Some(ahead) = ahead {
        stream.write_all(ahead).await?;
    }
    Ok(stream)
}
