//! `/logs/`: the files of the host's log directory.

use std::path::{Component, Path};

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::reply::{self, BoxError, Reply};

/// A directory as a page of links, a file as its content. Nothing outside `root` is reachable.
pub async fn serve(root: &Path, path: &str) -> Reply {
    let not_found = || reply::error(StatusCode::NOT_FOUND, "404 page not found\n");
    if Path::new(path).components().any(|part| !matches!(part, Component::Normal(_))) {
        return not_found();
    }
    // Symbolic links may lead out: only what is really below the root is served.
    let (Ok(full), Ok(root)) = (tokio::fs::canonicalize(root.join(path)).await, tokio::fs::canonicalize(root).await)
    else {
        return not_found();
    };
    if !full.starts_with(&root) {
        return not_found();
    }
    match tokio::fs::metadata(&full).await {
        Ok(meta) if meta.is_dir() => directory(&full).await,
        Ok(meta) if meta.is_file() => file(&full).await.unwrap_or_else(|_| not_found()),
        _ => not_found(),
    }
}

async fn file(path: &Path) -> std::io::Result<Reply> {
    let content = ReaderStream::new(tokio::fs::File::open(path).await?);
    let frames = content.map(|chunk: std::io::Result<Bytes>| chunk.map(Frame::data).map_err(BoxError::from));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

async fn directory(path: &Path) -> Reply {
    let mut names = Vec::new();
    if let Ok(mut entries) = tokio::fs::read_dir(path).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            let slash = entry.file_type().await.is_ok_and(|kind| kind.is_dir());
            names.push(entry.file_name().to_string_lossy().into_owned() + if slash { "/" } else { "" });
        }
    }
    names.sort();
    let links: String =
        names.iter().map(|name| escape(name)).map(|name| format!("<a href=\"{name}\">{name}</a>\n")).collect();
    reply::with_type(StatusCode::OK, "text/html; charset=utf-8", format!("<pre>\n{links}</pre>\n"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(root: &Path, path: &str) -> (StatusCode, String) {
        let reply = serve(root, path).await;
        let status = reply.status();
        let bytes = reply.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn files_and_directories_but_nothing_outside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a<b"), "x").unwrap();
        std::fs::write(directory.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(directory.path().join("secret"), root.join("link")).unwrap();
        let (status, page) = get(&root, "").await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("a&lt;b") && page.contains("sub/"), "{page}");
        assert_eq!(get(&root, "a<b").await, (StatusCode::OK, "x".to_owned()));
        for path in ["../secret", "link", "none", "sub/../../secret"] {
            assert_eq!(get(&root, path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
