//! What an operator keeps until a tick is closed, with the right to answer at that tick on each of its outputs.

use std::collections::BTreeMap;

use timely::dataflow::operators::{Capability, InputCapability};

/// Input by tick.
#[derive(Debug)]
pub(crate) struct Open<I, const N: usize>(BTreeMap<u64, ([Capability<u64>; N], I)>);

impl<I: Default, const N: usize> Open<I, N> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Where input of this message's tick is put. `None` for a message without a tick: it makes no claim and carries nothing.
    pub(crate) fn at(&mut self, cap: &InputCapability<u64>) -> Option<&mut I> {
        let tick = *cap.least()?;
        let capabilities = || std::array::from_fn(|port| cap.delayed(&tick, port));
        Some(&mut self.0.entry(tick).or_insert_with(|| (capabilities(), I::default())).1)
    }

    /// Where input of a later tick is put.
    pub(crate) fn later(&mut self, tick: u64, capabilities: &[Capability<u64>; N]) -> &mut I {
        let delayed = || std::array::from_fn(|port| capabilities[port].delayed(&tick));
        &mut self.0.entry(tick).or_insert_with(|| (delayed(), I::default())).1
    }

    /// The next tick that is closed.
    pub(crate) fn next(&mut self, is_open: impl Fn(&u64) -> bool) -> Option<(u64, [Capability<u64>; N], I)> {
        let entry = self.0.first_entry().filter(|entry| !is_open(entry.key()))?;
        let tick = *entry.key();
        let (capabilities, input) = entry.remove();
        Some((tick, capabilities, input))
    }
}
