//! Exactly what the commands about snapshots print, for people and for programs: `testdata/transcripts`.

use std::path::Path;

use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::job_in_state;
use weir_integration_tests::transcript::Transcripts;
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, copy, has_read, readings, totals_script};
use crate::usage::{listed_as, settles};

fn transcripts(cluster: &Cluster) -> Transcripts {
    Transcripts::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/transcripts"), cluster)
}

/// Runs `totals.sql`, which has read everything and takes no checkpoints by itself, without a word of it in the transcript.
async fn running(cluster: &Cluster, transcripts: &mut Transcripts) -> String {
    append(cluster, "test/in", &readings(0, 1_000));
    cluster.write("totals.sql", &totals_script("1 h"));
    transcripts.replay(cluster, "run");
    let job = cluster.weir_json(&["list"])[0]["id"].as_str().expect("a job").to_owned();
    has_read(cluster, &job, 1_000).await;
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_policies_and_the_catalogue_print_what_their_transcripts_say() {
    let settings = ["snapshots.writers_timeout_ms=500", "quotas.owner.savepoints=20"];
    let cluster = Cluster::start_with(1, 1, &settings);
    let mut transcripts = transcripts(&cluster);
    let job = running(&cluster, &mut transcripts).await;
    for name in ["quota", "policy", "snapshots", "inside"] {
        transcripts.replay(&cluster, name);
    }

    // A TaskManager that says nothing keeps a savepoint in flight, and another one waiting.
    cluster.freeze("tm-1");
    let mut first = cluster.weir_in_background(&["savepoint", "totals"]);
    listed_as(&cluster, "IN_PROGRESS").await;
    transcripts.replay(&cluster, "cancel");
    assert_eq!(first.wait().expect("a child").code(), Some(18), "the code of CANCELLED");
    cluster.thaw("tm-1");
    settles(&cluster).await;
    transcripts.replay(&cluster, "cancelled");

    append(&cluster, "test/in", &readings(1_000, 1_000));
    has_read(&cluster, &job, 2_000).await;
    transcripts.replay(&cluster, "pins");
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_claims_and_imports_print_what_their_transcripts_say() {
    let far = Cluster::start(1, 1);
    let mut transcripts_there = transcripts(&far);
    running(&far, &mut transcripts_there).await;
    let carried = far.weir_json(&["stop", "totals"])["directory"].as_str().expect("a directory").to_owned();

    let cluster = Cluster::start(1, 1);
    let mut transcripts = transcripts(&cluster);
    let job = running(&cluster, &mut transcripts).await;
    copy(&carried, &cluster.path("carried"));
    drop(far);
    let other = totals_script("1 h").replace("COUNT(*)", "COUNT(DISTINCT reading)");
    cluster.write("other.sql", &other);
    transcripts.replay(&cluster, "stop");
    job_in_state(&cluster, &job, JobState::Stopped).await;
    for name in ["restore", "import", "claim"] {
        transcripts.replay(&cluster, name);
    }
}
