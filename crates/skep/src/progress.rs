//! A bar on standard error while a command works for seconds: drawn where standard error is a terminal, nowhere else.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::Mutex,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn again while nothing is finished: the seconds it shows go on.
const TICK: Duration = Duration::from_millis(200);

/// What is done, of how much, for how long, and what is under way, as far as the terminal is wide enough.
const TEMPLATE: &str = "{prefix} [{bar:24}] {pos}/{len}  {elapsed}  {wide_msg}";

/// The bar on the terminal, if there is one. Other output goes [`beside`] it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// How far a command's work is. The bar is gone when this is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Work of `total` pieces, called `what`; nothing is drawn for output that is not `wanted`.
    pub(crate) fn new(what: &'static str, total: usize, wanted: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if !wanted || dumb || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(TEMPLATE).expect("a valid template");
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
            .with_style(style.progress_chars("=> "))
            .with_prefix(what);
        bar.tick();
        bar.enable_steady_tick(TICK);
        *shown() = Some(bar.clone());
        Self(bar)
    }

    /// Names the piece that is under way.
    pub(crate) fn name(&self, piece: impl Into<String>) {
        self.0.set_message(piece.into());
    }

    /// One more piece is done.
    pub(crate) fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Nothing is drawn for a hidden bar; then another one's place is left alone.
        if !self.0.is_hidden() {
            *shown() = None;
        }
        self.0.finish_and_clear();
    }
}

fn shown() -> std::sync::MutexGuard<'static, Option<ProgressBar>> {
    // Each change is an assignment of a whole value.
    skep_host::lock(&SHOWN)
}

/// Prints something with the bar out of the way, if there is one.
pub(crate) fn beside<T>(print: impl FnOnce() -> T) -> T {
    // Not under the lock: the output's reader may be slow.
    let bar = shown().clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Standard error for log lines.
pub(crate) struct ErrorOutput;

impl Write for ErrorOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        beside(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
