//! The audit log file: one event a line; turned over when it is large, old ones removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

const MIB: u64 = 1 << 20;
const DAY: i64 = 24 * 3600;
/// Names of turned over files carry this time, as those of other servers do.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// Where events are written, and how much of it is kept.
#[derive(Debug, Clone, Default)]
pub struct LogConfig {
    /// `-` is standard output.
    pub path: PathBuf,
    /// MiB after which a new file is begun; 0: 100.
    pub max_size: u64,
    /// Days that old files are kept; 0: for ever.
    pub max_age: u64,
    /// Old files that are kept; 0: all.
    pub max_backups: usize,
}

pub struct Log {
    config: LogConfig,
    /// None: standard output.
    file: Option<(File, u64)>,
}

impl Log {
    pub fn open(config: LogConfig) -> io::Result<Self> {
        let file = if config.path == Path::new("-") { None } else { Some(append_to(&config.path)?) };
        Ok(Self { config, file })
    }

    /// Writes whole lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some((file, size)) = &mut self.file else {
            let mut out = io::stdout().lock();
            out.write_all(lines)?;
            return out.flush();
        };
        let limit = if self.config.max_size == 0 { 100 } else { self.config.max_size } * MIB;
        if *size > 0 && *size + lines.len() as u64 > limit {
            let now = Timestamp::now();
            turn_over(&self.config, now)?;
            (*file, *size) = append_to(&self.config.path)?;
            // Nothing of this is worth an event: it is tried again with the next file.
            if let Err(error) = remove_old(&self.config, now) {
                tracing::warn!(%error, "removing old audit logs");
            }
        }
        file.write_all(lines)?;
        *size += lines.len() as u64;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// `audit.log` → `audit-2026-01-02T03-04-05.678.log`. A file that somebody took away needs no other name.
fn turn_over(config: &LogConfig, now: Timestamp) -> io::Result<()> {
    let (stem, extension) = name_parts(&config.path);
    let stamp = now.strftime(STAMP).to_string();
    match std::fs::rename(&config.path, dir_of(config).join(format!("{stem}-{stamp}{extension}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// What is too old or too much goes; the error is the first of those that were met.
fn remove_old(config: &LogConfig, now: Timestamp) -> io::Result<()> {
    let ((stem, extension), dir) = (name_parts(&config.path), dir_of(config));
    let names = std::fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let old = superfluous(names, (&stem, &extension), config, now);
    // All of them are tried.
    let outcomes: Vec<_> = old.into_iter().map(|name| std::fs::remove_file(dir.join(name))).collect();
    outcomes.into_iter().collect()
}

/// That of a path without directories is the current one.
fn dir_of(config: &LogConfig) -> &Path {
    config.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn name_parts(path: &Path) -> (String, String) {
    let text =
        |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

/// Which of a directory's files are old logs that need not be kept. Pure.
fn superfluous(names: Vec<String>, (stem, extension): (&str, &str), config: &LogConfig, now: Timestamp) -> Vec<String> {
    let time = |name: &str| {
        let stamp = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(extension)?;
        jiff::civil::DateTime::strptime(STAMP, stamp).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()
    };
    let mut old: Vec<_> = names.into_iter().filter_map(|name| Some((time(&name)?.timestamp(), name))).collect();
    old.sort_by(|a, b| b.cmp(a));
    let oldest =
        (config.max_age > 0).then(|| now.as_second() - i64::try_from(config.max_age).unwrap_or(i64::MAX / DAY) * DAY);
    let too_many = if config.max_backups == 0 { usize::MAX } else { config.max_backups };
    let kept = |at: usize, time: Timestamp| at < too_many && oldest.is_none_or(|oldest| time.as_second() >= oldest);
    old.into_iter().enumerate().filter(|(at, (time, _))| !kept(*at, *time)).map(|(_, (_, name))| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_turned_over_and_few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = LogConfig { path: path.clone(), max_size: 1, max_age: 0, max_backups: 2 };
        let mut log = Log::open(config).unwrap();
        let line = vec![b'x'; 700 << 10];
        for _ in 0..3 {
            log.write(&line).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64);
        let others = std::fs::read_dir(dir.path()).unwrap().count() - 1;
        assert!((1..=2).contains(&others), "{others}");
        drop(log);
        let again = Log::open(LogConfig { path, ..LogConfig::default() }).unwrap();
        assert_eq!(again.file.unwrap().1, line.len() as u64);
    }

    #[test]
    fn a_log_goes_on_when_its_file_or_an_old_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        // A directory of that name cannot be removed as a file is.
        std::fs::create_dir(dir.path().join("audit-2026-01-01T00-00-00.000.log")).unwrap();
        let mut log = Log::open(LogConfig { path: path.clone(), max_size: 1, max_age: 1, max_backups: 0 }).unwrap();
        let line = vec![b'x'; 700 << 10];
        for _ in 0..3 {
            log.write(&line).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        log.write(&line).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64);
        let here = |path: &str| dir_of(&LogConfig { path: path.into(), ..LogConfig::default() }).to_owned();
        assert_eq!((here("audit.log"), here("/a/b.log")), (PathBuf::from("."), PathBuf::from("/a")));
    }

    #[test]
    fn old_logs_go_by_number_and_by_age() {
        let names = || {
            [
                "audit.log",
                "audit-2026-01-01T00-00-00.000.log",
                "audit-2026-01-03T00-00-00.000.log",
                "other-2026-01-01T00-00-00.000.log",
            ]
            .map(str::to_owned)
            .to_vec()
        };
        let now: Timestamp = "2026-01-04T00:00:00Z".parse().unwrap();
        let gone = |max_age, max_backups| {
            let config = LogConfig { max_age, max_backups, ..LogConfig::default() };
            superfluous(names(), ("audit", ".log"), &config, now)
        };
        assert_eq!(gone(2, 0), ["audit-2026-01-01T00-00-00.000.log"]);
        assert_eq!(gone(0, 1), ["audit-2026-01-01T00-00-00.000.log"]);
        assert!(gone(0, 0).is_empty() && gone(30, 10).is_empty());
    }
}
