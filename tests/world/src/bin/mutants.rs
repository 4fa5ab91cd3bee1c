//! Breaks one rule at a time and demands that it is noticed.
//!
//! Each patch in `mutants/` is the smallest mistake that breaks one rule, of the machines or of what the world does in the
//! place of a shell that batches. It is applied to a copy of the sources; the copy must build, and the simulation or a
//! golden script must fail on it. Production source holds none of them.
//! `cargo run -p unanimous-world --bin mutants -- [--part K/N] [--model] [NAME…]`
//!
//! With `--model` it is the exhaustive search that must fail.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// Seeds that a mutant is given, small worlds.
const SEEDS: &[&str] = &["--small", "--count", "4000"];
/// And large ones, where nobody has noticed it by then.
const MORE_SEEDS: &[&str] = &["--count", "400"];
/// Without a mutant; `make sim` gives it more.
const SOUND_SEEDS: &[&str] = &["--small", "--count", "400"];
/// A mutant that does not come to an end by then is a mistake of its own, in seconds.
const PATIENCE: &str = "300";

/// The same for a search that runs dry, which is no finding.
const SEARCH_AT_MOST: &str = "3600";

/// What `timeout` ends with where it had to.
const OUT_OF_TIME: i32 = 124;

/// What a copy needs of the workspace.
const COPIED: [&str; 5] = [
    "Cargo.lock",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "protocol",
    "tests/world",
];

struct Laboratory {
    root: PathBuf,
    copy: PathBuf,
    target: PathBuf,
    /// Whether the exhaustive search has to notice, and nobody else.
    model: bool,
}

/// Who noticed.
struct Caught {
    simulation: Option<String>,
    script: Option<String>,
}

