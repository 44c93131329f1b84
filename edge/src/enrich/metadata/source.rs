//! How a container runtime is followed: what is asked when, how often again, and what is said when it does not answer.
//!
//! Containers are asked for one by one: those that the agent met first (they are waited for), then those that the runtime gave notice of
//! or lists. An answer that does not come is asked for again a few times, ever later; a runtime that is not there is looked for again,
//! ever later too. Nothing here is waited for by the way of the events: it is one task per runtime.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use weir_config::MetadataLimits;
use weir_schema::Text;

use super::News;
use super::description::{Description, Origin};
use super::failure::Failure;

/// A container runtime, as it is asked.
pub(crate) trait Runtime: Send + Sync + 'static {
    /// Whose word its word is.
    const ORIGIN: Origin;

    /// The ids of all containers. Succeeds when the runtime is there.
    fn list(&self) -> impl Future<Output = Result<Vec<Text>, Failure>> + Send;

    /// One container; nothing when the runtime has none of that id.
    fn describe(&self, id: &Text) -> impl Future<Output = Result<Option<Description>, Failure>> + Send;

    /// Gives notice of containers that are new or changed, until it fails. [`Failure::Unsupported`]: lists must do.
    fn watch(&self, changed: mpsc::Sender<Notice>) -> impl Future<Output = Failure> + Send;
}

/// A container that is new or changed.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    /// Its id.
    pub(crate) id: Text,
    /// What the notice itself says, if anything: less than an answer, but it comes before a short container is gone.
    pub(crate) hint: Option<Description>,
}

/// Tells what a source is like, once per change.
pub(crate) struct Teller {
    name: Text,
    cure: String,
    news: mpsc::Sender<News>,
    last: Option<Failure>,
    was_there: bool,
}

impl Teller {
    /// `name` is the source and its address, `cure` how to grant what may be missing.
    pub(crate) fn new(name: &str, cure: &str, news: mpsc::Sender<News>) -> Self {
        Self { name: name.into(), cure: cure.to_owned(), news, last: None, was_there: false }
    }

    /// It answers.
    pub(crate) async fn ok(&mut self) {
        if self.last.take().is_some() || !self.was_there {
            self.was_there = true;
            tracing::info!(source = &*self.name, "metadata: answers");
            self.state("ok".into()).await;
        }
    }

    /// It does not.
    pub(crate) async fn failed(&mut self, failure: &Failure) {
        metrics::counter!(crate::metrics::METADATA_FAILURES, "source" => self.name.to_string()).increment(1);
        if self.last.as_ref() == Some(failure) {
            return;
        }
        self.last = Some(failure.clone());
        if *failure == Failure::Missing && !self.was_there {
            // Most hosts have one runtime of those that are looked for.
            tracing::debug!(source = &*self.name, "metadata: not there");
            return;
        }
        tracing::warn!(source = &*self.name, why = %failure, cure = %self.cure, "metadata: no answer, asked again later");
        self.state(failure.to_string()).await;
    }

    /// Says what was learnt.
    pub(crate) async fn tell(&self, news: News) {
        // The agent is stopping when nobody listens.
        let _ = self.news.send(news).await;
    }

    async fn state(&self, state: String) {
        self.tell(News::State { source: self.name.clone(), state }).await;
    }
}

/// Pauses that grow with each failure in a row.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// From half a second to `max`.
    pub(crate) fn new(max: Duration) -> Self {
        Self { next: PAUSE_MIN.min(max), max }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = PAUSE_MIN.min(self.max);
    }
}

/// Follows a runtime for ever.
pub(crate) async fn follow<R: Runtime>(runtime: R, limits: MetadataLimits, mut wanted: mpsc::Receiver<Text>, mut teller: Teller) {
    let runtime = Arc::new(runtime);
    let mut queue = Queue::new(limits.containers_max);
    let mut backoff = Backoff::new(Duration::from_millis(limits.resync_ms));
    loop {
        let failure = Box::pin(session(&runtime, &limits, &mut wanted, &mut queue, &mut teller, &mut backoff)).await;
        teller.failed(&failure).await;
        let until = Instant::now() + backoff.pause();
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                id = wanted.recv() => match id {
                    Some(id) => queue.ask(&id, Instant::now()),
                    None => return,
                },
            }
        }
    }
}

