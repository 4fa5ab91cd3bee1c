//! `check`: tells the card of the conformance kit on standard output.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use unanimous_lab::check::{Finished, Kit, Options, checks, look_by, restart_by};
use unanimous_protocol::id::ParticipantName;
use unanimous_protocol::operations::Operations;

/// Nothing was checked: the call was wrong, or nobody answers.
const NOT_CHECKED: u8 = 2;

/// Plays the coordinator against any participant, over HTTP alone, and says what of the contract it breaks.
///
/// Check a service of its own for this, never one that holds what counts: the checks commit and abort thousands of
/// branches, and kill it. Ends with 0 when no check failed, with 1 when one did, and with 2 when nothing could be
/// checked.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The participant's base URL, as a coordinator has it registered: http://127.0.0.1:8081/unanimous
    #[arg(required_unless_present = "list")]
    url: Option<String>,
    /// The participant's name; by default the one that it describes itself with
    #[arg(long)]
    name: Option<ParticipantName>,
    /// Where to answer the participant's inquiries. By default a free port of 127.0.0.1, which only --restart can tell
    /// it
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Operations, a JSON array, that vote yes, change something, and can be prepared 1000 times at once; by default a
    /// credit to account 1, which the example bank takes
    #[arg(long, value_name = "FILE")]
    operations: Option<PathBuf>,
    /// Operations that vote no; by default a debit that the example bank refuses. [] says that there are none
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
    /// Operations that vote read_only
    #[arg(long, value_name = "FILE")]
    read_only: Option<PathBuf>,
    /// Operations that only one transaction at a time can have prepared: a debit of all that is in an account, a seat
    #[arg(long, value_name = "FILE")]
    exclusive: Option<PathBuf>,
    /// A shell command that kills the participant with SIGKILL, starts it again in the background, and ends. It is run
    /// before the first check, too. CHECK_COORDINATOR is the address that the participant has to ask; --renamed has more
    #[arg(long, value_name = "CMD")]
    restart: Option<String>,
    /// A name that the restart command can start the participant under: it then finds it in CHECK_NAME, which is not set
    /// otherwise, and the name that the participant had in CHECK_FORMER_NAME
    #[arg(long, value_name = "NAME", requires = "restart")]
    renamed: Option<ParticipantName>,
    /// A shell command that prints what the operations change, a balance for one; its output is only compared
    #[arg(long, value_name = "CMD")]
    look: Option<String>,
    /// How long an inquiry is waited for, and what follows from one
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    patience_s: u64,
    /// Run only this check; may be repeated
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Print one JSON object instead of lines, with the requests of every check
    #[arg(long)]
    json: bool,
    /// Show the requests of every check, also of those that passed
    #[arg(long, conflicts_with = "json")]
    verbose: bool,
    /// Name all checks, what each shows, and what goes wrong without it
    #[arg(long)]
    list: bool,
}

const EXAMPLES: &str = "\
Examples:
  unanimous-lab check http://127.0.0.1:8081/unanimous --listen 127.0.0.1:7070
  unanimous-lab check http://127.0.0.1:8090 --operations yes.json --refused no.json --restart ./restart.sh --json
A restart.sh:
  kill -9 \"$(cat service.pid)\"
  ./service --coordinator \"$CHECK_COORDINATOR\" --name \"${CHECK_NAME:-east}\" >service.log 2>&1 &
  echo $! >service.pid";

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    if arguments.list {
        for check in checks() {
            writeln!(
                out,
                "{}\n    {}\n    without it: {}",
                check.id, check.source, check.without_it
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    match card(&arguments, &mut out).await {
        Ok(code) => Ok(code),
        Err(error) => {
            writeln!(std::io::stderr(), "nothing was checked: {error:#}")?;
            Ok(ExitCode::from(NOT_CHECKED))
        }
    }
}

async fn card(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut kit = Kit::listen(options(arguments)?).await?;
    // Standard output is the object alone where programs read it.
    let mut people: Box<dyn Write> = if arguments.json {
        Box::new(std::io::stderr())
    } else {
        Box::new(std::io::stdout())
    };
    writeln!(
        people,
        "coordinator={}\nThe participant has to be configured to ask there about branches in doubt.",
        kit.coordinator_url()
    )?;
    people.flush()?;
    kit.meet().await?;
    writeln!(people, "Checking the participant {}.\n", kit.participant())?;
    let verbose = arguments.verbose;
    let mut shown = Ok(());
    let card = kit
        .run(|finished: &Finished| {
            if shown.is_ok() {
                shown = write!(people, "{}", finished.lines(verbose)).and_then(|()| people.flush());
            }
        })
        .await;
    shown?;
    writeln!(people, "\n{card}")?;
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&card)?)?;
    }
    out.flush()?;
    Ok(if card.is_passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn options(arguments: &Arguments) -> anyhow::Result<Options> {
    let url = arguments.url.clone().context("no URL")?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        bail!("{url:?} is no URL: it begins with http:// or https://");
    }
    let defaults = Options::of_a_bank(url);
    let given = |file: &Option<PathBuf>| file.as_deref().map(operations).transpose();
    let refused = given(&arguments.refused)?;
    Ok(Options {
        name: arguments.name.clone(),
        listen: arguments.listen,
        operations: given(&arguments.operations)?.unwrap_or(defaults.operations),
        refused: match refused {
            Some(refused) if refused == Operations::none() => None,
            Some(refused) => Some(refused),
            // What a bank refuses says nothing about a service that takes other operations.
            None if arguments.operations.is_some() => None,
            None => defaults.refused,
        },
        read_only: given(&arguments.read_only)?,
        exclusive: given(&arguments.exclusive)?,
        restart: arguments.restart.clone().map(restart_by),
        renamed: arguments.renamed.clone(),
        look: arguments.look.clone().map(look_by),
        patience: Duration::from_secs(arguments.patience_s),
        only: arguments.only.clone(),
        url: defaults.url,
    })
}

fn operations(file: &Path) -> anyhow::Result<Operations> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    Operations::parse(&text).with_context(|| file.display().to_string())
}
