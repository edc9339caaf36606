//! Sealing: a value that only certain readers can open, wherever it is kept. The value is encrypted once, under a data key
//! of its own (AES-256-GCM); the data key is sealed for each reader (HPKE, RFC 9180: X25519, HKDF-SHA256, AES-256-GCM). Both
//! are bound to what the value is: cluster, namespace, kind, name and edition. A controller opens the data key and seals it
//! for a node without touching the value.
//!
//! Sealing hides and does not vouch: anybody can seal something for anybody. What a reader opens must be named by its
//! [`Envelope::digest`] in a document that a controller signed; and whose sealing key one seals for must be read from a
//! [`Statement`], which the holder's certificate vouches for.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use data_encoding::{BASE64, HEXLOWER};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::certificate::{Certificate, CertificateError, der_of_base64};
use crate::identity::{ClusterId, Identity};
use crate::key::{Fingerprint, Key, KeyError, decoded, fields, random, sha256};
use crate::sign::{self, Domain, KeyMismatch, Signature};
use crate::trusted::{Distrust, Trust, Use};
use crate::validity::Time;

/// The longest value, in bytes: 8 MiB.
pub const MAX_VALUE_BYTES: usize = 8 * 1_024 * 1_024;
/// How many readers one envelope has at most.
pub const MAX_READERS: usize = 64;
/// The longest envelope as JSON that is looked at, in bytes: a longest value in base64, and its readers.
pub const MAX_ENVELOPE_BYTES: usize = MAX_VALUE_BYTES / 3 * 4 + 32 * 1_024;
/// The longest statement that is looked at, in bytes.
pub const MAX_STATEMENT_BYTES: usize = 16 * 1_024;

const STATEMENT: Domain<'static> = Domain {
    word: "sealing-key",
    about: "",
};

/// A sealing key pair (X25519). The private half stays on its host, in a file of mode 0600, apart from the key of the
/// certificate: it may outlive several of them.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SealingKey {
    private: [u8; 32],
    #[zeroize(skip)]
    public: SealingPublic,
}

/// The public half. In text and JSON 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SealingPublic([u8; 32]);

impl SealingKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = PrivateKey::generate(&X25519).map_err(|_| KeyError::NoRandomness)?;
        let bytes: Curve25519SeedBin<'_> = pair.as_be_bytes().map_err(|_| KeyError::NoRandomness)?;
        let mut private = Zeroizing::new([0; 32]);
        private.copy_from_slice(bytes.as_ref());
        Self::of(&private)
    }

    fn of(private: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = PrivateKey::from_private_key(&X25519, private).map_err(|_| KeyError::NotEd25519)?;
        let public = pair.compute_public_key().map_err(|_| KeyError::NotEd25519)?;
        let public = public.as_ref().try_into().map_err(|_| KeyError::NotEd25519)?;
        Ok(Self {
            private: *private,
            public: SealingPublic(public),
        })
    }

    /// The text for a file of mode 0600.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(80));
        text.push_str("reeve-sealing-key1:");
        HEXLOWER.encode_append(&self.private, &mut text);
        text
    }

    #[must_use]
    pub const fn public(&self) -> SealingPublic {
        self.public
    }

    fn hpke(&self) -> HpkePrivateKey {
        HpkePrivateKey::from(self.private.to_vec())
    }
}

/// Why a text is not a sealing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a sealing key")]
pub struct SealingKeyError;

impl FromStr for SealingKey {
    type Err = SealingKeyError;
    fn from_str(text: &str) -> Result<Self, SealingKeyError> {
        let digits = text
            .trim_end()
            .strip_prefix("reeve-sealing-key1:")
            .ok_or(SealingKeyError)?;
        let private = Zeroizing::new(decoded(&HEXLOWER, digits).ok_or(SealingKeyError)?);
        Self::of(&private).map_err(|_| SealingKeyError)
    }
}
impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({}, private)", self.public)
    }
}

