//! Tokens: short texts that people carry from one host to another. The **install token** exists before the cluster does: 256
//! bits from which every seed derives the same cluster id, authority and join token. A **join token** lets a host or person
//! into a running cluster: it pins the authority, so that the newcomer knows whom it talks to before it says its secret. The
//! store keeps only a [`Record`] with the secret's SHA-256 (it has 256 bits, so nothing slower is needed), what it may admit,
//! how often, and until when. Both kinds carry a checksum: a typing error is told as such.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use data_encoding::{Encoding, HEXLOWER, Specification};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::authority::Authority;
use crate::bundle::{Bundle, Unproven};
use crate::identity::{ClusterId, Name, Rights, Role, Who};
use crate::key::{Fingerprint, KeyError, PublicKey, decoded, random, sha256};
use crate::sign;
use crate::validity::Time;

const INSTALL_PREFIX: &str = "reeve1";
const JOIN_PREFIX: &str = "reevejoin1";
/// Secret, date, checksum: 64 characters.
const INSTALL_BYTES: usize = 32 + 4 + CHECKSUM_BYTES;
/// Pin, id, secret, checksum: 122 characters.
const JOIN_BYTES: usize = 32 + 8 + 32 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 4;
/// The longest text that is looked at, in bytes: a token with white space around it.
const MAX_TEXT_BYTES: usize = 512;

/// Why a text is not a token. The text is never repeated: it may be almost a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not a token: one begins with `{INSTALL_PREFIX}` or `{JOIN_PREFIX}`")]
    NotToken,
    #[error("the token has {found} characters instead of {wanted}: was it cut when it was copied?")]
    Length { found: usize, wanted: usize },
    #[error("the token's character {place} belongs to no token: tokens have only a-z and 2-7 after their beginning")]
    Character { place: usize },
    #[error("the token has a typing error: its checksum does not fit")]
    Typo,
    #[error("this is an install token where a join token belongs")]
    IsInstall,
    #[error("this is a join token where an install token belongs")]
    IsJoin,
}

/// Either kind of token, as a person gives it.
#[derive(Debug)]
pub enum Token {
    Install(InstallToken),
    Join(JoinToken),
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.starts_with(JOIN_PREFIX) {
            text.parse().map(Self::Join)
        } else {
            text.parse().map(Self::Install)
        }
    }
}

/// The token a cluster is installed with. Whoever has it can be the cluster's first authority.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct InstallToken {
    secret: [u8; 32],
    /// Seconds since 1970; enough until 2106.
    created: u32,
}

impl InstallToken {
    /// A new token.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(now: Time) -> Result<Self, KeyError> {
        Ok(Self {
            secret: random().ok_or(KeyError::NoRandomness)?,
            created: u32::try_from(now.unix_seconds()).unwrap_or(u32::MAX),
        })
    }

    /// When it was made: the derived authority's dates follow from it.
    #[must_use]
    pub fn created(&self) -> Time {
        Time::from_unix_seconds(u64::from(self.created))
    }

    /// The cluster that is installed with it.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        let bytes: [u8; 32] = self.expanded("cluster id");
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        ClusterId::from_bytes(id)
    }

    /// A value for the store's members to know each other by (`--initial-cluster-token`), which tells nothing of the secret.
    #[must_use]
    pub fn store_token(&self) -> String {
        HEXLOWER.encode(&self.expanded("store token"))
    }

    /// The join token that goes with it: hosts installed with the install token are admitted by this one's record. `pin` is
    /// the fingerprint of the authority derived from the token.
    #[must_use]
    pub fn join(&self, pin: Fingerprint) -> JoinToken {
        let id: [u8; 32] = self.expanded("join id");
        JoinToken {
            authority: pin,
            id: TokenId(id[..8].try_into().expect("eight of 32 bytes")),
            secret: JoinSecret(self.expanded("join secret")),
        }
    }

    /// 32 bytes for one purpose: HKDF-SHA256 over secret and date.
    pub(crate) fn expanded(&self, purpose: &str) -> [u8; 32] {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let mut bytes = [0; 32];
        let prk = Salt::new(HKDF_SHA256, b"reeve install token 1").extract(&self.secret);
        prk.expand(&[&self.created.to_be_bytes(), purpose.as_bytes()], Length)
            .and_then(|okm| okm.fill(&mut bytes))
            .expect("32 bytes are few for HKDF-SHA256");
        bytes
    }

    /// The text for people: 70 characters.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        written(INSTALL_PREFIX, &[&self.secret, &self.created.to_be_bytes()])
    }
}

