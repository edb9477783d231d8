//! The columns of persons, auctions and bids, and how one column of a batch is made.
//!
//! Every column has random draws of its own, so that a column can be made without the others. `extra` alone looks at the
//! lengths of the other columns of its event.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};
use weir_types::{Error, Result};

use super::config::*;
use super::pools::{CHANNELS, CUTS, Pools};
use super::random::{Draw, Draws, Prices};
use super::sequence::{Kind, Run, Runs};

/// A column within one of the three structs. The numbers pick the random draws: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Field {
    Time = 0,
    PersonId = 1,
    PersonName = 2,
    EmailUser = 3,
    EmailHost = 4,
    CreditCard = 5,
    City = 6,
    State = 7,
    PersonExtra = 8,
    AuctionId = 16,
    ItemName = 17,
    Description = 18,
    InitialBid = 19,
    Reserve = 20,
    Expires = 21,
    Seller = 22,
    Category = 23,
    AuctionExtra = 24,
    BidAuction = 32,
    Bidder = 33,
    Price = 34,
    Channel = 35,
    Url = 36,
    BidExtra = 37,
}

const FIELDS: usize = 38;

impl Field {
    /// The fields of one kind of event in the order of the standard schema.
    pub(super) fn of(kind: Kind) -> &'static [(&'static str, Field)] {
        match kind {
            Kind::Person => &[
                ("id", Field::PersonId),
                ("name", Field::PersonName),
                ("emailAddress", Field::EmailUser),
                ("creditCard", Field::CreditCard),
                ("city", Field::City),
                ("state", Field::State),
                ("dateTime", Field::Time),
                ("extra", Field::PersonExtra),
            ],
            Kind::Auction => &[
                ("id", Field::AuctionId),
                ("itemName", Field::ItemName),
                ("description", Field::Description),
                ("initialBid", Field::InitialBid),
                ("reserve", Field::Reserve),
                ("dateTime", Field::Time),
                ("expires", Field::Expires),
                ("seller", Field::Seller),
                ("category", Field::Category),
                ("extra", Field::AuctionExtra),
            ],
            Kind::Bid => &[
                ("auction", Field::BidAuction),
                ("bidder", Field::Bidder),
                ("price", Field::Price),
                ("channel", Field::Channel),
                ("url", Field::Url),
                ("dateTime", Field::Time),
                ("extra", Field::BidExtra),
            ],
        }
    }

    /// Its type.
    pub(super) fn data_type(self) -> DataType {
        match self {
            Field::Time | Field::Expires => DataType::Timestamp(TimeUnit::Millisecond, None),
            Field::PersonId
            | Field::AuctionId
            | Field::InitialBid
            | Field::Reserve
            | Field::Seller
            | Field::Category
            | Field::BidAuction
            | Field::Bidder
            | Field::Price => DataType::Int64,
            _ => DataType::Utf8,
        }
    }
}

/// Where an email's two parts, or the filling of `extra`, come from.
struct PersonTexts<'a> {
    name: &'a [u8],
    user: &'a [u8],
    host: &'a [u8],
    city: &'a [u8],
    state: &'a [u8],
}

/// Makes columns.
#[derive(Debug)]
pub(super) struct Generator {
    pub(super) config: Config,
    draws: [Draws; FIELDS],
    prices: Prices,
    pools: &'static Pools,
}

/// Bytes of `0000 0000 0000 0000`.
const CREDIT_CARD_BYTES: u64 = 19;

/// A bid's `extra` is always shorter; copying a constant length is much faster than copying the exact one.
const BID_EXTRA_COPY: usize = 96;

/// `extra`'s length for an event that has `size` bytes without it: fills up to `average`, give or take 20 %.
fn extra_length(draw: Draw, size: u64, average: u64) -> u64 {
    let wanted = average.saturating_sub(size);
    let delta = (wanted + 2) / 5;
    wanted - delta + draw.lower(2 * delta)
}

impl Generator {
    pub(super) fn new(config: Config) -> Self {
        let draws = std::array::from_fn(|field| Draws::new(config.seed, field as u64));
        Self { config, draws, prices: Prices::new(), pools: Pools::get() }
    }

