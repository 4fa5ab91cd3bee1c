//! What a script does with what travels: it holds messages back, loses them, or lets them arrive twice. Nothing here
//! happens by chance.

use crate::surroundings::Happening;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Kept until it is let go.
    Hold,
    Lose,
    Twice,
}

/// Concerns what has all of these words in its label.
#[derive(Debug)]
struct Rule {
    words: Vec<String>,
    action: Action,
    /// How often it still applies; `None`: until it is let go.
    left: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Director {
    rules: Vec<Rule>,
    held: Vec<(Vec<String>, Happening)>,
    /// What goes wrong with the next write to the log.
    pub(crate) log_fault: Option<crate::log::Fault>,
}

fn has_all(label: &[String], words: &[String]) -> bool {
    words.iter().all(|word| label.contains(word))
}

impl Director {
    pub(crate) fn rule(&mut self, words: Vec<String>, action: Action, times: Option<u32>) {
        self.rules.push(Rule {
            words,
            action,
            left: times,
        });
    }

    /// How often `happening` is to arrive, and what the event log says of it.
    pub(crate) fn direct(
        &mut self,
        label: Vec<String>,
        happening: &Happening,
    ) -> (u32, Option<String>) {
        if label.is_empty() {
            return (1, None);
        }
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.left != Some(0) && has_all(&label, &rule.words));
        let Some(rule) = rule else {
            return (1, None);
        };
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        let text = label.join(" ");
        match rule.action {
            Action::Hold => {
                self.held.push((label, happening.clone()));
                (0, Some(format!("  (held: {text})")))
            }
            Action::Lose => (0, Some(format!("  (lost: {text})"))),
            Action::Twice => (2, Some(format!("  (twice: {text})"))),
        }
    }

    /// Ends every rule with these words, and gives back what was held by them.
    pub(crate) fn let_go(&mut self, words: &[String]) -> Vec<Happening> {
        self.rules.retain(|rule| !has_all(&rule.words, words));
        let (gone, kept) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|(label, _)| has_all(label, words));
        self.held = kept;
        let gone: Vec<(Vec<String>, Happening)> = gone;
        gone.into_iter().map(|(_, happening)| happening).collect()
    }
}
