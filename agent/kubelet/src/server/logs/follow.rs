//! Reading a log file to its end, and on while its container runs.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use component::Files;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc::Sender;

use super::super::reply::BoxError;
use super::format::Renderer;
use super::options::LogOptions;

const CHUNK: usize = 64 << 10;
/// While waiting for more, the container's state is looked at this often: its end writes nothing.
const LOOK: Duration = Duration::from_millis(200);
/// How long an old file is still read after the new one is there.
const SETTLE: Duration = Duration::from_millis(100);

/// Sends the log of one run until its end, the reader's end, or the byte limit.
pub async fn send(
    path: PathBuf,
    options: LogOptions,
    is_running: impl Fn() -> bool + Send,
    out: Sender<Result<Bytes, BoxError>>,
) {
    if let Err(error) = copy(&path, options, is_running, &out).await {
        let message = format!("failed to read log file {:?}: {error}", path.display().to_string());
        let _ = out.send(Err(message.into())).await;
    }
}

async fn copy(
    path: &Path,
    options: LogOptions,
    is_running: impl Fn() -> bool + Send,
    out: &Sender<Result<Bytes, BoxError>>,
) -> std::io::Result<()> {
    // Watching begins before reading, so that nothing written in between is missed.
    let changes = options.follow.then(|| Files::watch_all_in(path.parent().unwrap_or(path), true)).transpose()?;
    let mut log = LogFile::open(path).await?;
    if let Some(lines) = options.tail_lines {
        log.skip_to_tail(lines).await?;
    }
    let mut renderer = Renderer::new(options);
    loop {
        // Asked before reading: what a container wrote before it ended is read below.
        let running = is_running();
        if !log.drain(&mut renderer, out, !running).await? || renderer.is_done() {
            return Ok(());
        }
        let Some(changes) = &changes else { return Ok(()) };
        if log.was_replaced(path).await {
            // Rotated. The runtime makes the new file a moment before it writes there.
            tokio::time::sleep(SETTLE).await;
            log.drain(&mut renderer, out, true).await?;
            log = LogFile::open(path).await?;
            continue;
        }
        if !running {
            return Ok(());
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            changed = changes.changed() => changed?,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

struct LogFile {
    file: File,
    inode: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl LogFile {
    async fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        Ok(Self { file, inode, rest: Vec::new() })
    }

    /// Sends everything up to the end of the file; a line without its end only if `all`.
    /// Returns false when the reader is gone.
    async fn drain(
        &mut self,
        renderer: &mut Renderer,
        out: &Sender<Result<Bytes, BoxError>>,
        all: bool,
    ) -> std::io::Result<bool> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = self.file.read(&mut buffer).await?;
            let mut shown = Vec::new();
            self.rest.extend_from_slice(&buffer[..read]);
            let complete = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let end = if read == 0 && all { self.rest.len() } else { complete };
            for line in self.rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                renderer.render(line, &mut shown);
                if renderer.is_done() {
                    break;
                }
            }
            self.rest.drain(..end);
            if !shown.is_empty() && out.send(Ok(Bytes::from(shown))).await.is_err() {
                return Ok(false);
            }
            if read == 0 || renderer.is_done() {
                return Ok(!out.is_closed());
            }
        }
    }

    /// Goes to where the last `lines` lines begin, reading backwards.
    async fn skip_to_tail(&mut self, lines: u64) -> std::io::Result<()> {
        let length = self.file.metadata().await?.len();
        let start = tail_start(&mut self.file, length, lines).await?;
        self.file.seek(SeekFrom::Start(start)).await?;
        Ok(())
    }

    async fn was_replaced(&self, path: &Path) -> bool {
        tokio::fs::metadata(path).await.is_ok_and(|meta| meta.ino() != self.inode)
    }
}

/// The offset of the last `lines` lines of a file of `length` bytes. A last line without a line
/// feed counts as one.
async fn tail_start(file: &mut File, length: u64, lines: u64) -> std::io::Result<u64> {
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut feeds = VecDeque::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let mut chunk = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut chunk).await?;
        for (index, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let at = start + index as u64;
            // the feed that ends the last line separates nothing
            if at + 1 != length {
                feeds.push_back(at);
            }
            if feeds.len() as u64 == lines {
                return Ok(at + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn line(number: usize) -> String {
        format!("2026-11-22T05:00:00Z stdout F line {number}\n")
    }

    async fn all(receiver: &mut tokio::sync::mpsc::Receiver<Result<Bytes, BoxError>>) -> String {
        let mut text = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_tail_is_found_across_chunks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, (0..5000).map(line).collect::<String>()).unwrap();
        for (tail, expected) in [(0, 0), (1, 1), (3, 3), (4000, 4000), (9999, 5000)] {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
            let options = LogOptions { tail_lines: Some(tail), ..LogOptions::default() };
            send(path.clone(), options, || false, sender).await;
            let text = all(&mut receiver).await;
            assert_eq!(text.lines().count(), expected, "{tail}");
            assert!(expected == 0 || text.ends_with("line 4999\n"));
        }
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, line(0)).unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let state = running.clone();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let task = tokio::spawn(send(path.clone(), options, move || state.load(Ordering::SeqCst), sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "line 0\n");
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let (first, second) = (line(1), line(2));
        append(&first[..10]);
        append(&first[10..]);
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "line 1\n");
        std::fs::rename(&path, directory.path().join("0.log.old")).unwrap();
        append(&second);
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "line 2\n");
        append(&line(3));
        running.store(false, Ordering::SeqCst);
        assert_eq!(all(&mut receiver).await, "line 3\n");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_file_is_reported() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        send("/nowhere/0.log".into(), LogOptions::default(), || false, sender).await;
        let message = receiver.recv().await.unwrap().unwrap_err().to_string();
        assert!(message.starts_with("failed to read log file \"/nowhere/0.log\""), "{message}");
    }
}
