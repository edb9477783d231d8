//! What the planner knows of connectors: options, metadata columns, push-downs. The connectors themselves live in
//! `weir-connectors`; both sides validate against the one table here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The connectors that Weir has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectorKind {
    /// A stream of the stream store.
    StreamStore,
    /// Files in a directory.
    Filesystem,
    /// The Nexmark event generator.
    Nexmark,
    /// Prints rows.
    Print,
    /// Counts rows and drops them.
    Blackhole,
}

impl ConnectorKind {
    /// Every connector.
    pub const ALL: [ConnectorKind; 5] = [
        ConnectorKind::StreamStore,
        ConnectorKind::Filesystem,
        ConnectorKind::Nexmark,
        ConnectorKind::Print,
        ConnectorKind::Blackhole,
    ];

    /// The name in `'connector' = '…'`.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectorKind::StreamStore => "stream-store",
            ConnectorKind::Filesystem => "filesystem",
            ConnectorKind::Nexmark => "nexmark",
            ConnectorKind::Print => "print",
            ConnectorKind::Blackhole => "blackhole",
        }
    }

    /// The connector of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Its capabilities and options.
    pub fn descriptor(self) -> &'static Descriptor {
        match self {
            ConnectorKind::StreamStore => &STREAM_STORE,
            ConnectorKind::Filesystem => &FILESYSTEM,
            ConnectorKind::Nexmark => &NEXMARK,
            ConnectorKind::Print => &PRINT,
            ConnectorKind::Blackhole => &BLACKHOLE,
        }
    }
}

impl fmt::Display for ConnectorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a connector can do, and its options.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Can be read.
    pub source: bool,
    /// Can be written.
    pub sink: bool,
    /// Produces only the columns, and nested fields, that are read.
    pub projection_push_down: bool,
    /// Top-level integer columns on which `IN` filters are pushed into the source.
    pub filter_push_down: &'static [&'static str],
    /// Options that it knows; any other is an error.
    pub options: &'static [OptionSpec],
    /// Metadata columns that it offers: key, SQL type.
    pub metadata: &'static [(&'static str, &'static str)],
    /// Keys of those that a sink can write.
    pub metadata_written: &'static [&'static str],
}

/// One option of a connector.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The key in `WITH (…)`.
    pub key: &'static str,
    /// What values it takes.
    pub kind: OptionKind,
    /// Must be given.
    pub required: bool,
    /// For people.
    pub doc: &'static str,
}

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An integer, zero or more.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A duration such as `10 s` or `500 ms`.
    Duration,
    /// A size such as `64 mb`.
    Size,
    /// The name of a table of the script.
    Table,
}

const fn option(key: &'static str, kind: OptionKind, doc: &'static str) -> OptionSpec {
    OptionSpec { key, kind, required: false, doc }
}

const fn required(key: &'static str, kind: OptionKind, doc: &'static str) -> OptionSpec {
    OptionSpec { key, kind, required: true, doc }
}

/// The format of changes as Debezium writes them, in JSON.
pub const DEBEZIUM_JSON: &str = "debezium-json";

/// The option that names the table which receives late rows; every source knows it.
pub const LATE_ROWS_TABLE: &str = "late-rows.table";

const LATE_ROWS: OptionSpec = option(
    LATE_ROWS_TABLE,
    OptionKind::Table,
    "a sink table of the same columns (or a subset by name) that receives the rows which came behind the watermark",
);

const JSON_ON_ERROR: OptionSpec = option(
    "json.ignore-parse-errors",
    OptionKind::Boolean,
    "count and skip records that do not decode instead of failing the job; default false",
);

