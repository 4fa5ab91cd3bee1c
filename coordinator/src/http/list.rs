//! `GET /v1/transactions`: the history, and what is under way.
//!
//! Two lists in one order are merged: what this coordinator has in memory, and what the log holds. Memory is read first
//! (design rule 3): what leaves it meanwhile has a record. What is in both is shown as memory has it.

use std::collections::{HashSet, VecDeque};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use unanimous_protocol::{
    id::TransactionId,
    record::{Record, WallMillis},
    wire::{TransactionList, TransactionView},
};

use super::{body::Query, problem::ApiProblem};
use crate::{
    actors::{
        Address,
        registry::{
            Find, Found, Registry,
            listing::{History, InMemory},
        },
        transaction::{ShowInList, TransactionActor},
    },
    log::{Filter, Position},
};

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// Labels asked for at once: as many as a transaction may have.
const LABELS_MAX: usize = 16;
/// Live transactions that are asked at once.
const ASKED_AT_ONCE: usize = 256;

fn invalid(text: impl std::fmt::Display) -> ApiProblem {
    ApiProblem::InvalidRequest(format!("in the query: {text}"))
}

/// `GET /v1/transactions`
pub async fn list(
    request: HttpRequest,
    registry: Data<Address<Registry>>,
) -> Result<HttpResponse, ApiProblem> {
    let has = [
        "state",
        "outcome",
        "participant",
        "idempotency_key",
        "in_doubt",
        "limit",
        "after",
    ];
    let query = Query::with_repeated(&request, &has, "label")?;
    let filter = filter(&query)?;
    let limit = query.member("limit")?.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid(format!("limit: must be 1 to {LIMIT_MAX}")));
    }
    let after: Option<String> = query.member("after")?;
    let after = after.map(|text| {
        position(&text).ok_or_else(|| {
            invalid("after: no cursor of this list; take it from `next` of the page before")
        })
    });
    let page = page(&registry, filter, after.transpose()?, limit).await?;
    Ok(HttpResponse::Ok().json(page))
}

fn filter(query: &Query) -> Result<Filter, ApiProblem> {
    let labels = query.repeated();
    if labels.len() > LABELS_MAX {
        return Err(invalid(format!("label: more than {LABELS_MAX} of them")));
    }
    let label = |text: &String| match text.split_once(':') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(invalid("label: must be key:value")),
    };
    let states = "active, preparing, deciding, committing, committed, aborting or aborted";
    Ok(Filter {
        state: word(query, "state", states)?,
        outcome: word(query, "outcome", "committed or aborted")?,
        participant: query.member("participant")?,
        idempotency_key: query.member("idempotency_key")?,
        labels: labels.iter().map(label).collect::<Result<_, _>>()?,
        in_doubt: word_or_bool(query)?,
    })
}

/// A member that is one of the wire's words.
fn word<T: DeserializeOwned>(
    query: &Query,
    name: &str,
    words: &str,
) -> Result<Option<T>, ApiProblem> {
    let text: Option<String> = query.member(name)?;
    let parsed = text.map(|text| serde_json::from_value(text.into()));
    parsed
        .transpose()
        .map_err(|_| invalid(format!("{name}: must be {words}")))
}

fn word_or_bool(query: &Query) -> Result<Option<bool>, ApiProblem> {
    let text: Option<String> = query.member("in_doubt")?;
    let parsed = text.map(|text| text.parse());
    parsed
        .transpose()
        .map_err(|_| invalid("in_doubt: must be true or false"))
}

/// The cursor: the place of the last transaction of a page.
fn cursor(position: Position) -> String {
    let Position { created_at, id } = position;
    let id = u128::from_be_bytes(id.to_bytes());
    format!("{:016x}{id:032x}", created_at.0)
}

fn position(cursor: &str) -> Option<Position> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if cursor.len() != 48 || !cursor.bytes().all(digit) {
        return None;
    }
    let created_at = u64::from_str_radix(&cursor[..16], 16).ok()?;
    let id = u128::from_str_radix(&cursor[16..], 16).ok()?;
    Some(Position {
        created_at: WallMillis(created_at.cast_signed()),
        id: TransactionId::from_bytes(id.to_be_bytes()).ok()?,
    })
}

type Entry = (Position, TransactionView);

