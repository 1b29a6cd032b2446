//! Statements into the kernel's expressions: load into registers, compare, look up, act.
//!
//! The 32-bit registers are used throughout, from the first one up: a concatenated key lies in
//! consecutive registers, each part padded to four bytes.

use super::element::{ElementValue, SetKind, flag};
use super::model::{Comparison, Family, Field, Reject, Statement, Verdict};
use super::{Element, KeyType, SetSpec, Transaction};
use crate::message::Message;

const REGISTER_VERDICT: u32 = 0;
/// NFT_REG32_00.
const REGISTER: u32 = 8;

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const META_PROTOCOL_NUMBERS: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nested(LIST_ELEMENT, |element| {
        element.string(EXPRESSION_NAME, name);
        element.nested(EXPRESSION_DATA, data);
    });
}

fn payload(list: &mut Message, register: u32, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.u32_be(1, register).u32_be(2, base).u32_be(3, offset).u32_be(4, length);
    });
}

fn meta(list: &mut Message, register: u32, key: u32) {
    expression(list, "meta", |data| {
        data.u32_be(1, register).u32_be(2, key);
    });
}

fn conntrack(list: &mut Message, register: u32, key: u32, original: bool) {
    expression(list, "ct", |data| {
        data.u32_be(1, register).u32_be(2, key);
        if original {
            data.u8(3, 0);
        }
    });
}

/// `fib ... type`; `address` is 1 for the source, 2 for the destination.
fn address_type(list: &mut Message, register: u32, address: u32) {
    expression(list, "fib", |data| {
        data.u32_be(1, register).u32_be(2, 3).u32_be(3, address);
    });
}

fn load(list: &mut Message, field: Field, register: u32) {
    match field {
        Field::SourceAddress => payload(list, register, BASE_NETWORK, 12, 4),
        Field::DestinationAddress => payload(list, register, BASE_NETWORK, 16, 4),
        Field::SourceAddress6 => payload(list, register, BASE_NETWORK, 8, 16),
        Field::DestinationAddress6 => payload(list, register, BASE_NETWORK, 24, 16),
        Field::SourcePort => payload(list, register, BASE_TRANSPORT, 0, 2),
        Field::DestinationPort => payload(list, register, BASE_TRANSPORT, 2, 2),
        Field::Protocol => meta(list, register, META_PROTOCOL_NUMBERS),
        Field::NetworkProtocol => meta(list, register, 15),
        Field::InputInterface => meta(list, register, 6),
        Field::OutputInterface => meta(list, register, 7),
        Field::Mark => meta(list, register, 3),
        Field::ConntrackState => conntrack(list, register, 0, false),
        Field::ConntrackStatus => conntrack(list, register, 2, false),
        Field::ConntrackMark => conntrack(list, register, 3, false),
        Field::OriginalDestination => conntrack(list, register, 20, true),
        Field::OriginalDestinationPort => conntrack(list, register, 12, true),
        Field::DestinationType => address_type(list, register, 2),
        Field::SourceType => address_type(list, register, 1),
    }
}

fn load_all(list: &mut Message, fields: &[Field]) {
    let mut register = REGISTER;
    for field in fields {
        load(list, *field, register);
        register += field.width().div_ceil(4) as u32;
    }
}

fn compare(list: &mut Message, comparison: Comparison, value: &[u8]) {
    let operator = match comparison {
        Comparison::Equal => 0,
        Comparison::NotEqual => 1,
        Comparison::AtMost => 3,
        Comparison::AtLeast => 5,
    };
    expression(list, "cmp", |data| {
        data.u32_be(1, REGISTER).u32_be(2, operator);
        data.nested(3, |nested| {
            nested.attribute(DATA_VALUE, value);
        });
    });
}

fn bitwise(list: &mut Message, mask: &[u8], xor: &[u8]) {
    expression(list, "bitwise", |data| {
        data.u32_be(1, REGISTER).u32_be(2, REGISTER).u32_be(3, mask.len() as u32);
        for (kind, bytes) in [(4, mask), (5, xor)] {
            data.nested(kind, |nested| {
                nested.attribute(DATA_VALUE, bytes);
            });
        }
    });
}

fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |data| {
        data.u32_be(1, register);
        data.nested(2, |nested| {
            nested.attribute(DATA_VALUE, value);
        });
    });
}

pub(super) fn verdict(nested: &mut Message, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0i32, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    nested.nested(DATA_VERDICT, |inner| {
        inner.u32_be(1, code.cast_unsigned());
        if let Some(chain) = chain {
            inner.string(2, chain);
        }
    });
}

fn set_mark(list: &mut Message) {
    expression(list, "meta", |data| {
        data.u32_be(2, 3).u32_be(3, REGISTER);
    });
}

/// How a look-up names its set.
struct Lookup<'a> {
    set: &'a str,
    /// Set while the set is only known to this transaction.
    id: Option<u32>,
    negated: bool,
    to_verdict: bool,
}

fn lookup(list: &mut Message, lookup: &Lookup<'_>) {
    expression(list, "lookup", |data| {
        data.string(1, lookup.set).u32_be(2, REGISTER);
        if lookup.to_verdict {
            data.u32_be(3, REGISTER_VERDICT);
        }
        if let Some(id) = lookup.id {
            data.u32_be(4, id);
        }
        if lookup.negated {
            data.u32_be(5, 1);
        }
    });
}

