//! Answers that are remembered for a while, and questions that are asked once however many want the answer.
//!
//! What is remembered is bounded: when there is no room, the answer that came first goes. Errors are shared by those who
//! wait for the same answer and are not remembered.

use {
    ring::digest,
    std::{
        collections::{HashMap, VecDeque},
        sync::{Mutex, MutexGuard, PoisonError},
        time::Instant,
    },
    tokio::sync::watch,
};

/// What a question is known by: a digest, so that no token is kept, and none can be found by how long a search takes.
pub(super) type Key = [u8; 32];

/// The key of a question made of these parts.
pub(super) fn key_of(parts: &[&str]) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        // With their lengths, so that no other parts make the same bytes.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let digest = context.finish();
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Remembered answers.
pub(super) struct Remembered<V, E> {
    capacity: usize,
    inner: Mutex<Inner<V, E>>,
}

struct Inner<V, E> {
    answers: HashMap<Key, (V, Instant)>,
    /// The keys of `answers`, in the order in which they came.
    order: VecDeque<Key>,
    /// What is being asked now; bounded by the requests that are open.
    asked: HashMap<Key, watch::Receiver<Option<E>>>,
}

impl<V: Clone, E: Clone> Remembered<V, E> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            inner: Mutex::new(Inner {
                answers: HashMap::new(),
                order: VecDeque::new(),
                asked: HashMap::new(),
            }),
        }
    }

    /// The remembered answer, or what `ask` finds out: the answer and until when it holds. `now` reads the clock that the
    /// answers' ends are by.
    pub(super) async fn get<F>(
        &self,
        key: Key,
        now: impl Fn() -> Instant,
        ask: impl FnOnce() -> F,
    ) -> Result<V, E>
    where
        F: Future<Output = Result<(V, Instant), E>>,
    {
        let asking = loop {
            let mut wait = match self.turn(key, now()) {
                Turn::Known(answer) => return Ok(answer),
                Turn::Ask(asking) => break asking,
                Turn::Wait(wait) => wait,
            };
            // The sender is dropped when the question is answered, and when whoever asked it went away.
            let _answered_or_abandoned = wait.changed().await;
            let error = wait.borrow().clone();
            if let Some(error) = error {
                return Err(error);
            }
        };
        match ask().await {
            Ok((answer, until)) => {
                self.lock().keep(key, answer.clone(), until, self.capacity);
                Ok(answer)
            }
            Err(error) => {
                asking.done.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    fn turn(&self, key: Key, now: Instant) -> Turn<'_, V, E> {
        let mut inner = self.lock();
        if let Some(answer) = inner.answer(&key, now) {
            return Turn::Known(answer);
        }
        if let Some(wait) = inner.asked.get(&key) {
            return Turn::Wait(wait.clone());
        }
        let (done, wait) = watch::channel(None);
        inner.asked.insert(key, wait);
        Turn::Ask(Asking { all: self, key, done })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V, E>> {
        // No code that could panic runs under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Clone, E> Inner<V, E> {
    fn answer(&self, key: &Key, now: Instant) -> Option<V> {
        let (answer, until) = self.answers.get(key)?;
        (now < *until).then(|| answer.clone())
    }

    fn keep(&mut self, key: Key, answer: V, until: Instant, capacity: usize) {
        if self.answers.insert(key, (answer, until)).is_some() {
            // It keeps its place in the order, which only makes it go sooner.
            return;
        }
        self.order.push_back(key);
        while self.order.len() > capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }
}

/// What somebody who wants an answer has to do.
enum Turn<'a, V: Clone, E: Clone> {
    Known(V),
    Wait(watch::Receiver<Option<E>>),
    Ask(Asking<'a, V, E>),
}

/// A question that is being asked; asked again by whoever waits when its asker goes away.
struct Asking<'a, V: Clone, E: Clone> {
    all: &'a Remembered<V, E>,
    key: Key,
    done: watch::Sender<Option<E>>,
}

impl<V: Clone, E: Clone> Drop for Asking<'_, V, E> {
    fn drop(&mut self) {
        self.all.lock().asked.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use {
        super::*,
        std::{
            sync::{
                Arc,
                atomic::{AtomicUsize, Ordering},
            },
            time::Duration,
        },
        tokio::sync::Notify,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn key(number: usize) -> Key {
        key_of(&[&number.to_string()])
    }

    #[tokio::test]
    async fn an_answer_is_remembered_until_it_ends() {
        let start = Instant::now();
        let all: Remembered<usize, ()> = Remembered::new(8);
        let get = async |answer: usize, now: Instant| {
            let asked = all.get(key(0), || now, async || Ok((answer, start + SECOND)));
            asked.await.unwrap()
        };
        assert_eq!(get(1, start).await, 1);
        assert_eq!(get(2, start + SECOND - Duration::from_nanos(1)).await, 1);
        assert_eq!(get(3, start + SECOND).await, 3);
    }

    #[tokio::test]
    async fn errors_are_not_remembered() {
        let now = Instant::now();
        let all: Remembered<usize, &str> = Remembered::new(8);
        let failed = all.get(key(0), || now, async || Err("no")).await;
        assert_eq!(failed, Err("no"));
        let asked = all.get(key(0), || now, async || Ok((1, now + SECOND))).await;
        assert_eq!(asked, Ok(1));
    }

    #[tokio::test]
    async fn the_first_goes_when_there_is_no_room() {
        let now = Instant::now();
        let all: Remembered<usize, ()> = Remembered::new(2);
        for number in 0..10 {
            all.get(key(number), || now, async || Ok((number, now + SECOND)))
                .await
                .unwrap();
        }
        let inner = all.lock();
        assert_eq!((inner.answers.len(), inner.order.len()), (2, 2));
        assert!(inner.answers.contains_key(&key(9)));
    }

    #[tokio::test]
    async fn many_who_ask_at_once_ask_once() {
        let now = Instant::now();
        let all: Arc<Remembered<usize, &str>> = Arc::new(Remembered::new(8));
        let (times, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        for result in [Err("no"), Ok((7, now + SECOND))] {
            times.store(0, Ordering::SeqCst);
            let asking: Vec<_> = (0..20)
                .map(|_| {
                    let (all, times, go) = (all.clone(), times.clone(), go.clone());
                    tokio::spawn(async move {
                        all.get(
                            key(0),
                            || now,
                            async || {
                                times.fetch_add(1, Ordering::SeqCst);
                                go.notified().await;
                                result
                            },
                        )
                        .await
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            go.notify_one();
            for asked in asking {
                assert_eq!(asked.await.unwrap(), result.map(|(answer, _)| answer));
            }
            assert_eq!(times.load(Ordering::SeqCst), 1);
        }
    }

    #[tokio::test]
    async fn somebody_else_asks_when_the_asker_goes_away() {
        let now = Instant::now();
        let all: Arc<Remembered<usize, ()>> = Arc::new(Remembered::new(8));
        let first = {
            let all = all.clone();
            tokio::spawn(async move {
                all.get(key(0), || now, async || std::future::pending().await)
                    .await
            })
        };
        tokio::task::yield_now().await;
        let second = {
            let all = all.clone();
            tokio::spawn(async move { all.get(key(0), || now, async || Ok((2, now + SECOND))).await })
        };
        tokio::task::yield_now().await;
        first.abort();
        assert_eq!(second.await.unwrap(), Ok(2));
    }

    #[test]
    fn parts_are_not_confused() {
        assert_ne!(key_of(&["ab", "c"]), key_of(&["a", "bc"]));
        assert_ne!(key_of(&["a"]), key_of(&["a", ""]));
    }
}
