//! What counts as an answer of a branch, or of the coordinator, and what is unknown (design rule 5).

use unanimous_protocol::{
    id::BranchId,
    message::{Delivery, Inform, Refusal, RefusalCode, Reply, RequestKind, Vote},
    wire::{HttpAnswer, InquiryAnswer, Problem, read_inquiry, read_reply},
};

use RequestKind::{Abort, Commit, Prepare};

const ID: &str = "5eed000a-0001-8000-8000-10000000000b";
const JSON: Option<&str> = Some("application/json");
const PROBLEM: Option<&str> = Some("application/problem+json");
const KINDS: [RequestKind; 3] = [Prepare, Commit, Abort];

fn branch() -> BranchId {
    BranchId {
        transaction: ID.parse().unwrap(),
        participant: "east".parse().unwrap(),
    }
}

fn read(kind: RequestKind, status: u16, media: Option<&str>, body: &str) -> Delivery<Reply> {
    let answer = HttpAnswer {
        status,
        content_type: media,
        body: body.as_bytes(),
    };
    read_reply(kind, &branch(), &answer)
}

/// The right 200 to each request.
fn right(kind: RequestKind) -> String {
    let said = match kind {
        Prepare => r#""vote":"yes""#,
        Commit => r#""state":"committed""#,
        Abort => r#""state":"aborted""#,
    };
    format!(r#"{{"transaction":"{ID}","participant":"east",{said}}}"#)
}

fn vote(members: &str) -> String {
    format!(r#"{{"transaction":"{ID}","participant":"east",{members}}}"#)
}

fn problem(status: u16, code: &str) -> String {
    serde_json::to_string(&Problem::new(status, code, "because")).unwrap()
}

fn is_unknown(delivery: &Delivery<Reply>) -> bool {
    matches!(delivery, Delivery::Unknown(reason) if !reason.is_empty())
}

fn refusal(code: RefusalCode, reason: &str) -> Delivery<Reply> {
    Delivery::Answered(Reply::Vote(Vote::No(Refusal {
        code,
        reason: reason.to_owned(),
    })))
}

#[test]
fn a_200_that_echoes_the_branch_is_an_answer() {
    let answered = |kind| read(kind, 200, JSON, &right(kind));
    assert_eq!(
        answered(Prepare),
        Delivery::Answered(Reply::Vote(Vote::Yes))
    );
    assert_eq!(answered(Commit), Delivery::Answered(Reply::Committed));
    assert_eq!(answered(Abort), Delivery::Answered(Reply::Aborted));
    assert_eq!(
        read(Prepare, 200, JSON, &vote(r#""vote":"read_only""#)),
        Delivery::Answered(Reply::Vote(Vote::ReadOnly))
    );
    // The echo proves it, not the media type; and members that are not ours to know are passed over.
    let more = vote(r#""vote":"yes","since":"yesterday","took_ms":[1],"next":{}"#);
    for media in [None, Some("text/plain"), JSON] {
        assert_eq!(
            read(Prepare, 200, media, &more),
            Delivery::Answered(Reply::Vote(Vote::Yes))
        );
    }
}

#[test]
fn a_participants_own_members_never_spoil_an_acknowledgement() {
    for since in [r#""2026-11-21T13:30:20Z""#, r#""yesterday""#, "17"] {
        let body = vote(&format!(r#""state":"committed","since":{since}"#));
        assert_eq!(
            read(Commit, 200, JSON, &body),
            Delivery::Answered(Reply::Committed),
            "{body}"
        );
    }
}

#[test]
fn a_200_that_is_not_utf8_is_unknown_also_where_nobody_reads_it() {
    for kind in KINDS {
        let mut body = right(kind).into_bytes();
        let end = body.len() - 1;
        body.splice(end..end, *b",\"x\":\"\x8e\"");
        let answer = HttpAnswer {
            status: 200,
            content_type: JSON,
            body: &body,
        };
        let delivery = read_reply(kind, &branch(), &answer);
        assert!(is_unknown(&delivery), "{kind:?} {delivery:?}");
    }
}

#[test]
fn a_200_without_the_exact_echo_is_unknown() {
    for kind in KINDS {
        let right = right(kind);
        let upper_case = right.replace(ID, &ID.to_uppercase());
        let not_ours = [
            String::new(),
            "{}".to_owned(),
            "[]".to_owned(),
            "null".to_owned(),
            "OK".to_owned(),
            "<html><body>Welcome to nginx!</body></html>".to_owned(),
            upper_case,
            right.replace(ID, "5eed000a-0001-8000-8000-10000000000c"),
            right.replace(ID, &format!("{ID} ")),
            right.replace(ID, &ID.replace('-', "")),
            right.replace("\"east\"", "\"west\""),
            right.replace("\"east\"", "\"East\""),
            right.replace("\"east\"", "null"),
            right.replace(&format!("\"transaction\":\"{ID}\","), ""),
            right.replace("\"participant\":\"east\",", ""),
            right.replace(
                "\"participant\"",
                "\"participant\":\"west\",\"participant\"",
            ),
            right.replace('{', "[").replace('}', "]"),
            format!("{right}{right}"),
            right[..right.len() - 1].to_owned(),
        ];
        for body in not_ours {
            assert!(is_unknown(&read(kind, 200, JSON, &body)), "{kind:?} {body}");
        }
    }
    let sequence = format!(r#"["{ID}","east","yes"]"#);
    assert!(is_unknown(&read(Prepare, 200, JSON, &sequence)));
    let not_utf_8 = HttpAnswer {
        status: 200,
        content_type: JSON,
        body: b"\xff\xfe",
    };
    assert!(is_unknown(&read_reply(Prepare, &branch(), &not_utf_8)));
}

#[test]
fn the_right_body_with_another_status_is_unknown() {
    let statuses = [
        100, 201, 202, 204, 301, 302, 307, 308, 400, 404, 409, 500, 502, 503, 504,
    ];
    for kind in KINDS {
        for status in statuses {
            for body in [right(kind), String::new()] {
                assert!(
                    is_unknown(&read(kind, status, JSON, &body)),
                    "{kind:?} {status}"
                );
            }
        }
    }
}

#[test]
fn the_answer_to_another_request_acknowledges_nothing() {
    for asked in KINDS {
        for answered in KINDS.into_iter().filter(|&kind| kind != asked) {
            let body = right(answered);
            assert!(
                is_unknown(&read(asked, 200, JSON, &body)),
                "{asked:?} {body}"
            );
        }
    }
    for state in ["active", "prepared", "read_only", "COMMITTED", "gone", ""] {
        let body = vote(&format!(r#""state":"{state}""#));
        for kind in [Commit, Abort] {
            assert!(is_unknown(&read(kind, 200, JSON, &body)), "{kind:?} {body}");
        }
    }
}

#[test]
fn a_vote_in_a_word_we_do_not_know_is_unknown() {
    for word in [
        r#""maybe""#,
        r#""YES""#,
        r#""ok""#,
        r#""""#,
        "true",
        "1",
        "null",
        r#"["yes"]"#,
    ] {
        let body = vote(&format!(r#""vote":{word}"#));
        assert!(is_unknown(&read(Prepare, 200, JSON, &body)), "{body}");
    }
    let twice = vote(r#""vote":"no","vote":"yes""#);
    assert!(is_unknown(&read(Prepare, 200, JSON, &twice)));
}

#[test]
fn a_no_without_a_code_or_with_one_we_do_not_know_reads_as_refused() {
    let cases = [
        (r#""vote":"no""#, RefusalCode::Refused, ""),
        (
            r#""vote":"no","code":null,"reason":null"#,
            RefusalCode::Refused,
            "",
        ),
        (
            r#""vote":"no","reason":"too little""#,
            RefusalCode::Refused,
            "too little",
        ),
        (
            r#""vote":"no","code":"full-moon""#,
            RefusalCode::Refused,
            "",
        ),
        (r#""vote":"no","code":"refused""#, RefusalCode::Refused, ""),
        (
            r#""vote":"no","code":"conflict""#,
            RefusalCode::Conflict,
            "",
        ),
        (
            r#""vote":"no","code":"work-lost""#,
            RefusalCode::WorkLost,
            "",
        ),
        (
            r#""vote":"no","code":"deadline""#,
            RefusalCode::Deadline,
            "",
        ),
        (r#""vote":"no","code":"aborted""#, RefusalCode::Aborted, ""),
        (
            r#""vote":"no","code":"below-low-water""#,
            RefusalCode::BelowLowWater,
            "",
        ),
    ];
    for (members, code, reason) in cases {
        assert_eq!(
            read(Prepare, 200, JSON, &vote(members)),
            refusal(code, reason),
            "{members}"
        );
    }
}

#[test]
fn a_clear_refusal_of_a_prepare_is_a_no_and_nothing_else_is() {
    for (status, code) in [
        (400, "invalid-request"),
        (413, "payload-too-large"),
        (415, "unsupported-media-type"),
        (422, "prepare-changed"),
    ] {
        let body = problem(status, code);
        let expected = refusal(RefusalCode::Refused, &format!("{code}: because"));
        for media in [
            "application/problem+json",
            "application/problem+json; charset=utf-8",
            "Application/Problem+JSON",
        ] {
            assert_eq!(
                read(Prepare, status, Some(media), &body),
                expected,
                "{status}"
            );
        }
        for kind in [Commit, Abort] {
            assert!(
                is_unknown(&read(kind, status, PROBLEM, &body)),
                "{kind:?} {status}"
            );
        }
    }
    let unclear = [
        (400, "bad-request"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not-found"),
        (404, "unknown-branch"),
        (408, "request-timeout"),
        (409, "vote-lost"),
        (409, "outcome-differs"),
        (422, "invalid-request"),
        (422, "unprocessable"),
        (429, "too-many-requests"),
        (500, "internal"),
        (503, "key-busy"),
        (503, "overloaded"),
    ];
    for (status, code) in unclear {
        let delivery = read(Prepare, status, PROBLEM, &problem(status, code));
        assert!(is_unknown(&delivery), "{status} {code}: {delivery:?}");
    }
}

#[test]
fn an_error_that_is_no_problem_of_ours_is_unknown() {
    let problems = [
        (Prepare, 400, "invalid-request"),
        (Prepare, 413, "payload-too-large"),
        (Prepare, 415, "unsupported-media-type"),
        (Prepare, 422, "prepare-changed"),
        (Commit, 409, "vote-lost"),
        (Commit, 409, "outcome-differs"),
        (Abort, 409, "outcome-differs"),
    ];
    for (kind, status, code) in problems {
        let body = problem(status, code);
        let strangers = [
            (JSON, body.clone()),
            (Some("text/html"), body.clone()),
            (Some("application/problem+xml"), body.clone()),
            (None, body.clone()),
            (PROBLEM, String::new()),
            (PROBLEM, "{}".to_owned()),
            (PROBLEM, "<html>".to_owned()),
            (
                PROBLEM,
                body.replace("urn:unanimous:problem:", "https://example.org/"),
            ),
            (
                PROBLEM,
                body.replace("urn:unanimous:problem:", "urn:unanimous:problem:x"),
            ),
            (
                PROBLEM,
                body.replace("urn:unanimous:problem:", "about:blank#"),
            ),
            (
                PROBLEM,
                body.replace(&format!("\"code\":\"{code}\""), "\"code\":\"other\""),
            ),
            // Another hop's: somebody passed the body on under a status of his own.
            (
                PROBLEM,
                body.replace(&format!("\"status\":{status}"), "\"status\":502"),
            ),
        ];
        for (media, body) in strangers {
            let delivery = read(kind, status, media, &body);
            assert!(is_unknown(&delivery), "{media:?} {body}: {delivery:?}");
        }
    }
}

#[test]
fn vote_lost_answers_a_commit_and_outcome_differs_a_commit_or_an_abort() {
    let lost = problem(409, "vote-lost");
    let differs = problem(409, "outcome-differs");
    assert_eq!(
        read(Commit, 409, PROBLEM, &lost),
        Delivery::Answered(Reply::VoteLost)
    );
    assert!(is_unknown(&read(Abort, 409, PROBLEM, &lost)));
    for kind in [Commit, Abort] {
        assert_eq!(
            read(kind, 409, PROBLEM, &differs),
            Delivery::Answered(Reply::OutcomeDiffers)
        );
        for status in [404, 410, 412, 422, 500] {
            for code in ["vote-lost", "outcome-differs"] {
                let delivery = read(kind, status, PROBLEM, &problem(status, code));
                assert!(is_unknown(&delivery), "{status} {code}");
            }
        }
    }
}

#[test]
fn reasons_from_participants_are_cut_and_hold_no_u_0000() {
    let long = "ä".repeat(2_000);
    let body = vote(&format!(r#""vote":"no","reason":"a\u0000b{long}""#));
    let Delivery::Answered(Reply::Vote(Vote::No(no))) = read(Prepare, 200, JSON, &body) else {
        panic!("a no");
    };
    assert_eq!(no.reason, format!("ab{}", "ä".repeat(1_022)));

    let detail = Problem::new(422, "prepare-changed", format!("a\0b{long}"));
    let detail = serde_json::to_string(&detail).unwrap();
    let Delivery::Answered(Reply::Vote(Vote::No(no))) = read(Prepare, 422, PROBLEM, &detail) else {
        panic!("a no");
    };
    assert!(no.reason.starts_with("prepare-changed: abä"));
    assert_eq!(no.reason.chars().count(), 1_024);

    let unknown = [
        read(
            Prepare,
            200,
            JSON,
            &vote(&format!(r#""vote":"a\u0000{long}""#)),
        ),
        read(
            Commit,
            200,
            JSON,
            &vote(&format!(r#""state":"a\u0000{long}""#)),
        ),
        read(
            Abort,
            200,
            JSON,
            &right(Abort).replace("east", &format!("a\\u0000{long}")),
        ),
        read(Commit, 500, PROBLEM, &detail),
        read(
            Commit,
            500,
            PROBLEM,
            &detail.replace("\"status\":422", "\"status\":500"),
        ),
    ];
    for delivery in unknown {
        let Delivery::Unknown(reason) = delivery else {
            panic!("{delivery:?}");
        };
        assert!(reason.chars().count() <= 1_024, "{reason}");
        assert!(!reason.contains('\0'), "{reason}");
    }
}

fn inquire(status: u16, media: Option<&str>, body: &str) -> InquiryAnswer {
    let answer = HttpAnswer {
        status,
        content_type: media,
        body: body.as_bytes(),
    };
    read_inquiry(&branch(), &answer)
}

#[test]
fn an_inquiry_is_answered_by_a_200_that_echoes_the_branch() {
    for (word, inform) in [
        ("committed", Inform::Committed),
        ("aborted", Inform::Aborted),
        ("pending", Inform::Pending),
    ] {
        let body = vote(&format!(r#""outcome":"{word}","decided_by":"node 1""#));
        assert_eq!(inquire(200, JSON, &body), InquiryAnswer::Informed(inform));
    }
}

#[test]
fn whatever_else_answers_an_inquiry_leaves_the_branch_in_doubt() {
    let told = vote(r#""outcome":"aborted""#);
    let not_ours = [
        String::new(),
        "{}".to_owned(),
        "<html>".to_owned(),
        told.replace(ID, &ID.to_uppercase()),
        told.replace(ID, "5eed000a-0001-8000-8000-10000000000c"),
        told.replace("\"east\"", "\"west\""),
        told.replace("\"aborted\"", "\"unknown\""),
        told.replace("\"aborted\"", "\"Aborted\""),
        told.replace("\"aborted\"", "null"),
        told.replace("\"outcome\"", "\"outcome\":\"committed\",\"outcome\""),
        format!(r#"["{ID}","east","aborted"]"#),
        vote(&format!(
            r#""outcome":"a\u0000{}""#,
            "aborted".repeat(1_000)
        )),
    ];
    for body in not_ours {
        let answer = inquire(200, JSON, &body);
        let InquiryAnswer::AskAgain(reason) = answer else {
            panic!("{body}: {answer:?}");
        };
        assert!(reason.chars().count() <= 1_024, "{reason}");
    }
    for status in [
        201, 202, 204, 301, 302, 400, 401, 403, 408, 409, 410, 429, 500, 502, 503,
    ] {
        let answer = inquire(status, JSON, &told);
        assert!(
            matches!(answer, InquiryAnswer::AskAgain(_)),
            "{status}: {answer:?}"
        );
    }
}

#[test]
fn a_404_to_an_inquiry_is_no_answer_but_an_alarm() {
    for (media, body) in [
        (PROBLEM, problem(404, "foreign-transaction")),
        (JSON, vote(r#""outcome":"aborted""#)),
        (Some("text/html"), "<html>".to_owned()),
    ] {
        assert!(matches!(
            inquire(404, media, &body),
            InquiryAnswer::Alarm(_)
        ));
    }
}
