//! Which ticks there are: the calendar's entries fall due at any millisecond, but take effect at the next tick.
//!
//! Every worker reads the same chain, so the next tick at or after a moment is the same on all of them. Without it each due
//! millisecond would travel through all operators as a tick of its own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// The ticks of the chain, as far as this worker has read it. A worker notes a tick before it lets its inputs advance to it.
#[derive(Debug, Clone, Default)]
pub struct Ticks(Option<Rc<RefCell<VecDeque<u64>>>>);

impl Ticks {
    /// Every millisecond is a tick.
    pub fn every_ms() -> Self {
        Self(None)
    }

    /// Only the ticks that are noted.
    pub fn noted() -> Self {
        Self(Some(Rc::default()))
    }

    /// There is this tick, after all that were noted before.
    pub fn note(&self, tick: u64) {
        if let Some(ticks) = &self.0 {
            let mut ticks = ticks.borrow_mut();
            assert!(ticks.back().is_none_or(|&last| last < tick), "ticks increase");
            ticks.push_back(tick);
        }
    }

    /// No operator will ask for a moment before this tick any more: it is closed.
    pub fn forget_before(&self, tick: u64) {
        if let Some(ticks) = &self.0 {
            let mut ticks = ticks.borrow_mut();
            let before = ticks.partition_point(|&noted| noted < tick);
            ticks.drain(..before);
        }
    }

    /// The first tick that is not before this moment. Beyond the last noted tick (the input has ended) the moment itself.
    pub(crate) fn at_or_after(&self, moment: u64) -> u64 {
        let Some(ticks) = &self.0 else { return moment };
        let ticks = ticks.borrow();
        ticks.get(ticks.partition_point(|&tick| tick < moment)).copied().unwrap_or(moment)
    }
}
