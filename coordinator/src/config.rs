//! Settings: flags win over environment over file. Parsed once, checked once.
//!
//! Every flag has an environment variable (`--admin-listen`, `UNANIMOUS_ADMIN_LISTEN`) and a key in the file
//! (`admin-listen = "127.0.0.1:7071"`), and its help names both. Participants given by flags replace those of
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
use toml::{Spanned, de::DeTable};
use unanimous_protocol::id::{Node, ParticipantName};

use crate::{actors::registry::adoption::Adoption, courier::Endpoint, telemetry::LogFormat};

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
    /// The decision log, a file or a database. A transaction is committed by its record in it, and by nothing else: keep
    /// it on a disk that keeps what it acknowledged [default: sqlite:unanimous.sqlite] [file: log]
    ///
    /// A file is owned by this process alone. postgres://USER:PASSWORD@HOST:PORT/DATABASE may be shared by several
    /// coordinators, each with its own --node; directly, or through a pooler in session mode. The URL takes parameters, as
    /// in postgres://…/log?sslmode=verify-full&sslrootcert=/etc/ca.pem:
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
    /// Where clients and participants reach the API; port 0 takes a free one, and the line `ready listen=…` tells which
    /// [default: 127.0.0.1:7070] [file: listen]
    #[arg(long, env = "UNANIMOUS_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where health and readiness are asked, and participants registered. It has no login: keep it off public networks
    /// [default: 127.0.0.1:7071] [file: admin-listen]
    #[arg(long, env = "UNANIMOUS_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// This coordinator's number among those that share the log, 1 to 65535; two never have the same at one time
    /// [default: 1] [file: node]
    #[arg(long, env = "UNANIMOUS_NODE", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub node: Option<u16>,
    /// Take over the unfinished transactions of another node on this log that nobody runs any more: once it was last seen
    /// 10 s ago; until then, and whenever somebody runs it again, it is waited for. On SQLite a start takes every node's
    /// [file: adopt-node]
    #[arg(
        long,
        env = "UNANIMOUS_ADOPT_NODE",
        value_name = "N",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub adopt_node: Vec<u16>,
    /// With --adopt-node: do not wait at start. A coordinator that runs the node all the same ends
    /// [file: force]
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
    /// How long finished transactions and their idempotency keys are kept, from their finish; 1s at least. Longer than a
    /// client repeats a request, and than a write to the log may stay unclear: hours, not seconds
    /// [default: 168h] [file: retention]
    #[arg(long, env = "UNANIMOUS_RETENTION", value_name = "DURATION")]
    pub retention: Option<humantime::Duration>,
    /// How long running transactions are given to finish after SIGTERM; what is undecided then is aborted
    /// [default: 10s] [file: grace]
    #[arg(long, env = "UNANIMOUS_GRACE", value_name = "DURATION")]
    pub grace: Option<humantime::Duration>,
    /// A participant and the base URL of its routes; may be repeated, and in the environment separated by commas. One
    /// given here is not changed by `PUT /admin/v1/participants` [file: table participants]
    #[arg(
        long = "participant",
        env = "UNANIMOUS_PARTICIPANTS",
        value_name = "NAME=URL",
        value_delimiter = ','
    )]
    pub participants: Vec<NamedEndpoint>,
    /// How the log lines on standard error are written: `text` for people, `json` for programs, an object in each line
    /// with the same fields. RUST_LOG says which, as in RUST_LOG=debug [default: text] [file: log-format]
    #[arg(long, env = "UNANIMOUS_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<LogFormat>,
    /// A TOML file with the same settings, under the names given here as `file`
    #[arg(long, env = "UNANIMOUS_CONFIG", value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// What the end of `serve --help` shows: the file, whole.
pub const SERVE_EXAMPLES: &str = "\
Durations are numbers with a unit: 500ms, 10s, 5m, 168h. A flag wins over its environment variable, and that over the
file; participants are put together by name.

