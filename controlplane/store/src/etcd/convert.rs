//! Between etcd's messages and the store's values. Pure.

use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, request_op, response_op,
};
use proto::mvccpb;
use tonic::{Code, Status};

use crate::{Event, KeyValue, Page, Range, Revision, StoreError, Txn, TxnOutcome, Write, prefix_end};

pub fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| to_revision(header.revision))
}

fn to_revision(revision: i64) -> Revision {
    u64::try_from(revision).unwrap_or(0)
}

pub fn to_wire(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// None for a key that is not text: another program's.
pub fn key_value(kv: mvccpb::KeyValue) -> Option<KeyValue> {
    let key = std::str::from_utf8(&kv.key).ok()?.into();
    Some(KeyValue { key, value: kv.value, mod_revision: to_revision(kv.mod_revision) })
}

pub fn event(event: mvccpb::Event) -> Option<Event> {
    let deleted = event.r#type() == mvccpb::event::EventType::Delete;
    let kv = key_value(event.kv?)?;
    Some(Event {
        key: kv.key,
        revision: kv.mod_revision,
        value: (!deleted).then_some(kv.value),
        previous: event.prev_kv.and_then(key_value),
    })
}

pub fn range_request(range: &Range) -> RangeRequest {
    let end = prefix_end(range.prefix.as_bytes()).unwrap_or_else(|| vec![0]);
    let first = range.first().as_bytes();
    RangeRequest {
        // etcd has no empty key: a zero byte means the first there is.
        key: if first.is_empty() { vec![0].into() } else { first.to_vec().into() },
        range_end: end.into(),
        limit: i64::try_from(range.limit).unwrap_or(i64::MAX),
        revision: to_wire(range.revision),
        keys_only: range.keys_only,
        ..RangeRequest::default()
    }
}

pub fn page(range: &Range, answer: RangeResponse) -> Page {
    let now = revision_of(answer.header.as_ref());
    Page {
        kvs: answer.kvs.into_iter().filter_map(key_value).collect(),
        count: to_revision(answer.count),
        revision: if range.revision == 0 { now } else { range.revision },
    }
}

/// `lease`: for a put that expires; 0: none.
pub fn txn_request(txn: &Txn, lease: i64) -> TxnRequest {
    let key = || bytes::Bytes::copy_from_slice(txn.key.as_bytes());
    let unchanged = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key(),
        target_union: Some(TargetUnion::ModRevision(to_wire(txn.expected))),
    };
    let write = match &txn.write {
        Write::Put { value, .. } => request_op::Request::RequestPut(PutRequest {
            key: key(),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        }),
        Write::Delete => {
            request_op::Request::RequestDeleteRange(DeleteRangeRequest { key: key(), ..DeleteRangeRequest::default() })
        }
    };
    let read = RangeRequest { key: key(), ..RangeRequest::default() };
    let op = |request| vec![RequestOp { request: Some(request) }];
    TxnRequest { compare: vec![unchanged], success: op(write), failure: op(request_op::Request::RequestRange(read)) }
}

pub fn txn_outcome(answer: TxnResponse) -> TxnOutcome {
    let revision = revision_of(answer.header.as_ref());
    if answer.succeeded {
        return TxnOutcome::Done { revision };
    }
    let current = answer.responses.into_iter().find_map(|response| match response.response {
        Some(response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    TxnOutcome::Conflict { current: current.and_then(key_value), revision }
}

/// The errors etcd has a meaning for; none: the call failed.
pub fn refusal(status: &Status, requested: Revision) -> Option<StoreError> {
    let message = status.message();
    if status.code() == Code::OutOfRange && message.contains("has been compacted") {
        return Some(StoreError::Compacted { requested, compacted: 0 });
    }
    if status.code() == Code::OutOfRange && message.contains("is a future revision") {
        return Some(StoreError::FutureRevision { requested, current: 0 });
    }
    None
}
