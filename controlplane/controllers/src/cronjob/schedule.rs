//! Pure: cron schedules (`minute hour day month weekday`) and their moments in a time zone.
//!
//! Names (`jan`, `mon`), ranges, lists, steps, `?` for `*`, `@hourly` and friends, and `@every 1h30m`, as
//! `robfig/cron`'s standard parser takes them. Day and weekday: when both are restricted, either
//! will do. A moment that a clock change skips does not happen; one that it repeats happens twice.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::meta;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Whenever the clock shows what the fields allow.
    Fields(Fields),
    /// So many seconds after the last time.
    Every(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("expected exactly 5 fields, found {0}: {1:?}")]
    Fields(usize, String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {0}")]
    Period(String),
    #[error("failed to parse {0:?} as a value between {1} and {2}")]
    Value(String, u32, u32),
    #[error("step of range should be a positive number: {0:?}")]
    Step(String),
    #[error("beginning of range ({0}) beyond end of range ({1})")]
    Range(u32, u32),
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule like 30 February never comes.
const HORIZON_YEARS: i16 = 5;

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        match text.trim().strip_prefix("@every ") {
            Some(period) => seconds(period).map(Self::Every).ok_or_else(|| ScheduleError::Period(text.to_owned())),
            None => Fields::parse(text).map(Self::Fields),
        }
    }

    /// The first moment after `after`; none when there is none for years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Fields(fields) => fields.next(after, zone),
            Self::Every(seconds) => Timestamp::from_second(after.as_second().checked_add(*seconds)?).ok(),
        }
    }

    /// Where to go on from `from` that is not long before `near`, without missing a moment after that.
    pub fn leap(&self, from: Timestamp, near: Timestamp) -> Timestamp {
        match self {
            Self::Fields(_) => from.max(near),
            Self::Every(seconds) => {
                let between = (near.as_second() - from.as_second()).max(0);
                meta::after(from, between - between % seconds)
            }
        }
    }
}

/// Units of Go's durations, in seconds. `ms` stands before `m`.
const UNITS: [(&str, f64); 8] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Whole seconds of a Go duration (`1h30m`), one at least.
fn seconds(period: &str) -> Option<i64> {
    let mut rest = period.trim_start_matches(['+', '-']);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, scale) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        total += number.parse::<f64>().ok()? * scale;
        rest = &tail[unit.len()..];
    }
    let total = if period.starts_with('-') { -total } else { total };
    Some((total as i64).max(1))
}

/// Where to look next, from a time that does not match.
enum Skip {
    /// The beginning of this day; none: the calendar ends.
    To(Option<Date>),
    Minutes(i64),
}

impl Fields {
    fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => return Err(ScheduleError::Descriptor(other.to_owned())),
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(ScheduleError::Fields(fields.len(), text.to_owned()));
        };
        let weekdays = field(weekday, 0, 7, &WEEKDAYS, 0)?;
        Ok(Self {
            minutes: field(minute, 0, 59, &[], 0)?,
            hours: field(hour, 0, 23, &[], 0)?,
            days: field(day, 1, 31, &[], 0)?,
            months: field(month, 1, 12, &MONTHS, 1)?,
            // 7 is Sunday too
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            any_day: is_any(day),
            any_weekday: is_any(weekday),
        })
    }

    /// Goes by moments, not by what the clock shows: that may be turned back in between.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at = Timestamp::from_second((after.as_second().div_euclid(60) + 1) * 60).ok()?;
        let last_year = at.to_zoned(zone.clone()).year() + HORIZON_YEARS;
        loop {
            let local = at.to_zoned(zone.clone()).datetime();
            if local.year() > last_year {
                return None;
            }
            at = match self.skip(local) {
                None => return Some(at),
                Some(Skip::To(day)) => day?.to_zoned(zone.clone()).ok()?.timestamp(),
                Some(Skip::Minutes(minutes)) => meta::after(at, minutes * 60),
            };
        }
    }

    /// None when the time matches.
    fn skip(&self, at: DateTime) -> Option<Skip> {
        if self.months & 1 << at.month() == 0 {
            return Some(Skip::To(at.date().first_of_month().checked_add(1.month()).ok()));
        }
        if !self.suits(at.date()) {
            return Some(Skip::To(at.date().tomorrow().ok()));
        }
        if self.hours & 1 << at.hour() == 0 {
            return Some(Skip::Minutes(60 - i64::from(at.minute())));
        }
        (self.minutes & 1 << at.minute() == 0).then_some(Skip::Minutes(1))
    }

    fn suits(&self, date: Date) -> bool {
        let day = self.days & 1 << date.day() != 0;
        let weekday = self.weekdays & 1 << date.weekday().to_sunday_zero_offset() != 0;
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }
}

fn is_any(text: &str) -> bool {
    text.split(',').any(|part| part == "*" || part == "?" || part.starts_with("*/") || part.starts_with("?/"))
}

