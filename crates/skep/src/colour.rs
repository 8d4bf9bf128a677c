//! Colours on a terminal. Pipes and files get plain text, and so do terminals whose users say `NO_COLOR`.

use std::{
    env,
    io::{self, IsTerminal},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// What is wrong.
    Red,
    /// What to look at.
    Yellow,
    /// What is fine, or best.
    Green,
}

/// Whether a command's output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colours(bool);

impl Colours {
    pub(crate) const NONE: Self = Self(false);

    pub(crate) fn of_output() -> Self {
        Self::of(&io::stdout())
    }

    pub(crate) fn of_errors() -> Self {
        Self::of(&io::stderr())
    }

    /// Set to anything but nothing, `NO_COLOR` holds (no-color.org).
    fn of(stream: &impl IsTerminal) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(!refused && !dumb && stream.is_terminal())
    }

    /// The text in a bold colour.
    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        if !self.0 {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Red => 31,
            Colour::Yellow => 33,
            Colour::Green => 32,
        };
        format!("\x1b[1;{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_coloured_has_codes() {
        assert_eq!(Colours::NONE.paint(Colour::Red, "error"), "error");
        let painted = Colours(true).paint(Colour::Red, "error");
        assert_eq!(painted, "\x1b[1;31merror\x1b[0m");
    }
}
