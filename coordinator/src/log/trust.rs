//! Whether anything that a store says may still be believed.

use std::sync::OnceLock;

use super::LogError;

/// Lost with the first failure after which nothing may be: a failed fsync, damaged data. Every later call fails with it.
#[derive(Default)]
pub(super) struct Trust(OnceLock<String>);

impl Trust {
    /// From now on every call fails: the process is to end, and must not say anything on the way.
    pub(super) fn lose(&self, cause: String) {
        self.0.get_or_init(|| cause);
    }

    /// An error once it is lost.
    pub(super) fn check(&self) -> Result<(), LogError> {
        match self.0.get() {
            None => Ok(()),
            Some(cause) => Err(LogError::Broken(cause.clone().into())),
        }
    }

    /// Sorts an error, and remembers it if nothing may be believed any more.
    pub(super) fn noting<T>(&self, result: Result<T, impl Into<LogError>>) -> Result<T, LogError> {
        result
            .map_err(Into::into)
            .inspect_err(|error| self.mind(error))
    }

    /// Remembers the error if nothing may be believed any more.
    pub(super) fn mind(&self, error: &LogError) {
        if let LogError::Broken(cause) = error {
            self.lose(cause.to_string());
        }
    }
}
