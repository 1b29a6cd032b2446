//! What a proxied page says of addresses: links to its own server lead through the proxy instead
//! (apimachinery `util/proxy`, `Transport`). `Location` and the attributes of HTML that hold URLs are
//! looked at; HTML is passed on as it comes, also compressed with gzip.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http::header;

use crate::http::body::BoxError;

/// A tag that is longer is passed on as it is, bytes.
const LONGEST_TAG: usize = 64 << 10;

/// Elements and their attributes that hold one URL (HTML 4 and 5).
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

/// Elements whose content is text, whatever it looks like.
const RAW: &[&str] = &["script", "style", "textarea", "title", "xmp", "noframes"];

/// How a proxied server is reached.
#[derive(Debug, Clone)]
pub struct Way {
    /// The path in front of the server's own, without a slash at its end.
    pub prefix: String,
    /// The server's host and port, and those the client asked for.
    pub hosts: [String; 2],
}

impl Way {
    /// The URL through the proxy; None if it stays as it is: relative, or of another host.
    fn url(&self, url: &str) -> Option<String> {
        let after_scheme = ["http://", "https://", "//"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let path = match after_scheme {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                self.hosts.iter().find(|own| own.eq_ignore_ascii_case(host)).map(|_| path)?
            }
            None => url,
        };
        if !path.starts_with('/') {
            return None;
        }
        Some(if path.starts_with(&self.prefix) { path.to_owned() } else { format!("{}{path}", self.prefix) })
    }

    /// `Location` through the proxy.
    pub fn headers(&self, headers: &mut HeaderMap) {
        let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        if let Some(location) = location.and_then(|location| self.url(location))
            && let Ok(location) = location.parse()
        {
            headers.insert(header::LOCATION, location);
        }
    }

    /// Something that rewrites the body that these headers announce; None for what is no HTML, or
    /// compressed in a way not known here.
    pub fn page(self, headers: &HeaderMap) -> Option<Page> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        if kind != "text/html" || headers.contains_key(header::LOCATION) {
            return None;
        }
        let gzip = match text(header::CONTENT_ENCODING) {
            "" => None,
            "gzip" => Some((GzDecoder::new(Vec::new()), GzEncoder::new(Vec::new(), Compression::fast()))),
            _ => return None,
        };
        Some(Page { way: self, gzip, pending: Vec::new(), raw: None })
    }
}

/// What opens a compressed page, and what closes it again.
type Gzip = (GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>);

/// A page on its way.
pub struct Page {
    way: Way,
    gzip: Option<Gzip>,
    /// The beginning of a tag whose end has not come yet.
    pending: Vec<u8>,
    /// Within an element of raw text: its name.
    raw: Option<String>,
}

