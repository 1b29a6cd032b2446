//! A disk that takes longer to sync than the one at hand: what most people's do.
//!
//! Virtual disks often answer a sync within tens of microseconds, so that the processor limits everything.
//! An SSD without a battery takes about two milliseconds.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use store::{Directory, Disk, DiskFile, Embedded, Options};

/// The store in `dir`, each of whose syncs takes `delay` longer.
pub fn open(dir: &Path, delay: Duration) -> anyhow::Result<Embedded> {
    if delay.is_zero() {
        return Ok(Embedded::open(dir)?);
    }
    let disk = Slow { directory: Directory::open(dir)?, delay };
    Ok(Embedded::open_disk(Arc::new(disk), &Options::default())?)
}

struct Slow {
    directory: Directory,
    delay: Duration,
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    delay: Duration,
}

impl Slow {
    fn slow(&self, file: io::Result<Arc<dyn DiskFile>>) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile { file: file?, delay: self.delay }))
    }
}

impl Disk for Slow {
    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.slow(self.directory.create(name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.slow(self.directory.open(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        std::thread::sleep(self.delay);
        self.directory.sync_names()
    }
}

impl DiskFile for SlowFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        std::thread::sleep(self.delay);
        self.file.sync()
    }
}
