//! Settings: flags win over environment over file. Parsed once, checked once.
//!
//! Every flag has an environment variable (`--admin-listen`, `UNANIMOUS_ADMIN_LISTEN`) and a key in the file
//! (`admin-listen = "127.0.0.1:7071"`). Participants given by flags replace those of
//! the environment; what they do not name is taken from the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use unanimous_protocol::id::{Node, ParticipantName};

use crate::{actors::registry::adoption::Adoption, courier::Endpoint};

/// The shortest retention. Nothing that is safe depends on it where one process owns the log. Where several share it, a
/// keyed record must not be forgotten while its own coordinator still repeats the write that it came from, not knowing
/// that it succeeded: its key could go to another transaction meanwhile. So in earnest it is longer than a write may
/// stay unclear; this floor is for tests.
const RETENTION_MIN: Duration = Duration::from_secs(1);

/// How often a coordinator marks in a shared log that it runs its node.
const MARK_EVERY: Duration = Duration::from_secs(2);

/// A node that was not marked for so long may be adopted: five marks are missing.
const UNSEEN_FOR: Duration = Duration::from_secs(10);

/// What `unanimous serve` is told.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// The decision log. A commit is a record in it, and nothing else [default: sqlite:unanimous.sqlite]
    ///
    /// A file, which this process alone owns, or postgres://USER:PASSWORD@HOST:PORT/DATABASE, which several coordinators may
    /// share, each with its own --node; directly, or through a pooler in session mode. The URL takes parameters, as in
    /// postgres://…/log?sslmode=verify-full&sslrootcert=/etc/ca.pem:
    ///
    /// sslmode: disable; prefer (default: TLS where the server has it); require (TLS, whoever answers); verify-ca (its
    /// certificate comes from a trusted CA); verify-full (and is for HOST). Across a network only verify-full keeps others
    /// from answering in the server's place.
    ///
    /// sslrootcert: a PEM file of CAs to trust besides the system's. sslcert, sslkey: this client's own.
    #[arg(
        long,
        env = "UNANIMOUS_LOG",
        value_name = "sqlite:PATH|postgres://…",
        hide_env_values = true
    )]
    pub log: Option<LogUrl>,
    /// Where clients and participants reach the API; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, env = "UNANIMOUS_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where health and readiness are asked, and participants registered [default: 127.0.0.1:7071]
    #[arg(long, env = "UNANIMOUS_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// This coordinator's number among those that share the log, 1 to 65535 [default: 1]
    #[arg(long, env = "UNANIMOUS_NODE", value_parser = clap::value_parser!(u16).range(1..))]
    pub node: Option<u16>,
    /// Take over the unfinished transactions of another node on this log that nobody runs any more: once it was last seen
    /// 10 s ago; until then, and whenever somebody runs it again, it is waited for. On SQLite a start takes every node's
    #[arg(
        long,
        env = "UNANIMOUS_ADOPT_NODE",
        value_name = "N",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub adopt_node: Vec<u16>,
    /// With --adopt-node: do not wait at start. A coordinator that runs the node all the same ends
    #[arg(long, env = "UNANIMOUS_FORCE")]
    pub force: bool,
    /// Between two marks that this coordinator runs its node. For tests
    #[arg(
        long,
        env = "UNANIMOUS_MARK_EVERY",
        value_name = "DURATION",
        hide = true
    )]
    pub mark_every: Option<humantime::Duration>,
    /// After which a node that was not marked counts as run by nobody. For tests, and the same for all on a log
    #[arg(
        long,
        env = "UNANIMOUS_UNSEEN_FOR",
        value_name = "DURATION",
        hide = true
    )]
    pub unseen_for: Option<humantime::Duration>,
    /// How long finished transactions and their idempotency keys are kept, from their finish, 1s at least. Longer than a client repeats a request, and than a write to the log may stay unclear: hours, not seconds [default: 168h]
    #[arg(long, env = "UNANIMOUS_RETENTION", value_name = "DURATION")]
    pub retention: Option<humantime::Duration>,
    /// How long running transactions are given to finish after SIGTERM [default: 10s]
    #[arg(long, env = "UNANIMOUS_GRACE", value_name = "DURATION")]
    pub grace: Option<humantime::Duration>,
    /// A participant and the base URL of its routes; may be repeated
    #[arg(
        long = "participant",
        env = "UNANIMOUS_PARTICIPANTS",
        value_name = "NAME=URL",
        value_delimiter = ','
    )]
    pub participants: Vec<NamedEndpoint>,
    /// A TOML file with the same settings under the flags' names, and a table `participants`
    #[arg(long, env = "UNANIMOUS_CONFIG", value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// The file: the flags' names as keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    log: Option<String>,
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    node: Option<u16>,
    #[serde(default)]
    adopt_node: Vec<u16>,
    #[serde(default)]
    force: bool,
    retention: Option<String>,
    grace: Option<String>,
    #[serde(default)]
    participants: BTreeMap<String, String>,
}