impl Page {
    /// The page's bytes, rewritten as they come.
    pub fn rewrite<S>(self, frames: S) -> impl Stream<Item = Result<Bytes, BoxError>> + Send
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        let frames = frames.map(Some).chain(futures::stream::iter([None]));
        frames
            .scan(self, |page, frame| {
                let next = match frame {
                    Some(Ok(bytes)) => page.pass(&bytes).map_err(BoxError::from),
                    Some(Err(error)) => Err(error),
                    None => page.end().map_err(BoxError::from),
                };
                std::future::ready(Some(next.map(Bytes::from)))
            })
            .filter(|next| std::future::ready(!matches!(next, Ok(bytes) if bytes.is_empty())))
    }

    fn pass(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let Some((decoder, _)) = &mut self.gzip else { return Ok(self.text(bytes)) };
        decoder.write_all(bytes)?;
        let plain = std::mem::take(decoder.get_mut());
        let done = self.text(&plain);
        self.encoded(&done)
    }

    fn end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut last = Vec::new();
        if let Some((decoder, _)) = &mut self.gzip {
            decoder.try_finish()?;
            let plain = std::mem::take(decoder.get_mut());
            last = self.text(&plain);
        }
        last.append(&mut self.pending);
        let mut sent = self.encoded(&last)?;
        if let Some((_, encoder)) = &mut self.gzip {
            encoder.try_finish()?;
            sent.append(encoder.get_mut());
        }
        Ok(sent)
    }

    fn encoded(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        let Some((_, encoder)) = &mut self.gzip else { return Ok(plain.to_vec()) };
        encoder.write_all(plain)?;
        Ok(std::mem::take(encoder.get_mut()))
    }

    /// Plain HTML, but for a tag that is not whole yet.
    fn text(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.pending);
        let mut done = Vec::with_capacity(input.len());
        let mut rest = &input[..];
        while let Some(at) = self.next_markup(rest) {
            done.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let Some(end) = end_of_markup(rest) else {
                if rest.len() < LONGEST_TAG {
                    self.pending = rest.to_vec();
                    return done;
                }
                break;
            };
            let (markup, after) = rest.split_at(end);
            self.markup(markup, &mut done);
            rest = after;
        }
        done.extend_from_slice(rest);
        done
    }

    /// Where the next `<` is that means something: within raw text only that of its end tag, or what may
    /// become one.
    fn next_markup(&self, text: &[u8]) -> Option<usize> {
        let Some(raw) = &self.raw else { return text.iter().position(|byte| *byte == b'<') };
        let end = format!("</{raw}");
        (0..text.len()).filter(|at| text[*at] == b'<').find(|at| {
            let length = end.len().min(text.len() - at);
            text[*at..at + length].eq_ignore_ascii_case(&end.as_bytes()[..length])
        })
    }

    /// One tag, comment or stray `<`, to its end.
    fn markup(&mut self, markup: &[u8], done: &mut Vec<u8>) {
        let name = name_of(markup);
        match LINKS.iter().find(|(element, _)| *element == name) {
            Some((_, links)) => self.tag(markup, 1 + name.len(), links, done),
            None => done.extend_from_slice(markup),
        }
        self.raw = RAW.contains(&name.as_str()).then_some(name);
    }

    /// A tag, its attributes beginning at `at`.
    fn tag(&self, tag: &[u8], mut at: usize, links: &[&str], done: &mut Vec<u8>) {
        let mut kept = 0;
        while let Some(attribute) = Attribute::next(tag, &mut at) {
            let Some(value) = attribute.value else { continue };
            if !links.iter().any(|link| attribute.name.eq_ignore_ascii_case(link.as_bytes())) {
                continue;
            }
            let old = std::str::from_utf8(&tag[value.clone()]).ok();
            if let Some(new) = old.and_then(|old| self.way.url(old)) {
                done.extend_from_slice(&tag[kept..value.start]);
                done.extend_from_slice(new.as_bytes());
                kept = value.end;
            }
        }
        done.extend_from_slice(&tag[kept..]);
    }
}

