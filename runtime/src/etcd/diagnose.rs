//! Who is it that answers at an endpoint where etcd should be? Asked once, when connecting has failed: a client's own
//! error for this is a race between what the stranger said and its closing the connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::StoreErrorKind;

/// HTTP/2's greeting of a client, with empty settings.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// Long enough for a server on the other side of the world.
const PATIENCE: Duration = Duration::from_secs(1);

/// Greets in plain text. `None` when nothing more can be told than that it cannot be reached.
pub(super) async fn diagnose(endpoint: &str) -> Option<StoreErrorKind> {
    let (secure, rest) = match endpoint.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, endpoint.trim_start_matches("http://")),
    };
    let address = rest.split('/').next()?;
    let first = timeout(PATIENCE, first_bytes(address)).await.ok()?.ok()?;
    judge(secure, &first)
}

async fn first_bytes(address: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // A stranger may close before it has read all: what it said still counts.
    let _ = stream.write_all(GREETING).await;
    let mut first = vec![0; 9];
    let mut read = 0;
    while read < first.len() {
        match stream.read(&mut first[read..]).await {
            Ok(0) | Err(_) => break,
            Ok(more) => read += more,
        }
    }
    first.truncate(read);
    Ok(first)
}

fn judge(secure: bool, first: &[u8]) -> Option<StoreErrorKind> {
    match (secure, first) {
        (_, []) => None,
        // A TLS alert: it wants https://, and has it.
        (true, [0x15, 0x03, ..]) => None,
        (false, [0x15, 0x03, ..]) => Some(StoreErrorKind::Tls),
        // The settings frame with which every HTTP/2 server begins: in plain text.
        (true, [_, _, _, 0x04, ..]) => Some(StoreErrorKind::Tls),
        (false, [_, _, _, 0x04, ..]) => None,
        (_, _) => Some(StoreErrorKind::NotEtcd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_who_it_is() {
        let cases: [(&[u8], Option<StoreErrorKind>, Option<StoreErrorKind>); 5] = [
            (b"", None, None),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", None, Some(StoreErrorKind::Tls)),
            (b"\x15\x03\x01\x00\x02\x02\x16", Some(StoreErrorKind::Tls), None),
            (
                b"HTTP/1.1 ",
                Some(StoreErrorKind::NotEtcd),
                Some(StoreErrorKind::NotEtcd),
            ),
            (
                b"SSH-2.0-O",
                Some(StoreErrorKind::NotEtcd),
                Some(StoreErrorKind::NotEtcd),
            ),
        ];
        for (first, plain, secure) in cases {
            assert_eq!((judge(false, first), judge(true, first)), (plain, secure), "{first:?}");
        }
    }
}