impl FromStr for InstallToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.starts_with(JOIN_PREFIX) {
            return Err(TokenError::IsJoin);
        }
        let bytes: Zeroizing<[u8; INSTALL_BYTES]> = read(INSTALL_PREFIX, text)?;
        let mut token = Self {
            secret: [0; 32],
            created: u32::from_be_bytes(bytes[32..36].try_into().expect("four bytes")),
        };
        token.secret.copy_from_slice(&bytes[..32]);
        Ok(token)
    }
}

impl fmt::Debug for InstallToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstallToken(secret, made at {})", self.created)
    }
}

/// What a join token's record is found by: 8 bytes, 16 hexadecimal digits. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId([u8; 8]);

/// Why a text is not a token's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token's id is 16 hexadecimal digits in lower case")]
pub struct TokenIdError;

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}
impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}
impl FromStr for TokenId {
    type Err = TokenIdError;
    fn from_str(text: &str) -> Result<Self, TokenIdError> {
        decoded(&HEXLOWER, text).map(Self).ok_or(TokenIdError)
    }
}
impl TryFrom<String> for TokenId {
    type Error = TokenIdError;
    fn try_from(text: String) -> Result<Self, TokenIdError> {
        text.parse()
    }
}
impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.to_string()
    }
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct JoinSecret([u8; 32]);

/// The token that a host or person joins with.
#[derive(Clone)]
pub struct JoinToken {
    authority: Fingerprint,
    id: TokenId,
    secret: JoinSecret,
}

impl JoinToken {
    /// A new token that pins this authority.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(authority: Fingerprint) -> Result<Self, KeyError> {
        Ok(Self {
            authority,
            id: TokenId(random().ok_or(KeyError::NoRandomness)?),
            secret: JoinSecret(random().ok_or(KeyError::NoRandomness)?),
        })
    }

    /// The fingerprint of the authority's key: whoever shows no certificate of it is not told the secret.
    #[must_use]
    pub const fn authority(&self) -> Fingerprint {
        self.authority
    }

    #[must_use]
    pub const fn id(&self) -> TokenId {
        self.id
    }

    fn secret_sha256(&self) -> Fingerprint {
        Fingerprint::from_bytes(sha256(&[b"reeve join token 1", &self.id.0, &self.secret.0]))
    }

    /// What its record says of it.
    #[must_use]
    pub fn mark(&self) -> TokenMark {
        TokenMark {
            id: self.id,
            authority: self.authority,
            secret_sha256: self.secret_sha256(),
        }
    }

    /// The text for people: 132 characters.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        written(JOIN_PREFIX, &[self.authority.bytes(), &self.id.0, &self.secret.0])
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.starts_with(INSTALL_PREFIX) {
            return Err(TokenError::IsInstall);
        }
        let bytes: Zeroizing<[u8; JOIN_BYTES]> = read(JOIN_PREFIX, text)?;
        let mut token = Self {
            authority: Fingerprint::from_bytes(bytes[..32].try_into().expect("32 bytes")),
            id: TokenId(bytes[32..40].try_into().expect("eight bytes")),
            secret: JoinSecret([0; 32]),
        };
        token.secret.0.copy_from_slice(&bytes[40..72]);
        Ok(token)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret)", self.id)
    }
}

