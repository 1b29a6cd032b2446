//! A whole table as it should be, and the transactions that lead there.

use std::collections::BTreeMap;

use super::element::{Element, ElementValue, SetKind, SetSpec, flag};
use super::list::{ListedSet, ListedTable};
use super::model::{BaseChain, Rule, Table};
use super::{Nft, Transaction};
use crate::Result;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub spec: SetSpec,
    /// Empty for dynamic sets: those are the kernel's.
    pub elements: BTreeMap<Vec<u8>, ElementValue>,
}

/// One table's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub table: Table,
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Set>,
}

impl Ruleset {
    pub fn new(table: Table) -> Self {
        Self { table, chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    pub fn base_chain(&mut self, name: &str, base: BaseChain) -> &mut Chain {
        let chain = self.chains.entry(name.to_owned()).or_default();
        chain.base = Some(base);
        chain
    }

    pub fn chain(&mut self, name: &str) -> &mut Chain {
        self.chains.entry(name.to_owned()).or_default()
    }

    pub fn rule(&mut self, chain: &str, rule: Rule) {
        self.chain(chain).rules.push(rule);
    }

    pub fn set(&mut self, name: &str, spec: SetSpec) -> &mut Set {
        self.sets.entry(name.to_owned()).or_insert_with(|| Set { spec, elements: BTreeMap::new() })
    }

    /// From `old`, which the kernel is known to hold, to this: only what differs.
    pub fn changes(&self, old: &Self) -> Transaction {
        let mut transaction = Transaction::new(&self.table);
        let reshaped = |name: &String| old.sets.get(name).is_some_and(|set| set.spec != self.sets[name].spec);
        let rehooked = |name: &String| old.chains.get(name).is_some_and(|chain| chain.base != self.chains[name].base);
        if self.sets.keys().any(reshaped) || self.chains.keys().any(rehooked) {
            return self.replacement();
        }
        for (name, chain) in self.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)) {
            transaction.add_chain(name, chain.base.as_ref());
        }
        for (name, set) in self.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
            transaction.add_set(name, &set.spec);
        }
        let changed: Vec<_> = self
            .chains
            .iter()
            .filter(|(name, chain)| old.chains.get(*name).is_none_or(|before| before.rules != chain.rules))
            .collect();
        for (name, _) in changed.iter().filter(|(name, _)| old.chains.contains_key(*name)) {
            transaction.flush_chain(name);
        }
        let gone: Vec<_> = old.chains.keys().filter(|name| !self.chains.contains_key(*name)).collect();
        for name in &gone {
            transaction.flush_chain(name);
        }
        self.change_elements(old, &mut transaction);
        for (name, chain) in changed {
            add_rules(&mut transaction, name, chain);
        }
        // A set still looked up by a rule, or a chain still jumped to, cannot go: rules went first.
        for name in old.sets.keys().filter(|name| !self.sets.contains_key(*name)) {
            transaction.delete_set(name);
        }
        for name in gone {
            transaction.delete_chain(name);
        }
        transaction
    }

    fn change_elements(&self, old: &Self, transaction: &mut Transaction) {
        let nothing = BTreeMap::new();
        for (name, set) in &self.sets {
            let before = old.sets.get(name).map_or(&nothing, |set| &set.elements);
            let removed = difference(before, &set.elements);
            if !removed.is_empty() {
                transaction.delete_elements(name, &removed);
            }
            let added = difference(&set.elements, before);
            if !added.is_empty() {
                transaction.add_elements(name, &added);
            }
        }
    }

    /// Everything anew, in one step: the old table, if any, is there until this one is.
    pub fn replacement(&self) -> Transaction {
        let mut transaction = Transaction::new(&self.table);
        transaction.add_table();
        transaction.delete_table();
        transaction.add_table();
        self.fill(&mut transaction);
        transaction
    }

    fn fill(&self, transaction: &mut Transaction) {
        for (name, chain) in &self.chains {
            transaction.add_chain(name, chain.base.as_ref());
        }
        for (name, set) in &self.sets {
            transaction.add_set(name, &set.spec);
        }
        for (name, set) in &self.sets {
            let elements = difference(&set.elements, &BTreeMap::new());
            transaction.add_elements(name, &elements);
        }
        for (name, chain) in &self.chains {
            add_rules(transaction, name, chain);
        }
    }

    /// From a table whose rules are unknown (an earlier process made them) to this one, keeping the
    /// content of dynamic sets, in one step.
    pub fn adopt(&self, found: Option<&ListedTable>) -> Transaction {
        let Some(found) = found else { return self.replacement() };
        let rehooked = found.chains.iter().any(|chain| {
            self.chains
                .get(&chain.name)
                .is_some_and(|wanted| wanted.base.map(|base| (base.hook as u32, base.priority)) != chain.base)
        });
        if rehooked {
            return self.replacement();
        }
        let mut transaction = Transaction::new(&self.table);
        transaction.add_table();
        transaction.flush_rules();
        let named = || found.sets.iter().filter(|set| !set.is_anonymous());
        for set in named().filter(|set| set.flags & flag::EVAL == 0) {
            transaction.flush_set(&set.name);
        }
        for set in named().filter(|set| !self.sets.get(&set.name).is_some_and(|wanted| same_shape(&wanted.spec, set))) {
            transaction.delete_set(&set.name);
        }
        for chain in found.chains.iter().filter(|chain| !self.chains.contains_key(&chain.name)) {
            transaction.delete_chain(&chain.name);
        }
        self.fill(&mut transaction);
        transaction
    }

    /// Makes the kernel hold this, whatever it holds now.
    pub fn apply_over_unknown(&self, nft: &mut Nft) -> Result<()> {
        let found = nft.list(&self.table)?;
        match nft.commit(self.adopt(found.as_ref())) {
            Ok(()) => Ok(()),
            // Something there does not fit (another version's shapes): give up dynamic content.
            Err(_) => nft.commit(self.replacement()),
        }
    }
}

