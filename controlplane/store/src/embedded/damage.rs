//! Turns what the file layer reports into the store's errors, with the file's name.

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

    /// The file's content contradicts itself.
    pub fn because(self, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.to_owned(), detail: detail.into() }
    }

    pub fn reading<E: Into<redb::Error>>(self) -> impl Fn(E) -> StoreError + 'a {
        move |error| self.classify("reading", error.into())
    }

    pub fn writing<E: Into<redb::Error>>(self) -> impl Fn(E) -> StoreError + 'a {
        move |error| self.classify("writing", error.into())
    }

    pub fn opening<E: Into<redb::Error>>(self) -> impl Fn(E) -> StoreError + 'a {
        move |error| self.classify("opening", error.into())
    }

    pub fn io(self, doing: &'static str) -> impl Fn(std::io::Error) -> StoreError + 'a {
        move |error| StoreError::Io { doing, path: self.path.to_owned(), detail: error.to_string() }
    }

    /// A panic inside the file layer: it trusts what it reads, so a damaged page ends like this.
    pub fn panicked(self, panic: &(dyn std::any::Any + Send)) -> StoreError {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        self.because(format!("a page cannot be understood ({})", text.unwrap_or("no details")))
    }

    fn classify(self, doing: &'static str, error: redb::Error) -> StoreError {
        let path = self.path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::Locked { path },
            redb::Error::Corrupted(detail) => StoreError::Damaged { path, detail },
            // The file layer says so when the magic number is wrong.
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                StoreError::Damaged { path, detail: error.to_string() }
            }
            error @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::UpgradeRequired(_)) => StoreError::Damaged { path, detail: error.to_string() },
            error => StoreError::Io { doing, path, detail: error.to_string() },
        }
    }
}
