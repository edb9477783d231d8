//! The options of a nexmark table, and the fixed parameters of the public suite.

use weir_types::graph::ConnectorSpec;
use weir_types::{Error, Result};

use super::sequence::Epochs;

/// Ids start here, so that joins find matches early.
pub(super) const FIRST_AUCTION_ID: u64 = 1000;
pub(super) const FIRST_PERSON_ID: u64 = 1000;
pub(super) const FIRST_CATEGORY_ID: u64 = 10;
pub(super) const CATEGORIES: u64 = 5;
/// A bid goes to a hot auction with probability 1 − 1/2 …
pub(super) const HOT_AUCTION_RATIO: u64 = 2;
/// … comes from a hot bidder with 1 − 1/4 …
pub(super) const HOT_BIDDER_RATIO: u64 = 4;
/// … and through a hot channel with 1 − 1/2; an auction has a hot seller with 1 − 1/4.
pub(super) const HOT_CHANNEL_RATIO: u64 = 2;
pub(super) const HOT_SELLER_RATIO: u64 = 4;
/// One of so many auctions or persons is the hot one of its time.
pub(super) const HOT_EVERY: u64 = 100;
pub(super) const AUCTIONS_IN_FLIGHT: u64 = 100;
pub(super) const PERSONS_ACTIVE: u64 = 1000;
/// Ids so far ahead of the last one may be referred to.
pub(super) const ID_LEAD: u64 = 10;
/// Average sizes that `extra` fills events up to.
pub(super) const PERSON_BYTES: u64 = 200;
pub(super) const AUCTION_BYTES: u64 = 500;
pub(super) const BID_BYTES: u64 = 100;

const BASE_TIME_MS: u64 = 1_436_918_400_000;
const PROPORTION_MAX: u64 = 1_000_000;
const RATE_MAX: u64 = 1_000_000_000_000;

/// What determines the events.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) seed: u64,
    pub(super) epochs: Epochs,
    /// Events a second of event time.
    pub(super) rate: u64,
    pub(super) base_time_ms: i64,
    /// Events a second of real time over all splits; none: as fast as possible.
    pub(super) emit_rate: Option<u64>,
    /// Make only what is read.
    pub(super) push_down: bool,
}

impl Config {
    pub(super) fn new(spec: &ConnectorSpec) -> Result<Self> {
        let bounded = |key: &str, default, min, max| {
            let value = spec.integer(key, default)?;
            if (min..=max).contains(&value) {
                return Ok(value);
            }
            Err(Error::invalid(format!("option '{key}' must lie between {min} and {max}, not {value}")))
        };
        let persons = bounded("person.proportion", 1, 0, PROPORTION_MAX)?;
        let auctions = bounded("auction.proportion", 3, 0, PROPORTION_MAX)?;
        let bids = bounded("bid.proportion", 46, 0, PROPORTION_MAX)?;
        if persons + auctions + bids == 0 {
            return Err(Error::invalid("the proportions of persons, auctions and bids are all zero"));
        }
        let rate = bounded("first-event.rate", 10_000, 1, RATE_MAX)?;
        if spec.integer("next-event.rate", rate)? != rate {
            return Err(Error::invalid("options 'first-event.rate' and 'next-event.rate' differ")
                .with_hint("The rate does not change over event time: give both the same value, or only the first."));
        }
        let emit_rate = bounded("emit.rate", 0, 0, RATE_MAX)?;
        Ok(Self {
            seed: spec.integer("seed", 0)?,
            epochs: Epochs { persons, auctions, total: persons + auctions + bids },
            rate,
            base_time_ms: bounded("base-time", BASE_TIME_MS, 0, i64::MAX as u64 / 4)? as i64,
            emit_rate: (emit_rate > 0).then_some(emit_rate),
            push_down: spec.boolean("push-down", true)?,
        })
    }

    /// Event time of one event.
    pub(super) fn time_ms(&self, event: u64) -> i64 {
        let elapsed = match event.checked_mul(1000) {
            Some(thousandfold) => thousandfold / self.rate,
            None => u64::try_from(u128::from(event) * 1000 / u128::from(self.rate)).unwrap_or(u64::MAX),
        };
        self.base_time_ms.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }

    /// How many events pass until as many auctions have begun as are in flight.
    pub(super) fn auction_horizon(&self) -> u64 {
        AUCTIONS_IN_FLIGHT * self.epochs.total / self.epochs.auctions.max(1)
    }

    /// The last person before or at a bid or auction of this epoch, from 0.
    pub(super) fn last_person(&self, epoch: u64) -> u64 {
        ((epoch + 1) * self.epochs.persons).saturating_sub(1)
    }

    /// The last auction before a bid of this epoch, from 0.
    pub(super) fn last_auction(&self, epoch: u64) -> u64 {
        ((epoch + 1) * self.epochs.auctions).saturating_sub(1)
    }
}
