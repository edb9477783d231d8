//! Strings rendered once: names, cities, channels and URLs, and long texts that others are cut from. The pools do not
//! depend on the seed; which entry an event takes does.

use std::sync::LazyLock;

use super::random::Draws;

/// Cut positions in [`Pools::letters`] and [`Pools::words`].
pub(super) const CUTS: u64 = 1 << 16;

/// A text of [`CUTS`] and this many more bytes can be cut to any length below it at every position.
const CUT_LENGTH_MAX: usize = 1024;

/// Channels other than the hot ones.
pub(super) const CHANNELS: u64 = 10_000;

const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];
const CITIES: [&str; 10] =
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
const FIRST_NAMES: [&str; 11] =
    ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
const LAST_NAMES: [&str; 9] = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];

/// Strings side by side.
#[derive(Debug, Default)]
pub(super) struct Pool {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pool {
    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.ends.push(self.bytes.len() as u32);
    }

    fn of<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        let mut pool = Self::default();
        for text in texts {
            pool.push(text.as_ref());
        }
        pool
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.ends.len() as u64
    }

    /// One of them.
    #[inline(always)]
    pub(super) fn get(&self, index: u64) -> &[u8] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.bytes[start..self.ends[index] as usize]
    }
}

/// All pools.
#[derive(Debug)]
pub(super) struct Pools {
    /// First and last name.
    pub(super) names: Pool,
    pub(super) cities: Pool,
    pub(super) states: Pool,
    /// What stands before the `@`: 3 to 6 characters.
    pub(super) users: Pool,
    /// What follows it: 3 or 4 characters and `.com`.
    pub(super) hosts: Pool,
    /// The hot channels, then `channel-0` and so on.
    pub(super) channels: Pool,
    /// One for each channel.
    pub(super) urls: Pool,
    /// Random letters.
    pub(super) letters: Vec<u8>,
    /// Random letters with a blank in thirteen.
    pub(super) words: Vec<u8>,
}

static POOLS: LazyLock<Pools> = LazyLock::new(Pools::render);

/// One in thirteen characters is this one, the others are letters, as in the public suite.
fn random_text(draws: Draws, counter: &mut u64, length: u64, special: char) -> String {
    let character = |_| {
        *counter += 1;
        let draw = draws.at(*counter);
        if draw.lower(13) == 0 { special } else { char::from(b'a' + draw.upper(26) as u8) }
    };
    (0..length).map(character).collect()
}

impl Pools {
    /// The pools of this process.
    pub(super) fn get() -> &'static Self {
        &POOLS
    }

    fn render() -> Self {
        let names = FIRST_NAMES.iter().flat_map(|first| LAST_NAMES.iter().map(move |last| format!("{first} {last}")));
        let (draws, mut counter) = (Draws::new(0, 0x706f_6f6c), 0);
        let mut text = |length_min: u64, lengths: u64, special| {
            counter += 1;
            let length = length_min + draws.at(counter).upper(lengths);
            random_text(draws, &mut counter, length, special)
        };
        let users = Pool::of((0..4096).map(|_| text(3, 4, ' ').trim().to_owned()));
        let hosts = Pool::of((0..4096).map(|_| format!("{}.com", text(3, 2, ' ').trim())));
        let mut base_url = || {
            let parts: [String; 3] = std::array::from_fn(|_| text(3, 2, '_'));
            format!("https://www.nexmark.com/{}/item.htm?query=1", parts.join("/"))
        };
        let mut urls = Pool::of(HOT_CHANNELS.map(|_| base_url()));
        for channel in 0..CHANNELS {
            // One URL in ten does not tell its channel.
            match Draws::new(0, 0x75_726c).at(channel).upper(10) {
                0 => urls.push(&base_url()),
                _ => urls.push(&format!("{}&channel_id={}", base_url(), reversed_id(channel as u32))),
            }
        }
        let channels =
            HOT_CHANNELS.iter().map(|&hot| hot.to_owned()).chain((0..CHANNELS).map(|i| format!("channel-{i}")));
        let letters = Draws::new(0, 0x6c_6574);
        let length = CUTS + CUT_LENGTH_MAX as u64;
        Self {
            names: Pool::of(names),
            cities: Pool::of(CITIES),
            states: Pool::of(STATES),
            users,
            hosts,
            channels: Pool::of(channels),
            urls,
            letters: (0..length).map(|i| b'a' + letters.at(i).upper(26) as u8).collect(),
            words: random_text(Draws::new(0, 0x776f_7264), &mut 0, length, ' ').into_bytes(),
        }
    }

    /// A text of up to `length` characters, cut out at one of [`CUTS`] places; blanks at its ends are cut off.
    #[inline(always)]
    pub(super) fn words(&self, cut: u64, length: u64) -> &[u8] {
        self.words[cut as usize..(cut + length) as usize].trim_ascii()
    }
}

/// A channel's id in URLs: its number with the bits reversed, as a positive 32-bit integer.
fn reversed_id(channel: u32) -> u32 {
    (channel.reverse_bits() as i32).unsigned_abs()
}