    #[inline(always)]
    fn draw(&self, field: Field, event: u64) -> Draw {
        self.draws[field as usize].at(event)
    }

    /// One column over `runs`; `nulls` are the places of other kinds.
    ///
    /// # Errors
    /// `INTERNAL` if a batch is too large for its offsets.
    pub(super) fn column(&self, kind: Kind, field: Field, runs: &Runs, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        Ok(match field {
            Field::Time => self.times(kind, runs, nulls),
            Field::Expires => self.expires(runs, nulls),
            Field::PersonId => longs(kind, runs, nulls, |run| {
                let base = run.epoch * self.config.epochs.persons + FIRST_PERSON_ID;
                let start = run.epoch * self.config.epochs.total;
                move |event| base + (event - start)
            }),
            Field::AuctionId => longs(kind, runs, nulls, |run| {
                let base = run.epoch * self.config.epochs.auctions + FIRST_AUCTION_ID;
                let start = run.epoch * self.config.epochs.total + self.config.epochs.persons;
                move |event| base + (event - start)
            }),
            Field::InitialBid => longs(kind, runs, nulls, |_| |event| self.price(Field::InitialBid, event)),
            Field::Reserve => longs(kind, runs, nulls, |_| {
                |event| self.price(Field::InitialBid, event) + self.price(Field::Reserve, event)
            }),
            Field::Price => longs(kind, runs, nulls, |_| |event| self.price(Field::Price, event)),
            Field::Category => longs(kind, runs, nulls, |_| {
                |event| FIRST_CATEGORY_ID + self.draw(Field::Category, event).upper(CATEGORIES)
            }),
            Field::Seller => longs(kind, runs, nulls, |run| {
                let person = self.person_of(run.epoch, 0);
                move |event| person(self.draw(Field::Seller, event), HOT_SELLER_RATIO)
            }),
            Field::Bidder => longs(kind, runs, nulls, |run| {
                // The second of the hundred, so that hot bidders are not the hot sellers.
                let person = self.person_of(run.epoch, 1);
                move |event| person(self.draw(Field::Bidder, event), HOT_BIDDER_RATIO)
            }),
            Field::BidAuction => longs(kind, runs, nulls, |run| {
                let last = self.config.last_auction(run.epoch);
                let first = last.saturating_sub(AUCTIONS_IN_FLIGHT);
                let hot = last / HOT_EVERY * HOT_EVERY + FIRST_AUCTION_ID;
                let (base, choices) = (first + FIRST_AUCTION_ID, last - first + 1 + ID_LEAD);
                move |event| {
                    let draw = self.draw(Field::BidAuction, event);
                    if draw.lower(HOT_AUCTION_RATIO) > 0 { hot } else { base + draw.upper(choices) }
                }
            }),
            _ => self.text_column(kind, field, runs, nulls)?,
        })
    }

