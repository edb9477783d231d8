//! Prints how fast the store appends (fsynced) and reads, beside what the disk itself writes sequentially.
//!
//! ```text
//! cargo run --release -p weir-stream-store --example throughput -- --dir /path/on/the/disk
//! ```

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::net::TcpListener;
use weir_stream_store::client::{Producer, ProducerOptions, Reader, ReaderOptions, StoreClient};
use weir_stream_store::{RecordBlock, RecordBlockBuilder, Store, StoreConfig, server};
use weir_types::ids::PartitionId;
use weir_types::store::StreamOptions;
use weir_types::stream::StreamName;
use weir_types::{Error, Result};

/// Measures the store beside the disk
#[derive(Parser)]
struct Args {
    /// A directory on the disk to measure; a subdirectory is made and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Mebibytes per measurement
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Partitions of the stream
    #[arg(long, default_value_t = 4)]
    partitions: u32,
    /// Bytes per record
    #[arg(long, default_value_t = 200)]
    record_bytes: usize,
    /// Bytes per block
    #[arg(long, default_value_t = 1 << 20)]
    block_bytes: usize,
}

fn report(what: &str, bytes: u64, elapsed: Duration, records: Option<u64>) {
    let seconds = elapsed.as_secs_f64();
    let rate = bytes as f64 / seconds / 1e6;
    match records {
        Some(records) => println!("{what:<44} {rate:>8.0} MB/s {:>10.2} M records/s", records as f64 / seconds / 1e6),
        None => println!("{what:<44} {rate:>8.0} MB/s"),
    }
}

/// One file, written in chunks of 1 MiB and synced at the end: the best the disk does.
fn raw_write(dir: &Path, bytes: u64) -> std::io::Result<Duration> {
    let path = dir.join("raw");
    let chunk = vec![0x5a; 1 << 20];
    let begin = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_data()?;
    let elapsed = begin.elapsed();
    std::fs::remove_file(path)?;
    Ok(elapsed)
}

fn block(args: &Args) -> Result<RecordBlock> {
    let value = vec![b'v'; args.record_bytes];
    let mut builder = RecordBlockBuilder::default();
    while builder.encoded_len() < args.block_bytes {
        builder.push(None, &value, Some(builder.len() as i64))?;
    }
    Ok(builder.finish())
}

/// Prebuilt blocks straight into the embedded store, 8 under way per partition.
async fn append_embedded(store: &Store, name: &StreamName, args: &Args) -> Result<(u64, Duration)> {
    let block = block(args)?;
    let rounds = (args.mib << 20) / block.payload().len() as u64 / u64::from(args.partitions);
    let begin = Instant::now();
    let writers = (0..args.partitions).map(|partition| {
        let (store, name, block) = (store.clone(), name.clone(), block.clone());
        tokio::spawn(async move {
            let mut answers = std::collections::VecDeque::new();
            for _ in 0..rounds {
                answers.push_back(store.submit(&name, PartitionId(partition), block.clone(), None).await?);
                if answers.len() >= 8
                    && let Some(answer) = answers.pop_front()
                {
                    answer.await.map_err(|_| Error::internal("no answer"))??;
                }
            }
            for answer in answers {
                answer.await.map_err(|_| Error::internal("no answer"))??;
            }
            Ok::<_, Error>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.map_err(|error| Error::internal(error.to_string()))??;
    }
    Ok((rounds * u64::from(args.partitions) * block.payload().len() as u64, begin.elapsed()))
}

/// Record by record through a producer over gRPC.
async fn append_client(client: &StoreClient, name: &StreamName, args: &Args) -> Result<(u64, u64, Duration)> {
    let options = ProducerOptions { block_bytes: args.block_bytes, buffer_bytes: 64 << 20, ..Default::default() };
    let mut producer = Producer::open(client, name, options).await?;
    let value = vec![b'v'; args.record_bytes];
    let records = (args.mib << 20) / args.record_bytes as u64;
    let begin = Instant::now();
    for i in 0..records {
        producer.send(Some(&i.to_le_bytes()), &value, Some(i as i64)).await?;
    }
    producer.flush().await?;
    Ok((records * args.record_bytes as u64, records, begin.elapsed()))
}

/// Everything in the stream, through one reader over gRPC, touching every record.
async fn read_client(client: &StoreClient, name: &StreamName) -> Result<(u64, u64, Duration)> {
    let info = client.describe_stream(name).await?;
    let options = ReaderOptions { until: Some(info.ends()), credit_bytes: 8 << 20, ..Default::default() };
    let mut reader = Reader::open(client, name, info.heads(), options);
    let (mut bytes, mut records) = (0, 0);
    let begin = Instant::now();
    while let Some(block) = reader.next().await? {
        for record in block.records()? {
            bytes += record.value.len() as u64;
            records += 1;
        }
    }
    Ok((bytes, records, begin.elapsed()))
}

async fn measure(args: &Args, dir: &Path) -> Result<()> {
    let io = |error: std::io::Error| Error::io("measuring failed", &error);
    report("disk, sequential write, synced once", args.mib << 20, raw_write(dir, args.mib << 20).map_err(io)?, None);
    let store = Store::open(StoreConfig::at(dir.join("store")))?;
    let name: StreamName = "bench/embedded".parse()?;
    store.create_stream(&name, StreamOptions::new(args.partitions), false).await?;
    let (bytes, elapsed) = append_embedded(&store, &name, args).await?;
    report("embedded append, fsynced", bytes, elapsed, None);

    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
    let address = listener.local_addr().map_err(io)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(listener, store, async {
        let _ = stopped.await;
    }));
    let client = StoreClient::connect(&address.to_string())?;
    let name: StreamName = "bench/client".parse()?;
    client.create_stream(&name, &StreamOptions::new(args.partitions), false).await?;
    let (bytes, records, elapsed) = append_client(&client, &name, args).await?;
    report("producer over gRPC, fsynced", bytes, elapsed, Some(records));
    for pass in ["first", "second"] {
        let (bytes, records, elapsed) = read_client(&client, &name).await?;
        report(&format!("reader over gRPC, {pass} pass"), bytes, elapsed, Some(records));
    }
    report("disk, sequential write, again", args.mib << 20, raw_write(dir, args.mib << 20).map_err(io)?, None);
    let _ = stop.send(());
    serving.await.map_err(|error| Error::internal(error.to_string()))?
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let dir = args.dir.join(format!("weir-throughput-{}", std::process::id()));
    let run = || -> Result<()> {
        std::fs::create_dir_all(&dir).map_err(|error| Error::io("the directory could not be made", &error))?;
        weir_service::runtime::build("bench", 2)?.block_on(measure(&args, &dir))
    };
    let outcome = run();
    let _ = std::fs::remove_dir_all(&dir);
    weir_service::report::exit(outcome)
}
