//! The fences of one stream: which incarnations of which producers may append no more.
//!
//! A fence has a name and an epoch. It covers the producer of that name and all whose names begin with it and a dot,
//! in every partition, and refuses their appends of lower epochs. It is durable before anything is refused, and a
//! fence only ever rises. They are few (one per job, sink and stream), so their file is replaced whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tracing::info;
use weir_types::ids::{Epoch, ProducerId};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use crate::disk::{read_file, replace_file};
use crate::segment::corrupt;
use crate::stream::{from_json, to_json};

const VERSION: u32 = 1;
/// Separates the parts of a producer's name.
const PART: char = '.';

#[derive(Serialize, Deserialize)]
struct FencesFile {
    version: u32,
    fences: Vec<Fence>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fence {
    name: ProducerId,
    /// Lower ones are refused.
    epoch: Epoch,
    raised_at_ms: u64,
}

/// The fences of one stream, shared by its partitions.
pub(crate) struct Fences {
    path: PathBuf,
    max: usize,
    /// Held while a fence is raised: the file has one writer.
    raising: Mutex<()>,
    raised: RwLock<BTreeMap<String, Fence>>,
}

impl Fences {
    /// Reads the fences of the stream in `dir`, which keeps at most `max` of them.
    pub(crate) fn open(dir: &Path, max: usize) -> Result<Arc<Self>> {
        let path = dir.join("fences.json");
        let raised = match read_file(&path)? {
            None => BTreeMap::new(),
            Some(bytes) => {
                let FencesFile { version, fences } = from_json(&path, &bytes)?;
                if version != VERSION {
                    return Err(corrupt(&path, 0, "the file is of a version unknown to this build"));
                }
                fences.into_iter().map(|fence| (fence.name.to_string(), fence)).collect()
            }
        };
        Ok(Arc::new(Self { path, max, raising: Mutex::new(()), raised: RwLock::new(raised) }))
    }

    /// Raises a fence, durably; one of that epoch already is fine.
    ///
    /// # Errors
    /// `FENCED` if a higher epoch has the name; I/O errors.
    pub(crate) fn raise(&self, name: &ProducerId, epoch: Epoch, now: Millis) -> Result<()> {
        let _raising = self.raising.lock();
        let mut changed = {
            let raised = self.raised.read();
            check(&raised, name, epoch)?;
            if raised.get(name.as_str()).is_some_and(|fence| fence.epoch == epoch) {
                return Ok(());
            }
            raised.clone()
        };
        changed.insert(name.to_string(), Fence { name: name.clone(), epoch, raised_at_ms: now.0 });
        while changed.len() > self.max {
            let others = changed.values().filter(|fence| fence.name != *name);
            let Some(oldest) = others.min_by_key(|fence| fence.raised_at_ms).map(|fence| fence.name.to_string()) else {
                break;
            };
            changed.remove(&oldest);
        }
        let file = FencesFile { version: VERSION, fences: changed.values().cloned().collect() };
        replace_file(&self.path, &to_json(&file)?)?;
        *self.raised.write() = changed;
        info!(file = %self.path.display(), producer = %name, %epoch, "fenced lower epochs");
        Ok(())
    }

    /// Refuses a producer that is fenced off.
    pub(crate) fn check(&self, producer: &ProducerId, epoch: Epoch) -> Result<()> {
        check(&self.raised.read(), producer, epoch)
    }
}

/// Whether a fence of this name is for that producer.
pub(crate) fn covers(name: &ProducerId, producer: &ProducerId) -> bool {
    let rest = producer.as_str().strip_prefix(name.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(PART))
}

fn check(raised: &BTreeMap<String, Fence>, producer: &ProducerId, epoch: Epoch) -> Result<()> {
    if raised.is_empty() {
        return Ok(());
    }
    let name = producer.as_str();
    let prefixes = name.match_indices(PART).map(|(at, _)| &name[..at]).chain([name]);
    match prefixes.filter_map(|prefix| raised.get(prefix)).find(|fence| fence.epoch > epoch) {
        None => Ok(()),
        Some(fence) => Err(Error::fenced(format!("producer {producer} has been replaced by a newer incarnation"))
            .with_detail(format!("epochs of {} below {} are fenced off, this is {epoch}", fence.name, fence.epoch))),
    }
}

#[cfg(test)]
mod tests {
    use weir_types::Code;

    use super::*;

    fn allows(fences: &Fences, producer: &str, epoch: u64) -> bool {
        let producer = ProducerId::new(producer).unwrap();
        fences.check(&producer, Epoch(epoch)).map_err(|error| assert_eq!(error.code, Code::Fenced)).is_ok()
    }

    fn raise(fences: &Fences, name: &str, epoch: u64, now: u64) -> Result<()> {
        fences.raise(&ProducerId::new(name).unwrap(), Epoch(epoch), Millis(now))
    }

    #[test]
    fn a_fence_covers_its_name_and_those_below_it_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        raise(&Fences::open(dir.path(), 10).unwrap(), "job.sink", 2, 0).unwrap();
        let fences = Fences::open(dir.path(), 10).unwrap();
        for producer in ["job.sink", "job.sink.0", "job.sink.3.x"] {
            assert!(!allows(&fences, producer, 1), "{producer}");
            assert!(allows(&fences, producer, 2), "{producer}");
        }
        for producer in ["job", "job.sink2", "job.sin", "job.other.0", "sink.0"] {
            assert!(allows(&fences, producer, 0), "{producer}");
        }
    }

    #[test]
    fn a_fence_is_never_lowered() {
        let dir = tempfile::tempdir().unwrap();
        let fences = Fences::open(dir.path(), 10).unwrap();
        raise(&fences, "p", 3, 0).unwrap();
        raise(&fences, "p", 3, 1).unwrap();
        assert_eq!(raise(&fences, "p", 2, 2).unwrap_err().code, Code::Fenced);
        assert_eq!(raise(&fences, "p.0", 2, 2).unwrap_err().code, Code::Fenced);
        assert!(!allows(&fences, "p", 2));
    }

    #[test]
    fn the_oldest_fence_is_forgotten_first() {
        let dir = tempfile::tempdir().unwrap();
        let fences = Fences::open(dir.path(), 2).unwrap();
        for (name, at) in [("a", 5), ("b", 3), ("c", 1)] {
            raise(&fences, name, 1, at).unwrap();
        }
        assert!(allows(&fences, "b", 0));
        assert!(!allows(&fences, "a", 0) && !allows(&fences, "c", 0));
    }
}