/// Follows a runtime until it no longer answers.
async fn session<R: Runtime>(
    runtime: &Arc<R>,
    limits: &MetadataLimits,
    wanted: &mut mpsc::Receiver<Text>,
    queue: &mut Queue,
    teller: &mut Teller,
    backoff: &mut Backoff,
) -> Failure {
    match runtime.list().await {
        Ok(ids) => queue.offer(&ids, Instant::now()),
        Err(failure) => return failure,
    }
    backoff.reset();
    teller.ok().await;
    let (changed, mut changes) = mpsc::channel(CHANGES_MAX);
    let mut watch = Watch::new(runtime, changed, Duration::from_millis(limits.resync_ms));
    let mut asked: JoinSet<(Text, Result<Option<Description>, Failure>)> = JoinSet::new();
    let resync = Duration::from_millis(limits.resync_ms);
    let mut resync = interval_at(Instant::now() + resync, resync);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    loop {
        while asked.len() < limits.requests_max
            && let Some(id) = queue.next(Instant::now())
        {
            let runtime = Arc::clone(runtime);
            asked.spawn(async move {
                let answer = runtime.describe(&id).await;
                (id, answer)
            });
        }
        let due = queue.due().filter(|_| asked.len() < limits.requests_max);
        tokio::select! {
            Some(id) = wanted.recv() => queue.ask(&id, Instant::now()),
            Some(Notice { id, hint }) = changes.recv() => {
                queue.ask(&id, Instant::now());
                if let Some(description) = hint.filter(|_| !queue.described.contains(&id)) {
                    teller.tell(News::Container { id, origin: R::ORIGIN, description }).await;
                }
            }
            Some(Ok((id, answer))) = asked.join_next(), if !asked.is_empty() => match answer {
                Ok(Some(description)) => {
                    failures = 0;
                    queue.done(&id);
                    teller.tell(News::Container { id, origin: R::ORIGIN, description }).await;
                }
                Ok(None) => queue.again(&id, Instant::now()),
                Err(failure) => {
                    queue.again(&id, Instant::now());
                    failures += 1;
                    if failures >= FAILURES_MAX {
                        return failure;
                    }
                }
            },
            // What was missed meanwhile is in the list.
            () = watch.broke() => match runtime.list().await {
                Ok(ids) => {
                    queue.offer(&ids, Instant::now());
                    watch.begin();
                }
                Err(failure) => return failure,
            },
            _ = resync.tick() => match runtime.list().await {
                Ok(ids) => queue.offer(&ids, Instant::now()),
                Err(failure) => return failure,
            },
            () = at(due) => {}
        }
    }
}

/// The notices of a runtime, begun anew ever later as they break.
struct Watch<R> {
    runtime: Arc<R>,
    changed: mpsc::Sender<Notice>,
    task: JoinSet<Failure>,
    backoff: Backoff,
    begun: Instant,
    again: Option<Instant>,
}

impl<R: Runtime> Watch<R> {
    fn new(runtime: &Arc<R>, changed: mpsc::Sender<Notice>, pause_max: Duration) -> Self {
        let backoff = Backoff::new(pause_max);
        let (runtime, task) = (Arc::clone(runtime), JoinSet::new());
        let mut watch = Self { runtime, changed, task, backoff, begun: Instant::now(), again: None };
        watch.begin();
        watch
    }

    fn begin(&mut self) {
        let (runtime, changed) = (Arc::clone(&self.runtime), self.changed.clone());
        self.task.spawn(async move { runtime.watch(changed).await });
        (self.begun, self.again) = (Instant::now(), None);
    }

