//! Walks packets through a [`Ruleset`].

use std::net::Ipv4Addr;

use netlink::nft::{Comparison, ElementValue, Field, Hook, Ruleset, Statement, Verdict};

use super::{Packet, Ways, is_local};

/// Where a packet is after a chain.
#[derive(Debug, Clone)]
enum State {
    Goes(Packet, Option<(Ipv4Addr, u16)>),
    Ended(&'static str),
}

struct Walk<'a> {
    rules: &'a Ruleset,
}

pub fn ways(rules: &Ruleset, packet: Packet) -> Ways {
    let walk = Walk { rules };
    let entry = if packet.is_from_here() { Hook::Output } else { Hook::Prerouting };
    let mut states = walk.hook(entry, "firewall", packet);
    states = states.into_iter().flat_map(|state| walk.then(state, entry, "")).collect();
    let mut found = Ways::new();
    for state in states {
        let (packet, target) = match state {
            State::Ended(verdict) => {
                found.insert(verdict.to_owned());
                continue;
            }
            State::Goes(packet, target) => (packet, target),
        };
        let destination = target.map_or(packet.destination, |(address, _)| address);
        let mut after = packet;
        (after.destination, after.port) = target.unwrap_or((packet.destination, packet.port));
        let hook = match (packet.is_from_here(), is_local(destination)) {
            (true, _) => Hook::Output,
            (false, true) => Hook::Input,
            (false, false) => Hook::Forward,
        };
        let mut filtered = walk.hook(hook, "filter", after);
        if packet.is_from_here() && is_local(destination) {
            let again = filtered.into_iter().flat_map(|state| walk.then(state, Hook::Input, "filter"));
            filtered = again.collect();
        }
        for state in filtered {
            found.insert(match (state, target) {
                (State::Ended(verdict), _) => verdict.to_owned(),
                (State::Goes(..), None) => "pass".to_owned(),
                (State::Goes(packet, _), Some((address, port))) => {
                    let masquerade = if packet.mark & 0x4000 != 0 { " masq" } else { "" };
                    format!("{address}:{port}{masquerade}")
                }
            });
        }
    }
    found
}