/// Settings that hold together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The decision log.
    pub log: LogUrl,
    /// The API's address.
    pub listen: SocketAddr,
    /// The admin listener's address.
    pub admin_listen: SocketAddr,
    /// This coordinator's node.
    pub node: Node,
    /// Nodes to take over, and when.
    pub adoption: Adoption,
    /// How long finished transactions are kept.
    pub retention: Duration,
    /// How long running transactions are given on SIGTERM.
    pub grace: Duration,
    /// Participants given at start.
    pub participants: BTreeMap<ParticipantName, Endpoint>,
}

/// Where a decision log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogUrl {
    /// A file that this process alone owns.
    Sqlite(PathBuf),
    /// A database that several coordinators may share.
    Postgres(PostgresUrl),
}

/// The URL of a Postgres database. It may hold a password, so it is printed without.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

/// A text that names no decision log.
#[derive(Debug, thiserror::Error)]
#[error(
    "a decision log is given as sqlite:PATH, for example sqlite:/var/lib/unanimous/log.sqlite, or as \
     postgres://USER:PASSWORD@HOST:PORT/DATABASE"
)]
pub struct InvalidLogUrl;

/// A text that begins like the URL of a Postgres database. It is not shown, for it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error(
    "the URL of the decision log can not be read as postgres://USER:PASSWORD@HOST:PORT/DATABASE; in a password, write \
     / as %2F, @ as %40 and : as %3A"
)]
pub struct InvalidPostgresUrl;

impl PostgresUrl {
    /// How to connect to it.
    ///
    /// # Errors
    /// When it is no such URL.
    pub fn options(&self) -> Result<PgConnectOptions, InvalidPostgresUrl> {
        if !self.0.contains("://") {
            return Err(InvalidPostgresUrl);
        }
        // The cause may repeat what is secret.
        self.0.parse().map_err(|_| InvalidPostgresUrl)
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(options) = self.options() else {
            return f.write_str("postgres://…");
        };
        match options.get_socket() {
            Some(socket) => write!(f, "postgres://{}/", socket.display())?,
            None => write!(
                f,
                "postgres://{}:{}/",
                options.get_host(),
                options.get_port()
            )?,
        }
        f.write_str(options.get_database().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LogUrl {
    type Err = InvalidLogUrl;

    fn from_str(text: &str) -> Result<Self, InvalidLogUrl> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => {
                Ok(Self::Sqlite(path.strip_prefix("//").unwrap_or(path).into()))
            }
            // Checked by `Settings::gather`: who parses a command line shows what it can not parse.
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(PostgresUrl(text.into()))),
            Some(_) | None => Err(InvalidLogUrl),
        }
    }
}

impl fmt::Display for LogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

/// `NAME=URL`
#[derive(Clone, Debug)]
pub struct NamedEndpoint(ParticipantName, Endpoint);

impl FromStr for NamedEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is not NAME=URL, for example east=http://127.0.0.1:8081/unanimous")
        })?;
        named_endpoint(name, url)
    }
}

fn named_endpoint(name: &str, url: &str) -> Result<NamedEndpoint, String> {
    let participant = name
        .parse()
        .map_err(|error| format!("participant {name:?}: {error}"))?;
    let endpoint = url
        .parse()
        .map_err(|error| format!("participant {name}, URL {url:?}: {error}"))?;
    Ok(NamedEndpoint(participant, endpoint))
}

