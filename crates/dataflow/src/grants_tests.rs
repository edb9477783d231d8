//! Tests of grants: who waits, who is woken by what, and when nobody writes any more.

use std::thread;

use weir_types::ids::{ChainId, SubtaskIndex};

use super::*;
use crate::fixtures::barrier;

fn job() -> JobId {
    JobId::new("job").unwrap()
}

fn subtask() -> SubtaskId {
    SubtaskId { job: job(), chain: ChainId(1), index: SubtaskIndex(0), attempt: Attempt(1) }
}

fn grant(grants: &SnapshotGrants, number: u64, total: u64) {
    grants.grant(&subtask(), &barrier(number).snapshot, total);
}

fn end(grants: &SnapshotGrants, number: u64, failure: Option<Error>) {
    grants.end(&job(), Attempt(1), BarrierId(number), &barrier(number).snapshot, failure);
}

/// Nothing is asked for.
const NONE: [u64; 0] = [];

/// The totals that are asked for.
fn requests(grants: &SnapshotGrants, anew: bool) -> Vec<u64> {
    let requests = grants.messages(anew).into_iter().map(|message| match message {
        FromTaskManager::GrantWanted(request) => request.bytes,
        other => panic!("expected a request, not {other:?}"),
    });
    requests.collect()
}

fn stopped(grants: &SnapshotGrants) -> usize {
    grants.messages(false).iter().filter(|message| matches!(message, FromTaskManager::WritersStopped(_))).count()
}

/// Draws on a thread of its own, and returns once that thread waits.
fn draw_and_wait(writer: &Arc<Writer>, bytes: u64) -> thread::JoinHandle<Result<()>> {
    let before = waiting(&writer.grants);
    let theirs = Arc::clone(writer);
    let drawing = thread::spawn(move || theirs.draw(bytes));
    while waiting(&writer.grants) == before {
        thread::yield_now();
    }
    drawing
}

fn waiting(grants: &SnapshotGrants) -> u64 {
    grants.lock().open.values().flat_map(|account| account.shares.values()).map(|share| share.waiting).sum()
}

#[test]
fn whoever_needs_more_asks_for_a_chunk_and_waits_until_it_is_granted() {
    let grants = SnapshotGrants::new();
    let writer = grants.begin(&subtask(), &barrier(1)).unwrap();
    let one = draw_and_wait(&writer, 7);
    assert_eq!(requests(&grants, false), [CHUNK_BYTES_MIN]);
    assert_eq!(requests(&grants, false), NONE, "it is said once");
    assert_eq!(requests(&grants, true), [CHUNK_BYTES_MIN], "and again in a new session");
    // More than the first grant, so that it cannot take that away from the one before it.
    let other = draw_and_wait(&writer, CHUNK_BYTES_MIN + 1);
    assert_eq!(requests(&grants, false), [CHUNK_BYTES_MIN + 8], "another's comes on top");
    grant(&grants, 1, CHUNK_BYTES_MIN);
    one.join().unwrap().unwrap();
    // Of what was granted the other cannot make anything: what is still missing is asked for again, with a larger chunk.
    assert_eq!(requests(&grants, false), [2 * CHUNK_BYTES_MIN]);
    grant(&grants, 1, 2 * CHUNK_BYTES_MIN);
    other.join().unwrap().unwrap();
    // An older answer that comes late takes nothing back, and what is left is drawn without asking.
    grant(&grants, 1, CHUNK_BYTES_MIN);
    writer.draw(CHUNK_BYTES_MIN - 8).unwrap();
    assert_eq!(requests(&grants, true), NONE);
    let far = draw_and_wait(&writer, 64 << 20);
    assert_eq!(requests(&grants, false), [(64 << 20) + 2 * CHUNK_BYTES_MIN]);
    end(&grants, 1, None);
    assert_eq!(far.join().unwrap().unwrap_err().code, Code::Cancelled);
}

#[test]
fn the_end_of_a_snapshot_wakes_its_writers_and_is_confirmed_when_the_last_has_let_go() {
    let grants = SnapshotGrants::new();
    let writer = grants.begin(&subtask(), &barrier(2)).unwrap();
    let drawing = draw_and_wait(&writer, 7);
    end(&grants, 2, Some(Error::new(Code::QuotaExceeded, "no more")));
    assert_eq!(drawing.join().unwrap().unwrap_err().message, "no more");
    assert_eq!(writer.draw(1).unwrap_err().code, Code::QuotaExceeded);
    assert_eq!(grants.begin(&subtask(), &barrier(2)).unwrap_err().message, "no more");
    assert_eq!(stopped(&grants), 0, "it may still delete what it wrote");
    drop(writer);
    assert_eq!((stopped(&grants), stopped(&grants)), (1, 0));
    // A barrier that comes late finds the snapshot over, and so does one before it.
    assert_eq!(grants.begin(&subtask(), &barrier(2)).unwrap_err().code, Code::Cancelled);
    assert_eq!(grants.begin(&subtask(), &barrier(1)).unwrap_err().code, Code::Cancelled);
    grants.begin(&subtask(), &barrier(3)).unwrap();
    // Whoever asks again is told again.
    end(&grants, 2, Some(Error::new(Code::QuotaExceeded, "no more")));
    assert_eq!(stopped(&grants), 1);
}

#[test]
fn a_writer_that_is_given_up_waits_no_longer_and_the_others_go_on() {
    let grants = SnapshotGrants::new();
    let (one, other) = (grants.begin(&subtask(), &barrier(1)).unwrap(), grants.begin(&subtask(), &barrier(1)).unwrap());
    let drawing = draw_and_wait(&one, 7);
    one.give_up();
    assert_eq!(drawing.join().unwrap().unwrap_err().code, Code::Cancelled);
    assert_eq!(requests(&grants, true), NONE, "nobody needs it any more");
    let waiting = draw_and_wait(&other, 3);
    grant(&grants, 1, 3);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_completed_snapshot_is_forgotten_and_so_is_a_job_that_is_gone() {
    let grants = SnapshotGrants::new();
    drop(grants.begin(&subtask(), &barrier(1)).unwrap());
    end(&grants, 1, None);
    assert_eq!(stopped(&grants), 0);
    assert!(grants.lock().open.is_empty());
    let held = grants.begin(&subtask(), &barrier(2)).unwrap();
    grants.retain_jobs(|_| false);
    assert_eq!(grants.lock().open.len(), 1, "somebody writes");
    drop(held);
    grants.retain_jobs(|_| false);
    let accounts = grants.lock();
    assert!(accounts.open.is_empty() && accounts.ended.is_empty());
}
