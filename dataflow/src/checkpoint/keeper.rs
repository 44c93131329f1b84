//! Which states a worker has, under which names: what is saved, and what is taken up at the start.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CheckpointError, Restore, shared};
use crate::render::owner;

/// Which part of all keys is this worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// This worker.
    pub(crate) index: usize,
    /// All workers.
    pub(crate) peers: usize,
}

impl Share {
    /// Whether what is routed by this hash (timely's `Exchange`) comes here.
    pub(crate) fn routes(self, hash: u64) -> bool {
        hash % self.peers as u64 == self.index as u64
    }

    /// Whether rows of this key come here.
    pub(crate) fn owns(self, key: &[u8]) -> bool {
        owner(key, self.peers) == self.index
    }

    /// Whether this worker answers for what there is only once.
    pub(crate) fn is_first(self) -> bool {
        self.index == 0
    }
}

/// State of an operator that can be saved and taken up again, by any number of workers.
pub(crate) trait State {
    /// What is saved.
    type Saved: DeserializeOwned;

    /// What is needed to go on: the postcard of a `Saved`, see [`encode`]. Every worker stands still meanwhile, so what is large is
    /// written where it is, without a copy.
    fn save(&self) -> Vec<u8>;

    /// Takes up what the workers of before have saved, in the order of their places: of each only what comes to this one.
    fn load(&mut self, parts: Vec<Self::Saved>, share: Share);
}

/// A worker's states. Cheap to clone; by default it keeps nothing and takes nothing up.
#[derive(Clone)]
pub struct Keeper(Rc<Inner>);

/// Gives a state's bytes as it is now.
type Save = Box<dyn Fn() -> Vec<u8>>;

struct Inner {
    share: Share,
    restore: Option<Arc<Restore>>,
    states: RefCell<Vec<(String, Save)>>,
    names: RefCell<BTreeSet<String>>,
    failed: RefCell<Option<CheckpointError>>,
}

/// A state that an operator works on and the keeper saves.
#[derive(Debug)]
pub(crate) struct Kept<S>(Rc<RefCell<S>>);

impl<S> Kept<S> {
    pub(crate) fn borrow(&self) -> Ref<'_, S> {
        self.0.borrow()
    }

    pub(crate) fn borrow_mut(&self) -> RefMut<'_, S> {
        self.0.borrow_mut()
    }

    /// For those who read it beside its operator.
    pub(crate) fn shared(self) -> Rc<RefCell<S>> {
        self.0
    }
}

impl Default for Keeper {
    fn default() -> Self {
        Self::new(Share { index: 0, peers: 1 }, None)
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keeper").field(&self.0.share).finish()
    }
}

impl Keeper {
    /// The states of one worker, which are taken up from `restore`.
    pub(crate) fn new(share: Share, restore: Option<Arc<Restore>>) -> Self {
        let (states, names, failed) = (RefCell::default(), RefCell::default(), RefCell::default());
        Self(Rc::new(Inner { share, restore, states, names, failed }))
    }

    /// The tick that states begin at, if they do not begin empty.
    pub(crate) fn restored(&self) -> Option<u64> {
        self.0.restore.as_ref().map(|restore| restore.tick)
    }

    /// Keeps a state under a name that no other has, on every worker the same. Takes up what was saved under it.
    pub(crate) fn keep<S: State + 'static>(&self, name: impl Into<String>, mut state: S) -> Kept<S> {
        let name = name.into();
        assert!(self.0.names.borrow_mut().insert(name.clone()), "two operators are named {name}");
        if let Some(restore) = &self.0.restore {
            match parts(restore, &name) {
                Ok(parts) => state.load(parts, self.0.share),
                Err(why) => {
                    self.0.failed.borrow_mut().get_or_insert(CheckpointError::State { operator: name.clone(), why });
                }
            }
        }
        self.saved_as(name, state)
    }

    /// Keeps a state that begins now, whatever was saved under its name. The name may be forgotten again.
    pub(crate) fn keep_new<S: State + 'static>(&self, name: impl Into<String>, state: S) -> Kept<S> {
        let name = name.into();
        assert!(self.0.names.borrow_mut().insert(name.clone()), "two operators are named {name}");
        self.saved_as(name, state)
    }

    fn saved_as<S: State + 'static>(&self, name: String, state: S) -> Kept<S> {
        let state = Rc::new(RefCell::new(state));
        let saved = Rc::clone(&state);
        let save = move || shared::saving(|| saved.borrow().save());
        self.0.states.borrow_mut().push((name, Box::new(save)));
        Kept(state)
    }

    /// Lets go of a state: it is saved no more, and another one may have its name.
    pub(crate) fn forget(&self, name: &str) {
        self.0.names.borrow_mut().remove(name);
        self.0.states.borrow_mut().retain(|(kept, _)| kept != name);
    }

    /// What was saved under a name that another state is kept under, for one that follows from it.
    pub(crate) fn saved<S: DeserializeOwned>(&self, name: &str) -> Vec<S> {
        // Whoever keeps the name has told of what is wrong with it.
        self.0.restore.as_ref().and_then(|restore| parts(restore, name).ok()).unwrap_or_default()
    }

    /// An error when a state could not be taken up.
    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        self.0.failed.borrow().clone().map_or(Ok(()), Err)
    }

    /// All states, as they are now.
    pub(crate) fn save(&self) -> Vec<(String, Vec<u8>)> {
        self.0.states.borrow().iter().map(|(name, save)| (name.clone(), save())).collect()
    }

    pub(crate) fn share(&self) -> Share {
        self.0.share
    }
}

/// A saved state as bytes.
pub(crate) fn encode(saved: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(saved).expect("a state in memory serialises")
}

fn parts<S: DeserializeOwned>(restore: &Restore, name: &str) -> Result<Vec<S>, String> {
    let sections = restore.sections.get(name).ok_or("it is not in the checkpoint")?;
    let read = |bytes: &Vec<u8>| shared::loading(|| postcard::from_bytes(bytes)).map_err(|error| error.to_string());
    sections.iter().map(read).collect()
}