const STREAM_STORE: Descriptor = Descriptor {
    source: true,
    sink: true,
    projection_push_down: true,
    filter_push_down: &[],
    options: &[
        required("stream", OptionKind::Text, "`scope/stream`"),
        option(
            "format",
            OptionKind::Choice(&["json", "arrow", DEBEZIUM_JSON]),
            "how records are encoded; default json; sink: `debezium-json` takes updates and deletes",
        ),
        option(
            "scan.startup.mode",
            OptionKind::Choice(&["earliest", "latest", "group"]),
            "where a new job starts; default earliest",
        ),
        option(
            "scan.bounded.mode",
            OptionKind::Choice(&["unbounded", "latest"]),
            "`latest`: end at the end of the stream as of the job's start; default unbounded",
        ),
        option(
            "scan.isolation",
            OptionKind::Choice(&["committed", "uncommitted"]),
            "what is read of transactions: `uncommitted` waits for no decision and reads aborted records too; default \
             committed",
        ),
        option("group", OptionKind::Text, "reader group; default a group of the job's own"),
        option(
            "key.fields",
            OptionKind::Text,
            "sink: columns, separated by ';', that make the record key, which picks the partition",
        ),
        option(
            "sink.partitions",
            OptionKind::Integer,
            "sink: create the stream with so many partitions if it does not exist; default 1",
        ),
        option(
            crate::output::DELIVERY_GUARANTEE,
            OptionKind::Choice(&[crate::output::EXACTLY_ONCE, crate::output::AT_LEAST_ONCE]),
            "sink: `exactly-once` commits rows with checkpoints; `at-least-once` shows them at once, and again after a \
             failure; default at-least-once",
        ),
        JSON_ON_ERROR,
        LATE_ROWS,
    ],
    metadata: &[
        ("partition", "INT NOT NULL"),
        ("offset", "BIGINT NOT NULL"),
        ("timestamp", "TIMESTAMP_LTZ(3)"),
        ("key", "STRING"),
    ],
    metadata_written: &["timestamp", "key"],
};

const FILESYSTEM: Descriptor = Descriptor {
    source: true,
    sink: true,
    projection_push_down: true,
    filter_push_down: &[],
    options: &[
        required("path", OptionKind::Text, "source: a file or directory; sink: a directory"),
        required(
            "format",
            OptionKind::Choice(&["json", "csv", DEBEZIUM_JSON]),
            "JSON lines or CSV; names ending in .gz are decompressed; sink: `debezium-json` takes updates and deletes",
        ),
        option("csv.field-delimiter", OptionKind::Text, "one character; default ','"),
        option("csv.ignore-first-line", OptionKind::Boolean, "source: the first line is a header; default false"),
        option("csv.null-literal", OptionKind::Text, "text that stands for NULL; default empty"),
        option("csv.ignore-parse-errors", OptionKind::Boolean, "count and skip rows that do not decode; default false"),
        JSON_ON_ERROR,
        LATE_ROWS,
    ],
    metadata: &[("file.path", "STRING NOT NULL"), ("file.name", "STRING NOT NULL")],
    metadata_written: &[],
};

const NEXMARK: Descriptor = Descriptor {
    source: true,
    sink: false,
    projection_push_down: true,
    filter_push_down: &["event_type"],
    options: &[
        option("events.num", OptionKind::Integer, "number of events; default 0: without end"),
        option("first-event.rate", OptionKind::Integer, "events a second of event time; default 10000"),
        option(
            "next-event.rate",
            OptionKind::Integer,
            "known to the public suite, where the rate may change; here it must equal first-event.rate",
        ),
        option(
            "emit.rate",
            OptionKind::Integer,
            "events a second of real time over all splits; default 0: as fast as possible",
        ),
        option("seed", OptionKind::Integer, "event i is a pure function of (seed, i); default 0"),
        option(
            "base-time",
            OptionKind::Integer,
            "event time of event 0 in ms since the epoch; default 1436918400000 (2015-07-15)",
        ),
        option(
            "splits",
            OptionKind::Integer,
            "shares of the event sequence, fixed at job creation; default the parallelism",
        ),
        option("person.proportion", OptionKind::Integer, "default 1"),
        option("auction.proportion", OptionKind::Integer, "default 3"),
        option("bid.proportion", OptionKind::Integer, "default 46"),
        option("push-down", OptionKind::Boolean, "generate only what the query reads; default true"),
        LATE_ROWS,
    ],
    metadata: &[],
    metadata_written: &[],
};

const PRINT: Descriptor = Descriptor {
    source: false,
    sink: true,
    projection_push_down: false,
    filter_push_down: &[],
    options: &[option("print-identifier", OptionKind::Text, "put before every row")],
    metadata: &[],
    metadata_written: &[],
};

const BLACKHOLE: Descriptor = Descriptor {
    source: false,
    sink: true,
    projection_push_down: false,
    filter_push_down: &[],
    options: &[],
    metadata: &[],
    metadata_written: &[],
};
