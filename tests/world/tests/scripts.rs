//! Every script in `scripts/` plays as it is recorded. `UPDATE_GOLDEN=1` records anew; the difference is reviewed like
//! code.

use std::{fs, path::Path};

use unanimous_world::script::play_all;

#[test]
fn every_situation_ends_as_its_script_has_recorded() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let played = play_all(&directory).unwrap();
    assert!(played.len() > 40, "{} scripts", played.len());
    for script in played {
        let claim = script.recorded.lines().next().unwrap_or_default();
        assert!(
            claim.starts_with("# ") && claim.ends_with('.'),
            "{}: the first line says what must hold: {claim}",
            script.name
        );
        match (&script.result, script.difference()) {
            (_, None) => {}
            (Ok(now), Some(_)) if update => {
                fs::write(directory.join(&script.name), now).unwrap();
            }
            (_, Some(difference)) => wrong.push(format!("{}: {difference}", script.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
