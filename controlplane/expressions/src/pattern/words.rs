//! What is wrong with a pattern, in the words of Go's regexp.

/// Our parser shows the pattern, marks the place below it, and names the fault in the last line:
///
/// ```text
/// regex parse error:
///     a**(
///        ^
/// error: unclosed group
/// ```
pub fn in_gos_words(pattern: &str, told: &str) -> String {
    let fault = told.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(told);
    let marks = told.lines().nth(2).and_then(|line| line.get(4..)).unwrap_or_default();
    // Columns count characters.
    let (before, marked) = (marks.chars().take_while(|mark| *mark == ' ').count(), marks.trim().chars().count());
    let from: String = pattern.chars().skip(before).collect();
    let piece: String = from.chars().take(marked.max(1)).collect();
    let (what, piece) = match fault {
        "unclosed group" => ("missing closing )", pattern.to_owned()),
        "unopened group" => ("unexpected )", pattern.to_owned()),
        "unclosed character class" => ("missing closing ]", from),
        "repetition operator missing expression" => ("missing argument to repetition operator", piece),
        "invalid character class range, the start must be <= the end" => ("invalid character class range", piece),
        "unrecognized escape sequence" | "backreferences are not supported" => ("invalid escape sequence", piece),
        "incomplete escape sequence, reached end of pattern prematurely" => {
            return "error parsing regexp: trailing backslash at end of expression: ``".to_owned();
        }
        "Unicode property not found" => ("invalid character class range", piece),
        "invalid repetition count range, the start must be <= the end" => ("invalid repeat count", piece),
        fault if fault.starts_with("look-around") => match &*piece {
            // Which Go takes for the name of a group.
            "(?<=" | "(?<!" => ("invalid named capture", from),
            _ => ("invalid or unsupported Perl syntax", piece),
        },
        "unrecognized flag" => {
            let start = pattern.char_indices().nth(before).map_or(0, |(at, _)| pattern[..at].rfind("(?").unwrap_or(at));
            let end = pattern.char_indices().nth(before + 1).map_or(pattern.len(), |(at, _)| at);
            ("invalid or unsupported Perl syntax", pattern[start..end].to_owned())
        }
        // Rare, and better than nothing.
        fault => return format!("error parsing regexp: {fault}: `{pattern}`"),
    };
    format!("error parsing regexp: {what}: `{piece}`")
}

#[cfg(test)]
mod tests {
    #[test]
    fn faults_read_as_gos() {
        for (pattern, why) in [
            ("(", "missing closing ): `(`"),
            ("a(b", "missing closing ): `a(b`"),
            ("a)", "unexpected ): `a)`"),
            ("x[a-", "missing closing ]: `[a-`"),
            ("*a", "missing argument to repetition operator: `*`"),
            ("a|+", "missing argument to repetition operator: `+`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("a\\y", "invalid escape sequence: `\\y`"),
            ("(a)\\1", "invalid escape sequence: `\\1`"),
            ("a\\", "trailing backslash at end of expression: ``"),
            ("a{3,2}", "invalid repeat count: `{3,2}`"),
            ("a{1,1001}", "invalid repeat count: `{1,1001}`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{2}+?b", "invalid nested repetition operator: `{2}+?`"),
            ("[[:letter:]]", "invalid character class range: `[:letter:]`"),
            ("^(?!foo)", "invalid or unsupported Perl syntax: `(?!`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?<=a)b", "invalid named capture: `(?<=a)b`"),
        ] {
            let told = crate::pattern::compile(pattern, crate::pattern::LARGEST).map(drop);
            assert_eq!(told, Err(format!("error parsing regexp: {why}")), "{pattern}");
        }
    }
}