Examples:
  unanimous serve --log sqlite:/var/lib/unanimous/log.sqlite \\
    --participant east=http://east.internal:8081/unanimous --participant west=http://west.internal:8082/unanimous

  unanimous serve --config /etc/unanimous.toml

where /etc/unanimous.toml holds:
  log = \"sqlite:/var/lib/unanimous/log.sqlite\"
  listen = \"0.0.0.0:7070\"
  retention = \"168h\"
  log-format = \"json\"
  [participants]
  east = \"http://east.internal:8081/unanimous\"
  west = \"http://west.internal:8082/unanimous\"

Exit codes: 0 stopped as asked, 1 could not start, 2 wrong arguments, 3 fenced: another coordinator has its place.";

/// The keys of the file, each with how it is written.
const KEYS: [(&str, &str); 10] = [
    ("log", "log = \"sqlite:/var/lib/unanimous/log.sqlite\""),
    ("listen", "listen = \"127.0.0.1:7070\""),
    ("admin-listen", "admin-listen = \"127.0.0.1:7071\""),
    ("node", "node = 1"),
    ("adopt-node", "adopt-node = [2]"),
    ("force", "force = true"),
    ("retention", "retention = \"168h\""),
    ("grace", "grace = \"10s\""),
    ("log-format", "log-format = \"json\""),
    (
        "participants",
        "[participants]\neast = \"http://127.0.0.1:8081/unanimous\"",
    ),
];

/// The file: the flags' names as keys. Texts are parsed later, so that what is wrong with one is said with its place.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    log: Option<Spanned<String>>,
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    node: Option<Spanned<u16>>,
    adopt_node: Option<Spanned<Vec<u16>>>,
    #[serde(default)]
    force: bool,
    retention: Option<Spanned<String>>,
    grace: Option<Spanned<String>>,
    log_format: Option<Spanned<String>>,
    #[serde(default)]
    participants: BTreeMap<String, Spanned<String>>,
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
    /// How log lines are written.
    pub log_format: LogFormat,
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
    /// The file is not what it should be. Its lines are not shown: they may hold a password.
    #[error("{path}:{line}:{column}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What, and what to write instead.
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
        let (read, file) = match args.config {
            Some(path) if !path.as_os_str().is_empty() => Read::file(path)?,
            Some(_) | None => (Read::default(), File::default()),
        };
        let mut participants = BTreeMap::new();
        for (name, url) in &file.participants {
            let named = named_endpoint(name, url.get_ref());
            let NamedEndpoint(name, endpoint) =
                named.map_err(|error| read.wrong(url, "participants", &error))?;
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
        let retention_in_file = read.parse::<humantime::Duration>("retention", &file.retention)?;
        let too_short = |kept: &humantime::Duration| **kept < RETENTION_MIN;
        if let (Some(place), Some(short)) = (&file.retention, retention_in_file.filter(too_short)) {
            let cause = InvalidSettings::RetentionTooShort(short);
            return Err(read.wrong(place, "retention", &cause.to_string()));
        }
        let retention = args.retention.or(retention_in_file);
        if let Some(short) = retention.filter(too_short) {
            return Err(InvalidSettings::RetentionTooShort(short));
        }
        let grace = args.grace.or(read.parse("grace", &file.grace)?);
        let log_format = args
            .log_format
            .or(read.parse("log-format", &file.log_format)?);
        let log_in_file: Option<LogUrl> = read.parse("log", &file.log)?;
        if let (Some(place), Some(LogUrl::Postgres(url))) = (&file.log, &log_in_file) {
            let options = url.options();
            options.map_err(|error| read.wrong(place, "log", &error.to_string()))?;
        }
        if let Some(place) = file.node.as_ref().filter(|node| *node.get_ref() == 0) {
            return Err(read.wrong(place, "node", "nodes are numbered 1 to 65535"));
        }
        let zero = |nodes: &&Spanned<Vec<u16>>| nodes.get_ref().contains(&0);
        if let Some(place) = file.adopt_node.as_ref().filter(zero) {
            return Err(read.wrong(place, "adopt-node", "nodes are numbered 1 to 65535"));
        }
        let adopt = if args.adopt_node.is_empty() {
            file.adopt_node.map(Spanned::into_inner).unwrap_or_default()
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
        let in_file = file.node.map(Spanned::into_inner);
        let node = Node(args.node.or(in_file).unwrap_or(1));
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
            log_format: log_format.unwrap_or_default(),
        })
    }
}

