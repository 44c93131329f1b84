//! Which transport an agent tries next. No I/O and no clock.
//!
//! ```text
//!            every node silent on UDP, one after the other
//!   QUIC ─────────────────────────────────────────────────▶ TCP      a refusal or an answer of any kind is no silence
//!     ▲                                                      │
//!     └──────────────────────────────────────────────────────┘
//!        a node answers on UDP again (tried now and then), or no node is reached by TCP either
//! ```

use std::time::{Duration, Instant};

use weir_config::TransportChoice;

use crate::link::Transport;

/// The choice of transport over the life of a client.
#[derive(Debug)]
pub(super) struct Route {
    choice: TransportChoice,
    /// The longest time between two tries of UDP while on TCP.
    again_max: Duration,
    /// So many attempts are a round.
    round: usize,
    on: Transport,
    /// Attempts in a row that argue for the other transport.
    fruitless: usize,
    /// On TCP: when UDP is tried again, and how long after that.
    again: Option<(Instant, Duration)>,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// There was a session.
    Session,
    /// Nobody answered.
    Silent,
    /// Somebody answered, but there was no session; or the attempt could not even be made.
    Failed,
}

/// From a half to all of a time, so that agents do not come in step. In 1,024ths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    pub(super) fn of(self, time: Duration) -> Duration {
        let half = time / 2;
        half + half.mul_f64((self.0 % 1024) as f64 / 1024.0)
    }
}

impl Route {
    pub(super) fn new(choice: TransportChoice, again_max: Duration, nodes: usize) -> Self {
        let on = if choice == TransportChoice::Tcp { Transport::Tcp } else { Transport::Quic };
        Self { choice, again_max, round: nodes.clamp(1, ROUND_MAX), on, fruitless: 0, again: None }
    }

    /// What to try next.
    pub(super) fn transport(&self) -> Transport {
        self.on
    }

    /// Takes what came of an attempt with it.
    pub(super) fn tried(&mut self, now: Instant, tried: Tried, jitter: Jitter) {
        let argues = match self.on {
            Transport::Quic => tried == Tried::Silent,
            Transport::Tcp => tried != Tried::Session,
        };
        self.fruitless = if argues { self.fruitless + 1 } else { 0 };
        if self.choice != TransportChoice::Auto || self.fruitless < self.round {
            return;
        }
        self.fruitless = 0;
        (self.on, self.again) = match self.on {
            // An outage of all nodes looks like this too, so UDP is tried soon at first.
            Transport::Quic => (Transport::Tcp, Some(self.after(now, AGAIN_FIRST, jitter))),
            Transport::Tcp => (Transport::Quic, None),
        };
    }

    /// When a session on TCP looks for a node on UDP; `None`: never.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again.map(|(at, _)| at)
    }

    /// It looked, and no node answered.
    pub(super) fn none_answered(&mut self, now: Instant, jitter: Jitter) {
        if let Some((_, last)) = self.again {
            self.again = Some(self.after(now, last * 2, jitter));
        }
    }

    /// It looked, and one did.
    pub(super) fn one_answered(&mut self) {
        (self.on, self.again, self.fruitless) = (Transport::Quic, None, 0);
    }

    fn after(&self, now: Instant, time: Duration, jitter: Jitter) -> (Instant, Duration) {
        let time = time.min(self.again_max);
        (now + jitter.of(time), time)
    }
}

/// Most attempts of a round: with a long list of nodes, four that are silent say enough.
const ROUND_MAX: usize = 4;
/// The first try of UDP after the change to TCP; each later one waits twice as long as the one before.
const AGAIN_FIRST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(600);

    fn route(choice: TransportChoice, nodes: usize, tried: &[Tried]) -> (Route, Instant) {
        let (mut route, now) = (Route::new(choice, MAX, nodes), Instant::now());
        tried.iter().for_each(|tried| route.tried(now, *tried, Jitter(0)));
        (route, now)
    }

    #[test]
    fn only_silence_of_every_node_argues_for_tcp() {
        use Tried::{Failed, Session, Silent};
        let check = |nodes, tried: &[Tried], expected| {
            let (route, _) = route(TransportChoice::Auto, nodes, tried);
            assert_eq!(route.transport(), expected, "{nodes} nodes: {tried:?}");
        };
        check(1, &[], Transport::Quic);
        check(1, &[Silent], Transport::Tcp);
        check(3, &[Silent, Silent], Transport::Quic);
        check(3, &[Silent, Silent, Silent], Transport::Tcp);
        check(3, &[Silent, Silent, Failed, Silent], Transport::Quic);
        check(2, &[Silent, Session, Silent], Transport::Quic);
        check(64, &[Silent; 4], Transport::Tcp);
        check(2, &[Failed; 100], Transport::Quic);
        // Once there, sessions keep it; a round without any gives it up.
        check(2, &[Silent, Silent, Session, Silent, Session, Failed], Transport::Tcp);
        check(2, &[Silent, Silent, Session, Silent, Failed], Transport::Quic);
        check(2, &[Silent; 6], Transport::Tcp);
    }

    #[test]
    fn a_fixed_choice_is_never_left() {
        for (choice, expected) in [(TransportChoice::Quic, Transport::Quic), (TransportChoice::Tcp, Transport::Tcp)] {
            let (route, _) = route(choice, 1, &[Tried::Silent; 50]);
            assert_eq!((route.transport(), route.again()), (expected, None));
        }
    }

    #[test]
    fn udp_is_tried_again_ever_later_up_to_the_limit() {
        let (mut route, mut now) = route(TransportChoice::Auto, 1, &[Tried::Silent]);
        let mut waits = Vec::new();
        for _ in 0..6 {
            let at = route.again().unwrap();
            waits.push((at - now).as_secs());
            now = at;
            route.none_answered(now, Jitter(0));
        }
        assert_eq!(waits, [30, 60, 120, 240, 300, 300], "with the least jitter");
        assert!(Jitter(u64::MAX).of(MAX) <= MAX && Jitter(512).of(MAX) > Jitter(0).of(MAX));
        route.one_answered();
        assert_eq!((route.transport(), route.again()), (Transport::Quic, None));
        route.none_answered(now, Jitter(0));
        assert_eq!(route.again(), None);
    }
}
