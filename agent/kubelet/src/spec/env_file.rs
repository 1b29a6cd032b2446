//! Variables from files that a pod's own containers wrote (`pkg/kubelet/util/env/env_util.go`): lines of
//! `KEY='value'`. [`parse`] is pure; [`read`] opens the file, whose path must not lead out of its volume.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// The pod decides how large the file is; the kubelet has to hold it.
const MOST: u64 = 16 << 20;

/// The file's text; none if there is no such file. Links are resolved as if the volume were the root.
pub fn read(volume: &Path, path: &str) -> io::Result<Option<String>> {
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Found before it is opened: to open a device or a pipe in the file's place may do something already.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = match openat2(&root, path, how) {
        Ok(file) => File::from(file),
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !found.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    // Without O_NONBLOCK whoever has a lease on it could keep the kubelet waiting.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = File::from(nix::fcntl::open(same.as_str(), flags, Mode::empty())?);
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {MOST} bytes")));
    }
    Ok(Some(text))
}

/// The value of the first line that sets `key`. A line that is wrong is an error if it comes before.
pub fn parse(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut number = 1;
    while !rest.is_empty() {
        rest = rest.trim_start_matches([' ', '\t']);
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        if line.trim_end().is_empty() || line.starts_with('#') {
            (rest, number) = (after, number + 1);
            continue;
        }
        let invalid = |what: &str| format!("invalid environment variable format at line {number}: {what}");
        let (name, value) = line.split_once('=').ok_or_else(|| invalid("missing '='"))?;
        if name.trim().is_empty() {
            return Err(invalid("empty variable name"));
        }
        if name.ends_with(char::is_whitespace) {
            return Err(invalid("whitespace before '=' is not allowed"));
        }
        // As in a shell, where what follows a blank is no part of the value.
        let (value, after) = match value.chars().next() {
            None | Some(' ' | '\t' | '\r') => ("", after),
            Some('\'') => quoted(&rest[name.len() + 2..], number)?,
            Some(_) => return Err(invalid("value must be enclosed in single quotes")),
        };
        if name == key {
            return Ok(Some(value.to_owned()));
        }
        number += rest[..rest.len() - after.len()].matches('\n').count();
        rest = after;
    }
    Ok(None)
}

/// A value from behind its opening quote to the next one, over as many lines as it takes, and what comes
/// after its last line. `number` is the first line's.
fn quoted(text: &str, number: usize) -> Result<(&str, &str), String> {
    let (value, tail) = text.split_once('\'').ok_or_else(|| {
        format!("invalid environment variable format starting at line {number}: unclosed single quote")
    })?;
    let (tail, after) = tail.split_once('\n').unwrap_or((tail, ""));
    let tail = tail.trim();
    if !tail.is_empty() && !tail.starts_with('#') {
        let line = number + value.matches('\n').count();
        return Err(format!(
            "invalid environment variable format at line {line}: unexpected content after closing quote"
        ));
    }
    Ok((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_lines() {
        let text =
            "# a comment\n\n  A='one'\nB='two\nlines' # and a comment\nEMPTY=\nBLANK= 'x'\nA='again'\nLAST='end'";
        for (key, value) in [
            ("A", Some("one")),
            ("B", Some("two\nlines")),
            ("EMPTY", Some("")),
            ("BLANK", Some("")),
            ("LAST", Some("end")),
            ("C", None),
        ] {
            assert_eq!(parse(text, key), Ok(value.map(str::to_owned)), "{key}");
        }
    }

    #[test]
    fn lines_that_are_wrong() {
        for (text, message) in [
            ("A", "at line 1: missing '='"),
            ("\n='x'", "at line 2: empty variable name"),
            ("A ='x'", "at line 1: whitespace before '=' is not allowed"),
            ("A=x", "at line 1: value must be enclosed in single quotes"),
            ("A=\"x\"", "at line 1: value must be enclosed in single quotes"),
            ("B='1\n2' x", "at line 2: unexpected content after closing quote"),
            ("B='1\n2'\nA='x", "starting at line 3: unclosed single quote"),
        ] {
            assert_eq!(parse(text, "A"), Err(format!("invalid environment variable format {message}")), "{text}");
        }
        assert_eq!(parse("A='1'\nwrong", "A"), Ok(Some("1".to_owned())), "what comes after does not matter");
    }

    #[test]
    fn a_file_is_read_within_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        std::fs::create_dir_all(volume.join("etc")).unwrap();
        std::fs::write(directory.path().join("outside"), "outside").unwrap();
        std::fs::write(volume.join("etc/passwd"), "inside").unwrap();
        for (link, to) in [("in", "etc/passwd"), ("root", "/etc/passwd"), ("up", "../outside")] {
            std::os::unix::fs::symlink(to, volume.join(link)).unwrap();
        }
        nix::unistd::mkfifo(&volume.join("pipe"), Mode::S_IRUSR).unwrap();
        for (path, text) in [
            ("etc/passwd", Some("inside")),
            ("in", Some("inside")),
            ("root", Some("inside")),
            ("up", None),
            ("none", None),
        ] {
            assert_eq!(read(&volume, path).unwrap().as_deref(), text, "{path}");
        }
        assert!(read(&volume, "pipe").is_err() && read(&volume, "etc").is_err());
    }
}
