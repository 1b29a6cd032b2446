//! A disk in memory whose power fails: it loses what was not synced, or parts of it.
//!
//! Bytes: of a file, each sector written since its last sync made it or did not, and its length is
//! the old or the new one. Names: each that changed since the directory's last sync is the old or
//! the new one. All independently of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;
use store::{Disk, DiskFile};

/// A disk writes sectors whole, or not at all.
const SECTOR: usize = 512;

type Names = BTreeMap<String, Arc<Mutex<Content>>>;

#[derive(Default)]
pub struct SimDisk {
    directory: Mutex<Directory>,
    power: Arc<Power>,
}

#[derive(Default, Clone)]
struct Directory {
    durable: Names,
    /// What programs see.
    seen: Names,
}

#[derive(Default)]
struct Power {
    /// Operations until it fails.
    left: AtomicU64,
    /// The next sync of a file fails.
    refuses: AtomicBool,
}

#[derive(Default, Clone)]
struct Content {
    durable: Vec<u8>,
    seen: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

struct SimFile {
    content: Arc<Mutex<Content>>,
    power: Arc<Power>,
}

impl Power {
    fn use_some(&self) -> io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the power is cut"))
    }

    fn is_on(&self) -> io::Result<()> {
        if self.left.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err(io::Error::other("the power is cut")) }
    }
}

impl SimDisk {
    /// An empty disk that fails after so many writes, syncs and changes of names.
    pub fn new(operations: u64) -> Self {
        let disk = Self::default();
        disk.power.left.store(operations, Ordering::SeqCst);
        disk
    }

    pub fn is_on(&self) -> bool {
        self.power.is_on().is_ok()
    }

    /// The next sync of a file fails as the kernel has it: what was not written stays to be seen, and later
    /// syncs do not write it either.
    pub fn fail_next_sync(&self) {
        self.power.refuses.store(true, Ordering::SeqCst);
    }

    /// The disk once power is back, until the next failure.
    pub fn after_power_cut(&self, random: &mut StdRng, operations: u64) -> Self {
        let directory = self.directory.lock().unwrap();
        let names: BTreeSet<&String> = directory.durable.keys().chain(directory.seen.keys()).collect();
        let chance = random.random_range(0.0..=1.0);
        let mut left = Names::new();
        for name in names {
            let which = if random.random_bool(chance) { &directory.seen } else { &directory.durable };
            if let Some(content) = which.get(name) {
                let content = content.lock().unwrap().after_power_cut(random);
                left.insert(name.clone(), Arc::new(Mutex::new(content)));
            }
        }
        Self::of(Directory { durable: left.clone(), seen: left }, operations)
    }

    /// The disk after `kill -9`: all is seen, what is not durable is still not.
    pub fn after_kill(&self, operations: u64) -> Self {
        Self::of(self.directory.lock().unwrap().clone(), operations)
    }

    fn of(directory: Directory, operations: u64) -> Self {
        let disk = Self::new(operations);
        *disk.directory.lock().unwrap() = directory;
        disk
    }

    fn file(&self, content: &Arc<Mutex<Content>>) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { content: content.clone(), power: self.power.clone() })
    }
}

impl Content {
    fn after_power_cut(&self, random: &mut StdRng) -> Self {
        let mut left = self.durable.clone();
        let chance = random.random_range(0.0..=1.0);
        for sector in &self.dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.seen.len()));
            if from < to && random.random_bool(chance) {
                left.resize(left.len().max(to), 0);
                left[from..to].copy_from_slice(&self.seen[from..to]);
            }
        }
        // The length may be new while the content is not, and the other way round.
        match random.random_range(0..3) {
            0 => left.resize(left.len().max(self.seen.len()), 0),
            1 => left.truncate(self.seen.len().max(if random.random() { self.durable.len() } else { 0 })),
            _ => {}
        }
        Self { durable: left.clone(), seen: left, dirty: BTreeSet::new() }
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("(simulated)")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.power.is_on()?;
        Ok(self.directory.lock().unwrap().seen.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.power.use_some()?;
        let mut directory = self.directory.lock().unwrap();
        let content = Arc::<Mutex<Content>>::default();
        directory.seen.insert(name.to_owned(), content.clone());
        Ok(self.file(&content))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.power.is_on()?;
        let directory = self.directory.lock().unwrap();
        let content = directory.seen.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.power.use_some()?;
        let mut directory = self.directory.lock().unwrap();
        let content = directory.seen.remove(from).ok_or(io::ErrorKind::NotFound)?;
        directory.seen.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.power.use_some()?;
        let removed = self.directory.lock().unwrap().seen.remove(name);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.power.use_some()?;
        let mut directory = self.directory.lock().unwrap();
        directory.durable = directory.seen.clone();
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.power.is_on()?;
        Ok(self.content.lock().unwrap().seen.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.power.use_some()?;
        let (mut content, length) = (self.content.lock().unwrap(), length as usize);
        let before = content.seen.len();
        content.seen.resize(length, 0);
        content.dirty.extend(before.min(length) / SECTOR..before.max(length).div_ceil(SECTOR));
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.power.is_on()?;
        let content = self.content.lock().unwrap();
        let found = content.seen.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Power may fail during the write: what of it is kept is for the cache to lose.
        let used = self.power.use_some();
        let mut content = self.content.lock().unwrap();
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        if content.seen.len() < to {
            content.seen.resize(to, 0);
        }
        content.seen[from..to].copy_from_slice(bytes);
        content.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        used
    }

    fn sync(&self) -> io::Result<()> {
        self.power.use_some()?;
        let mut content = self.content.lock().unwrap();
        let dirty = std::mem::take(&mut content.dirty);
        if self.power.refuses.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("the disk refuses"));
        }
        let Content { durable, seen, .. } = &mut *content;
        durable.resize(seen.len(), 0);
        for sector in dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(seen.len()));
            if from < to {
                durable[from..to].copy_from_slice(&seen[from..to]);
            }
        }
        Ok(())
    }
}
