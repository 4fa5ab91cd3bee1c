//! A page of the documentation as a reader uses it: its `sh` blocks are typed into one shell, from top to bottom, and
//! what it shows below a block is held against what that block printed.
//!
//! On a page `…` stands for whatever differs from run to run: inside a text for a part of it, outside of quotes for a
//! whole value.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use unanimous_lab::{Process, Program, scratch};

use super::SOON;

/// Languages of the blocks that show something and are not run. Whatever is typed is in a block of `sh`.
const SHOWN: [&str; 6] = ["http", "text", "json", "toml", "ini", "rust,ignore"];

/// A block of `sh`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Where it begins on the page, for failures.
    pub(crate) line: usize,
    pub(crate) text: String,
    /// The block right below it, if that shows what this one prints.
    pub(crate) shows: Option<Shows>,
}

/// What a page shows of a block's output.
#[derive(Clone, Debug)]
pub(crate) enum Shows {
    /// An answer as `curl -i` prints it: the status, some of the headers, all of the body.
    Answer(String),
    /// Lines.
    Text(String),
}

/// The `sh` blocks of a page.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    // Whether nothing but empty lines came since a block of `sh`.
    let mut follows = false;
    while let Some((at, line)) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            follows = follows && line.is_empty();
            continue;
        };
        let inside = lines.by_ref().map(|(_, line)| line);
        let text: Vec<&str> = inside
            .take_while(|line| !line.trim_start().starts_with("```"))
            .collect();
        let text = text.join("\n") + "\n";
        let line = at + 1;
        match (language, blocks.last_mut().filter(|_| follows)) {
            ("sh", _) => blocks.push(Block {
                line,
                text,
                shows: None,
            }),
            ("http", Some(block)) => block.shows = Some(Shows::Answer(text)),
            ("http", None) => panic!("line {line}: an answer, and nothing above it that asks"),
            ("text", Some(block)) => block.shows = Some(Shows::Text(text)),
            (shown, _) => assert!(
                SHOWN.contains(&shown),
                "line {line}: a block of {shown:?}; what a reader types is in a block of `sh`"
            ),
        }
        follows = language == "sh";
    }
    blocks
}

/// Replaces each first text by its second: what a test has elsewhere than the page says.
pub(crate) fn substituted(text: &str, elsewhere: &[(&str, String)]) -> String {
    elsewhere
        .iter()
        .fold(text.to_owned(), |text, (there, here)| {
            text.replace(there, here)
        })
}

/// Where a shell's own programs are.
fn programs(directory: &TempDir) -> PathBuf {
    directory.path().join(".programs")
}

/// What a block printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// One `bash` that keeps its variables from block to block. It and all that it has started end with it.
pub(crate) struct Shell {
    process: Process,
    commands: std::fs::File,
    directory: TempDir,
    blocks: usize,
}

impl Shell {
    /// A shell in a new empty directory.
    pub(crate) fn start(environment: &[(&str, String)]) -> Self {
        let directory = scratch::directory("page").expect("a directory can be made");
        let pipe = directory.path().join(".commands");
        let made = Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("there is mkfifo").success());
        // For reading too: a pipe that only one side has opened makes it wait for the other.
        let commands = OpenOptions::new().read(true).write(true).open(&pipe);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut program = Program::new("shell", "bash")
            .arg(&pipe)
            .env("PATH", format!("{}:{path}", programs(&directory).display()))
            .directory(directory.path());
        for (name, value) in environment {
            program = program.env(name, value);
        }
        Self {
            process: program.start().expect("there is bash"),
            commands: commands.expect("the pipe opens"),
            directory,
            blocks: 0,
        }
    }

    /// Puts a program into the shell's `PATH`.
    pub(crate) fn install(&mut self, name: &str, program: &str) {
        let programs = programs(&self.directory);
        std::fs::create_dir_all(&programs).expect("a directory can be made");
        let linked = std::os::unix::fs::symlink(program, programs.join(name));
        linked.expect("a link can be made");
    }

    fn write(&mut self, text: &str) -> usize {
        self.blocks += 1;
        let name = format!("{}.sh", self.blocks);
        let path = self.directory.path().join(name);
        std::fs::write(path, text).expect("a block can be written");
        self.blocks
    }

    fn command(&mut self, command: &str) {
        writeln!(self.commands, "{command}").expect("the shell reads");
    }

    fn read(&self, number: usize, of: &str) -> String {
        let path = self.directory.path().join(format!("{number}.{of}"));
        let bytes = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs a block to its end.
    pub(crate) async fn run(&mut self, block: &str) -> Ran {
        let n = self.write(block);
        self.command(&format!(
            ". ./{n}.sh >{n}.out 2>{n}.err </dev/null; echo \"ended {n} status=$?\""
        ));
        let ended = self
            .process
            .wait_for_line(&format!("ended {n} "), SOON)
            .await;
        let ended = ended.unwrap_or_else(|error| {
            panic!("{error:#}\n{block}{}", self.read(n, "err"));
        });
        Ran {
            status: ended.field("status").expect("it says how").to_owned(),
            stdout: self.read(n, "out"),
            stderr: self.read(n, "err"),
        }
    }

    /// Begins a block that ends only with the shell.
    pub(crate) fn serve(&mut self, block: &str) {
        let n = self.write(block);
        self.command(&format!("( . ./{n}.sh ) >{n}.out 2>&1 </dev/null &"));
    }

    /// All that the last block begun by [`Self::serve`] or [`Self::run`] has printed by now.
    pub(crate) fn output(&self) -> String {
        self.read(self.blocks, "out") + &self.read(self.blocks, "err")
    }
}