impl SealingPublic {
    /// How an envelope names its reader: the first 16 bytes of the key's SHA-256.
    fn id(&self) -> ReaderId {
        let digest = sha256(&[b"reeve sealing key 1", &self.0]);
        ReaderId(digest[..16].try_into().expect("16 of 32 bytes"))
    }
}
impl fmt::Display for SealingPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}
impl fmt::Debug for SealingPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingPublic({self})")
    }
}
impl FromStr for SealingPublic {
    type Err = SealingKeyError;
    fn from_str(text: &str) -> Result<Self, SealingKeyError> {
        decoded(&HEXLOWER, text).map(Self).ok_or(SealingKeyError)
    }
}
impl TryFrom<String> for SealingPublic {
    type Error = SealingKeyError;
    fn try_from(text: String) -> Result<Self, SealingKeyError> {
        text.parse()
    }
}
impl From<SealingPublic> for String {
    fn from(key: SealingPublic) -> Self {
        key.to_string()
    }
}

/// One for whom values may be sealed: made from a verified [`Statement`], or by [`crate::publish`] in a cluster without
/// authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    identity: Identity,
    key: SealingPublic,
}

impl Reader {
    /// A reader whom nobody vouches for.
    pub(crate) const fn as_told(identity: Identity, key: SealingPublic) -> Self {
        Self { identity, key }
    }

    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    #[must_use]
    pub const fn key(&self) -> SealingPublic {
        self.key
    }
}

/// A holder's word for its sealing key: the key and the holder's certificate, signed with the certificate's key. Kept in
/// the store, renewed with the certificate.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    version: u32,
    key: SealingPublic,
    certificate: String,
}

/// Statements of whose sealing key is whose.
#[derive(Clone, Copy, Debug)]
pub struct Statement;

/// Why a statement was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error("the bytes are not a statement of a sealing key that this version reads")]
    NotStatement,
    #[error("the statement's certificate cannot be read")]
    Certificate(#[source] CertificateError),
    #[error("the statement's certificate is not to be trusted")]
    Distrust(#[source] Distrust),
    #[error("the statement is not signed by the holder of its certificate")]
    BadSignature,
}

impl Statement {
    /// The statement of a certificate's holder.
    ///
    /// # Errors
    /// When the key is not the certificate's.
    pub fn write(sealing: SealingPublic, certificate: &Certificate, key: &Key) -> Result<Vec<u8>, KeyMismatch> {
        let written = Written {
            version: 1,
            key: sealing,
            certificate: BASE64.encode(&certificate.der()),
        };
        let document = serde_json::to_vec(&written).expect("a statement is plain JSON");
        let signature = Signature::of(key, certificate, STATEMENT, &document)?;
        Ok(sign::attach(document, &signature))
    }

    /// Whose sealing key a statement (from anywhere) states. Whether that one is to read the value is the caller's question.
    ///
    /// # Errors
    /// When its certificate is not trusted now, or its holder did not sign it.
    pub fn verify(bytes: &[u8], trust: &Trust, now: Time) -> Result<Reader, StatementError> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(StatementError::NotStatement);
        }
        let (document, signature) = sign::detach(bytes).ok_or(StatementError::NotStatement)?;
        let written: Written = serde_json::from_slice(document).map_err(|_| StatementError::NotStatement)?;
        let Written {
            version,
            key,
            certificate,
        } = written;
        if version != 1 {
            return Err(StatementError::NotStatement);
        }
        let der = der_of_base64(&certificate).map_err(StatementError::Certificate)?;
        let certificate = trust
            .verify(&der, Use::Stating, now)
            .map_err(StatementError::Distrust)?;
        let signed = signature.signer() == certificate.fingerprint()
            && signature.is_by(
                certificate.key(),
                trust.cluster(),
                STATEMENT.word,
                STATEMENT.about,
                document,
            );
        if signed {
            Ok(Reader {
                identity: certificate.identity().clone(),
                key,
            })
        } else {
            Err(StatementError::BadSignature)
        }
    }
}

/// What a sealed value is. An envelope opens only as what it was sealed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    pub cluster: ClusterId,
    pub namespace: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    /// Rises with every new value of the name.
    pub edition: u64,
}

impl Context<'_> {
    fn bytes(&self, purpose: &str) -> Vec<u8> {
        let Self {
            cluster,
            namespace,
            kind,
            name,
            edition,
        } = self;
        fields(&[
            b"reeve seal 1",
            purpose.as_bytes(),
            cluster.bytes(),
            namespace.as_bytes(),
            kind.as_bytes(),
            name.as_bytes(),
            &edition.to_be_bytes(),
        ])
    }
}