/// The family-independent form is only understood by tables that see both families; others take it
/// and drop without an answer.
fn reject(list: &mut Message, reject: Reject, family: Family) {
    const UNREACHABLE: u32 = 0;
    const ANY_FAMILY: u32 = 2;
    let (kind, code) = match (reject, family) {
        (Reject::TcpReset, _) => (1, None),
        (Reject::PortUnreachable, Family::Ipv4) => (UNREACHABLE, Some(3)),
        (Reject::PortUnreachable, Family::Ipv6) => (UNREACHABLE, Some(4)),
        (Reject::PortUnreachable, _) => (ANY_FAMILY, Some(1)),
        (Reject::AdminProhibited, Family::Ipv4) => (UNREACHABLE, Some(13)),
        (Reject::AdminProhibited, Family::Ipv6) => (UNREACHABLE, Some(1)),
        (Reject::AdminProhibited, _) => (ANY_FAMILY, Some(3)),
    };
    expression(list, "reject", |data| {
        data.u32_be(1, kind);
        if let Some(code) = code {
            data.u8(2, code);
        }
    });
}

fn destination_nat(list: &mut Message, address: std::net::Ipv4Addr, port: u16) {
    immediate(list, REGISTER, &address.octets());
    immediate(list, REGISTER + 1, &port.to_be_bytes());
    expression(list, "nat", |data| {
        data.u32_be(1, 1).u32_be(2, 2);
        data.u32_be(3, REGISTER).u32_be(4, REGISTER).u32_be(5, REGISTER + 1).u32_be(6, REGISTER + 1);
    });
}

/// Registers the anonymous map of one of several equally likely verdicts; returns its name and id.
fn random_map(transaction: &mut Transaction, verdicts: &[Verdict]) -> (String, u32) {
    let spec = SetSpec { key: vec![KeyType::Number], kind: SetKind::VerdictMap };
    let elements: Vec<Element> = (0u32..)
        .zip(verdicts)
        .map(|(at, verdict)| Element { key: at.to_ne_bytes().to_vec(), value: ElementValue::Verdict(verdict.clone()) })
        .collect();
    transaction.add_anonymous(&spec, flag::ANONYMOUS | flag::CONSTANT, &elements)
}

/// What a statement needs sent ahead of its rule.
pub(super) enum Prepared<'a> {
    Plain(&'a Statement),
    Random { count: u32, map: String, id: u32 },
}

pub(super) fn prepare<'a>(transaction: &mut Transaction, statement: &'a Statement) -> Prepared<'a> {
    match statement {
        Statement::RandomVerdict(verdicts) => {
            let (map, id) = random_map(transaction, verdicts);
            Prepared::Random { count: verdicts.len() as u32, map, id }
        }
        other => Prepared::Plain(other),
    }
}

pub(super) fn write(list: &mut Message, prepared: &Prepared<'_>, family: Family) {
    let statement = match prepared {
        Prepared::Plain(statement) => *statement,
        Prepared::Random { count, map, id } => {
            expression(list, "numgen", |data| {
                data.u32_be(1, REGISTER).u32_be(2, *count).u32_be(3, 1).u32_be(4, 0);
            });
            return lookup(list, &Lookup { set: map, id: Some(*id), negated: false, to_verdict: true });
        }
    };
    match statement {
        Statement::Compare { field, comparison, value } => {
            load(list, *field, REGISTER);
            compare(list, *comparison, value);
        }
        Statement::Masked { field, mask, negated, value } => {
            load(list, *field, REGISTER);
            bitwise(list, mask, &vec![0; mask.len()]);
            compare(list, if *negated { Comparison::NotEqual } else { Comparison::Equal }, value);
        }
        Statement::InSet { fields, set, negated } => {
            load_all(list, fields);
            lookup(list, &Lookup { set, id: None, negated: *negated, to_verdict: false });
        }
        Statement::VerdictMap { fields, map } => {
            load_all(list, fields);
            lookup(list, &Lookup { set: map, id: None, negated: false, to_verdict: true });
        }
        // Only reached through `Prepared::Random`, which was handled above.
        Statement::RandomVerdict(_) => {}
        Statement::Verdict(found) => expression(list, "immediate", |data| {
            data.u32_be(1, REGISTER_VERDICT);
            data.nested(2, |nested| verdict(nested, found));
        }),
        Statement::OrMark(bits) => {
            load(list, Field::Mark, REGISTER);
            bitwise(list, &(!bits).to_ne_bytes(), &bits.to_ne_bytes());
            set_mark(list);
        }
        Statement::AndMark(bits) => {
            load(list, Field::Mark, REGISTER);
            bitwise(list, &bits.to_ne_bytes(), &[0; 4]);
            set_mark(list);
        }
        Statement::DestinationNat { address, port } => destination_nat(list, *address, *port),
        Statement::Masquerade { fully_random } => expression(list, "masq", |data| {
            if *fully_random {
                data.u32_be(1, 1 << 4);
            }
        }),
        Statement::UpdateSet { set, fields } => {
            load_all(list, fields);
            expression(list, "dynset", |data| {
                data.string(1, set).u32_be(3, 1).u32_be(4, REGISTER);
            });
        }
        Statement::Reject(kind) => reject(list, *kind, family),
        Statement::NoTrack => expression(list, "notrack", |_| {}),
        Statement::Counter => expression(list, "counter", |data| {
            data.u64_be(1, 0).u64_be(2, 0);
        }),
    }
}
