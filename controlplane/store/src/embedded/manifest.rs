//! The file that says which segments there are: `manifest`.
//!
//! It is replaced by renaming, so it is always whole; if it is not, it is damaged. It is written
//! after a segment was made and before one is removed, never while a write waits. With it a missing
//! file is noticed, the first and the last included, and so is a log that ends too early: what the
//! manifest says was synced must be there.

use xxhash_rust::xxh3::xxh3_64;

use super::damage::Damage;
use super::disk::Disk;
use super::record::{read_u32, read_u64};
use crate::StoreError;

pub const NAME: &str = "manifest";
const PARTIAL: &str = "manifest.partial";
const MAGIC: &[u8; 16] = b"skiff store 1\n\0\0";
const LENGTH: usize = 56;
const UNFINISHED: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// A number of this store's own, in the checksums of all its files.
    pub store: u64,
    /// The segments from `oldest` to `newest` must be there; others are left over.
    pub oldest: u32,
    pub newest: u32,
    /// The log reaches at least to the group of this sequence.
    pub sequence: u64,
    /// The store is being made (or restored): nobody has been answered from it yet.
    pub unfinished: bool,
}

impl Manifest {
    fn encode(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        out[..16].copy_from_slice(MAGIC);
        out[16..24].copy_from_slice(&self.store.to_le_bytes());
        out[24..28].copy_from_slice(&self.oldest.to_le_bytes());
        out[28..32].copy_from_slice(&self.newest.to_le_bytes());
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[40..44].copy_from_slice(&if self.unfinished { UNFINISHED } else { 0 }.to_le_bytes());
        let checksum = xxh3_64(&out[..48]);
        out[48..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let manifest = Self {
            store: read_u64(bytes, 16)?,
            oldest: read_u32(bytes, 24)?,
            newest: read_u32(bytes, 28)?,
            sequence: read_u64(bytes, 32)?,
            unfinished: read_u32(bytes, 40)? & UNFINISHED != 0,
        };
        (manifest.encode() == bytes).then_some(manifest)
    }

    /// Reads the manifest of a directory that has one.
    pub fn read(disk: &dyn Disk) -> Result<Self, StoreError> {
        let path = disk.path().join(NAME);
        let damage = Damage::of(&path);
        let file = disk.open(NAME).map_err(damage.io("opening"))?;
        let mut bytes = vec![0; file.length().map_err(damage.io("measuring"))? as usize];
        file.read_at(&mut bytes, 0).map_err(damage.reading())?;
        Self::decode(&bytes).ok_or_else(|| damage.because("it does not match its checksum"))
    }

    /// Replaces it, durably; what else happened to names in the directory becomes durable too.
    pub fn write(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        let path = disk.path().join(NAME);
        let damage = Damage::of(&path);
        // Whatever the new manifest counts on must be there before it.
        disk.sync_names().map_err(damage.io("syncing the directory of"))?;
        let file = disk.create(PARTIAL).map_err(damage.io("making"))?;
        file.write_at(&self.encode(), 0).map_err(damage.io("writing"))?;
        file.sync().map_err(damage.io("syncing"))?;
        disk.rename(PARTIAL, NAME).map_err(damage.io("replacing"))?;
        disk.sync_names().map_err(damage.io("syncing the directory of"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_or_is_refused() {
        let manifest = Manifest { store: 77, oldest: 3, newest: 9, sequence: 1 << 40, unfinished: true };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::decode(&changed), None, "bit {bit}");
        }
        assert_eq!(Manifest::decode(&bytes[..40]), None);
    }
}