/// What of a join token may be known to everybody: nothing that lets anybody join. So who asks a seed for a record keeps the
/// secret to themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenMark {
    pub id: TokenId,
    /// The authority that the token pins.
    pub authority: Fingerprint,
    pub secret_sha256: Fingerprint,
}

/// Base32 in lower case, without padding.
fn base32() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different symbols")
}

fn checksum(prefix: &str, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = sha256(&[b"reeve token checksum 1", prefix.as_bytes(), payload]);
    digest[..CHECKSUM_BYTES].try_into().expect("four of 32 bytes")
}

fn written(prefix: &str, parts: &[&[u8]]) -> Zeroizing<String> {
    let mut payload = Zeroizing::new(Vec::with_capacity(JOIN_BYTES));
    for part in parts {
        payload.extend_from_slice(part);
    }
    let sum = checksum(prefix, &payload);
    payload.extend_from_slice(&sum);
    let encoding = base32();
    let mut text = Zeroizing::new(String::with_capacity(prefix.len() + encoding.encode_len(payload.len())));
    text.push_str(prefix);
    encoding.encode_append(&payload, &mut text);
    text
}

fn read<const BYTES: usize>(prefix: &str, text: &str) -> Result<Zeroizing<[u8; BYTES]>, TokenError> {
    let body = text.strip_prefix(prefix).ok_or(TokenError::NotToken)?;
    let encoding = base32();
    let wanted = prefix.len() + encoding.encode_len(BYTES);
    if text.len() > MAX_TEXT_BYTES || text.len() != wanted {
        return Err(TokenError::Length {
            found: text.chars().count(),
            wanted,
        });
    }
    let stranger = |byte: u8| !matches!(byte, b'a'..=b'z' | b'2'..=b'7');
    if let Some(place) = body.bytes().position(stranger) {
        return Err(TokenError::Character {
            place: prefix.len() + place + 1,
        });
    }
    let decoded = Zeroizing::new(encoding.decode(body.as_bytes()).map_err(|_| TokenError::Typo)?);
    let mut bytes = Zeroizing::new([0; BYTES]);
    if decoded.len() != BYTES {
        return Err(TokenError::Typo);
    }
    bytes.copy_from_slice(&decoded);
    let (payload, sum) = bytes.split_at(BYTES - CHECKSUM_BYTES);
    if checksum(prefix, payload) == sum {
        Ok(bytes)
    } else {
        Err(TokenError::Typo)
    }
}

/// How many joins one record remembers at most, and so the most uses it can have.
pub const MAX_USES: u32 = 10_000;

/// What the store keeps of a join token, signed by the authority: nothing that lets its reader join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    pub version: u32,
    pub id: TokenId,
    pub cluster: ClusterId,
    /// The authority that the token pins.
    pub authority: Fingerprint,
    pub secret_sha256: Fingerprint,
    pub admits: Admits,
    pub names: Names,
    /// How many more may join with it.
    pub uses_left: u32,
    /// Seconds since 1970. Nobody joins with it after that.
    pub expires: Time,
    /// Who joined with it, with which key: they may ask again, after a crash in the middle, without using it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Joined>,
}

/// The only role that a token admits; of a person, with exactly these rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Admits {
    Node,
    /// A server of one of the names, and the node on its host, whatever that is called: who is a server may make nodes.
    Server,
    Controller,
    Person(Rights),
}

impl Admits {
    const fn role(&self) -> Role {
        match self {
            Self::Node => Role::Node,
            Self::Server => Role::Server,
            Self::Controller => Role::Controller,
            Self::Person(_) => Role::Person,
        }
    }

    fn check(&self, asked: &Who) -> Result<(), Refusal> {
        match (self, asked) {
            (Self::Node | Self::Server, Who::Node(_))
            | (Self::Server, Who::Server(_))
            | (Self::Controller, Who::Controller(_)) => Ok(()),
            (Self::Person(rights), Who::Person(_, asked)) if rights == asked => Ok(()),
            (Self::Person(rights), Who::Person(_, asked)) => Err(Refusal::OtherRights {
                admitted: rights.clone(),
                asked: asked.clone(),
            }),
            (Self::Node | Self::Server | Self::Controller | Self::Person(_), _) => Err(Refusal::OtherRole {
                admitted: self.role(),
                asked: asked.role(),
            }),
        }
    }
}

