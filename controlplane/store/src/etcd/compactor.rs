//! Compacts etcd every few minutes, so that several servers do not do it several times.
//!
//! Kubernetes' protocol, so that its API servers may share the cluster: the key `compact_rev_key`
//! counts the compactions by its version. Whoever raises it from the version it last saw has won
//! this round and compacts to the revision it noted one round ago; the others note the new version.

use std::time::Duration;

use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::{
    CompactionRequest, Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, request_op, response_op,
};

use super::endpoints::{Endpoints, Repeat};
use crate::StoreError;

const KEY: &str = "compact_rev_key";

/// What one server remembers from round to round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Round {
    /// The key's version when last seen.
    version: i64,
    /// The store's revision when last seen; 0: not yet.
    revision: i64,
}

pub async fn run(endpoints: &Endpoints, every: Duration) {
    let mut round = Round::default();
    loop {
        tokio::time::sleep(every).await;
        match compact(endpoints, round).await {
            Ok(next) => round = next,
            // Tried again next time; until then history is only kept longer.
            Err(error) => tracing::warn!(%error, "etcd was not compacted"),
        }
    }
}

async fn compact(endpoints: &Endpoints, round: Round) -> Result<Round, StoreError> {
    let request = raise(round);
    let answer = endpoints
        .call("claiming a compaction", Repeat::IfUnsent, |channel| {
            let request = request.clone();
            async move { KvClient::new(channel).txn(request).await }
        })
        .await?;
    let (next, due) = conclude(round, &answer);
    if due > 0 {
        let request = CompactionRequest { revision: due, physical: false };
        let compacted = endpoints
            .call("compacting", Repeat::Freely, |channel| async move { KvClient::new(channel).compact(request).await });
        compacted.await?;
        tracing::debug!(revision = due, "compacted etcd");
    }
    Ok(next)
}

/// The claim: write the key if it still has the version seen last, else read it.
fn raise(round: Round) -> TxnRequest {
    let unchanged = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: KEY.into(),
        target_union: Some(TargetUnion::Version(round.version)),
    };
    let put = PutRequest { key: KEY.into(), value: round.revision.to_string().into(), ..PutRequest::default() };
    let get = RangeRequest { key: KEY.into(), ..RangeRequest::default() };
    TxnRequest {
        compare: vec![unchanged],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(get)) }],
    }
}

/// What to remember, and the revision to compact to (0: none).
fn conclude(round: Round, answer: &TxnResponse) -> (Round, i64) {
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    if answer.succeeded {
        return (Round { version: round.version + 1, revision }, round.revision);
    }
    let version = answer.responses.iter().find_map(|response| match &response.response {
        Some(response_op::Response::ResponseRange(range)) => range.kvs.first().map(|kv| kv.version),
        _ => None,
    });
    (Round { version: version.unwrap_or(0), revision }, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcdserverpb::{RangeResponse, ResponseHeader, ResponseOp};
    use proto::mvccpb::KeyValue;

    #[test]
    fn the_winner_of_a_round_compacts_to_the_revision_of_the_last() {
        let header = |revision| Some(ResponseHeader { revision, ..ResponseHeader::default() });
        let won = |revision| TxnResponse { header: header(revision), succeeded: true, responses: vec![] };
        let lost = |revision, version| {
            let kvs = vec![KeyValue { version, ..KeyValue::default() }];
            let range = RangeResponse { kvs, ..RangeResponse::default() };
            let response = Some(response_op::Response::ResponseRange(range));
            TxnResponse { header: header(revision), succeeded: false, responses: vec![ResponseOp { response }] }
        };
        let round = |version, revision| Round { version, revision };
        for (before, answer, want) in [
            (round(0, 0), won(10), (round(1, 10), 0)),
            (round(1, 10), won(20), (round(2, 20), 10)),
            (round(0, 0), lost(30, 7), (round(7, 30), 0)),
            (round(7, 30), won(40), (round(8, 40), 30)),
        ] {
            assert_eq!(conclude(before, &answer), want);
        }
    }
}
