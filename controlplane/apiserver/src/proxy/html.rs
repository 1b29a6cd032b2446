//! Links of an HTML page, given other targets; everything else stays as it is, byte by byte.

/// Which attributes of which elements hold URLs: those of HTML 4 and 5.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// The page with `rewrite` applied to every URL in a tag.
pub fn rewrite_links(page: &str, rewrite: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(page.len() + 1024);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = if tag.starts_with("<!--") { after(tag, "-->") } else { end_of_tag(tag) };
        let (tag, behind) = tag.split_at(end);
        rest = behind;
        let name = tag[1..].split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_ascii_lowercase();
        match LINKS.iter().find(|(element, _)| *element == name) {
            Some((_, attributes)) => put_tag(&mut out, tag, attributes, &rewrite),
            None => out.push_str(tag),
        }
        // What a script or a style says is no markup.
        if matches!(name.as_str(), "script" | "style") {
            let text = rest.to_ascii_lowercase().find(&format!("</{name}")).unwrap_or(rest.len());
            out.push_str(&rest[..text]);
            rest = &rest[text..];
        }
    }
    out.push_str(rest);
    out
}

fn after(text: &str, end: &str) -> usize {
    text.find(end).map_or(text.len(), |at| at + end.len())
}

/// Behind the `>` that is in no quotes.
fn end_of_tag(tag: &str) -> usize {
    let mut quote = None;
    for (at, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'>') => return at + 1,
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    tag.len()
}

/// One tag, attribute by attribute.
fn put_tag(out: &mut String, tag: &str, attributes: &[&str], rewrite: &impl Fn(&str) -> String) {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, behind) = rest.split_at(equals + 1);
        let name = before[..equals].trim_end().rsplit(|c: char| c.is_whitespace() || c == '/').next();
        let space = behind.len() - behind.trim_start().len();
        let (space, behind) = behind.split_at(space);
        let (open, length) = match behind.as_bytes().first() {
            Some(quote @ (b'"' | b'\'')) => (1, behind[1..].find(char::from(*quote)).unwrap_or(behind.len() - 1)),
            _ => (0, behind.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(behind.len())),
        };
        let value = &behind[open..open + length];
        out.push_str(before);
        out.push_str(space);
        out.push_str(&behind[..open]);
        let is_link = name.is_some_and(|name| attributes.iter().any(|link| name.eq_ignore_ascii_case(link)));
        out.push_str(&if is_link { rewrite(value) } else { value.to_owned() });
        out.push_str(&behind[open + length..open + length + open.min(behind.len() - open - length)]);
        rest = &behind[(open + length + open).min(behind.len())..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_change_and_nothing_else() {
        for (page, rewritten) in [
            ("<a href=\"/x\">/x</a>", "<a href=\"P/x\">/x</a>"),
            ("<A class=b HREF = '/x' id=c>", "<A class=b HREF = 'P/x' id=c>"),
            ("<img src=/x alt=\"a > b\" longdesc=/y>", "<img src=P/x alt=\"a > b\" longdesc=P/y>"),
            (
                "<script src='/s'>var a = '<a href=\"/x\">';</script><link href='/l'/>",
                "<script src='P/s'>var a = '<a href=\"/x\">';</script><link href='P/l'/>",
            ),
            ("<!-- <a href='/x'> --><a href='/x'>", "<!-- <a href='/x'> --><a href='P/x'>"),
            ("<p data-href='/x' title=\"href=/y\">1 < 2", "<p data-href='/x' title=\"href=/y\">1 < 2"),
            ("<a data-href='/x' href='", "<a data-href='/x' href='P"),
            ("", ""),
        ] {
            assert_eq!(rewrite_links(page, |url| format!("P{url}")), rewritten, "{page}");
        }
    }

    proptest! {
        #[test]
        fn any_text_stays_as_it_is_where_links_do(page in "(<|>|a|=|'|\"|href| |/|script|!--|é|\\n){0,40}") {
            prop_assert_eq!(rewrite_links(&page, str::to_owned), page);
        }
    }
}
