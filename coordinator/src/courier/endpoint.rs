//! Where a participant listens.

use std::{fmt, str::FromStr, sync::Arc};

use reqwest::Url;

use super::announced::Announced;

/// A participant's base URL, checked. It comes from the participant registry and from nowhere else (design rule 19).
#[derive(Clone)]
pub struct Endpoint {
    /// Without a slash at its end.
    base: Arc<str>,
    /// What is known of whoever listens there: no part of the address.
    announced: Arc<Announced>,
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Not a URL.
    #[error("not a URL such as http://127.0.0.1:8081/unanimous: {0}")]
    Url(String),
    /// Another scheme.
    #[error("the scheme must be http or https, not {0:?}")]
    Scheme(String),
    /// A user or a password.
    #[error("a participant's URL must not hold a user or a password: it is shown and logged")]
    Credentials,
    /// A query or a fragment.
    #[error("a participant's URL must not have a query or a fragment: routes are appended to it")]
    Tail,
}

impl Endpoint {
    /// The base URL, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.base
    }

    /// What whoever listens there has announced.
    pub(super) fn announced(&self) -> &Announced {
        &self.announced
    }

    /// A route below it; begins with a slash.
    pub(super) fn route(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.base == other.base
    }
}

impl Eq for Endpoint {}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        // The parser drops these silently; what is called should be what was written.
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidEndpoint::Url("it has white space in it".into()));
        }
        let url = Url::parse(text).map_err(|error| InvalidEndpoint::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidEndpoint::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidEndpoint::Tail);
        }
        Ok(Self {
            base: url.as_str().trim_end_matches('/').into(),
            announced: Arc::default(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_appended_to_the_base_with_or_without_its_slash() {
        for (text, route) in [
            ("http://east:8081", "http://east:8081/v1/commit"),
            ("http://east:8081/", "http://east:8081/v1/commit"),
            ("HTTP://East/unanimous//", "http://east/unanimous/v1/commit"),
            (
                "https://[::1]:8443/a%20b",
                "https://[::1]:8443/a%20b/v1/commit",
            ),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.route("/v1/commit"), route);
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        }
    }

    #[test]
    fn what_should_not_be_called_is_refused() {
        assert!(matches!(
            "east".parse::<Endpoint>(),
            Err(InvalidEndpoint::Url(_))
        ));
        assert!(matches!(
            "".parse::<Endpoint>(),
            Err(InvalidEndpoint::Url(_))
        ));
        assert!(matches!(
            "http://".parse::<Endpoint>(),
            Err(InvalidEndpoint::Url(_))
        ));
        for spaced in [" http://east", "http://east/ ", "http://ea\tst"] {
            assert!(matches!(
                spaced.parse::<Endpoint>(),
                Err(InvalidEndpoint::Url(_))
            ));
        }
        for scheme in [
            "ftp://east",
            "file:///etc/passwd",
            "unix:/run/east.sock",
            "east:8081",
        ] {
            assert!(matches!(
                scheme.parse::<Endpoint>(),
                Err(InvalidEndpoint::Scheme(_))
            ));
        }
        for credentials in [
            "http://me@east",
            "http://me:secret@east",
            "http://:secret@east",
        ] {
            assert_eq!(
                credentials.parse::<Endpoint>(),
                Err(InvalidEndpoint::Credentials)
            );
        }
        for tail in [
            "http://east?a=b",
            "http://east/?",
            "http://east#",
            "http://east/#top",
        ] {
            assert_eq!(tail.parse::<Endpoint>(), Err(InvalidEndpoint::Tail));
        }
    }
}
