//! What the pages tell a reader to type is typed here, to the letter, at real programs, and has to give what they show.
//!
//! Only *where* things are differs ([`Surroundings::elsewhere`]): ports, the programs' path, the database server. Every
//! block of `sh` on a page is run. One that can not be is named here with the reason, and a name that no block has any
//! more fails too: so pages and tests keep each other honest.

use std::path::Path;

use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Options, ports};

use crate::support::SOON;
use crate::support::coordinator::{BANK, BINARY, client};
use crate::support::page::{Block, Shell, Shows, blocks, substituted};

/// How a block is run that does not end by itself, or is not run.
#[derive(Clone, Copy, Debug)]
enum Treated {
    /// It runs until the reader ends it; what comes next waits until these say that they are ready.
    Serves(&'static [&'static str]),
    /// Not run, for this reason.
    Exempt(&'static str),
}

/// Blocks by the text they begin with.
type Known = &'static [(&'static str, Treated)];

/// The set-up of `README.md`, which the other pages build on.
const BY_HAND: &str = "cargo build --workspace --bins";

/// Its servers.
const READY: &[&str] = &[
    "http://127.0.0.1:7071/readyz",
    "http://127.0.0.1:8081/readyz",
    "http://127.0.0.1:8082/readyz",
];

const OPERATIONS: Known = &[(
    "unanimous serve --log postgres://",
    Treated::Serves(&["http://127.0.0.1:7081/readyz"]),
)];

const PARTICIPANTS: Known = &[(
    "cat >restart.sh",
    Treated::Exempt("a test of its own runs all checks, with such a script: it takes a minute"),
)];

const README: Known = &[
    (
        "make demo",
        Treated::Exempt("a test of its own runs the demo, and `make test` runs this one"),
    ),
    (BY_HAND, Treated::Serves(READY)),
    (
        "target/debug/unanimous-lab demo --log postgres",
        Treated::Exempt("`demo.rs` runs the demo with each of these flags"),
    ),
];

fn read_page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(name)).expect("the page is there")
}

fn page(name: &str) -> Vec<Block> {
    let blocks = blocks(&read_page(name));
    assert!(!blocks.is_empty(), "{name} has nothing to type");
    blocks
}

/// Where a reader has what the pages name.
struct Surroundings {
    shell: Shell,
    elsewhere: Vec<(&'static str, String)>,
    _cluster: Cluster,
}

impl Surroundings {
    async fn new() -> Self {
        let cluster = Cluster::start(&Options::default()).await;
        let cluster = cluster.expect("a database server");
        let port = || ports::free().expect("a port").to_string();
        let elsewhere = vec![
            // Built by whoever runs the tests.
            ("cargo build --workspace --bins", ":".to_owned()),
            ("target/debug/unanimous", BINARY.to_owned()),
            ("target/debug/bank", BANK.to_owned()),
            (
                "postgres://postgres:secret@localhost",
                format!("postgres://postgres@127.0.0.1:{}", cluster.port()),
            ),
            ("7070", port()),
            ("7071", port()),
            ("7080", port()),
            ("7081", port()),
            ("8081", port()),
            ("8082", port()),
        ];
        // The pages leave these to their defaults, which only one program on a machine can have.
        let environment = [
            ("UNANIMOUS_LISTEN", "127.0.0.1:7070"),
            ("UNANIMOUS_ADMIN_LISTEN", "127.0.0.1:7071"),
        ]
        .map(|(name, address)| (name, substituted(address, &elsewhere)));
        let mut shell = Shell::start(&environment);
        shell.install("unanimous", BINARY);
        // Built with all programs, beside ours.
        let lab = Path::new(BINARY).with_file_name("unanimous-lab");
        shell.install("unanimous-lab", lab.to_str().expect("a path in UTF-8"));
        Self {
            shell,
            elsewhere,
            _cluster: cluster,
        }
    }

    fn here(&self, text: &str) -> String {
        substituted(text, &self.elsewhere)
    }

