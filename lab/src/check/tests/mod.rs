//! The kit is held against a participant that keeps the contract, and against one broken participant for each check.

mod participant;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use unanimous_protocol::operations::Operations;

use participant::Fault::{self, *};
use participant::Participant;

use super::{Card, Kit, Options, Source, checks};

/// Broken participants that are checked at the same time.
const AT_ONCE: usize = 16;

/// The check that finds each mistake.
const FOUND_BY: &[(&[Fault], &str)] = &[
    (&[EchoesInUpperCase], "echo"),
    (&[AcknowledgesBeforeItApplies], "commit"),
    (&[AbortsInWordsOnly], "abort"),
    (&[NotFoundIsSuccess], "commit-of-the-unknown"),
    (&[AbortOfTheUnknownIsAnError], "abort-of-the-unknown"),
    (&[NoTombstone], "prepare-after-abort"),
    (&[CommitOfTheUnknownIsStored], "reordered"),
    (&[CommitsTheAborted], "commit-of-the-aborted"),
    (&[AbortsTheCommitted], "abort-of-the-committed"),
    (&[RefusesAnew], "refusal"),
    (&[CommitsTheReadOnly], "read-only"),
    (&[IgnoresTheDeadline], "deadline"),
    (&[IgnoresTheSession], "session-lost"),
    (&[RefusesARepeat], "prepare-repeated"),
    (&[LooksBeforeItPrepares], "prepare-fifty-at-once"),
    (&[RefusesARepeatedCommit], "commit-repeated"),
    (&[LooksBeforeItCommits], "commit-fifty-at-once"),
    (&[AppliesAgain], "applied-once"),
    (&[AppliesAtPrepare], "aborted-leaves-nothing"),
    (&[BeginsAgain], "prepare-after-commit"),
    (&[IgnoresAChange], "changed-prepare"),
    (&[ComparesBytes], "same-body-in-another-spelling"),
    (&[ComparesNumbers], "numbers-by-their-text"),
    (&[AbortsBesideAPrepare], "abort-races-prepare"),
    (&[PromisesTwice], "conflict"),
    (&[ReservesAgain], "given-back-once"),
    (&[RefusesAndKeeps], "refusal-leaves-nothing"),
    (&[OutcomesWait], "outcomes-pass-waiting-prepares"),
    (&[DescribesAnother], "describe"),
    (&[NoSince], "branch-view"),
    (&[ListsTwice], "branch-list"),
    (&[TakesAnything], "malformed-bodies"),
    (&[TakesAnySpelling], "malformed-ids"),
    (&[RefusesUnknownMembers], "unknown-members"),
    (&[RefusesACharset], "content-type"),
    (&[TakesLittle], "large-body"),
    (&[TakesAll], "huge-body"),
    (&[OneByOne], "slow-body"),
    (&[ActsOnWhatCame], "cut-body"),
    (&[NeverAsks], "inquiry-committed"),
    (&[TakesNoAbort], "inquiry-aborted"),
    (&[PendingIsAborted], "inquiry-pending"),
    (&[SilenceIsAborted], "inquiry-silence"),
    (&[AnyEcho], "inquiry-wrong-echo"),
    (&[AnyStatus], "inquiry-error-pages"),
    (&[NotFoundIsAborted], "inquiry-other-log"),
    (&[FollowsRedirects], "inquiry-redirect"),
    (&[Floods], "inquiry-pace"),
    (&[IgnoresTheMark], "below-the-mark"),
    (&[OneMarkForAll], "mark-of-its-own-prefix"),
    (&[PrunesWhatIsInDoubt], "mark-keeps-what-is-in-doubt"),
    (&[PrunesBeforeItMarks], "late-duplicate-while-pruning"),
    (&[ForgetsItsYes], "killed-after-its-yes"),
    (&[ForgetsItsCommit], "killed-after-its-commit"),
    (
        &[ForgetsItsAborts, AsksOnlyOnce, TakesNoAbort],
        "killed-after-an-abort",
    ),
    (&[AsksOnlyAboutThisLife], "asks-after-a-restart"),
    (&[AsksByItsPresentName], "asks-by-its-former-name"),
    (&[ForgetsItsMark], "below-the-mark-after-a-restart"),
    (&[EchoesTheFirst], "batch-lines"),
    (&[OneKindForAll], "batch-mixed-kinds"),
    (&[LooksBeforeItPrepares], "batch-twice-at-once"),
    (&[OneNoForAll], "batch-refusal"),
    (&[ReadsAllOrNone], "batch-malformed-message"),
    (&[AnswersWithTheSlowest], "batch-waiting-prepare"),
    (&[TakesLongBatches], "batch-bounds"),
    (&[ForgetsItsYes], "batch-killed-after-its-yes"),
    (&[KeepsFiveHundred], "thousand-interleaved"),
];

