//! PEM texts: blocks of base64 between two lines that say what they are. Read with a limit on their size, and written in
//! one form. Private to this crate: each type reads and writes its own.

use data_encoding::BASE64;
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

/// Why a PEM text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("it is longer than the {limit} bytes allowed")]
    TooLong { limit: usize },
    #[error("a block in it is damaged")]
    Damaged,
    #[error("it holds a block of another kind")]
    OtherKind,
    #[error("it has {found} blocks where {wanted} is allowed")]
    Count { found: usize, wanted: usize },
}

/// The contents of all blocks of a text, every one of this kind.
pub(crate) fn all(kind: SectionKind, text: &str, limit: usize) -> Result<Vec<Vec<u8>>, PemError> {
    if text.len() > limit {
        return Err(PemError::TooLong { limit });
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes())
        .map(|block| match block {
            Ok((found, der)) if found == kind => Ok(der),
            Ok(_) => Err(PemError::OtherKind),
            Err(_) => Err(PemError::Damaged),
        })
        .collect()
}

/// The contents of a text's only block.
pub(crate) fn one(kind: SectionKind, text: &str, limit: usize) -> Result<Vec<u8>, PemError> {
    let mut blocks = all(kind, text, limit)?;
    match (blocks.pop(), blocks.len()) {
        (Some(block), 0) => Ok(block),
        (last, rest) => Err(PemError::Count {
            found: rest + usize::from(last.is_some()),
            wanted: 1,
        }),
    }
}

/// A block with lines of 64 characters, wiped when dropped: it may hold a private key.
pub(crate) fn write(label: &str, der: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(BASE64.encode(der));
    let lines = encoded.len().div_ceil(64);
    // Sized beforehand, so that growing leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(encoded.len() + lines + 2 * label.len() + 40));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for start in (0..encoded.len()).step_by(64) {
        text.push_str(&encoded[start..encoded.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_with_another_kind_of_block_is_refused() {
        let text = write("CERTIFICATE", b"abc").to_string() + &write("PRIVATE KEY", b"def");
        assert_eq!(all(SectionKind::Certificate, &text, 1_000), Err(PemError::OtherKind));
        assert_eq!(
            one(SectionKind::Certificate, "", 1_000),
            Err(PemError::Count { found: 0, wanted: 1 })
        );
        assert_eq!(
            all(SectionKind::Certificate, &text, 10),
            Err(PemError::TooLong { limit: 10 })
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 0..5)) {
            let text: String = blocks.iter().map(|block| write("CERTIFICATE", block).to_string()).collect();
            prop_assert_eq!(all(SectionKind::Certificate, &text, 10_000), Ok(blocks));
        }

        #[test]
        fn no_text_breaks_the_reader(text in "(-----(BEGIN|END) [A-Z ]{0,12}-----\n|[A-Za-z0-9+/=\n]{0,70}|\\PC{0,20}){0,8}") {
            let _ = all(SectionKind::Certificate, &text, 10_000);
        }
    }
}
