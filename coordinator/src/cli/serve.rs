//! `unanimous serve`

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;

use crate::{
    actors,
    app::{App, Ending},
    config::{ServeArgs, Settings},
    telemetry,
};

/// The exit code of a coordinator that was fenced: another one has taken over, so a supervisor should not restart it
/// blindly.
const FENCED: u8 = 3;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::gather(args)?;
    let _logging = telemetry::start(settings.log_format);
    actors::run(async {
        let Some(app) = App::build(&settings).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        let ready = format!("ready listen={} admin={}", app.listen(), app.admin_listen());
        writeln!(std::io::stdout(), "{ready}").context("standard output is closed")?;
        match app.run_until_stopped().await {
            Ending::Stopped => Ok(ExitCode::SUCCESS),
            Ending::Fenced(why) => {
                tracing::error!(
                    %why,
                    "this coordinator was fenced: another one has taken its place; it ends, and says nothing of what \
                     it had not decided"
                );
                Ok(ExitCode::from(FENCED))
            }
        }
    })
}