fn main() -> io::Result<ExitCode> {
    let mut laboratory = Laboratory::new()?;
    let mut names = Vec::new();
    let mut part = (0, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--model" {
            laboratory.model = true;
        } else if argument == "--part" {
            let value = arguments.next().unwrap_or_default();
            let parsed = value
                .split_once('/')
                .and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
            part = parsed
                .filter(|(_, n)| *n > 0)
                .ok_or_else(|| io::Error::other("--part K/N"))?;
        } else {
            names.push(argument);
        }
    }
    let mut patches: Vec<PathBuf> = fs::read_dir(laboratory.root.join("tests/world/mutants"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    patches.sort();
    let chosen = patches.iter().enumerate().filter(|(at, patch)| {
        let name = name_of(patch);
        let wanted = names.is_empty() || names.iter().any(|wanted| name.contains(wanted.as_str()));
        wanted && at % part.1 == part.0 % part.1
    });
    let mut out = io::stdout().lock();
    laboratory.restore()?;
    laboratory.build()?.map_err(io::Error::other)?;
    if let Some(found) = laboratory.look(SOUND_SEEDS)?.described() {
        writeln!(out, "without a mutant: {found}")?;
        return Ok(ExitCode::FAILURE);
    }
    let (mut tried, mut missed) = (0, 0);
    for (_, patch) in chosen {
        tried += 1;
        laboratory.restore()?;
        let verdict = match laboratory.apply(patch)? {
            Err(why) => Err(format!("DOES NOT APPLY: {why}")),
            Ok(()) => match laboratory.build()? {
                Err(why) => Err(format!("DOES NOT BUILD: {why}")),
                Ok(()) => laboratory
                    .look(SEEDS)?
                    .described()
                    .ok_or_else(|| "NOT NOTICED".to_owned()),
            },
        };
        let text = match verdict {
            Ok(found) => found,
            Err(why) => {
                missed += 1;
                why
            }
        };
        writeln!(out, "{}: {text}", name_of(patch))?;
        out.flush()?;
    }
    laboratory.restore()?;
    writeln!(out, "{tried} mutants, {missed} not caught")?;
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn name_of(patch: &Path) -> String {
    let name = patch.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Caught {
    fn described(&self) -> Option<String> {
        match (&self.simulation, &self.script) {
            (None, None) => None,
            (Some(simulation), None) => Some(simulation.clone()),
            (None, Some(script)) => Some(format!("(no seed) {script}")),
            (Some(simulation), Some(script)) => Some(format!("{simulation}; {script}")),
        }
    }
}

impl Laboratory {
    fn new() -> io::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .canonicalize()?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), PathBuf::from)
            .join("mutants");
        Ok(Self {
            root,
            copy: target.join("sources"),
            target,
            model: false,
        })
    }

    /// Makes the copy equal to the sources. A file that is equal keeps its time, and is not built anew.
    fn restore(&self) -> io::Result<()> {
        for path in COPIED {
            mirror(&self.root.join(path), &self.copy.join(path))?;
        }
        let manifest = fs::read_to_string(self.root.join("Cargo.toml"))?;
        let (before, rest) = manifest
            .split_once("members = [")
            .ok_or_else(|| io::Error::other("the workspace has no members"))?;
        let (_, after) = rest
            .split_once(']')
            .ok_or_else(|| io::Error::other("the members do not end"))?;
        let members = "members = [\"protocol\", \"tests/world\"]";
        write_if_other(
            &self.copy.join("Cargo.toml"),
            format!("{before}{members}{after}").as_bytes(),
        )
    }

    fn apply(&self, patch: &Path) -> io::Result<Result<(), String>> {
        let mut command = Command::new("patch");
        command
            .args([
                "--strip=1",
                "--silent",
                "--batch",
                "--no-backup-if-mismatch",
            ])
            .arg("--directory")
            .arg(&self.copy)
            .arg("--input")
            .arg(patch);
        ran(&mut command)
    }

    fn build(&self) -> io::Result<Result<(), String>> {
        let mut command = Command::new("cargo");
        command
            .args(["build", "--quiet", "--offline", "-p", "unanimous-world"])
            .args([
                "--bin",
                if self.model {
                    "model"
                } else {
                    "unanimous-world"
                },
            ])
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.target);
        ran(&mut command)
    }

    /// Lets the simulation and the scripts loose, or the exhaustive search.
    fn look(&self, seeds: &[&str]) -> io::Result<Caught> {
        if self.model {
            return Ok(Caught {
                simulation: self.searched()?,
                script: None,
            });
        }
        let directory = self.copy.join("tests/world/scripts");
        let directory = directory.to_string_lossy().into_owned();
        let script = self.found(&["--scripts", &directory])?;
        let mut simulation = self.found(seeds)?;
        if simulation.is_none() && script.is_none() && seeds == SEEDS {
            simulation = self.found(MORE_SEEDS)?;
        }
        Ok(Caught { simulation, script })
    }

    /// Which search found it, after how many states. Small ones come first.
    fn searched(&self) -> io::Result<Option<String>> {
        let output = Command::new("timeout")
            .arg(SEARCH_AT_MOST)
            .arg(self.target.join("debug/model"))
            .stderr(Stdio::null())
            .output()?;
        if output.status.success() || output.status.code() == Some(OUT_OF_TIME) {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let failure = text.lines().find(|line| line.contains(" FAILS "));
        let after = text
            .lines()
            .rev()
            .find(|line| line.contains(" distinct states"));
        let after = after.and_then(|line| line.split_once(": ")?.1.split_once(','));
        Ok(Some(match (failure, after) {
            (Some(failure), Some((states, _))) => format!("{failure} (after {states})"),
            _ => format!("ended with {}", output.status),
        }))
    }

    /// The first line that says what failed.
    fn found(&self, arguments: &[&str]) -> io::Result<Option<String>> {
        let output = Command::new("timeout")
            .arg(PATIENCE)
            .arg(self.target.join("debug/unanimous-world"))
            .args(arguments)
            .stderr(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find(|line| line.contains(" FAILS ") || line.contains(" DIFFERS "));
        let found = line.map_or_else(|| format!("ended with {}", output.status), str::to_owned);
        Ok(Some(found))
    }
}

fn ran(command: &mut Command) -> io::Result<Result<(), String>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(Err(text))
}

fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return write_if_other(to, &fs::read(from)?);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        mirror(&entry.path(), &to.join(entry.file_name()))?;
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !from.join(entry.file_name()).exists() {
            if entry.path().is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn write_if_other(to: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::read(to) {
        Ok(there) if there == contents => Ok(()),
        _ => fs::write(to, contents),
    }
}
