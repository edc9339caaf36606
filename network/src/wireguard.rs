//! WireGuard: [`run`] is the process that carries packets where the kernel cannot, with gotatun; the rest is how a node keeps
//! its keys and tells a device, in a process or in the kernel, what it is to be. `links` uses it. The process decides nothing
//! and keeps nothing on disk: it is told over its socket, as `wg` would tell it.

mod configure;
pub(crate) mod generic;
mod keys;
mod sockets;
pub(crate) mod uapi;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gotatun::device::DeviceBuilder;
use gotatun::device::uapi::UapiServer;
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use tokio::signal::unix::{SignalKind, signal};

pub use self::configure::SESSION_SECONDS;
pub(crate) use self::configure::{Change, Seen, call, configure, waiting};
pub use self::keys::{Keys, KeysError};
use crate::detached::{self, DetachedError, Place};

/// How often it is looked whether the device is there: without a key nobody reads from it, and so learns of its end.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    #[error(transparent)]
    Place(#[from] DetachedError),
    #[error("{act}")]
    Io {
        act: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("make the device `{device}`: {why}")]
    Device { device: String, why: String },
    #[error("the device `{device}` is gone")]
    Gone { device: String },
}

/// Where the process of a device has its pid file and its log.
#[must_use]
pub fn place(dir: PathBuf, device: &str) -> Place {
    Place {
        dir,
        name: device.to_owned(),
    }
}

/// The process: carries packets until it is told to end, or its device is gone. Call it first thing, on the first thread.
/// `mtu` in bytes.
pub fn run(device: &str, mtu: u16, dir: PathBuf) -> Result<(), WireguardError> {
    let _held = detached::hold(&place(dir, device))?;
    // The socket is made by the library: nobody else may speak to it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let io = |act| move |source| WireguardError::Io { act, source };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(io("start the runtime"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen for signals"))?;
        let failed = |why: String| WireguardError::Device {
            device: device.to_owned(),
            why,
        };
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(device).mtu(mtu);
        let made = tun::create_as_async(&configuration).map_err(|error| failed(error.to_string()))?;
        let made = TunDevice::from_tun_device(made).map_err(|error| failed(error.to_string()))?;
        let told = UapiServer::default_unix_socket(device, None, None).map_err(|error| failed(error.to_string()))?;
        let mut carried = DeviceBuilder::new()
            .with_uapi(told)
            .with_udp(self::sockets::Sockets::new())
            .with_ip(made)
            .build()
            .await
            .map_err(|error| failed(error.to_string()))?;
        tracing::info!(device, mtu, "carrying packets");
        let gone = async {
            let mut believed = true;
            while there(device) {
                tokio::select! {
                    () = carried.wait(), if believed => {}
                    () = tokio::time::sleep(LOOK) => continue,
                }
                // The library says that the device is gone also when its parts were only put together anew, as with another
                // key, and one of them saw the other's end. It says it once.
                believed = false;
                if there(device) {
                    carried.suspend().await;
                    if let Err(error) = carried.resume().await {
                        tracing::error!(device, %error, "cannot go on");
                        return;
                    }
                }
            }
        };
        let gone = tokio::select! {
            () = gone => true,
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
        };
        let _ = std::fs::remove_file(uapi::socket(device));
        carried.stop().await;
        if gone {
            return Err(WireguardError::Gone {
                device: device.to_owned(),
            });
        }
        Ok(())
    })
}

/// Whether there is a device of this name, in the network namespace of this process.
fn there(device: &str) -> bool {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let asked =
        socket(AddressFamily::INET, SocketType::DGRAM, None).and_then(|asked| netdevice::name_to_index(asked, device));
    // Where it cannot be asked, it is not said to be gone.
    !matches!(asked, Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO))
}
