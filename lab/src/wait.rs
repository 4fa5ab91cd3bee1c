//! Waiting for a condition, never for a time.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep, timeout_at};

/// How long one look is apart from the next. Short beside what is waited for, long beside a look.
const PAUSE: Duration = Duration::from_millis(10);

/// What one look at the world returned: the value waited for, or what was seen instead.
pub trait Seen {
    /// What the wait ends with.
    type Value;

    /// The value, or a text that says what was there in its place.
    fn seen(self) -> Result<Self::Value, String>;
}

impl<T> Seen for Option<T> {
    type Value = T;

    fn seen(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Seen for Result<T, E> {
    type Value = T;

    fn seen(self) -> Result<T, String> {
        // `#` makes `anyhow` print the causes as well; others ignore it.
        self.map_err(|error| format!("{error:#}"))
    }
}

impl Seen for bool {
    type Value = ();

    fn seen(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("false".to_owned())
        }
    }
}

/// Looks again and again until `look` returns a value. After `timeout` it fails, naming `what` was
/// waited for and what was seen last.
///
/// `look` returns `bool`, `Option<T>`, or `Result<T, E>` whose error says what is there instead: an
/// error only means *not yet*. A look that hangs (a paused server does not answer) counts as the
/// last thing seen.
pub async fn until<S: Seen>(
    what: &str,
    timeout: Duration,
    mut look: impl AsyncFnMut() -> S,
) -> anyhow::Result<S::Value> {
    let deadline = Instant::now() + timeout;
    let mut last = "nothing, the first look did not return".to_owned();
    loop {
        match timeout_at(deadline, look()).await.map(Seen::seen) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen,
            Err(_) => {
                bail!("{what}: not within {timeout:?}; last seen, before a look that hung: {last}")
            }
        }
        if Instant::now() + PAUSE > deadline {
            bail!("{what}: not within {timeout:?}; last seen: {last}");
        }
        sleep(PAUSE).await;
    }
}