/// Which names a token may admit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Names {
    Any,
    Only(BTreeSet<Name>),
}

/// One that joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Joined {
    pub name: Name,
    /// The fingerprint of the key (SPKI) that its first certificate was issued for.
    pub key: Fingerprint,
    /// Said where the token admits more than one role: a server and the node on its host may have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// When its name was revoked last before it joined, for who was: a later removal ends what this token opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Time>,
}

/// Why a token does not admit somebody. One who does not know the secret is told only the first three.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token was made for another cluster, or before this one's authority was rotated: ask for a new one")]
    OtherCluster,
    #[error("no token with the id {id} is known here: it was withdrawn, or ended long ago")]
    UnknownToken { id: TokenId },
    #[error("the token's secret is wrong")]
    WrongSecret,
    #[error("the token expired at {at}: ask for a new one")]
    Expired { at: Time },
    #[error("the token admits a {admitted}, not a {asked}")]
    OtherRole { admitted: Role, asked: Role },
    #[error("the token admits a person with the rights `{admitted}`, not `{asked}`")]
    OtherRights { admitted: Rights, asked: Rights },
    #[error("the token does not admit the name {asked}")]
    OtherName { asked: Name },
    #[error(
        "{name} has joined with this token already, with another key: is this a copy of that host, or a new one of its name?"
    )]
    NameTaken { name: Name },
    #[error("the token is used up: ask for a new one")]
    UsedUp,
}

/// The longest signed record that is looked at, in bytes.
pub const MAX_RECORD_BYTES: usize = 2 * 1_024 * 1_024;

const WORD: &str = "authority/join-token";

/// Why a record from the store does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the token's record is not proven to be the authority's")]
    Unproven(#[source] Unproven),
    #[error("the bytes are not a token's record that this version reads")]
    NotRecord,
    #[error("the token's record belongs to the cluster {found}, not to this one")]
    OtherCluster { found: ClusterId },
}

impl Record {
    /// The record of a new token.
    #[must_use]
    pub fn of(token: &JoinToken, cluster: ClusterId, admits: Admits, names: Names, uses: u32, expires: Time) -> Self {
        Self::marked(token.mark(), cluster, admits, names, uses, expires)
    }

    /// The record of a new token whose secret is elsewhere.
    #[must_use]
    pub fn marked(mark: TokenMark, cluster: ClusterId, admits: Admits, names: Names, uses: u32, expires: Time) -> Self {
        let TokenMark {
            id,
            authority,
            secret_sha256,
        } = mark;
        Self {
            version: 1,
            id,
            cluster,
            authority,
            secret_sha256,
            admits,
            names,
            uses_left: uses.min(MAX_USES),
            expires,
            joined: Vec::new(),
        }
    }

    /// The record as it is stored: a line of JSON, and below it the authority's signature. Without that, whoever can write
    /// the store could make a token of their own.
    #[must_use]
    pub fn signed_by(&self, authority: &Authority) -> Vec<u8> {
        let document = serde_json::to_vec(self).expect("a record is plain JSON");
        let signature = authority.sign(WORD, &document);
        sign::attach(document, &signature)
    }

    /// A record from the store, if the present or the next authority of this bundle signed it.
    ///
    /// # Errors
    /// With the reason why it does not count.
    pub fn verified(bytes: &[u8], bundle: &Bundle, now: Time) -> Result<Self, RecordError> {
        let document = bundle
            .said(WORD, bytes, MAX_RECORD_BYTES, now)
            .map_err(RecordError::Unproven)?;
        let record: Self = serde_json::from_slice(document).map_err(|_| RecordError::NotRecord)?;
        if record.version != 1 {
            return Err(RecordError::NotRecord);
        }
        if record.cluster != bundle.cluster() {
            return Err(RecordError::OtherCluster { found: record.cluster });
        }
        Ok(record)
    }