/// A configuration file as text, to say where in it something is.
#[derive(Default)]
struct Read {
    path: PathBuf,
    text: String,
}

impl Read {
    fn file(path: PathBuf) -> Result<(Self, File), InvalidSettings> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) => return Err(InvalidSettings::Unreadable { path, cause }),
        };
        let read = Self { path, text };
        let table = DeTable::parse(&read.text);
        let table = table.map_err(|error| read.at(error.span(), error.message().to_owned()))?;
        for key in table.get_ref().keys() {
            if !KEYS.iter().any(|(known, _)| known == key.get_ref()) {
                return Err(read.at(Some(key.span()), unknown_key(key.get_ref())));
            }
        }
        let file = toml::from_str(&read.text).map_err(|error| {
            let begins = error.span().map_or(0, |span| span.start);
            let before = table.get_ref().keys();
            let before = before.filter(|key| key.span().start <= begins);
            let key = before.max_by_key(|key| key.span().start);
            let key = key.map(|key| key.get_ref().to_string());
            let cause = error.message().trim_end().to_owned();
            read.at(error.span(), with_remedy(&cause, key.as_deref()))
        })?;
        Ok((read, file))
    }

    fn at(&self, span: Option<std::ops::Range<usize>>, cause: String) -> InvalidSettings {
        let begins = span.map_or(0, |span| span.start);
        let before = self.text.get(..begins).unwrap_or_default();
        let line_begins = before.rfind('\n').map_or(0, |at| at + 1);
        InvalidSettings::File {
            path: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_begins..].chars().count() + 1,
            cause,
        }
    }

    /// What is wrong with the value of this key.
    fn wrong<T>(&self, value: &Spanned<T>, key: &str, cause: &str) -> InvalidSettings {
        let cause = format!("{key}: {cause}");
        self.at(Some(value.span()), with_remedy(&cause, Some(key)))
    }

    fn parse<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        value: &Option<Spanned<String>>,
    ) -> Result<Option<T>, InvalidSettings> {
        let parsed = value.as_ref().map(|value| {
            let parsed = value.get_ref().parse();
            parsed.map_err(|error: T::Err| self.wrong(value, key, &error.to_string()))
        });
        parsed.transpose()
    }
}

fn with_remedy(cause: &str, key: Option<&str>) -> String {
    let known = KEYS.iter().find(|(known, _)| Some(*known) == key);
    match known {
        Some((_, example)) => {
            format!(
                "{cause}; write for example: {}",
                example.replace('\n', " then ")
            )
        }
        None => cause.to_owned(),
    }
}