fn add_rules(transaction: &mut Transaction, name: &str, chain: &Chain) {
    for rule in &chain.rules {
        transaction.add_rule(name, rule);
    }
}

/// Elements of `of` that `from` lacks or has with another value.
fn difference(of: &BTreeMap<Vec<u8>, ElementValue>, from: &BTreeMap<Vec<u8>, ElementValue>) -> Vec<Element> {
    of.iter()
        .filter(|(key, value)| from.get(*key) != Some(*value))
        .map(|(key, value)| Element { key: key.clone(), value: value.clone() })
        .collect()
}

fn same_shape(wanted: &SetSpec, found: &ListedSet) -> bool {
    let timeout = match wanted.kind {
        SetKind::Dynamic { timeout } => u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        SetKind::Set | SetKind::VerdictMap => 0,
    };
    wanted.flags() == found.flags & flag::SHAPE
        && wanted.key_type() == found.key_type
        && wanted.key_length() == found.key_length
        && timeout == found.timeout
}

#[cfg(test)]
mod tests {
    use super::super::model::{Family, Statement, Verdict};
    use super::super::{KeyType, SetKind};
    use super::*;

    fn ruleset(chains: &[(&str, &str)], elements: &[(u8, &str)]) -> Ruleset {
        let mut ruleset = Ruleset::new(Table::new(Family::Ipv4, "skiff_test"));
        for (name, target) in chains {
            ruleset.rule(name, Rule::new([Statement::goto(*target)]));
        }
        let map = ruleset.set("map", SetSpec::new([KeyType::Protocol], SetKind::VerdictMap));
        for (key, target) in elements {
            map.elements.insert(vec![*key], ElementValue::Verdict(Verdict::Goto((*target).to_owned())));
        }
        ruleset
    }

    #[test]
    fn only_what_differs_is_sent() {
        let cases: &[(&str, Ruleset, Ruleset, &[&str])] = &[
            ("nothing", ruleset(&[("a", "x")], &[(1, "a")]), ruleset(&[("a", "x")], &[(1, "a")]), &[]),
            (
                "a changed chain is refilled",
                ruleset(&[("a", "x")], &[(1, "a")]),
                ruleset(&[("a", "y")], &[(1, "a")]),
                &["flush chain a", "add a rule to chain a"],
            ),
            (
                "a new chain and its element",
                ruleset(&[("a", "x")], &[(1, "a")]),
                ruleset(&[("a", "x"), ("b", "x")], &[(1, "a"), (2, "b")]),
                &["add chain b", "add elements to set map", "add a rule to chain b"],
            ),
            (
                "an element goes before the chain it names",
                ruleset(&[("a", "x"), ("b", "x")], &[(1, "a"), (2, "b")]),
                ruleset(&[("a", "x")], &[(1, "a")]),
                &["flush chain b", "delete elements of set map", "delete chain b"],
            ),
            (
                "a changed value is deleted and added",
                ruleset(&[("a", "x"), ("b", "x")], &[(1, "a")]),
                ruleset(&[("a", "x"), ("b", "x")], &[(1, "b")]),
                &["delete elements of set map", "add elements to set map"],
            ),
        ];
        for (name, old, new, expected) in cases {
            assert_eq!(new.changes(old).describe(), *expected, "{name}");
        }
    }
}
