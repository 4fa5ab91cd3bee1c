//! `demo`: tells the demonstration, and leaves nothing behind, also on Ctrl-C.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use unanimous_lab::demo::{self, Look, Options, Screen, Shown, Stream};
use unanimous_lab::kill_all_descendants;
use unanimous_lab::server::ServerUrl;
use unanimous_lab::town::Servers;

use super::interruptions::Interruptions;
use super::log::Log;
use super::programs::Both;

/// Shows a commit, a refusal, and a load whose coordinator and bank are killed again and again; then audits all of it.
///
/// It starts everything it needs: two Postgres servers, two banks and a coordinator, on free ports, in temporary
/// directories. Nothing of it is left at the end, also on Ctrl-C.
///
/// Exit code: 0 when all was as it should be; 1 when the audit found something, or the demo could not be run; 130 on
/// Ctrl-C, 143 on SIGTERM.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many transfers the clients make
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    transfers: u32,
    /// How many clients make them, side by side
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// How often a program is killed meanwhile, the coordinator and one bank by turns
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// Where the coordinator keeps its decisions: a file, or a database on the first bank's server
    #[arg(long, value_enum, default_value_t)]
    log: Log,
    /// A Postgres server of yours for a bank's database, instead of a private one: postgres://user:password@host:port.
    /// Given twice, for the banks east and west; it may be the same one. The user must be allowed to create databases;
    /// those of the demo have names of their own and are dropped at the end
    #[arg(long = "postgres-url", value_name = "URL", hide_env_values = true)]
    postgres_urls: Vec<String>,
    /// Fixes the transfers and who is killed; by default another one each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Ends with one line of JSON on standard output, and nothing else goes there: the story is told on standard error.
    /// `recovery_ms_max` counts from the kill, `p50_ms` and `p99_ms` from a client's first attempt until it was told
    #[arg(long)]
    json: bool,
    /// Leaves all running after the audit, and prints the addresses and three lines to try; Ctrl-C ends it
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    programs: Both,
}

const EXAMPLES: &str = "\
Examples:
  unanimous-lab demo
  unanimous-lab demo --log postgres --kills 8 --seed 7
  unanimous-lab demo --json 2>/dev/null | jq .recovery_ms_max
  unanimous-lab demo --postgres-url postgres://me:secret@localhost --postgres-url postgres://me:secret@localhost";

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    set_child_subreaper(true).context("cannot adopt the orphans of killed programs")?;
    // Before anything is started: a signal that comes from here on leads through the end of this function.
    let mut interruptions = Interruptions::listen()?;
    let code = perform(arguments, &mut interruptions).await;
    // Whatever has gone before: nobody of ours outlives this line.
    kill_all_descendants();
    Ok(ExitCode::from(code?))
}

/// Runs the demo; the exit code. When it returns, all that the demo has started and made is gone.
async fn perform(arguments: Arguments, interruptions: &mut Interruptions) -> anyhow::Result<u8> {
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(error) => return failed(&error),
    };
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let mut screen = if arguments.json {
        let look = look(Stream::Stderr, stderr.is_terminal());
        Screen::new(&mut stderr, look)
    } else {
        let look = look(Stream::Stdout, stdout.is_terminal());
        Screen::new(&mut stdout, look)
    };
    // Dropped in the middle, the demo takes all with it that it started.
    let shown = tokio::select! {
        shown = demo::run(&options, &mut screen) => shown,
        code = interruptions.next() => {
            screen.end_progress();
            return interrupted(code);
        }
    };
    let shown = match shown {
        Ok(shown) => shown,
        Err(error) => return failed(&error),
    };
    if arguments.json {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", serde_json::to_string(&shown.summary)?)?;
        stdout.flush()?;
    }
    let code = if shown.is_right() { 0 } else { 1 };
    if arguments.stay {
        say_what_to_try(&mut screen, &shown)?;
        interruptions.next().await;
        drop(shown);
        screen.line(
            "\nStopped: everything that was started has been ended, nothing of it is left.",
        )?;
    }
    Ok(code)
}

fn options(arguments: &Arguments) -> anyhow::Result<Options> {
    Ok(Options {
        programs: arguments.programs.programs()?,
        transfers: usize::try_from(arguments.transfers)?,
        clients: usize::try_from(arguments.clients)?,
        kills: usize::try_from(arguments.kills)?,
        log: arguments.log.into(),
        servers: servers(&arguments.postgres_urls)?,
        // Short enough to be typed again.
        seed: arguments
            .seed
            .unwrap_or_else(|| rand::random::<u16>().into()),
    })
}

fn servers(urls: &[String]) -> anyhow::Result<Servers> {
    let parse = |url: &String| {
        let parsed = url.parse::<ServerUrl>().map_err(anyhow::Error::msg);
        parsed.context("a --postgres-url can not be read")
    };
    match urls {
        [] => Ok(Servers::Private),
        [east, west] => Ok(Servers::Given([parse(east)?, parse(west)?])),
        _ => anyhow::bail!(
            "--postgres-url is needed twice, for the banks east and west (it may be the same one), or not at all"
        ),
    }
}

/// Colours and a moving bar are for people at a terminal that can show them; see no-color.org.
fn look(stream: Stream, is_terminal: bool) -> Look {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let moves = is_terminal && !is_dumb;
    Look {
        bar: moves.then_some(stream),
        colour: moves && !set("NO_COLOR"),
    }
}

fn say_what_to_try(screen: &mut Screen<'_>, shown: &Shown) -> anyhow::Result<()> {
    let town = &shown.town;
    screen.heading("All of it goes on until Ctrl-C. To try, in another terminal:")?;
    screen.line(format_args!("\n  coordinator   {}", town.coordinator.url()))?;
    screen.line(format_args!("  bank east     {}", town.east.url()))?;
    screen.line(format_args!("  bank west     {}\n", town.west.url()))?;
    for line in shown.lines_to_try() {
        screen.line(format_args!("  {line}"))?;
    }
    Ok(())
}

fn interrupted(code: u8) -> anyhow::Result<u8> {
    writeln!(
        std::io::stderr(),
        "\nInterrupted: everything that was started has been ended, nothing of it is left."
    )?;
    Ok(code)
}

/// What our programs printed comes first, and what went wrong last, where a terminal shows it.
fn failed(error: &anyhow::Error) -> anyhow::Result<u8> {
    let mut err = std::io::stderr();
    for cause in error.chain() {
        writeln!(err, "\n{cause}")?;
    }
    writeln!(err, "\nThe demo FAILED; see above.")?;
    Ok(1)
}