impl Shows {
    /// Whether the output is what the page shows; else, why not.
    pub(crate) fn matches(&self, stdout: &str) -> Result<(), String> {
        match self {
            Self::Answer(shown) => matches_answer(shown, stdout),
            Self::Text(shown) => {
                let (mut shown, mut printed) = (shown.lines(), stdout.lines());
                loop {
                    match (shown.next(), printed.next()) {
                        (None, None) => return Ok(()),
                        (Some(shown), Some(printed)) if matches_text(shown, printed) => {}
                        (shown, printed) => {
                            return Err(format!("the page has {shown:?}, it prints {printed:?}"));
                        }
                    }
                }
            }
        }
    }
}

/// Whether `printed` is `shown` with something in the place of each `…`.
fn matches_text(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else {
            return false;
        };
        rest = behind;
    }
    rest.ends_with(last)
}

fn matches_answer(shown: &str, printed: &str) -> Result<(), String> {
    let printed = printed.replace("\r\n", "\n");
    let whole = |text: &str| {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        (head.trim_end().to_owned(), body.trim().to_owned())
    };
    let ((head, body), (printed_head, printed_body)) = (whole(shown), whole(&printed));
    for (at, line) in head.lines().enumerate() {
        let found = if at == 0 {
            printed_head.lines().next() == Some(line)
        } else {
            let mut lines = printed_head.lines();
            lines.any(|printed| matches_text(line, printed))
        };
        if !found {
            return Err(format!("{line:?} is not in\n{printed_head}"));
        }
    }
    if body.is_empty() {
        return match printed_body.as_str() {
            "" => Ok(()),
            body => Err(format!("there is a body: {body}")),
        };
    }
    let read = |text: &str| {
        serde_json::from_str(text).map_err(|error| format!("{error}, in the body {text}"))
    };
    matches_json(&read(&quoted(&body))?, &read(&printed_body)?, "the body")
}

/// What stands for a whole value, once it is JSON.
const ANYTHING: &str = "……";

/// With [`ANYTHING`] for each `…` that is in no quotes.
fn quoted(json: &str) -> String {
    let mut quoted = String::new();
    let (mut inside, mut escaped) = (false, false);
    for letter in json.chars() {
        match letter {
            '"' if !escaped => inside = !inside,
            '…' if !inside => {
                quoted.push_str(&format!("\"{ANYTHING}\""));
                continue;
            }
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
        quoted.push(letter);
    }
    quoted
}

/// Exact in both directions: neither shows the page what is not there, nor does it leave anything out.
fn matches_json(shown: &Value, printed: &Value, place: &str) -> Result<(), String> {
    match (shown, printed) {
        (Value::String(shown), _) if shown == ANYTHING => Ok(()),
        (Value::String(shown), Value::String(printed)) if matches_text(shown, printed) => Ok(()),
        (Value::Object(shown), Value::Object(printed)) => {
            if let Some(name) = printed.keys().find(|name| !shown.contains_key(*name)) {
                return Err(format!(
                    "{place} has {name:?}, which the page does not show"
                ));
            }
            shown.iter().try_for_each(|(name, value)| {
                let place = format!("{place}.{name}");
                let printed = printed.get(name);
                let printed = printed.ok_or_else(|| format!("{place} is not there"))?;
                matches_json(value, printed, &place)
            })
        }
        (Value::Array(shown), Value::Array(printed)) if shown.len() == printed.len() => {
            let mut pairs = shown.iter().zip(printed).enumerate();
            pairs.try_for_each(|(at, (shown, printed))| {
                matches_json(shown, printed, &format!("{place}[{at}]"))
            })
        }
        (shown, printed) if shown == printed => Ok(()),
        _ => Err(format!("{place} is {printed}, and {shown} on the page")),
    }
}

#[test]
fn what_a_page_shows_is_held_against_all_of_what_was_printed() {
    let printed =
        "HTTP/1.1 200 OK\r\ndate: today\r\nallow: GET\r\n\r\n{\"a\":[1,{\"b\":\"x-1-y\"}],\"c\":7}";
    let answer = |text: &str| Shows::Answer(text.to_owned());
    for same in [
        "HTTP/1.1 200 OK\n\n{\"a\": [1, {\"b\": \"x-…-y\"}], \"c\": …}\n",
        "HTTP/1.1 200 OK\nallow: …\n\n{\"c\": 7, \"a\": [1, …]}\n",
    ] {
        assert_eq!(answer(same).matches(printed), Ok(()), "{same}");
    }
    for other in [
        "HTTP/1.1 201 Created\n\n{\"a\": …, \"c\": 7}\n",
        "HTTP/1.1 200 OK\nallow: PUT\n\n{\"a\": …, \"c\": 7}\n",
        "HTTP/1.1 200 OK\n\n{\"a\": …}\n",
        "HTTP/1.1 200 OK\n\n{\"a\": …, \"c\": 7, \"d\": …}\n",
        "HTTP/1.1 200 OK\n\n{\"a\": …, \"c\": 8}\n",
        "HTTP/1.1 200 OK\n\n{\"a\": [1], \"c\": 7}\n",
        "HTTP/1.1 200 OK\n\n{\"a\": …, \"c\": \"…\"}\n",
        "HTTP/1.1 200 OK\n",
    ] {
        assert!(answer(other).matches(printed).is_err(), "{other}");
    }
    let text = Shows::Text("identity=… former=…\nready\n".to_owned());
    assert_eq!(text.matches("identity=1 former=2\nready\n"), Ok(()));
    for other in [
        "identity=1\nready\n",
        "identity=1 former=2\n",
        "identity=1 former=2\nready\nx\n",
    ] {
        assert!(text.matches(other).is_err(), "{other}");
    }
}
