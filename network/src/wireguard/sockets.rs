//! The sockets of the process that carries packets. gotatun opens them anew whenever it is told of another key, while its old
//! ones are about to be closed: this factory hands out the same ones again, so that the port is never taken by ourselves and
//! no packet is lost to a closed socket.

use std::io;

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};

/// The size of a socket's buffers, in bytes: what gotatun's own program takes.
const BUFFER: usize = 7 << 20;

/// Keeps what it opened last.
pub struct Sockets {
    factory: UdpSocketFactory,
    last: Option<(UdpTransportFactoryParams, UdpSocket)>,
}

impl Sockets {
    pub fn new() -> Self {
        Self {
            factory: UdpSocketFactory {
                recv_buffer_size: Some(BUFFER),
                send_buffer_size: Some(BUFFER),
            },
            last: None,
        }
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, wanted: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        if let Some((open, socket)) = &self.last {
            let UdpTransportFactoryParams { addr, port, fwmark } = wanted;
            if *port != 0 && *port == open.port && *addr == open.addr && *fwmark == open.fwmark {
                return Ok((socket.clone(), socket.clone()));
            }
        }
        // Of another port or mark: the old one is of no more use, whatever becomes of the new.
        self.last = None;
        let (socket, same) = self.factory.bind(wanted).await?;
        self.last = Some((wanted.clone(), socket.clone()));
        Ok((socket, same))
    }
}
