//! This terminal, given to somebody else for a while: raw, so that every key reaches him, and as it was again afterwards,
//! however it ends. And what is typed, or comes by a pipe, as frames.

use std::io::{self, Read as _};

use agent::api::ask::Size;
use agent::api::wire::{Frame, Kind};
use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Ctrl-P, Ctrl-Q: leaves without ending anything.
const DETACH: [u8; 2] = [0x10, 0x11];

/// A raw terminal; dropping it makes it what it was.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The terminal's size; 24 by 80 where it does not say.
pub(super) fn size() -> Size {
    let told = tcgetwinsize(io::stdout())
        .ok()
        .filter(|size| size.ws_row > 0 && size.ws_col > 0);
    Size {
        rows: told.map_or(24, |size| size.ws_row),
        columns: told.map_or(80, |size| size.ws_col),
    }
}

/// What standard input gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// It is at its end.
    End,
    /// The keys to leave by were typed.
    Detach,
}

/// Sends standard input as frames, from a thread of its own: reading it can be interrupted by nothing. With `keys`, the
/// keys to leave by are looked for. The answer comes when no more is read.
pub(super) fn send_input(out: mpsc::Sender<Frame>, keys: bool) -> tokio::sync::oneshot::Receiver<Typed> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut buffer = [0; 16 << 10];
        let mut looked = Keys::default();
        let typed = loop {
            let read = match input.read(&mut buffer) {
                Ok(0) => break Typed::End,
                Ok(read) => &buffer[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break Typed::End,
            };
            let (bytes, detach) = if keys {
                looked.pass(read)
            } else {
                (read.to_vec(), false)
            };
            if !bytes.is_empty() && out.blocking_send(Frame::new(Kind::Data, bytes)).is_err() {
                break Typed::End;
            }
            if detach {
                break Typed::Detach;
            }
        };
        if typed == Typed::End {
            let _ = out.blocking_send(Frame::new(Kind::DataEnd, Bytes::new()));
        }
        let _ = tell.send(typed);
    });
    told
}

/// Looks for the keys to leave by.
#[derive(Default)]
struct Keys {
    /// The first one was typed, and not passed on yet.
    held: bool,
}

impl Keys {
    /// What is passed on, and whether both were typed.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            if std::mem::take(&mut self.held) {
                if *byte == DETACH[1] {
                    return (out, true);
                }
                out.push(DETACH[0]);
            }
            if *byte == DETACH[0] {
                self.held = true;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_to_leave_by_are_found_wherever_they_are_cut_and_nothing_else_is_lost() {
        let mut keys = Keys::default();
        assert_eq!(keys.pass(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.pass(b"c\x10\x10"), (b"\x10c\x10".to_vec(), false));
        assert_eq!(keys.pass(b"\x11rest"), (Vec::new(), true));
    }
}
