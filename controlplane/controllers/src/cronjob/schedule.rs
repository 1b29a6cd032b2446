//! Pure: cron schedules (`minute hour day month weekday`) and their moments in a time zone.
//!
//! Names (`jan`, `mon`), ranges, lists, steps, `?` for `*`, and `@hourly` and friends, as
//! `robfig/cron`'s standard parser takes them. Day and weekday: when both are restricted, either
//! will do. A moment that a clock change skips does not happen; one that it repeats happens once.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
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

    /// The first moment after `after`; none when there is none for years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = after.to_zoned(zone.clone()).datetime();
        let mut candidate = local.with().second(0).subsec_nanosecond(0).build().ok()?;
        candidate = candidate.checked_add(1.minute()).ok()?;
        let last_year = candidate.year() + HORIZON_YEARS;
        while candidate.year() <= last_year {
            match self.step(candidate) {
                Some(skipped) => candidate = skipped?,
                None => match moment(candidate, zone) {
                    Some(moment) if moment > after => return Some(moment),
                    _ => candidate = candidate.checked_add(1.minute()).ok()?,
                },
            }
        }
        None
    }

    /// None when the time matches, else where to look next.
    fn step(&self, at: DateTime) -> Option<Option<DateTime>> {
        let next_day = |date: Date| date.tomorrow().ok().map(|date| date.at(0, 0, 0, 0));
        if self.months & 1 << at.month() == 0 {
            let first = at.date().first_of_month().checked_add(1.month()).ok();
            return Some(first.map(|date| date.at(0, 0, 0, 0)));
        }
        if !self.suits(at.date()) {
            return Some(next_day(at.date()));
        }
        if self.hours & 1 << at.hour() == 0 {
            let hour = at.with().minute(0).build().ok().and_then(|at| at.checked_add(1.hour()).ok());
            return Some(hour);
        }
        (self.minutes & 1 << at.minute() == 0).then(|| at.checked_add(1.minute()).ok())
    }

    fn suits(&self, date: Date) -> bool {
        let day = self.days & 1 << date.day() != 0;
        let weekday = self.weekdays & 1 << date.weekday().to_sunday_zero_offset() != 0;
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }
}

/// None for a local time that a clock change skips.
fn moment(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let zoned = local.to_zoned(zone.clone()).ok()?;
    (zoned.datetime() == local).then(|| zoned.timestamp())
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
    fn clock_changes_skip_and_do_not_repeat() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        assert_eq!(next("30 2 * * *", "2024-03-30T12:00:00Z", &zone), "2024-04-01T00:30:00Z", "02:30 was skipped");
        assert_eq!(next("30 2 * * *", "2024-10-26T12:00:00Z", &zone), "2024-10-27T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2024-10-27T00:30:00Z", &zone), "2024-10-28T01:30:00Z", "not again at 01:30Z");
    }

    #[test]
    fn bad_schedules_say_what_is_wrong() {
        for text in ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "@never", "x * * * *"] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
    }
}
