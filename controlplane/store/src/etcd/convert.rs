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

/// How far events tell everything: to the last one's revision, whoever's key that is.
pub fn reached(events: &[mvccpb::Event]) -> Revision {
    events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| to_revision(kv.mod_revision))
}

/// Whether etcd could not say what a change replaced: that was compacted while the event was on its way.
pub fn lacks_previous(event: &mvccpb::Event) -> bool {
    let deleted = event.r#type() == mvccpb::event::EventType::Delete;
    let created = event.kv.as_ref().is_some_and(|kv| !deleted && kv.create_revision == kv.mod_revision);
    !created && event.prev_kv.is_none()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proto::mvccpb::event::EventType;

    fn of(key: &[u8], created: i64, revision: i64) -> mvccpb::KeyValue {
        let key = bytes::Bytes::copy_from_slice(key);
        mvccpb::KeyValue { key, create_revision: created, mod_revision: revision, ..mvccpb::KeyValue::default() }
    }

    fn told(kind: EventType, kv: mvccpb::KeyValue, prev_kv: Option<mvccpb::KeyValue>) -> mvccpb::Event {
        mvccpb::Event { r#type: kind.into(), kv: Some(kv), prev_kv }
    }

    /// Another program's key would else keep progress from being told, and every consistent list waiting.
    #[test]
    fn a_key_that_is_no_text_is_left_out_and_counts_all_the_same() {
        let events = [told(EventType::Put, of(b"/a", 7, 7), None), told(EventType::Put, of(b"\xff", 8, 8), None)];
        assert_eq!((reached(&events), reached(&[])), (8, 0));
        let revisions: Vec<Revision> = events.into_iter().filter_map(event).map(|event| event.revision).collect();
        assert_eq!(revisions, [7]);
    }

    /// It would pass for a creation, and a deletion for nothing at all.
    #[test]
    fn a_change_without_what_it_replaced_is_known() {
        let before = || Some(of(b"/a", 7, 8));
        for (event, lacks) in [
            (told(EventType::Put, of(b"/a", 7, 7), None), false),
            (told(EventType::Put, of(b"/a", 7, 9), before()), false),
            (told(EventType::Put, of(b"/a", 7, 9), None), true),
            (told(EventType::Delete, of(b"/a", 0, 9), before()), false),
            (told(EventType::Delete, of(b"/a", 0, 9), None), true),
        ] {
            assert_eq!(lacks_previous(&event), lacks, "{event:?}");
        }
    }
}
