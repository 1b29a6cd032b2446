//! The store's errors, with the name of the file they are about.

use std::io;
use std::path::Path;

use crate::StoreError;

/// The file errors are about.
#[derive(Clone, Copy)]
pub struct Damage<'a> {
    path: &'a Path,
}

impl<'a> Damage<'a> {
    pub fn of(path: &'a Path) -> Self {
        Self { path }
    }

    /// The file's content contradicts itself, or what other files say of it.
    pub fn because(self, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.to_owned(), detail: detail.into() }
    }

    pub fn io(self, doing: &'static str) -> impl Fn(io::Error) -> StoreError + 'a {
        move |error| StoreError::Io { doing, path: self.path.to_owned(), detail: error.to_string() }
    }

    /// As [`Damage::io`], for reads of bytes that must be there.
    pub fn reading(self) -> impl Fn(io::Error) -> StoreError + 'a {
        move |error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.because("it is cut short"),
            _ => self.io("reading")(error),
        }
    }

    /// A panic while writing, which must not leave requests without an answer.
    pub fn panicked(self, panic: &(dyn std::any::Any + Send)) -> StoreError {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let detail = format!("the writer panicked ({})", text.unwrap_or("no details"));
        StoreError::Io { doing: "writing", path: self.path.to_owned(), detail }
    }
}
