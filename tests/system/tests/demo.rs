//! The demo that `make demo` shows, with the programs of this build.

use std::path::PathBuf;

use unanimous_lab::demo::{self, Options};
use unanimous_lab::town::Programs;

#[tokio::test]
async fn the_demo_shows_a_commit_a_refusal_and_a_recovery_and_its_books_are_right() {
    let programs = Programs {
        unanimous: PathBuf::from(env!("CARGO_BIN_EXE_system-unanimous")),
        bank: PathBuf::from(env!("CARGO_BIN_EXE_system-bank")),
    };
    let mut shown = Vec::new();
    let result = demo::run(&Options { programs }, &mut shown).await;
    let shown = String::from_utf8_lossy(&shown);
    result.unwrap_or_else(|error| panic!("{error:#}\n{shown}"));
    for words in [
        "committed, in both banks",
        "insufficient funds",
        "kill -9",
        "nothing lost",
    ] {
        assert!(shown.contains(words), "no {words:?} in:\n{shown}");
    }
}
