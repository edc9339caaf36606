//! Keys: Ed25519 pairs that hosts and people make for themselves and that never leave them, their public halves, and the
//! fingerprints by which keys and certificates are named. Private bytes are wiped when dropped and never printed.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::SectionKind;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::pem::{self, PemError};

/// The SHA-256 of a public key (as SubjectPublicKeyInfo) or of a certificate (as DER): 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(&[bytes]))
    }

    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why a text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits in lower case")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        decoded(&HEXLOWER, text).map(Self).ok_or(FingerprintError)
    }
}
impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;
    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}
impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// The public half of an Ed25519 key: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// What precedes an Ed25519 public key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in a SubjectPublicKeyInfo of exactly this algorithm and form, or nothing.
    #[must_use]
    pub fn from_spki_der(der: &[u8]) -> Option<Self> {
        let bytes = der.strip_prefix(&SPKI_PREFIX)?;
        bytes.try_into().ok().map(Self)
    }

    /// The key's name: the SHA-256 of its SubjectPublicKeyInfo, as `openssl` and browsers compute pins.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(sha256(&[&SPKI_PREFIX, &self.0]))
    }

    /// Whether this key signed this message.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", HEXLOWER.encode(&self.0))
    }
}

/// An Ed25519 pair, private half included. Stored as unencrypted PKCS#8 (version 1, which every TLS library reads): the
/// file must be its owner's alone (0600).
pub struct Key {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, private)", self.public.fingerprint())
    }
}

/// Why bytes are not a private key, or one could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the private key's PEM text cannot be read")]
    Pem(#[source] PemError),
    #[error("the bytes are not an Ed25519 private key in PKCS#8 form")]
    NotEd25519,
    #[error("the system gave no random bytes for a new key")]
    NoRandomness,
}

/// An Ed25519 key in PKCS#8 takes 48 bytes, and 83 with its public half.
const MAX_PKCS8_BYTES: usize = 256;

impl Key {
    /// A new key, from the system's random source.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::NoRandomness)?;
        Self::of(pair)
    }

    /// The key of a seed.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        Self::of(Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::NotEd25519)?)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::NotEd25519)?;
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::NotEd25519)?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            pair,
            public: PublicKey(public),
        })
    }

    /// The key in a PKCS#8 document, of version 1 or 2.
    ///
    /// # Errors
    /// When it is anything else than an Ed25519 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > MAX_PKCS8_BYTES {
            return Err(KeyError::NotEd25519);
        }
        Self::of(Ed25519KeyPair::from_pkcs8(der).map_err(|_| KeyError::NotEd25519)?)
    }

    /// The key in a PEM text with one `PRIVATE KEY` block.
    ///
    /// # Errors
    /// When there is not exactly one block, or it holds no Ed25519 key.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = Zeroizing::new(pem::one(SectionKind::PrivateKey, text, MAX_PKCS8_BYTES * 3).map_err(KeyError::Pem)?);
        Self::from_pkcs8_der(&der)
    }

    /// The PEM text to keep in a file of mode 0600.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::write("PRIVATE KEY", &self.pkcs8)
    }

    /// For rustls, which reads PKCS#8.
    #[must_use]
    pub fn pkcs8_der(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.pkcs8.as_slice())
    }

    #[must_use]
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) const fn public_ref(&self) -> &PublicKey {
        &self.public
    }

    /// The 64 bytes of this key's signature. Ed25519 signatures are derived: the same message has the same signature.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(message);
        signature
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

/// The SHA-256 of some bytes, one after another.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// Exactly so many bytes, spelled in exactly this encoding's one way.
pub(crate) fn decoded<const BYTES: usize>(encoding: &data_encoding::Encoding, text: &str) -> Option<[u8; BYTES]> {
    if text.len() != encoding.encode_len(BYTES) {
        return None;
    }
    encoding.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Bytes from the system's random source.
pub(crate) fn random<const BYTES: usize>() -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok().map(|()| bytes)
}

/// Fields one after another, each with its length before it, so that no two lists of fields have the same bytes.
pub(crate) fn fields(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let key = Key::generate().unwrap();
        let again = Key::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(key.sign(b"m"), again.sign(b"m"));
        assert!(key.public().verifies(b"m", &again.sign(b"m")));
        assert!(!key.public().verifies(b"n", &again.sign(b"m")));
    }

    #[test]
    fn the_second_version_of_pkcs8_is_read_too() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let key = Key::from_pkcs8_der(pair.to_pkcs8().unwrap().as_ref()).unwrap();
        assert_eq!(key.public().bytes().as_slice(), pair.public_key().as_ref());
    }

    #[test]
    fn a_printed_key_shows_no_private_byte() {
        let seed = [7; 32];
        let shown = format!("{:?}", Key::from_seed(&seed).unwrap());
        assert!(!shown.contains(&HEXLOWER.encode(&seed)) && !shown.contains("7, 7") && shown.ends_with("private)"));
    }

    #[test]
    fn a_key_of_another_algorithm_is_refused() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        assert_eq!(
            Key::from_pkcs8_der(other.serialized_der()).unwrap_err(),
            KeyError::NotEd25519
        );
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_readers_of_keys(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,400}") {
            let _ = Key::from_pkcs8_der(&bytes);
            let _ = Key::from_pem(&text);
            let _ = PublicKey::from_spki_der(&bytes);
            let _ = text.parse::<Fingerprint>();
            prop_assert!(!PublicKey::from_bytes([9; 32]).verifies(&bytes, &bytes));
        }

        #[test]
        fn lists_of_fields_never_share_their_bytes(
            a in proptest::collection::vec("[a-c]{0,3}", 0..4),
            b in proptest::collection::vec("[a-c]{0,3}", 0..4),
        ) {
            let bytes = |list: &[String]| fields(&list.iter().map(String::as_bytes).collect::<Vec<_>>());
            prop_assert_eq!(bytes(&a) == bytes(&b), a == b);
        }
    }
}