/// Settings that do not hold together. The text says where, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// The file can not be read.
    #[error("the configuration file {path} can not be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file is not what it should be; the cause shows the line.
    #[error("the configuration file {path}:\n{cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        cause: String,
    },
    /// The decision log's URL is none.
    #[error(transparent)]
    Log(#[from] InvalidPostgresUrl),
    /// A coordinator runs its own node.
    #[error("--adopt-node {0} is this coordinator's own --node, which every start takes over")]
    AdoptsItself(Node),
    /// A participant is given twice with different URLs.
    #[error("participant {0} is given twice, with different URLs: keep one of them")]
    ParticipantTwice(ParticipantName),
    /// Less than the shortest one that is taken.
    #[error(
        "retention = {0}: at least 1s, and in earnest longer than any client repeats its request"
    )]
    RetentionTooShort(humantime::Duration),
}

impl Settings {
    /// Puts flags, environment and file together.
    ///
    /// # Errors
    /// When the file can not be read, or something in it is not what it should be.
    pub fn gather(args: ServeArgs) -> Result<Self, InvalidSettings> {
        let path = args.config.unwrap_or_default();
        let file = if path.as_os_str().is_empty() {
            File::default()
        } else {
            read(&path)?
        };
        let in_file = |cause: String| InvalidSettings::File {
            path: path.clone(),
            cause,
        };
        let mut participants = BTreeMap::new();
        for (name, url) in &file.participants {
            let NamedEndpoint(name, endpoint) = named_endpoint(name, url)
                .map_err(|error| in_file(format!("in [participants]: {error}")))?;
            participants.insert(name, endpoint);
        }
        let mut given = BTreeMap::new();
        for NamedEndpoint(name, endpoint) in args.participants {
            let earlier = given.insert(name.clone(), endpoint.clone());
            if earlier.is_some_and(|earlier| earlier != endpoint) {
                return Err(InvalidSettings::ParticipantTwice(name));
            }
        }
        participants.extend(given);
        let duration = |key: &str, text: Option<String>| {
            text.map(|text| {
                text.parse::<humantime::Duration>().map_err(|error| {
                    in_file(format!(
                        "{key} = {text:?}: {error}; write for example \"168h\""
                    ))
                })
            })
            .transpose()
        };
        let retention = args.retention.or(duration("retention", file.retention)?);
        if let Some(short) = retention.filter(|kept| **kept < RETENTION_MIN) {
            return Err(InvalidSettings::RetentionTooShort(short));
        }
        let grace = args.grace.or(duration("grace", file.grace)?);
        let log_in_file = file
            .log
            .map(|text| {
                text.parse()
                    .map_err(|error| in_file(format!("log = {text:?}: {error}")))
            })
            .transpose()?;
        if file.node == Some(0) || file.adopt_node.contains(&0) {
            return Err(in_file(
                "node = 0: nodes are numbered 1 to 65535".to_owned(),
            ));
        }
        let adopt = if args.adopt_node.is_empty() {
            file.adopt_node
        } else {
            args.adopt_node
        };
        let log = args
            .log
            .or(log_in_file)
            .unwrap_or(LogUrl::Sqlite("unanimous.sqlite".into()));
        if let LogUrl::Postgres(url) = &log {
            url.options()?;
        }
        let node = Node(args.node.or(file.node).unwrap_or(1));
        let adopt: BTreeSet<_> = adopt.into_iter().map(Node).collect();
        if adopt.contains(&node) {
            return Err(InvalidSettings::AdoptsItself(node));
        }
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self {
            log,
            listen: args.listen.or(file.listen).unwrap_or(local(7070)),
            admin_listen: args
                .admin_listen
                .or(file.admin_listen)
                .unwrap_or(local(7071)),
            node,
            adoption: Adoption {
                nodes: adopt,
                force: args.force || file.force,
                mark_every: args.mark_every.map_or(MARK_EVERY, Into::into),
                unseen_for: args.unseen_for.map_or(UNSEEN_FOR, Into::into),
            },
            retention: retention.map_or(Duration::from_secs(168 * 3600), Into::into),
            grace: grace.map_or(Duration::from_secs(10), Into::into),
            participants,
        })
    }
}

