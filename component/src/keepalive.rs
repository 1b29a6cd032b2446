//! TCP keepalive: a client that vanished without a word is noticed, and what it began ends.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};

/// Between two questions, and how many go unanswered before the connection is given up: as Go has it.
const BETWEEN: u32 = 15;
const QUESTIONS: u32 = 9;

/// Has the kernel ask the other side of a connection whether it is still there once nothing has come for
/// `idle`, in whole seconds. What a listener accepts asks as the listener was told to.
pub fn keep_alive(socket: &impl AsFd, idle: Duration) -> io::Result<()> {
    let idle = u32::try_from(idle.as_secs()).unwrap_or(u32::MAX).max(1);
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &idle)?;
    setsockopt(socket, TcpKeepInterval, &BETWEEN)?;
    setsockopt(socket, TcpKeepCount, &QUESTIONS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn clients_that_vanish_are_noticed_on_what_a_listener_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        keep_alive(&listener, Duration::from_secs(180)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(getsockopt(&accepted, KeepAlive).unwrap());
        assert_eq!(getsockopt(&accepted, TcpKeepIdle).unwrap(), 180);
        assert_eq!(getsockopt(&accepted, TcpKeepInterval).unwrap(), BETWEEN);
        assert_eq!(getsockopt(&accepted, TcpKeepCount).unwrap(), QUESTIONS);
    }
}
