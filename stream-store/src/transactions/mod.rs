//! The transactions of one stream, durable.
//!
//! Three things know of a transaction: the ledger here, which decides, the log, which holds its records and then a
//! marker in every partition, and the partitions' view of their log. The order is what a crash at any moment relies on:
//!
//! 1. A transaction is in the ledger before any log has a record of it.
//! 2. Prepare: the ledger in memory takes no more appends; those under way come to their end; every record is fsynced;
//!    then the ledger on disk says that it is prepared.
//! 3. Commit or abort: the ledger on disk decides, then the markers are written. What is missing of them is written when
//!    the stream is opened, and at every round of maintenance.
//! 4. An outcome is forgotten when it was acknowledged and every partition has its marker, fsynced.
//!
//! A record in a log whose transaction the ledger does not know is therefore aborted.

mod ledger;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use weir_types::ids::TransactionNumber;
use weir_types::store::{ProducerStamp, TransactionState};
use weir_types::time::Millis;
use weir_types::{Error, Result};

use crate::disk::{read_file, replace_file};
use crate::segment::corrupt;
use crate::stream::{from_json, to_json};
use ledger::{Ledger, Step, not_open};

const VERSION: u32 = 1;
/// So many rounds of maintenance may be missed before the store is taken to have stood still.
const MISSED_ROUNDS_MAX: u64 = 5;

#[derive(Serialize, Deserialize)]
struct LedgerFile {
    version: u32,
    #[serde(flatten)]
    ledger: Ledger,
}

/// The ledger of one stream, shared by its partitions.
pub(crate) struct Transactions {
    path: PathBuf,
    /// Held while the ledger is changed: its file has one writer.
    changing: Mutex<()>,
    ledger: RwLock<Ledger>,
    last_round: Mutex<Option<Millis>>,
}

impl Transactions {
    /// Reads the ledger of the stream in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Arc<Self>> {
        let path = dir.join("transactions.json");
        let ledger = match read_file(&path)? {
            None => Ledger::default(),
            Some(bytes) => {
                let LedgerFile { version, ledger } = from_json(&path, &bytes)?;
                if version != VERSION || !ledger.is_sound() {
                    return Err(corrupt(&path, 0, "the file is of a version unknown to this build, or damaged"));
                }
                ledger
            }
        };
        Ok(Arc::new(Self { path, changing: Mutex::new(()), ledger: RwLock::new(ledger), last_round: Mutex::new(None) }))
    }

    /// Refuses an append to a transaction that is not open or is not of this producer.
    pub(crate) fn check_open(&self, number: TransactionNumber, stamp: &ProducerStamp) -> Result<()> {
        let ledger = self.ledger.read();
        let Some(known) = ledger.by_number(number) else {
            return Err(Error::not_found(format!("transaction number {number} is not known")));
        };
        if known.spec.producer != stamp.producer || known.spec.epoch != stamp.epoch {
            return Err(Error::fenced(format!("transaction {} is of another producer", known.spec.id))
                .with_detail(format!("it is of {}, epoch {}", known.spec.producer, known.spec.epoch)));
        }
        if known.state != TransactionState::Open {
            return Err(not_open(known));
        }
        Ok(())
    }

    /// Changes the ledger, on disk before in memory.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> Result<(T, Step)>) -> Result<T> {
        let _changing = self.changing.lock();
        let mut ledger = self.ledger.read().clone();
        let (result, step) = change(&mut ledger)?;
        if step == Step::Changed {
            self.write(&ledger)?;
        }
        *self.ledger.write() = ledger;
        Ok(result)
    }

    fn write(&self, ledger: &Ledger) -> Result<()> {
        let file = LedgerFile { version: VERSION, ledger: ledger.clone() };
        replace_file(&self.path, &to_json(&file)?)
    }

    /// Ends open transactions whose leases have run out. Time in which nobody asked, as the machine or the process stood
    /// still, does not count.
    fn expire(&self, now: Millis, interval_ms: u64) -> Result<()> {
        let last = self.last_round.lock().replace(now);
        if !self.ledger.read().iter().any(|known| known.state == TransactionState::Open) {
            return Ok(());
        }
        let elapsed = last.map_or(0, |last| now.0.saturating_sub(last.0));
        let standstill = if elapsed > interval_ms.saturating_mul(MISSED_ROUNDS_MAX) { elapsed } else { 0 };
        self.change(|ledger| {
            ledger.postpone(standstill);
            Ok(((), ledger.expire(now)))
        })
    }
}
