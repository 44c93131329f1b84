//! How workers talk to each other about reads: a small dataflow of its own, beside that of the views.
//!
//! An ask goes to every worker, a part of an answer back to the worker that asked. Messages of one worker to another keep
//! their order. Times only count what was sent: nothing here waits for a frontier.
//!
//! A process tells its closed tick as a `Hold`: it will not ask for an older `Latest`. What is held everywhere is the least of
//! these, so a peek at the newest tick never comes too late.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::Scope;
use timely::dataflow::operators::{Exchange, Input, Inspect};
use timely::worker::Worker;

use crate::handle::{ChangesRead, Completeness, Failure, Read, Stats};

/// From one worker to all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// A process will ask for no tick below this one, unless by its number.
    Hold { process: usize, tick: u64 },
    /// Answer when the tick is closed.
    Peek(Peek),
}

/// One question to every worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Peek {
    /// The worker that asks.
    pub(crate) asker: usize,
    /// The asker's number for it.
    pub(crate) number: u64,
    /// The tick, closed or to be waited for.
    pub(crate) tick: u64,
    /// What is asked.
    pub(crate) what: What,
}

/// What is asked of every worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum What {
    /// Rows.
    Rows(Vec<Read>),
    /// What changed.
    Changes(ChangesRead),
    /// One hash per standing relation.
    Digest,
    /// Counters; answered at once, whatever the tick.
    Stats,
}

/// From one worker to the one that asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The worker that asked.
    pub(crate) asker: usize,
    /// The asker's number.
    pub(crate) number: u64,
    /// The answer, or a piece of it.
    pub(crate) body: Body,
}

/// A piece of a worker's answer. All but `Rows` are the worker's last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Some rows of one read.
    Rows { read: u32, rows: u64, ipc: Vec<u8> },
    /// All rows were sent.
    Done(Completeness),
    /// (sum of hashes, rows) per standing relation.
    Digests(Vec<(u128, u64)>),
    /// This worker's share.
    Stats(Stats),
    /// Nothing came of it.
    Failed(Failure),
}

type Send<M> = InputHandle<u64, CapacityContainerBuilder<Vec<(usize, M)>>>;
type Inbox<M> = Rc<RefCell<Vec<M>>>;

/// One worker's ends of the talk.
pub(crate) struct Mesh {
    peers: usize,
    asks: Send<Ask>,
    parts: Send<Part>,
    asked: Inbox<Ask>,
    answered: Inbox<Part>,
}

impl Mesh {
    /// Builds the dataflow. Every worker does so first of all.
    pub(crate) fn build(worker: &mut Worker) -> Self {
        let (asked, answered) = (Inbox::default(), Inbox::default());
        let (asks, parts) = worker.dataflow_named("Mesh", |scope| (channel(scope, &asked), channel(scope, &answered)));
        Self { peers: worker.peers(), asks, parts, asked, answered }
    }

    /// Sends an ask to every worker, this one included.
    pub(crate) fn ask(&mut self, ask: &Ask) {
        for to in 0..self.peers {
            self.asks.send((to, ask.clone()));
        }
        hand_over(&mut self.asks);
    }

    /// Sends a piece of an answer to the worker that asked.
    pub(crate) fn answer(&mut self, peek: &Peek, body: Body) {
        self.parts.send((peek.asker, Part { asker: peek.asker, number: peek.number, body }));
        hand_over(&mut self.parts);
    }

    /// What was asked of this worker since the last call.
    pub(crate) fn asked(&self) -> Vec<Ask> {
        self.asked.take()
    }

    /// What this worker was answered since the last call.
    pub(crate) fn answered(&self) -> Vec<Part> {
        self.answered.take()
    }
}

/// Makes timely pass on what was sent: only a later time empties the buffers in front of other workers.
fn hand_over<M: Clone + 'static>(send: &mut Send<M>) {
    let next = send.time() + 1;
    send.advance_to(next);
}

fn channel<M>(scope: Scope<'_, u64>, inbox: &Inbox<M>) -> Send<M>
where
    M: Serialize + for<'a> Deserialize<'a> + Clone + std::marker::Send + 'static,
{
    let inbox = Rc::clone(inbox);
    let (send, stream) = scope.new_input::<Vec<(usize, M)>>();
    stream.exchange(|message| message.0 as u64).inspect(move |(_, message)| inbox.borrow_mut().push(message.clone()));
    send
}