impl Walk<'_> {
    /// The base chains of a hook whose names start with `prefix`; the nat ones for an empty prefix.
    fn hook(&self, hook: Hook, prefix: &str, packet: Packet) -> Vec<State> {
        let mut states = vec![State::Goes(packet, None)];
        for (name, chain) in &self.rules.chains {
            let nat = !name.starts_with("filter") && !name.starts_with("firewall");
            let chosen = if prefix.is_empty() { nat } else { name.starts_with(prefix) };
            if chain.base.is_none_or(|base| base.hook != hook) || !chosen {
                continue;
            }
            states = states
                .into_iter()
                .flat_map(|state| match state {
                    State::Goes(packet, None) => self.chain(name, packet).0,
                    other => vec![other],
                })
                .collect();
        }
        states
    }

    fn then(&self, state: State, hook: Hook, prefix: &str) -> Vec<State> {
        match state {
            State::Goes(packet, None) => self.hook(hook, prefix, packet),
            other => vec![other],
        }
    }

    /// The states after a chain, those that ended first and those that fell through its end second
    /// (merged: a base chain's policy is accept, a jump returns to its caller).
    fn chain(&self, name: &str, packet: Packet) -> (Vec<State>, Vec<Packet>) {
        let chain = self.rules.chains.get(name).unwrap_or_else(|| panic!("no chain {name}"));
        let mut ended = Vec::new();
        let mut going = vec![packet];
        for rule in &chain.rules {
            let mut next = Vec::new();
            for packet in going {
                self.rule(&rule.statements, packet, &mut ended, &mut next);
            }
            going = next;
        }
        let is_base = chain.base.is_some();
        if is_base {
            ended.extend(going.drain(..).map(|packet| State::Goes(packet, None)));
        }
        (ended, going)
    }

    fn rule(&self, statements: &[Statement], mut packet: Packet, ended: &mut Vec<State>, next: &mut Vec<Packet>) {
        for statement in statements {
            match statement {
                Statement::Compare { field, comparison, value } => {
                    let equal = load(*field, &packet).starts_with(value);
                    if equal != (*comparison == Comparison::Equal) {
                        return next.push(packet);
                    }
                }
                Statement::Masked { field, mask, negated, value } => {
                    let masked: Vec<u8> = load(*field, &packet).iter().zip(mask).map(|(a, b)| a & b).collect();
                    if (masked == *value) == *negated {
                        return next.push(packet);
                    }
                }
                Statement::InSet { fields, set, negated } => {
                    let found = self.rules.sets[set].elements.contains_key(&joined(fields, &packet));
                    if found == *negated {
                        return next.push(packet);
                    }
                }
                Statement::VerdictMap { fields, map } => {
                    match self.rules.sets[map].elements.get(&joined(fields, &packet)) {
                        Some(ElementValue::Verdict(verdict)) => return self.verdict(verdict, packet, ended, next),
                        _ => return next.push(packet),
                    }
                }
                Statement::RandomVerdict(verdicts) => {
                    for verdict in verdicts {
                        self.verdict(verdict, packet, ended, &mut Vec::new());
                    }
                    return;
                }
                Statement::Verdict(verdict) => return self.verdict(verdict, packet, ended, next),
                Statement::OrMark(bits) => packet.mark |= bits,
                Statement::AndMark(bits) => packet.mark &= bits,
                Statement::DestinationNat { address, port } => {
                    return ended.push(State::Goes(packet, Some((*address, *port))));
                }
                Statement::Reject(_) => return ended.push(State::Ended("reject")),
                Statement::Masquerade { .. }
                | Statement::UpdateSet { .. }
                | Statement::NoTrack
                | Statement::Counter => {}
            }
        }
        next.push(packet);
    }

    fn verdict(&self, verdict: &Verdict, packet: Packet, ended: &mut Vec<State>, next: &mut Vec<Packet>) {
        match verdict {
            Verdict::Accept => ended.push(State::Goes(packet, None)),
            Verdict::Drop => ended.push(State::Ended("drop")),
            // The chains that return here are entered by goto from a base chain: its policy decides.
            Verdict::Return => ended.push(State::Goes(packet, None)),
            Verdict::Jump(chain) => {
                let (stopped, returned) = self.chain(chain, packet);
                ended.extend(stopped);
                next.extend(returned);
            }
            Verdict::Goto(chain) => {
                let (stopped, returned) = self.chain(chain, packet);
                ended.extend(stopped);
                // A goto's end returns to the caller of the chain that it came from.
                ended.extend(returned.into_iter().map(|packet| State::Goes(packet, None)));
            }
        }
    }
}

fn joined(fields: &[Field], packet: &Packet) -> Vec<u8> {
    let mut key = Vec::new();
    for field in fields {
        key.extend(load(*field, packet));
        if fields.len() > 1 {
            key.resize(key.len().next_multiple_of(4), 0);
        }
    }
    key
}

fn load(field: Field, packet: &Packet) -> Vec<u8> {
    let kind = |address| if is_local(address) { Field::LOCAL } else { 1 };
    match field {
        Field::SourceAddress => packet.source.octets().to_vec(),
        Field::DestinationAddress => packet.destination.octets().to_vec(),
        Field::Protocol => vec![packet.protocol.number()],
        Field::DestinationPort => packet.port.to_be_bytes().to_vec(),
        Field::Mark => packet.mark.to_ne_bytes().to_vec(),
        Field::ConntrackState => Field::NEW.to_ne_bytes().to_vec(),
        Field::DestinationType => kind(packet.destination).to_ne_bytes().to_vec(),
        Field::SourceType => kind(packet.source).to_ne_bytes().to_vec(),
        other => panic!("the walk does not know {other:?}"),
    }
}
