//! Ownership of long-lived tasks.
//!
//! A supervisor is a token and a set of tasks. Children made with [`Supervisor::child`] hang in
//! its token tree: cancelling a parent cancels every descendant. A task that returns an error or
//! panics is reported once, here, with its name; it does not take its siblings down.

use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks: names them, cancels them as one tree, reports how each ended.
///
/// Cloning shares the same set of tasks.
#[derive(Clone)]
pub struct Supervisor {
    name: String,
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Supervisor {
    /// The root of a process's tree.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), token: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// A subtree: cancelled with its parent, or alone. Its tasks count as the parent's too.
    pub fn child(&self, name: impl Display) -> Self {
        Self { name: format!("{}/{name}", self.name), token: self.token.child_token(), tasks: self.tasks.clone() }
    }

    /// Cancelled when this tree is to end. Long-lived tasks select on it, or are dropped by
    /// [`Supervisor::spawn`] at their next await.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Runs `task` until it ends or this tree is cancelled, whichever is first.
    pub fn spawn<F>(&self, task_name: impl Display, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_try(task_name, async move {
            task.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Like [`Supervisor::spawn`] for tasks that can fail: the error is logged with the task's name.
    pub fn spawn_try<F, E>(&self, task_name: impl Display, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send,
    {
        let name = format!("{}/{task_name}", self.name);
        let token = self.token.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                outcome = AssertUnwindSafe(task).catch_unwind() => match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(task = name, %error, "task failed"),
                    Err(_) => tracing::error!(task = name, "task panicked; its siblings go on"),
                },
            }
        });
    }

    /// Like [`Supervisor::spawn`], but the task sees the cancellation itself and may finish what
    /// it holds (drain connections, flush) before it returns.
    pub fn spawn_graceful<F, Fut>(&self, task_name: impl Display, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let name = format!("{}/{task_name}", self.name);
        let task = task(self.token.clone());
        self.tasks.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked; its siblings go on");
            }
        });
    }

    /// Cancels the tree and waits until every task has ended, at most `limit`.
    /// Returns whether all of them did.
    pub async fn shut_down(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn a_panic_ends_one_task_and_not_its_siblings() {
        let supervisor = Supervisor::new("test");
        supervisor.spawn("bad", async { panic!("on purpose") });
        let ran = Arc::new(AtomicBool::new(false));
        let seen = ran.clone();
        supervisor.spawn("good", async move {
            tokio::task::yield_now().await;
            seen.store(true, Ordering::SeqCst);
        });
        supervisor.tasks.close();
        supervisor.tasks.wait().await;
        assert!(ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn cancelling_a_parent_ends_grandchildren() {
        let root = Supervisor::new("root");
        let leaf = root.child("a").child("b");
        leaf.spawn("forever", std::future::pending());
        assert!(root.shut_down(Duration::from_secs(5)).await);
        assert!(leaf.token().is_cancelled());
    }
}
