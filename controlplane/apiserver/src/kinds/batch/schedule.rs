//! Cron schedules, as the `robfig/cron` standard parser takes them: five fields, or a descriptor
//! such as `@hourly` or `@every 5m`. Here only whether one is well-formed.

const FIELDS: [(&str, u32, u32, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// What is wrong with `schedule`, if anything.
pub fn problem(schedule: &str) -> Option<String> {
    if schedule.is_empty() {
        return Some("empty spec string".to_owned());
    }
    if let Some(descriptor) = schedule.strip_prefix('@') {
        let known =
            matches!(descriptor, "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly");
        if known {
            return None;
        }
        return match descriptor.strip_prefix("every ") {
            Some(duration) if is_duration(duration) => None,
            Some(_) => Some(format!("failed to parse duration {schedule}")),
            None => Some(format!("unrecognized descriptor: {schedule}")),
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(
            format!("expected exactly 5 fields, found {}: {fields:?}", fields.len())
                .replace("\", \"", " ")
                .replace(['"'], ""),
        );
    }
    fields
        .iter()
        .zip(FIELDS)
        .flat_map(|(field, limits)| field.split(',').map(move |part| (part, limits)))
        .find_map(|(part, limits)| range_problem(part, limits))
}

/// `*`, `5`, `1-5`, `*/2`, `mon-fri`, `5/15`.
fn range_problem(part: &str, (_, low, high, names): (&str, u32, u32, &[&str])) -> Option<String> {
    let (range, step) = match part.split_once('/') {
        None => (part, None),
        Some((_, step)) if step.contains('/') => return Some(format!("too many slashes: {part}")),
        Some((range, step)) => (range, Some(step)),
    };
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_lowercase();
        if let Some(index) = names.iter().position(|name| *name == lower) {
            // Months count from 1, weekdays from 0.
            return Ok(low + u32::try_from(index).unwrap_or(0));
        }
        text.parse::<u32>()
            .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax"))
    };
    let (from, to) = if matches!(range, "*" | "?") {
        (low, high)
    } else {
        let bounds: Vec<&str> = range.split('-').collect();
        let from = match number(bounds[0]) {
            Ok(from) => from,
            Err(problem) => return Some(problem),
        };
        match bounds.as_slice() {
            [_] => (from, if step.is_some() { high } else { from }),
            [_, to] => match number(to) {
                Ok(to) => (from, to),
                Err(problem) => return Some(problem),
            },
            _ => return Some(format!("too many hyphens: {part}")),
        }
    };
    if let Some(step) = step {
        match number(step) {
            Ok(0) => return Some(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(problem) => return Some(problem),
        }
    }
    if from < low {
        Some(format!("beginning of range ({from}) below minimum ({low}): {part}"))
    } else if to > high {
        Some(format!("end of range ({to}) above maximum ({high}): {part}"))
    } else if from > to {
        Some(format!("beginning of range ({from}) beyond end of range ({to}): {part}"))
    } else {
        None
    }
}

/// A Go duration: `1h30m`, `90s`, `1.5h`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h"].iter().find(|unit| rest.starts_with(**unit)) else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-23/2 1,15 jan-MAR mon-fri", "@hourly", "@every 1h30m", "5/15 * ? * 0"] {
            assert_eq!(problem(good), None, "{good}");
        }
        for (bad, expected) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("@often", "unrecognized descriptor: @often"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ] {
            assert_eq!(problem(bad).as_deref(), Some(expected), "{bad}");
        }
    }
}
