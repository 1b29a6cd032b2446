//! What a table holds now: for adoption at start, for audits and for cleaning up.

use super::element::flag;
use super::model::{Family, Table};
use super::{BODY, Nft, operation};
use crate::Result;
use crate::message::{Message, flag as header};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedChain {
    pub name: String,
    /// Hook number and priority of a base chain.
    pub base: Option<(u32, i32)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSet {
    pub name: String,
    pub flags: u32,
    pub key_type: u32,
    pub key_length: u32,
    /// Milliseconds; 0 without.
    pub timeout: u64,
}

impl ListedSet {
    pub fn is_anonymous(&self) -> bool {
        self.flags & flag::ANONYMOUS != 0
    }
}

/// Names only: enough to make the table what it should be without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedTable {
    pub chains: Vec<ListedChain>,
    pub sets: Vec<ListedSet>,
}

/// A rule's place and comment, for rules that are found by their comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRule {
    pub chain: String,
    pub handle: u64,
    pub comment: String,
}

fn request(number: u16, family: Family) -> Message {
    Message::new(operation::SUBSYSTEM | number, 0, &[family as u8, 0, 0, 0])
}

impl Nft {
    /// Every table of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>> {
        let replies = self.socket.dump("list nf_tables tables", request(operation::GET_TABLE, family))?;
        Ok(replies.iter().filter_map(|reply| reply.attributes(BODY).string(1)).collect())
    }

    /// None when there is no such table.
    pub fn list(&mut self, table: &Table) -> Result<Option<ListedTable>> {
        if !self.tables(table.family)?.contains(&table.name) {
            return Ok(None);
        }
        Ok(Some(ListedTable { chains: self.chains(table)?, sets: self.sets(table)? }))
    }

    fn chains(&mut self, table: &Table) -> Result<Vec<ListedChain>> {
        let replies = self.socket.dump("list nf_tables chains", request(operation::GET_CHAIN, table.family))?;
        Ok(replies
            .iter()
            .map(|reply| reply.attributes(BODY))
            .filter(|attributes| attributes.string(1).as_deref() == Some(&table.name))
            .filter_map(|attributes| {
                let hook = attributes.nested(4);
                Some(ListedChain {
                    name: attributes.string(3)?,
                    base: hook.u32_be(1).zip(hook.u32_be(2).map(u32::cast_signed)),
                })
            })
            .collect())
    }

    fn sets(&mut self, table: &Table) -> Result<Vec<ListedSet>> {
        let mut message = request(operation::GET_SET, table.family);
        message.string(1, &table.name);
        let replies = self.socket.dump("list nf_tables sets", message)?;
        Ok(replies
            .iter()
            .map(|reply| reply.attributes(BODY))
            .filter_map(|attributes| {
                Some(ListedSet {
                    name: attributes.string(2)?,
                    flags: attributes.u32_be(3).unwrap_or(0),
                    key_type: attributes.u32_be(4).unwrap_or(0),
                    key_length: attributes.u32_be(5).unwrap_or(0),
                    timeout: attributes.u64_be(11).unwrap_or(0),
                })
            })
            .collect())
    }

    /// The keys of a set or map.
    pub fn keys(&mut self, table: &Table, set: &str) -> Result<Vec<Vec<u8>>> {
        let mut message = request(operation::GET_ELEMENT, table.family);
        message.string(1, &table.name).string(2, set);
        let replies = self.socket.dump(&format!("list the elements of set {set}"), message)?;
        let mut keys = Vec::new();
        for reply in &replies {
            for (_, element) in reply.attributes(BODY).nested(3) {
                if let Some(key) = crate::message::Attributes(element).nested(1).get(1) {
                    keys.push(key.to_vec());
                }
            }
        }
        Ok(keys)
    }

    /// Every rule of a table with its comment; none when there is no such table.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<ListedRule>> {
        let mut message = request(operation::GET_RULE, table.family);
        message.string(1, &table.name);
        let replies = match self.socket.dump("list nf_tables rules", message) {
            Ok(replies) => replies,
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(replies
            .iter()
            .map(|reply| reply.attributes(BODY))
            .filter_map(|attributes| {
                Some(ListedRule {
                    chain: attributes.string(2)?,
                    handle: attributes.u64_be(3)?,
                    comment: attributes.get(7).map(comment).unwrap_or_default(),
                })
            })
            .collect())
    }

    /// Removes a table with everything in it; no error when there is none.
    pub fn delete_table(&mut self, table: &Table) -> Result<()> {
        let mut transaction = super::Transaction::new(table);
        transaction.delete_table();
        match self.commit(transaction) {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }
}

fn comment(user_data: &[u8]) -> String {
    match user_data {
        [0, length, rest @ ..] => {
            let text = rest.get(..usize::from(*length).saturating_sub(1)).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        }
        _ => String::new(),
    }
}

/// Dumps of rules and sets are plain requests with the dump flag; this keeps the flag's meaning
/// beside the code that relies on it.
const _: () = assert!(header::DUMP == 0x300);
