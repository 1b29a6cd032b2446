//! The stream a watcher holds: first what lies behind it (a replay), then what its queue gets.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use crate::hub::{Hub, Queue};
use crate::{Batch, Event, StoreError};

/// Leads, sooner or later, to [`Hub::progress`] on the queue it is given.
pub(crate) type Ask = Arc<dyn Fn(&Arc<Queue>) + Send + Sync>;

/// A stream of [`Batch`]es. It ends after the first error; the watcher then lists again.
/// Dropping it ends the watch.
pub struct Watch {
    /// Events from before the watch began; none once it is exhausted.
    replay: Option<BoxStream<'static, Result<Batch, StoreError>>>,
    live: Registration,
    ask: Ask,
    open: Option<Open>,
    ended: bool,
}

/// Makes of a stored event what the watcher is to see.
pub type Open = Arc<dyn Fn(&mut Event) -> Result<(), StoreError> + Send + Sync>;

/// Asks a watch to say how far it has come. Cheap to clone and to keep beside the [`Watch`].
#[derive(Clone)]
pub struct Progress {
    queue: Arc<Queue>,
    ask: Ask,
}

/// A queue, forgotten by its hub when dropped.
pub(crate) struct Registration {
    hub: Arc<Hub>,
    queue: Arc<Queue>,
}

impl Registration {
    pub(crate) fn new(hub: Arc<Hub>, queue: Arc<Queue>) -> Self {
        Self { hub, queue }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.unregister(&self.queue);
    }
}

impl Watch {
    pub(crate) fn new(
        replay: Option<BoxStream<'static, Result<Batch, StoreError>>>,
        live: Registration,
        ask: Ask,
    ) -> Self {
        Self { replay, live, ask, open: None, ended: false }
    }

    /// Passes every event through `open`; an error ends the watch.
    pub fn opened_by(mut self, open: Open) -> Self {
        self.open = Some(open);
        self
    }

    pub fn progress(&self) -> Progress {
        Progress { queue: self.live.queue.clone(), ask: self.ask.clone() }
    }
}

impl Progress {
    /// The watch will deliver a batch (empty if nothing else is waiting) whose revision is at least
    /// that of every write answered before this call.
    pub fn request(&self) {
        (self.ask)(&self.queue);
    }
}

impl Stream for Watch {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let next = match &mut this.replay {
            Some(replay) => match replay.poll_next_unpin(context) {
                Poll::Ready(Some(next)) => Poll::Ready(next),
                Poll::Ready(None) => {
                    this.replay = None;
                    this.live.queue.poll_next(context)
                }
                Poll::Pending => Poll::Pending,
            },
            None => this.live.queue.poll_next(context),
        };
        let open = &this.open;
        let next = next.map(|batch| {
            let mut batch = batch?;
            if let Some(open) = open {
                batch.events.iter_mut().try_for_each(|event| open(event))?;
            }
            Ok(batch)
        });
        if let Poll::Ready(Err(_)) = &next {
            this.ended = true;
        }
        next.map(Some)
    }
}
