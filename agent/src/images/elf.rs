//! Which shared libraries an ELF executable needs, as the dynamic loader would find them.
//!
//! Reads the file itself (program headers, dynamic section): running `ldd` would execute the
//! program's own interpreter. 64-bit little-endian files only, which is what skiff runs on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ImageError;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What the loader is told by one file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dynamic {
    interpreter: Option<String>,
    needed: Vec<String>,
    search: Vec<String>,
}

/// Every library of `executable`, transitively: path in the image → file on this machine.
/// Empty for a static executable or a script.
pub fn closure(executable: &Path) -> Result<BTreeMap<String, PathBuf>, ImageError> {
    let system = system_directories();
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut waiting = vec![executable.to_owned()];
    let mut seen = std::collections::HashSet::new();
    while let Some(path) = waiting.pop() {
        let bytes = std::fs::read(&path).map_err(ImageError::file("reading", &path))?;
        let Some(dynamic) = parse(&bytes) else { continue };
        if let Some(interpreter) = dynamic.interpreter {
            found.entry(interpreter.clone()).or_insert_with(|| PathBuf::from(interpreter));
        }
        let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let own = dynamic.search.iter().map(|directory| PathBuf::from(directory.replace("$ORIGIN", &origin)));
        let directories: Vec<PathBuf> = own.chain(system.iter().cloned()).collect();
        for library in dynamic.needed {
            if !seen.insert(library.clone()) {
                continue;
            }
            let host = directories.iter().map(|directory| directory.join(&library)).find(|host| host.exists());
            let Some(host) = host else {
                return Err(ImageError::MissingLibrary { path, library });
            };
            found.insert(host.to_string_lossy().into_owned(), host.clone());
            waiting.push(host);
        }
    }
    Ok(found)
}

/// The directories of the loader's configuration, then its built-in ones.
fn system_directories() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
    if let Ok(entries) = std::fs::read_dir("/etc/ld.so.conf.d") {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        directories.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    directories.push(format!("/lib/{triplet}").into());
    directories.push(format!("/usr/lib/{triplet}").into());
    directories.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    directories
}

/// None if `file` is not a 64-bit little-endian ELF file, or is damaged.
fn parse(file: &[u8]) -> Option<Dynamic> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(file, 32)?;
    let entry_size = u64::from(u16_at(file, 54)?);
    let count = u64::from(u16_at(file, 56)?);
    let mut dynamic = Dynamic::default();
    let mut loads = Vec::new();
    let mut section = None;
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * entry_size)?).ok()?;
        let (kind, offset, address, size) =
            (u32_at(file, header)?, u64_at(file, header + 8)?, u64_at(file, header + 16)?, u64_at(file, header + 32)?);
        match kind {
            PT_LOAD => loads.push((offset, address, size)),
            PT_DYNAMIC => section = Some((offset, size)),
            PT_INTERP => dynamic.interpreter = Some(text_at(file, offset)?),
            _ => {}
        }
    }
    let Some((offset, size)) = section else { return Some(dynamic) };
    let mut tags = Vec::new();
    for position in (offset..offset.checked_add(size)?).step_by(16) {
        let position = usize::try_from(position).ok()?;
        match (u64_at(file, position)?, u64_at(file, position + 8)?) {
            (0, _) => break,
            tag => tags.push(tag),
        }
    }
    let strings = tags.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    let (offset, address, _) = loads.iter().find(|(_, address, size)| (*address..address + size).contains(&strings))?;
    let strings = strings - address + offset;
    for (tag, value) in tags {
        match tag {
            DT_NEEDED => dynamic.needed.push(text_at(file, strings.checked_add(value)?)?),
            DT_RPATH | DT_RUNPATH => {
                let text = text_at(file, strings.checked_add(value)?)?;
                dynamic.search.extend(text.split(':').filter(|part| !part.is_empty()).map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(dynamic)
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes_at(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    bytes_at(file, at).map(u64::from_le_bytes)
}

fn text_at(file: &[u8], at: u64) -> Option<String> {
    let rest = file.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_libc_and_a_loader() {
        let libraries = closure(&std::env::current_exe().unwrap()).unwrap();
        assert!(libraries.keys().any(|path| path.contains("libc.so.6")), "{libraries:?}");
        assert!(libraries.keys().any(|path| path.contains("ld-linux")), "{libraries:?}");
    }

    #[test]
    fn what_is_not_elf_or_is_cut_short_needs_nothing() {
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 3, 6, 40, 64, 100, 700] {
            assert!(parse(&file[..length]).is_none_or(|dynamic| dynamic.needed.is_empty()), "{length}");
        }
    }
}
