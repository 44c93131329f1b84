//! Creating the next numbered object, from the first attempt to a sure answer. No I/O, no clock.
//!
//! ```text
//!            Created ──────────────────────────┐
//!  Create ── Taken, Unclear ── Look ── ours ───┴── LookBefore ── as built upon ── Ours
//!    ▲                          ├── another's ── Another          └── gone, another's ── Behind
//!    └───────── absent ─────────┘
//! ```
//!
//! Promises:
//! - `Ours` is said only when the object of this number is ours and stands on the one that we built upon. So of all who create a number
//!   one is told `Ours`, whatever answers were lost.
//! - Whoever slept while the numbers before were forgotten is told `Behind`: its number was free again, and what it created there is
//!   read by nobody. Therefore objects are forgotten in ascending order, and never the newest ones.

/// One create.
#[derive(Debug)]
pub(crate) struct Claim {
    nonce: u128,
    /// Of the object below; none: this is number 0.
    before: Option<u128>,
    stage: Ask,
}

/// What is to be asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Create the object, unless one of its number is there.
    Create,
    /// Read the object of this number.
    Look,
    /// Read the object of the number below. Of number 0: any object with a higher number.
    LookBefore,
}

/// What the store answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Created.
    Created,
    /// One of this number is there already.
    Taken,
    /// An error, or nothing in time: it may have happened or not, or may happen later.
    Unclear,
    /// The object that was looked for has this nonce.
    Nonce(u128),
    /// There is no such object.
    Absent,
}

/// How a claim ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// The object is ours, and counts.
    Ours,
    /// Another writer has the number.
    Another,
    /// The numbers around it were forgotten: others are far ahead.
    Behind,
}

impl Claim {
    /// Claims the number above the object with the nonce `before`; none: number 0.
    pub(crate) fn new(nonce: u128, before: Option<u128>) -> Self {
        Self { nonce, before, stage: Ask::Create }
    }

    /// What to ask now.
    pub(crate) fn ask(&self) -> Ask {
        self.stage
    }

    /// Takes the answer to what was asked.
    pub(crate) fn hear(&mut self, heard: Heard) -> Option<Claimed> {
        self.stage = match (self.stage, heard) {
            (Ask::Create, Heard::Created) => Ask::LookBefore,
            (Ask::Create, _) => Ask::Look,
            (Ask::Look, Heard::Nonce(nonce)) if nonce == self.nonce => Ask::LookBefore,
            (Ask::Look, Heard::Nonce(_)) => return Some(Claimed::Another),
            (Ask::Look, Heard::Absent) => Ask::Create,
            (Ask::LookBefore, Heard::Nonce(nonce)) => {
                return Some(if self.before == Some(nonce) { Claimed::Ours } else { Claimed::Behind });
            }
            (Ask::LookBefore, Heard::Absent) => {
                return Some(if self.before.is_none() { Claimed::Ours } else { Claimed::Behind });
            }
            // Asked again.
            (stage, _) => stage,
        };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: Option<u128>, heard: &[Heard], expected: Option<Claimed>) {
        let mut claim = Claim::new(7, before);
        let mut end = None;
        for answer in heard {
            assert_eq!(end, None, "{heard:?}");
            end = claim.hear(*answer);
        }
        assert_eq!(end, expected, "{heard:?}");
    }

    #[test]
    fn every_answer_leads_to_one_end() {
        use Heard::*;
        check(Some(6), &[Created, Nonce(6)], Some(Claimed::Ours));
        check(None, &[Created, Absent], Some(Claimed::Ours));
        check(Some(6), &[Taken, Nonce(8)], Some(Claimed::Another));
        // It succeeded and answered an error; or did not; or only later.
        check(Some(6), &[Unclear, Nonce(7), Nonce(6)], Some(Claimed::Ours));
        check(Some(6), &[Unclear, Absent, Created, Nonce(6)], Some(Claimed::Ours));
        check(Some(6), &[Unclear, Absent, Taken, Nonce(7), Nonce(6)], Some(Claimed::Ours));
        check(Some(6), &[Unclear, Unclear, Unclear, Nonce(8)], Some(Claimed::Another));
        // Slept while everything around the number was forgotten.
        check(Some(6), &[Created, Absent], Some(Claimed::Behind));
        check(Some(6), &[Created, Nonce(5)], Some(Claimed::Behind));
        check(None, &[Created, Nonce(9)], Some(Claimed::Behind));
        check(Some(6), &[Created, Unclear], None);
    }
}
