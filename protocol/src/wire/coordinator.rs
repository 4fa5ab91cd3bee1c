//! What the coordinator serves (`docs/API.md` section 1).

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Object, Timestamp};
use crate::{
    coordinator::{BranchPhase, TransactionState},
    id::{ParticipantName, TransactionId},
    message::{Inform, Session},
    operations::{BodyDigest, DEPTH_MAX, InvalidOperations, Operations},
    record::{AbortReason, Outcome},
};

/// `POST /v1/transactions`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BeginRequest {
    /// 1 to 300000; 30000 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 1, maximum = 300_000, default = 30_000)
    )]
    pub timeout_ms: Option<u64>,
    /// The branches to enlist at once.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "named_branches"
    )]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub branches: Option<Vec<NamedBranch>>,
    /// Whether to run the transaction at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<bool>,
    /// Only with `commit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// Only with `commit`; 0 to 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 60_000))]
    pub wait_ms: Option<u64>,
    /// The client's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

fn named_branches<'de, D>(deserializer: D) -> Result<Option<Vec<NamedBranch>>, D::Error>
where
    D: Deserializer<'de>,
{
    let branches = Option::<Vec<Object<NamedBranch>>>::deserialize(deserializer)?;
    Ok(branches.map(|branches| branches.into_iter().map(|Object(branch)| branch).collect()))
}

impl BeginRequest {
    /// Equal for requests that may share an idempotency key: compared without `wait` and `wait_ms`, which say how to
    /// be answered, not what to do (a `null` member is already gone).
    ///
    /// # Errors
    /// When operations are nested too deep; parsed requests are not.
    pub fn digest(&self) -> Result<BodyDigest, InvalidOperations> {
        let what_to_do = Self {
            wait: None,
            wait_ms: None,
            ..self.clone()
        };
        let text = serde_json::to_string(&what_to_do)
            .map_err(|error| InvalidOperations::Json(error.to_string()))?;
        // Operations stand below the body, its list of branches, and their branch.
        BodyDigest::of_json_within(&text, DEPTH_MAX + 3)
    }
}

/// One of the branches of a [`BeginRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NamedBranch {
    /// The participant.
    pub participant: ParticipantName,
    /// Its operations; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Operations>,
}

/// At most 16 labels, keys `[a-z0-9._-]{1,63}`, values up to 256 characters without U+0000.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

/// Labels of one transaction, at most.
const LABELS_MAX: usize = 16;
/// Characters of a label's value, at most.
const LABEL_VALUE_MAX: usize = 256;

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Labels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of labels")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
                    let Some(value) = value else { continue };
                    check_label(&key, &value).map_err(de::Error::custom)?;
                    if labels.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("label {key:?} is given twice")));
                    }
                    if labels.len() > LABELS_MAX {
                        return Err(de::Error::custom(format!("more than {LABELS_MAX} labels")));
                    }
                }
                Ok(Labels(labels))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    let key_allowed = (1..=63).contains(&key.len())
        && key.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
        });
    if !key_allowed {
        return Err(format!(
            "label key {key:?} does not match [a-z0-9._-]{{1,63}}"
        ));
    }
    if value.chars().count() > LABEL_VALUE_MAX {
        return Err(format!(
            "label {key:?} is longer than {LABEL_VALUE_MAX} characters"
        ));
    }
    if value.contains('\0') {
        return Err(format!("label {key:?} holds U+0000, which is refused"));
    }
    Ok(())
}

/// Until when an answer is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Until the decision is durable.
    #[default]
    Decided,
    /// Until every updating branch acknowledged.
    Applied,
    /// Not at all.
    None,
}

/// A word that says nothing about waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be decided, applied or none")]
pub struct InvalidWait;

impl std::str::FromStr for Wait {
    type Err = InvalidWait;

    fn from_str(text: &str) -> Result<Self, InvalidWait> {
        match text {
            "decided" => Ok(Self::Decided),
            "applied" => Ok(Self::Applied),
            "none" => Ok(Self::None),
            _ => Err(InvalidWait),
        }
    }
}

impl<'de> Deserialize<'de> for Wait {
    // A derived one would also take `{"decided": null}` for the word.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// `POST /v1/transactions/{id}/branches`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnlistRequest {
    /// The participant.
    pub participant: ParticipantName,
    /// Its operations; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Operations>,
    /// Set by participants that enlist themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// The 201 or 200 of an enlist: the branch, and what is left until the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnlistAnswer {
    /// The branch.
    #[serde(flatten)]
    pub branch: BranchView,
    /// Until the deadline, by the coordinator's monotonic clock.
    pub remaining_ms: u64,
}

/// `POST /v1/transactions/{id}/commit`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// `decided` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// 0 to 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 60_000))]
    pub wait_ms: Option<u64>,
}

/// `POST /v1/transactions/{id}/abort`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AbortRequest {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[^\\u0000]*$"))]
    pub reason: Option<String>,
    /// 0 to 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 60_000))]
    pub wait_ms: Option<u64>,
}

/// A transaction, as `GET /v1/transactions/{id}` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransactionView {
    /// The transaction.
    pub id: TransactionId,
    /// Where it stands.
    pub state: TransactionState,
    /// Once decided and, with an idempotency key, durable.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub outcome: Option<Outcome>,
    /// Of an abort.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub reason: Option<AbortReason>,
    /// The client's key.
    #[cfg_attr(
        feature = "openapi",
        schema(
            required = true,
            min_length = 1,
            max_length = 255,
            pattern = "^[ -~]+$"
        )
    )]
    pub idempotency_key: Option<String>,
    /// The client's labels.
    #[cfg_attr(feature = "openapi", schema(value_type = Labels))]
    pub labels: BTreeMap<String, String>,
    /// When it began; null for an id without a record.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub created_at: Option<Timestamp>,
    /// When it aborts if it is undecided.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub deadline: Option<Timestamp>,
    /// When it was decided.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub decided_at: Option<Timestamp>,
    /// When nothing was owed any more.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub finished_at: Option<Timestamp>,
    /// Its branches, by name.
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub branches: Vec<BranchView>,
}

/// One branch of a [`TransactionView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BranchView {
    /// The participant.
    pub participant: ParticipantName,
    /// Where the branch stands.
    pub state: BranchPhase,
    /// Calls of the branch's present phase.
    pub attempts: u32,
    /// How the last of them ended, where it was no answer.
    #[cfg_attr(feature = "openapi", schema(required = true, max_length = 1024))]
    pub last_error: Option<String>,
}

/// `GET /v1/transactions`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransactionList {
    /// Newest first.
    #[cfg_attr(feature = "openapi", schema(max_items = 1000))]
    pub transactions: Vec<TransactionView>,
    /// Where the next page begins; `None` on the last one.
    #[cfg_attr(
        feature = "openapi",
        schema(required = true, pattern = "^[0-9a-f]{48}$")
    )]
    pub next: Option<String>,
}

/// `PUT /admin/v1/participants/{name}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ParticipantRequest {
    /// The base URL of its routes.
    pub url: String,
}

/// A registered participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ParticipantView {
    /// Its name.
    pub name: ParticipantName,
    /// The base URL of its routes.
    pub url: String,
}

/// `GET /admin/v1/participants`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ParticipantList {
    /// By name.
    pub participants: Vec<ParticipantView>,
}

/// `GET /v1/transactions/{id}/outcome`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutcomeAnswer {
    /// The echo, as the branch named it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::id::TransactionId))]
    pub transaction: String,
    /// The echo, as the branch named it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::id::ParticipantName))]
    pub participant: String,
    /// The answer.
    pub outcome: Inform,
}
