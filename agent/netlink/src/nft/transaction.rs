//! Batches: everything in one takes effect at once, or nothing does.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::element::{Element, ElementValue, SetKind, SetSpec};
use super::expression::{Prepared, prepare, verdict, write};
use super::model::{BaseChain, ChainType, Rule, Table};
use super::{BODY, KeyType, Nft, operation};
use crate::Result;
use crate::message::{Message, flag};
use crate::socket::{error_of, is_error};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NUMBER: u16 = 10;
/// Elements per message: their enclosing attribute must stay under 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 200;
/// nft's number for a verdict as a map's data.
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const DATA_TYPE_LENGTH_VERDICT: u32 = 16;
/// nft's user data for a set: type 0 (byte order of the key), four bytes, host order. The kernel does
/// not look at it; without it `nft list` would show the numbers swapped.
const HOST_ORDER_KEY: [u8; 6] = [0, 4, 1, 0, 0, 0];
/// Longest rule comment nft keeps, its NUL included.
const COMMENT_LIMIT: usize = 128;

/// Changes of one table, in order.
#[derive(Debug)]
pub struct Transaction {
    table: Table,
    /// What each message does, for the error that names it.
    messages: Vec<(String, Message)>,
    next_set: u32,
}

impl Transaction {
    pub fn new(table: &Table) -> Self {
        Self { table: table.clone(), messages: Vec::new(), next_set: 1 }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// What it does, one line a message, for logs and tests.
    pub fn describe(&self) -> Vec<&str> {
        self.messages.iter().map(|(what, _)| what.as_str()).collect()
    }

    fn message(&self, number: u16, flags: u16) -> Message {
        Message::new(operation::SUBSYSTEM | number, flags, &[self.table.family as u8, 0, 0, 0])
    }

    fn push(&mut self, what: String, message: Message) {
        self.messages.push((what, message));
    }

    /// No error when it is there already.
    pub fn add_table(&mut self) {
        let mut message = self.message(operation::NEW_TABLE, flag::CREATE);
        message.string(1, &self.table.name).u32_be(2, 0);
        self.push(format!("add table {}", self.table.name), message);
    }

    /// With everything in it.
    pub fn delete_table(&mut self) {
        let mut message = self.message(operation::DELETE_TABLE, 0);
        message.string(1, &self.table.name);
        self.push(format!("delete table {}", self.table.name), message);
    }

    /// No error when a chain of this name is there already.
    pub fn add_chain(&mut self, name: &str, base: Option<&BaseChain>) {
        let mut message = self.message(operation::NEW_CHAIN, flag::CREATE);
        message.string(1, &self.table.name).string(3, name);
        if let Some(base) = base {
            message.nested(4, |hook| {
                hook.u32_be(1, base.hook as u32).u32_be(2, base.priority.cast_unsigned());
            });
            message.u32_be(5, u32::from(!base.drop_by_default));
            message.string(
                7,
                match base.kind {
                    ChainType::Filter => "filter",
                    ChainType::Nat => "nat",
                    ChainType::Route => "route",
                },
            );
        }
        self.push(format!("add chain {name}"), message);
    }

    pub fn delete_chain(&mut self, name: &str) {
        let mut message = self.message(operation::DELETE_CHAIN, 0);
        message.string(1, &self.table.name).string(3, name);
        self.push(format!("delete chain {name}"), message);
    }

    /// Deletes the rules of one chain.
    pub fn flush_chain(&mut self, name: &str) {
        let mut message = self.message(operation::DELETE_RULE, 0);
        message.string(1, &self.table.name).string(2, name);
        self.push(format!("flush chain {name}"), message);
    }

    /// Deletes the rules of every chain.
    pub fn flush_rules(&mut self) {
        let mut message = self.message(operation::DELETE_RULE, 0);
        message.string(1, &self.table.name);
        self.push("flush all rules".to_owned(), message);
    }

    /// Deletes one rule by the handle that a listing gave.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        let mut message = self.message(operation::DELETE_RULE, 0);
        message.string(1, &self.table.name).string(2, chain).u64_be(3, handle);
        self.push(format!("delete rule {handle} of chain {chain}"), message);
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let prepared: Vec<Prepared<'_>> = rule.statements.iter().map(|statement| prepare(self, statement)).collect();
        let mut message = self.message(operation::NEW_RULE, flag::CREATE | flag::APPEND);
        message.string(1, &self.table.name).string(2, chain);
        let family = self.table.family;
        message.nested(4, |list| {
            for statement in &prepared {
                write(list, statement, family);
            }
        });
        if !rule.comment.is_empty() {
            message.attribute(7, &comment(&rule.comment));
        }
        self.push(format!("add a rule to chain {chain}"), message);
    }

    /// No error when a set of this name and shape is there already.
    pub fn add_set(&mut self, name: &str, spec: &SetSpec) {
        let id = self.take_set_id();
        let message = self.set_message(name, spec, spec.flags(), id);
        self.push(format!("add set {name}"), message);
    }

    /// A set that lives as long as the rule that the next message adds.
    pub(super) fn add_anonymous(&mut self, spec: &SetSpec, flags: u32, elements: &[Element]) -> (String, u32) {
        let id = self.take_set_id();
        let name = anonymous_name();
        let message = self.set_message(&name, spec, spec.flags() | flags, id);
        self.push("add an anonymous map".to_owned(), message);
        self.elements(operation::NEW_ELEMENT, &name, Some(id), elements, "fill an anonymous map");
        (name, id)
    }

