//! Quantities people write: memory (`512Mi`), CPU (`500m`, `1.5`) and durations (`10s`, `1m30s`). Each parses from
//! the text its JSON Schema pattern admits, holds an exact integer, and prints the shortest text that parses back to it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error(
        "`{0}` is not a size: write a whole number of bytes, or a number with k, M, G, T, Ki, Mi, Gi or Ti, such as `512Mi`"
    )]
    Size(String),
    #[error("`{0}` is not a CPU quantity: write cores such as `2` or `0.5`, or thousandths such as `500m`")]
    Cpu(String),
    #[error("`{0}` is not a duration: write numbers with ms, s, m, h or d, such as `10s` or `1m30s`")]
    Duration(String),
}

/// Bytes: a whole number, or a decimal with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// CPU in thousandths of a core; at most 1,024 cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu {
    pub millis: u32,
}

/// A duration in milliseconds; at most 365 days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub millis: u64,
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];
/// The most bytes a quantity may hold: 1 PiB, far above any host and far below overflow.
const MAX_BYTES: u64 = 1 << 50;
const MAX_CPU_MILLIS: u64 = 1_024_000;
const MAX_SPAN_MILLIS: u64 = 365 * 86_400_000;

/// A decimal such as `1.5`, times `scale`, exactly; None when it is no decimal, not whole after scaling, or too large.
fn decimal(text: &str, scale: u64, max: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (text.contains('.') && !digits(fraction)) {
        return None;
    }
    let power = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole: u128 = whole.parse().ok()?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let total = whole
        .checked_mul(power)?
        .checked_add(part)?
        .checked_mul(u128::from(scale))?;
    if total % power != 0 {
        return None;
    }
    u64::try_from(total / power).ok().filter(|value| *value <= max)
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, scale) = SIZE_UNITS
            .iter()
            .find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, *scale)))
            .unwrap_or((text, 1));
        decimal(number, scale, MAX_BYTES)
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let best = SIZE_UNITS
            .iter()
            .filter(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale))
            .max_by_key(|(_, scale)| *scale);
        match best {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Cpu {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let value = match text.strip_suffix('m') {
            Some(millis) => decimal(millis, 1, MAX_CPU_MILLIS).filter(|_| !millis.contains('.')),
            None => decimal(text, 1_000, MAX_CPU_MILLIS),
        };
        let millis = value
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| UnitError::Cpu(text.to_owned()))?;
        Ok(Self { millis })
    }
}
impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis.is_multiple_of(1_000) {
            write!(f, "{}", self.millis / 1_000)
        } else {
            write!(f, "{}m", self.millis)
        }
    }
}

const SPAN_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Span {
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self {
            millis: seconds * 1_000,
        }
    }
    #[must_use]
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis)
    }
}
impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Duration(text.to_owned());
        let (mut rest, mut total, mut last) = (text, 0u64, u64::MAX);
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(end);
            let stop = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, next) = tail.split_at(stop);
            let scale = SPAN_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, scale)| *scale)
                .ok_or_else(bad)?;
            if scale >= last {
                return Err(bad());
            }
            last = scale;
            total = total
                .checked_add(decimal(number, scale, MAX_SPAN_MILLIS).ok_or_else(bad)?)
                .ok_or_else(bad)?;
            rest = next;
        }
        if total > MAX_SPAN_MILLIS {
            Err(bad())
        } else {
            Ok(Self { millis: total })
        }
    }
}
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (unit, scale) in SPAN_UNITS {
            if rest >= scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

/// Reads a number or a text with `FromStr`.
struct TextOrNumber<T>(&'static str, std::marker::PhantomData<T>);
impl<T: FromStr<Err = UnitError>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        value.to_string().parse().map_err(E::custom)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! unit_serde {
    ($type:ident, $expect:expr, $schema:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrNumber($expect, std::marker::PhantomData))
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}
unit_serde!(
    ByteSize,
    "a size such as `512Mi` or a whole number of bytes",
    json_schema!({
        "type": ["string", "integer"],
        "pattern": r"^[0-9]{1,18}(\.[0-9]{1,18})?(k|M|G|T|Ki|Mi|Gi|Ti)?$",
        "minimum": 0,
        "maximum": 1_125_899_906_842_624u64,
        "examples": ["512Mi"]
    })
);
unit_serde!(
    Cpu,
    "cores such as `0.5` or thousandths such as `500m`",
    json_schema!({
        "type": ["string", "number"],
        "pattern": r"^([0-9]{1,7}m|[0-9]{1,4}(\.[0-9]{1,3})?)$",
        "minimum": 0,
        "maximum": 1_024,
        "examples": ["500m"]
    })
);
unit_serde!(
    Span,
    "a duration such as `10s` or `1m30s`",
    json_schema!({
        "type": "string",
        "pattern": r"^([0-9]{1,12}(\.[0-9]{1,9})?(d|h|m|s|ms))+$",
        "examples": ["10s"]
    })
);

/// Text that may be written as a string, a whole number or a boolean, and is kept as text: `8080` is `"8080"`.
/// Decimals must be quoted, for `1.10` would lose its last digit on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub String);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a whole number or a boolean")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}
impl JsonSchema for Text {
    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer", "boolean"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_and_print_as_they_parse() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("512Mi", 512 << 20),
            ("1.5Gi", 3 << 29),
            ("64M", 64_000_000),
            ("1k", 1_000),
        ] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        for bad in [
            "",
            "Mi",
            "-1",
            "1.5",
            "1e3",
            "99999999Ti",
            "1 Mi",
            "1mi",
            ".5Gi",
            "5.Gi",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_is_in_thousandths() {
        for (text, millis) in [("1", 1_000), ("0.5", 500), ("250m", 250), ("1.125", 1_125)] {
            assert_eq!(text.parse::<Cpu>().map(|c| c.millis), Ok(millis), "{text}");
        }
        for bad in ["", "m", "0.0001", "1.5m", "-1", "2000000m", "1 "] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_add_falling_units() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("1d", 86_400_000),
        ] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.millis, millis, "{text}");
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
        for bad in ["", "10", "s", "1s1m", "1s1s", "-1s", "1 s", "366d", "1y"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
