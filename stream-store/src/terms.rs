//! Which leaders may still give commands: of each cluster, only those of the highest term that has given one.
//!
//! Promise: once a command of a term has been answered, none of a lower term of that cluster takes effect any more, one
//! that was under way included: the first command of a higher term waits for those, and its term is durable before it runs.
//! Commands that name no term are nobody's business here: readers and writers are fenced by their epochs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use weir_types::ids::{ClusterId, Term};
use weir_types::{Code, Error, Result};

use crate::disk::{read_file, replace_file};
use crate::store::blocking;
use crate::stream::from_json;

const VERSION: u32 = 1;
/// Clusters that may share a store.
const CLUSTERS_MAX: usize = 1024;

/// The highest term of each cluster.
type Highest = BTreeMap<String, u64>;

#[derive(Serialize, Deserialize)]
struct TermsFile {
    version: u32,
    clusters: Highest,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Terms {
    path: PathBuf,
    highest: Arc<RwLock<Highest>>,
}

/// A command may run as long as this is held.
#[derive(Debug)]
pub(crate) struct Admitted {
    _held: OwnedRwLockReadGuard<Highest>,
}

impl Terms {
    /// Loads what is known.
    ///
    /// # Errors
    /// `IO`; `CORRUPT`, naming the file.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("terms.json");
        let clusters = match read_file(&path)? {
            None => Highest::new(),
            Some(bytes) => {
                let TermsFile { version, clusters } = from_json(&path, &bytes)?;
                if version != VERSION {
                    let message = format!("{} is of a version unknown to this build", path.display());
                    return Err(Error::new(Code::Corrupt, message));
                }
                clusters
            }
        };
        Ok(Self { path, highest: Arc::new(RwLock::new(clusters)) })
    }

    /// Lets a command of the cluster's leader in this term run.
    ///
    /// # Errors
    /// `FENCED` if a later leader has given a command; `RESOURCE_EXHAUSTED` for one cluster too many; `IO`.
    pub(crate) async fn admit(&self, cluster: &ClusterId, term: Term) -> Result<Admitted> {
        loop {
            let highest = Arc::clone(&self.highest).read_owned().await;
            match highest.get(cluster.as_str()).copied() {
                Some(known) if term.0 < known => {
                    return Err(Error::fenced(format!("term {term} of cluster {cluster} is over"))
                        .with_detail(format!("a leader of term {known} has given commands since")));
                }
                Some(known) if term.0 == known => return Ok(Admitted { _held: highest }),
                _ => {}
            }
            drop(highest);
            self.raise(cluster, term).await?;
        }
    }

    async fn raise(&self, cluster: &ClusterId, term: Term) -> Result<()> {
        // Waits for the commands of lower terms that are under way.
        let mut highest = self.highest.write().await;
        let known = highest.get(cluster.as_str()).copied();
        if known.is_some_and(|known| term.0 <= known) {
            return Ok(());
        }
        if known.is_none() && highest.len() >= CLUSTERS_MAX {
            return Err(Error::new(Code::ResourceExhausted, format!("{CLUSTERS_MAX} clusters use this store already"))
                .with_hint(
                    "Delete terms.json in its data directory while it is stopped: clusters that live come back.",
                ));
        }
        let mut clusters = highest.clone();
        clusters.insert(cluster.as_str().to_owned(), term.0);
        let (path, raised) = (self.path.clone(), clusters.clone());
        blocking(move || {
            let file = TermsFile { version: VERSION, clusters: raised };
            let bytes = serde_json::to_vec(&file)
                .map_err(|error| Error::internal("terms could not be encoded").with_detail(error.to_string()))?;
            replace_file(&path, &bytes)
        })
        .await?;
        tracing::info!(%cluster, %term, "a leader has taken over");
        *highest = clusters;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterId {
        ClusterId::new(name).unwrap()
    }

    #[tokio::test]
    async fn a_lower_term_is_refused_also_after_a_restart_and_clusters_do_not_touch_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (cluster("ours"), cluster("theirs"));
        let terms = Terms::open(dir.path()).unwrap();
        terms.admit(&ours, Term(3)).await.unwrap();
        terms.admit(&ours, Term(5)).await.unwrap();
        terms.admit(&theirs, Term(1)).await.unwrap();
        for terms in [terms, Terms::open(dir.path()).unwrap()] {
            assert_eq!(terms.admit(&ours, Term(4)).await.unwrap_err().code, Code::Fenced);
            terms.admit(&ours, Term(5)).await.unwrap();
            terms.admit(&theirs, Term(1)).await.unwrap();
        }
        std::fs::write(dir.path().join("terms.json"), "{").unwrap();
        assert_eq!(Terms::open(dir.path()).unwrap_err().code, Code::Corrupt);
    }

    #[tokio::test]
    async fn a_higher_term_waits_for_commands_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let (terms, ours) = (Arc::new(Terms::open(dir.path()).unwrap()), cluster("ours"));
        let under_way = terms.admit(&ours, Term(1)).await.unwrap();
        let later = tokio::spawn({
            let (terms, ours) = (Arc::clone(&terms), ours.clone());
            async move { terms.admit(&ours, Term(2)).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(!later.is_finished());
        drop(under_way);
        later.await.unwrap().unwrap();
        assert_eq!(terms.admit(&ours, Term(1)).await.unwrap_err().code, Code::Fenced);
    }

    #[tokio::test]
    async fn the_number_of_clusters_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let clusters = (0..CLUSTERS_MAX).map(|number| (format!("c{number}"), 1)).collect();
        let file = TermsFile { version: VERSION, clusters };
        std::fs::write(dir.path().join("terms.json"), serde_json::to_vec(&file).unwrap()).unwrap();
        let terms = Terms::open(dir.path()).unwrap();
        assert_eq!(terms.admit(&cluster("new"), Term(1)).await.unwrap_err().code, Code::ResourceExhausted);
        terms.admit(&cluster("c7"), Term(2)).await.unwrap();
    }
}
