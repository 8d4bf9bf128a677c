//! The signals that a server hears: those that ask it to stop, the one that asks it to read its files again, and those
//! that it only says something about, since the system would end it without an answer to its requests.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalMeaning {
    /// To stop.
    Stop,
    /// To read files again.
    Reload,
    /// Nothing that there is here.
    Nothing,
}

/// The signals that come from now on.
pub(crate) struct Signals(Vec<(Signal, &'static str, SignalMeaning)>);

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        let heard = [
            (SignalKind::terminate(), "SIGTERM", SignalMeaning::Stop),
            (SignalKind::interrupt(), "SIGINT", SignalMeaning::Stop),
            (SignalKind::hangup(), "SIGHUP", SignalMeaning::Reload),
            (SignalKind::quit(), "SIGQUIT", SignalMeaning::Nothing),
            (
                SignalKind::user_defined1(),
                "SIGUSR1",
                SignalMeaning::Nothing,
            ),
            (
                SignalKind::user_defined2(),
                "SIGUSR2",
                SignalMeaning::Nothing,
            ),
        ];
        let hear = |(kind, name, asked)| Ok((signal(kind)?, name, asked));
        Ok(Self(
            heard.map(hear).into_iter().collect::<io::Result<_>>()?,
        ))
    }

    /// The name of the next one, and what it asks for.
    pub(crate) async fn next(&mut self) -> (&'static str, SignalMeaning) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(&'static str, SignalMeaning)> {
        for (signal, name, asked) in &mut self.0 {
            if signal.poll_recv(cx).is_ready() {
                return Poll::Ready((name, *asked));
            }
        }
        Poll::Pending
    }
}

/// Keeps the signals that do not ask for a stop from ending the process, before there is anybody to hear them. Call it
/// first in a command that goes on: handlers stay for the life of the process, and what comes before [`Signals::new`]
/// is lost.
pub(crate) fn survive() -> io::Result<()> {
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let _context = reactor.enter();
    for kind in [
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        drop(signal(kind)?);
    }
    Ok(())
}
