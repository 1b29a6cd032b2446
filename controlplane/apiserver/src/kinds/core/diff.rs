//! What changed where nothing may, as Kubernetes shows it (`apimachinery/pkg/util/diff`): the lines
//! of the two objects' JSON, removed and added, with three lines around them.

use serde_json::Value;

const CONTEXT: usize = 3;

/// One hunk from the first to the last line that differs; empty when none does.
pub fn unified(old: &Value, new: &Value) -> String {
    unified_lines(&pretty(old), &pretty(new))
}

/// As [`unified`], of what is text already.
pub fn unified_lines(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    if same == old.len() && same == new.len() {
        return String::new();
    }
    let rest = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let start = same.saturating_sub(CONTEXT);
    let after = tail.min(CONTEXT);
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let mut text =
        format!("@@ -{},{} +{},{} @@\n", start + 1, old_end + after - start, start + 1, new_end + after - start);
    let mut put = |mark: char, lines: &[&str]| {
        for line in lines {
            text.push(mark);
            text.push_str(line);
            text.push('\n');
        }
    };
    put(' ', &old[start..same]);
    put('-', &old[same..old_end]);
    put('+', &new[same..new_end]);
    put(' ', &old[old_end..old_end + after]);
    text
}

/// JSON with one space of indentation.
fn pretty(value: &Value) -> String {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // Writing a value into memory does not fail.
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hunks() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5});
        let new = json!({"a": 1, "b": 2, "c": 3, "d": 9, "e": 5});
        assert_eq!(
            unified(&old, &new),
            "@@ -2,6 +2,6 @@\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3,\n- \"d\": 4,\n+ \"d\": 9,\n  \"e\": 5\n }\n"
        );
        assert_eq!(unified(&old, &old), "");
        assert_eq!(unified(&json!([]), &json!([1])), "@@ -1,1 +1,3 @@\n-[]\n+[\n+ 1\n+]\n");
    }
}