/// A sealed value with the readers it is sealed for. In JSON: `version`, `nonce`, `value` and `readers`, bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    nonce: [u8; 12],
    /// Ciphertext and tag.
    value: Vec<u8>,
    readers: Vec<Sealed>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Envelope({} bytes for {} readers)",
            self.value.len(),
            self.readers.len()
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct ReaderId([u8; 16]);

/// The data key, sealed for one reader.
#[derive(Clone, PartialEq, Eq)]
struct Sealed {
    reader: ReaderId,
    encapsulated: [u8; 32],
    data_key: [u8; 48],
}

/// Why a value was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the value has {found} bytes; at most {MAX_VALUE_BYTES} can be sealed")]
    TooLong { found: usize },
    #[error("an envelope has 1 to {MAX_READERS} readers")]
    Readers,
    #[error("the reader {0} belongs to another cluster than the value")]
    OtherCluster(ClusterId),
    #[error("a reader's sealing key is not usable")]
    BadKey,
    #[error("the envelope is not sealed for this key")]
    NotForThisKey,
    #[error("the envelope does not open: it was changed, or sealed as something else")]
    DoesNotOpen,
    #[error("the system gave no random bytes")]
    NoRandomness,
    #[error("the bytes are not an envelope that this version reads")]
    NotEnvelope,
    #[error("the envelope is longer than {MAX_ENVELOPE_BYTES} bytes")]
    EnvelopeTooLong,
}

