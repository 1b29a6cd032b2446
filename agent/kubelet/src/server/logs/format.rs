//! The lines of a CRI log file: `<RFC 3339 time> <stream> <tags> <content>`.
//!
//! A long line is written as several records tagged `P` (partial) and a last one tagged `F` (full).

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;

use super::options::{LogOptions, Stream};

/// One record, borrowed from the file's bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: Timestamp,
    /// The time as it was written.
    pub written: &'a str,
    pub is_stdout: bool,
    pub partial: bool,
    pub content: &'a [u8],
}

/// None for what is not a record (a damaged line is skipped, as the kubelet skips it).
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let written = std::str::from_utf8(parts.next()?).ok()?;
    let time = written.parse().ok()?;
    let is_stdout = match parts.next()? {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let partial = parts.next()?.split(|byte| *byte == b':').any(|tag| tag == b"P");
    Some(Record { time, written, is_stdout, partial, content: parts.next().unwrap_or_default() })
}

impl Record<'_> {
    /// The time with all of its digits, in the zone in which it was written.
    fn shown_time(&self) -> String {
        let offset = Pieces::parse(self.written).ok().and_then(|pieces| pieces.to_numeric_offset());
        match offset.filter(|offset| !offset.is_zero()) {
            Some(offset) => self.time.to_zoned(offset.to_time_zone()).strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string(),
            None => self.time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string(),
        }
    }
}

/// Turns records into what the user sees.
#[derive(Debug)]
pub struct Renderer {
    options: LogOptions,
    /// Bytes still allowed.
    left: Option<u64>,
    /// For stdout and stderr: the next record continues a line.
    inside_line: [bool; 2],
}

impl Renderer {
    pub fn new(options: LogOptions) -> Self {
        let left = options.limit_bytes;
        Self { options, left, inside_line: [false; 2] }
    }

    /// Appends what one line of the file shows.
    pub fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = parse(line) else {
            tracing::debug!(length = line.len(), "a damaged log line was skipped");
            return;
        };
        let wanted = match self.options.stream {
            Stream::All => true,
            Stream::Stdout => record.is_stdout,
            Stream::Stderr => !record.is_stdout,
        };
        if !wanted || self.options.since.is_some_and(|since| record.time < since) {
            return;
        }
        let continues = std::mem::replace(&mut self.inside_line[usize::from(record.is_stdout)], record.partial);
        let before = out.len();
        if self.options.timestamps && !continues {
            out.extend_from_slice(record.shown_time().as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(record.content);
        if !record.partial {
            out.push(b'\n');
        }
        self.limit(out, before);
    }

    /// Whether the byte limit is reached.
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn limit(&mut self, out: &mut Vec<u8>, before: usize) {
        if let Some(left) = &mut self.left {
            let added = (out.len() - before) as u64;
            let kept = added.min(*left);
            out.truncate(before + kept as usize);
            *left -= kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINES: [&str; 5] = [
        "2026-11-22T05:00:00.5Z stdout F one",
        "2026-11-22T05:00:01Z stdout P two, ",
        "2026-11-22T06:00:02.000000001+01:00 stdout F continued",
        "damaged",
        "2026-11-22T05:00:03Z stderr F three",
    ];

    fn render(options: LogOptions) -> String {
        let mut renderer = Renderer::new(options);
        let mut out = Vec::new();
        LINES.iter().for_each(|line| renderer.render(line.as_bytes(), &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn partial_records_join_and_damaged_ones_are_skipped() {
        assert_eq!(render(LogOptions::default()), "one\ntwo, continued\nthree\n");
    }

    #[test]
    fn timestamps_have_nine_digits_and_stand_once_per_line() {
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        let expected = "2026-11-22T05:00:00.500000000Z one\n2026-11-22T05:00:01.000000000Z two, continued\n2026-11-22T05:00:03.000000000Z three\n";
        assert_eq!(render(options), expected);
    }

    #[test]
    fn timestamps_stay_in_the_zone_of_the_log() {
        for (written, shown) in [
            ("2026-11-22T06:00:02.5+01:00", "2026-11-22T06:00:02.500000000+01:00"),
            ("2026-11-22T00:30:02-05:30", "2026-11-22T00:30:02.000000000-05:30"),
            ("2026-11-22T05:00:02.000000001+00:00", "2026-11-22T05:00:02.000000001Z"),
        ] {
            let line = format!("{written} stdout F one");
            assert_eq!(parse(line.as_bytes()).unwrap().shown_time(), shown);
        }
    }

    #[test]
    fn since_stream_and_limit_choose() {
        let since = Some("2026-11-22T05:00:02Z".parse().unwrap());
        assert_eq!(render(LogOptions { since, ..LogOptions::default() }), "continued\nthree\n");
        assert_eq!(render(LogOptions { stream: Stream::Stderr, ..LogOptions::default() }), "three\n");
        assert_eq!(render(LogOptions { limit_bytes: Some(6), ..LogOptions::default() }), "one\ntw");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut out = Vec::new();
            Renderer::new(LogOptions::default()).render(&line, &mut out);
        }
    }
}
