//! One timeline out of what several processes said, each by its own clock.
//!
//! A clock's difference from this process's is known only to within half of the time that the answer took. A node's
//! times are corrected if its clock is ahead or behind by more than that; what one node said stays in its order.

use weir_types::Result;
use weir_types::event::{LogEvent, Recollection};

/// What one node said, or why it said nothing.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) name: String,
    pub(super) address: String,
    /// By how much its clock is ahead; 0: not by more than can be known.
    pub(super) ahead_us: i64,
    pub(super) recalled: Result<Recollection>,
}

/// Events with the node that said them, in order of time.
pub(super) type Timeline = Vec<(String, LogEvent)>;

/// By how much a node's clock is ahead of this one's, by which it was asked and had answered at these times.
pub(super) fn clock_ahead_us(asked_us: u64, answered_us: u64, recalled: &Recollection) -> i64 {
    let uncertainty = answered_us.saturating_sub(asked_us) / 2;
    let difference = i128::from(recalled.now_us) - i128::from(asked_us + uncertainty);
    match i64::try_from(difference) {
        Ok(ahead) if ahead.unsigned_abs() > uncertainty => ahead,
        _ => 0,
    }
}

/// Puts everything in order of time.
pub(super) fn merge(said: Vec<Said>) -> Timeline {
    let mut timeline = Timeline::new();
    for Said { name, ahead_us, recalled, .. } in said {
        let mut latest = 0;
        for mut event in recalled.map(|recalled| recalled.events).unwrap_or_default() {
            // A clock that was set back must not turn a node's own order around.
            latest = event.at_us.saturating_add_signed(-ahead_us).max(latest);
            event.at_us = latest;
            timeline.push((name.clone(), event));
        }
    }
    timeline.sort_by_key(|(_, event)| event.at_us);
    timeline
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recalled(now_us: u64, events: &[(u64, &str)]) -> Recollection {
        let event = |(at_us, message): &(u64, &str)| LogEvent {
            at_us: *at_us,
            level: "INFO".to_owned(),
            message: (*message).to_owned(),
            fields: Vec::new(),
        };
        Recollection { now_us, complete_since_us: 0, events: events.iter().map(event).collect() }
    }

    fn said(name: &str, ahead_us: i64, recalled: Recollection) -> Said {
        Said { name: name.to_owned(), address: String::new(), ahead_us, recalled: Ok(recalled) }
    }

    #[test]
    fn a_difference_of_clocks_counts_only_beyond_what_the_answer_took() {
        let ahead = |now_us| clock_ahead_us(1_000, 1_200, &recalled(now_us, &[]));
        assert_eq!([ahead(1_100), ahead(1_199), ahead(1_200), ahead(1_000)], [0; 4]);
        assert_eq!((ahead(6_100), ahead(100)), (5_000, -1_000));
        assert_eq!(ahead(u64::MAX), 0);
    }

    #[test]
    fn events_are_in_order_of_corrected_time_and_of_each_node() {
        let timeline = merge(vec![
            said("jm", 0, recalled(0, &[(100, "trigger"), (400, "done")])),
            // Its clock was set back in between.
            said("tm", 1_000, recalled(0, &[(1_200, "barrier"), (1_150, "written"), (1_300, "acknowledged")])),
            Said {
                name: "store".to_owned(),
                address: String::new(),
                ahead_us: 0,
                recalled: Err(weir_types::Error::unavailable("gone")),
            },
        ]);
        let order: Vec<_> = timeline.iter().map(|(node, e)| format!("{} {node} {}", e.at_us, e.message)).collect();
        assert_eq!(order, ["100 jm trigger", "200 tm barrier", "200 tm written", "300 tm acknowledged", "400 jm done"]);
    }
}