fn field(text: &str, low: u32, high: u32, names: &[&str], first_name: u32) -> Result<u64, ScheduleError> {
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let value = |text: &str| number(text, low, high, names, first_name);
        let (from, to) = match range {
            // a star stands for what the field can be: 7 is an alias
            "*" | "?" => (low, if names.len() == 7 { 6 } else { high }),
            range => match range.split_once('-') {
                Some((from, to)) => (value(from)?, value(to)?),
                None => {
                    let from = value(range)?;
                    (from, if step.is_some() { high } else { from })
                }
            },
        };
        if from > to {
            return Err(ScheduleError::Range(from, to));
        }
        let step = match step {
            None => 1,
            Some(step) => {
                step.parse().ok().filter(|step| *step > 0).ok_or_else(|| ScheduleError::Step(part.to_owned()))?
            }
        };
        (from..=to).step_by(step).for_each(|value| bits |= 1 << value);
    }
    Ok(bits)
}

fn number(text: &str, low: u32, high: u32, names: &[&str], first_name: u32) -> Result<u32, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    let named = names.iter().position(|name| *name == lower).and_then(|index| u32::try_from(index).ok());
    let value = named.map(|index| index + first_name).or_else(|| text.parse().ok());
    value.filter(|value| (low..=high).contains(value)).ok_or_else(|| ScheduleError::Value(text.to_owned(), low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &TimeZone) -> String {
        let after: Timestamp = after.parse().expect("a time");
        let schedule = Schedule::parse(schedule).expect("a schedule");
        schedule.next(after, zone).map(|moment| moment.to_string()).unwrap_or_default()
    }

    #[test]
    fn moments_in_utc() {
        for (schedule, after, expected) in [
            ("* * * * *", "2024-01-01T00:00:30Z", "2024-01-01T00:01:00Z"),
            ("*/15 * * * *", "2024-01-01T00:15:00Z", "2024-01-01T00:30:00Z"),
            ("5/20 * * * *", "2024-01-01T00:46:00Z", "2024-01-01T01:05:00Z"),
            ("30 2 29 feb *", "2024-03-01T00:00:00Z", "2028-02-29T02:30:00Z"),
            ("0 9-17/4 * * mon-fri", "2024-01-05T18:00:00Z", "2024-01-08T09:00:00Z"),
            ("0 0 13 * 5", "2024-09-07T00:00:00Z", "2024-09-13T00:00:00Z"),
            ("0 0 13 * 5", "2024-08-31T00:00:00Z", "2024-09-06T00:00:00Z"),
            ("0 0 * * 7", "2024-01-01T00:00:00Z", "2024-01-07T00:00:00Z"),
            ("@hourly", "2024-12-31T23:00:00Z", "2025-01-01T00:00:00Z"),
            ("0 0 30 2 *", "2024-01-01T00:00:00Z", ""),
        ] {
            assert_eq!(next(schedule, after, &TimeZone::UTC), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn every_so_often_counts_from_the_last_time() {
        for (schedule, after, expected) in [
            ("@every 1h30m", "2024-01-01T00:00:10Z", "2024-01-01T01:30:10Z"),
            ("@every 90s", "2024-01-01T00:00:00.5Z", "2024-01-01T00:01:30Z"),
            ("@every 1.5m", "2024-01-01T00:00:00Z", "2024-01-01T00:01:30Z"),
            ("@every 10ms", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        ] {
            assert_eq!(next(schedule, after, &TimeZone::UTC), expected, "{schedule} after {after}");
        }
        let at = |second| Timestamp::from_second(second).expect("a time");
        let every = Schedule::parse("@every 7m").expect("a schedule");
        assert_eq!(every.leap(at(100), at(10_000)), at(100 + 23 * 420), "as if each had been served");
        assert_eq!(every.leap(at(100), at(50)), at(100));
    }

    #[test]
    fn clock_changes_skip_and_repeat() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        assert_eq!(next("30 2 * * *", "2024-03-30T12:00:00Z", &zone), "2024-04-01T00:30:00Z", "02:30 was skipped");
        assert_eq!(next("30 2 * * *", "2024-10-26T12:00:00Z", &zone), "2024-10-27T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2024-10-27T00:30:00Z", &zone), "2024-10-27T01:30:00Z", "02:30 comes again");
        assert_eq!(next("30 2 * * *", "2024-10-27T01:30:00Z", &zone), "2024-10-28T01:30:00Z");
        let half_hours = |after| next("*/30 * * * *", after, &zone);
        assert_eq!(half_hours("2024-10-27T00:30:00Z"), "2024-10-27T01:00:00Z", "no hour is left out");
        assert_eq!(half_hours("2024-10-27T01:00:00Z"), "2024-10-27T01:30:00Z");
    }

    #[test]
    fn bad_schedules_say_what_is_wrong() {
        for text in ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "@never", "x * * * *"] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
        for text in ["@every", "@every soon", "@every 5", "@every -"] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
    }
}
