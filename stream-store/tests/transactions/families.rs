//! Decisions about all transactions of a family of producers: what a job does at the end of a checkpoint, and when it goes
//! on from an earlier one.

use tempfile::TempDir;
use weir_types::Code;
use weir_types::store::TransactionState;

use crate::fixture::{Stream, killed, runtime, strings};

/// One record of a producer in a transaction of its own, prepared under a mark if there is one.
async fn write(stream: &mut Stream, transaction: &str, of: (&str, u64), mark: Option<u64>) {
    let number = stream.begin(transaction, of.0, of.1).await;
    stream.append(of, Some(number), 0, transaction).await.unwrap();
    if let Some(mark) = mark {
        stream.prepare_under(transaction, mark).await.unwrap();
    }
}

#[test]
fn a_commit_covers_what_its_epoch_has_prepared_up_to_its_mark_and_nothing_else() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        write(&mut stream, "a", ("job.u.0", 2), Some(5)).await;
        write(&mut stream, "b", ("job.u.1", 2), Some(6)).await;
        write(&mut stream, "later", ("job.u.0", 2), Some(7)).await;
        write(&mut stream, "open", ("job.u.2", 2), None).await;
        write(&mut stream, "newer", ("job.u.3", 3), Some(1)).await;
        write(&mut stream, "sibling", ("job.u2.0", 2), Some(1)).await;
        assert_eq!(stream.decide("job.u", Some((2, 6)), None).await.unwrap(), (2, 0));
        assert_eq!(stream.committed().await[0], strings(&["a", "b"]));
        assert_eq!((stream.state("a"), stream.state("b")), (None, None), "forgotten");
        for kept in ["later", "newer", "sibling"] {
            assert_eq!(stream.state(kept), Some(TransactionState::Prepared), "{kept}");
        }
        assert_eq!(stream.state("open"), Some(TransactionState::Open));
        assert_eq!(stream.decide("job.u", Some((2, 6)), None).await.unwrap(), (0, 0), "it was decided already");
    });
}

#[test]
fn a_rollback_commits_up_to_its_mark_and_aborts_and_fences_the_rest_of_older_epochs() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        write(&mut stream, "covered", ("job.u.0", 1), Some(5)).await;
        write(&mut stream, "beyond", ("job.u.7", 1), Some(6)).await;
        write(&mut stream, "open", ("job.u.0", 1), None).await;
        write(&mut stream, "other", ("job2.u.0", 1), Some(5)).await;
        assert_eq!(stream.decide("job.u", Some((1, 5)), Some(2)).await.unwrap(), (1, 2));
        let dir = killed(dir.path());
        let mut stream = Stream { sequences: std::mem::take(&mut stream.sequences), ..Stream::open(dir.path()).await };
        assert_eq!(stream.committed().await[0], strings(&["covered"]), "another job's is not decided");
        assert_eq!(stream.state("other"), Some(TransactionState::Prepared));
        let begun =
            stream.store.begin_transaction(&crate::fixture::name(), crate::fixture::spec("z", "job.u.9", 1)).await;
        assert_eq!(begun.unwrap_err().code, Code::Fenced);
        // Whoever was replaced decides nothing any more.
        let late = stream.decide("job.u", Some((1, 9)), Some(1)).await;
        assert_eq!(late.unwrap_err().code, Code::Fenced);
        write(&mut stream, "next", ("job.u.0", 2), Some(7)).await;
        assert_eq!(stream.decide("job.u", Some((2, 7)), None).await.unwrap(), (1, 0));
        stream.decide("job2.u", Some((1, 5)), None).await.unwrap();
        assert_eq!(stream.committed().await[0], strings(&["covered", "other", "next"]));
    });
}

#[test]
fn what_was_prepared_without_a_mark_is_for_others_to_decide() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let mut stream = Stream::open(dir.path()).await;
        write(&mut stream, "t", ("job.u.0", 1), None).await;
        stream.prepare("t").await.unwrap();
        assert_eq!(stream.decide("job.u", Some((1, u64::MAX)), None).await.unwrap(), (0, 0));
        assert_eq!(stream.state("t"), Some(TransactionState::Prepared));
    });
}
