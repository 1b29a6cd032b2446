//! What can go wrong between this process and the kernel.

use nix::errno::Errno;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request. `detail` is its extended acknowledgement, where it sent one.
    #[error("{operation}: the kernel answered {errno}{}", in_parentheses(.detail))]
    Kernel { operation: String, errno: Errno, detail: String },

    /// A system call around the request failed: opening a socket, entering a namespace.
    #[error("{operation}: {errno}")]
    System { operation: String, errno: Errno },

    #[error("{operation}: {source}")]
    Io { operation: String, source: std::io::Error },

    /// What came back does not have the layout that the kernel's headers promise.
    #[error("{operation}: the kernel's answer is malformed ({what}); please report this with the kernel's version")]
    Malformed { operation: String, what: &'static str },

    #[error("{operation}: a thread for another network namespace could not be run: {what}")]
    Thread { operation: String, what: String },

    #[error("no network interface {name} in this network namespace")]
    NoSuchLink { name: String },
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

impl Error {
    pub(crate) fn system(operation: impl Into<String>, errno: Errno) -> Self {
        Self::System { operation: operation.into(), errno }
    }

    pub(crate) fn malformed(operation: &str, what: &'static str) -> Self {
        Self::Malformed { operation: operation.to_owned(), what }
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } | Self::System { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Malformed { .. } | Self::Thread { .. } | Self::NoSuchLink { .. } => None,
        }
    }

    /// The object to be made is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// The object to be changed or removed is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoSuchLink { .. })
            || matches!(
                self.errno(),
                Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO)
            )
    }

    /// This kernel does not have the feature at all.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT))
    }
}