fn read(path: &PathBuf) -> Result<File, InvalidSettings> {
    let text = std::fs::read_to_string(path).map_err(|cause| InvalidSettings::Unreadable {
        path: path.clone(),
        cause,
    })?;
    // The error shows the line and, for an unknown key, the known ones.
    toml::from_str(&text).map_err(|error| InvalidSettings::File {
        path: path.clone(),
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, InvalidSettings> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unanimous.toml");
        std::fs::write(&path, text).unwrap();
        Settings::gather(ServeArgs {
            config: Some(path),
            ..ServeArgs::default()
        })
    }

    #[test]
    fn flags_win_over_the_file_and_participants_are_merged_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unanimous.toml");
        let text = "listen = \"127.0.0.1:1\"\nnode = 7\nretention = \"2h\"\n[participants]\n\
                    east = \"http://127.0.0.1:1/u\"\nwest = \"http://127.0.0.1:2/u\"\n";
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs {
            config: Some(path),
            node: Some(9),
            participants: vec!["east=http://127.0.0.1:3/u".parse().unwrap()],
            ..ServeArgs::default()
        };
        let settings = Settings::gather(args).unwrap();
        assert_eq!(settings.node, Node(9));
        assert_eq!(settings.listen.port(), 1);
        assert_eq!(settings.retention, Duration::from_secs(7200));
        let east: ParticipantName = "east".parse().unwrap();
        assert_eq!(
            settings.participants[&east],
            "http://127.0.0.1:3/u".parse().unwrap()
        );
        assert_eq!(settings.participants.len(), 2);
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_line_and_the_remedy() {
        for (text, says) in [
            (
                "lisen = \"127.0.0.1:1\"",
                &["line 1", "lisen", "listen"][..],
            ),
            ("\nlisten = 7", &["line 2", "listen"]),
            ("retention = \"soon\"", &["retention", "168h"]),
            ("retention = \"999ms\"", &["retention", "999ms", "1s"]),
            ("node = 0", &["node", "1 to 65535"]),
            (
                "log = \"mysql://x\"",
                &["log", "sqlite:PATH", "postgres://"],
            ),
            ("log = \"postgres://h:port/\"", &["log", "postgres://USER"]),
            (
                "[participants]\nEast = \"http://h/\"",
                &["participants", "East"],
            ),
            (
                "[participants]\neast = \"ftp://h/\"",
                &["participants", "east", "ftp"],
            ),
        ] {
            let error = file(text).unwrap_err().to_string();
            for word in says {
                assert!(
                    error.contains(word),
                    "{text:?} gives {error:?}, without {word:?}"
                );
            }
        }
    }

    #[test]
    fn the_password_of_a_log_is_never_printed() {
        for text in [
            "postgres://ann:secret@h/db",
            "postgresql://h:5433/db?user=ann&password=secret&sslmode=require",
            "postgres://ann:secret@h:port/db",
            "postgres://ann:sec/ret@h/db",
            "postgres:secret",
        ] {
            let url: LogUrl = text.parse().unwrap();
            let mut printed = format!("{url} {url:?}");
            match file(&format!("log = {text:?}")) {
                Ok(settings) => printed += &format!("{settings:?}"),
                Err(error) => printed += &format!("{error} {error:?}"),
            }
            for secret in ["secret", "sec/", "ret@"] {
                assert!(!printed.contains(secret), "{text} prints {printed}");
            }
        }
        let url: LogUrl = "postgres://ann:secret@h/db".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://h:5432/db");
    }

    #[test]
    fn other_nodes_are_adopted_and_never_the_own_one() {
        let adopting = |nodes: &str| file(&format!("node = 3\nadopt-node = [{nodes}]"));
        let settings = adopting("5, 2, 5").unwrap();
        assert_eq!(settings.adoption.nodes, [Node(2), Node(5)].into());
        assert!(!settings.adoption.force);
        for (wrong, says) in [("2, 3", "--adopt-node 3"), ("0", "1 to 65535")] {
            let error = adopting(wrong).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_participant_given_twice_with_different_urls_is_refused() {
        let args = |second: &str| ServeArgs {
            participants: vec!["east=http://h/a".parse().unwrap(), second.parse().unwrap()],
            ..ServeArgs::default()
        };
        assert!(Settings::gather(args("east=http://h/a")).is_ok());
        assert!(Settings::gather(args("east=http://h/b")).is_err());
    }
}