    fn take_set_id(&mut self) -> u32 {
        let id = self.next_set;
        self.next_set += 1;
        id
    }

    fn set_message(&self, name: &str, spec: &SetSpec, flags: u32, id: u32) -> Message {
        let mut message = self.message(operation::NEW_SET, flag::CREATE);
        message.string(1, &self.table.name).string(2, name).u32_be(3, flags);
        message.u32_be(4, spec.key_type()).u32_be(5, spec.key_length());
        match spec.kind {
            SetKind::VerdictMap => {
                message.u32_be(6, DATA_TYPE_VERDICT).u32_be(7, DATA_TYPE_LENGTH_VERDICT);
            }
            SetKind::Dynamic { timeout } => {
                message.u64_be(11, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            }
            SetKind::Set => {}
        }
        message.u32_be(10, id);
        if spec.key == [KeyType::Number] {
            message.attribute(13, &HOST_ORDER_KEY);
        }
        message
    }

    pub fn delete_set(&mut self, name: &str) {
        let mut message = self.message(operation::DELETE_SET, 0);
        message.string(1, &self.table.name).string(2, name);
        self.push(format!("delete set {name}"), message);
    }

    pub fn flush_set(&mut self, name: &str) {
        let mut message = self.message(operation::DELETE_ELEMENT, 0);
        message.string(1, &self.table.name).string(2, name);
        self.push(format!("flush set {name}"), message);
    }

    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(operation::NEW_ELEMENT, set, None, elements, &format!("add elements to set {set}"));
    }

    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(operation::DELETE_ELEMENT, set, None, elements, &format!("delete elements of set {set}"));
    }

    fn elements(&mut self, number: u16, set: &str, id: Option<u32>, elements: &[Element], what: &str) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut message = self.message(number, if number == operation::NEW_ELEMENT { flag::CREATE } else { 0 });
            message.string(1, &self.table.name).string(2, set);
            if let Some(id) = id {
                message.u32_be(4, id);
            }
            message.nested(3, |list| {
                for element in chunk {
                    list.nested(1, |nested| write_element(nested, element));
                }
            });
            self.push(what.to_owned(), message);
        }
    }
}

/// A name that no other set has. The kernel would number `__map%d` by parsing the name of every set
/// of the table, which takes seconds with thousands of them; a name that differs from the others in
/// its first letters costs it almost nothing.
fn anonymous_name() -> String {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // From the clock, past the names that an earlier process left behind.
    let first = FIRST.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(1)
    });
    let number = first.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
    format!("__{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15).swap_bytes())
}

fn write_element(nested: &mut Message, element: &Element) {
    nested.nested(1, |key| {
        key.attribute(1, &element.key);
    });
    if let ElementValue::Verdict(value) = &element.value {
        nested.nested(2, |data| verdict(data, value));
    }
}

/// nft's user data: one type-length-value of type 0, NUL-terminated.
fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(COMMENT_LIMIT - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

impl Nft {
    /// Removes the rules of a table whose comment is `gone`. When somebody else removes one of them
    /// meanwhile, none is removed and that is no error: who collects by timer takes them next time.
    pub fn remove_rules(&mut self, table: &Table, gone: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut transaction = Transaction::new(table);
        for rule in self.rules(table)?.iter().filter(|rule| gone(&rule.comment)) {
            transaction.delete_rule(&rule.chain, rule.handle);
        }
        match self.commit(transaction) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }

    /// Sends a transaction. An error names the first message that the kernel refused.
    pub fn commit(&mut self, transaction: Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        let frame =
            |kind| Message::new(kind, 0, &[0, 0, SUBSYSTEM_NUMBER.to_be_bytes()[0], SUBSYSTEM_NUMBER.to_be_bytes()[1]]);
        let table = transaction.table.name;
        let first = self.socket.next_sequence();
        let mut datagram = frame(BATCH_BEGIN).finish(first);
        let mut operations = Vec::with_capacity(transaction.messages.len());
        for (what, message) in transaction.messages {
            datagram.extend(message.finish(self.socket.next_sequence()));
            operations.push(what);
        }
        datagram.extend(frame(BATCH_END).finish(self.socket.next_sequence()));
        self.socket.ensure_send_buffer(datagram.len() * 2);
        let operation = format!("change nf_tables table {table}");
        self.socket.send(&operation, &datagram)?;
        self.collect_errors(&operation, &operations, first)
    }

    /// No message asks for an acknowledgement (the answers to a long batch would overflow the
    /// receive buffer), so silence is success: the kernel has answered before send returns.
    fn collect_errors(&mut self, operation: &str, operations: &[String], first: u32) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(replies) = self.socket.receive(operation, false)? {
            for reply in replies.iter().filter(|reply| is_error(reply)) {
                let at = reply.sequence.wrapping_sub(first).wrapping_sub(1) as usize;
                let what = operations.get(at).map_or("commit", String::as_str);
                let error = error_of(&format!("{operation}: {what}"), reply);
                if outcome.is_ok() {
                    outcome = error;
                }
            }
        }
        outcome
    }
}

/// Length of the fixed body; here so that readers of answers and writers of requests agree.
const _: () = assert!(BODY == 4);
