//! What an agent's data directory knows of the cluster: its assignment, as a controller signed it where the cluster has
//! certificates, and the accepted specs that it names. `reeve node copy` carries it away, and `reeve admin rebuild` believes it
//! when every store is gone. Reads alone, also beside a running agent, and takes nothing for granted that it reads.

use std::path::Path;

use schemas::keys::ResourceKey;
use schemas::records::{Assignment, Digest, Record as _};
use trust::certificate::Certificate;
use trust::sign::{Keyring, unweave};
use trust::trusted::Trust;
use trust::validity::Time;

use crate::disk::{DiskError, parse_spec_name, read_file};
use crate::genuine::{admit, genuine};

/// The assignment in force as it was signed.
pub const SIGNED: &str = "assignment.signed";
/// The certificate of who signed it.
pub const SIGNER: &str = "signer.crt";

/// What one node knows.
#[derive(Clone, Debug)]
pub struct Copy {
    pub assignment: Assignment,
    /// As it is signed, or as it is where nothing is.
    pub bytes: Vec<u8>,
    /// The signer's certificate in PEM; None where nothing is signed.
    pub signer: Option<Vec<u8>>,
    /// The accepted records that the assignment names, by digest.
    pub specs: Vec<(ResourceKey, u64, Vec<u8>)>,
}

/// Reads the data directory of an agent.
///
/// # Errors
/// When there is no assignment in it, or it cannot be read.
pub fn read(dir: &Path) -> Result<Copy, DiskError> {
    let path = dir.join("assignment.json");
    let damaged = |why: String| DiskError::Damaged {
        path: path.clone(),
        why,
    };
    let bytes = read_file(&path)?.ok_or_else(|| {
        damaged("there is none: is this the data directory of an agent that was ever given work?".to_owned())
    })?;
    let assignment = Assignment::decode(&bytes).map_err(|error| damaged(runtime::chain(&error)))?;
    let signed = read_file(&dir.join(SIGNED))?.filter(|signed| {
        let document = unweave(signed).and_then(|(document, _)| Assignment::decode(&document).ok());
        document.as_ref() == Some(&assignment)
    });
    let signer = read_file(&dir.join(SIGNER))?.filter(|_| signed.is_some());
    let folder = dir.join("specs");
    let mut specs = Vec::new();
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = parse_spec_name(&name) else { continue };
        let Some(bytes) = read_file(&entry.path())? else {
            continue;
        };
        if Digest::of(&bytes) == id.digest && names(&assignment, &id.resource, id.n, &id.digest) {
            specs.push((id.resource, id.n, bytes));
        }
    }
    specs.sort();
    Ok(Copy {
        assignment,
        bytes: signed.unwrap_or(bytes),
        signer,
        specs,
    })
}

/// Whether an assignment has an instance of this very record.
#[must_use]
pub fn names(assignment: &Assignment, resource: &ResourceKey, n: u64, digest: &Digest) -> bool {
    assignment.instances.iter().any(|one| {
        Some(&one.namespace) == resource.namespace.as_ref()
            && one.kind == resource.kind
            && one.workload == resource.name
            && one.n == n
            && one.digest == *digest
    })
}

impl Copy {
    /// Whether a controller of these authorities signed it for its node.
    ///
    /// # Errors
    /// With the reason why it does not count.
    pub fn believe(&self, trust: &Trust, now: Time) -> Result<(), String> {
        let Some(signer) = &self.signer else {
            return Err("no controller has signed it".to_owned());
        };
        let told = |error: &dyn std::error::Error| runtime::chain(error);
        let certificate = Certificate::from_pem(&String::from_utf8_lossy(signer)).map_err(|error| told(&error))?;
        let mut keyring = Keyring::new(trust.clone());
        admit(&mut keyring, certificate.fingerprint(), signer, now).map_err(|error| told(&error))?;
        let taken = genuine(&keyring, &self.assignment.node, &self.bytes, now).map_err(|error| told(&error))?;
        if taken == self.assignment {
            Ok(())
        } else {
            Err("what is signed is another assignment".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DataDir;
    use crate::register::today;
    use schemas::records::{ClusterId, Order, SchemaVersion};
    use trust::realm::Realm;

    fn assignment(generation: u64) -> Assignment {
        Assignment {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([7; 16]),
            node: "n1".parse().unwrap(),
            order: Order {
                restore_epoch: 1,
                epoch: 1,
                generation,
            },
            instances: Vec::new(),
        }
    }

    #[test]
    fn a_copy_is_believed_as_a_controller_signed_it_and_not_when_a_byte_differs() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        assert!(read(folder.path()).is_err());
        let realm = Realm::new([7; 16], today());
        let pen = realm.pen("controller/c1");
        let signed = Realm::sign(&pen, "n1", assignment(3).encode());
        dir.write("assignment.json", &assignment(3).encode()).unwrap();
        let plain = read(folder.path()).unwrap();
        assert_eq!(
            plain.believe(&realm.trust(), realm.now).unwrap_err(),
            "no controller has signed it"
        );
        dir.write(SIGNED, &signed).unwrap();
        dir.write(SIGNER, pen.certificate().to_pem().as_bytes()).unwrap();
        let copy = read(folder.path()).unwrap();
        assert_eq!(copy.believe(&realm.trust(), realm.now), Ok(()));
        let other = Realm::new([7; 16], today());
        assert!(
            copy.believe(&other.trust(), realm.now).is_err(),
            "another authority of the same cluster"
        );
        let mut altered = copy.clone();
        altered.bytes[20] ^= 1;
        assert!(altered.believe(&realm.trust(), realm.now).is_err());
        // What was signed before is not what is in force now.
        dir.write("assignment.json", &assignment(4).encode()).unwrap();
        assert!(read(folder.path()).unwrap().signer.is_none());
    }
}
