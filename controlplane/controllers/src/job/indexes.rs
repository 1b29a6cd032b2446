//! Pure: sets of completion indexes, written as `1,3-5,7` in a Job's status.

use std::collections::BTreeSet;

pub type Indexes = BTreeSet<i32>;

/// Parts that are not numbers or ranges are left out.
pub fn parse(text: &str) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first..=last);
        }
    }
    indexes
}

/// Two neighbours are written apart by a comma (`1,2`), three or more as a range (`1-3`).
pub fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(i32, i32)> = None;
    let mut close = |run: (i32, i32)| match run.1 - run.0 {
        0 => parts.push(run.0.to_string()),
        1 => parts.push(format!("{},{}", run.0, run.1)),
        _ => parts.push(format!("{}-{}", run.0, run.1)),
    };
    for &index in indexes {
        run = match run {
            Some((first, last)) if last + 1 == index => Some((first, index)),
            Some(done) => {
                close(done);
                Some((index, index))
            }
            None => Some((index, index)),
        };
    }
    if let Some(done) = run {
        close(done);
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_set_are_the_same_thing() {
        for (text, numbers) in [
            ("", vec![]),
            ("4", vec![4]),
            ("1,2", vec![1, 2]),
            ("0-2,5,7,8,10-13", vec![0, 1, 2, 5, 7, 8, 10, 11, 12, 13]),
        ] {
            let set: Indexes = numbers.into_iter().collect();
            assert_eq!(parse(text), set, "{text}");
            assert_eq!(format(&set), text);
        }
        assert_eq!(parse("1,x,3-y"), Indexes::from([1]));
    }
}