    /// Whether this token is the one that the record is of, and still counts.
    fn shown(&self, token: &JoinToken, now: Time) -> Result<(), Refusal> {
        if self.authority != token.authority {
            return Err(Refusal::OtherCluster);
        }
        if self.id != token.id {
            return Err(Refusal::UnknownToken { id: token.id });
        }
        if verify_slices_are_equal(self.secret_sha256.bytes(), token.secret_sha256().bytes()).is_err() {
            return Err(Refusal::WrongSecret);
        }
        if now > self.expires {
            return Err(Refusal::Expired { at: self.expires });
        }
        Ok(())
    }

    /// Whom the token was made for, where that is one person: who has the token need not know it.
    ///
    /// # Errors
    /// When it is for others, or no longer counts. Nothing of the record is told to one who does not know the secret.
    pub fn invites(&self, token: &JoinToken, now: Time) -> Result<Who, Refusal> {
        self.shown(token, now)?;
        let one = match &self.names {
            Names::Only(names) if names.len() == 1 => names.first(),
            Names::Only(_) | Names::Any => None,
        };
        match (&self.admits, one) {
            (Admits::Person(rights), Some(name)) => Ok(Who::Person(name.clone(), rights.clone())),
            (admits, _) => Err(Refusal::OtherRole {
                admitted: admits.role(),
                asked: Role::Person,
            }),
        }
    }

    /// Whether the token lets them, with this key, in now. If so, the record as it must be written (compared with
    /// the one read) before a certificate is issued; unchanged when they had joined already.
    ///
    /// # Errors
    /// With the reason why not. Nothing of the record is told to one who does not know the secret.
    pub fn admit(&self, token: &JoinToken, asked: &Who, key: &PublicKey, now: Time) -> Result<Self, Refusal> {
        self.shown(token, now)?;
        let Self {
            version: _,
            id: _,
            cluster: _,
            authority: _,
            secret_sha256: _,
            admits,
            names,
            uses_left,
            expires: _,
            joined,
        } = self;
        admits.check(asked)?;
        let name = asked.name();
        let role = (*admits == Admits::Server).then(|| asked.role());
        let named = match names {
            Names::Any => true,
            Names::Only(names) => names.contains(name) || role == Some(Role::Node),
        };
        if !named {
            return Err(Refusal::OtherName { asked: name.clone() });
        }
        let key = key.fingerprint();
        if let Some(earlier) = joined.iter().find(|joined| joined.name == *name && joined.role == role) {
            return if earlier.key == key {
                Ok(self.clone())
            } else if asked.role() == Role::Person {
                Err(Refusal::UsedUp)
            } else {
                Err(Refusal::NameTaken { name: name.clone() })
            };
        }
        let mut record = self.clone();
        record.uses_left = uses_left.checked_sub(1).ok_or(Refusal::UsedUp)?;
        record.joined.push(Joined {
            name: name.clone(),
            key,
            role,
            removed: None,
        });
        Ok(record)
    }

    /// Who joined under this name, to be written to.
    pub fn joined_as(&mut self, who: &Who) -> Option<&mut Joined> {
        let role = (self.admits == Admits::Server).then(|| who.role());
        let is = |joined: &&mut Joined| joined.name == *who.name() && joined.role == role;
        self.joined.iter_mut().find(is)
    }
}

/// What to tell the holder of a token for which there is no record: for another cluster, or unknown in this one.
#[must_use]
pub fn unrecorded(token: &JoinToken, bundle: &Bundle) -> Refusal {
    match bundle.authority(&token.authority) {
        Some(_) => Refusal::UnknownToken { id: token.id },
        None => Refusal::OtherCluster,
    }
}

#[cfg(test)]
mod tests;
