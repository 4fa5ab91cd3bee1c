//! Schemas of the wire's types for the coordinator's OpenAPI description. Structures have derived ones; here are those of
//! texts with a form of their own, and the list of all.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ArrayBuilder, ObjectBuilder, Type},
    },
};

use super::{
    AbortRequest, BeginRequest, BranchView, CommitRequest, EnlistAnswer, EnlistRequest, Labels,
    NamedBranch, OutcomeAnswer, ParticipantList, ParticipantRequest, ParticipantView, Timestamp,
    TransactionList, TransactionView, Wait,
};
use crate::{
    coordinator::{BranchPhase, TransactionState},
    id::{ParticipantName, TransactionId},
    message::{Inform, Session},
    operations::Operations,
    record::{AbortCode, AbortReason, IdempotencyKey, Outcome},
};

/// Every schema, by its name.
#[must_use]
pub fn schemas() -> Vec<(String, RefOr<Schema>)> {
    fn of<T: ToSchema>() -> (String, RefOr<Schema>) {
        (T::name().into_owned(), T::schema())
    }
    vec![
        of::<AbortCode>(),
        of::<AbortReason>(),
        of::<AbortRequest>(),
        of::<BeginRequest>(),
        of::<BranchPhase>(),
        of::<BranchView>(),
        of::<CommitRequest>(),
        of::<EnlistAnswer>(),
        of::<EnlistRequest>(),
        of::<IdempotencyKey>(),
        of::<Inform>(),
        of::<Labels>(),
        of::<NamedBranch>(),
        of::<Operations>(),
        of::<Outcome>(),
        of::<OutcomeAnswer>(),
        of::<ParticipantList>(),
        of::<ParticipantName>(),
        of::<ParticipantRequest>(),
        of::<ParticipantView>(),
        of::<Session>(),
        of::<Timestamp>(),
        of::<TransactionId>(),
        of::<TransactionList>(),
        of::<TransactionState>(),
        of::<TransactionView>(),
        of::<Wait>(),
    ]
}

/// A text of this form.
fn text(description: &str, pattern: &str, example: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .pattern(Some(pattern))
        .examples([example])
}

macro_rules! schema {
    ($type:ident, $schema:expr) => {
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                stringify!($type).into()
            }
        }
    };
}

schema!(
    TransactionId,
    text(
        "A UUID version 8, in lower-case hyphenated form and no other.",
        "^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        "5eed0001-0001-8000-8000-100000000001",
    )
    .min_length(Some(36))
    .max_length(Some(36))
);

schema!(
    ParticipantName,
    text(
        "The name of a participant.",
        "^[a-z][a-z0-9-]{0,62}$",
        "east"
    )
    .min_length(Some(1))
    .max_length(Some(63))
);

schema!(
    IdempotencyKey,
    text(
        "A client's name for a request that it may repeat: printable ASCII characters.",
        "^[ -~]{1,255}$",
        "transfer-4711",
    )
    .min_length(Some(1))
    .max_length(Some(255))
);

schema!(
    Session,
    text(
        "A random value that a participant draws for the connection or memory that holds a branch's interactive work.",
        "^[ -~]{1,255}$",
        "b2f7c1",
    )
    .min_length(Some(1))
    .max_length(Some(255))
);

schema!(
    Timestamp,
    text(
        "RFC 3339, in UTC, to the millisecond.",
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$",
        "2026-11-21T13:30:20.123Z",
    )
);

schema!(
    Operations,
    ArrayBuilder::new().description(Some(
        "What the branch is to do: opaque to the coordinator, forwarded as the text received. Nested at most 64 levels \
         deep."
    ))
);

schema!(
    Labels,
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(
            "At most 16 labels. Keys match [a-z0-9._-]{1,63}; values have up to 256 characters, none of them U+0000."
        ))
        .max_properties(Some(16))
        .property_names(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some("^[a-z0-9._-]{1,63}$"))
        ))
        .additional_properties(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .max_length(Some(256))
                .pattern(Some("^[^\\u0000]*$"))
        ))
);

/// A branch, with what is left until the deadline: closed, as `allOf` could not be.
impl PartialSchema for EnlistAnswer {
    fn schema() -> RefOr<Schema> {
        let branch = BranchView::schema();
        if let RefOr::T(Schema::Object(mut object)) = branch {
            let remaining = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(0_u64))
                .description(Some(
                    "Until the deadline, by the coordinator's monotonic clock.",
                ));
            object
                .properties
                .insert("remaining_ms".to_owned(), remaining.into());
            object.required.push("remaining_ms".to_owned());
            object.description = Some("A branch, and what is left until the deadline.".to_owned());
            object.into()
        } else {
            branch
        }
    }
}

impl ToSchema for EnlistAnswer {
    fn name() -> Cow<'static, str> {
        "EnlistAnswer".into()
    }
}