/// Where what begins with `<` ends; None if its end is not there yet.
fn end_of_markup(markup: &[u8]) -> Option<usize> {
    if markup.starts_with(b"<!--") {
        return markup.windows(3).skip(4).position(|end| end == b"-->").map(|at| at + 7);
    }
    if b"<!--".starts_with(markup) {
        return None;
    }
    if !matches!(markup[1], b'/' | b'!' | b'?' | b'a'..=b'z' | b'A'..=b'Z') {
        return Some(1);
    }
    let mut quote = None;
    for (at, byte) in markup.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            // A quote counts where a value can begin.
            (None, b'"' | b'\'') if markup[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
            (Some(open), _) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

/// The element's name in lower case, with the slash of an end tag.
fn name_of(markup: &[u8]) -> String {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'>';
    let name = markup[1..].iter().take_while(|byte| !is_end(byte)).map(|byte| byte.to_ascii_lowercase());
    let name: Vec<u8> = name.collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    match name.strip_suffix('/') {
        Some(closed) if !closed.is_empty() => closed.to_owned(),
        _ => name,
    }
}

struct Attribute<'a> {
    name: &'a [u8],
    /// Where its value is, without quotes.
    value: Option<std::ops::Range<usize>>,
}

impl<'a> Attribute<'a> {
    /// The attribute from `at` on; moves `at` behind it.
    fn next(tag: &'a [u8], at: &mut usize) -> Option<Self> {
        let skip = |from: usize, while_: &dyn Fn(u8) -> bool| {
            from + tag[from..].iter().take_while(|byte| while_(**byte)).count()
        };
        let begin = skip(*at, &|byte| byte.is_ascii_whitespace() || byte == b'/');
        let end = skip(begin, &|byte| !byte.is_ascii_whitespace() && !matches!(byte, b'=' | b'>' | b'/'));
        let name = &tag[begin..end];
        let equals = skip(end, &|byte| byte.is_ascii_whitespace());
        if tag.get(equals) != Some(&b'=') {
            *at = end;
            return (!name.is_empty()).then_some(Self { name, value: None });
        }
        let value = skip(equals + 1, &|byte| byte.is_ascii_whitespace());
        let range = match tag.get(value) {
            Some(quote @ (b'"' | b'\'')) => value + 1..skip(value + 1, &|byte| byte != *quote),
            _ => value..skip(value, &|byte| !byte.is_ascii_whitespace() && byte != b'>'),
        };
        *at = (range.end + usize::from(range.start > value)).min(tag.len());
        Some(Self { name, value: Some(range) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn way() -> Way {
        Way { prefix: "/pods/p/proxy".to_owned(), hosts: ["10.0.0.1:80".to_owned(), "localhost:8001".to_owned()] }
    }

    fn page(kind: &str, encoding: &str) -> Option<Page> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        if !encoding.is_empty() {
            headers.insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        }
        way().page(&headers)
    }

    #[test]
    fn urls() {
        for (url, expected) in [
            ("/a?b=/c", Some("/pods/p/proxy/a?b=/c")),
            ("/pods/p/proxy/a", Some("/pods/p/proxy/a")),
            ("a", None),
            ("?a=/b", None),
            ("", None),
            ("#top", None),
            ("http://10.0.0.1:80/a", Some("/pods/p/proxy/a")),
            ("//LOCALHOST:8001/", Some("/pods/p/proxy/")),
            ("https://example.com/a", None),
            ("mailto:/a", None),
        ] {
            assert_eq!(way().url(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn links_of_html() {
        for (html, expected) in [
            ("<a href=\"/x\">y</a>", "<a href=\"/pods/p/proxy/x\">y</a>"),
            ("<IMG alt='>' SRC = '/x' class=/x>", "<IMG alt='>' SRC = '/pods/p/proxy/x' class=/x>"),
            ("<link href=/x/>", "<link href=/pods/p/proxy/x/>"),
            (
                "<frame longdesc=/l src=/s data-src=/d>",
                "<frame longdesc=/pods/p/proxy/l src=/pods/p/proxy/s data-src=/d>",
            ),
            ("<p href=\"/x\">a < b <3 <a name href=/y", "<p href=\"/x\">a < b <3 <a name href=/y"),
            ("<!-- <a href=/x> --><br/><a href=/y>", "<!-- <a href=/x> --><br/><a href=/pods/p/proxy/y>"),
            (
                "<script src=/s>if (a<b) x = '<a href=/no>'</script><a href='/y'>",
                "<script src=/pods/p/proxy/s>if (a<b) x = '<a href=/no>'</script><a href='/pods/p/proxy/y'>",
            ),
            ("<a href=\"http://example.com/x\"><a href=x>", "<a href=\"http://example.com/x\"><a href=x>"),
        ] {
            // However it is cut.
            for size in 1..=html.len() {
                let mut page = page("text/html; charset=utf-8", "").unwrap();
                let mut done = Vec::new();
                for chunk in html.as_bytes().chunks(size) {
                    done.extend(page.pass(chunk).unwrap());
                }
                done.extend(page.end().unwrap());
                assert_eq!(String::from_utf8(done).unwrap(), expected, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn gzip_is_opened_and_closed() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"<a href='/x'>").unwrap();
        let sent = encoder.finish().unwrap();
        let mut page = page("text/html", "gzip").unwrap();
        let mut got: Vec<u8> = sent.iter().flat_map(|byte| page.pass(&[*byte]).unwrap()).collect();
        got.extend(page.end().unwrap());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&got[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "<a href='/pods/p/proxy/x'>");
    }

    #[test]
    fn only_html_is_looked_at() {
        for (kind, encoding) in [("text/plain", ""), ("application/json", ""), ("text/html", "br")] {
            assert!(page(kind, encoding).is_none(), "{kind} {encoding}");
        }
    }
}
