//! Names: of transactions, of participants, of branches.
//!
//! A [`TransactionId`] carries its own fence. It is a UUID version 8 (RFC 9562, section 5.8) whose custom bits are
//! (log identity 32 ‖ node 16) and (epoch 30 ‖ sequence 44), so that its byte order is the order of
//! (identity, node, epoch, sequence). Whoever holds an id knows which log it belongs to and in which life of which
//! coordinator it was drawn; with the log's present epoch of that node this decides what its absence means.
//!
//! Parsing refuses every other spelling of the same bytes: an id is compared as text by participants in any
//! language, so there is exactly one text for it.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bits of an id that number the transactions of one epoch.
const SEQUENCE_BITS: u32 = 44;
const EPOCH_BITS: u32 = 30;

/// Drawn at random when a decision log is created: ids of another log are never taken for ours, though all fresh
/// logs begin with node 1 and epoch 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIdentity(pub u32);

impl fmt::Display for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A coordinator's number among those that share a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Node(pub u16);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a coordinator. A higher epoch of the same node fences all lower ones. 30 bits; the first one is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    /// The last epoch that an id can hold.
    pub const MAX: Self = Self((1 << EPOCH_BITS) - 1);

    /// `None` for a number that does not fit 30 bits.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number <= Self::MAX.0).then_some(Self(number))
    }

    /// The epoch as a number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers the transactions of one epoch, rising by one from a random start below 2^43. 44 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

impl Sequence {
    /// The last number that an id can hold.
    pub const MAX: Self = Self((1 << SEQUENCE_BITS) - 1);

    /// `None` for a number that does not fit 44 bits.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        (number <= Self::MAX.0).then_some(Self(number))
    }

    /// The start of an epoch's numbers from 64 random bits: a number below 2^43, so that an epoch has at least as
    /// many numbers before it as behind it.
    #[must_use]
    pub fn start(random: u64) -> Self {
        Self(random >> (64 - (SEQUENCE_BITS - 1)))
    }

    /// The number after this one; `None` at the end of the epoch's numbers.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// The sequence as a number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// The first 48 bits of an id: whose transactions these are, over all epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The log's identity.
    pub identity: LogIdentity,
    /// The coordinator's node.
    pub node: Node,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:04x}", self.identity, self.node.0)
    }
}

/// Names a global transaction (XA: gtrid). See the module's head for its 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(u128);

const VERSION: u128 = 8 << 76;
const VARIANT: u128 = 0b10 << 62;
/// `custom_c` holds the low 18 bits of the epoch above the sequence; `custom_b` the high 12.
const EPOCH_LOW_BITS: u32 = 62 - SEQUENCE_BITS;

impl TransactionId {
    /// Puts an id together.
    #[must_use]
    pub fn new(prefix: Prefix, epoch: Epoch, sequence: Sequence) -> Self {
        let high = u128::from(prefix.identity.0) << 96 | u128::from(prefix.node.0) << 80;
        let epoch_high = u128::from(epoch.0 >> EPOCH_LOW_BITS) << 64;
        let epoch_low = u128::from(epoch.0 & ((1 << EPOCH_LOW_BITS) - 1)) << SEQUENCE_BITS;
        Self(high | VERSION | epoch_high | VARIANT | epoch_low | u128::from(sequence.0))
    }

    /// The identity of the log that the id belongs to.
    #[must_use]
    pub fn identity(self) -> LogIdentity {
        LogIdentity((self.0 >> 96) as u32)
    }

    /// The node of the coordinator that drew the id.
    #[must_use]
    pub fn node(self) -> Node {
        Node((self.0 >> 80) as u16)
    }

    /// Log identity and node.
    #[must_use]
    pub fn prefix(self) -> Prefix {
        Prefix {
            identity: self.identity(),
            node: self.node(),
        }
    }

    /// The life of the coordinator in which the id was drawn.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        let high = ((self.0 >> 64) as u32) & 0xfff;
        let low = ((self.0 >> SEQUENCE_BITS) as u32) & ((1 << EPOCH_LOW_BITS) - 1);
        Epoch(high << EPOCH_LOW_BITS | low)
    }

    /// The number within the epoch.
    #[must_use]
    pub fn sequence(self) -> Sequence {
        Sequence((self.0 as u64) & Sequence::MAX.0)
    }

    /// The 16 bytes, in network order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`Self::to_bytes`].
    ///
    /// # Errors
    /// When version or variant are not those of a UUID version 8.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidId> {
        let bits = u128::from_be_bytes(bytes);
        let uuid_version_8 = bits & (0xf << 76) == VERSION && bits & (0b11_u128 << 62) == VARIANT;
        if uuid_version_8 {
            Ok(Self(bits))
        } else {
            Err(InvalidId::Version)
        }
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no [`TransactionId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not 36 characters of lower-case hexadecimal digits with hyphens in their places.
    #[error("not a UUID in lower-case hyphenated form (36 characters)")]
    Form,
    /// A UUID, but none that a coordinator draws.
    #[error("not a UUID of version 8, as every transaction id is")]
    Version,
}

impl FromStr for TransactionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let lower_case_hyphenated = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            });
        if !lower_case_hyphenated {
            return Err(InvalidId::Form);
        }
        let uuid = uuid::Uuid::try_parse(text).map_err(|_| InvalidId::Form)?;
        Self::from_bytes(*uuid.as_bytes())
    }
}

impl Serialize for TransactionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = uuid::Uuid::encode_buffer();
        serializer.serialize_str(
            uuid::Uuid::from_u128(self.0)
                .hyphenated()
                .encode_lower(&mut buffer),
        )
    }
}

impl<'de> Deserialize<'de> for TransactionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer)
    }
}

/// Parses a JSON string by `FromStr`, whatever the deserializer's buffers look like.
fn deserialize_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}

/// Names a participant: `[a-z][a-z0-9-]{0,62}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ParticipantName(Arc<str>);

impl ParticipantName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ParticipantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ParticipantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a participant's name is 1 to 63 characters, lower-case letters, digits and hyphens, and begins with a letter"
)]
pub struct InvalidParticipantName;