    fn text_column(&self, kind: Kind, field: Field, runs: &Runs, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let pools = self.pools;
        match field {
            Field::PersonName => {
                texts(kind, runs, nulls, 12, |event, out| out.extend_from_slice(self.person_texts(event).name))
            }
            Field::City => {
                texts(kind, runs, nulls, 13, |event, out| out.extend_from_slice(self.person_texts(event).city))
            }
            Field::State => {
                texts(kind, runs, nulls, 2, |event, out| out.extend_from_slice(self.person_texts(event).state))
            }
            Field::EmailUser | Field::EmailHost => texts(kind, runs, nulls, 14, |event, out| {
                let texts = self.person_texts(event);
                out.extend_from_slice(texts.user);
                out.push(b'@');
                out.extend_from_slice(texts.host);
            }),
            Field::CreditCard => texts(kind, runs, nulls, 19, |event, out| self.credit_card(event, out)),
            Field::PersonExtra => texts(kind, runs, nulls, 160, |event, out| {
                let draw = self.draw(Field::PersonExtra, event);
                let length = extra_length(draw, self.person_size(event), PERSON_BYTES);
                self.letters(draw, length, out);
            }),
            Field::ItemName => texts(kind, runs, nulls, 20, |event, out| out.extend_from_slice(self.item_name(event))),
            Field::Description => {
                texts(kind, runs, nulls, 60, |event, out| out.extend_from_slice(self.description(event)))
            }
            Field::AuctionExtra => texts(kind, runs, nulls, 420, |event, out| {
                let draw = self.draw(Field::AuctionExtra, event);
                let size = (self.item_name(event).len() + self.description(event).len()) as u64 + 6 * 8;
                self.letters(draw, extra_length(draw, size, AUCTION_BYTES), out);
            }),
            Field::Channel => texts(kind, runs, nulls, 12, |event, out| {
                out.extend_from_slice(pools.channels.get(self.channel(event)))
            }),
            Field::Url => {
                texts(kind, runs, nulls, 72, |event, out| out.extend_from_slice(pools.urls.get(self.channel(event))))
            }
            _ => texts(kind, runs, nulls, BID_EXTRA_COPY, |event, out| {
                let draw = self.draw(Field::BidExtra, event);
                let length = extra_length(draw, 4 * 8, BID_BYTES) as usize;
                let start = out.len();
                if let Some(letters) = pools.letters[draw.upper(CUTS) as usize..].first_chunk::<BID_EXTRA_COPY>() {
                    out.extend_from_slice(letters);
                }
                out.truncate(start + length);
            }),
        }
    }

    #[inline(always)]
    fn price(&self, field: Field, event: u64) -> u64 {
        self.prices.of(self.draw(field, event)) as u64
    }

    /// Picks a person who is known to events of `epoch`: the hot one (`which` of its hundred), or one of the active ones
    /// and of a few who will come.
    #[inline(always)]
    fn person_of(&self, epoch: u64, which: u64) -> impl Fn(Draw, u64) -> u64 + use<> {
        let last = self.config.last_person(epoch);
        let active = (last + 1).min(PERSONS_ACTIVE);
        let hot = last / HOT_EVERY * HOT_EVERY + which + FIRST_PERSON_ID;
        let (base, choices) = (last + 1 - active + FIRST_PERSON_ID, active + ID_LEAD);
        move |draw, ratio| if draw.lower(ratio) > 0 { hot } else { base + draw.upper(choices) }
    }

    /// Index of a bid's channel and URL in their pools: the hot ones come first.
    #[inline(always)]
    fn channel(&self, event: u64) -> u64 {
        let draw = self.draw(Field::Channel, event);
        if draw.lower(HOT_CHANNEL_RATIO) > 0 { draw.upper(4) } else { 4 + draw.upper(CHANNELS) }
    }

