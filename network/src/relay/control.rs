//! How the agent speaks with the relay: the table is a file in the relay's directory, and a socket beside it takes "read it
//! again" and says how the relay is. One line of JSON each way. Only who may write the directory can reach it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use planner::network::relay::{Held, MAX_LISTENERS, Table};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

const TABLE: &str = "table.json";
const SOCKET: &str = "control";
/// The largest table, in bytes.
const TABLE_LIMIT: u64 = 32 << 20;
/// The largest line, in bytes.
const LINE_LIMIT: u64 = 8 << 20;
/// How long the relay may take until a table is in force.
const TELL_LIMIT: Duration = Duration::from_secs(15);
/// How long it may take to say how it is.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// What the agent says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// The table is another.
    pub reload: bool,
}

/// How a relay is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Ports that are open.
    pub listening: usize,
    /// Those of the node.
    pub held: Vec<Held>,
    /// Ports that are not, and why: at most 20. Those of a container that has no process are none.
    pub missing: Vec<String>,
    /// Why the table cannot be read: the one before stays in force.
    pub unreadable: Option<String>,
    /// Connections and UDP flows that are open.
    pub open: u64,
    /// By target: `shop/db:5432/tcp`.
    pub counts: BTreeMap<String, Counts>,
}

/// Since the relay's start, or since it leads there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Connections, and UDP flows, that were led to an instance.
    pub connections: u64,
    /// Those that were not: none is ready, none answered, who came may not, or there were too many.
    pub refused: u64,
    /// Instances that did not answer, and another one was tried.
    pub failed_over: u64,
}

impl Health {
    /// What is wrong with it, for people, each in a line.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.unreadable.iter().chain(&self.missing).cloned().collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("reach the relay at `{}`", path.display())]
    Reach {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the relay at `{}` does not answer", path.display())]
    Silent { path: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is larger than {TABLE_LIMIT} bytes, or has more than {MAX_LISTENERS} ports", path.display())]
    Large { path: PathBuf },
    #[error("`{}` cannot be read as a relay's table", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TableError {
    let path = path.to_owned();
    move |source| TableError::Io { act, path, source }
}

/// Writes the table. True when it was another: then the relay is to be told.
pub fn write(dir: &Path, table: &Table) -> Result<bool, TableError> {
    let path = dir.join(TABLE);
    let mut text = serde_json::to_vec(table).map_err(|error| failed("write the file", &path)(error.into()))?;
    text.push(b'\n');
    if fs::read(&path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create the directory", dir))?;
    let fresh = path.with_extension("json.new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(failed("create the file", &fresh))?;
    file.write_all(&text).map_err(failed("write the file", &fresh))?;
    fs::rename(&fresh, &path).map_err(failed("replace the file", &path))?;
    Ok(true)
}

/// Reads the table; an empty one where there is none.
pub fn read(dir: &Path) -> Result<Table, TableError> {
    let path = dir.join(TABLE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        Err(error) => return Err(failed("open the file", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(TABLE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(failed("read the file", &path))?;
    if text.len() as u64 > TABLE_LIMIT {
        return Err(TableError::Large { path });
    }
    // A list is no table, though its fields in order would do.
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text);
    match object.and_then(|object| serde_json::from_value::<Table>(object.into())) {
        Ok(table) if table.listeners.len() > MAX_LISTENERS => Err(TableError::Large { path }),
        Ok(table) => Ok(table),
        Err(source) => Err(TableError::Broken { path, source }),
    }
}

/// Tells the relay of `dir` that its table is another, and waits until it is in force.
pub async fn tell(dir: &Path) -> Result<Health, ControlError> {
    say(dir, Told { reload: true }, TELL_LIMIT).await
}

/// Asks the relay of `dir` how it is.
pub async fn health(dir: &Path) -> Result<Health, ControlError> {
    say(dir, Told::default(), HEALTH_LIMIT).await
}

async fn say(dir: &Path, told: Told, limit: Duration) -> Result<Health, ControlError> {
    let path = dir.join(SOCKET);
    let talk = async {
        let mut stream = UnixStream::connect(&path).await?;
        let mut line = serde_json::to_vec(&told)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).take(LINE_LIMIT).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    };
    match tokio::time::timeout(limit, talk).await {
        Ok(Ok(health)) => Ok(health),
        Ok(Err(source)) => Err(ControlError::Reach { path, source }),
        Err(_) => Err(ControlError::Silent { path }),
    }
}

/// Opens the relay's end. It has the directory for itself: a socket that is there is a dead one's.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let path = dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Reads what is told.
pub async fn hear(stream: &mut UnixStream) -> io::Result<Told> {
    let mut line = String::new();
    BufReader::new(stream).take(4096).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

/// Answers.
pub async fn answer(stream: &mut UnixStream, health: &Health) -> io::Result<()> {
    let mut line = serde_json::to_vec(health)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    use planner::network::relay::{Listener, Place};
    use schemas::container::Protocol;

    #[test]
    fn a_table_is_read_as_it_was_written_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("relay");
        assert_eq!(read(&own).unwrap(), Table::default());
        let listener = Listener {
            place: Place::Process(7),
            protocol: Protocol::Tcp,
            ip: None,
            port: 80,
            target: "shop/web:80/tcp".to_owned(),
            proxy_protocol: true,
            doors: planner::network::policy::Doors::default(),
        };
        let mut table = Table {
            listeners: vec![listener.clone()],
            targets: BTreeMap::new(),
        };
        assert!(write(&own, &table).unwrap());
        assert!(!write(&own, &table).unwrap(), "it is the same");
        assert_eq!(read(&own).unwrap(), table);
        table.listeners = vec![listener; MAX_LISTENERS + 1];
        write(&own, &table).unwrap();
        assert!(matches!(read(&own), Err(TableError::Large { path: _ })));
        for text in ["", "{", "[]", "{\"listeners\":[{\"port\":70000}]}"] {
            fs::write(own.join(TABLE), text).unwrap();
            assert!(
                matches!(read(&own), Err(TableError::Broken { path: _, source: _ })),
                "{text}"
            );
        }
        File::create(own.join(TABLE)).unwrap().set_len(TABLE_LIMIT + 1).unwrap();
        assert!(matches!(read(&own), Err(TableError::Large { path: _ })));
    }
}