impl Envelope {
    /// Seals a value for these readers.
    ///
    /// # Errors
    /// When the value is too long, or a reader belongs to another cluster.
    pub fn seal(context: Context<'_>, value: &[u8], readers: &[Reader]) -> Result<Self, SealError> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(SealError::TooLong { found: value.len() });
        }
        let data_key: Zeroizing<[u8; 32]> = Zeroizing::new(random().ok_or(SealError::NoRandomness)?);
        // The key is used this once, so its random nonce can meet no other.
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, data_key.as_slice()).map_err(|_| SealError::NoRandomness)?;
        let mut sealed = Vec::with_capacity(value.len() + 16);
        sealed.extend_from_slice(value);
        let aad = Aad::from(context.bytes("value"));
        let nonce = cipher
            .seal_in_place_append_tag(aad, &mut sealed)
            .map_err(|_| SealError::NoRandomness)?;
        let envelope = Self {
            nonce: *nonce.as_ref(),
            value: sealed,
            readers: Vec::new(),
        };
        envelope.sealed_for(context, &data_key, readers)
    }

    fn sealed_for(mut self, context: Context<'_>, data_key: &[u8; 32], readers: &[Reader]) -> Result<Self, SealError> {
        if readers.is_empty() || readers.len() > MAX_READERS {
            return Err(SealError::Readers);
        }
        let digest = self.digest(context);
        self.readers = readers
            .iter()
            .map(|reader| {
                if reader.identity.cluster != context.cluster {
                    return Err(SealError::OtherCluster(reader.identity.cluster));
                }
                let public = HpkePublicKey(reader.key.0.to_vec());
                let (EncapsulatedSecret(encapsulated), data_key) = DH_KEM_X25519_HKDF_SHA256_AES_256
                    .seal(&context.bytes("data key"), digest.bytes(), data_key, &public)
                    .map_err(|_| SealError::BadKey)?;
                Ok(Sealed {
                    reader: reader.key.id(),
                    encapsulated: encapsulated.try_into().map_err(|_| SealError::BadKey)?,
                    data_key: data_key.try_into().map_err(|_| SealError::BadKey)?,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// The same sealed value for other readers, and only for them: how a controller hands a value to the nodes that need it.
    /// The value's ciphertext is copied as it is.
    ///
    /// # Errors
    /// When the key does not open the data key, or as [`Envelope::seal`].
    pub fn reseal(&self, context: Context<'_>, key: &SealingKey, readers: &[Reader]) -> Result<Self, SealError> {
        let data_key = self.data_key(context, key)?;
        self.clone().sealed_for(context, &data_key, readers)
    }

    /// The value, for one of the readers.
    ///
    /// # Errors
    /// When the envelope is not for this key, was changed, or was sealed as something else.
    pub fn open(&self, context: Context<'_>, key: &SealingKey) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let data_key = self.data_key(context, key)?;
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, data_key.as_slice()).map_err(|_| SealError::DoesNotOpen)?;
        let mut value = Zeroizing::new(self.value.clone());
        let aad = Aad::from(context.bytes("value"));
        let length = cipher
            .open_in_place(Nonce::from(&self.nonce), aad, &mut value)
            .map_err(|_| SealError::DoesNotOpen)?
            .len();
        value.truncate(length);
        Ok(value)
    }

    fn data_key(&self, context: Context<'_>, key: &SealingKey) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let id = key.public.id();
        let sealed = self
            .readers
            .iter()
            .find(|sealed| sealed.reader == id)
            .ok_or(SealError::NotForThisKey)?;
        let encapsulated = EncapsulatedSecret(sealed.encapsulated.to_vec());
        let digest = self.digest(context);
        let opened = DH_KEM_X25519_HKDF_SHA256_AES_256
            .open(
                &encapsulated,
                &context.bytes("data key"),
                digest.bytes(),
                &sealed.data_key,
                &key.hpke(),
            )
            .map_err(|_| SealError::DoesNotOpen)?;
        let opened = Zeroizing::new(opened);
        let mut data_key = Zeroizing::new([0; 32]);
        if opened.len() != data_key.len() {
            return Err(SealError::DoesNotOpen);
        }
        data_key.copy_from_slice(&opened);
        Ok(data_key)
    }

    /// The digest of the sealed value and of what it is, whoever its readers are: what a signed document names. Stays the
    /// same when the envelope is sealed for others.
    #[must_use]
    pub fn digest(&self, context: Context<'_>) -> Fingerprint {
        Fingerprint::of(&fields(&[
            &context.bytes("digest"),
            &self.nonce,
            &sha256(&[&self.value]),
        ]))
    }

    /// Whether it is sealed for this key.
    #[must_use]
    pub fn is_for(&self, key: &SealingPublic) -> bool {
        self.readers.iter().any(|sealed| sealed.reader == key.id())
    }

    /// The envelope as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope is plain JSON")
    }

    /// The envelope in JSON from anywhere.
    ///
    /// # Errors
    /// When it is too long or not an envelope.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SealError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(SealError::EnvelopeTooLong);
        }
        serde_json::from_slice(bytes).map_err(|_| SealError::NotEnvelope)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnvelopeForm {
    version: u32,
    nonce: String,
    value: String,
    readers: Vec<SealedForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SealedForm {
    reader: String,
    encapsulated: String,
    data_key: String,
}

impl Serialize for Envelope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = |sealed: &Sealed| {
            let Sealed {
                reader,
                encapsulated,
                data_key,
            } = sealed;
            SealedForm {
                reader: HEXLOWER.encode(&reader.0),
                encapsulated: BASE64.encode(encapsulated),
                data_key: BASE64.encode(data_key),
            }
        };
        EnvelopeForm {
            version: 1,
            nonce: BASE64.encode(&self.nonce),
            value: BASE64.encode(&self.value),
            readers: self.readers.iter().map(form).collect(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = EnvelopeForm::deserialize(deserializer)?;
        Self::of_form(&form).ok_or_else(|| serde::de::Error::custom("it is not an envelope of version 1"))
    }
}

impl Envelope {
    fn of_form(form: &EnvelopeForm) -> Option<Self> {
        let EnvelopeForm {
            version,
            nonce,
            value,
            readers,
        } = form;
        let sealed = |form: &SealedForm| {
            let SealedForm {
                reader,
                encapsulated,
                data_key,
            } = form;
            Some(Sealed {
                reader: ReaderId(decoded(&HEXLOWER, reader)?),
                encapsulated: decoded(&BASE64, encapsulated)?,
                data_key: decoded(&BASE64, data_key)?,
            })
        };
        let fits = *version == 1
            && (1..=MAX_READERS).contains(&readers.len())
            && value.len() <= BASE64.encode_len(MAX_VALUE_BYTES + 16);
        let value = BASE64.decode(fits.then_some(value)?.as_bytes()).ok()?;
        Some(Self {
            nonce: decoded(&BASE64, nonce)?,
            // Sixteen of them are the tag.
            value: Some(value).filter(|value| value.len() >= 16)?,
            readers: readers.iter().map(sealed).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
