//! In the place of `coordinator/src/courier/threads.rs`: locks, tasks and time as the scheduler wills.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, LazyLock},
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::future::{Either, select};
use shuttle::sync::atomic::{AtomicU64, Ordering};
pub(super) use shuttle::sync::{Mutex, MutexGuard, RwLock};
use tokio::time::Instant;

shuttle::lazy_static! {
    /// Nanoseconds since the schedule began.
    static ref CLOCK: AtomicU64 = AtomicU64::new(0);
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(super) fn now() -> Instant {
    *EPOCH + Duration::from_nanos(CLOCK.load(Ordering::SeqCst))
}

/// Gives everybody else a turn; when this one goes on, it is `due`.
pub(super) async fn sleep_until(due: Instant) {
    shuttle::future::yield_now().await;
    let due = due.duration_since(*EPOCH).as_nanos();
    CLOCK.fetch_max(u64::try_from(due).unwrap(), Ordering::SeqCst);
}

/// An error once `limit` is over.
pub(super) async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, ()> {
    let over = pin!(sleep_until(now() + limit));
    match select(pin!(future), over).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(((), _)) => Err(()),
    }
}

/// Where tasks are spawned, and counted.
#[derive(Clone, Default)]
pub(super) struct Handle(Arc<AtomicU64>);

impl Handle {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let running = Arc::clone(&self.0);
        running.fetch_add(1, Ordering::SeqCst);
        drop(shuttle::future::spawn(async move {
            task.await;
            running.fetch_sub(1, Ordering::SeqCst);
        }));
    }

    pub(super) fn until_all_have_ended(&self) {
        while self.0.load(Ordering::SeqCst) > 0 {
            shuttle::thread::yield_now();
        }
    }
}

/// As tokio's: one permit is kept, so a wake-up that comes first is not lost.
pub(super) struct Notify(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    permit: bool,
    waker: Option<Waker>,
}

impl Notify {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Waiting::default()))
    }

    pub(super) fn notify_one(&self) {
        let waker = {
            let mut waiting = self.0.lock().unwrap();
            waiting.permit = true;
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn notified(&self) -> impl Future<Output = ()> {
        poll_fn(|context| {
            let mut waiting = self.0.lock().unwrap();
            if std::mem::take(&mut waiting.permit) {
                return Poll::Ready(());
            }
            waiting.waker = Some(context.waker().clone());
            Poll::Pending
        })
    }
}
