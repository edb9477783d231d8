//! Requests that were answered, so that a retry is given the same answer and changes nothing: so many of the newest.

use std::collections::BTreeMap;

use weir_types::ids::RequestId;

use super::command::Reply;

/// Answers that are remembered; older ones are forgotten.
const REQUESTS_MAX: usize = 4096;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its place in the order of requests.
    pub sequence: u64,
    /// What was answered.
    pub reply: Reply,
}

/// The newest requests, with their answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    answered: BTreeMap<RequestId, Answered>,
    /// The same ones in the order of their answers: forgetting one must not take a look at all, with every command.
    order: BTreeMap<u64, RequestId>,
    next: u64,
}

impl Requests {
    /// Requests as they were remembered, and the number of the next one.
    pub fn new(answered: impl IntoIterator<Item = (RequestId, Answered)>, next: u64) -> Self {
        let answered: BTreeMap<RequestId, Answered> = answered.into_iter().collect();
        let order = answered.iter().map(|(id, answered)| (answered.sequence, id.clone())).collect();
        Self { answered, order, next }
    }

    /// The answer to a request; none, if it is not remembered.
    pub fn get(&self, request: &RequestId) -> Option<&Answered> {
        self.answered.get(request)
    }

    /// Whether a request was answered, as far as is remembered.
    pub fn contains(&self, request: &RequestId) -> bool {
        self.answered.contains_key(request)
    }

    /// All that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = (&RequestId, &Answered)> {
        self.answered.iter()
    }

    /// Number of the next request.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Remembers an answer, and forgets the oldest one if there are too many.
    pub(super) fn remember(&mut self, request: RequestId, reply: Reply) {
        let sequence = self.next;
        self.next += 1;
        self.order.insert(sequence, request.clone());
        self.answered.insert(request, Answered { sequence, reply });
        if self.order.len() > REQUESTS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.answered.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Applied;

    #[test]
    fn the_newest_answers_are_remembered_in_order_and_those_restored_count() {
        let id = |number: usize| RequestId::new(format!("r-{number}")).unwrap();
        let mut requests = Requests::default();
        // Ids sort otherwise than their numbers.
        for number in 0..REQUESTS_MAX {
            requests.remember(id(number), Ok(Applied::default()));
        }
        let mut restored =
            Requests::new(requests.iter().map(|(id, it)| (id.clone(), it.clone())), requests.next_sequence());
        assert_eq!(restored, requests);
        for number in REQUESTS_MAX..REQUESTS_MAX + 10 {
            restored.remember(id(number), Ok(Applied::default()));
        }
        let remembered: Vec<bool> = (0..REQUESTS_MAX + 10).map(|number| restored.contains(&id(number))).collect();
        assert_eq!(remembered, [vec![false; 10], vec![true; REQUESTS_MAX]].concat());
        assert_eq!(restored.iter().count(), REQUESTS_MAX);
    }
}