    async fn are_ready(&self, urls: &[&str]) {
        let client = client();
        for url in urls {
            let url = self.here(url);
            until(&format!("{url} answers"), SOON, async || {
                let answer = client.get(&url).send().await?;
                answer.error_for_status().map(drop)
            })
            .await
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.shell.output()));
        }
    }

    /// Runs the blocks of a page in their order.
    async fn run(&mut self, name: &str, blocks: &[Block], known: Known) {
        for (begins, _) in known {
            let found = blocks.iter().any(|block| block.text.starts_with(begins));
            assert!(found, "{name} has no block that begins with {begins:?}");
        }
        let mut wrong = Vec::new();
        for block in blocks {
            let place = format!("{name}:{}", block.line);
            let treated = known
                .iter()
                .find(|(begins, _)| block.text.starts_with(begins));
            match treated {
                Some((_, Treated::Exempt(reason))) => assert!(!reason.is_empty()),
                Some((_, Treated::Serves(urls))) => {
                    self.shell.serve(&self.here(&block.text));
                    self.are_ready(urls).await;
                }
                None => wrong.extend(self.run_one(&place, block).await.err()),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    async fn run_one(&mut self, place: &str, block: &Block) -> Result<(), String> {
        let ran = self.shell.run(&self.here(&block.text)).await;
        let wrong =
            |why: &str| format!("{place}: {why}\n{}{}{}", block.text, ran.stdout, ran.stderr);
        if ran.status != "0" {
            return Err(wrong(&format!("status {}", ran.status)));
        }
        let shows = match &block.shows {
            None => return Ok(()),
            Some(Shows::Answer(text)) => Shows::Answer(self.here(text)),
            Some(Shows::Text(text)) => Shows::Text(self.here(text)),
        };
        shows.matches(&ran.stdout).map_err(|why| wrong(&why))
    }

    /// Does what `README.md` says to set up by hand.
    async fn set_up_by_hand(&mut self) {
        let blocks = page("README.md");
        let by_hand = blocks.iter().find(|block| block.text.starts_with(BY_HAND));
        let by_hand = by_hand.expect("the page says how").clone();
        let known: Known = &[(BY_HAND, Treated::Serves(READY))];
        self.run("README.md", &[by_hand], known).await;
    }
}

#[tokio::test]
async fn the_front_page_does_what_it_says() {
    let mut surroundings = Surroundings::new().await;
    surroundings
        .run("README.md", &page("README.md"), README)
        .await;
}

#[tokio::test]
async fn every_example_of_the_api_page_is_answered_as_it_shows() {
    let mut surroundings = Surroundings::new().await;
    surroundings.set_up_by_hand().await;
    surroundings
        .run("docs/API.md", &page("docs/API.md"), &[])
        .await;
}

#[tokio::test]
async fn an_operators_commands_do_what_the_page_says() {
    let mut surroundings = Surroundings::new().await;
    surroundings.set_up_by_hand().await;
    let name = "docs/OPERATIONS.md";
    surroundings.run(name, &page(name), OPERATIONS).await;
}

#[tokio::test]
async fn an_implementers_commands_do_what_the_page_says() {
    let mut surroundings = Surroundings::new().await;
    surroundings.set_up_by_hand().await;
    let name = "docs/PARTICIPANTS.md";
    surroundings.run(name, &page(name), PARTICIPANTS).await;
}

/// What a contributor types runs these tests, so it is not run by one of them.
#[test]
fn the_one_test_that_a_contributor_is_shown_is_there() {
    let blocks = page("CONTRIBUTING.md");
    let [block] = blocks.as_slice() else {
        panic!("another block to look at: {blocks:?}");
    };
    assert!(
        block
            .text
            .starts_with("cargo build --workspace --bins --tests\n")
    );
    let command =
        "\ntarget/debug/unanimous-lab with-clusters -- cargo nextest run --workspace -E 'test(";
    let (_, rest) = block.text.split_once(command).expect("it runs one test");
    let name = rest.trim_end().trim_end_matches(")'");
    let tests = read_page("lab/tests/processes.rs");
    assert!(tests.contains(&format!("\nasync fn {name}()")), "{name}");
}

/// Pages whose blocks are run or looked at by a test here.
const TYPED: [&str; 5] = [
    "README.md",
    "docs/API.md",
    "docs/OPERATIONS.md",
    "docs/PARTICIPANTS.md",
    "CONTRIBUTING.md",
];

/// Every page of the project, by its path below the root.
fn all_pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = Vec::new();
    for directory in [".", "docs", "docs/adr"] {
        let entries = std::fs::read_dir(root.join(directory)).expect("the directory is there");
        for entry in entries {
            let name = entry.expect("it can be listed").file_name();
            let name = name.into_string().expect("names are text");
            if name.ends_with(".md") {
                let path = format!("{directory}/{name}");
                pages.push(path.trim_start_matches("./").to_owned());
            }
        }
    }
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

#[test]
fn a_page_with_something_to_type_is_run() {
    for page in all_pages() {
        let has_any = !blocks(&read_page(&page)).is_empty();
        let is_run = TYPED.contains(&page.as_str());
        assert_eq!(has_any, is_run, "{page}: run its blocks by a test here");
    }
}

#[test]
fn every_make_target_that_a_page_names_is_there() {
    let makefile = read_page("Makefile");
    let is_target = |name: &str| makefile.contains(&format!("\n{name}:"));
    let mut named = 0;
    for page in all_pages() {
        let text = read_page(&page);
        // In a line of code, or at the beginning of one that is typed.
        for (at, _) in text.match_indices("make ") {
            if !matches!(text[..at].chars().next_back(), Some('`' | '\n')) {
                continue;
            }
            let rest = &text[at + "make ".len()..];
            let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '-');
            let name = &rest[..end.unwrap_or(rest.len())];
            // Prose wraps, and a line of it may begin with the word.
            let is_code = text[..at].ends_with('`') || blocks_have(&text, name);
            if is_code {
                assert!(is_target(name), "{page}: `make {name}`");
                named += 1;
            }
        }
    }
    assert!(named > 10, "only {named} were seen");
}

/// Whether a block of the page types `make` with this target.
fn blocks_have(page: &str, target: &str) -> bool {
    let line = format!("make {target}");
    let blocks = blocks(page);
    let mut lines = blocks.iter().flat_map(|block| block.text.lines());
    lines.any(|typed| typed.starts_with(&line))
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut checked = 0;
    for page in all_pages() {
        let text = read_page(&page);
        for (_, rest) in text
            .match_indices("](")
            .map(|(at, _)| text.split_at(at + 2))
        {
            let target = rest.split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let below = Path::new(&page).parent().unwrap_or(Path::new(""));
            let file = root.join(below).join(path);
            assert!(file.exists(), "{page}: {target}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} were seen");
}

/// What is described before it is built.
const UNBUILT: [&str; 1] = ["GET /v1/events"];

#[test]
fn every_route_of_the_api_page_has_an_example() {
    let text = read_page("docs/API.md");
    for section in text.split("\n### ").skip(1) {
        let (route, rest) = section.split_once('\n').unwrap();
        let rest = rest.split("\n## ").next().unwrap_or_default();
        let has_example = rest.contains("\n```sh\n") && rest.contains("\n```http\n");
        assert_ne!(has_example, UNBUILT.contains(&route), "{route}");
    }
}