    fn person_texts(&self, event: u64) -> PersonTexts<'static> {
        let pools = self.pools;
        let name = self.draw(Field::PersonName, event).upper(pools.names.len());
        let user = self.draw(Field::EmailUser, event).upper(pools.users.len());
        let host = self.draw(Field::EmailHost, event).upper(pools.hosts.len());
        let city = self.draw(Field::City, event).upper(pools.cities.len());
        let state = self.draw(Field::State, event).upper(pools.states.len());
        PersonTexts {
            name: pools.names.get(name),
            user: pools.users.get(user),
            host: pools.hosts.get(host),
            city: pools.cities.get(city),
            state: pools.states.get(state),
        }
    }

    /// A person's bytes without `extra`, counted as the public suite does.
    fn person_size(&self, event: u64) -> u64 {
        let PersonTexts { name, user, host, city, state } = self.person_texts(event);
        let texts = name.len() + user.len() + 1 + host.len() + city.len() + state.len();
        8 + texts as u64 + CREDIT_CARD_BYTES
    }

    fn credit_card(&self, event: u64, out: &mut Vec<u8>) {
        let number = self.draw(Field::CreditCard, event).below(10_000_000_000_000_000);
        for group in 0..4 {
            let digits = number / 10_u64.pow(4 * (3 - group));
            if group > 0 {
                out.push(b' ');
            }
            for place in [1000, 100, 10, 1] {
                out.push(b'0' + (digits / place % 10) as u8);
            }
        }
    }

    #[inline(always)]
    fn words(&self, field: Field, event: u64, length_max: u64) -> &'static [u8] {
        let draw = self.draw(field, event);
        self.pools.words(draw.upper(CUTS), 3 + draw.lower(length_max - 3))
    }

    fn item_name(&self, event: u64) -> &'static [u8] {
        self.words(Field::ItemName, event, 20)
    }

    fn description(&self, event: u64) -> &'static [u8] {
        self.words(Field::Description, event, 100)
    }

    #[inline(always)]
    fn letters(&self, draw: Draw, length: u64, out: &mut Vec<u8>) {
        let cut = draw.upper(CUTS) as usize;
        out.extend_from_slice(&self.pools.letters[cut..cut + length as usize]);
    }

    fn times(&self, kind: Kind, runs: &Runs, nulls: Option<NullBuffer>) -> ArrayRef {
        let rate = self.config.rate;
        let (whole, part) = ((1000 / rate) as i64, 1000 % rate);
        let mut values = Vec::with_capacity(runs.rows);
        for run in &runs.runs {
            if run.kind != kind {
                values.resize(values.len() + run.count as usize, 0);
                continue;
            }
            let mut time = self.config.time_ms(run.first);
            let mut rest = (u128::from(run.first) * 1000 % u128::from(rate)) as u64;
            values.extend((0..run.count).map(|_| {
                let this = time;
                rest += part;
                let carry = rest >= rate;
                rest -= if carry { rate } else { 0 };
                time += whole + i64::from(carry);
                this
            }));
        }
        Arc::new(TimestampMillisecondArray::new(ScalarBuffer::from(values), nulls))
    }

    fn expires(&self, runs: &Runs, nulls: Option<NullBuffer>) -> ArrayRef {
        let horizon = self.config.auction_horizon();
        let values = |event| {
            let time = self.config.time_ms(event);
            let span = (self.config.time_ms(event + horizon) - time).max(0) as u64;
            time + 1 + self.draw(Field::Expires, event).below((2 * span).max(1)) as i64
        };
        let values = integers(Kind::Auction, runs, |_| values);
        Arc::new(TimestampMillisecondArray::new(values, nulls))
    }
}

fn integers<F: Fn(u64) -> i64>(kind: Kind, runs: &Runs, per_run: impl Fn(&Run) -> F) -> ScalarBuffer<i64> {
    let mut values = Vec::with_capacity(runs.rows);
    for run in &runs.runs {
        if run.kind == kind {
            values.extend(run.events().map(per_run(run)));
        } else {
            values.resize(values.len() + run.count as usize, 0);
        }
    }
    ScalarBuffer::from(values)
}

fn longs<F: Fn(u64) -> u64>(
    kind: Kind,
    runs: &Runs,
    nulls: Option<NullBuffer>,
    per_run: impl Fn(&Run) -> F,
) -> ArrayRef {
    let values = integers(kind, runs, |run| {
        let value = per_run(run);
        move |event| value(event) as i64
    });
    Arc::new(Int64Array::new(values, nulls))
}

fn texts(
    kind: Kind,
    runs: &Runs,
    nulls: Option<NullBuffer>,
    bytes_each: usize,
    write: impl Fn(u64, &mut Vec<u8>),
) -> Result<ArrayRef> {
    let mut bytes = Vec::with_capacity(bytes_each * (runs.rows + 1));
    let mut offsets = Vec::with_capacity(runs.rows + 1);
    offsets.push(0);
    for run in &runs.runs {
        if run.kind == kind {
            for event in run.events() {
                write(event, &mut bytes);
                offsets.push(bytes.len() as i32);
            }
        } else {
            offsets.resize(offsets.len() + run.count as usize, bytes.len() as i32);
        }
    }
    // Lengths up to here fit because a batch holds at most as many rows as the runtime allows; checked once, not per row.
    if i32::try_from(bytes.len()).is_err() {
        return Err(Error::internal("a batch of generated text is larger than 2 GiB"));
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(|error| Error::internal("generated text is no text").with_detail(error.to_string()))
}