/// Checks a participant with these mistakes; of the checks only those named, or all.
async fn card(faults: &[Fault], only: &[&str], patience: Duration) -> Card {
    let participant = Participant::new(faults).await;
    let operations = |text| Operations::parse(text).unwrap();
    let (restarted, seen) = (Arc::clone(&participant), Arc::clone(&participant));
    let options = Options {
        url: participant.url(),
        name: Some("east".parse().unwrap()),
        listen: None,
        operations: operations(r#"[{"kind": "add", "amount": 1}]"#),
        refused: Some(operations(r#"[{"kind": "refuse"}]"#)),
        read_only: Some(operations(r#"[{"kind": "look"}]"#)),
        exclusive: Some(operations(r#"[{"kind": "seat"}]"#)),
        restart: Some(Arc::new(move |life| {
            let participant = Arc::clone(&restarted);
            Box::pin(async move { participant.restart(life).await })
        })),
        renamed: Some("orient".parse().unwrap()),
        look: Some(Arc::new(move || {
            let balance = seen.balance();
            Box::pin(async move { Ok(balance.to_string()) })
        })),
        patience,
        only: only.iter().map(|id| (*id).to_owned()).collect(),
    };
    let mut kit = Kit::listen(options).await.unwrap();
    kit.meet().await.unwrap();
    kit.run(|_| {}).await
}

fn told(card: &Card) -> String {
    card.checks.iter().map(|check| check.lines(false)).collect()
}

#[tokio::test]
async fn a_participant_that_keeps_the_contract_passes_every_check() {
    let card = card(&[], &[], Duration::from_secs(20)).await;
    assert!(card.is_passed(), "{}", told(&card));
    assert_eq!(card.not_applicable(), Vec::<&str>::new());
    assert_eq!(card.checks.len(), checks().count());
}

#[tokio::test]
async fn every_mistake_is_found_by_the_check_that_is_for_it() {
    let patience = Duration::from_secs(3);
    let missed: Vec<Option<String>> = stream::iter(FOUND_BY)
        .map(|(faults, check)| async move {
            let card = card(faults, &[check], patience).await;
            // The same check passes without the mistake: the test above says so.
            let missed = card.failed() != [*check];
            missed.then(|| format!("{faults:?} is not found by {check}:\n{}", told(&card)))
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let missed: Vec<String> = missed.into_iter().flatten().collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test]
async fn a_participant_that_dies_of_one_check_is_there_for_the_next() {
    let only = ["huge-body", "slow-body", "cut-body"];
    let card = card(&[DiesOfAHugeBody], &only, Duration::from_secs(3)).await;
    assert_eq!(card.checks.len(), only.len());
    assert_eq!(card.failed(), ["huge-body"], "{}", told(&card));
}

#[test]
fn there_is_a_mistake_for_every_check_and_every_check_has_a_name_of_its_own() {
    let all: Vec<&str> = checks().map(|check| check.id).collect();
    let found: BTreeSet<&str> = FOUND_BY.iter().map(|(_, check)| *check).collect();
    assert_eq!(found, all.iter().copied().collect());
    assert_eq!(found.len(), all.len());
}

fn page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(name)).expect("the page is there");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_check_quotes_the_contract_to_the_letter() {
    let (api, rules) = (page("docs/API.md"), page("docs/RULES.md"));
    for check in checks() {
        let quoted = match check.source {
            Source::Api(sentence) => api.contains(sentence),
            Source::Rule(number, sentence) => {
                let rule = rules.split(&format!(" {number}. **")).nth(1).unwrap();
                let rule = rule.split(&format!(" {}. **", number + 1)).next().unwrap();
                // The heading of a rule is a sentence of it, too.
                format!("**{rule}").contains(sentence)
            }
            Source::Http(_) => true,
        };
        assert!(quoted, "{}: {}", check.id, check.source);
        assert!(!check.without_it.is_empty());
    }
}

#[test]
fn the_page_for_implementers_has_the_table_of_the_contract_and_each_check_with_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("the page is there");
    let (api, participants) = (read("API.md"), read("PARTICIPANTS.md"));
    let table = api
        .lines()
        .skip_while(|line| !line.starts_with("| the branch's row |"));
    let table: Vec<&str> = table.take_while(|line| line.starts_with('|')).collect();
    assert!(table.len() > 8);
    assert!(
        participants.contains(&table.join("\n")),
        "the state table differs"
    );
    let rows = participants
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let named: Vec<(&str, &str)> = rows
        .filter_map(|row| {
            Some((
                row.split_once('`')?.0,
                row.trim_end_matches(" |").rsplit_once(" | ")?.1,
            ))
        })
        .filter(|(name, _)| !name.starts_with("--"))
        .collect();
    for check in checks() {
        let told: Vec<&str> = named
            .iter()
            .filter(|(name, _)| *name == check.id)
            .map(|(_, costs)| *costs)
            .collect();
        assert_eq!(told, [check.without_it], "{}", check.id);
    }
    assert_eq!(
        named.len(),
        checks().count(),
        "a check is named that there is not"
    );
}
