//! A node's keys of WireGuard, in files that only root reads: made once, and replaced in two steps, so that the other nodes
//! know the new one before it counts. The agent calls it, says the public key in its facts, and hands the keys to `Wires`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gotatun::x25519::{PublicKey, StaticSecret};
use planner::network::links::Key;
use zeroize::Zeroizing;

use super::configure::Private;

/// The key that counts, and the one that is to count next.
const KEY: &str = "wireguard.key";
const NEXT: &str = "wireguard-next.key";

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the file `{}` holds no key: remove it, and a new one is made", path.display())]
    Odd { path: PathBuf },
}

/// A node's keys.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
    private: Private,
    /// When the present one was made.
    made: SystemTime,
    next: Option<Private>,
}

impl Keys {
    /// Those of a directory; makes it, and a key, where there is none. A next one that is damaged is thrown away: the present
    /// one goes on, and another next one is made when it is time.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        std::fs::create_dir_all(dir).map_err(failed("create the directory", dir))?;
        let private = match read(&dir.join(KEY))? {
            Some(private) => private,
            None => {
                let private = draw(&dir.join(KEY))?;
                write(dir, KEY, &private)?;
                private
            }
        };
        let next = match read(&dir.join(NEXT)) {
            Err(KeysError::Odd { path }) => {
                std::fs::remove_file(&path).map_err(failed("remove the file", &path))?;
                None
            }
            read => read?,
        };
        Ok(Self {
            made: made(&dir.join(KEY))?,
            dir: dir.to_owned(),
            private,
            next,
        })
    }

    /// What the other nodes know this one by.
    #[must_use]
    pub fn public(&self) -> Key {
        public(&self.private)
    }

    /// Since the present one was made, by this host's clock.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.made).unwrap_or_default()
    }

    /// The one that is to count next, once all know it.
    #[must_use]
    pub fn next(&self) -> Option<Key> {
        self.next.as_ref().map(public)
    }

    /// Makes the next one, or keeps that which is there. Say it in the node's facts; links go on with the present one.
    pub fn prepare(&mut self) -> Result<Key, KeysError> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let next = draw(&self.dir.join(NEXT))?;
                write(&self.dir, NEXT, &next)?;
                next
            }
        };
        let key = public(&next);
        self.next = Some(next);
        Ok(key)
    }

    /// The next one counts: when `peers/<this node>` says it, for then the others use it too. Without a next one, nothing.
    pub fn switch(&mut self) -> Result<(), KeysError> {
        let Some(next) = self.next.clone() else {
            return Ok(());
        };
        let (from, to) = (self.dir.join(NEXT), self.dir.join(KEY));
        std::fs::rename(&from, &to).map_err(failed("rename the file", &from))?;
        self.private = next;
        self.next = None;
        self.made = made(&to)?;
        sync(&self.dir)
    }

    pub(crate) fn private(&self) -> &Private {
        &self.private
    }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io { act, path, source }
}

fn public(private: &Private) -> Key {
    Key(PublicKey::from(&StaticSecret::from(**private)).to_bytes())
}

/// When a key's file was written. One from the future counts from now: the clock was wrong then, and its age would be none
/// for years.
fn made(path: &Path) -> Result<SystemTime, KeysError> {
    let found = std::fs::metadata(path).and_then(|file| file.modified());
    let found = found.map_err(failed("ask for the age of the file", path))?;
    let now = SystemTime::now();
    if found <= now {
        return Ok(found);
    }
    let touched = OpenOptions::new().write(true).open(path);
    let touched = touched.and_then(|file| file.set_modified(now));
    touched.map_err(failed("set the age of the file", path))?;
    Ok(now)
}

/// 32 bytes of the kernel's chance, as Curve25519 has them.
fn draw(path: &Path) -> Result<Private, KeysError> {
    let mut private = Zeroizing::new([0; 32]);
    let mut source = File::open("/dev/urandom").map_err(failed("draw the key", path))?;
    source
        .read_exact(private.as_mut_slice())
        .map_err(failed("draw the key", path))?;
    private[0] &= 248;
    private[31] &= 127;
    private[31] |= 64;
    Ok(private)
}

fn read(path: &Path) -> Result<Option<Private>, KeysError> {
    let mut text = Zeroizing::new(String::new());
    match File::open(path) {
        Ok(file) => {
            let read = file.take(64).read_to_string(&mut text);
            read.map_err(failed("read the file", path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the file", path)(error)),
    }
    let key: Result<Key, _> = text.trim_end().parse();
    match key {
        Ok(Key(private)) => Ok(Some(Zeroizing::new(private))),
        Err(_) => Err(KeysError::Odd { path: path.to_owned() }),
    }
}

fn write(dir: &Path, name: &str, private: &Private) -> Result<(), KeysError> {
    let path = dir.join(name);
    let fresh = dir.join(format!("{name}.new"));
    let text = Zeroizing::new(format!("{}\n", Key(**private)));
    let _ = std::fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(failed("create the file", &fresh))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(failed("write the file", &fresh))?;
    std::fs::rename(&fresh, &path).map_err(failed("rename the file", &fresh))?;
    sync(dir)
}

fn sync(dir: &Path) -> Result<(), KeysError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("sync the directory", dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_root_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Keys::open(dir.path()).unwrap().public(), keys.public());
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Keys::open(other.path()).unwrap().public(), keys.public());
    }

    #[test]
    fn the_next_key_counts_when_it_is_switched_to_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::open(dir.path()).unwrap();
        let first = keys.public();
        let next = keys.prepare().unwrap();
        assert_eq!((keys.public(), keys.next()), (first, Some(next)));
        assert_eq!(keys.prepare().unwrap(), next);
        let mut keys = Keys::open(dir.path()).unwrap();
        assert_eq!((keys.public(), keys.next()), (first, Some(next)));
        keys.switch().unwrap();
        keys.switch().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        assert_eq!((keys.public(), keys.next()), (next, None));
    }

    #[test]
    fn a_keys_age_is_that_of_its_file_and_never_from_the_future() {
        let dir = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(86_400);
        let mut keys = Keys::open(dir.path()).unwrap();
        let now = SystemTime::now();
        assert!(keys.age(now + 3 * day) >= 2 * day && keys.age(now) < day);
        let set = |at: SystemTime| File::open(dir.path().join(KEY)).unwrap().set_modified(at).unwrap();
        set(now - 9 * day);
        keys = Keys::open(dir.path()).unwrap();
        assert!(keys.age(now) >= 8 * day);
        // The next one is as old as it is when it begins to count.
        keys.prepare().unwrap();
        keys.switch().unwrap();
        assert!(keys.age(now) < day);
        set(now + 99 * day);
        assert_eq!(Keys::open(dir.path()).unwrap().age(now), Duration::ZERO);
        assert!(Keys::open(dir.path()).unwrap().age(now + 2 * day) > day);
    }

    #[test]
    fn a_next_key_that_is_damaged_is_thrown_away_and_the_present_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::open(dir.path()).unwrap();
        let first = keys.public();
        let lost = keys.prepare().unwrap();
        std::fs::write(dir.path().join(NEXT), "half a k").unwrap();
        let mut keys = Keys::open(dir.path()).unwrap();
        assert_eq!((keys.public(), keys.next()), (first, None));
        assert_ne!(keys.prepare().unwrap(), lost);
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY), "half a k").unwrap();
        let error = Keys::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("holds no key"), "{error}");
    }

    #[test]
    fn a_public_key_is_what_wg_pubkey_says() {
        // Alice's, of RFC 7748.
        let alice = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let key = public(&Zeroizing::new(alice)).to_string();
        assert_eq!(key, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
