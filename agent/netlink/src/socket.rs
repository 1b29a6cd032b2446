//! One netlink socket: requests with acknowledgement, dumps, and the raw send and receive that
//! nf_tables transactions need.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use crate::message::{Attributes, Message, Reply, aligned, flag, replies, u32_at};
use crate::{Error, Result};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;
/// Attribute of an error answer that holds the kernel's own words.
const ERROR_MESSAGE: u16 = 1;
/// A dump that another writer disturbed is taken again this many times.
const DUMP_ATTEMPTS: usize = 8;
const RECEIVE_BUFFER: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Route = 0,
    Netfilter = 12,
}

/// Blocking; bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Self> {
        let operation = "open a netlink socket";
        // SAFETY: plain system call; the descriptor is owned from here on.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol as i32) };
        let raw = Errno::result(raw).map_err(|errno| Error::system(operation, errno))?;
        // SAFETY: `raw` was just returned by socket(2) and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut socket = Self { fd, sequence: 1, buffer: vec![0; RECEIVE_BUFFER] };
        socket.bind(operation)?;
        // Both only enrich error answers; kernels before 4.12 lack them.
        let _ = socket.set_option(libc::SOL_NETLINK, NETLINK_CAP_ACK, 1);
        let _ = socket.set_option(libc::SOL_NETLINK, NETLINK_EXT_ACK, 1);
        Ok(socket)
    }

    fn bind(&mut self, operation: &str) -> Result<()> {
        // SAFETY: sockaddr_nl is plain data for which all zeroes is a valid value (kernel assigns the port).
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: address outlives the call and length is its size.
        let outcome = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(outcome).map(drop).map_err(|errno| Error::system(operation, errno))
    }

    fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> nix::Result<()> {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: value outlives the call and length is its size.
        let outcome = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const value).cast(), length) };
        Errno::result(outcome).map(drop)
    }

    /// Makes room for one datagram of `bytes`, past the system's limit where we may.
    pub(crate) fn ensure_send_buffer(&self, bytes: usize) {
        let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        if self.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
            // Without the capability the plain option gives what the limit allows; a too large
            // batch then fails with EMSGSIZE, which names the problem.
            let _ = self.set_option(libc::SOL_SOCKET, libc::SO_SNDBUF, wanted);
        }
        let _ = self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted.max(1 << 20));
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    pub(crate) fn send(&self, operation: &str, datagram: &[u8]) -> Result<()> {
        // SAFETY: the slice is valid for its length during the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), datagram.as_ptr().cast(), datagram.len(), 0) };
        Errno::result(sent).map(drop).map_err(|errno| Error::system(operation, errno))
    }

    /// `None` when `wait` is false and nothing is waiting.
    pub(crate) fn receive(&mut self, operation: &str, wait: bool) -> Result<Option<Vec<Reply>>> {
        loop {
            let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
            // SAFETY: the buffer is valid for its length during the call.
            let length =
                unsafe { libc::recv(self.fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), flags) };
            match Errno::result(length) {
                Ok(length) if length as usize > self.buffer.len() => {
                    return Err(Error::malformed(operation, "a datagram above 64 KiB"));
                }
                Ok(length) => return Ok(Some(replies(&self.buffer[..length as usize]))),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(Error::system(operation, errno)),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement; returns what came before it.
    pub fn request(&mut self, operation: &str, mut message: Message) -> Result<Vec<Reply>> {
        message.add_flags(flag::ACK);
        Ok(self.exchange(operation, message)?.replies)
    }

    /// Lists objects; taken again when another writer disturbed it.
    pub fn dump(&mut self, operation: &str, mut message: Message) -> Result<Vec<Reply>> {
        message.add_flags(flag::DUMP);
        let mut found = Answer::default();
        for _ in 0..DUMP_ATTEMPTS {
            found = self.exchange(operation, message.clone())?;
            if !found.disturbed {
                break;
            }
        }
        Ok(found.replies)
    }

    fn exchange(&mut self, operation: &str, message: Message) -> Result<Answer> {
        let sequence = self.next_sequence();
        self.send(operation, &message.finish(sequence))?;
        let mut answer = Answer::default();
        loop {
            let waiting = self.receive(operation, true)?.unwrap_or_default();
            for reply in waiting.into_iter().filter(|reply| reply.sequence == sequence) {
                if answer.take(operation, reply)? {
                    return Ok(answer);
                }
            }
        }
    }
}

/// What came for one request.
#[derive(Debug, Default)]
struct Answer {
    replies: Vec<Reply>,
    /// Another writer changed what was listed meanwhile.
    disturbed: bool,
}

impl Answer {
    /// Whether it is complete with this message.
    fn take(&mut self, operation: &str, reply: Reply) -> Result<bool> {
        match reply.kind {
            NLMSG_ERROR => return error_of(operation, &reply).map(|()| true),
            NLMSG_DONE => end_of_dump(operation, &reply)?,
            _ => {}
        }
        // Flags of the last message may be the only ones that say so.
        self.disturbed |= reply.flags & flag::DUMP_INTERRUPTED != 0;
        let complete = reply.kind == NLMSG_DONE;
        if !complete {
            self.replies.push(reply);
        }
        Ok(complete)
    }
}

/// The last message of a dump: a number below zero says that it ended early. The kernel's words follow the
/// number, with no request between.
fn end_of_dump(operation: &str, reply: &Reply) -> Result<()> {
    match reply.payload.get(..4).map(|code| u32_at(code, 0) as i32) {
        Some(code) if code < 0 => {
            let errno = Errno::from_raw(code.wrapping_neg());
            Err(Error::Kernel { operation: operation.to_owned(), errno, detail: detail_after(reply, 4) })
        }
        _ => Ok(()),
    }
}

/// An error message's content: success is an errno of zero.
pub(crate) fn error_of(operation: &str, reply: &Reply) -> Result<()> {
    let Some(code) = reply.payload.get(..4) else {
        return Err(Error::malformed(operation, "an error message without a number"));
    };
    let code = u32_at(code, 0) as i32;
    if code == 0 {
        return Ok(());
    }
    let errno = Errno::from_raw(code.wrapping_neg());
    Err(Error::Kernel { operation: operation.to_owned(), errno, detail: error_detail(reply) })
}

pub(crate) fn is_error(reply: &Reply) -> bool {
    reply.kind == NLMSG_ERROR
}

fn error_detail(reply: &Reply) -> String {
    if reply.payload.len() < 20 {
        return String::new();
    }
    // The request's header follows the number, and its payload too unless it was capped.
    let request = if reply.flags & flag::CAPPED != 0 { 16 } else { aligned(u32_at(&reply.payload, 4) as usize) };
    detail_after(reply, 4 + request)
}

/// The kernel's own words, which begin at byte `start`, where it sent any.
fn detail_after(reply: &Reply, start: usize) -> String {
    if reply.flags & flag::ACK_TLVS == 0 {
        return String::new();
    }
    let attributes = Attributes(reply.payload.get(start..).unwrap_or_default());
    attributes.string(ERROR_MESSAGE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: u16, flags: u16, payload: &[u8]) -> Reply {
        Reply { kind, flags: flags | flag::MULTI, sequence: 1, payload: payload.to_vec() }
    }

    #[test]
    fn a_dump_that_ended_early_is_an_error() {
        let mut answer = Answer::default();
        assert!(!answer.take("list", reply(16, 0, &[1])).unwrap());
        let mut payload = (-(Errno::ENOENT as i32)).to_ne_bytes().to_vec();
        payload.extend(11u16.to_ne_bytes());
        payload.extend(ERROR_MESSAGE.to_ne_bytes());
        payload.extend(b"no set\0\0");
        let error = answer.take("list", reply(NLMSG_DONE, flag::ACK_TLVS, &payload)).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().ends_with("(no set)"), "{error}");
        for whole in [&b""[..], &[0; 4]] {
            assert!(Answer::default().take("list", reply(NLMSG_DONE, 0, whole)).unwrap());
        }
    }

    #[test]
    fn a_dump_that_was_disturbed_at_its_end_is_known() {
        let mut answer = Answer::default();
        answer.take("list", reply(16, 0, &[1])).unwrap();
        assert!(!answer.disturbed);
        assert!(answer.take("list", reply(NLMSG_DONE, flag::DUMP_INTERRUPTED, &0i32.to_ne_bytes())).unwrap());
        assert!(answer.disturbed);
        assert_eq!(answer.replies.len(), 1);
    }
}