fn unknown_key(key: &str) -> String {
    let nearest = KEYS
        .iter()
        .map(|(known, _)| (strsim::damerau_levenshtein(key, known), known))
        .min();
    match nearest {
        // Further away it is another word, and to name one would mislead.
        Some((distance, known)) if distance <= known.len().max(key.len()) / 2 => {
            format!("there is no key {key:?}; is {known:?} meant?")
        }
        _ => {
            let known: Vec<&str> = KEYS.iter().map(|(known, _)| *known).collect();
            format!("there is no key {key:?}; there are {}", known.join(", "))
        }
    }
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
    fn a_wrong_file_is_refused_with_its_place_and_the_remedy() {
        for (text, place, says) in [
            (
                "lisen = \"127.0.0.1:1\"",
                "1:1",
                &["\"lisen\"", "is \"listen\" meant?"][..],
            ),
            (
                "node = 2\n  admin_listen = \"127.0.0.1:1\"",
                "2:3",
                &["is \"admin-listen\" meant?"],
            ),
            (
                "loglevel = 1",
                "1:1",
                &["\"loglevel\"", "there are log, listen,"],
            ),
            (
                "colour = \"red\"",
                "1:1",
                &["\"colour\"", "there are log, listen,"],
            ),
            ("[server]\nlisten = \"127.0.0.1:1\"", "1:2", &["\"server\""]),
            (
                "\nlisten = 7",
                "2:10",
                &["integer `7`", "listen = \"127.0.0.1:7070\""],
            ),
            (
                "listen = \"nowhere\"",
                "1:10",
                &["socket address", "listen = \"127.0.0.1:7070\""],
            ),
            ("listen = \"127.0.0.1:1", "1:", &["string"]),
            ("node = 1\nnode = 2", "2:1", &["duplicate"]),
            ("node = \"1\"", "1:8", &["node = 1"]),
            ("node = 65536", "1:8", &["65536", "node = 1"]),
            ("node = 0", "1:8", &["node", "1 to 65535"]),
            (
                "retention = \"soon\"",
                "1:13",
                &["retention", "retention = \"168h\""],
            ),
            ("retention = \"999ms\"", "1:13", &["999ms", "at least 1s"]),
            (
                "# é\n\n grace = \"1 parsec\"",
                "3:10",
                &["grace", "grace = \"10s\""],
            ),
            ("log-format = \"xml\"", "1:14", &["text or json"]),
            (
                "log = \"mysql://u:secret@x\"",
                "1:7",
                &["sqlite:PATH", "postgres://"],
            ),
            ("log = \"postgres://h:port/\"", "1:7", &["postgres://USER"]),
            (
                "[participants]\nEast = \"http://h/\"",
                "2:8",
                &["East", "lower-case"],
            ),
            (
                "[participants]\neast = \"ftp://h/\"",
                "2:8",
                &["east", "ftp", "http"],
            ),
            (
                "[participants]\neast = 7",
                "2:8",
                &["integer `7`", "[participants]"],
            ),
        ] {
            let error = file(text).unwrap_err().to_string();
            let place = format!("unanimous.toml:{place}");
            for word in says.iter().chain([&place.as_str()]) {
                assert!(
                    error.contains(word),
                    "{text:?} gives {error:?}, without {word:?}"
                );
            }
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn every_known_key_is_taken_as_its_example_writes_it() {
        for (key, example) in KEYS {
            assert!(file(example).is_ok(), "{key}");
        }
        let together: Vec<&str> = KEYS.iter().map(|(_, example)| *example).collect();
        file(&together.join("\n")).unwrap();
    }

    #[test]
    fn every_flag_of_serve_names_its_environment_variable_and_its_key_in_the_file() {
        let serve = ServeArgs::augment_args(clap::Command::new("serve"));
        let mut keys = 0;
        for flag in serve
            .get_arguments()
            .filter(|flag| flag.get_id() != "config" && !flag.is_hide_set())
        {
            let long = flag.get_long().unwrap();
            let help = flag.get_help().unwrap().to_string();
            let environment = flag.get_env().unwrap().to_str().unwrap();
            let (key, variable) = match long {
                "participant" => ("table participants", "UNANIMOUS_PARTICIPANTS".to_owned()),
                _ => (
                    long,
                    format!("UNANIMOUS_{}", long.replace('-', "_").to_uppercase()),
                ),
            };
            assert_eq!(environment, variable);
            assert!(help.contains(&format!("[file: {key}]")), "--{long}: {help}");
            let key = key.trim_start_matches("table ");
            assert!(KEYS.iter().any(|(known, _)| *known == key), "{key}");
            keys += 1;
        }
        assert_eq!(keys, KEYS.len());
    }

    #[test]
    fn the_file_that_the_help_shows_is_one() {
        let (_, shown) = SERVE_EXAMPLES.split_once("holds:\n").unwrap();
        let (shown, _) = shown.split_once("\n\n").unwrap();
        let settings = file(shown).unwrap();
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.participants.len(), 2);
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