impl FromStr for ParticipantName {
    type Err = InvalidParticipantName;

    fn from_str(text: &str) -> Result<Self, InvalidParticipantName> {
        let mut bytes = text.bytes();
        let begins_with_letter = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
        let rest_allowed =
            bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if text.len() <= 63 && begins_with_letter && rest_allowed {
            Ok(Self(text.into()))
        } else {
            Err(InvalidParticipantName)
        }
    }
}

impl<'de> Deserialize<'de> for ParticipantName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer)
    }
}

/// Names a branch (XA: xid): a participant has at most one branch in a transaction, so the pair is its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId {
    /// The global transaction.
    pub transaction: TransactionId,
    /// The participant whose part it is.
    pub participant: ParticipantName,
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.transaction, self.participant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(identity: u32, node: u16, epoch: u32, sequence: u64) -> TransactionId {
        TransactionId::new(
            Prefix {
                identity: LogIdentity(identity),
                node: Node(node),
            },
            Epoch::new(epoch).unwrap(),
            Sequence::new(sequence).unwrap(),
        )
    }

    #[test]
    fn an_id_gives_back_what_it_was_made_of() {
        for (identity, node, epoch, sequence) in [
            (0, 0, 0, 0),
            (
                u32::MAX,
                u16::MAX,
                Epoch::MAX.number(),
                Sequence::MAX.number(),
            ),
            (0xdead_beef, 7, 0x2aaa_aaaa, 0x0555_5555_5555),
            (1, 1, 1, 1 << 43),
        ] {
            let id = id(identity, node, epoch, sequence);
            assert_eq!(id.identity(), LogIdentity(identity));
            assert_eq!(id.node(), Node(node));
            assert_eq!(id.epoch().number(), epoch);
            assert_eq!(id.sequence().number(), sequence);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(TransactionId::from_bytes(id.to_bytes()), Ok(id));
        }
    }

    #[test]
    fn byte_order_is_the_order_of_identity_node_epoch_sequence() {
        let ascending = [
            id(1, 9, 9, 9),
            id(2, 1, 9, 9),
            id(2, 2, 1, 9),
            id(2, 2, (1 << 18) - 1, 9),
            id(2, 2, 1 << 18, 1),
            id(2, 2, 1 << 18, 2),
        ];
        for pair in ascending.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].to_bytes() < pair[1].to_bytes());
            assert!(pair[0].to_string() < pair[1].to_string());
        }
    }

    #[test]
    fn every_other_spelling_of_an_id_is_refused() {
        let good = id(0xabcd_ef01, 0xabcd, 5, 77).to_string();
        assert!(good.parse::<TransactionId>().is_ok());
        let refused = [
            String::new(),
            good.to_uppercase(),
            good.replace('-', ""),
            format!("{{{good}}}"),
            format!("urn:uuid:{good}"),
            format!(" {good}"),
            format!("{good}\n"),
            good[..35].to_owned(),
            good.replacen('a', "g", 1),
            good.replacen('-', "0", 1),
            format!("{}ä", &good[..34]),
        ];
        for text in refused {
            assert_eq!(
                text.parse::<TransactionId>(),
                Err(InvalidId::Form),
                "{text:?}"
            );
        }
        for version_or_variant in [
            (14, '4'),
            (14, '7'),
            (14, '0'),
            (19, '0'),
            (19, 'c'),
            (19, 'f'),
        ] {
            let mut text = good.clone().into_bytes();
            text[version_or_variant.0] = version_or_variant.1 as u8;
            let text = String::from_utf8(text).unwrap();
            assert_eq!(
                text.parse::<TransactionId>(),
                Err(InvalidId::Version),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_sequence_starts_below_2_to_the_43() {
        assert_eq!(Sequence::start(0).number(), 0);
        assert_eq!(Sequence::start(u64::MAX).number(), (1 << 43) - 1);
        assert_eq!(Sequence::MAX.next(), None);
    }

    #[test]
    fn participant_names_are_what_the_wire_says() {
        for good in ["a", "east", "a-1", "e-", &"a".repeat(63)] {
            assert_eq!(good.parse::<ParticipantName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "1a",
            "-a",
            "East",
            "a_b",
            "a.b",
            "ä",
            "a ",
            &"a".repeat(64),
        ] {
            assert_eq!(
                bad.parse::<ParticipantName>(),
                Err(InvalidParticipantName),
                "{bad:?}"
            );
        }
    }
}
