//! How the demo shows itself: on a terminal with colours and a bar that moves, elsewhere in plain lines.

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where there is no bar, this often a line says how far it is.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where the demo is told.
pub struct Screen<'a> {
    out: &'a mut (dyn Write + Send),
    look: Look,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

/// What the place can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// A bar that moves, on this stream.
    pub bar: Option<Stream>,
    /// Colours.
    pub colour: bool,
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a text says by its colour, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Strong,
    /// As it should be.
    Good,
    /// Not as it should be, or killed.
    Bad,
    /// Beside the point.
    Faint,
}

impl Tone {
    /// The terminal's code (ECMA-48, "select graphic rendition").
    fn code(self) -> &'static str {
        match self {
            Self::Strong => "1",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Faint => "2",
        }
    }
}

impl<'a> Screen<'a> {
    /// A screen on `out`.
    pub fn new(out: &'a mut (dyn Write + Send), look: Look) -> Self {
        Self {
            out,
            look,
            bar: None,
            last_line: None,
        }
    }

    /// The text in this tone, where there are colours.
    pub fn paint(&self, tone: Tone, text: impl Display) -> String {
        if self.look.colour {
            format!("\u{1b}[{}m{text}\u{1b}[0m", tone.code())
        } else {
            text.to_string()
        }
    }

    /// One line; a bar stays below it.
    pub fn line(&mut self, text: impl Display) -> std::io::Result<()> {
        let out = &mut self.out;
        match &self.bar {
            Some(bar) => bar.suspend(|| writeln!(out, "{text}")),
            None => writeln!(out, "{text}"),
        }
    }

    /// An empty line and a heading.
    pub fn heading(&mut self, text: impl Display) -> std::io::Result<()> {
        let text = self.paint(Tone::Strong, text);
        self.line(format_args!("\n{text}"))
    }

    /// Begins to show how far something is.
    pub fn begin_progress(&mut self, length: usize) -> anyhow::Result<()> {
        let Some(stream) = self.look.bar else {
            return Ok(());
        };
        let target = match stream {
            Stream::Stdout => ProgressDrawTarget::stdout(),
            Stream::Stderr => ProgressDrawTarget::stderr(),
        };
        let length = u64::try_from(length)?;
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let style = ProgressStyle::with_template("  {bar:24} {pos:>5}/{len} {msg}")?;
        bar.set_style(style.progress_chars("█▌░"));
        self.bar = Some(bar);
        Ok(())
    }

    /// So far it is, with a remark.
    pub fn progress(&mut self, done: usize, length: usize, remark: &str) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(done)?);
            bar.set_message(remark.to_owned());
        } else if self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY)
        {
            self.last_line = Some(Instant::now());
            self.line(format_args!("  {done:>5}/{length} {remark}"))?;
        }
        Ok(())
    }

    /// Takes the bar away.
    pub fn end_progress(&mut self) {
        self.last_line = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
