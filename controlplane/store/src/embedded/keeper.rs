//! The thread that looks after files, so that no write has to wait for one to be made, sealed or
//! removed. It sleeps as long as there is nothing to do.
//!
//! It alone writes the manifest. What fails here ends the writer at its next commit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::damage::Damage;
use super::disk::Disk;
use super::group::Header;
use super::manifest::Manifest;
use super::segment::{self, Segment};
use crate::StoreError;

/// A segment that gets no more groups.
pub struct Sealing {
    pub segment: Arc<Segment>,
    pub entries: Vec<u8>,
    pub count: u32,
    pub first: u64,
    pub end: u64,
    pub state: Header,
}

enum Job {
    /// `sequence`: the newest group that is durable.
    Prepare {
        number: u32,
        capacity: u32,
        sequence: u64,
    },
    Seal(Sealing),
    /// Segments below this number are needed no more.
    Drop {
        oldest: u32,
        sequence: u64,
    },
    /// The store is complete (and closes, or begins).
    Finish {
        sequence: u64,
    },
    /// Says when it comes to this.
    Tell(Sender<()>),
}

/// The way to the thread. Dropping it ends the thread once its jobs are done.
pub struct Keeper {
    jobs: Option<Sender<Job>>,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has to show.
#[derive(Default)]
struct Desk {
    results: Mutex<Results>,
    changed: Condvar,
    hurry: AtomicBool,
}

#[derive(Default)]
struct Results {
    ready: Option<Arc<Segment>>,
    failed: Option<StoreError>,
}

impl Keeper {
    pub fn start(disk: Arc<dyn Disk>, manifest: Manifest) -> Result<Self, StoreError> {
        let (jobs, inbox) = channel();
        let desk = Arc::new(Desk::default());
        let path = disk.path().to_owned();
        let worker = Worker { disk, manifest, desk: desk.clone() };
        let thread = std::thread::Builder::new().name("store-files".to_owned()).spawn(move || worker.run(&inbox));
        let thread = thread.map_err(Damage::of(&path).io("starting the keeper of"))?;
        Ok(Self { jobs: Some(jobs), desk, thread: Some(thread) })
    }

    fn give(&self, job: Job) {
        // If the thread has ended, `check` says why.
        if let Some(jobs) = &self.jobs {
            drop(jobs.send(job));
        }
    }

    pub fn prepare(&self, number: u32, capacity: u32, sequence: u64) {
        self.give(Job::Prepare { number, capacity, sequence });
    }

    pub fn seal(&self, sealing: Sealing) {
        self.give(Job::Seal(sealing));
    }

    pub fn drop_below(&self, oldest: u32, sequence: u64) {
        self.give(Job::Drop { oldest, sequence });
    }

    /// Notes in the manifest how far the log reaches, and that the store is complete.
    pub fn finish(&self, sequence: u64) {
        self.give(Job::Finish { sequence });
    }

    /// The prepared segment, if it is ready.
    pub fn take_ready(&self) -> Option<Arc<Segment>> {
        self.desk.results.lock().ready.take()
    }

    /// The same, waiting for it.
    pub fn wait_ready(&self) -> Result<Arc<Segment>, StoreError> {
        self.desk.hurry.store(true, Ordering::Relaxed);
        let mut results = self.desk.results.lock();
        let ready = loop {
            if let Some(error) = &results.failed {
                break Err(error.clone());
            }
            if let Some(segment) = results.ready.take() {
                break Ok(segment);
            }
            self.desk.changed.wait(&mut results);
        };
        self.desk.hurry.store(false, Ordering::Relaxed);
        ready
    }

    /// Puts a segment on the desk that was prepared before.
    pub fn offer(&self, segment: Option<Arc<Segment>>) {
        self.desk.results.lock().ready = segment;
    }

    /// Waits until all that was given so far is done.
    pub fn settle(&self) -> Result<(), StoreError> {
        let (done, wait) = channel();
        self.give(Job::Tell(done));
        // An error: the sender is gone, by `Job::Tell` or with the thread, which leaves its reason.
        let _ = wait.recv();
        self.check()
    }

    /// Fails if anything given to the thread has failed.
    pub fn check(&self) -> Result<(), StoreError> {
        self.desk.results.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until all that was given is done.
    pub fn join(&mut self) -> Result<(), StoreError> {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The thread leaves its panics in `failed`.
            drop(thread.join());
        }
        self.check()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.join());
    }
}

struct Worker {
    disk: Arc<dyn Disk>,
    manifest: Manifest,
    desk: Arc<Desk>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Job>) {
        // Set if a panic unwinds past it.
        let failing = FailOnPanic { desk: self.desk.clone(), path: self.disk.path().to_owned() };
        while let Ok(first) = inbox.recv() {
            let mut jobs = vec![first];
            jobs.extend(inbox.try_iter());
            if let Err(error) = self.work(jobs) {
                self.desk.fail(error);
                break;
            }
        }
        std::mem::forget(failing);
    }

    fn work(&mut self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let mut oldest = self.manifest.oldest;
        for job in jobs {
            match job {
                Job::Prepare { number, capacity, sequence } => self.prepare(number, capacity, sequence)?,
                Job::Seal(Sealing { segment, entries, count, first, end, state }) => {
                    segment.seal(&entries, count, first, end, &state)?;
                }
                Job::Drop { oldest: needed, sequence } => {
                    oldest = needed;
                    self.manifest.sequence = sequence;
                }
                Job::Tell(done) => drop(done),
                Job::Finish { sequence } => {
                    self.manifest = Manifest { sequence, unfinished: false, ..self.manifest };
                    self.manifest.write(self.disk.as_ref())?;
                }
            }
        }
        self.drop_below(oldest)
    }

    fn prepare(&mut self, number: u32, capacity: u32, sequence: u64) -> Result<(), StoreError> {
        let segment = Segment::create(self.disk.as_ref(), self.manifest.store, number, capacity)?;
        let desk = &self.desk;
        segment.fill(|| !desk.hurry.load(Ordering::Relaxed))?;
        self.manifest = Manifest { newest: number, sequence, ..self.manifest };
        self.manifest.write(self.disk.as_ref())?;
        self.desk.results.lock().ready = Some(Arc::new(segment));
        self.desk.changed.notify_all();
        Ok(())
    }

    /// The manifest first: a segment it counts on must not be missing.
    fn drop_below(&mut self, oldest: u32) -> Result<(), StoreError> {
        let gone = self.manifest.oldest..oldest;
        if gone.is_empty() {
            return Ok(());
        }
        self.manifest.oldest = oldest;
        self.manifest.write(self.disk.as_ref())?;
        for number in gone {
            let name = segment::name(number);
            let path = self.disk.path().join(&name);
            self.disk.remove(&name).map_err(Damage::of(&path).io("removing"))?;
        }
        Ok(())
    }
}

impl Desk {
    fn fail(&self, error: StoreError) {
        self.results.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }
}

struct FailOnPanic {
    desk: Arc<Desk>,
    path: std::path::PathBuf,
}

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        let path: &Path = &self.path;
        self.desk.fail(Damage::of(path).panicked(&"the keeper of its files"));
    }
}