    /// Waits until a watch that broke should be begun again. May be dropped and asked again.
    async fn broke(&mut self) {
        if self.again.is_none() {
            match self.task.join_next().await {
                Some(Ok(failure)) if failure != Failure::Unsupported => {
                    tracing::debug!(why = %failure, "metadata: notices broke off");
                    if self.begun.elapsed() > WATCH_HELD {
                        self.backoff.reset();
                    }
                    self.again = Some(Instant::now() + self.backoff.pause());
                }
                // Lists must do.
                _ => std::future::pending().await,
            }
        }
        at(self.again).await;
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Who is to be asked for, each once at a time.
#[derive(Debug)]
struct Queue {
    /// In the order of asking, those that are asked again behind.
    waiting: VecDeque<(Instant, Text)>,
    /// Everything in the queue or under way, and how often it may yet be asked for.
    open: HashMap<Text, u32>,
    /// What was described: lists need not ask for it again.
    described: HashSet<Text>,
    max: usize,
}

impl Queue {
    fn new(max: usize) -> Self {
        Self { waiting: VecDeque::new(), open: HashMap::new(), described: HashSet::new(), max }
    }

    /// Asks for `id`, described or not.
    fn ask(&mut self, id: &Text, now: Instant) {
        if self.open.contains_key(id) {
            return;
        }
        if self.open.len() >= self.max {
            metrics::counter!(crate::metrics::METADATA_SKIPPED).increment(1);
            return;
        }
        self.open.insert(id.clone(), TRIES_MAX);
        self.waiting.push_back((now, id.clone()));
    }

    /// Asks for those of a list that were not described.
    fn offer(&mut self, ids: &[Text], now: Instant) {
        for id in ids {
            if !self.described.contains(id) {
                self.ask(id, now);
            }
        }
    }

    /// The next that is due; it is under way afterwards.
    fn next(&mut self, now: Instant) -> Option<Text> {
        let at = self.waiting.iter().position(|(due, _)| *due <= now)?;
        self.waiting.remove(at).map(|(_, id)| id)
    }

    fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(due, _)| *due).min()
    }

    /// It was described.
    fn done(&mut self, id: &Text) {
        self.open.remove(id);
        if self.described.len() >= self.max {
            // Only costs a question each at the next list.
            self.described.clear();
        }
        self.described.insert(id.clone());
    }

    /// It was not: later, or never.
    fn again(&mut self, id: &Text, now: Instant) {
        let Some(left) = self.open.get_mut(id) else { return };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.open.remove(id);
            return;
        }
        let pause = RETRY * 2_u32.pow(TRIES_MAX - *left - 1);
        self.waiting.push_back((now + pause, id.clone()));
    }
}

/// How often one container is asked for in a row: over about three seconds, in which a runtime learns of what it starts.
const TRIES_MAX: u32 = 5;
/// The pause before the second try; each later one is twice as long.
const RETRY: Duration = Duration::from_millis(200);
/// Failures in a row after which the runtime itself is looked for again.
const FAILURES_MAX: u32 = 3;
/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// A watch that held for so long was one.
const WATCH_HELD: Duration = Duration::from_secs(60);
/// Notices taken before the runtime must wait: it is a stream of its own connection.
const CHANGES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_asked_for_when() {
        let (now, [a, b, c]) = (Instant::now(), ["a", "b", "c"].map(Text::from));
        let mut queue = Queue::new(2);
        queue.offer(&[a.clone(), b.clone(), c.clone()], now);
        assert_eq!((queue.next(now), queue.next(now), queue.next(now)), (Some(a.clone()), Some(b.clone()), None));
        queue.ask(&a, now);
        assert_eq!(queue.next(now), None, "it is under way");
        queue.done(&a);
        queue.offer(std::slice::from_ref(&a), now);
        assert_eq!(queue.next(now), None, "a list does not ask for what was described");
        queue.ask(&a, now);
        assert_eq!(queue.next(now), Some(a), "a notice does");
        let mut later = now;
        for _ in 1..TRIES_MAX {
            queue.again(&b, later);
            assert_eq!(queue.next(later), None);
            later = queue.due().unwrap();
            assert_eq!(queue.next(later), Some(b.clone()));
        }
        queue.again(&b, later);
        assert_eq!((queue.due(), queue.open.len()), (None, 1), "given up");
        assert!(later - now < Duration::from_secs(4));
    }

    #[test]
    fn pauses_grow_up_to_their_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(3));
        let pauses: Vec<u128> = (0..5).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 3_000, 3_000]);
        backoff.reset();
        assert_eq!(backoff.pause(), PAUSE_MIN);
    }
}