async fn page(
    registry: &Address<Registry>,
    filter: Filter,
    after: Option<Position>,
    limit: u32,
) -> Result<TransactionList, ApiProblem> {
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut live = Live::of(registry, after).await?;
    let mut log = Recorded {
        next: VecDeque::new(),
        after,
        is_read: false,
    };
    let mut found: Vec<Entry> = Vec::new();
    // One more than the page holds tells that there is another page.
    while found.len() <= wanted {
        live.fill(registry, &filter).await?;
        log.fill(registry, &filter, limit + 1, &live.ids).await?;
        let newer = match (live.next.front(), log.next.front()) {
            (Some((live, _)), Some((recorded, _))) if live < recorded => &mut log.next,
            (Some(_), _) => &mut live.next,
            (None, _) => &mut log.next,
        };
        match newer.pop_front() {
            Some(entry) => found.push(entry),
            None => break,
        }
    }
    let is_more = found.len() > wanted;
    found.truncate(wanted);
    let next = found.last().filter(|_| is_more);
    Ok(TransactionList {
        next: next.map(|(position, _)| cursor(*position)),
        transactions: found.into_iter().map(|(_, view)| view).collect(),
    })
}

/// What is in memory.
struct Live {
    ids: HashSet<TransactionId>,
    /// Not asked yet.
    waiting: VecDeque<(Position, Address<TransactionActor>)>,
    next: VecDeque<Entry>,
}

impl Live {
    async fn of(registry: &Address<Registry>, after: Option<Position>) -> Result<Self, ApiProblem> {
        let live = registry.send(InMemory { after }).await;
        let waiting = live.ok().flatten().ok_or(ApiProblem::LogUnavailable)?;
        Ok(Self {
            ids: waiting.iter().map(|(position, _)| position.id).collect(),
            waiting: waiting.into(),
            next: VecDeque::new(),
        })
    }

    /// Asks until there is an entry, or nobody left to ask.
    async fn fill(
        &mut self,
        registry: &Address<Registry>,
        filter: &Filter,
    ) -> Result<(), ApiProblem> {
        while self.next.is_empty() && !self.waiting.is_empty() {
            let asked = self.waiting.len().min(ASKED_AT_ONCE);
            let asked: Vec<_> = self.waiting.drain(..asked).collect();
            let shown = join_all(asked.iter().map(|(_, actor)| actor.send(ShowInList))).await;
            for ((position, _), shown) in asked.into_iter().zip(shown) {
                match shown {
                    Ok((view, in_doubt)) if filter.takes(&view, in_doubt) => {
                        self.next.push_back((position, view));
                    }
                    Ok(_) => {}
                    // It left memory in between: its record answers, unless that is forgotten by now.
                    Err(_) => match registry.send(Find(position.id)).await {
                        Ok(Found::Recorded(record)) if filter.takes_record(&record) => {
                            self.next.push_back(entry(&record));
                        }
                        Ok(Found::Recorded(_) | Found::Judged(_) | Found::Live(_)) => {}
                        Ok(Found::LogUnavailable | Found::Frozen) | Err(_) => {
                            return Err(ApiProblem::LogUnavailable);
                        }
                    },
                }
            }
        }
        Ok(())
    }
}

/// What is in the log.
struct Recorded {
    next: VecDeque<Entry>,
    after: Option<Position>,
    /// To its end.
    is_read: bool,
}

impl Recorded {
    /// Reads until there is an entry that memory does not have, or the end.
    async fn fill(
        &mut self,
        registry: &Address<Registry>,
        filter: &Filter,
        limit: u32,
        in_memory: &HashSet<TransactionId>,
    ) -> Result<(), ApiProblem> {
        while self.next.is_empty() && !self.is_read {
            let history = History {
                filter: filter.clone(),
                after: self.after,
                limit,
            };
            let records = registry.send(history).await.ok().flatten();
            let records = records.ok_or(ApiProblem::LogUnavailable)?;
            self.is_read = records.len() < usize::try_from(limit).unwrap_or(usize::MAX);
            if let Some(last) = records.last() {
                self.after = Some(Position::of(&last.header));
            }
            let elsewhere = records
                .iter()
                .filter(|record| !in_memory.contains(&record.header.id));
            self.next.extend(elsewhere.map(entry));
        }
        Ok(())
    }
}

fn entry(record: &Record) -> Entry {
    (
        Position::of(&record.header),
        TransactionView::of_record(record),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let id = "00000001-0001-8000-8000-100000000001".parse().unwrap();
        for at in [0, 1_795_267_820_123, -1, i64::MAX, i64::MIN] {
            let place = Position {
                created_at: WallMillis(at),
                id,
            };
            let text = cursor(place);
            assert_eq!(position(&text), Some(place));
            let no_id = format!("{}{}", &text[..16], "0".repeat(32));
            let longer = format!("{text}0");
            for wrong in ["", &text[1..], &longer, &text.to_uppercase(), &no_id] {
                // Digits alone have no upper case.
                assert!(wrong == text || position(wrong).is_none(), "{wrong}");
            }
        }
    }
}
