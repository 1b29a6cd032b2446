//! The store in an etcd cluster (3.4 or later), which any number of servers may share.
//!
//! - `endpoints` chooses the member to talk to, `convert` translates;
//! - `feed` holds one watch of the whole key space and hands its events to the watchers;
//! - `lease` and `compactor` follow Kubernetes' ways, so that its tools and API servers fit in.
//!
//! The cluster is expected to be the control plane's own: the feed receives every write in it.

mod compactor;
mod convert;
mod endpoints;
mod feed;
mod lease;

use std::sync::Arc;
use std::time::Duration;

use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::{CompactionRequest, RangeRequest};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

pub use endpoints::EtcdTls;

use endpoints::{Endpoints, Repeat};
use feed::Shared;
use lease::Leases;

use crate::hub::{Hub, Queue, QueueLimits};
use crate::watch::Registration;
use crate::{Got, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch, Write};

/// etcd's own default limit of a request, 1.5 MiB, leaves this for a value.
const LARGEST_VALUE: usize = 1_500_000;

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The members, e.g. `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    pub tls: Option<EtcdTls>,
    /// How often history is compacted; none: never, somebody else does it.
    pub compact_every: Option<Duration>,
    /// Events that may wait for one watcher before its watch is ended.
    pub watch_events: usize,
    /// The same in bytes of keys and values.
    pub watch_bytes: usize,
}

impl EtcdOptions {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            compact_every: Some(Duration::from_secs(300)),
            watch_events: 16_384,
            watch_bytes: 64 * 1024 * 1024,
        }
    }
}

/// A store in etcd. Dropping it ends its tasks and watches.
pub struct Etcd {
    shared: Arc<Shared>,
    leases: Leases,
    stop: CancellationToken,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects; fails if no member answers.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoints = Endpoints::new(&options.endpoints, options.tls.as_ref())?;
        let revision = current_revision(&endpoints).await?;
        let limits = QueueLimits { events: options.watch_events, bytes: options.watch_bytes };
        let (asked, asking) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            endpoints,
            hub: Arc::new(Hub::new(revision, limits)),
            published: watch::Sender::new(revision),
            asked,
        });
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        spawn(&tasks, &stop, feed::run(shared.clone()));
        spawn(&tasks, &stop, feed::answer_progress(shared.clone(), asking));
        if let Some(every) = options.compact_every {
            let shared = shared.clone();
            spawn(&tasks, &stop, async move { compactor::run(&shared.endpoints, every).await });
        }
        Ok(Self { shared, leases: Leases::default(), stop })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop.cancel();
        self.shared.hub.close(StoreError::Closed);
    }
}

fn spawn(tasks: &TaskTracker, stop: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(stop.clone().run_until_cancelled_owned(task));
}

fn client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// The cluster's revision now. Linearizable: asked through the leader.
async fn current_revision(endpoints: &Endpoints) -> Result<Revision, StoreError> {
    let request = RangeRequest { key: "/".into(), count_only: true, ..RangeRequest::default() };
    let answer = endpoints.call("reading the revision", Repeat::Freely, |channel| {
        let request = request.clone();
        async move { client(channel).range(request).await }
    });
    Ok(convert::revision_of(answer.await?.header.as_ref()))
}

impl Etcd {
    async fn read(
        &self,
        request: RangeRequest,
        requested: Revision,
    ) -> Result<proto::etcdserverpb::RangeResponse, StoreError> {
        let answer = self.shared.endpoints.call("reading", Repeat::Freely, |channel| {
            let request = request.clone();
            async move { refusals(client(channel).range(request).await, requested) }
        });
        answer.await?
    }
}

/// Takes what etcd refuses for a reason out of the errors that lead to another try.
fn refusals<T>(
    answer: Result<tonic::Response<T>, Status>,
    requested: Revision,
) -> Result<tonic::Response<Result<T, StoreError>>, Status> {
    match answer {
        Ok(response) => Ok(response.map(Ok)),
        Err(status) => match convert::refusal(&status, requested) {
            Some(error) => Ok(tonic::Response::new(Err(error))),
            None => Err(status),
        },
    }
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Got, StoreError> {
        let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        let answer = self.read(request, 0).await?;
        let revision = convert::revision_of(answer.header.as_ref());
        Ok(Got { kv: answer.kvs.into_iter().next().and_then(convert::key_value), revision })
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        let answer = self.read(convert::range_request(&range), range.revision).await?;
        Ok(convert::page(&range, answer))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let lease = match &txn.write {
            Write::Put { value, .. } if value.len() > LARGEST_VALUE => {
                let (key, bytes) = (txn.key.to_string(), value.len());
                return Err(StoreError::TooLarge { key, bytes, limit: LARGEST_VALUE });
            }
            Write::Put { ttl: Some(ttl), .. } => self.leases.take(&self.shared.endpoints, *ttl).await?,
            _ => 0,
        };
        let request = convert::txn_request(&txn, lease);
        let answer = self.shared.endpoints.call("writing", Repeat::IfUnsent, |channel| {
            let request = request.clone();
            async move { client(channel).txn(request).await }
        });
        answer.await.map(convert::txn_outcome)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (queue, published) = self.shared.hub.register(prefix, after);
        let live = Registration::new(self.shared.hub.clone(), queue);
        let replay = if after < published {
            // Refused here if it was compacted; the stream would only say so later.
            let request = RangeRequest {
                key: "/".into(),
                count_only: true,
                revision: convert::to_wire(after.max(1)),
                ..RangeRequest::default()
            };
            self.read(request, after).await?;
            Some(feed::replay(self.shared.clone(), prefix.to_owned(), after + 1, published))
        } else {
            None
        };
        let asked = self.shared.asked.clone();
        // The receiver ends with the store, which ends its watches too.
        let ask = move |queue: &Arc<Queue>| {
            if queue.ask() {
                drop(asked.send(queue.clone()));
            }
        };
        Ok(Watch::new(replay, live, Arc::new(ask)))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        current_revision(&self.shared.endpoints).await
    }

    async fn healthy(&self) -> Result<(), StoreError> {
        current_revision(&self.shared.endpoints).await.map(drop)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let request = CompactionRequest { revision: convert::to_wire(revision), physical: false };
        let answer = self.shared.endpoints.call("compacting", Repeat::IfUnsent, |channel| async move {
            refusals(client(channel).compact(request).await, revision)
        });
        answer.await?.map(drop)
    }

    async fn snapshot(&self) -> Result<std::fs::File, StoreError> {
        let instead = format!("etcdctl --endpoints={} snapshot save FILE", self.shared.endpoints.names());
        Err(StoreError::NoSnapshot { store: "etcd", instead })
    }
}
